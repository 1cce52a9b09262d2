"""A run is a folder, and a stage is a folder in it.

    run = open_stage(p, "05_audit", resume=resume)      # outputs/<run_name>/05_audit
    auditor = run.need("04_auditor") / "checkpoint-240"   # an earlier stage's folder; says which notebook to run first
    todo = [probe for probe in probes if probe.key not in run.keys()]
    run.append(rows)                                   # records.jsonl, one object with a stable "key" a line
    run.path("images/a.png")                           # where anything else goes
    run.count(asked=len(run.records()), target_called=book.known)
    run.finish({"precision": stats.rate(95, 100)})     # manifest.json, and DONE last

What a stage promises to whoever reads its folder:
1) records are only ever appended; a stage run again skips the keys it has, so nothing is asked twice;
2) DONE is written last and at once: with it the folder is complete, without it the stage was interrupted and goes on.
   It lists the files there are (runs/inventory.py): a finished stage that has lost one is neither used nor passed over;
3) everything in it was made with the parameters in its manifest. Opening it under others that matter to it, or after
   an earlier stage it was built on has been made anew, is refused, unless told to start over (`resume=False`);
4) one process at a time writes to it, and one `auditkit run` at a time to the run's folder (`claimed`).
"""

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import filelock

from auditkit import specs
from auditkit.errors import AuditError
from auditkit.params import DEFAULTS, FIELDS, MODELS, Params, matters_to, project_root, stages_of
from auditkit.runs import costs, inventory, jsonl, loading
from auditkit.runs.disk import writing
from auditkit.runs.files import read_json, write_text

STAGES = {  # the stages in order, each with the parameters that its own records depend on
    name: matters_to(name[:2])
    for name in (
        "00_setup",
        "01_models",
        "02_disagreement",
        "03_counterfactual",
        "04_auditor",
        "05_audit",
        "06_findings",
        "07_rectify",
        "08_benchmark",
    )
}
NEVER_MATTER = tuple(name for name in FIELDS if not stages_of(name))  # where, how fast, and when to give up
CALLS_THE_TARGET = ("02_disagreement", "04_auditor", "05_audit")  # none is an error, as 0 is anywhere
PACKAGES = "auditkit torch transformers trl peft diffusers accelerate datasets tokenizers numpy pillow papermill"
KEPT = "reviews.jsonl"  # what a person said: starting over keeps it, for no run would bring it back
FORMAT = 2  # of the records: 1 said "gate" and "ok" for what are an outcome and a finding
LOCK_SECONDS = 10  # a killed run's kernel needs a moment to notice and let go of its stage

_locks: dict[Path, filelock.FileLock] = {}  # held by this process: opening a stage again in a notebook is no conflict


@dataclass
class Stage:
    """One stage's folder, open for writing (`open_stage` makes it)."""

    p: Params
    name: str
    folder: Path
    manifest: dict
    _rows: dict[str, dict] = field(default_factory=dict, repr=False)
    _since: float = 0.0  # when the seconds in the manifest were last brought up to date

    @property
    def done(self) -> bool:
        """Whether the stage was finished before; its records are then complete and nothing is left to ask."""
        return (self.folder / "DONE").is_file()

    def need(self, stage: str) -> Path:
        """The folder of an earlier stage, which must be done and made with the present parameters.

        Raises AuditError naming the notebook to run first, or the parameter that changed since.
        """
        folder = self.folder.parent / stage
        manifest = _manifest(folder)
        if manifest is None or not (folder / "DONE").is_file():
            raise AuditError(
                f"{self.name} needs {shown_path(folder)}, which is not done: run {notebook_of(stage)} first."
            )
        if lost := damage_in_words(folder, self.p.params_file):
            raise AuditError(f"{self.name} needs {stage}, but {lost}")
        changed = differences(manifest, self.p, stage)
        if changed:
            raise AuditError(
                f"{self.name} needs {stage}, but that was made with other settings ({changed}): "
                f"run {notebook_of(stage)} again first, with {_anew(stage)}."
            )
        used = self.manifest["needs"].get(stage)
        if used not in (None, manifest["id"]):
            raise AuditError(f"{_stale(self.name, stage)} Start it over with {_anew(self.name)}.")
        self.manifest["needs"][stage] = manifest["id"]
        self._save()
        return folder

    def path(self, name: str) -> Path:
        """Where a file of this stage goes; folders on the way are made."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def append(self, rows: dict | Iterable[dict]) -> int:
        """Add records, each with a "key", and return how many were new; a key that is there is left as it is."""
        new = {}
        for row in [rows] if isinstance(rows, dict) else rows:
            if not isinstance(row.get("key"), str):
                raise AuditError(
                    f"{self.name}: a record has {row.get('key')!r} for a key, not a text: {str(row)[:80]}."
                )
            if row["key"] not in self._rows:
                new.setdefault(row["key"], row)
        jsonl.append(self.folder / "records.jsonl", new.values())
        self._rows |= new
        if time.monotonic() - self._since > 5:
            self._save()
        return len(new)

    def records(self) -> list[dict]:
        """The stage's records so far, in the order they were written, earlier attempts included."""
        return list(self._rows.values())

    def keys(self) -> set[str]:
        """The keys of the records so far: what need not be done again."""
        return set(self._rows)

    def count(self, **counts: int) -> None:
        """Set counts of the manifest. They are totals over all attempts, so take them from what is on disk.

        Names used everywhere: asked, parsed, images_made, target_called, references_called, scored, failed,
        unreadable (pictures skipped because they could not be read). `finish` adds answers_cut where models answered
        (by the limit, not by themselves), answers_escaped and answers_redacted where a server's were not kept as they
        came, and judge_called and judge_unclear where a model said what means the same
        (consensus/llm_judge.py).
        """
        self.manifest["counts"] |= {name: int(number) for name, number in counts.items()}
        self._save()

    def finish(self, metrics: dict | None = None) -> dict:
        """Write the manifest with its metrics, then DONE, and return the metrics.

        Leave out of `metrics` what was not measured: None and NaN are refused.

        Raises AuditError when a stage that asks the target counted no call to it.
        """
        called = self.manifest["counts"].get("target_called", 0 if self.name in CALLS_THE_TARGET else None)
        if called == 0:
            raise AuditError(
                f"{self.name}: the target was never called (target_called is 0), so there is nothing to report; "
                "look at what the auditor wrote in this stage's records."
            )
        self.manifest["metrics"] = _measured(metrics or {}, f"{self.name}, metrics")
        self.manifest["counts"] |= costs.judge_counts(self.folder)
        if answered := costs.answers_cut(self.folder / costs.ANSWERS_FILE):
            self.manifest["counts"]["answers_cut"] = sum(cut for cut, _ in answered.values())
            for sentence in costs.cut_in_words(answered, self.p.max_answer_tokens):
                print(sentence)
        self.manifest["counts"] |= costs.answers_changed(self.folder / costs.ANSWERS_FILE)
        paid = costs.spent(self.folder / costs.ANSWERS_FILE, [self.p.target, self.p.peer, *self.p.references])
        judged = costs.spent(self.folder / costs.JUDGED_FILE, [self.p.same])
        named = costs.spent(self.folder / costs.NAMED_FILE, [self.p.namer])
        if hosted := costs.total([paid, judged, named]):
            self.manifest["hosted"] = hosted
            print("\n".join(costs.in_words(hosted)))
        files = inventory.list_files(self.folder)
        lost = self.manifest.pop("lost", {})
        if any(
            files.get(name) != its for name, its in lost.items()
        ):  # not as it was when later stages were built on it
            self.manifest["id"] = uuid.uuid4().hex[:12]
        self.manifest |= {"status": "done", "finished": _now(), "loads": list(loading.loads)}
        self._save()
        write_text(self.folder / "DONE", json.dumps({"finished": self.manifest["finished"], "files": files}) + "\n")
        _unlock(self.folder)
        return self.manifest["metrics"]

    def leave(self) -> None:
        """Let go of the folder as it is, for another process to go on in it."""
        self._save()
        _unlock(self.folder)

    def _save(self) -> None:
        now = time.monotonic()
        self.manifest["seconds"] = round(self.manifest["seconds"] + now - self._since, 1)
        self._since = now
        text = json.dumps(self.manifest, indent=1, ensure_ascii=False, default=_plain)
        write_text(self.folder / "manifest.json", text + "\n")


def open_stage(p: Params, stage: str, resume: bool = True) -> Stage:
    """Open a stage's folder, new or to go on where it was left.

    Args:
        p: the run's parameters.
        stage: its folder's name, as in `STAGES`.
        resume: False empties the folder first, but for a person's word on the findings (KEPT).

    A finished stage that has lost files is unfinished again: what is damaged is set aside, said, and made anew.

    Raises:
        AuditError: the folder was made with other parameters that matter (the difference is shown), another process is
            writing to it, a record is damaged, or the stage's name is unknown.
    """
    if stage not in STAGES:
        raise AuditError(f"No stage {stage}: the stages are {', '.join(STAGES)}.")
    folder = run_folder(p) / stage
    if not resume and folder.is_symlink():
        folder.unlink()  # what it points to is somebody's
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    _lock(folder)
    if not resume:
        _empty(folder)
    manifest = _manifest(folder)
    why = manifest and why_not_resume(p, stage)
    if why:
        _unlock(folder)
        raise AuditError(f"{why} Start over with {_anew(stage)}, or take another run_name.")
    if manifest is None or _bare(folder):
        manifest = {"stage": stage, "run_name": p.run_name, "id": uuid.uuid4().hex[:12]}
        manifest |= {"started": _now(), "seconds": 0.0}
        manifest |= {"needs": {}, "counts": {}, "metrics": {}}
    if (folder / "DONE").is_file() and (found := inventory.damage(folder)):
        print(f"{stage} is not whole: {inventory.in_words(found)}; that is made again.", flush=True)
        manifest["lost"] = manifest.get("lost", {}) | inventory.clear_damage(folder, found)
    if not (folder / "DONE").is_file():  # a finished stage keeps the word of what made it
        manifest |= {"format": FORMAT, "parameters": asdict(p), "seed": p.seed, "status": "running"}
        manifest |= {"versions": versions(), "commit": commit(), "machine": machine()}
    run = Stage(p, stage, folder, manifest, _since=time.monotonic())
    run._rows = {row["key"]: row for row in jsonl.read(folder / "records.jsonl")}
    run._save()
    return run


@contextlib.contextmanager
def claimed(p: Params) -> Iterator[None]:
    """While it lasts, no other process can claim the run's folder.

    Two runs of one name would else go from stage to stage side by side, each waiting for the other to finish.
    Raises AuditError when another has it.
    """
    folder = run_folder(p)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    _lock(
        folder, "Another run is writing to", "wait for it, or give this one a name of its own with --set run_name=OTHER"
    )
    try:
        yield
    finally:
        _unlock(folder)


def run_folder(p: Params) -> Path:
    """outputs/<run_name> in the project folder."""
    return project_root() / "outputs" / p.run_name


def notebook_files(stage: str) -> list[Path]:
    """The notebooks that make a stage, one in the project's folder; JupyterLab's copies (…-Copy1) are not counted."""
    found = sorted((project_root() / "notebooks").glob(f"{stage[:2]}_*.ipynb"))
    return [path for path in found if not re.search(r"-Copy\d+$", path.stem)]


def notebook_of(stage: str) -> str:
    """The notebook that makes a stage, as a person would name it."""
    found = notebook_files(stage)
    return f"notebooks/{found[0].name}" if found else f"notebook {stage[:2]}"


def is_done(p: Params, stage: str) -> bool:
    """Whether a stage is complete and whole, and nothing it depends on has changed."""
    folder = run_folder(p) / stage
    return (folder / "DONE").is_file() and not why_not_resume(p, stage) and not inventory.damage(folder)


def damage_in_words(folder: Path, params_file: str = "") -> str:
    """What a finished stage has lost and the command that makes it again, as the end of a sentence; "" where it is
    whole, or not finished.
    """
    found = inventory.damage(folder) if (folder / "DONE").is_file() else {}
    if not found:
        return ""
    again = f"auditkit run {params_file or 'FILE'} --only {folder.name[:2]}"
    return f"{shown_path(folder)} is not whole: {inventory.in_words(found)}. Make that again: {again}"


def stage_counts(p: Params, stage: str) -> dict[str, int]:
    """The counts in a stage's manifest; none where there is no manifest."""
    return (_manifest(run_folder(p) / stage) or {}).get("counts", {})


def why_not_resume(p: Params, stage: str) -> str:
    """One sentence on why a stage's folder does not fit the present parameters or earlier stages; "" when it does."""
    folder = run_folder(p) / stage
    manifest = _manifest(folder)
    if manifest is None or _bare(folder):
        return ""
    changed = differences(manifest, p, stage)
    if changed:
        return f"{shown_path(folder)} was made with other settings: {changed}."
    for earlier, used in manifest["needs"].items():
        now = _manifest(folder.parent / earlier)
        if now is not None and now["id"] != used:
            return _stale(stage, earlier)
    return ""


def would_fit(p: Params, folder: Path) -> bool:
    """Whether another run's stage is what this run would make: with the same parameters, on the very same stages.

    Stages are the same where their ids are, as those that were copied from one run to the other.
    """
    manifest, here = _manifest(folder), run_folder(p)
    if manifest is None or differences(manifest, p, folder.name):
        return False
    return all((_manifest(here / earlier) or {}).get("id") == used for earlier, used in manifest["needs"].items())


def differences(manifest: dict, p: Params, stage: str) -> str:
    """What a stage was made with against what it would be made with now, for the parameters that matter to it.

    What was made before there was such a parameter was made with its default.
    """
    if manifest.get("format", 1) != FORMAT:
        return f"records of format {manifest.get('format', 1)} then, {FORMAT} now"
    before, now = DEFAULTS | manifest["parameters"], asdict(p)
    return ", ".join(
        f"{name} {before[name]!r} then, {now[name]!r} now"
        for name in STAGES[stage]
        if name in before and before[name] != now[name] and not _same_models(name, before[name], now[name])
    )


def _same_models(name: str, before, now) -> bool:
    """Whether only where models run, how fast or at what price has changed, and so no answer."""
    if name not in MODELS:
        return False
    before, now = ([texts] if isinstance(texts, str) else texts for texts in (before, now))
    return len(before) == len(now) and all(map(specs.same_model, before, now))


def start_over(p: Params, stages: Iterable[str]) -> None:
    """Empty the folders of these stages, after making sure that no other process is writing to any of them.

    Of a folder that is a link, the link is removed and nothing else.
    """
    folders = [run_folder(p) / stage for stage in stages]
    for link in [folder for folder in folders if folder.is_symlink()]:
        link.unlink()  # what it points to is somebody's
    folders = [folder for folder in folders if folder.is_dir()]
    for folder in folders:
        _lock(folder)
    for folder in folders:
        _empty(folder)
        _unlock(folder)


def versions() -> dict[str, str]:
    """Python's version and those of the packages a result depends on, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES.split():
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The project's git commit, with "+" where tracked files have changed since; None outside a repository."""

    def git(*arguments: str) -> str:
        answer = subprocess.run(["git", *arguments], cwd=project_root(), capture_output=True, text=True, timeout=10)
        return answer.stdout.strip() if answer.returncode == 0 else ""

    try:
        head = git("rev-parse", "HEAD")
        return head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "") if head else None
    except (OSError, subprocess.TimeoutExpired):
        return None


def machine() -> dict:
    """What the seconds in a manifest were measured on."""
    return {"system": platform.system(), "machine": platform.machine(), "cores": os.cpu_count()}


def _anew(stage: str) -> str:
    return f"resume=False (on the command line: --from {stage[:2]} --start-over)"


def _stale(stage: str, earlier: str) -> str:
    return f"{stage} was built on a {earlier} that has been made anew since."


def _manifest(folder: Path) -> dict | None:
    file = folder / "manifest.json"
    if not file.is_file():
        return None
    advice = f"start this stage over with {_anew(folder.name)}"
    manifest = read_json(file, advice=advice)
    for name, kind in {"id": str, "parameters": dict, "needs": dict}.items():
        if not isinstance(manifest.get(name), kind):
            raise AuditError(f'{shown_path(file)} is damaged, for it has no "{name}": {advice}.')
    return manifest


def _bare(folder: Path) -> bool:
    """Whether a stage was opened, perhaps failed, and made nothing yet that other parameters could contradict."""
    return {entry.name for entry in folder.iterdir()} <= {".lock", "manifest.json", "notebook.ipynb", KEPT}


def _empty(folder: Path) -> None:
    """Remove a stage's content; its lock, the notebook that papermill is just writing there and a person's word stay.

    DONE goes first and the manifest last, so a kill in between leaves no records that other parameters could take over.
    """
    (folder / "DONE").unlink(missing_ok=True)
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name not in (".lock", "notebook.ipynb", "manifest.json", KEPT):
            entry.unlink()
    (folder / "manifest.json").unlink(missing_ok=True)


def _lock(
    folder: Path,
    trouble: str = "Another process writes to",
    advice: str = "wait for it, or shut its kernel down",
) -> None:
    if folder in _locks:
        return
    lock = filelock.FileLock(folder / ".lock")  # let go by the system when the process ends, however it ends
    try:
        with writing(folder / ".lock"):
            lock.acquire(timeout=LOCK_SECONDS)
    except filelock.Timeout:
        raise AuditError(f"{trouble} {shown_path(folder)}: {advice}.") from None
    _locks[folder] = lock


def _unlock(folder: Path) -> None:
    if folder in _locks:
        _locks.pop(folder).release()


def _measured(value, where: str):
    """The metrics as plain JSON values, refusing what only looks measured."""
    if hasattr(value, "tolist"):  # NumPy and torch
        value = value.tolist()
    if isinstance(value, dict):
        return {str(name): _measured(inner, f"{where}: {name}") for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_measured(inner, where) for inner in value]
    if value is None or value != value:
        raise AuditError(f"{where} is {value}: leave out what was not measured.")
    return value


def _plain(value):
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written to a manifest")


def shown_path(path: Path) -> str:
    """A path as a person would type it: from the project folder where it lies inside."""
    return path.relative_to(project_root()).as_posix() if path.is_relative_to(project_root()) else str(path)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
