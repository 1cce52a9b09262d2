"""What several test files share: a project folder of a test's own, and notebooks that take a second."""

import os
import shutil
from pathlib import Path

import filelock
import nbformat
import pytest
from smoke_run import auditkit, make_project

REPOSITORY = Path(__file__).parents[1]
SETTINGS = """
run_name: str = "demo"  # folder under outputs/
params_file: str = "params/demo.yaml"  # the parameter file
seed: int = 0  # of everything
resume: bool = True  # False starts over
grpo_steps: int = {grpo_steps}  # optimiser steps
""".strip()


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """An empty project with the real parameter files, and the working folder inside it."""
    (tmp_path / "params").mkdir()
    for name in ("demo.yaml", "smoke.yaml"):
        shutil.copy(REPOSITORY / "params" / name, tmp_path / "params" / name)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def checkpointing(monkeypatch):
    """Both trainers recompute activations on the way back, as they do on a GPU."""
    from trl import GRPOConfig, SFTConfig

    for config in (GRPOConfig, SFTConfig):
        made = config.__init__

        def asked(self, *given, made=made, **named):
            made(self, *given, **{**named, "activation_checkpointing": True})

        monkeypatch.setattr(config, "__init__", asked)


@pytest.fixture
def notebook(project):
    """Write a notebook NAME into the project: a parameters cell as in the real ones, then the given cells."""

    from auditkit.params import load_params

    def write(name: str, *cells: str) -> Path:
        settings = SETTINGS.format(grpo_steps=load_params("params/demo.yaml").grpo_steps)
        book = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
        book.metadata["language_info"] = {"name": "python"}
        book.cells = [nbformat.v4.new_code_cell(source) for source in (settings, *cells)]
        book.cells[0].metadata["tags"] = ["parameters"]
        path = project / "notebooks" / name
        nbformat.write(book, path)
        return path

    return write


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """Run the smoke run once for all processes of pytest-xdist: (name, *arguments) -> (its project, what was said)."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def run(name: str, *arguments: str) -> tuple[Path, str]:
        project, log = base / f"{name}-project", base / f"{name}.log"
        with filelock.FileLock(base / f"{name}.lock"):
            if not project.exists():
                done = auditkit(make_project(project), *arguments)
                log.write_text(f"{done.returncode}\n{done.stdout}\n{done.stderr}")
        said = log.read_text()
        assert said.startswith("0\n"), said
        return project, said

    return run


@pytest.fixture(scope="session")
def smoke(once) -> Path:
    """The project after `auditkit run params/smoke.yaml`."""
    project, said = once("smoke")
    assert f"{project / 'outputs/smoke/report.html'}\n" in said, "a run ends by printing the report's path"
    return project
