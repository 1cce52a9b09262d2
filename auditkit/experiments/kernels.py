"""The kernels of a run: the next is started, with its imports done, while another works; none outlives the run.

A kernel's start and imports take seconds of one core. It is started for its notebook, in that notebook's environment,
told to import what the notebook imports before it answers anybody (IPython's `exec_lines`, in a name space that is
thrown away), and handed to papermill when its turn comes. When its notebook is over it ends as libraries have asked for
(`atexit`), and does not take apart what they had in memory, for which the next would wait two seconds.
"""

import ast
import contextlib
import itertools
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat
import psutil
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import run_sync
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.log import logger

from auditkit.experiments.schedule import AHEAD
from auditkit.params import project_root
from auditkit.runs.temporary import temporary_folder

ENGINE = "auditkit"  # papermill's name of `_HandedOver`
STOPPED_SECONDS = 60  # a kernel may be stopped for so long before it is said
START_SECONDS = 900  # a kernel that imports from a slow disk answers late
END_SECONDS = 5  # what a kernel is given to end by itself
LEAVE = "import atexit, os; atexit.register(os._exit, 0)"  # the first to be registered is the last to be called
FIRST_USE = {  # module that a notebook imports -> what that imports only when it is used, which it will be
    "auditkit.models": "from transformers import AutoModelForImageTextToText, AutoProcessor",
    "finetune": "from peft import LoraConfig\nfrom trl import SFTConfig, SFTTrainer",
}


class Kernels:
    """The kernels of one run, all spoken to through one folder (`kernels_of_a_run` makes it)."""

    def __init__(self, folder: str):
        self.folder = folder
        self.stopped = False  # the run was told to end: a kernel that dies is no failure
        self._numbers = itertools.count()
        self._waiting: dict[str, AsyncKernelManager] = {}

    def prepare(self, name: str, notebook: Path, environment: Mapping[str, str]) -> None:
        """Start the kernel of a notebook that will be run, and let it import what the notebook imports."""
        if name not in self._waiting:
            self._waiting[name] = self._start(environment, f"exec({imports_of(notebook)!r}, {{}})")

    def take(self, name: str, environment: Mapping[str, str]) -> AsyncKernelManager:
        """The kernel of a notebook that is run now: the one that was prepared, if it lives, or a new one.

        What was prepared to ask ahead for a stage, and came too late for that, serves the stage.
        """
        waiting = self._waiting.pop(name, None) or self._waiting.pop(name + AHEAD, None)
        if waiting and run_sync(waiting.is_alive)():
            return waiting
        return self._start(environment)

    @property
    def waiting(self) -> set[str]:
        return set(self._waiting)

    def end(self) -> None:
        """End all kernels, those at work, too; papermill tidies up after those it was handed."""
        self.stopped = True
        _end_kernels(self.folder)
        for manager in self._waiting.values():
            run_sync(manager.cleanup_resources)()
        self._waiting.clear()

    def _start(self, environment: Mapping[str, str], first: str = "") -> AsyncKernelManager:
        socket = os.path.join(self.folder, f"k{next(self._numbers)}")  # each its own, or two that start share one
        # unless told where, jupyter_client writes it beside the folder, and one whose start is interrupted stays there
        manager = AsyncKernelManager(kernel_name="python3", connection_file=f"{socket}.json")
        if os.name == "posix" and len(socket) < 95:  # a socket's whole path, number and all, has room for 103 bytes
            manager.transport, manager.ip = "ipc", socket
        lines = [f"--IPKernelApp.exec_lines={code}" for code in (LEAVE, first) if code]
        run_sync(manager.start_kernel)(
            cwd=str(project_root()),
            env={**os.environ, **environment},
            extra_arguments=["--HistoryManager.hist_file=:memory:", *lines],
        )
        return manager


def imports_of(notebook: Path) -> str:
    """The code that imports what a notebook imports, and what of that is imported when it is first used."""
    found: list[str] = []
    for cell in nbformat.read(notebook, as_version=4).cells:
        with contextlib.suppress(SyntaxError):  # a cell with a magic of IPython's
            body = ast.parse(cell.source).body if cell.cell_type == "code" else []
            found += [ast.unparse(one) for one in body if isinstance(one, ast.Import | ast.ImportFrom)]
    later = [code for module, code in FIRST_USE.items() if any(module in one for one in found)]
    return "\n".join(found + later)


class _HandedOver(NBClientEngine):
    """papermill's own engine with a kernel that was started before; nbclient ends it with the notebook."""

    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: Any,
        kernel_name: str,
        kernel: AsyncKernelManager | None = None,
        stdout_file: Any = None,
        stderr_file: Any = None,
        **_: Any,
    ) -> Any:
        client = PapermillNotebookClient(
            nb_man,
            km=kernel,
            log=logger,
            stdout_file=stdout_file,
            stderr_file=stderr_file,
            startup_timeout=START_SECONDS,
        )
        client.owns_km = True
        return client.execute()


papermill_engines.register(ENGINE, _HandedOver)


@contextlib.contextmanager
def kernels_of_a_run() -> Iterator[Kernels]:
    """Kernels run this very interpreter, on two threads unless told otherwise, and end when we are terminated.

    They are spoken to through sockets in a folder of their own where the system has such, for two runs that start at
    once may pick the same TCP ports.
    """
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # a stopped task would speak after our last word
    # it warns of each parameter the notebook does not list, and says that a kernel died, as we do
    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    # A second thread spares tiny models up to a third of a GRPO step. Unless GNU's OpenMP has it wait no longer than
    # this before it sleeps, it takes the core that whatever else is running needs.
    os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")

    def terminated(*_):
        raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():
        ending = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
        ending = [one for one in ending if signal.getsignal(one) is not signal.SIG_IGN]  # as under nohup
        before = {one: signal.signal(one, terminated) for one in ending}
    with temporary_folder() as folder:
        spec = Path(folder, "kernels", "python3", "kernel.json")
        spec.parent.mkdir(parents=True)
        quiet = ["--log-level=CRITICAL"]  # what a cell does wrong is in the notebook, and said by us
        spec.write_text(json.dumps(get_kernel_dict(quiet)), encoding="utf-8")
        path = os.pathsep.join(filter(None, [folder, os.environ.get("JUPYTER_PATH")]))
        runtime = os.path.join(folder, "runtime")
        with _environment(JUPYTER_PATH=path, JUPYTER_RUNTIME_DIR=runtime), _tell_of_stopped_kernels():
            kernels = Kernels(folder)
            try:
                yield kernels
            finally:
                kernels.end()  # their sockets go with the folder
                for one, handler in before.items():
                    signal.signal(one, handler)


def _end_kernels(folder: str) -> None:
    """End all kernels of a folder, and what they have started: told to first, then made to."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if child.environ().get("JUPYTER_RUNTIME_DIR", "").startswith(folder):
                found.append(child)
    for how in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
        for child in found:
            with contextlib.suppress(psutil.Error, OSError):
                # each leads a group of its own, but for the moment before it does
                leads = os.name == "posix" and os.getpgid(child.pid) == child.pid
                os.killpg(child.pid, how) if leads else child.kill()
        _, found = psutil.wait_procs(found, END_SECONDS)


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


@contextlib.contextmanager
def _tell_of_stopped_kernels() -> Iterator[None]:
    """While it lasts, a kernel that is stopped (SIGSTOP) is said after a while, for it is waited for for ever."""
    over = threading.Event()
    thread = threading.Thread(target=_watch_kernels, args=(over,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _watch_kernels(over: threading.Event) -> None:
    since: dict[int, float] = {}  # when each was first seen stopped
    said: set[int] = set()
    while not over.wait(min(5, STOPPED_SECONDS)):
        now, stopped = time.monotonic(), set()
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                stopped |= {child.pid} if child.status() == psutil.STATUS_STOPPED else set()
        since = {pid: since.get(pid, now) for pid in stopped}
        for pid in {pid for pid, began in since.items() if now - began >= STOPPED_SECONDS} - said:
            print(
                f"the kernel (process {pid}) is stopped and waited for: `kill -CONT {pid}` lets it go on; Ctrl-C here "
                "ends the run, which goes on later.",
                file=sys.stderr,
                flush=True,
            )
        said = {pid for pid in stopped if now - since[pid] >= STOPPED_SECONDS}
