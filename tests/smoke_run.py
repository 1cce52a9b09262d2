"""The smoke run, `params/smoke.yaml`: a whole audit that uses all ways and gates, finished once for all tests."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import filelock

from auditkit.runs.inventory import list_files

REPOSITORY = Path(__file__).parents[1]


def make_project(folder: Path) -> Path:
    """A project of a test's own: the notebooks and parameter files, and outputs that are nobody else's."""
    folder.mkdir(parents=True)
    for name in ("notebooks", "params"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns(".*"))
    return folder


def auditkit(project: Path, *arguments: str) -> subprocess.CompletedProcess:
    """`auditkit run params/smoke.yaml ARGUMENTS` in a project."""
    command = [sys.executable, "-m", "auditkit.cli", "run", "params/smoke.yaml", *arguments]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=1200)


def run_once(base: Path, name: str, *arguments: str) -> tuple[Path, str]:
    """A project after `auditkit run params/smoke.yaml ARGUMENTS`, and its log, whose first line is the exit code.

    It is run once for all processes of pytest-xdist; `base` is a process's base folder.
    """
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    project, log = base / f"{name}-project", base / f"{name}.log"
    with filelock.FileLock(base / f"{name}.lock"):
        if not project.exists():
            done = auditkit(make_project(project), *arguments)
            log.write_text(f"{done.returncode}\n{done.stdout}\n{done.stderr}")
    return project, log.read_text()


def as_if_ended_so(stage: Path) -> None:
    """Let a finished stage's DONE list the files as a test has made them."""
    done = json.loads((stage / "DONE").read_text()) | {"files": list_files(stage)}
    (stage / "DONE").write_text(json.dumps(done))
