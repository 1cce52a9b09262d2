"""What a notebook says when a cell ends in an error that the user can put right, or is stopped."""

import nbformat
import pytest
from nbclient import NotebookClient

CELLS = [
    "from auditkit.errors import AuditError, note_step, say_errors_in_one_sentence\nsay_errors_in_one_sentence()",
    "raise AuditError('params/a.yaml: grpo_steps is no number; write one.')",
    "note_step(34, 90)\nraise KeyboardInterrupt",
    "note_step(90, 90)\nraise KeyboardInterrupt",
    "from pathlib import Path\nnote_step(8, 90, Path())\nraise KeyboardInterrupt",
    "Path('checkpoint-18').mkdir()\nnote_step(20, 90, Path())\nraise KeyboardInterrupt",
    "import warnings\nwarnings.warn('is deprecated', FutureWarning)",
    "def deep():\n    1 / 0\ndeep()",
]


def outputs(folder) -> list:
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    book.metadata["kernelspec"] = kernel
    NotebookClient(book, timeout=120, allow_errors=True, resources={"metadata": {"path": str(folder)}}).execute()
    return [cell.outputs[0] if cell.outputs else None for cell in book.cells]


@pytest.fixture
def importable(request, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(request.config.rootpath))


def test_one_sentence_and_no_traceback(tmp_path, importable, monkeypatch):
    """The error is still one: its name, which papermill and the exit code are told by, is what it was."""
    monkeypatch.delenv("AUDITKIT_DEBUG", raising=False)
    _, wrong, stopped, ended, early, later, warned, bug = outputs(tmp_path)
    sentence = "params/a.yaml: grpo_steps is no number; write one."
    assert (wrong.output_type, wrong.ename, wrong.evalue) == ("error", "AuditError", sentence)
    assert wrong.traceback == [sentence]
    assert stopped.ename == "KeyboardInterrupt"
    kept = "What was done is kept: run this notebook again to go on."
    assert stopped.traceback == [f"Stopped at step 34 of 90. {kept}"] and ended.traceback == [f"Stopped. {kept}"]
    assert early.traceback == [
        "Stopped at step 8 of 90. There is no checkpoint yet: run again, it starts with step 1, and asks no model "
        "anything twice."
    ]
    again = "Run this notebook again to go on after step 18, its last checkpoint."
    assert later.traceback == [f"Stopped at step 20 of 90. {again}"]
    assert warned is None, "what a library will change is nothing to a reader"
    assert bug.ename == "ZeroDivisionError" and "deep()" in "".join(bug.traceback), "a bug is told in full"


def test_who_debugs_sees_the_traceback(tmp_path, importable, monkeypatch):
    monkeypatch.setenv("AUDITKIT_DEBUG", "1")
    _, wrong, *_ = outputs(tmp_path)
    assert wrong.ename == "AuditError" and len(wrong.traceback) > 2 and "Traceback" in "".join(wrong.traceback)
