"""The untrained auditor's probes, for those who compare with them; who loads an audit's auditors."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from auditkit.audit import baseline
from auditkit.audit.allocation import auditor_loaders
from auditkit.consensus.same import Same
from auditkit.params import load_params
from auditkit.runs.folder import open_stage


def record(i, target="one"):
    return {"key": f"untrained/{i}", "picture": f"b{i}", "question": "how many are there?", "target": target,
            "references": {"a": "two", "b": "two"}, "way": "question", "checkpoint": "untrained"}  # fmt: skip


@pytest.fixture
def p(project):
    return load_params("params/smoke.yaml")


def finished(p):
    run = open_stage(p, baseline.BASELINE)
    run.append([record(0), record(1, target="two")])
    run.count(target_called=2)
    run.finish({})


def test_records_are_scored_with_the_bounds_of_the_parameters(p):
    outcomes = [row["outcome"] for row in baseline.score_run([record(0), record(1, "two")], Same(), p)]
    assert outcomes == ["finding", "agrees"]
    strict = SimpleNamespace(**{**vars(p), "min_token_probability": 0.5})
    assert baseline.score_run([record(0) | {"rarest": 0.1}], Same(), strict)[0]["outcome"] == "implausible"


def test_what_was_not_run_has_no_probes(p):
    assert baseline.baseline_probes(p) == []
    finished(p)
    assert [row["outcome"] for row in baseline.baseline_probes(p)] == ["finding", "agrees"]


def test_the_untrained_share_of_the_audit_stands_in_for_it(p):
    scored = [record(7) | {"outcome": "finding"}, record(8) | {"outcome": "finding", "checkpoint": "6"}]
    assert [row["key"] for row in baseline.untrained_probes(p, scored)] == ["untrained/7"]
    finished(p)
    assert len(baseline.untrained_probes(p, scored)) == 2
    first_edit = SimpleNamespace(**{**vars(p), "ways": ["edit"]})
    assert baseline.untrained_probes(first_edit, scored) == [], "notebook 02 asks questions only"


def test_the_untrained_auditor_comes_first_and_the_trained_one_last(tmp_path):
    for step in (20, 3):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(b"")

    def load(spec, adapter=None):
        return spec, adapter

    assert list(auditor_loaders("untrained", load, "a", None)) == ["untrained"]
    assert list(auditor_loaders("source", load, "a", None)) == ["source"]
    loaders = auditor_loaders("auditor", load, "a", tmp_path)
    assert next(iter(loaders)) == "untrained" and loaders["untrained"]() == ("a", None)
    assert isinstance(list(loaders.values())[-1]()[1], Path)
