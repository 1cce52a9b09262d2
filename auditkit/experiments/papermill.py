"""Notebooks run without a browser, by papermill: each in a kernel of its own, with one line of status.

The order is schedule.py's, the kernels are those of kernels.py. The executed notebook is kept in its stage's folder.
What is done is skipped, so a run that was killed goes on.
"""

import builtins
import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from auditkit import errors
from auditkit.errors import AuditError
from auditkit.experiments.schedule import Task, plan_tasks, run_tasks
from auditkit.experiments.status import StatusBoard, StatusLine
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
from auditkit.text import VisibleStream, clock, for_a_person, visible

if TYPE_CHECKING:
    from jupyter_client.manager import KernelManager

    from auditkit.experiments.kernels import Kernels


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
    p: Params,
    notebooks: dict[str, Path],
    go_on: str,
    debug: bool = False,
    beside: Mapping[str, dict] | None = None,
    jobs: int = 1,
) -> int:
    """Execute notebooks, each in its stage's folder, in order or `jobs` at once; what is done is not done again.

    Where one fails, those beside it are let finish, for what they did is kept, and no other is begun.

    Args:
        notebooks: by stage, as `stage_notebooks` gives them.
        go_on: the command that goes on where a failure ends this one, for people to copy.
        debug: show tracebacks, and what notebooks write to stderr.
        beside: stage -> parameters of its notebook alone, which no file has.
        jobs: at once, at most; with more than one, what needs no training is asked ahead (schedule.py).

    Returns 0, or the exit code of what went wrong first, which has then been said.
    """
    from auditkit.experiments.kernels import kernels_of_a_run

    began, last = time.monotonic(), list(notebooks)[-1]
    reported = last == "08_benchmark" and not is_done(p, last)  # by notebook 08, whose last words are the report
    if debug:
        os.environ["AUDITKIT_DEBUG"] = "1"  # the kernels tell all
    board, failures = StatusBoard(), []
    board.say(f"{p.run_name}: {p.params_file} -> {shown_path(run_folder(p))}")
    # the kernels end first: whoever waits for one then has an end, too
    with ThreadPoolExecutor(jobs) as pool, kernels_of_a_run() as kernels:
        work = _Work(p, notebooks, go_on, debug, dict(beside or {}), kernels, board, failures)
        run_tasks(plan_tasks(list(notebooks), jobs), jobs, partial(_begin, work, pool), partial(_prepare, work))
    for failure in failures:
        print(failure.told, file=sys.stderr, flush=True)
    if failures:
        return failures[0].code
    done = f"done in {clock(time.monotonic() - began)}"
    if last == "08_benchmark" and is_done(p, last):
        page = run_folder(p) / "report.html"
        if not reported or not page.is_file():  # 08 was done before, and may have been killed just before its report
            from auditkit.report.summary import write_report

            page = write_report(run_folder(p))
        done += f": {page}"
    print(done, flush=True)
    return 0


@dataclass(frozen=True)
class Failure:
    """The exit code of what went wrong in a notebook, and what there is to say."""

    code: int
    told: str


@dataclass(frozen=True)
class _Work:
    """What the notebooks of one run have in common."""

    p: Params
    notebooks: Mapping[str, Path]
    go_on: str
    debug: bool
    beside: Mapping[str, dict]
    kernels: "Kernels"
    board: StatusBoard
    failures: list[Failure]


def _begin(work: _Work, pool: Executor, task: Task) -> Future | None:
    """Begin a task in a kernel; None where it was done before."""
    p, folder = work.p, run_folder(work.p) / task.stage
    if is_done(p, task.stage):
        title = f"{_title(work.notebooks[task.stage]):<26}"
        if task.ahead:
            return None
        if not _is_torn(folder / "notebook.ipynb"):
            work.board.say(f"{title} done before, skipped")
            return None
        work.board.say(f"{title} done before, but its notebook is torn: made again")
    return pool.submit(_run_task, work, task, work.kernels.take(task.name, trackio_folder(p, folder)))


def _prepare(work: _Work, task: Task) -> None:
    """Start the kernel of the task that comes next; what cannot be prepared is told when its turn comes."""
    if is_done(work.p, task.stage) or task.name in work.kernels.waiting:
        return
    with contextlib.suppress(OSError, ValueError):
        environment = trackio_folder(work.p, run_folder(work.p) / task.stage)
        work.kernels.prepare(task.name, _notebook_of(work, task), environment)


def _notebook_of(work: _Work, task: Task) -> Path:
    """The notebook of a stage; of what is asked ahead, one that does only that, in the kernels' folder."""
    if not task.ahead:
        return work.notebooks[task.stage]
    import nbformat

    code = "from auditkit.params import from_notebook\nfrom auditkit.repair.ahead import ask_ahead\n"
    cell = nbformat.v4.new_code_cell(f"{code}ask_ahead(from_notebook(globals()), {task.stage!r})")
    book = nbformat.v4.new_notebook(cells=[cell], metadata={"language_info": {"name": "python"}})
    path = Path(work.kernels.folder, f"{task.name}.ipynb")
    nbformat.write(book, path)
    return path


def _run_task(work: _Work, task: Task, kernel: "KernelManager") -> bool:
    """Run a task's notebook to its end; whether others may begin after it."""
    failure = _execute(work, task, kernel)
    if failure is None or work.kernels.stopped:
        return failure is None
    if task.ahead:
        why = failure.told.splitlines()[0]
        work.board.say(f"  asking ahead for {task.stage} ended ({why}); its notebook asks the rest")
        return True
    work.failures.append(failure)
    if work.board.lines:
        work.board.say(f"  {task.stage} failed: what runs beside it is let finish, nothing else is begun")
    return False


def _is_torn(executed: Path) -> bool:
    """Whether papermill was stopped while it wrote a notebook; one that was run by hand lies elsewhere."""
    if not executed.is_file():
        return False
    try:
        about = json.loads(executed.read_text(encoding="utf-8"))["metadata"]["papermill"]
        return not about["end_time"]
    except (ValueError, KeyError, TypeError):
        return True


def _execute(work: _Work, task: Task, kernel: "KernelManager") -> Failure | None:
    """Run one notebook through papermill, in a kernel that was started for it; what went wrong, if anything did."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    from auditkit.experiments.kernels import ENGINE

    p, notebook = work.p, _notebook_of(work, task)
    folder = run_folder(p) / task.stage
    executed = notebook.with_suffix(".executed.ipynb") if task.ahead else folder / "notebook.ipynb"
    code, trouble, trace = 0, "", ""
    title = f"{task.stage[:2]} asked ahead" if task.ahead else _title(notebook)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with StatusLine(title, board=work.board) as status:
        try:
            papermill.execute_notebook(
                notebook,
                executed,
                engine_name=ENGINE,
                parameters=asdict(p) | work.beside.get(task.name, {}),
                kernel_name="python3",
                progress_bar=False,
                stdout_file=status,
                stderr_file=VisibleStream(sys.stderr) if work.debug else None,
                kernel=kernel,
            )
            if not (folder / "DONE").is_file() and not task.ahead:
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
        status.end("stopped" if code and work.kernels.stopped else "FAILED" if code else "")
    if not code:
        if not task.ahead and (skipped := stage_counts(p, task.stage).get("unreadable")):
            unread = f"left out because they could not be read: {skipped} of the pictures"
            work.board.say(f"  {unread}; {shown_path(executed)} names them")
        return None
    told = [trouble, f"  notebook: {shown_path(executed)}", f"  go on:    {work.go_on}"]
    return Failure(code, for_a_person("\n".join(([trace] if work.debug else []) + told)))


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
