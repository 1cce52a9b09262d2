"""A collapse is seen in what was written, is not seen where there is none, and ends no run: the training goes back to
where it was whole, with that kind closed, or ends early, and the audit follows.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from auditkit.auditor import closed, collapse, grpo, rollouts, trainer
from auditkit.auditor.collapse import collapse_reason, step_measures
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


def wrote(step, text, cluster=0, success=True):
    made = {"way": "question", "wrote": text, "text": f"a note\n{text}", "cluster": cluster, "success": success}
    return [{"key": f"{step - 1}-{i}", "step": step - 1, **made} for i in range(4)]


def trained(out, history, written, checkpoints):
    """A training's folder, as a collapse finds it."""
    jsonl.append(out / "history.jsonl", [{"way": "question", **row} for row in history])
    jsonl.append(out / "rollouts.jsonl", [one for step in written for one in step])
    for step in checkpoints:
        (out / f"checkpoint-{step}").mkdir()


def settings(**changes):
    weights = {"replay_weight": 0.1, "coverage_weight": 0.0, "grpo_learning_rate": 0.005}
    more = {"grpo_patience": 3, "grpo_steps": 10, "grpo_rollouts": "transformers", "replay_clusters": 4}
    return SimpleNamespace(**weights | more | changes)


def one_text_from(step, n, text="how many striped objects are there?", closed=0):
    after = [row | {"commonest": 1.0} if row["step"] >= step else row for row in rows(n)]
    return [row | {"closed": closed} for row in after], [wrote(i + 1, text) for i in range(n)]


def test_the_kind_of_the_one_text_is_closed_and_what_was_left_behind_is_kept(tmp_path, capsys):
    trained(tmp_path, *one_text_from(6, 8), checkpoints=(2, 4, 5, 8))
    closed.answer_collapse(tmp_path, settings())
    (row,) = jsonl.read(tmp_path / "collapses.jsonl")
    assert (row["step"], row["back_to"], row["text"]) == (8, 4, "how many striped objects are there?")
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert [row["step"] for row in jsonl.read(tmp_path / "history.jsonl")] == [1, 2, 3, 4]
    assert len(jsonl.read(tmp_path / "rollouts.jsonl")) == len(jsonl.read(tmp_path / "rollouts.left.jsonl")) == 16
    assert len({row["key"] for row in rollouts.read_rollouts(tmp_path)}) == 32
    assert row["cluster"] == 0 and closed.closed_kinds(tmp_path) == {0}
    assert "goes on from step 4, its last whole checkpoint" in capsys.readouterr().out
    closed.answer_collapse(tmp_path, settings())  # asked again, it does nothing
    assert len(jsonl.read(tmp_path / "collapses.jsonl")) == 1 and not closed.has_ended(tmp_path, 3)


def test_a_checkpoint_that_was_about_to_collapse_is_not_whole(tmp_path):
    history, written = one_text_from(6, 8)
    history[3] |= {"commonest": 0.9}  # step 4 shows it, step 5 does not, and from step 6 on all do
    trained(tmp_path, history, written, checkpoints=(2, 4))
    closed.answer_collapse(tmp_path, settings())
    assert jsonl.read(tmp_path / "collapses.jsonl")[0]["back_to"] == 2


def test_where_it_shows_in_the_groups_the_kind_of_most_of_them_is_closed(tmp_path):
    history = [row | {"alike_groups": 1.0} for row in rows(3)]
    trained(tmp_path, history, [wrote(1, "a?", 1), wrote(2, "b?", 1), wrote(3, "c?", 2)], checkpoints=(3,))
    closed.answer_collapse(tmp_path, settings())
    (row,) = jsonl.read(tmp_path / "collapses.jsonl")
    assert (row["back_to"], row["cluster"]) == (0, 1) and row["text"] in ("a?", "b?")
    assert closed.closed_kinds(tmp_path) == {1}
    assert "earn nothing from there on, and the training starts again." in closed.collapse_in_words(row)


@pytest.mark.parametrize(
    ("changes", "before", "text"),
    [
        ({"grpo_rollouts": "vllm_server"}, [], "is it red?"),  # whose engine cannot be started twice
        ({}, [{"step": 8, "back_to": 4, "cluster": 0}], "is it red?"),  # closed already
        ({}, [{"step": 9, "back_to": 0, "cluster": i} for i in (1, 2)], "is it red?"),  # 26 steps, twice 10 are 20
        ({}, [], None),  # no question, so there is no kind to close
        ({"replay_clusters": 1}, [], "is it red?"),  # all that there is
    ],
)
def test_it_ends_early_where_going_back_would_not_help(tmp_path, changes, before, text):
    jsonl.append(tmp_path / "collapses.jsonl", before)
    history, written = one_text_from(6, 8, text, closed=len(before))
    trained(tmp_path, history, written, checkpoints=(2, 4, 5, 8))
    closed.answer_collapse(tmp_path, settings(**changes))
    *_, row = jsonl.read(tmp_path / "collapses.jsonl")
    assert row["ends"] and "back_to" not in row and closed.has_ended(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert len(jsonl.read(tmp_path / "history.jsonl")) == 8, "all of it is shown, the collapse, too"
    assert not closed.has_ended(tmp_path, 0) and not closed.has_ended(tmp_path, 9), "another patience, another word"
    closed.answer_collapse(tmp_path, settings(**changes))
    assert len(jsonl.read(tmp_path / "collapses.jsonl")) == len(before) + 1


@pytest.fixture
def p(repository):
    smoke = load_params(repository / "params" / "smoke.yaml")
    small = {"grpo_steps": 6, "grpo_images": 2, "group_size": 4, "grpo_checkpoints": 1, "train_images": 16}
    return replace(smoke, ways=["question"], replay_clusters=4, grpo_patience=2, **small)


def models():
    named = [load_model(f"miniature:{name}") for name in ("auditor", "target", "gemma3", "idefics3", "llava")]
    return named[0], named[1], named[2:]


def collapse_to_whatever_is_commonest(monkeypatch):
    """Any two steps are called a collapse: what follows from one is tested, not the thresholds."""
    monkeypatch.setattr(collapse, "ONE_TEXT", 0.0)


def test_a_collapsed_training_closes_kinds_ends_early_and_says_so_again(tmp_path, p, monkeypatch, capsys):
    pictures, seen, out = Boards().pictures("train", p.train_images, p.seed), [], tmp_path / "out"
    healthy = grpo.train_auditor(*models(), pictures, replace(p, grpo_steps=2), tmp_path / "healthy")
    assert {"group_spread", "flat_groups", "alike_groups", "repeats", "commonest", "kinds_lately"} <= set(healthy[-1])
    assert closed.collapse_metrics(tmp_path / "healthy") == {} == closed.collapse_metrics(tmp_path / "nowhere")
    collapse_to_whatever_is_commonest(monkeypatch)
    history = grpo.train_auditor(*models(), pictures, p, out, on_step=seen.append)
    told = capsys.readouterr().out
    assert "by step 2 the auditor has collapsed: for 2 steps" in told and "The training ends" in told
    rows = jsonl.read(out / "collapses.jsonl")  # each from the start, for there is no checkpoint before
    times = len(rows)
    assert times > 1 and [row.get("back_to") for row in rows] == [0] * (times - 1) + [None] and rows[-1]["ends"]
    assert [row["step"] for row in seen] == [1, 2] * times and [row["step"] for row in history] == [1, 2]
    assert [row.get("closed", 0) for row in seen[::2]] == list(range(times))
    assert list(grpo.auditor_checkpoints(out)) == ["step 2"]
    # nothing that was found is lost, and no key stands twice
    every = rollouts.read_rollouts(out)
    assert len(every) == len({row["key"] for row in every}) == times * 2 * 8
    assert rollouts.rollout_counts(out, "target")["asked"] == times * 2 * 8
    # started again, it trains no step and says the same
    assert grpo.train_auditor(*models(), pictures, p, out, on_step=seen.append) == history
    assert len(seen) == 2 * times
    said = closed.collapse_metrics(out)["collapses"]
    assert [row["in_words"] for row in said] == closed.collapses_in_words(out) and len(said) == times
    went_on = grpo.train_auditor(*models(), pictures, replace(p, grpo_patience=0, grpo_steps=3), out)
    assert [row["step"] for row in went_on] == [1, 2, 3]


def test_it_goes_on_from_the_last_whole_checkpoint_and_a_killed_one_goes_on_the_same(tmp_path, p, monkeypatch):
    """Steps 3 to 5 are the collapse, so the checkpoint of step 1 is whole; that of 2 has written the first of them."""
    p = replace(p, grpo_steps=5, grpo_checkpoints=5, grpo_patience=3)
    pictures = Boards().pictures("train", p.train_images, p.seed)
    find = collapse.find_collapse

    def thrice(history, patience):
        shows = len(history) == 5 and not history[-1].get("closed")
        return find([*history[:2], *(row | {"commonest": 1.0} for row in history[2:])], patience) if shows else None

    for module in (closed, trainer):
        monkeypatch.setattr(module, "find_collapse", thrice)
    history = grpo.train_auditor(*models(), pictures, p, tmp_path / "whole")
    (row,) = jsonl.read(tmp_path / "whole" / "collapses.jsonl")
    assert (row["step"], row["back_to"], row["way"]) == (5, 1, "question")
    assert [one.get("closed", 0) for one in history] == [0, 1, 1, 1, 1]
    shut = closed.closed_kinds(tmp_path / "whole")
    assert shut == {row["cluster"]}

    class Killed(Exception):
        pass

    def kill(*_):
        raise Killed

    monkeypatch.setattr(closed, "forget_after", kill)  # after the answer is written, before the steps are forgotten
    with pytest.raises(Killed):
        grpo.train_auditor(*models(), pictures, p, tmp_path / "killed")
    assert len(jsonl.read(tmp_path / "killed" / "history.jsonl")) == 5
    monkeypatch.undo()
    for module in (closed, trainer):
        monkeypatch.setattr(module, "find_collapse", thrice)
    grpo.train_auditor(*models(), pictures, p, tmp_path / "killed")
    for name in ("rollouts.jsonl", "rollouts.left.jsonl", "collapses.jsonl"):
        assert jsonl.read(tmp_path / "killed" / name) == jsonl.read(tmp_path / "whole" / name), name


PROCESS = "import sys; from auditkit.auditor import collapse, grpo; collapse.ONE_TEXT = 0.0; sys.exit(grpo.main())"


def test_two_processes_go_back_and_end_at_the_same_step(project):
    """One that went on would wait for the other's share of the next step until the time is up."""
    (project / "process.py").write_text(PROCESS)
    shape = {"train_images": 16, "grpo_steps": 3, "grpo_images": 2, "group_size": 4, "grpo_checkpoints": 1}
    shape |= {"replay_clusters": 4, "ways": ["question"], "grpo_patience": 2}
    settings = [word for name, value in shape.items() for word in ("--set", f"{name}={value}")]
    launch = "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    launch = [sys.executable, "-m", *launch.split(), "--dynamo_backend", "no", "--main_process_port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(grpo.__file__).parents[2])}
    for attempt in range(2):  # started again, it does nothing more
        command = [*launch, "process.py", "params/smoke.yaml", *settings]
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert attempt or "grpo_patience: by step 2 the auditor has collapsed" in done.stdout
        out = run_folder(load_params("params/smoke.yaml", **shape)) / "04_auditor"
        assert [row.get("back_to") for row in jsonl.read(out / "collapses.jsonl")] == [0, None]  # 3 of 6 steps left
        assert [row["step"] for row in jsonl.read(out / "history.jsonl")] == [1, 2]
        assert list(grpo.auditor_checkpoints(out)) == ["step 2"] and not list(out.glob("answers.*.jsonl"))
