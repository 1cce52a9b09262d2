"""A part of the campaign of bad inputs, small enough for every run of the tests."""

import pytest
from campaigns import inputs
from huggingface_hub import constants

from auditkit.miniature import shipped


@pytest.mark.skipif(not (shipped.WEIGHTS / "target").is_dir(), reason="the miniature models are not built yet")
@pytest.mark.filterwarnings("ignore:(Could not find a config file|You have requested):UserWarning")
def test_every_bad_input_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert inputs.campaign(150, seed=1) == []


def test_the_campaign_would_notice():
    """A traceback, a hang, two sentences and a control character are told."""
    said = "auditkit: a\nauditkit: b"
    for act, wrong in [
        (lambda: 1 // 0, "ZeroDivisionError"),
        (lambda: 1, "exit code 1"),
        (lambda: print(said, file=inputs.sys.stderr) or 2, "2 sentences"),
        (lambda: print("a\x1b[31m") or 0, "a control character"),
    ]:
        assert wrong in inputs.tried(inputs.Input("", "", act))[0]
