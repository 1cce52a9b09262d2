"""The finished run that comes with the package: small, whole, of this machine nothing, and unpacked once."""

import json
import re
import shutil
import tarfile

import nbformat
import pytest
from smoke_run import make_project

from auditkit.cli import main
from auditkit.errors import AuditError
from auditkit.runs.folder import STAGES
from auditkit.runs.inventory import damage
from auditkit.workshop import example_run, lessons


@pytest.fixture
def unpacked(tmp_path, monkeypatch, capsys):
    project = make_project(tmp_path / "project")
    monkeypatch.chdir(project)
    assert main(["example"]) == 0
    assert "outputs/workshop_example/report.html" in capsys.readouterr().out
    return project / "outputs" / "workshop_example"


def test_it_is_small_and_every_stage_of_it_is_done_and_whole(unpacked):
    assert example_run.ARCHIVE.stat().st_size <= example_run.MOST
    for stage in STAGES:
        assert (unpacked / stage / "DONE").is_file() and damage(unpacked / stage) == {}, stage
        book = nbformat.read(unpacked / stage / "notebook.ipynb", as_version=4)
        code = [cell for cell in book.cells if cell.cell_type == "code" and cell.source]
        assert all(cell.execution_count for cell in code), stage
        assert not [out for cell in code for out in cell.outputs if out.output_type == "error"], stage
    assert (unpacked / "report.html").is_file() and (unpacked / "07_rectify/adapter/adapter_config.json").is_file()
    assert not list(unpacked.rglob("checkpoint-*"))
    manifest = json.loads((unpacked / "08_benchmark/manifest.json").read_text())
    assert manifest["parameters"]["params_file"] == "params/workshop.yaml"
    told = json.loads((unpacked / "summary.json").read_text())
    assert told["gain"]["skills"]["low"] > 0.05, "a gain that can be seen"


def test_nothing_in_it_is_of_the_machine_that_made_it(unpacked):
    folders = "|".join(["home", "root", "tmp", "work", "Users", "mnt", "srv", "private", "workspace"])
    for path in unpacked.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".ipynb", ".html", ".md", ".txt", "") and path.is_file():
            text = re.sub(r"[A-Za-z0-9+/=]{200,}", "", path.read_text(encoding="utf-8"))  # pictures in base64
            found = re.search(rf"(?<![\w.~<>-])/({folders})/\w", text)
            assert not found, f"{path.name}: {text[found.start() - 40 : found.end() + 40]}"


def test_it_is_unpacked_once_and_over_nothing_else(unpacked, capsys):
    (unpacked / "note.txt").write_text("mine")
    assert main(["example"]) == 0 and (unpacked / "note.txt").is_file()
    shutil.rmtree(unpacked)
    unpacked.mkdir()
    (unpacked / "note.txt").write_text("mine")
    assert main(["example"]) == 2
    assert "outputs/workshop_example holds something else" in capsys.readouterr().err


def test_exercise_e_reads_its_answers(unpacked):
    right = lessons.example_answers()
    assert len(right["before"]) == len(right["after"]) > 500
    assert sum(right["after"]) > sum(right["before"])


def test_it_is_packed_by_one_command(unpacked, tmp_path):
    for path in [*unpacked.rglob("*.jsonl"), *unpacked.rglob("*.png"), *unpacked.rglob("*.safetensors")]:
        path.unlink()  # compressing takes its time
    for stage in STAGES:
        shutil.copy(unpacked / "00_setup/notebook.ipynb", unpacked / "copy.ipynb")
        (unpacked / "copy.ipynb").replace(unpacked / stage / "notebook.ipynb")
    size = example_run.pack_example(unpacked, tmp_path / "again.tar.xz")
    assert size == (tmp_path / "again.tar.xz").stat().st_size <= example_run.MOST
    with tarfile.open(tmp_path / "again.tar.xz") as archive:
        assert all(name.startswith("workshop_example/") for name in archive.getnames())
    shutil.rmtree(unpacked / "06_findings")
    with pytest.raises(AuditError, match="is not finished: 06_findings is not done"):
        example_run.pack_example(unpacked, tmp_path / "other.tar.xz")
    assert example_run.main([]) == example_run.main([str(unpacked)]) == 2
