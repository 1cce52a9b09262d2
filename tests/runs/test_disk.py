"""A disk that takes no more is one sentence with exit code 1 and what to free; what is done is kept."""

import contextlib
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from auditkit.cli import main
from auditkit.params import load_params
from auditkit.runs import jsonl
from auditkit.runs.disk import DiskError, disk_sentence, writing
from auditkit.runs.files import write_text
from auditkit.runs.folder import run_folder


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 512 kB."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", place], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture
def small_files():
    """No file of this process, or of one it starts, may be larger than 60 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_was_whole_stays_whole(tmp_path, small_files):
    file, rows = tmp_path / "a.json", tmp_path / "a.jsonl"
    write_text(file, "before")
    with pytest.raises(DiskError, match="a.json could not be written, for the file may not grow further: .*ulimit"):
        write_text(file, "x" * 100_000)
    assert file.read_text() == "before" and [path.name for path in tmp_path.iterdir()] == ["a.json"]
    jsonl.append(rows, [{"n": 1}])
    with pytest.raises(DiskError):
        jsonl.append(rows, [{"n": i} for i in range(2, 10_000)])
    assert [row["n"] for row in jsonl.read(rows)][:2] == [1, 2], "what came before the end of the disk is there"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG])
def test_each_of_them_names_the_file_and_what_to_do(tmp_path, code):
    with pytest.raises(DiskError) as error, writing(tmp_path / "records.jsonl"):
        raise OSError(code, os.strerror(code), str(tmp_path / "records.jsonl"))
    said = str(error.value)
    assert "records.jsonl could not be" in said and " GB free in " in said and "TMPDIR" in said and "\n" not in said
    for words in (f"[Errno {code}] {os.strerror(code)}: 'x'", f"I/O error: {os.strerror(code)} (os error {code})"):
        assert disk_sentence(words)
    assert disk_sentence("[Errno 2] No such file or directory: 'x'") == ""
    assert disk_sentence("[Errno 2] No usable temporary directory found in ['/tmp']").startswith("the folder for temp")


def test_what_torch_and_safetensors_say_of_a_full_disk_is_known(small_disk):
    weights = {"a": torch.zeros(10**6)}
    for save in (lambda: save_file(weights, small_disk / "a"), lambda: torch.save(weights, small_disk / "b")):
        with pytest.raises(Exception) as error:
            save()
        assert disk_sentence(f"{type(error.value).__name__}: {error.value}"), error.value
        for file in small_disk.iterdir():
            file.unlink()


OPEN = """
from auditkit.params import from_notebook
from auditkit.runs.folder import open_stage
run = open_stage(from_notebook(globals()), "00_setup", resume=resume)
"""
FILL = """
for i in range(10_000):
    run.append({"key": str(i), "text": "x" * 1000})
"""


def run_stage(project) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "auditkit.cli", "run", "params/demo.yaml", "--only", "00"]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300)


@pytest.fixture
def filling(project, notebook, repository):
    """Notebook 00 of a project, which writes ten million bytes."""
    notebook("00_fill.ipynb", OPEN, FILL, "run.finish()")
    return project


def one_sentence(done) -> str:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr and "FAILED" in done.stdout, done.stderr
    said, *rest = done.stderr.strip().split("\n")
    assert [line.split(":")[0].strip() for line in rest] == ["notebook", "go on"]
    assert "could not be written" in said and "GB free in" in said and "Error" not in said
    return said


def test_a_full_disk_ends_a_run_in_one_sentence_and_it_goes_on_later(filling, small_disk):
    """In outputs/, of which papermill's own file is a part."""
    (filling / "outputs").symlink_to(small_disk, target_is_directory=True)
    assert "the disk is full: free some room" in one_sentence(run_stage(filling))
    stage = run_folder(load_params("params/demo.yaml")) / "00_setup"
    assert 100 < len(jsonl.read(stage / "records.jsonl")) < 600 and not (stage / "DONE").exists()
    (filling / "outputs").unlink()
    shutil.copytree(small_disk, filling / "outputs")  # a larger disk
    again = run_stage(filling)
    assert again.returncode == 0, again.stderr
    assert len(jsonl.read(filling / "outputs/demo/00_setup/records.jsonl")) == 10_000
    assert json.loads((filling / "outputs/demo/00_setup/notebook.ipynb").read_text())["metadata"]["papermill"]


def test_a_full_place_for_temporary_files_is_one_sentence(filling, small_disk, monkeypatch):
    """Without any room Python takes another place by itself; with a little, the disk is full in the middle."""
    with contextlib.suppress(OSError), (small_disk / "full").open("wb") as file:
        while True:
            file.write(b"x" * 4096)
            file.flush()
    os.truncate(small_disk / "full", (small_disk / "full").stat().st_size // 4096 * 4096 - 4096)
    monkeypatch.setenv("TMPDIR", str(small_disk))
    done = run_stage(filling)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "could not be written, for the disk is full" in done.stderr and "GB free in" in done.stderr, done.stderr


def test_a_torn_notebook_beside_a_done_is_made_again(project, notebook, capsys):
    notebook("00_check.ipynb", OPEN, "run.finish()")
    assert main(["run", "params/demo.yaml", "--only", "00"]) == 0
    executed = Path("outputs/demo/00_setup/notebook.ipynb")
    for harm in (lambda text: text[: len(text) // 2], lambda text: text.replace('"end_time"', '"x"')):
        executed.write_text(harm(executed.read_text()))
        assert main(["run", "params/demo.yaml", "--only", "00"]) == 0
        assert "its notebook is torn: made again" in capsys.readouterr().out
        assert json.loads(executed.read_text())["metadata"]["papermill"]["end_time"]
    assert main(["run", "params/demo.yaml", "--only", "00"]) == 0
    assert "done before, skipped" in capsys.readouterr().out
