"""`auditkit run`: notebooks in order, live progress, a real exit code, and a way to go on."""

import io
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from auditkit import cli
from auditkit.cli import main
from auditkit.experiments.status import StatusLine
from auditkit.params import load_params
from auditkit.runs import folder
from auditkit.runs.folder import _unlock, open_stage, run_folder

SETUP = """
from auditkit.params import from_notebook
from auditkit.runs.folder import open_stage
p = from_notebook(globals())
""".strip()
LAST = """
run = open_stage(p, "08_benchmark", resume=resume)
run.need("07_rectify")
run.count(target_called=1)
run.finish()"""


def auditkit(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "auditkit.cli", *arguments], capture_output=True, text=True, **options)


@pytest.fixture
def notebooks(notebook):
    for number in range(7):
        notebook(f"{number:02}_stub.ipynb")
    notebook("07_repair_the_target.ipynb", SETUP + '\nrun = open_stage(p, "07_rectify", resume=resume)',
             'import os, sys\nprint("step 1/2", flush=True)\nprint(sys.executable, os.environ["OMP_NUM_THREADS"])',
             "run.append([{'key': str(p.grpo_steps)}])\nrun.count(unreadable=3)\nrun.finish()")  # fmt: skip
    notebook("08_before_and_after.ipynb", SETUP + LAST)


def test_the_help_is_instant():
    began = time.monotonic()
    assert cli_help().returncode == 0
    assert time.monotonic() - began < 3  # torch alone takes longer
    heavy = ("torch", "trl", "papermill", "numpy", "rich")
    heavy = f"import sys, auditkit.cli; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", heavy]).returncode == 0


def cli_help():
    return auditkit("--help")


def test_what_the_system_refuses_is_one_sentence(notebooks, project):
    (project / "outputs").write_text("a file where the runs should be")
    told = auditkit("run", "params/demo.yaml")
    assert told.returncode == 2 and "Traceback" not in told.stderr
    assert re.fullmatch(r"auditkit: .*outputs.*: (Not a directory|File exists)\.\n", told.stderr)


@pytest.mark.parametrize("steps", ["-3", "0", "many"])
def test_training_for_no_steps_is_refused(steps):
    told = auditkit("miniature", "build", "clean", "--steps", steps)
    assert told.returncode == 2 and f"'{steps}' is not a whole number above 0" in told.stderr


def test_notebooks_run_in_order_and_once(notebooks, project):
    first = auditkit("run", "params/demo.yaml", "--from", "07", "--set", "grpo_steps=33")
    assert first.returncode == 0, first.stderr
    assert re.search(r"07 repair the target .*0:\d\d .*08 before and after", first.stdout, re.S)
    assert "left out because they could not be read: 3 of the pictures; outputs/demo/07_rectify" in first.stdout
    assert first.stderr == ""
    assert f"{sys.executable} " in (project / "outputs/demo/07_rectify/notebook.ipynb").read_text()
    assert '{"key": "33"}' in (project / "outputs/demo/07_rectify/records.jsonl").read_text()
    again = auditkit("run", "params/demo.yaml", "--from", "07", "--set", "grpo_steps=33")
    assert again.returncode == 0 and again.stdout.count("done before, skipped") == 2
    other = auditkit("run", "params/demo.yaml", "--from", "07", "--set", "rectify_steps=5")
    assert other.returncode == 2
    assert "rectify_steps 400 then, 5 now. Make it and what follows anew with --from 07 --start-over" in other.stderr
    anew = auditkit("run", "params/demo.yaml", "--from", "07", "--set", "rectify_steps=5", "--start-over")
    assert anew.returncode == 0 and "skipped" not in anew.stdout, anew.stderr


def test_a_failing_cell_says_what_where_and_how_to_go_on(notebooks, notebook, project):
    notebook("08_before_and_after.ipynb", SETUP, "from auditkit.errors import AuditError\nraise AuditError('no luck')")
    unlucky = auditkit("run", "params/demo.yaml", "--only", "08", "--set", "seed=3")
    assert unlucky.returncode == 2
    assert len(unlucky.stderr.splitlines()) == 3, unlucky.stderr
    what, where, how = unlucky.stderr.splitlines()
    assert what == "no luck"
    assert where.split() == ["notebook:", "outputs/demo/08_benchmark/notebook.ipynb"]
    assert how.split(maxsplit=2)[2] == "auditkit run params/demo.yaml --set seed=3 --only 08"
    assert "no luck" in (project / "outputs/demo/08_benchmark/notebook.ipynb").read_text()

    notebook("08_before_and_after.ipynb", SETUP, "def f():\n    return 1 / 0\nf()")
    failed = auditkit("run", "params/demo.yaml", "--only", "08", "--set", "run_name=b")
    assert failed.returncode == 1 and failed.stderr.startswith("ZeroDivisionError: division by zero\n")
    assert "FAILED" in failed.stdout and "Traceback" not in failed.stderr
    traced = auditkit("run", "params/demo.yaml", "--only", "08", "--set", "run_name=b", "--debug").stderr
    assert "return 1 / 0" in re.sub(r"\x1b\[[^m]*m", "", traced)

    raising = "import os\nfrom auditkit.errors import Unfinished\nprint('with', os.environ['MY_TOKEN'])\n"
    raising += "raise Unfinished('the server says \\x1b[31mno')"
    notebook("08_before_and_after.ipynb", SETUP, "print('\\x1b]0;owned\\x07')", raising)
    unfinished = auditkit(
        "run",
        "params/demo.yaml",
        "--only",
        "08",
        "--set",
        "run_name=e",
        env=os.environ | {"MY_TOKEN": "tok_0123456789"},
    )
    assert unfinished.returncode == 2 and unfinished.stderr.startswith("the server says \\x1b[31mno\n")
    executed = (project / "outputs/e/08_benchmark/notebook.ipynb").read_text()
    assert "with (the key)" in executed and "tok_0123456789" not in executed + unfinished.stdout + unfinished.stderr
    assert "\x1b" not in unfinished.stdout + unfinished.stderr

    notebook("08_before_and_after.ipynb", SETUP, "open('params')")
    directory = auditkit("run", "params/demo.yaml", "--only", "08", "--set", "run_name=f")
    assert directory.returncode == 2 and directory.stderr.startswith("params: Is a directory.\n")

    notebook("08_before_and_after.ipynb", SETUP)
    forgot = auditkit("run", "params/demo.yaml", "--only", "08", "--set", "run_name=c")
    assert forgot.returncode == 1 and "ended without run.finish" in forgot.stderr

    notebook("08_before_and_after.ipynb", SETUP, "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    dead = auditkit("run", "params/demo.yaml", "--only", "08", "--set", "run_name=d")
    assert dead.returncode == 1 and "the kernel died" in dead.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "params/nothing.yaml"], "No parameter file params/nothing.yaml"),
        (["run", "params/demo.yaml", "--set", "grpo_step=3"], "did you mean grpo_steps?"),
        (["run", "params/demo.yaml", "--set", "group_size=1"], "group_size: 1 is too small"),
        (["run", "params/demo.yaml", "--from", "09"], "--from 09: give a notebook's number, 00 to 08."),
        (["run", "params/demo.yaml"], "Expected one notebook 00_*.ipynb"),
        (["miniature", "plant", "gaps.yaml", "--out", "x"], "No gap table gaps.yaml"),
    ],
)
def test_what_the_user_can_put_right_is_one_sentence(project, capsys, arguments, said):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.err.count("\n") == 1 and printed.out == ""


@pytest.fixture
def chain(notebook, monkeypatch):
    """Stages 04 to 07, each built on the one before; 04 and 05 are done, 06 is half done."""
    names = "04_auditor", "05_audit", "06_findings", "07_rectify"
    for before, stage in zip(("", *names), names, strict=False):
        need = f'run.need("{before}")' if before else ""
        notebook(f"{stage[:2]}_stub.ipynb", SETUP + f'\nrun = open_stage(p, "{stage}", resume=resume)\n{need}')
    notebook("08_stub.ipynb", SETUP)
    p = load_params("params/demo.yaml")
    for before, stage in zip(("", *names), names[:3], strict=False):
        run = open_stage(p, stage)
        if before:
            run.need(before)
        run.append({"key": "a"})
        if stage != "06_findings":
            run.count(target_called=1)
            run.finish()
        _unlock(run.folder)
    monkeypatch.setattr(cli, "run_notebooks", lambda *_: pytest.fail("something was run"))
    return run_folder(p)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--from", "06", "--set", "grpo_steps=20"],
            "outputs/demo/04_auditor was made with other settings: grpo_steps 90 then, 20 now. Make it and what "
            "follows anew with --from 04 --start-over, or keep both with --set run_name=OTHER.",
        ),
        (["--only", "06", "--set", "audit_probes=9", "--start-over"], "outputs/demo/05_audit was made with other"),
        (
            ["--only", "07"],
            "07_rectify needs outputs/demo/06_findings, which is not done: begin there, with --from 06.",
        ),
        (["--only", "07", "--start-over"], "07_rectify needs outputs/demo/06_findings, which is not done"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_run_or_emptied(chain, capsys, arguments, said):
    before = sorted(path for path in chain.rglob("*") if path.name != ".lock")
    assert main(["run", "params/demo.yaml", *arguments]) == 2
    assert f"auditkit: {said}" in capsys.readouterr().err
    assert sorted(path for path in chain.rglob("*") if path.name != ".lock") == before


def test_what_is_made_anew_need_not_fit(chain, monkeypatch):
    monkeypatch.setattr(cli, "run_notebooks", lambda *_: 0)
    assert main(["run", "params/demo.yaml", "--from", "04", "--set", "grpo_steps=20", "--start-over"]) == 0
    assert not list(chain.rglob("records.jsonl"))


def test_a_second_run_of_the_same_name_is_refused(project, notebook, monkeypatch, capsys):
    notebook("00_check_the_setup.ipynb", SETUP + SLOW)
    command = [sys.executable, "-m", "auditkit.cli", "run", "params/demo.yaml", "--only", "00"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        wait_for(lambda: (project / "pid").exists())
        monkeypatch.setattr(folder, "LOCK_SECONDS", 0.2)
        assert main(["run", "params/demo.yaml", "--only", "00"]) == 2
        said = capsys.readouterr().err
        assert said.startswith("auditkit: Another run is writing to outputs/demo: wait for it, or give this one a name")
    finally:
        process.terminate()
        process.communicate()


SLOW = """
import os, pathlib, time
run = open_stage(p, "00_setup")
pathlib.Path("pid").write_text(str(os.getpid()))
if not run.records():
    run.append({"key": "a"})
    time.sleep(300)
run.finish()"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_stopped_run_leaves_no_kernel_behind_and_goes_on(project, notebook, how):
    notebook("00_check_the_setup.ipynb", SETUP + SLOW)
    command = [sys.executable, "-m", "auditkit.cli", "run", "params/demo.yaml", "--only", "00"]
    default = lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)  # noqa: E731 - where the tests run under nohup
    pipes: dict = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes, text=True, preexec_fn=default)
    records = project / "outputs/demo/00_setup/records.jsonl"
    wait_for(lambda: process.poll() is not None or (records.exists() and records.read_text()))
    assert process.poll() is None, "ended before it was stopped: " + "".join(process.communicate())
    process.send_signal(how)
    _, said = process.communicate(timeout=120)
    if how != signal.SIGKILL:
        assert process.returncode == 130 and said.endswith("the same command goes on from here.\n")
    wait_for(lambda: not alive(int((project / "pid").read_text())))
    again = auditkit(*command[3:])
    assert again.returncode == 0, again.stderr


def test_a_kernel_that_is_stopped_is_said_after_a_while(project, notebook):
    notebook("00_check_the_setup.ipynb", SETUP + SLOW)
    code = "import sys; from auditkit.experiments import kernels; kernels.STOPPED_SECONDS = 1\n"
    code += "from auditkit.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "run", "params/demo.yaml", "--only", "00"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    wait_for(lambda: process.poll() is not None or (project / "pid").exists() and (project / "pid").read_text())
    kernel = int((project / "pid").read_text())
    os.kill(kernel, signal.SIGSTOP)
    try:
        said = process.stderr.readline()
        assert f"the kernel (process {kernel}) is stopped and waited for: `kill -CONT {kernel}` lets it go on" in said
    finally:
        os.kill(kernel, signal.SIGCONT)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
    assert process.returncode == 130


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.1)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:  # a zombie waits for its parent only
        return stat.read().rsplit(")", 1)[1].split()[0] != "Z"


def test_the_status_line_shows_the_last_thing_said():
    class Terminal(io.StringIO):
        def isatty(self):
            return False

    stream = Terminal()
    with StatusLine("04 train the auditor", stream) as status:
        status.LOG_SECONDS = 0
        status.write("step 1/240 suc")
        status.write("cess 20%\r")
        status.write("step 2/240 success 61%\n\n")
        status.end("")
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("04 train the auditor") and "step 1/240 success 20%" in lines[2]
    assert re.fullmatch(r"04 train the auditor +0:00  step 2/240 success 61%", lines[-1])


def test_on_a_terminal_the_status_is_one_line_that_stays(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    stream = Terminal()
    with StatusLine("04 train the auditor", stream) as status:
        status.write("step 1/240 success [20%] " + "and so on " * 20 + "\n")
        status.write("step 2/240 success [61%]\n")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    lines = [line.strip("\r") for line in shown.splitlines() if line.strip("\r ")]
    assert all(
        line.startswith("04 train the auditor") and len(line) <= 60 for line in "\r".join(lines).split("\r") if line
    )
    assert shown.endswith("\n") and lines[-1].rstrip().endswith("0:00  stopped")


def test_usage_is_one_sentence(capsys):
    for arguments in (
        ["bogus"],
        ["run"],
        ["run", "a.yaml", "--from", "05", "--only", "06"],
        ["plan", "a", "--gpu", "x"],
    ):
        assert main(arguments) == 2
        said = capsys.readouterr()
        assert said.err.startswith("auditkit: ") and said.err.count("\n") == 1 and said.out == ""
    assert main(["run", "--help"]) == 0 and "--start-over" in capsys.readouterr().out


def test_params_says_where_each_value_is_from(project, capsys):
    assert main(["params", "params/smoke.yaml", "--set", "seed=7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["key", "value", "from"]
    rows = {line.split()[0]: line.split() for line in lines[1:]}
    assert rows["seed"][1:] == ["7", "--set"]
    assert rows["run_name"][1] == "smoke" and rows["run_name"][2] != "--set"


@pytest.mark.parametrize(
    "arguments",
    [
        *(["run", "params/demo.yaml", option, odd] for option in ("--only", "--from")
          for odd in ("", "00,01", "²", "9", "1 ")),
        *(["plan", "params/demo.yaml", "--gpu", odd] for odd in ("nan", "inf", "-1", "0", "1e9")),
        *(["plan", "params/demo.yaml", "--gpus", odd] for odd in ("0", "-1", "999999999")),
        *(["params", "params/demo.yaml", "--set", f"run_name={odd}"]
          for odd in ("", "..", "a/b", "example", "n" * 300, "a\x1b[31m")),
        ["params", "params/demo.yaml", "--set", "target=http://localhost:99999999/v1#x"],
        ["rounds", "params/demo.yaml", "--most", "²"],
        ["export", "../demo", "--out", "x"],
        ["x" * 100_000],
    ],
)  # fmt: skip
def test_odd_command_lines_are_one_short_sentence(notebooks, capsys, monkeypatch, arguments):
    monkeypatch.setattr(cli, "run_notebooks", lambda *_: pytest.fail("something was run"))
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.startswith("auditkit: ") and said.err.count("\n") == 1 and said.out == ""
    assert len(said.err) < 1700 and not re.search("[\x00-\x09\x0b-\x1f]", said.err)


def test_one_notebook_is_named_by_its_number_or_its_whole_name():
    for wanted in ("05", "5", "05_audit", "05_run_the_audit.ipynb"):
        assert cli._selected(None, wanted) == ["05_audit"]
    assert cli._selected("07", None) == ["07_rectify", "08_benchmark"]


@pytest.mark.parametrize("how", ["| head -1", "| true", "> /dev/full", ">&-", "> /dev/full 2>&1", ">&- 2>&-"])
def test_a_closed_or_full_stdout_ends_no_command(project, how):
    """What the shell reads of the exit code is the command's own."""
    shell = [
        "bash",
        "-c",
        f"{sys.executable} -m auditkit.cli params params/smoke.yaml {how}; echo ${{PIPESTATUS[0]}} >&3",
    ]
    read, write = os.pipe()
    told = subprocess.run([*shell[:2], shell[2].replace(">&3", f">&{write}")], pass_fds=[write], capture_output=True)
    os.close(write)
    assert os.read(read, 100) == b"0\n" and told.stderr == b""
    os.close(read)


def test_a_run_whose_reader_is_gone_is_finished(notebooks, project):
    command = f"{sys.executable} -m auditkit.cli run params/demo.yaml --from 07 | head -1; echo ${{PIPESTATUS[0]}}"
    told = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert told.stdout.endswith("\n0\n") and told.stderr == ""
    assert (project / "outputs/demo/07_rectify/DONE").is_file()


def test_a_refused_command_keeps_its_exit_code_where_stderr_is_full(project):
    told = subprocess.run(["bash", "-c", f"{sys.executable} -m auditkit.cli params nothing.yaml 2> /dev/full"])
    assert told.returncode == 2


def test_an_interrupt_while_it_is_imported_is_told_in_a_sentence(tmp_path):
    """As early as a signal can come: the first import that is not Python's own raises what Ctrl-C does."""
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt\n")
    path = os.pathsep.join([str(tmp_path), os.path.dirname(os.path.dirname(cli.__file__))])
    told = subprocess.run(
        [sys.executable, "-m", "auditkit.cli", "params", "params/demo.yaml"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert told.stderr == "auditkit: interrupted before anything was begun.\n" and told.returncode not in (0, 1, 2)
