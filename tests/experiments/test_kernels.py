"""Kernels of a run end at once, and as libraries have asked for."""

import json
import tempfile
import time
from pathlib import Path

import nbformat
import papermill
import psutil
import pytest
from jupyter_client.manager import AsyncKernelManager

from auditkit.experiments.kernels import ENGINE, kernels_of_a_run

CODE = """
import atexit, json, os, sys
from auditkit.models.confined import refuse_unruly_template

class Kept:
    def __del__(self):
        open({folder!r} + "/taken_apart", "w").close()

kept = Kept()
refuse_unruly_template("{{{{ messages }}}}", {{}})  # starts a process of its own
import psutil
with open({folder!r} + "/children", "w") as file:
    json.dump([os.getpid(), *(child.pid for child in psutil.Process().children())], file)
atexit.register(lambda: open({folder!r} + "/asked_for", "w").close())
"""


def test_a_kernel_ends_at_once_with_what_it_started_and_calls_what_is_to_be_called_at_the_end(tmp_path: Path):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CODE.format(folder=str(tmp_path)))])
    book.metadata = {"kernelspec": {"name": "python3", "display_name": "python"}, "language_info": {"name": "python"}}
    path = tmp_path / "book.ipynb"
    nbformat.write(book, path)
    with kernels_of_a_run() as kernels:
        kernel = kernels.take("book", {})
        end = kernel.shutdown_kernel
        seconds = []

        async def timed(**how):
            began = time.monotonic()
            await end(**how)
            seconds.append(time.monotonic() - began)

        kernel.shutdown_kernel = timed
        papermill.execute_notebook(
            path, tmp_path / "executed.ipynb", engine_name=ENGINE, kernel_name="python3", progress_bar=False,
            kernel=kernel,
        )  # fmt: skip
    pids = json.loads((tmp_path / "children").read_text())
    assert len(pids) == 2, "the kernel and the process that tries templates"
    assert (tmp_path / "asked_for").is_file()
    assert not (tmp_path / "taken_apart").exists()
    assert seconds[0] < 2, "jupyter_client waits 2.5 seconds before it terminates a kernel that does not end"
    _, left = psutil.wait_procs([one for one in psutil.process_iter() if one.pid in pids], timeout=5)
    assert not left


def test_a_start_that_is_interrupted_leaves_no_file(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    written = []

    async def interrupted(self, *_, **__):
        written.append(Path(self.connection_file).is_file())
        raise KeyboardInterrupt

    monkeypatch.setattr(AsyncKernelManager, "_async_launch_kernel", interrupted)
    with pytest.raises(KeyboardInterrupt), kernels_of_a_run() as kernels:
        kernels.take("book", {})
    assert written == [True], "the file that says how to speak to the kernel comes before the kernel"
    assert not list(tmp_path.iterdir())
