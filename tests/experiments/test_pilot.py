"""A pilot: what is cut down, what it says of the whole, and what it advises."""

import importlib.util
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from smoke_run import auditkit, run_once

from auditkit import cli
from auditkit.experiments import pilot
from auditkit.param_rules import refuse_impossible
from auditkit.params import FIELDS, WAYS, load_params
from auditkit.runs import jsonl
from auditkit.runs.folder import STAGES

PICTURES = 8
TRACKERS = [name for name in ("tensorboard", "trackio") if importlib.util.find_spec(name)]
TRACKED = f"report_to=[{', '.join(TRACKERS)}]"
FILES = sorted(path for path in Path("params").glob("*.yaml") if not path.name.startswith("study_"))


@pytest.fixture(scope="session")
def piloted(tmp_path_factory):
    """A project after the pilot of a smoke run whose answers have one token, and what was said."""
    how = ["--pilot", str(PICTURES), "--set", "max_answer_tokens=1", "--set", TRACKED]
    project, log = run_once(tmp_path_factory.getbasetemp(), "pilot", *how)
    assert log.startswith("0\n"), log
    return project, log


@pytest.fixture
def read(piloted, monkeypatch):
    monkeypatch.chdir(piloted[0])
    p = load_params("params/smoke.yaml", max_answer_tokens=1)
    return p, pilot.pilot_params(p, PICTURES), piloted[0] / "outputs" / "smoke_pilot"


@pytest.mark.parametrize("name", [path.name for path in FILES])
@pytest.mark.parametrize("pictures", [1, 7, 50, 10**6])
def test_nothing_grows_and_the_rules_hold(repository, name, pictures):
    p = load_params(repository / "params" / name)
    small = pilot.pilot_params(p, pictures)
    refuse_impossible(small, WAYS)
    for key, field in FIELDS.items():
        if field.annotation is int:
            assert getattr(small, key) <= getattr(p, key), key
    assert small.audit_probes == min(p.audit_probes, pictures) and small.run_name == f"{p.run_name}_pilot"
    assert small.grpo_steps * small.grpo_images <= max(pictures, small.grpo_steps)
    assert (small.target, small.references, small.ways, small.batch_size) == (
        p.target, p.references, p.ways, p.batch_size,
    )  # fmt: skip


def test_every_stage_ran_in_a_folder_of_its_own_with_so_many_pictures(read):
    p, small, folder = read
    assert not (folder.parent / "smoke").exists()
    counts = {stage: json.loads((folder / stage / "manifest.json").read_text())["counts"] for stage in STAGES}
    assert all((folder / stage / "DONE").is_file() for stage in STAGES)
    assert counts["02_disagreement"]["asked"] == PICTURES
    asked = jsonl.read(folder / "03_counterfactual" / "records.jsonl")
    assert len({row["base"] for row in asked if row["base"]}) <= PICTURES
    audited = {row["base"] or row["picture"] for row in jsonl.read(folder / "05_audit" / "records.jsonl")}
    assert len(audited) == PICTURES


def test_it_says_what_the_whole_takes_and_what_to_change(read, piloted):
    p, small, folder = read
    found = json.loads((folder / "pilot.json").read_text())
    assert (folder / "pilot.md").read_text() in piloted[1]
    assert [row["stage"] for row in found["stages"]] == list(STAGES)
    for row in found["stages"]:
        assert 0 < row["low"] <= row["whole"] <= row["high"] and row["fixed"] <= row["pilot"]
    times = {row["stage"]: row["times"] for row in found["stages"]}
    assert times["02_disagreement"] == p.baseline_images / PICTURES
    assert times["05_audit"] == p.audit_probes / PICTURES
    seconds = found["seconds"]
    assert seconds["pilot"] < seconds["whole"] < 30 * seconds["pilot"]
    book = [row for stage in ("01_models", "02_disagreement", "03_counterfactual", "05_audit")
            for row in jsonl.read(folder / stage / "answers.jsonl")]  # fmt: skip
    cut = Counter(row["model"] for row in book if row.get("cut"))
    assert {row["model"]: row["cut"] for row in found["answers"]} == {row["model"]: cut[row["model"]] for row in book}
    assert cut["target"] and any('"target" is cut off in' in sentence for sentence in found["change"])


def test_the_cells_it_scales_are_there_and_each_was_timed(read):
    p, small, folder = read
    for stage, cells in pilot.amounts(small, PICTURES, {}).items():
        book = json.loads((folder / stage / "notebook.ipynb").read_text())
        timed = {cell["id"] for cell in book["cells"] if cell["metadata"].get("papermill", {}).get("duration")}
        assert cells.keys() <= timed, stage


def test_what_servers_cost_grows_with_the_pictures_and_images_that_are_not_there_cost_nothing(
    read, tmp_path, monkeypatch
):
    p, small, folder = read
    shutil.copytree(folder, tmp_path / "outputs" / "smoke_pilot")
    (tmp_path / "params").mkdir()
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "outputs" / "smoke_pilot" / "05_audit" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["hosted"] = {"large": {"calls": 10, "tokens_read": 300, "tokens_written": 20, "dollars": 0.5}}
    path.write_text(json.dumps(manifest))
    text = pilot.report_pilot(p, small, PICTURES)
    assert "large: 120 answers by its server, 3,600 tokens read, 240 written, $6.00" in text  # 96 probes of 8
    few = pilot.amounts(p, 96, {"audit": 20, "baseline": 10, "train": 40})
    assert few["05_audit"]["05-run"] == 20 and few["02_disagreement"]["02-ask"] == 10


def test_a_pilot_again_says_the_same_and_of_other_counts_it_is_refused(piloted):
    project, _ = piloted
    before = (project / "outputs" / "smoke_pilot" / "pilot.md").read_text()
    same = auditkit(project, "--pilot", str(PICTURES), "--set", "max_answer_tokens=1")
    assert same.returncode == 0 and before in same.stdout and same.stdout.count("done before") == len(STAGES)
    other = auditkit(project, "--pilot", "5", "--set", "max_answer_tokens=1")
    assert other.returncode == 2 and "Make the pilot anew with --start-over." in other.stderr


@pytest.mark.skipif("tensorboard" not in TRACKERS, reason="tensorboard is not installed (extra tensorboard)")
def test_both_trainings_report_to_tensorboard_inside_the_run(read):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for stage, steps in (("04_auditor", read[1].grpo_steps), ("07_rectify", read[1].rectify_steps)):
        logged = EventAccumulator(str(read[2] / stage / "logs"))
        logged.Reload()
        assert [event.step for event in logged.Scalars("train/loss")] == list(range(1, steps + 1)), stage


@pytest.mark.skipif("trackio" not in TRACKERS, reason="trackio is not installed (extra trackio)")
def test_both_trainings_report_to_trackio_inside_the_run_without_a_network(read):
    import sqlite3

    for stage in ("04_auditor", "07_rectify"):
        with sqlite3.connect(read[2] / stage / "logs" / "auditkit.db") as database:
            runs = {name for (name,) in database.execute("select distinct run_name from metrics")}
        assert runs == {f"smoke_pilot-{stage}"}


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--pilot", "0"], "'0' is not a whole number above 0"),
        (["--pilot", "-1"], "'-1' is not a whole number above 0"),
        (["--pilot", "many"], "'many' is not a whole number above 0"),
        (["--pilot", "5", "--only", "02"], "leave out --from and --only"),
        (["--pilot", "5", "--from", "02"], "leave out --from and --only"),
    ],
)
def test_what_is_no_pilot_is_refused_in_a_sentence(project, capsys, arguments, said):
    assert cli.main(["run", "params/smoke.yaml", *arguments]) == 2
    told = capsys.readouterr().err
    assert said in told and len(told.strip().splitlines()) == 1


def test_a_study_has_no_pilot(repository, capsys, monkeypatch):
    monkeypatch.chdir(repository)
    assert cli.main(["run", "params/study_ways.yaml", "--pilot", "5"]) == 2
    assert "takes --jobs alone" in capsys.readouterr().err


WELL = {"asked": 100, "parsed": 100, "scored": 90, "findings": 20}


@pytest.mark.parametrize(
    "outcomes, said",
    [
        ({}, None),
        ({"malformed": 9}, None),
        ({"malformed": 20}, "a larger auditor"),
        ({"malformed": 60}, "name another auditor"),
        ({"implausible": 11}, "lower min_token_probability"),
        ({"no_consensus": 25}, None),
        ({"no_consensus": 40}, "differ in words alone"),
        ({"no_consensus": 60}, "write same: embedding"),
        ({"bad_pictures": 30, "images_made": 40}, "write ways: [question]"),
        ({"bad_pictures": 10, "images_made": 40}, None),
        ({"findings": 0}, "never departs"),
        ({"findings": 85}, "hardly true"),
    ],
)
def test_only_a_share_that_calls_for_it_is_advised_on(repository, outcomes, said):
    p = load_params(repository / "params" / "smoke.yaml")
    told = pilot.what_to_change(p, [], {"audit": WELL | outcomes})
    assert told == [] if said is None else len(told) == 1 and said in told[0]


def test_a_model_whose_answers_are_cut_or_empty_is_named(repository):
    p = load_params(repository / "params" / "smoke.yaml")
    rows = [{"model": "a", "answers": 50, "cut": 5, "empty": 5}, {"model": "b", "answers": 50, "cut": 6, "empty": 0}]
    assert pilot.what_to_change(p, rows, {}) == [
        '"b" is cut off in 6 of 50 answers: raise max_answer_tokens (now 8).'
    ]  # fmt: skip
