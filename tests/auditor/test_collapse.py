"""A collapse is seen in what was written, is not seen where there is none, and stops a training for good."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from auditkit.auditor import collapse, grpo
from auditkit.auditor.collapse import collapse_reason, step_measures
from auditkit.errors import AuditError
from auditkit.miniature.boards import Boards
from auditkit.models.load import load_model
from auditkit.params import load_params
from auditkit.runs import jsonl
from auditkit.runs.folder import run_folder

P = dict(patience=3, replay_weight=0.0, coverage_weight=0.0, learning_rate=0.005)


def step(texts, success=None, wrote=True, group=4):
    """Rollouts of one step, `group` texts about each picture, with a note before each that differs."""
    success = [False] * len(texts) if success is None else success
    return [
        SimpleNamespace(picture=f"p{i // group}", text=f"note {i}\n{text}", wrote=text if wrote else None, success=won)
        for i, (text, won) in enumerate(zip(texts, success, strict=True))
    ]


def rows(n, **figures):
    healthy = {"commonest": 0.2, "alike_groups": 0.1, "flat_groups": 0.4, "kinds_lately": 6}
    return [{"step": i + 1, **healthy, **figures} for i in range(n)]


def test_a_step_of_one_question_and_one_of_many_read_differently():
    one = step_measures(step(["is it red?"] * 8, [True] * 8), [4] * 200)
    assert (one["commonest"], one["repeats"], one["alike_groups"], one["flat_groups"]) == (1, 1, 1, 1)
    assert (one["group_spread"], one["kinds_lately"]) == (0, 1)
    many = step_measures(step([f"question {i}?" for i in range(8)], [True, False] * 4), [1, 2, 3])
    assert (many["commonest"], many["repeats"], many["alike_groups"], many["flat_groups"]) == (1 / 8, 0, 0, 0)
    assert many["group_spread"] == 0.5 and many["kinds_lately"] == 3


def test_a_group_is_flat_only_where_all_earn_the_same_being_a_question_included():
    half = step_measures(step([*"abcd", *"efgh"], [True] * 4 + [True, False, False, False]), [1])
    assert half["flat_groups"] == 0.5
    spoilt = step(list("abcd"), [False] * 4)
    spoilt[0].wrote = None
    assert step_measures(spoilt, [])["flat_groups"] == 0 and step_measures(step(list("abcd")), [])["flat_groups"] == 1


@pytest.mark.parametrize(
    ("figures", "seen"),
    [
        ({"commonest": 1.0}, "100% of all texts are one and the same"),
        ({"alike_groups": 1.0}, "100% of the groups wrote one text each"),
        ({"flat_groups": 1.0, "kinds_lately": 1}, "100% of the groups earn all the same, and one kind of text"),
    ],
)
def test_each_collapse_is_told_with_its_step_and_what_to_change(figures, seen):
    why = collapse_reason(rows(20) + [row | {"step": row["step"] + 20} for row in rows(3, **figures)], **P)
    assert "by step 23" in why and seen in why and "\n" not in why
    assert "replay_weight (now 0)" in why and "grpo_learning_rate (now 0.005)" in why


@pytest.mark.parametrize(
    "figures",
    [
        {},
        {"flat_groups": 1.0, "kinds_lately": 5},  # every group agrees with itself, and they find different things
        {"flat_groups": 1.0, "kinds_lately": 0},  # nothing has been found yet: hard, but no collapse
        {"commonest": 0.7, "alike_groups": 0.9},
    ],
)
def test_what_is_only_narrow_is_no_collapse(figures):
    assert collapse_reason(rows(50, **figures), **P) == ""


def test_one_way_that_collapses_is_seen_between_steps_of_the_others():
    turns = [row | {"way": "edit" if row["step"] % 4 == 0 else "question"} for row in rows(16)]
    history = [row | {"commonest": 0.9} if row["way"] == "edit" else row for row in turns]
    assert "by step 12 the auditor has collapsed: for 3 steps of edit in a row" in collapse_reason(history[:12], **P)
    assert collapse_reason(history[:11], **P) == collapse_reason(turns, **P) == ""


def test_it_takes_as_many_steps_in_a_row_as_patience_says():
    bad, good = {"commonest": 1.0}, {}
    mixed = rows(2, **bad) + rows(1, **good) + rows(2, **bad)
    assert collapse_reason(mixed, **P) == "" and collapse_reason(rows(2, **bad), **P) == ""
    assert collapse_reason(mixed + rows(1, **bad), **P)
    assert collapse_reason(rows(99, **bad), **P | {"patience": 0}) == ""


def test_a_history_from_before_there_was_a_watch_is_no_trouble():
    assert collapse_reason([{"step": 1, "reward/disagreement": 0.5}] * 9, **P) == ""


@pytest.fixture
def p(repository):
    smoke = load_params(repository / "params" / "smoke.yaml")
    small = {"grpo_steps": 6, "grpo_images": 2, "group_size": 4, "grpo_checkpoints": 1, "train_images": 16}
    return replace(smoke, ways=["question"], replay_clusters=4, grpo_patience=2, **small)


def models():
    named = [load_model(f"miniature:{name}") for name in ("auditor", "target", "gemma3", "idefics3", "llava")]
    return named[0], named[1], named[2:]


def test_a_collapsed_training_stops_keeps_what_it_has_and_says_so_again(tmp_path, p, monkeypatch):
    """Two texts a picture, whatever they are, are called a collapse here: the stop is tested, not the thresholds."""
    pictures, seen = Boards().pictures("train", p.train_images, p.seed), []
    healthy = grpo.train_auditor(*models(), pictures, replace(p, grpo_steps=2), tmp_path / "healthy")
    assert {"group_spread", "flat_groups", "alike_groups", "repeats", "commonest", "kinds_lately"} <= set(healthy[-1])
    monkeypatch.setattr(collapse, "ONE_TEXT", 0.0)
    with pytest.raises(AuditError, match="by step 2 the auditor has collapsed: for 2 steps"):
        grpo.train_auditor(*models(), pictures, p, tmp_path / "out", on_step=seen.append)
    assert [row["step"] for row in seen] == [1, 2] and len(jsonl.read(tmp_path / "out" / "rollouts.jsonl")) == 2 * 8
    assert list(grpo.auditor_checkpoints(tmp_path / "out")) == ["step 2"]
    with pytest.raises(AuditError, match="by step 2 the auditor has collapsed"):
        grpo.train_auditor(*models(), pictures, p, tmp_path / "out", on_step=seen.append)
    assert len(seen) == 2, "not one step was trained on"
    went_on = grpo.train_auditor(*models(), pictures, replace(p, grpo_patience=0, grpo_steps=3), tmp_path / "out")
    assert [row["step"] for row in went_on] == [1, 2, 3]


PROCESS = "import sys; from auditkit.auditor import collapse, grpo; collapse.ONE_TEXT = 0.0; sys.exit(grpo.main())"


def test_two_processes_stop_at_the_same_step(project):
    """One that went on would wait for the other's share of the next step until the time is up."""
    (project / "process.py").write_text(PROCESS)
    shape = {"train_images": 16, "grpo_steps": 6, "grpo_images": 2, "group_size": 4, "grpo_checkpoints": 1}
    shape |= {"replay_clusters": 4, "ways": ["question"], "grpo_patience": 2}
    settings = [word for name, value in shape.items() for word in ("--set", f"{name}={value}")]
    launch = "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    launch = [sys.executable, "-m", *launch.split(), "--dynamo_backend", "no", "--main_process_port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(grpo.__file__).parents[2])}
    for _ in range(2):  # started again, it says the same
        command = [*launch, "process.py", "params/smoke.yaml", *settings]
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode != 0 and "auditkit: grpo_patience: by step 2 the auditor has collapsed" in done.stderr
        out = run_folder(load_params("params/smoke.yaml", **shape)) / "04_auditor"
        assert [row["step"] for row in jsonl.read(out / "history.jsonl")] == [1, 2]
        assert list(grpo.auditor_checkpoints(out)) == ["step 2"] and not list(out.glob("answers.*.jsonl"))
