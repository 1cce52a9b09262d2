"""What several test files share: a project folder of a test's own, and notebooks that take a second."""

import shutil
from pathlib import Path

import nbformat
import pytest
from smoke_run import run_once

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
def smoke(tmp_path_factory) -> Path:
    """The project after `auditkit run params/smoke.yaml`, run once for all processes of pytest-xdist."""
    project, log = run_once(tmp_path_factory.getbasetemp(), "smoke")
    assert log.startswith("0\n"), log
    assert f"{project / 'outputs/smoke/report.html'}\n" in log, "a run ends by printing the report's path"
    return project
