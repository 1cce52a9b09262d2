"""Temporary folders go with their process, and those of killed ones with the next."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from auditkit.runs.temporary import temporary_folder

OWNER = """
import time
from auditkit.runs.temporary import temporary_folder
with temporary_folder() as folder:
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def owner(temporary) -> tuple[subprocess.Popen, Path]:
    process = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    return process, Path(process.stdout.readline().strip())


def old(folder: Path) -> None:
    os.utime(folder, (time.time() - 60,) * 2)


def test_what_a_kill_has_left_the_next_one_removes_and_nothing_else(temporary):
    killed, left = owner(temporary)
    alive, there = owner(temporary)
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        precious = temporary / "precious"
        precious.mkdir()
        (temporary / "auditkit-link").symlink_to(precious, target_is_directory=True)
        (temporary / "auditkit-of-somebody").mkdir()
        (precious / ".owner").touch()
        for folder in (left, there, precious, temporary / "auditkit-of-somebody"):
            old(folder)
        assert left.is_dir() and left != there
        with temporary_folder("trial-") as mine:
            assert Path(mine).name.startswith(f"auditkit-trial-{os.getpid()}-")
            assert not left.exists() and there.is_dir() and precious.is_dir()
            assert (temporary / "auditkit-of-somebody").is_dir(), "without a lock it may be anybody's"
        assert not Path(mine).exists()
    finally:
        alive.kill()
        alive.wait()
