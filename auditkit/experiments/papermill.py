"""Notebooks run without a browser, by papermill: in order, each in a kernel of its own, with one line of status.

The executed notebook is kept in its stage's folder. What is done is skipped, so a run that was killed goes on.
"""

import builtins
import contextlib
import json
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from auditkit import errors
from auditkit.errors import AuditError
from auditkit.models.trackers import refuse_missing_trackers, trackio_folder
from auditkit.params import Params, project_root
from auditkit.runs.disk import DiskError, disk_sentence, writing
from auditkit.runs.files import fit_for_disk, write_text
from auditkit.runs.folder import (
    STAGES,
    damage_in_words,
    is_done,
    notebook_files,
    run_folder,
    shown_path,
    stage_counts,
    why_not_resume,
)
from auditkit.runs.progress import as_last_shown
from auditkit.runs.temporary import temporary_folder
from auditkit.text import VisibleStream, clock, for_a_person, visible

if TYPE_CHECKING:
    from rich.live import Live
    from traitlets.config import Config

STOPPED_SECONDS = 60  # a kernel may be stopped for so long before it is said


def refuse_misfits(p: Params, stages: list[str], start_over: bool) -> None:
    """Raise AuditError for the first stage that does not fit, of those to be run and those they were built on, and for
    a tracker that is not installed.

    Said now rather than after an hour of the stages before it, and before any folder is emptied.
    """
    refuse_missing_trackers(p)
    needs = {stage: _needs(stage) for stage in STAGES}
    matter = set(stages)
    for stage in reversed(STAGES):
        matter |= needs[stage] if stage in matter else set()
    anew = stages if start_over else []
    for stage in STAGES:
        why = why_not_resume(p, stage) if stage in matter and stage not in anew else ""
        if why:
            again = f"--from {stage[:2]} --start-over"
            raise AuditError(
                f"{why} Make it and what follows anew with {again}, or keep both with --set run_name=OTHER."
            )
    for stage in STAGES:
        if stage in matter and stage not in stages and (lost := damage_in_words(run_folder(p) / stage, p.params_file)):
            raise AuditError(f"{lost}, with the same --set if there was one.")
    for stage in stages:
        missing = [need for need in sorted(needs[stage]) if need not in stages and not is_done(p, need)]
        if missing and (stage in anew or not is_done(p, stage)):
            folder = shown_path(run_folder(p) / missing[0])
            raise AuditError(f"{stage} needs {folder}, which is not done: begin there, with --from {missing[0][:2]}.")


def _needs(stage: str) -> set[str]:
    """The earlier stages that a stage's notebook asks for."""
    asked = {
        name
        for path in notebook_files(stage)
        for name in re.findall(r'run\.need\(\\?"(\w+)', path.read_text(encoding="utf-8"))
    }
    return asked & set(STAGES)


def stage_notebooks(stages: list[str]) -> dict[str, Path]:
    """The notebook of each stage.

    Raises AuditError where this is not the project folder.
    """
    return {stage: _notebook(stage) for stage in stages}


def run_notebooks(
    p: Params, notebooks: dict[str, Path], go_on: str, debug: bool = False, beside: Mapping[str, dict] | None = None
) -> int:
    """Execute notebooks in order, each in its stage's folder; what is done is not done again.

    Args:
        notebooks: by stage, as `stage_notebooks` gives them.
        go_on: the command that goes on where a failure ends this one, for people to copy.
        debug: show tracebacks, and what notebooks write to stderr.
        beside: stage -> parameters of its notebook alone, which no file has.

    Returns 0, or the exit code of what went wrong, which has then been said.
    """
    began = time.monotonic()
    if debug:
        os.environ["AUDITKIT_DEBUG"] = "1"  # the kernels tell all
    print(f"{p.run_name}: {p.params_file} -> {shown_path(run_folder(p))}", flush=True)
    with _kernels() as kernels:
        for stage, notebook in notebooks.items():
            if is_done(p, stage):
                if not _is_torn(run_folder(p) / stage / "notebook.ipynb"):
                    print(f"{_title(notebook):<26} done before, skipped", flush=True)
                    continue
                print(f"{_title(notebook):<26} done before, but its notebook is torn: made again", flush=True)
            given = asdict(p) | dict((beside or {}).get(stage, {}))
            failed = _execute(p, stage, notebook, kernels, go_on, debug, given)
            if failed:
                return failed
    done = f"done in {clock(time.monotonic() - began)}"
    # notebook 08 writes the report too, but may have been killed just before
    if list(notebooks)[-1] == "08_benchmark" and is_done(p, "08_benchmark"):
        from auditkit.report.summary import write_report

        done += f": {write_report(run_folder(p))}"
    print(done, flush=True)
    return 0


def _is_torn(executed: Path) -> bool:
    """Whether papermill was stopped while it wrote a notebook; one that was run by hand lies elsewhere."""
    if not executed.is_file():
        return False
    try:
        about = json.loads(executed.read_text(encoding="utf-8"))["metadata"]["papermill"]
        return not about["end_time"]
    except (ValueError, KeyError, TypeError):
        return True


def _execute(
    p: Params, stage: str, notebook: Path, kernels: "Config", go_on: str, debug: bool, parameters: dict
) -> int:
    """Run one notebook through papermill; 0, or the exit code of what went wrong, which has then been said."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    folder = run_folder(p) / stage
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    executed = folder / "notebook.ipynb"
    code, trouble, trace = 0, "", ""
    with (
        StatusLine(_title(notebook)) as status,
        _environment(**trackio_folder(p, folder)),
        _tell_of_stopped_kernels(),
    ):
        try:
            papermill.execute_notebook(
                notebook,
                executed,
                parameters=parameters,
                kernel_name="python3",
                cwd=project_root(),
                progress_bar=False,
                stdout_file=status,
                stderr_file=VisibleStream(sys.stderr) if debug else None,
                config=kernels,
            )
            if not (folder / "DONE").is_file():
                code, trouble = 1, "the notebook ended without run.finish(...), so the stage is not done"
        except papermill.PapermillExecutionError as error:
            sentence = _to_put_right(error.ename, error.evalue)
            full = error.evalue if error.ename == "DiskError" else disk_sentence(f"{error.ename}: {error.evalue}")
            code, trouble = (2, sentence) if sentence else (1, f"{error.ename}: {error.evalue}")
            if full:
                code, trouble = 1, full
            trace = re.sub(COLOUR, "", "\n".join(error.traceback))
        except DeadKernelError:
            code, trouble = 1, "the kernel died, as it does when memory runs out; a smaller batch_size needs less"
        except RuntimeError as error:  # what nbclient raises when the kernel never answers
            code, trouble = 1, f"the kernel did not start: {error}"
        except OSError as error:  # the notebook itself could not be written
            code, trouble = 1, str(error) if isinstance(error, DiskError) else disk_sentence(str(error), executed)
            if not trouble:
                raise
        finally:
            _tidy(executed)
        status.end("FAILED" if code else "")
    if not code and (skipped := stage_counts(p, stage).get("unreadable")):
        print(
            f"  left out because they could not be read: {skipped} of the pictures; {shown_path(executed)} names them"
        )
    if code:
        message = [trouble, f"  notebook: {shown_path(executed)}", f"  go on:    {go_on}"]
        print(for_a_person("\n".join(([trace] if debug else []) + message)), file=sys.stderr, flush=True)
    return code


COLOUR = r"\x1b\[[\d;]*m"  # as IPython puts it into tracebacks


def _to_put_right(kind: str, said: str) -> str:
    """The sentence of an error in a notebook that the user can put right, "" of any other.

    Only names come from a kernel: those of our errors stand in errors.py. A file that cannot be had is told as the
    command line tells it.
    """
    ours, system = getattr(errors, kind, None), getattr(builtins, kind, None)
    if isinstance(ours, type) and issubclass(ours, AuditError):
        return said
    found = re.fullmatch(r"\[Errno \d+\] ([^:]+): '(.+?)'(?: -> '.+')?", said)
    if isinstance(system, type) and issubclass(system, OSError) and system is not OSError and found:
        return f"{found[2]}: {found[1]}."
    return ""


def _tidy(notebook: Path) -> None:
    """What is left of a notebook: of lines written over and over the last, and no key that a library has printed."""
    if notebook.is_file():
        before = notebook.read_text(encoding="utf-8", errors="surrogateescape")
        text = _as_last_shown(before)
        if text != before or fit_for_disk(text) != text:
            write_text(notebook, text)


def _as_last_shown(text: str) -> str:
    """A notebook's JSON with what a cell printed as one text, as a screen shows it in the end."""
    try:
        book = json.loads(text)
        for cell in book["cells"]:
            kept: list[dict] = []
            for output in cell.get("outputs", []):
                if output["output_type"] == "stream":
                    output["text"] = "".join(output["text"])
                    if kept and kept[-1].get("name") == output["name"]:
                        kept[-1]["text"] += output["text"]
                        continue
                kept.append(output)
            for output in kept:
                if output["output_type"] == "stream":
                    output["text"] = as_last_shown(output["text"])
            if "outputs" in cell:
                cell["outputs"] = kept
    except (ValueError, KeyError, TypeError):  # torn: it is made again
        return text
    return json.dumps(book, indent=1, ensure_ascii=False) + "\n"


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
    import psutil

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


class StatusLine:
    """One line for a running notebook: its title, the time, and the last thing it printed.

    On a terminal the line is rewritten as things come; elsewhere, as in a log, what is printed comes as lines of its
    own, one every few seconds at most. It is the file that papermill writes a notebook's stdout to.
    """

    LOG_SECONDS = 5

    def __init__(self, title: str, stream=None):
        self.title, self.stream = title, stream or sys.stdout
        self.words, self._line, self._ended = "", "", False
        self._live: Live | None = None

    def __enter__(self) -> "StatusLine":
        self._began = self._shown = time.monotonic()
        if self.stream.isatty():
            from rich.console import Console
            from rich.live import Live

            console = Console(file=getattr(self.stream, "stream", self.stream))  # its own commands reach the terminal
            self._live = Live(self, console=console, redirect_stdout=False, redirect_stderr=False)
            self._live.start()
        else:
            print(f"{self.title:<26} ...", file=self.stream, flush=True)
        return self

    def __exit__(self, *_) -> None:
        if not self._ended:
            self.end("stopped")

    def __rich__(self):
        """The line as rich shows it: on one line of the terminal, however long."""
        from rich.text import Text

        return Text(self._text(), no_wrap=True, overflow="ellipsis")

    def write(self, text: str) -> int:
        """Take what the notebook printed; the last line with something on it is what is shown."""
        *whole, self._line = (self._line + text.replace("\r", "\n")).split("\n")
        said = [line.strip() for line in (*whole, self._line) if line.strip()]
        if said:
            self.words = for_a_person(said[-1])
            if self._live is None and time.monotonic() - self._shown >= self.LOG_SECONDS:
                self._shown = time.monotonic()
                print(self._text()[:160], file=self.stream, flush=True)
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def end(self, how: str) -> None:
        """Leave one line that says how it went and how long it took."""
        self._ended, self.words = True, how or self.words
        if self._live:
            self._live.stop()
        else:
            print(self._text()[:160], file=self.stream, flush=True)

    def _text(self) -> str:
        return f"{self.title:<26} {clock(time.monotonic() - self._began):>7}  {self.words}".rstrip()


@contextlib.contextmanager
def _kernels() -> Iterator["Config"]:
    """Kernels run this very interpreter, on two threads unless told otherwise, and end when we are terminated.

    They are spoken to through sockets in a folder of their own where the system has such, for two runs that start at
    once may pick the same TCP ports. What is yielded says so to Jupyter.
    """
    from ipykernel.kernelspec import get_kernel_dict
    from traitlets.config import Config

    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # a stopped task would speak after our last word
    logging.getLogger("papermill").setLevel(logging.ERROR)  # it warns of each parameter the notebook does not list
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
        config = Config()
        socket = os.path.join(folder, "k")
        if os.name == "posix" and len(socket) < 95:  # a socket's whole path, number and all, has room for 103 bytes
            config.KernelManager.transport, config.KernelManager.ip = "ipc", socket
        with _environment(JUPYTER_PATH=path, JUPYTER_RUNTIME_DIR=os.path.join(folder, "runtime")):
            try:
                yield config
            except KeyboardInterrupt:
                _end_kernels(folder)
                raise
            finally:
                for one, handler in before.items():
                    signal.signal(one, handler)


def _end_kernels(folder: str) -> None:
    """End what was starting as a kernel of this folder when the run was stopped: its sockets go with the folder."""
    import psutil

    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if child.environ().get("JUPYTER_RUNTIME_DIR", "").startswith(folder):
                child.kill()
                child.wait(5)


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _notebook(stage: str) -> Path:
    found = notebook_files(stage)
    if len(found) != 1:
        raise AuditError(
            f"Expected one notebook {stage[:2]}_*.ipynb in {project_root() / 'notebooks'}, found {len(found)}; "
            "run auditkit in the project folder."
        )
    return found[0]


def _title(notebook: Path) -> str:
    return visible(notebook.stem.replace("_", " "), keep="")
