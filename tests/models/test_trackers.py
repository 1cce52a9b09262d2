"""Trackers: which there are, where they log, and that no figure and no stage depends on them."""

import importlib.util
import os
from dataclasses import replace

import pytest

from auditkit.errors import AuditError
from auditkit.models import trackers
from auditkit.params import load_params, stages_of
from auditkit.runs import jsonl
from auditkit.runs.folder import open_stage, why_not_resume


@pytest.fixture
def p(project):
    smoke = load_params("params/smoke.yaml", ways=["question"], grpo_steps=2, grpo_images=2, grpo_checkpoints=1)
    return replace(smoke, group_size=2, train_images=8, rectify_steps=2, rectify_batch=2)


def test_a_tracker_there_is_not_is_refused_with_those_there_are(project):
    with pytest.raises(AuditError, match="report_to: 'mlflow' is not one of trackio, wandb, tensorboard"):
        load_params("params/smoke.yaml", report_to=["mlflow"])
    with pytest.raises(AuditError, match="report_to: expected a list of texts"):
        load_params("params/smoke.yaml", report_to="wandb")


def test_one_that_is_not_installed_is_refused_before_anything_starts(p, monkeypatch):
    from auditkit.experiments.papermill import refuse_misfits
    from auditkit.runs.folder import STAGES

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "wandb" else found(name, *more)
    )
    with pytest.raises(AuditError, match=r'report_to: wandb is not installed: pip install "auditkit\[wandb\]"'):
        refuse_misfits(replace(p, report_to=["wandb"]), list(STAGES), False)
    refuse_misfits(p, list(STAGES), False)


def test_no_stage_depends_on_it(p):
    assert stages_of("report_to") == []
    run = open_stage(p, "04_auditor")
    run.append({"key": "a"})
    run.count(target_called=1)
    run.finish()
    assert why_not_resume(replace(p, report_to=["tensorboard"]), "04_auditor") == ""


def test_what_a_person_has_set_stays_and_the_rest_is_forgotten_afterwards(p, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    with trackers.logging_into(replace(p, report_to=["wandb"]), tmp_path):
        assert (os.environ["WANDB_PROJECT"], os.environ["WANDB_DIR"]) == ("mine", str(tmp_path / "logs"))
    assert os.environ["WANDB_PROJECT"] == "mine" and "WANDB_DIR" not in os.environ


def test_both_trainings_have_the_same_figures_with_a_tracker(p, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (extra tensorboard)")
    from auditkit.auditor.grpo import train_auditor
    from auditkit.miniature.boards import Boards
    from auditkit.models.load import load_model
    from auditkit.repair.finetune import train_repair

    figures = {}
    for name, report_to in (("without", []), ("with", ["tensorboard"])):
        now, out = replace(p, report_to=report_to), tmp_path / name
        auditor, target, *others = (load_model(f"miniature:{m}") for m in ("auditor", "target", "gemma3", "llava"))
        train_auditor(auditor, target, others, Boards().pictures("train", 8, 0), now, out / "04")
        train_repair(target, Boards().examples(4, 0), now, out / "07")
        rows = [row for stage in ("04", "07") for row in jsonl.read(out / stage / "history.jsonl")]
        figures[name] = [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]
        assert (out / "04" / "logs").is_dir() == (out / "07" / "logs").is_dir() == bool(report_to)
    assert figures["with"] == figures["without"] and len(figures["with"]) == 4
    events = [path.name for path in (tmp_path / "with").rglob("events.out.tfevents*")]
    assert len(events) == 2, "the small step before the first reports to nobody"
