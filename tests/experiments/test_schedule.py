"""`auditkit run --jobs N`: what runs beside what, kernels that are started ahead, and the same records in the end."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import yaml
from campaigns.kills import differences
from smoke_run import auditkit, make_project

from auditkit.cli import main
from auditkit.experiments.papermill import _needs
from auditkit.experiments.schedule import AHEAD, MOST, WAITS, Task, plan_tasks, run_tasks
from auditkit.runs.folder import STAGES

SETUP = """
from auditkit.params import from_notebook
from auditkit.runs.folder import open_stage
p = from_notebook(globals())
""".strip()
DONE = "run = open_stage(p, '{}')\nrun.count(target_called=1)\nrun.finish()"


def begun_after(name: str) -> set[str]:
    """All that must be over before a task begins."""
    return set(WAITS[name]) | {earlier for one in WAITS[name] for earlier in begun_after(one)}


def test_a_stage_waits_for_all_that_its_notebook_reads(repository, monkeypatch):
    monkeypatch.chdir(repository)
    assert WAITS.keys() == {*STAGES, "07_rectify" + AHEAD, "08_benchmark" + AHEAD}
    for stage in STAGES:
        assert _needs(stage) <= begun_after(stage), stage
        book = "".join(path.read_text() for path in repository.glob(f"notebooks/{stage[:2]}_*.ipynb"))
        if "baseline_probes" in book or "untrained_probes" in book:  # which read 02 where it is done
            assert "02_disagreement" in begun_after(stage), stage
    free = [name for name, waits in WAITS.items() if waits == ("00_setup",)]
    assert len(free) == MOST


def run(stages, jobs: int, fails=(), seconds=None) -> tuple[list[str], list[str], int]:
    """Tasks as they began and as they ended, and how many were at work at once."""
    began, ended, at_work, most, lock = [], [], [], [0], threading.Lock()
    prepared: set[str] = set()

    def work(task: Task) -> bool:
        time.sleep((seconds or {}).get(task.name, 0.01))
        with lock:
            at_work.remove(task.name)
            ended.append(task.name)
        return task.name not in fails

    def begin(task: Task):
        with lock:
            assert {one for one in task.waits if not one.endswith(AHEAD)} <= set(ended), task
            at_work.append(task.name)
            most[0] = max(most[0], len(at_work))
            assert task.stage not in [one.removesuffix(AHEAD) for one in at_work[:-1]], "two write to one stage"
        if began and len(stages) == len(STAGES) and jobs < 3:
            assert task.name in prepared, "its kernel could have been started"
        began.append(task.name)
        return pool.submit(work, task)

    with ThreadPoolExecutor(jobs) as pool:
        run_tasks(plan_tasks(list(stages), jobs), jobs, begin, lambda task: prepared.add(task.name))
    return began, ended, most[0]


def test_one_job_goes_by_the_numbers_and_several_by_what_they_wait_for():
    assert run(STAGES, 1) == (list(STAGES), list(STAGES), 1)
    slow = {"04_auditor": 0.3}
    began, ended, most = run(STAGES, 2, seconds=slow)
    assert most == 2 and set(ended) == {*WAITS}
    assert began[:3] == ["00_setup", "04_auditor", "02_disagreement"] and ended.index("04_auditor") >= 6
    assert run(STAGES, MOST, seconds=slow | {name: 0.1 for name in WAITS})[2] == MOST


def test_what_could_be_asked_ahead_is_not_waited_for_once_the_stage_could_begin():
    began, _, _ = run(["05_audit", "07_rectify", "08_benchmark"], 2, seconds={"05_audit": 0.2, "07_rectify": 0.2})
    assert began == ["05_audit", "07_rectify" + AHEAD, "08_benchmark" + AHEAD, "07_rectify", "08_benchmark"]
    assert run(["07_rectify"], 2)[0] == ["07_rectify"]
    began, _, _ = run(["06_findings", "08_benchmark"], 2, seconds={"06_findings": 0.1, "08_benchmark" + AHEAD: 0.2})
    assert began == ["06_findings", "08_benchmark" + AHEAD, "08_benchmark"], "what is being asked is waited for"


def test_after_a_failure_what_runs_is_let_finish_and_nothing_is_begun():
    began, ended, _ = run(STAGES, 3, fails=["02_disagreement"], seconds={"04_auditor": 0.2, "01_models": 0.2})
    assert set(began) == set(ended) and "04_auditor" in ended and "05_audit" not in began


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["params/smoke.yaml", "--jobs", "0"], "'0' is not a whole number above 0"),
        (["params/smoke.yaml", "--jobs", "99"], "--jobs 99: of a run's stages at most 6 can go at once."),
        (["params/smoke.yaml", "--jobs", "2", "--pilot", "9"], "measures stages one after another: leave out --jobs"),
        (["params/a.yaml", "--jobs", "99"], "--jobs 99: the runs of one seed go one after another, and params/a.yaml"),
    ],
)
def test_a_number_of_jobs_that_cannot_be_is_one_sentence(project, repository, capsys, arguments, said):
    study = yaml.safe_load((repository / "params" / "study_ways.yaml").read_text())
    (project / "params" / "a.yaml").write_text(yaml.safe_dump(study | {"base": "params/demo.yaml"}))
    assert main(["run", *arguments]) == 2
    told = capsys.readouterr()
    assert said in told.err and told.err.count("\n") == 1 and not (project / "outputs").exists()


# ---- kernels ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def stubs(notebook):
    """Notebooks that are done at once; `write(stage, *cells)` writes another in the place of one."""

    def write(stage: str, *cells: str):
        return notebook(f"{stage[:2]}_stub.ipynb", *cells)

    for stage in STAGES:
        write(stage, f"{SETUP}\n{DONE.format(stage)}")
    return write


def test_a_stage_that_fails_lets_those_beside_it_finish(stubs, project, capsys):
    fails = "from auditkit.errors import AuditError\nopen('failed', 'w').close()\nraise AuditError('no luck')"
    stubs("02_disagreement", fails)
    waits = "import os, time\nuntil = time.time() + 60\nwhile not os.path.exists('failed') and time.time() < until:"
    stubs("04_auditor", SETUP, waits + "\n    time.sleep(0.1)\ntime.sleep(3)", DONE.format("04_auditor"))
    assert main(["run", "params/demo.yaml", "--jobs", "2", "--set", "peer="]) == 2
    told = capsys.readouterr()
    what, where, how = told.err.splitlines()
    assert what == "no luck" and "02_disagreement/notebook.ipynb" in where
    assert how.endswith("auditkit run params/demo.yaml --set peer= --jobs 2")
    assert "02_disagreement failed: what runs beside it is let finish, nothing else is begun" in told.out
    done = {path.parent.name for path in (project / "outputs" / "demo").glob("*/DONE")}
    assert done == {"00_setup", "04_auditor"}


def test_the_next_kernel_has_done_its_imports_and_knows_its_place(stubs, project, monkeypatch):
    (project / "marker.py").write_text("open('imported', 'w').close()")
    waits = "import os, time\nuntil = time.time() + 60\nwhile not os.path.exists('imported') and time.time() < until:"
    stubs("07_rectify", SETUP, waits + "\n    time.sleep(0.1)", DONE.format("07_rectify"))
    seen = "import json, os, sys\nseen = {'early': 'marker' in sys.modules, 'named': 'marker' in globals(),"
    seen += " 'cwd': os.getcwd(), 'threads': os.environ['OMP_NUM_THREADS'], 'logs': os.environ.get('TRACKIO_DIR')}"
    writes = "import marker\njson.dump(seen, open('seen.json', 'w'))"
    stubs("08_benchmark", seen, writes, SETUP, DONE.format("08_benchmark"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    there = importlib.util.find_spec("trackio")  # its folder is told by a variable that is each stage's own
    assert main(["run", "params/demo.yaml", "--from", "07", "--set", f"report_to={['trackio'] if there else []}"]) == 0
    logs = str(project / "outputs" / "demo" / "08_benchmark" / "logs") if there else None
    seen = {"early": True, "named": False, "cwd": str(project), "threads": "1", "logs": logs}
    assert json.loads((project / "seen.json").read_text()) == seen
    assert not [one for one in psutil.Process().children() if "ipykernel_launcher" in " ".join(one.cmdline())]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_kernel_that_waits_ends_with_the_run(stubs, project, tmp_path, how):
    stubs("07_rectify", SETUP, "import time\ntime.sleep(300)")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-m", "auditkit.cli", "run", "params/demo.yaml", "--from", "07"]
    pipes: dict = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=os.environ | {"TMPDIR": str(temporary)}, **pipes)
    kernels = wait_for(lambda: two(psutil.Process(process.pid).children()))
    process.send_signal(how)
    _, said = process.communicate(timeout=120)
    assert not psutil.wait_procs(kernels, 60)[1]
    if how == signal.SIGINT:
        assert process.returncode == 130 and said == "auditkit: interrupted; the same command goes on from here.\n"
        assert not list(temporary.iterdir())


def two(children: list) -> list:
    return children if len(children) == 2 else []


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)
    return found


# ---- the same records ------------------------------------------------------------------------------------------------


def test_stages_beside_each_other_end_in_the_same_records_even_after_a_kill(smoke, tmp_path):
    """The whole smoke run with --jobs 2, killed once while the auditor learns."""
    project, once = make_project(tmp_path / "project"), smoke / "outputs" / "smoke"
    here = project / "outputs" / "smoke"
    command = [sys.executable, "-m", "auditkit.cli", "run", "params/smoke.yaml", "--jobs", "2"]
    with open(project / "killed.log", "w") as log:
        process = subprocess.Popen(command, cwd=project, stdout=log, stderr=log, start_new_session=True)
        done = here / "02_disagreement" / "DONE"
        wait_for(lambda: process.poll() is not None or (done.exists() and (here / "04_auditor").exists()), 900)
        assert process.poll() is None, (project / "killed.log").read_text()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    again = auditkit(project, "--jobs", "2")
    assert again.returncode == 0, again.stderr
    for ahead in ("07", "08"):
        assert f"{ahead} asked ahead" in again.stdout + (project / "killed.log").read_text()
    assert {stage: differences(once / stage, here / stage) for stage in STAGES} == {stage: [] for stage in STAGES}
    summaries = [json.loads((run / "summary.json").read_text()) for run in (once, here)]
    assert summaries[0]["benchmarks"] == summaries[1]["benchmarks"]
    assert summaries[0]["findings"] == summaries[1]["findings"]
