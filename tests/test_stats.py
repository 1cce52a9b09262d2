import numpy as np
import pytest

from auditkit import stats
from auditkit.errors import AuditError


def test_nothing_counted_is_an_error_and_not_a_rate_of_zero():
    with pytest.raises(AuditError, match="nothing was counted"):
        stats.rate(0, 0)
    with pytest.raises(AuditError, match="3 of 2"):
        stats.rate(3, 2)


def test_intervals_hold_their_value_and_stay_between_0_and_1():
    for successes in (0, 1, 10, 20):
        r = stats.rate(successes, 20)
        assert 0 <= r["low"] <= r["value"] <= r["high"] <= 1
    m = stats.mean([stats.rate(20, 20), stats.rate(20, 20)])
    assert m["high"] <= 1 and m["low"] < 1


def test_a_paired_difference_is_narrower_than_chance_and_reproducible():
    rng = np.random.default_rng(1)
    before = rng.random(200) < 0.5
    after = before | (rng.random(200) < 0.2)
    d = stats.difference(before, after)
    assert d == stats.difference(before, after)
    assert 0 < d["low"] < d["value"] < d["high"]
    assert stats.difference(before, before) == {"value": 0.0, "low": -0.0149, "high": 0.0149, "n": 200}
    assert stats.mcnemar(before, after)["lost"] == 0 and stats.mcnemar(before, after)["p"] < 1e-3


def test_unequal_items_cannot_be_paired():
    with pytest.raises(AuditError, match="same items"):
        stats.mcnemar([1, 0], [1])
