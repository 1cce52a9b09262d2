"""README, docs/ and CHANGELOG: short enough, no dead link or path, and every command they show works.

A command counts as shown where it stands in a fenced block without a language, or in inline code that begins with a
program's name. Each must be in one of the two lists below, so a new one fails until somebody says how it is tested:

RUN: it is really run, in a project of the test's own. What is a placeholder on the page is filled in here.
STARTED: it takes hours, a GPU, a network, a server or a person. The command line reads it, its parameter file is loaded
    and all its checks are made; only the function that would do the work is replaced. The reason stands beside it.
"""

import functools
import importlib.util
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from smoke_run import as_if_ended_so, make_project

from auditkit.cli import main
from auditkit.params import load_params, parse_setting
from auditkit.runs import jsonl
from auditkit.runs.probe import only_findings

REPOSITORY = Path(__file__).parents[1]
README = REPOSITORY / "README.md"
PAGES = [README, REPOSITORY / "CHANGELOG.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
PROGRAMS = ("auditkit", "make", "jupyter", "papermill", "accelerate", "pytest", "pip", "python")
OURS = ("auditkit/", "tests/", "params/", "notebooks/", "docs/", ".ci/", "outputs/example/")  # paths that must exist
BY_A_PERSON = "06_findings/reviews.jsonl"  # no run writes it by itself


def fences(page: Path, language: str) -> list[str]:
    """The contents of a page's fenced blocks of one language."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [block for of, block in blocks if of == language]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def inline_code(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(page))


def commands(page: Path) -> list[str]:
    """What a page shows as a command, without a trailing comment."""
    lines = [line for block in fences(page, "") for line in block.splitlines() if line.strip()]
    lines += [code for code in inline_code(page) if code.split()[0] in PROGRAMS and " " in code]
    return [re.split(r"\s+#", line)[0].strip() for line in lines]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# ---- the pages -----------------------------------------------------------------------------------------------------


def test_the_readme_is_short():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    assert len(text.split()) <= 1600


def test_pictures_are_small():
    for picture in (REPOSITORY / "docs").glob("*.png"):
        assert picture.stat().st_size <= 200_000, picture.name


def test_the_workshop_shows_the_best_picture_of_each_notebook(smoke, tmp_path):
    text = (REPOSITORY / "docs" / "workshop.md").read_text(encoding="utf-8")
    script = runpy.run_path(str(REPOSITORY / "docs" / "notebook_pictures.py"))
    best = script["BEST"]
    script["main"](smoke / "outputs" / "smoke", tmp_path)
    assert len(list(tmp_path.glob("notebook_0*.png"))) >= len(best) - 1  # a tiny run may have no irrelevant edit
    for path, id in zip(sorted((REPOSITORY / "notebooks").glob("0*.ipynb")), best, strict=True):
        assert id in path.read_text(encoding="utf-8") and id[:2] == path.name[:2]
        (alternative,) = re.findall(rf"!\[(.+?)\]\(notebook_{id[:2]}.png\)", text)
        assert len(alternative) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_named_are_there(page):
    for code in inline_code(page):
        if code.startswith(OURS) and " " not in code:
            assert (REPOSITORY / code).exists() or code == "params/mine.yaml", f"{page.name}: {code}"


def test_files_named_in_a_stage_are_written_by_a_run(smoke):
    for page in PAGES:
        for code in inline_code(page):
            if re.fullmatch(r"\d\d_\w+(/\S*)?", code) and code != BY_A_PERSON:
                assert list((smoke / "outputs" / "smoke").glob(code.rstrip("/"))), f"{page.name}: {code}"


def test_every_page_begins_by_what_it_is_for_and_is_linked():
    readme = README.read_text(encoding="utf-8")
    for page in PAGES[2:]:
        assert f"](docs/{page.name})" in readme, page.name
        assert re.match(r"# \S.*\n\n\S", page.read_text(encoding="utf-8")), f"{page.name}: a title, then what it is for"


# ---- the commands --------------------------------------------------------------------------------------------------

RUN = {  # as shown -> as run; {out} is a new folder
    "auditkit check MODEL": "auditkit check miniature:target",
    "auditkit check MODEL --as target": "auditkit check miniature:target --as target",
    "auditkit judge text embedding MODEL": "auditkit judge text",  # embedding is an extra, a model a large one
    "auditkit params params/demo.yaml": None,
    "auditkit params FILE": "auditkit params params/smoke.yaml",
    "auditkit init --target MODEL --images FOLDER": (
        "auditkit init --target miniature:target --images miniature --yes --out {out}/own.yaml"
    ),
    "auditkit init --target miniature:easy_target --images data/easy_vqa --yes": (  # another command writes these
        "auditkit init --target miniature:easy_target --images miniature --yes"
    ),
    "auditkit plan params/mine.yaml --gpu 80": None,
    "auditkit plan params/gpu_24gb.yaml --gpu 24": None,
    "auditkit plan params/gemma3_4b.yaml --gpu 80": None,
    "auditkit plan params/paligemma2_3b.yaml --gpu 80": None,
    "auditkit plan params/paligemma2_3b.yaml --gpu 80 --gpus 8": None,
    "auditkit bench --tiny": "auditkit bench --tiny --models gemma3-4b --out {out}/bench.json",
    "auditkit export demo --out DIR": "auditkit export smoke --out {out}/export",
    "auditkit miniature painters": "auditkit miniature painters --n 1",
    "auditkit miniature table": "auditkit miniature table target",
    "auditkit miniature writes": None,
    "auditkit example": None,
}
SMALLER = {  # functions that a command above calls with fewer examples than it would: here it must work, not measure
    "auditkit miniature table": ("auditkit.miniature.measure:table", 2),
    "auditkit miniature writes": ("auditkit.miniature.measure:writings", 2),
}
NOTEBOOKS = "auditkit.cli:run_notebooks"
TOO_LONG = "minutes to hours of work"
STARTED = {  # as shown -> (as run, what is replaced, why)
    "auditkit run params/demo.yaml": (None, NOTEBOOKS, "five minutes; the fixture `smoke` is the same run in small"),
    "auditkit run params/smoke.yaml": (None, NOTEBOOKS, "the fixture `smoke` has run it"),
    "auditkit run params/workshop.yaml": (
        None,
        NOTEBOOKS,
        "four minutes; the fixture `smoke` is the same run in small",
    ),
    "auditkit run params/workshop.yaml --set run_name=workshop_example": (None, NOTEBOOKS, "as above"),
    "auditkit workshop scores outputs/workshop": (
        None,
        "auditkit.workshop.game:hunts_in auditkit.workshop.game:scores_text",
        "two groups play first; tests/workshop/test_game.py has hunts that were handed in",
    ),
    "auditkit run params/mine.yaml": (None, NOTEBOOKS, "published weights, a GPU"),
    "auditkit run params/paligemma2_3b.yaml": (None, NOTEBOOKS, "published weights, a GPU"),
    "auditkit benchmarks google/paligemma2-3b-mix-448 --adapter outputs/paligemma2_3b/07_rectify/adapter": (
        "auditkit benchmarks miniature:target --adapter outputs/smoke/07_rectify/adapter",
        "auditkit.repair.lmms_eval:compare_benchmarks auditkit.repair.lmms_eval:table_text",
        "published weights",
    ),
    "auditkit run params/X.yaml": ("auditkit run params/gemma3_4b.yaml", NOTEBOOKS, "published weights, a GPU"),
    "auditkit run params/easy_target.yaml": ("auditkit run params/easy_vqa.yaml", NOTEBOOKS, "as the next"),
    "auditkit run params/easy_vqa.yaml": (None, NOTEBOOKS, "six minutes; tests/miniature/test_easy.py has its parts"),
    "auditkit run params/demo.yaml --pilot 50": (
        None,
        "auditkit.cli:_pilot",
        "four minutes; tests/experiments/test_pilot.py does it in small",
    ),
    "auditkit run params/demo.yaml --from 05 --start-over --set route=labeled": (
        "auditkit run params/smoke.yaml --from 05 --start-over --set route=labeled",
        NOTEBOOKS,
        TOO_LONG,
    ),
    "auditkit run params/demo.yaml --from 07 --start-over": (
        "auditkit run params/smoke.yaml --from 07 --start-over",
        NOTEBOOKS,
        "tests/experiments/test_notebooks.py starts stages of the smoke run over",
    ),
    "auditkit run params/demo.yaml --set run_name=collapse --set 'ways=[question]' --set grpo_steps=100 "
    "--set replay_weight=0 --set grpo_learning_rate=5e-3 --only 04": (None, NOTEBOOKS, TOO_LONG),
    "auditkit run params/demo.yaml --jobs 2": (
        "auditkit run params/smoke.yaml --jobs 2",
        NOTEBOOKS,
        "tests/experiments/test_schedule.py does the smoke run so",
    ),
    "auditkit run params/study_ways.yaml --jobs 2": (None, "auditkit.experiments.study:run_study", TOO_LONG),
    "auditkit rounds params/demo.yaml --most 4": (None, "auditkit.experiments.rounds:run_rounds", TOO_LONG),
    "auditkit rounds params/demo.yaml --most 3": (None, "auditkit.experiments.rounds:run_rounds", TOO_LONG),
    'auditkit rounds params/demo.yaml --set "ways=[question]" --set grpo_steps=20 --set audit_probes=600 '
    "--set benchmark_examples=100 --set rectify_steps=150 --set rectify_original=3000": (
        None,
        "auditkit.experiments.rounds:run_rounds",
        TOO_LONG,
    ),
    "auditkit check google/paligemma2-3b-mix-448": (
        None,
        "auditkit.planning.check:check_model",
        "published weights; `auditkit check MODEL` is run on another model",
    ),
    "auditkit bench --compare": (
        None,
        "auditkit.planning.compare:compare auditkit.planning.compare:compare_table",
        "as the next",
    ),
    "auditkit bench --compare --run outputs/demo": (
        "auditkit bench --compare --run outputs/smoke",
        "auditkit.planning.compare:compare auditkit.planning.compare:compare_table",
        "ten minutes; tests/planning/test_compare.py does it in small",
    ),
    "auditkit bench": (
        None,
        "auditkit.planning.bench:run_bench auditkit.planning.bench:write_bench auditkit.planning.bench:bench_table",
        "models of real size on a GPU; `--tiny` is run",
    ),
    "auditkit export demo --out DIR --push OWNER/NAME": (
        "auditkit export smoke --out {out}/export --push OWNER/NAME",
        "auditkit.report.export:push_export",
        "it uploads to the hub; tests/report/test_export.py has a stand-in",
    ),
    "auditkit benchmarks MODEL --adapter DIR": (
        "auditkit benchmarks miniature:target --adapter outputs/smoke/07_rectify/adapter",
        "auditkit.repair.lmms_eval:compare_benchmarks auditkit.repair.lmms_eval:table_text",
        "the benchmarks lie on the hub; tests/repair/test_lmms_eval.py has rows of their form",
    ),
    "auditkit benchmarks MODEL --adapter DIR --limit 500": (
        "auditkit benchmarks miniature:target --adapter outputs/smoke/07_rectify/adapter --limit 500",
        "auditkit.repair.lmms_eval:compare_benchmarks auditkit.repair.lmms_eval:table_text",
        "as above",
    ),
    "auditkit miniature build auditor --out DIR": (
        "auditkit miniature build auditor --out {out}",
        "auditkit.miniature.build:build_one",
        "more than an hour",
    ),
    "auditkit miniature build longtail --out DIR": (
        "auditkit miniature build longtail --out {out}",
        "auditkit.miniature.build:plant",
        "many minutes; tests/miniature/test_miniature.py plants in two steps",
    ),
    "auditkit miniature build editor": (None, "auditkit.miniature.draw:build_one", "three quarters of an hour"),
    "auditkit miniature plant my_gaps.yaml --out my_target": (
        None,
        "auditkit.miniature.build:plant",
        "five minutes; tests/miniature/test_miniature.py plants in two steps",
    ),
    "auditkit miniature easy --out data/easy_vqa": (
        None,
        "auditkit.miniature.easy:export",
        "it needs the extra `easy`; tests/miniature/test_easy.py runs it where that is installed",
    ),
    "auditkit miniature table easy_target easy_peer": (
        None,
        "auditkit.miniature.easy:table",
        "likewise, and 40 s of answers",
    ),
}
RETURNED = {"run_notebooks": 0} | dict.fromkeys(("build_one", "plant", "export"), Path("made"))  # else a list
ELSEWHERE = {  # other programs: a test of its own below
    "make demo",
    "make test",
    "make campaign",  # tests/campaigns and tests/experiments/test_kills.py do each of the four in small
    "jupyter lab notebooks/",
    "jupyter lab notebooks/workshop/",  # as the one above
    "jupyter nbconvert --to slides notebooks/workshop/slides.ipynb",
    "papermill notebooks/04_train_the_auditor.ipynb out.ipynb -f params/demo.yaml",
    "python -m tests.campaigns.kills --n 100 --seed 0",  # tests/experiments/test_kills.py does three
    "python -m tests.campaigns.million outputs/demo",  # tests/campaigns/test_million.py does smaller sizes
    "accelerate launch -m auditkit.auditor.grpo",
    "accelerate launch --multi_gpu --num_processes 8 -m auditkit.auditor.grpo params/X.yaml --set grpo_micro_batch=4",
}
HELP = "auditkit COMMAND --help"


def is_mention(command: str) -> bool:
    """A command named without its arguments, as in "`auditkit plan` then also estimates time"."""
    return re.fullmatch(r"auditkit [a-z]+", command) is not None


def is_of_a_tool(command: str) -> bool:
    """What sets the project up or tests it; its paths are checked below."""
    return command.split()[0].removeprefix(".venv/bin/") in ("pytest", "pip", "python")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_shown_is_known_here(page):
    known = RUN.keys() | STARTED.keys() | ELSEWHERE | {HELP}
    unknown = [c for c in commands(page) if c not in known and not is_mention(c) and not is_of_a_tool(c)]
    assert not unknown, f"{page.name} shows what no test runs: {unknown}"


def test_no_command_is_kept_here_that_no_page_shows():
    shown = {command for page in PAGES for command in commands(page)}
    assert (RUN.keys() | STARTED.keys() | ELSEWHERE | {HELP}) <= shown


@pytest.fixture
def place(smoke, tmp_path, monkeypatch) -> Path:
    """A project with the finished smoke run, the README's own parameter file and a gap table; the working folder."""
    project = make_project(tmp_path / "project")
    shutil.copytree(smoke / "outputs" / "smoke", project / "outputs" / "smoke")
    (project / "params" / "mine.yaml").write_text(fences(README, "yaml")[0])
    (project / "data" / "photos").mkdir(parents=True)
    for i in range(60):
        Image.new("RGB", (64, 64), (4 * i, 0, 0)).save(project / "data" / "photos" / f"{i}.png")
    shutil.copytree(project / "data" / "photos", project / "data" / "easy_vqa")
    shutil.copy(REPOSITORY / "auditkit" / "miniature" / "target.yaml", project / "my_gaps.yaml")
    monkeypatch.chdir(project)
    return project


def replace(monkeypatch, functions: str, by) -> None:
    """Put `by(function)` where each of "module:name module:name" is."""
    for function in functions.split():
        module, name = function.split(":")
        owner = importlib.import_module(module)
        monkeypatch.setattr(owner, name, by(getattr(owner, name)))


def given(shown: str, filled: str | None, out: Path) -> list[str]:
    """The words after `auditkit` of a command, its placeholders filled in."""
    program, *words = shlex.split((filled or shown).replace("{out}", str(out)))
    assert program == "auditkit"
    return words


@pytest.mark.parametrize("shown", RUN)
def test_a_command_runs(shown, place, tmp_path, monkeypatch, capsys):
    if shown in SMALLER:
        function, n = SMALLER[shown]
        replace(monkeypatch, function, lambda real: functools.partial(real, n=n))
    (tmp_path / "out").mkdir()
    assert main(given(shown, RUN[shown], tmp_path / "out")) == 0, capsys.readouterr()
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("shown", STARTED)
def test_a_long_command_is_started(shown, place, tmp_path, monkeypatch, capsys):
    filled, replaced, _ = STARTED[shown]
    called = []

    def stand_in(real):
        def note(*arguments, **named):
            called.append(real.__name__)
            return RETURNED.get(real.__name__, [])

        return note

    replace(monkeypatch, replaced, stand_in)
    (tmp_path / "out").mkdir()
    assert main(given(shown, filled, tmp_path / "out")) == 0, capsys.readouterr().err
    assert called


def test_export_takes_a_question_and_a_further_candidate_of_one_number(place, tmp_path, capsys):
    """As the demo has them: keys that differ in a plus sign alone, and each finding has a picture of its own."""
    path = place / "outputs" / "smoke" / "05_audit" / "scored.jsonl"
    rows = jsonl.read(path)
    one, other = [row for row in rows if row["outcome"] == "finding" and "+" not in row["key"]][:2]
    other["key"] = one["key"].replace("/", "/+", 1)
    jsonl.replace(path, rows)
    as_if_ended_so(path.parent)
    assert main(["export", "smoke", "--out", str(tmp_path / "export")]) == 0, capsys.readouterr().err
    images = list((tmp_path / "export" / "findings" / "images").iterdir())
    assert len(images) == len(only_findings(rows))


def helped(*words: str) -> int:
    """The exit code of a command's --help."""
    try:
        return main([*words, "--help"])
    except SystemExit as ended:
        return ended.code or 0


def test_commands_that_are_only_named_are_there(capsys):
    shown = {command for page in PAGES for command in commands(page) if is_mention(command)}
    for command in sorted(shown):
        assert helped(command.split()[1]) == 0, command
        assert command.split()[1] in capsys.readouterr().out


def test_files_that_other_tools_are_given_are_there():
    for page in PAGES:
        for command in filter(is_of_a_tool, commands(page)):
            for word in command.split()[1:]:
                made = word.startswith("outputs/")  # by a run
                assert made or "/" not in word or (REPOSITORY / word).exists(), f"{page.name}: {command}"


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(("target", "runs"), [("demo", "auditkit run params/demo.yaml"), ("test", "-m pytest")])
def test_make_does_what_the_readme_says(target, runs):
    said = subprocess.run(["make", "-n", target], cwd=REPOSITORY, capture_output=True, text=True)
    assert said.returncode == 0 and runs in said.stdout, said.stderr


def test_jupyter_opens_the_notebooks():
    from jupyterlab.labapp import LabApp  # a server that would not end: only its command line is read

    assert "jupyter lab notebooks/" in commands(README)
    app = LabApp()
    app.parse_command_line(["notebooks/"])
    assert app.extra_args == ["notebooks/"] and list((REPOSITORY / "notebooks").glob("*.ipynb"))


def test_slides_are_made_of_a_notebook():
    from nbconvert import SlidesExporter

    page, _ = SlidesExporter().from_filename(str(REPOSITORY / "notebooks/workshop/slides.ipynb"))
    assert page.count("<section") > 20 and "What does your model get wrong?" in page


def test_papermill_takes_the_notebook_and_the_file(place):
    (shown,) = [command for command in ELSEWHERE if command.startswith("papermill")]
    command = [sys.executable, "-m", *shlex.split(shown), "--prepare-only"]  # the cells take minutes
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0 and (place / "out.ipynb").is_file(), done.stderr


def test_accelerate_takes_the_trainer(place):
    from accelerate.commands.launch import launch_command_parser  # eight GPUs: its command line is read

    (shown,) = [command for command in ELSEWHERE if "--multi_gpu" in command]
    options = launch_command_parser().parse_args(shlex.split(shown.replace("X.yaml", "demo.yaml"))[2:])
    assert options.module and importlib.util.find_spec(options.training_script)
    file, *settings = options.training_script_args
    assert settings[::2] == ["--set"] * (len(settings) // 2)
    load_params(file, **dict(parse_setting(text) for text in settings[1::2]))
