"""A few of the kills of tests/campaigns/kills.py: `python -m tests.campaigns.kills --n 100 --seed 0` does many."""

import os

import pytest
from campaigns.kills import kills

SEED = int(os.environ.get("KILLS_SEED", "4"))


def test_a_run_killed_at_random_moments_ends_in_the_same_records(smoke, tmp_path):
    told = list(kills(smoke / "outputs" / "smoke", tmp_path, n=3, seed=SEED))
    print(f"seed {SEED}: {told}")
    assert [one for one in told if one["wrong"]] == []
    if not any(one["in_time"] for one in told):
        pytest.fail("every stage was done before it was killed, so nothing was tried; choose another seed")
