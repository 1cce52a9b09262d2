"""What a stage's folder promises: nothing twice, DONE last, one set of parameters, one writer."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from auditkit.errors import AuditError
from auditkit.params import FIELDS, load_params
from auditkit.runs import folder, jsonl
from auditkit.runs.folder import NEVER_MATTER, STAGES, is_done, open_stage, run_folder, start_over


@pytest.fixture
def p(project, monkeypatch):
    monkeypatch.setattr(folder, "LOCK_SECONDS", 0.2)
    return load_params("params/demo.yaml")


def changed(**settings):
    return load_params("params/demo.yaml", **settings)


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def finished(p, stage, **metrics):
    run = open_stage(p, stage)
    run.append({"key": "a"})
    run.count(target_called=1)
    run.finish(metrics)
    return run


def test_a_finished_stage_says_what_it_was(p, project):
    run = open_stage(p, "05_audit")
    assert (run.folder, run.done) == (project / "outputs/demo/05_audit", False)
    assert manifest(run.folder)["status"] == "running"
    assert run.append([{"key": "a", "x": 1}, {"key": "b", "x": 2}]) == 2
    run.count(asked=2, target_called=np.int64(2))
    run.path("images/a.png").write_bytes(b"")
    metrics = run.finish({"precision": {"value": np.float64(0.5), "n": 2}, "shares": np.ones(2)})
    assert metrics == {"precision": {"value": 0.5, "n": 2}, "shares": [1.0, 1.0]}
    said = manifest(run.folder)
    assert (
        said["status"] == "done" and said["metrics"] == metrics and said["counts"] == {"asked": 2, "target_called": 2}
    )
    assert set(said["parameters"]) == set(FIELDS), "all of them, also those that the file leaves out"
    assert said["parameters"]["audit_probes"] == p.audit_probes and said["seed"] == p.seed and said["seconds"] >= 0
    assert {"python", "torch", "transformers"} <= set(said["versions"])
    assert run.done and is_done(p, "05_audit")
    assert not list(run.folder.glob("*.new"))


def test_answers_that_the_limit_cut_are_counted_and_above_a_tenth_said(p, capsys):
    run = open_stage(p, "05_audit")
    for name, cut in (("whole", 0), ("tenth", 2), ("stumps", 3)):
        rows = [{"model": name, "picture": str(i), "question": "", "answer": ""} for i in range(20)]
        jsonl.append(run.path("answers.jsonl"), [row | {"cut": True} if i < cut else row for i, row in enumerate(rows)])
    run.count(target_called=1)
    run.finish()
    assert manifest(run.folder)["counts"]["answers_cut"] == 5
    said = [line for line in capsys.readouterr().out.splitlines() if "max_answer_tokens" in line]
    assert len(said) == 1 and said[0].startswith('"stumps": 3 of 20 answers end by the limit')
    assert f"raise max_answer_tokens (now {p.max_answer_tokens})" in said[0]


def test_records_are_appended_once(p):
    run = open_stage(p, "05_audit")
    run.append({"key": "a", "x": 1})
    again = open_stage(p, "05_audit")  # the same cell run twice in one kernel
    assert again.keys() == {"a"}
    assert again.append([{"key": "a", "x": 9}, {"key": "b"}, {"key": "b"}]) == 1
    assert again.records() == [{"key": "a", "x": 1}, {"key": "b"}]
    assert len((run.folder / "records.jsonl").read_text().splitlines()) == 2
    with pytest.raises(AuditError, match="a record has None for a key"):
        again.append({"x": 1})


def test_a_finished_stage_keeps_the_word_of_what_made_it(p, monkeypatch):
    run = finished(p, "06_findings")
    before = manifest(run.folder)
    monkeypatch.setattr(folder, "versions", lambda: {"python": "another"})
    open_stage(p, "06_findings")
    assert {**manifest(run.folder), "seconds": 0} == {**before, "seconds": 0}


def test_a_torn_last_line_is_cut_off_and_damage_elsewhere_is_named(p):
    run = open_stage(p, "05_audit")
    run.append([{"key": "a"}, {"key": "b"}])
    file = run.folder / "records.jsonl"
    with file.open("a") as stream:
        stream.write('{"key": "c", "x"')
    again = open_stage(p, "05_audit")
    again.append({"key": "c"})
    assert [json.loads(line)["key"] for line in file.read_text().splitlines()] == ["a", "b", "c"]
    file.write_text('{"key": "a"}\n{"ke\n{"key": "c"}\n')
    with pytest.raises(AuditError, match="records.jsonl, line 2"):
        open_stage(p, "05_audit")


def test_another_value_that_matters_is_refused_with_the_difference(p):
    finished(p, "05_audit")
    with pytest.raises(
        AuditError,
        match=f"audit_probes {p.audit_probes} then, 5 now.* resume=False .on the command line: --from 05 --start-over",
    ):
        open_stage(changed(audit_probes=5), "05_audit")
    assert not is_done(changed(audit_probes=5), "05_audit")
    assert is_done(changed(rectify_steps=5, batch_size=3, device="cpu"), "05_audit")  # does not matter here
    run = open_stage(changed(audit_probes=5), "05_audit", resume=False)
    assert run.records() == [] and not run.done and manifest(run.folder)["counts"] == {}


def test_what_was_made_before_there_was_a_parameter_was_made_with_its_default(p):
    finished(p, "05_audit")
    path = run_folder(p) / "05_audit" / "manifest.json"
    before = json.loads(path.read_text())
    del before["parameters"]["candidates"]
    path.write_text(json.dumps(before))
    assert is_done(changed(candidates=1), "05_audit") and not is_done(changed(candidates=3), "05_audit")


def test_a_repair_depends_on_the_failure_types_it_learns_in_turn(p):
    finished(p, "07_rectify")
    assert is_done(p, "07_rectify") and not is_done(changed(failure_types=5), "07_rectify")


def test_a_stage_that_made_nothing_yet_takes_other_parameters(p):
    open_stage(p, "05_audit")
    assert manifest(open_stage(changed(audit_probes=5), "05_audit").folder)["parameters"]["audit_probes"] == 5


def test_every_parameter_matters_somewhere_or_is_known_not_to():
    placed = {name for names in STAGES.values() for name in names} | set(NEVER_MATTER)
    assert placed == set(FIELDS)


def test_a_missing_earlier_stage_names_its_notebook(p, notebook):
    notebook("04_train_the_auditor.ipynb")
    run = open_stage(p, "05_audit")
    with pytest.raises(
        AuditError, match="needs outputs/demo/04_auditor, which is not done: run notebooks/04_train_the_"
    ):
        run.need("04_auditor")
    open_stage(p, "04_auditor").append({"key": "a"})  # begun, not done
    with pytest.raises(AuditError, match="not done"):
        run.need("04_auditor")
    finished(p, "04_auditor")
    assert run.need("04_auditor") == run.folder.parent / "04_auditor"
    other = open_stage(changed(grpo_steps=20, run_name="demo"), "06_findings")
    with pytest.raises(AuditError, match=f"other settings .grpo_steps {p.grpo_steps} then, 20 now"):
        other.need("04_auditor")


def test_an_earlier_stage_made_anew_makes_later_ones_stale(p):
    finished(p, "04_auditor")
    run = open_stage(p, "05_audit")
    run.need("04_auditor")
    run.count(target_called=1)
    run.finish()
    finished(p, "04_auditor")  # opened again, nothing new: the same stage still
    assert is_done(p, "05_audit")
    start_over(p, ["04_auditor"])
    finished(p, "04_auditor")
    assert not is_done(p, "05_audit")
    with pytest.raises(AuditError, match="05_audit was built on a 04_auditor that has been made anew since"):
        open_stage(p, "05_audit")


def test_zero_target_calls_is_never_a_success(p):
    for counts in ({}, {"asked": 9, "target_called": 0}):
        run = open_stage(p, "05_audit")
        run.count(**counts)
        with pytest.raises(AuditError, match="05_audit: the target was never called"):
            run.finish({})
        assert not run.done
    open_stage(p, "00_setup").finish()  # asks nobody


@pytest.mark.parametrize("value", [None, float("nan"), {"value": None}, [1, float("nan")]])
def test_what_was_not_measured_is_left_out(p, value):
    with pytest.raises(AuditError, match="precision.* leave out what was not measured"):
        open_stage(p, "00_setup").finish({"precision": value})


def test_an_unknown_stage_is_refused(p):
    with pytest.raises(AuditError, match="No stage 5_audit"):
        open_stage(p, "5_audit")


WORKER = """
import sys, time
from auditkit.params import load_params
from auditkit.runs.folder import open_stage
run = open_stage(load_params("params/demo.yaml"), "05_audit")
for i in range(100_000):
    if str(i) not in run.keys():
        run.append({"key": str(i), "text": "x" * 200})
    if i == 50:
        print("going", flush=True)
"""


def test_a_killed_stage_goes_on_with_nothing_lost_or_twice(p):
    worker = subprocess.Popen([sys.executable, "-c", textwrap.dedent(WORKER)], stdout=subprocess.PIPE)
    try:
        assert worker.stdout.readline() == b"going\n"
        with pytest.raises(AuditError, match="Another process writes to outputs/demo/05_audit"):
            open_stage(p, "05_audit")
        with pytest.raises(AuditError, match="Another process"):
            start_over(p, ["05_audit"])
        time.sleep(0.05)
    finally:
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
        worker.stdout.close()
    run = open_stage(p, "05_audit")
    keys = [record["key"] for record in run.records()]
    assert keys == [str(i) for i in range(len(keys))] and len(keys) > 50
    run.append([{"key": str(i)} for i in range(len(keys) + 2)])
    lines = (run.folder / "records.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == [str(i) for i in range(len(keys) + 2)]


def test_a_stage_with_records_of_another_form_is_refused_in_one_sentence(p):
    run = open_stage(p, "05_audit")
    run.append({"key": "a"})
    manifest = json.loads((run.folder / "manifest.json").read_text())
    del manifest["format"]  # as before there was one
    (run.folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(AuditError, match="outputs/demo/05_audit was made .* records of format 1 then, 2 now"):
        open_stage(p, "05_audit")


def test_starting_a_linked_stage_over_removes_the_link_alone(p, tmp_path):
    for again in (lambda: start_over(p, ["05_audit"]), lambda: open_stage(p, "05_audit", resume=False)):
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        (elsewhere / "precious.txt").write_text("mine")
        (run_folder(p)).mkdir(parents=True, exist_ok=True)
        (run_folder(p) / "05_audit").symlink_to(elsewhere, target_is_directory=True)
        again()
        assert not (run_folder(p) / "05_audit").is_symlink()
        assert [file.name for file in elsewhere.iterdir()] == ["precious.txt"]
    assert (run_folder(p) / "05_audit").is_dir(), "the second one opened a folder of its own"
