"""A finished stage that has lost files is neither used nor passed over, and what is missing is made again."""

import json

import pytest

from auditkit.cli import main
from auditkit.errors import AuditError
from auditkit.params import load_params
from auditkit.report.summary import read_run
from auditkit.runs import inventory, jsonl
from auditkit.runs.folder import is_done, open_stage, run_folder


@pytest.fixture
def p(project):
    return load_params("params/demo.yaml")


@pytest.fixture
def audit(p):
    """A finished 05_audit with files of every kind."""
    run = open_stage(p, "05_audit")
    run.append({"key": str(i)} for i in range(9))
    jsonl.append(run.path("scored.jsonl"), ({"key": str(i), "outcome": "finding"} for i in range(9)))
    asked = ({"model": "target", "picture": str(i), "question": "q", "answer": "a"} for i in range(9))
    jsonl.append(run.path("answers.jsonl"), asked)
    jsonl.append(run.path("proposals.jsonl"), [{"key": "0"}])
    jsonl.append(run.path("pictures.jsonl"), [{"key": "made-1"}])
    run.path("pictures/made-1.png").write_bytes(b"picture")
    run.path("notebook.ipynb").write_text("papermill still writes this")
    run.path("checkpoints/checkpoint-1/optimizer.pt").write_bytes(b"thrown away")
    run.count(target_called=9)
    run.finish()
    return run.folder


def test_done_lists_what_the_stage_ended_with(audit):
    done = json.loads((audit / "DONE").read_text())
    names = {
        "answers.jsonl",
        "pictures.jsonl",
        "pictures/made-1.png",
        "proposals.jsonl",
        "records.jsonl",
        "scored.jsonl",
    }
    assert set(done["files"]) == names and done["finished"].startswith("20")
    assert done["files"]["pictures/made-1.png"] == [7], "a picture by its size, for there may be very many"
    size, digest = done["files"]["scored.jsonl"]
    assert size == (audit / "scored.jsonl").stat().st_size and len(digest) == 64
    assert inventory.damage(audit) == {}


def lose(path):
    path.unlink()


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change(path):
    path.write_bytes(path.read_bytes()[::-1])


@pytest.mark.parametrize(
    "name, harm, said",
    [
        ("scored.jsonl", lose, "scored.jsonl (missing)"),
        ("scored.jsonl", halve, "scored.jsonl ("),
        ("scored.jsonl", change, "scored.jsonl (changed)"),
        ("pictures/made-1.png", lose, "pictures/made-1.png (missing)"),
        ("pictures/made-1.png", halve, "pictures/made-1.png (3 of 7 bytes)"),
        ("DONE", halve, "DONE (damaged)"),
    ],
)
def test_whoever_needs_it_is_told_what_is_missing_and_the_command_that_makes_it_again(p, audit, name, harm, said):
    later = open_stage(p, "06_findings")
    later.need("05_audit")
    harm(audit / name)
    with pytest.raises(AuditError) as error:
        later.need("05_audit")
    assert said in str(error.value) and "auditkit run params/demo.yaml --only 05" in str(error.value)
    with pytest.raises(AuditError, match="05_audit is not whole"):
        read_run(audit.parent)
    assert not is_done(p, "05_audit")


def test_the_runner_refuses_a_later_stage_before_any_kernel(p, audit, notebook, capsys):
    notebook("06_x.ipynb", 'run.need("05_audit")')
    (audit / "scored.jsonl").unlink()
    assert main(["run", "params/demo.yaml", "--only", "06"]) == 2
    said = capsys.readouterr().err
    assert "scored.jsonl (missing)" in said and "--only 05" in said and said.count("\n") == 1


def test_what_may_go_on_growing_or_changing_is_no_damage(p, audit):
    (audit / "notebook.ipynb").write_text("done")
    (audit / "reviews.jsonl").write_text('{"key": "1", "decision": "accept"}\n')
    jsonl.append(audit / "answers.jsonl", [{"model": "target", "picture": "9", "question": "q", "answer": "a"}])
    open_stage(p, "05_audit")  # which writes the manifest
    assert inventory.damage(audit) == {} and is_done(p, "05_audit")


def test_a_stage_finished_before_there_was_a_list_counts_as_whole(p, audit):
    (audit / "DONE").write_text("2026-01-01T00:00:00+00:00\n")
    (audit / "scored.jsonl").unlink()
    assert is_done(p, "05_audit") and open_stage(p, "06_findings").need("05_audit") == audit


def again(p, audit, **scored):
    """The stage opened once more, its missing scores made again, and finished."""
    run = open_stage(p, "05_audit")
    assert not run.done
    if not (audit / "scored.jsonl").exists():
        rows = ({"key": str(i), "outcome": "finding"} | scored for i in range(9))
        jsonl.append(audit / "scored.jsonl", rows)
    run.finish()
    return json.loads((audit / "manifest.json").read_text())["id"]


def test_what_is_missing_is_made_again_and_nothing_else(p, audit, capsys):
    later = open_stage(p, "06_findings")
    later.need("05_audit")
    before = json.loads((audit / "manifest.json").read_text())["id"]
    (audit / "scored.jsonl").unlink()
    assert again(p, audit) == before, "as it was, so what is built on it stands"
    assert "scored.jsonl (missing); that is made again" in capsys.readouterr().out
    assert len(jsonl.read(audit / "answers.jsonl")) == 9 and is_done(p, "05_audit")
    later.need("05_audit")


def test_what_comes_out_otherwise_makes_later_stages_stale(p, audit):
    later = open_stage(p, "06_findings")
    later.need("05_audit")
    before = json.loads((audit / "manifest.json").read_text())["id"]
    (audit / "scored.jsonl").unlink()
    assert again(p, audit, outcome="agrees") != before
    with pytest.raises(AuditError, match="made anew since"):
        later.need("05_audit")


def test_what_is_changed_is_set_aside_but_what_is_left_of_paid_answers_is_kept(p, audit):
    change(audit / "scored.jsonl")
    halve(audit / "answers.jsonl")
    open_stage(p, "05_audit")
    assert not (audit / "scored.jsonl").exists() and (audit / "damaged" / "scored.jsonl").is_file()
    assert 0 < len(jsonl.read(audit / "answers.jsonl")) < 9


def test_what_is_made_in_one_go_is_made_again_together(p, audit):
    (audit / "pictures" / "made-1.png").unlink()
    open_stage(p, "05_audit")
    assert not any((audit / name).exists() for name in ("pictures", "pictures.jsonl", "proposals.jsonl"))
    assert (audit / "records.jsonl").is_file() and run_folder(p) / "05_audit" == audit
