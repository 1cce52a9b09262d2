"""Kill a real smoke run at random moments, go on, and compare what came out with a run that nobody disturbed.

    python -m tests.campaigns.kills --n 100 --seed 0

Each kill begins from the undisturbed run's finished stages before one stage, drawn by chance, starts `auditkit run` for
that stage, sends a signal at a random moment of it, and lets the same command go on. The stage's files must then be
those of the undisturbed run, byte by byte but for seconds and dates, with nothing asked twice, no temporary folder left
and no traceback said. What comes after a stage reads nothing else than its files, so it is not run again.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP")
TIMED = {  # what differs from one run to the next, whoever is killed
    "started", "finished", "id", "needs", "machine", "versions", "commit", "step_time",
    "train_runtime", "found", "loads", "gflops", "free_gb",
}  # fmt: skip
AS_TOLD = ("notebook.ipynb", "DONE", "README.md", "training_args.bin", "trainer_state.json")  # hold times and paths
SETTLE = 60  # seconds a killed run's kernel may need to notice


def command(*more: str) -> list[str]:
    """The smoke run's command."""
    return [sys.executable, "-m", "auditkit.cli", "run", "params/smoke.yaml", *more]


def environment(temporary: Path) -> dict[str, str]:
    """That of a run whose temporary files lie where they can be counted."""
    temporary.mkdir(exist_ok=True)
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": path}


def make_project(folder: Path) -> Path:
    """An empty project with the real notebooks and parameter files."""
    folder.mkdir(parents=True)
    for name in ("notebooks", "params"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns(".*"))
    return folder


def kill_once(undisturbed: Path, folder: Path, stage: str, signal_name: str, moment: float) -> dict:
    """Kill a stage at a moment, go on, compare.

    Args:
        undisturbed: outputs/smoke of a whole run.
        folder: a new project's folder, removed where nothing is wrong.
        stage: such as "05_audit".
        moment: 0 to 1, of the time that the stage took undisturbed, and a kernel's start.

    Returns {"stage", "signal", "after": seconds, "in_time": whether it was killed before it was done, "wrong": [what
    differs, in words]}.
    """
    project, temporary = make_project(folder), folder / "tmp"
    run = project / "outputs" / "smoke"
    for before in sorted(path for path in undisturbed.iterdir() if path.is_dir() and path.name < stage):
        shutil.copytree(before, run / before.name)
    log, only = folder / "killed.log", command("--only", stage[:2])
    after = moment * (time_of(undisturbed / stage) + 3) + 1
    with log.open("w") as out:
        process = subprocess.Popen(
            only,
            cwd=project,
            env=environment(temporary),
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=_heed_signals,
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(after)
        in_time = process.poll() is None
        process.send_signal(getattr(signal, signal_name))
        wrong = _wait_for_its_end(process)
    again = subprocess.run(
        only, cwd=project, env=environment(temporary), capture_output=True, text=True, timeout=600 + SETTLE
    )
    (folder / "again.log").write_text(f"{again.returncode}\n{again.stdout}\n{again.stderr}")
    wrong += [f"exit {again.returncode}: {again.stderr[-300:]}"] if again.returncode else []
    wrong += ["a traceback"] if "Traceback" in log.read_text() + again.stdout + again.stderr else []
    wrong += differences(undisturbed / stage, run / stage) if not again.returncode else []
    wrong += [f"left behind: {path.name}" for path in temporary.glob("auditkit-*")]
    if not wrong:
        shutil.rmtree(folder)
    return {"stage": stage, "signal": signal_name, "after": round(after, 1), "in_time": in_time, "wrong": wrong}


def _wait_for_its_end(process: subprocess.Popen) -> list[str]:
    """What is wrong where a run does not end when it is told to: it is then ended."""
    try:
        process.wait(SETTLE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return [f"went on for {SETTLE} s after the signal"]
    return []


def _heed_signals() -> None:
    """Whoever is killed notices: under nohup SIGHUP is ignored, and SIGINT in what a shell runs in the background."""
    for one in (signal.SIGHUP, signal.SIGINT):
        signal.signal(one, signal.SIG_DFL)


def time_of(stage: Path) -> float:
    """Seconds that a stage took, its kernel's start left out."""
    return json.loads((stage / "manifest.json").read_text())["seconds"]


def differences(once: Path, twice: Path) -> list[str]:
    """What of two folders of a stage differs, in words; [] where nothing does."""
    here, there = (set(contents(folder)) for folder in (once, twice))
    wrong = [f"{name} is missing" for name in sorted(here - there)] + [
        f"{name} is new" for name in sorted(there - here)
    ]
    ours, theirs = contents(once), contents(twice)
    for name in sorted(here & there):
        if ours[name] != theirs[name]:
            wrong.append(f"{name} differs")
    for path in twice.glob("*.jsonl"):
        rows = Counter(path.read_text().splitlines())
        wrong += [f"{path.name} has a row twice"] if max(rows.values(), default=1) > 1 else []
    return wrong


def contents(stage: Path) -> dict[str, str]:
    """A stage's files, each by a digest of what does not depend on the clock.

    Answers are compared as a set: a model that was killed has answered in other batches' order.
    """
    found = {}
    for path in sorted(path for path in stage.rglob("*") if path.is_file() and path.name[0] != "."):
        name = path.relative_to(stage).as_posix()
        if path.name in AS_TOLD or name.split("/")[0] == "checkpoints":
            continue
        if path.suffix == ".jsonl":
            rows = [timeless(json.loads(line)) for line in path.read_text().splitlines()]
            lines = [json.dumps(row, sort_keys=True) for row in rows]
            data = "\n".join(sorted(lines) if path.name in ("answers.jsonl", "judged.jsonl") else lines).encode()
        elif path.suffix == ".json":
            data = json.dumps(timeless(json.loads(path.read_text())), sort_keys=True).encode()
        else:
            data = path.read_bytes()
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def timeless(value: object) -> object:
    """A JSON value without seconds and dates."""
    if isinstance(value, dict):
        return {key: timeless(inner) for key, inner in value.items() if key not in TIMED and "seconds" not in key}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def kills(undisturbed: Path, work: Path, n: int, seed: int) -> Iterator[dict]:
    """n kills, drawn by `seed`, each as `kill_once` returns it. Long stages are drawn more often."""
    dice = random.Random(seed)
    stages = sorted(path.name for path in undisturbed.iterdir() if (path / "DONE").is_file())
    weights = [time_of(undisturbed / stage) + 3 for stage in stages]
    for i in range(n):
        (stage,) = dice.choices(stages, weights)
        yield kill_once(undisturbed, work / f"kill-{i}", stage, dice.choice(SIGNALS), dice.random())


def undisturbed_run(work: Path) -> Path:
    """outputs/smoke of a whole run, made once in a folder."""
    project = work / "undisturbed"
    if not project.exists():
        make_project(project)
    done = subprocess.run(command(), cwd=project, env=environment(work / "tmp"), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the undisturbed run failed: {done.stderr}")
    return project / "outputs" / "smoke"


def main() -> int:
    """Kill as often as told, print a line a kill and the figures; 1 where anything was lost, doubled or left behind."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--n", type=int, default=100, help="kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=REPOSITORY / "outputs" / "campaigns" / "kills")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    for left in options.work.glob("kill-*"):
        shutil.rmtree(left)
    began, told = time.monotonic(), []
    print(f"seed {options.seed}, {options.n} kills", flush=True)
    for told_of in kills(undisturbed_run(options.work), options.work, options.n, options.seed):
        told.append(told_of)
        about = "; ".join(told_of["wrong"]) or "the same records"
        when = f"after {told_of['after']:5.1f} s" + ("" if told_of["in_time"] else " (done before)")
        print(f"{len(told):4}  {told_of['stage']:<18} {told_of['signal']:<8} {when}  {about}", flush=True)
    bad, in_time = [one for one in told if one["wrong"]], sum(one["in_time"] for one in told)
    print(
        f"{len(told)} kills ({in_time} of a stage not yet done), seed {options.seed}: {len(told) - len(bad)} ended "
        f"in the same records, {len(bad)} did not; {time.monotonic() - began:.0f} s"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
