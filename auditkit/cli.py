"""The few commands a person types.

    auditkit init --target MODEL --images FOLDER    a parameter file for a model and pictures of one's own
    auditkit run params/demo.yaml                   all notebooks in order, goes on where it was left
    auditkit run params/demo.yaml --set seed=1 --set run_name=demo_seed1
    auditkit run params/demo.yaml --from 05 --start-over
    auditkit run params/demo.yaml --jobs 2          stages that do not build on one another beside each other
    auditkit run params/demo.yaml --pilot 50        some pictures through every stage, and what the whole will take
    auditkit run params/study_ways.yaml --jobs 2    a study: several audits, and one table of what came of each
    auditkit rounds params/demo.yaml --most 4       audit, repair, audit what was repaired, until a round gains nothing
    auditkit params params/demo.yaml                every value of a parameter file, and where it comes from
    auditkit check google/gemma-3-4b-it             does a model do what an audit takes for granted?
    auditkit plan params/paligemma2_3b.yaml --gpu 80   what it takes, before any download
    auditkit bench                                  how fast this GPU is, with no weights needed
    auditkit export demo --out DIR                  the findings as a data set, the adapter as a model, with their cards
    auditkit judge                                  how well answers are compared
    auditkit miniature table                        what each shipped model can do, measured
    auditkit miniature writes                       how much of what the auditor writes is true, by way
    auditkit benchmarks google/gemma-3-4b-it --adapter ADAPTER --limit 500
    auditkit example                                a finished run to look at, with all notebooks
    auditkit workshop scores outputs/workshop       plant and hunt: all groups side by side

Exit codes: 0 done, 1 a notebook or a check failed, 2 something the user can put right (one sentence says what),
130 interrupted.
Everything heavy is imported where it is used, so that `--help` answers at once.
"""

import sys
from types import TracebackType


def _interrupted_early(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What is said of Ctrl-C while the imports below are made, which take a second or more; of all else as ever."""
    if issubclass(kind, KeyboardInterrupt):
        print("auditkit: interrupted before anything was begun.", file=sys.stderr)
    else:
        _hook(kind, error, trace)


_hook, sys.excepthook = sys.excepthook, _interrupted_early

import contextlib
import functools
import re
import shlex
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from auditkit.errors import AuditError
from auditkit.experiments.papermill import refuse_misfits, run_notebooks, stage_notebooks
from auditkit.experiments.schedule import MOST
from auditkit.param_rules import names_a_folder, refuse_missing_packages
from auditkit.params import Params, load_params, parse_setting, project_root
from auditkit.runs.disk import DiskError, disk_sentence
from auditkit.runs.folder import STAGES, claimed, is_done, run_folder, shown_path, start_over, why_not_resume
from auditkit.text import SteadyStream, VisibleStream, clock, counted, for_a_person, shortened, visible

GO_ON = ("run", "rounds", "benchmarks")  # commands that keep what is done


@contextlib.contextmanager
def steady_output() -> Iterator[None]:
    """While it lasts, a closed, broken or full stdout or stderr ends no command: its exit code is that of its work."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = steady = SteadyStream(sys.stdout), SteadyStream(sys.stderr)
    try:
        yield
    finally:
        for stream in steady:
            stream.flush()
        sys.stdout, sys.stderr = before


@steady_output()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    What others wrote, in names, messages and records, commands no terminal: all that is printed goes through
    `text.for_a_person`.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:
        sys.excepthook = _visible_traceback
    try:
        with contextlib.redirect_stdout(VisibleStream(sys.stdout)):
            code = app(words, prog_name="auditkit", standalone_mode=False) or 0
    except typer.TyperException as error:  # an option that is not there, or a value that does not fit it
        said = one_line(error.format_message()).rstrip(".")
        print(f"auditkit: {said}; --help behind a command shows how.", file=sys.stderr)
        return error.exit_code
    except typer.Abort:  # a question to which nobody can answer
        print("auditkit: nobody answered; give what was asked as an option (--help behind a command).", file=sys.stderr)
        return 2
    except AuditError as error:
        if "--debug" in words:
            raise
        print(f"auditkit: {one_line(str(error))}", file=sys.stderr)
        return 2
    except OSError as error:
        if "--debug" in words:
            raise
        if sentence := str(error) if isinstance(error, DiskError) else disk_sentence(str(error)):
            print(f"auditkit: {sentence}", file=sys.stderr)
            return 1
        if error.filename is None:
            raise
        print(f"auditkit: {one_line(f'{error.filename}: {error.strerror}')}.", file=sys.stderr)
        return 2
    if code == 130:  # what typer makes of a KeyboardInterrupt
        then = "goes on from here" if words[:1] and words[0] in GO_ON else "begins anew"
        print(f"auditkit: interrupted; the same command {then}.", file=sys.stderr)
    return code


def one_line(said: str, most: int = 1500) -> str:
    """What was said, on one line and no longer than a person reads, whatever stands in a name that it holds."""
    said = visible(for_a_person(said), keep="")
    return said if len(said) <= most else f"{said[:most]}..."


def _visible_traceback(*error) -> None:
    print(for_a_person("".join(traceback.format_exception(*error))), file=sys.stderr, end="")


plain: dict = {
    "rich_markup_mode": None,
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
app = typer.Typer(**plain, help="Find, name and repair what a vision-language model gets wrong.")
miniature = typer.Typer(**plain, help="The shipped tiny models: build, measure, plant gaps of your own.")
app.add_typer(miniature, name="miniature", short_help="the shipped tiny models: build, measure, plant gaps")
workshop = typer.Typer(**plain, help="The game of a workshop (docs/workshop.md).")
app.add_typer(workshop, name="workshop", short_help="the scores of a workshop's game")


def _above_0(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", str(text)) or int(text) == 0:
        raise typer.BadParameter(f"{shortened(str(text))} is not a whole number above 0")
    return int(text)


option = functools.partial(typer.Option, show_default=False)
number = functools.partial(option, metavar="N", parser=_above_0)
ParamsFile = Annotated[
    str, typer.Argument(metavar="PARAMS.yaml", help="the parameter file, such as params/demo.yaml", show_default=False)
]
Settings = Annotated[
    list[str] | None, option("--set", metavar="KEY=VALUE", help="replace one value of the file; may be repeated")
]
Debug = Annotated[bool, option("--debug", help="show tracebacks")]  # read by `main`


def _names(help: str, metavar: str = "NAME"):
    return typer.Argument(metavar=metavar, help=help, show_default=False)


def _given(settings: list[str] | None) -> dict:
    return dict(parse_setting(text) for text in settings or [])


@app.command(short_help="run the notebooks of an audit in order")
def run(
    params: ParamsFile,
    settings: Settings = None,
    first: Annotated[str | None, option("--from", metavar="NN", help="begin with this notebook, 00 to 08")] = None,
    only: Annotated[str | None, option("--only", metavar="NN", help="run this notebook alone")] = None,
    anew: Annotated[bool, option("--start-over", help="empty the folders of these stages first")] = False,
    pilot: Annotated[
        int | None, number("--pilot", help="only so many pictures through every stage, to say what the whole takes")
    ] = None,
    jobs: Annotated[int, number("--jobs", help="so many at once: stages of a run, or a study's runs; default: 1")] = 1,
    debug: Annotated[bool, option("--debug", help="show tracebacks, and what the kernels write to stderr")] = False,
) -> int:
    """Run the notebooks of an audit in order.

    Finished stages are skipped: run again to go on after an interruption.
    """
    from auditkit.experiments.study import is_study
    from auditkit.planning.start import refuse_missing

    if first is not None and only is not None:
        raise typer.BadParameter("not allowed with --from", param_hint="--only")
    if pilot and (first or only):
        raise typer.BadParameter("goes through all stages: leave out --from and --only", param_hint="--pilot")
    if pilot and jobs > 1:
        raise typer.BadParameter("measures stages one after another: leave out --jobs", param_hint="--pilot")
    if is_study(params):
        if settings or first is not None or only is not None or anew or pilot:
            raise AuditError(f"{params} is a study: it takes --jobs alone; what its runs change stands in it.")
        return _study(params, jobs)
    if jobs > MOST:
        raise AuditError(f"--jobs {jobs}: of a run's stages at most {MOST} can go at once.")
    p = load_params(params, **_given(settings))
    if pilot:
        return _pilot(p, pilot, settings or [], anew, debug)
    stages = _selected(first, only)
    go_on = ["auditkit", "run", params, *(word for text in settings or [] for word in ("--set", text))]
    go_on += ["--only", only] if only else []
    go_on += ["--jobs", str(jobs)] if jobs > 1 else []
    notebooks = stage_notebooks(stages)
    if anew or not all(is_done(p, stage) for stage in stages):
        refuse_missing(p)
    with claimed(p):
        refuse_misfits(p, stages, anew)
        if anew:
            start_over(p, stages)
        return run_notebooks(p, notebooks, shlex.join(go_on), debug, {}, jobs)


def _pilot(p: Params, pictures: int, settings: Sequence[str], anew: bool, debug: bool) -> int:
    """A run of its own with every count cut, and what it says of the whole."""
    from auditkit.experiments import pilot

    small, stages = pilot.pilot_params(p, pictures), list(STAGES)
    go_on = ["auditkit", "run", p.params_file, "--pilot", str(pictures)]
    go_on += [word for text in settings for word in ("--set", text)]
    with claimed(small):
        if not anew and (why := next(filter(None, (why_not_resume(small, stage) for stage in stages)), "")):
            raise AuditError(f"{why} Make the pilot anew with --start-over.")
        refuse_misfits(small, stages, anew)
        if anew:
            start_over(small, stages)
        beside = {"03_counterfactual": {"wished": pilot.wished_pictures(pictures)}}
        failed = run_notebooks(small, stage_notebooks(stages), shlex.join(go_on), debug, beside)
        if not failed:
            print(
                f"\n{pilot.report_pilot(p, small, pictures)}\n{shown_path(run_folder(small) / 'pilot.md')}", flush=True
            )
    return failed


def _study(params: str, jobs: int) -> int:
    from auditkit.experiments.study import load_study, run_study

    began, study = time.monotonic(), load_study(params)
    if jobs > len(study.seeds):
        seeds = counted(len(study.seeds), "seed")
        raise AuditError(f"--jobs {jobs}: the runs of one seed go one after another, and {params} has {seeds}.")
    page = run_study(study, jobs, lambda line: print(line, flush=True))
    print(f"done in {clock(time.monotonic() - began)}: {page}", flush=True)
    return 0


def _selected(first: str | None, only: str | None) -> list[str]:
    stages = list(STAGES)
    wanted = first if only is None else only
    if wanted is None:
        return stages
    number = re.fullmatch(r"([0-9]{1,2})(_[\w.]+)?", wanted)  # a notebook's or stage's whole name is taken too
    if not number or int(number[1]) >= len(stages):
        option, shown = "from" if only is None else "only", wanted[:40] or '""'
        raise AuditError(f"--{option} {shown}: give a notebook's number, 00 to {len(stages) - 1:02}.")
    return stages[int(number[1]) :] if only is None else [stages[int(number[1])]]


@app.command(short_help="audit and repair, round after round")
def rounds(
    params: ParamsFile,
    settings: Settings = None,
    most: Annotated[int, number("--most", help="rounds at most; default: 4")] = 4,
    debug: Debug = False,
) -> None:
    """Audit and repair round after round: each audits what the one before has repaired, with its trained auditor.

    It ends when a round gains nothing. Finished rounds are kept: run again to go on after an interruption.
    """
    from auditkit.experiments.rounds import run_command, run_rounds

    began = time.monotonic()
    written = run_rounds(params, settings or [], most, run_command, lambda line: print(line, flush=True))
    print(f"done in {clock(time.monotonic() - began)}: {written}", flush=True)


@app.command(short_help="every value of a parameter file, and where it comes from")
def params(params: ParamsFile, settings: Settings = None, debug: Debug = False) -> None:
    """Print every value that a run would have, and where each comes from: the file, --set, or the default."""
    from auditkit.params import resolved
    from auditkit.text import text_table, yaml_text

    rows = [(row.key, yaml_text(row.value), row.source) for row in resolved(params, **_given(settings))]
    print(text_table(["key", "value", "from"], rows, "lll"))


@app.command(short_help="does a model do what an audit takes for granted?")
def check(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="miniature:NAME, a folder, a hub id, or any other model's text")
    ],
    device: Annotated[str, option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1, mps")] = "auto",
    dtype: Annotated[str, option("--dtype", metavar="DTYPE", help="auto, float32, bfloat16, float16")] = "auto",
    image: Annotated[
        str | None, option("--image", metavar="FILE", help="a picture; default: one of the miniature's")
    ] = None,
    question: Annotated[str | None, option("--question", metavar="TEXT", help="what to ask about it")] = None,
    role: Annotated[
        str | None,
        option("--as", metavar="ROLE", help="target, reference or auditor: only what this role does; default: all"),
    ] = None,
    debug: Debug = False,
) -> int:
    """Put one question on one image to a model and say what was found: its class, number format, device, memory and
    speed, the text it was given, whether batches and images work with it, and what a run does with it, in small: one
    GRPO step, one repair step, saved, loaded, the same answers.
    """
    from auditkit.planning.check import QUESTION, ROLES, check_model

    if role and role not in ROLES:
        raise typer.BadParameter(f"{shortened(role)[1:-1]} is none of {', '.join(ROLES)}", param_hint="--as")
    failed = 0
    for what, found, right in check_model(model, device, dtype, image, question or QUESTION, role or ""):
        print(f"{what:<14} {'' if right else 'NO: '}{found}", flush=True)
        failed += not right
    return 1 if failed else 0


@app.command(short_help="a parameter file for your own model and pictures")
def init(
    target: Annotated[str | None, option("--target", metavar="MODEL", help="the model to audit")] = None,
    images: Annotated[str | None, option("--images", metavar="FOLDER", help="its pictures: a folder, hub:ID")] = None,
    references: Annotated[
        list[str] | None,
        option("--references", metavar="MODEL", help="a model it is held against; repeat it; default: two that fit"),
    ] = None,
    gpu: Annotated[
        float | None, option("--gpu", metavar="GB", help="memory of the GPU to plan for; default: that found here")
    ] = None,
    out: Annotated[Path | None, option("--out", metavar="FILE", help="default: params/ and the target's name")] = None,
    yes: Annotated[bool, option("--yes", help="ask nothing")] = False,
    force: Annotated[bool, option("--force", help="write over a file that is there")] = False,
    debug: Debug = False,
) -> None:
    """Look at a model, at pictures and at this machine, and write a parameter file for an audit: models that fit, sizes
    of batches, how much to do. Ends by saying what the run takes. Downloads nothing unasked.
    """
    from auditkit import specs
    from auditkit.planning import init as proposals
    from auditkit.planning.plan import plan_text, this_machine
    from auditkit.text import slug

    if yes and not (target and images):
        raise AuditError("init --yes asks nothing, so name --target and --images.")
    target = target or typer.prompt("The model to audit (a hub id, a folder)")
    images = images or typer.prompt("Its pictures (a folder, hub:ID)")
    name = slug(specs.parse(target).name)
    file = out or proposals.output_file(name)
    if file.exists() and not force:
        raise AuditError(f"{shown_path(file.resolve())} is there already; --out names another, --force writes over it.")
    here = this_machine(gpu, None)
    found = proposals.propose(
        target,
        proposals.kept_path(images),
        references or [],
        here,
        slug(file.stem),
        lambda sentence: print(sentence, flush=True),
        lambda question: not yes and typer.confirm(question, default=False),
    )
    shown = shown_path(file.resolve())
    found.params = replace(found.params, params_file=shown)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(proposals.file_text(found, here), encoding="utf-8")
    print(f"\n{plan_text(load_params(file), here)}\n\n{shown} is written. What it will take, by some of the pictures:")
    print(f"auditkit run {shlex.quote(shown)} --pilot 50\nThen: auditkit run {shlex.quote(shown)}")


@app.command(short_help="what a run takes: memory, calls, downloads, time")
def plan(
    params: ParamsFile,
    settings: Settings = None,
    gpu: Annotated[
        float | None, option("--gpu", metavar="GB", help="memory of a GPU to plan for; default: that found here")
    ] = None,
    gpus: Annotated[
        int | None, option("--gpus", metavar="N", help="how many of them; default: all that are found, or one")
    ] = None,
    debug: Debug = False,
) -> None:
    """Say what a parameter file takes before anything is downloaded: memory, calls, downloads, and, after auditkit
    bench, time. A run that cannot fit is refused with the keys to change.
    """
    from auditkit.planning.plan import plan_text, refuse_misfit, this_machine
    from auditkit.planning.start import refuse_missing_models

    p = load_params(params, **_given(settings))
    here = this_machine(gpu, gpus, p.device)
    refuse_missing_models(p)
    print(plan_text(p, here), flush=True)
    refuse_misfit(p, here)
    if gpu is None:  # a GPU that is named may be another machine's, with other packages
        refuse_missing_packages(p)


@app.command(short_help="how fast this GPU is, and whether the plan is true")
def bench(
    models: Annotated[
        str | None,
        option(
            "--models",
            metavar="A,B",
            help="whose answers are timed; a folder or miniature:NAME is loaded; default: paligemma2-3b,gemma3-4b; "
            "with --compare three of the miniature's",
        ),
    ] = None,
    tiny: Annotated[bool, option("--tiny", help="the same families at toy size, to see it work on a CPU")] = False,
    beside: Annotated[
        bool, option("--compare", help="the kit beside a pipeline's loop, lmms-eval's runner and stock TRL")
    ] = False,
    repeats: Annotated[int | None, number("--repeats", help="of each comparison, in turns; default: 5")] = None,
    run: Annotated[
        Path | None, option("--run", metavar="DIR", help="with --compare: what a finding of this finished run has cost")
    ] = None,
    out: Annotated[
        Path | None,
        option("--out", metavar="FILE", help="the result; default: outputs/bench.json, with --compare none"),
    ] = None,
    debug: Debug = False,
) -> None:
    """Time answers and whole GRPO steps of the paper's models with random weights, and hold the measured memory beside
    the planned. auditkit plan reads the rates. With --compare, time the kit beside what one would write without it.
    """
    from auditkit.planning.bench import bench_table, run_bench, write_bench

    names = [name.strip() for name in (models or "").split(",") if name.strip()]
    if models is not None and not names:
        raise AuditError("--models names no model; leave it out, or name one, as in --models miniature:gemma3.")
    if beside:
        from auditkit.planning.compare import MODELS, compare, compare_table

        found = compare(names or MODELS, repeats or 5, run=run, tiny=tiny)
        if out:
            write_bench(found, out)
        where = f"\n{shown_path(out.resolve())}" if out else ""
        print(f"{compare_table(found)}{where}")
        return
    if repeats or run:
        raise AuditError("--repeats and --run go with bench --compare.")
    found = run_bench(names or ["paligemma2-3b", "gemma3-4b"], tiny)
    path = out or project_root() / "outputs" / "bench.json"
    write_bench(found, path)
    print(f"{bench_table(found)}\n{shown_path(path.resolve())}")


@app.command(short_help="the paper's benchmarks, before and after")
def benchmarks(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="what a parameter file names: a folder, a hub id, miniature:NAME")
    ],
    adapter: Annotated[
        Path | None, option("--adapter", metavar="DIR", help="the repair: a LoRA adapter of this model")
    ] = None,
    tasks: Annotated[
        str | None,
        option("--tasks", metavar="NAME,...", help="such as vqav2,gqa, or any of lmms-eval's; default: the 16"),
    ] = None,
    limit: Annotated[int | None, number("--limit", help="the first N questions of each")] = None,
    include: Annotated[
        Path | None, option("--include", metavar="DIR", help="further tasks in lmms-eval's YAML format")
    ] = None,
    out: Annotated[
        Path | None, option("--out", metavar="DIR", help="results; default: outputs/benchmarks/MODEL")
    ] = None,
    debug: Debug = False,
) -> None:
    """Put a model, and the same with an adapter, through the paper's benchmarks by lmms-eval (extra benchmarks) and
    print the scores beside the paper's. Finished tasks are kept: run again to go on after an interruption.
    """
    from auditkit import specs
    from auditkit.repair.lmms_eval import compare_benchmarks, table_text
    from auditkit.repair.paper import BENCHMARKS

    names = tasks.split(",") if tasks else list(BENCHMARKS)
    out = out or project_root() / "outputs" / "benchmarks" / specs.parse(model).name
    rows = compare_benchmarks(model, adapter, names, out, limit, include)
    print(table_text(rows), flush=True)
    if failed := sum("trouble" in row for row in rows):
        raise AuditError(
            f"{failed} of {len(rows)} benchmarks could not be done, as said below the table; the others are kept, and "
            "the same command goes on."
        )


@app.command(short_help="the findings as a data set, the adapter as a model")
def export(
    run_name: Annotated[str, typer.Argument(metavar="RUN_NAME", help="a folder of outputs/, with notebook 06 done")],
    out: Annotated[Path, option("--out", metavar="DIR", help="a new folder")],
    push: Annotated[
        str | None,
        option("--push", metavar="OWNER/NAME", help="also to this private data set, and to OWNER/NAME-adapter"),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write a run's findings as a Hugging Face image folder and its adapter as a model, each with a card.

    Nothing leaves this machine without --push.
    """
    from auditkit.report.export import export_run, push_export, refuse_repository_name

    if push:
        refuse_repository_name(push)
    if not names_a_folder(run_name):
        raise AuditError(f"{shortened(run_name)} is no run's name; give that of a folder of outputs/.")
    told = export_run(project_root() / "outputs" / run_name, out, push or "")
    print(f"{counted(told['findings'], 'finding')}: {out / 'findings'}")
    if told["rejected"] or told["relabelled"]:
        print(
            f"  {told['rejected']} that a person rejected are left out, {told['relabelled']} have the person's answer"
        )
    print(f"the adapter: {out / 'adapter'}" if told["adapter"] else "no adapter: notebook 07 made none")
    if push:
        print("\n".join(f"pushed, private: {address}" for address in push_export(out, push)))


@app.command(short_help="how well answers are compared, on pairs labelled by hand")
def judge(
    kinds: Annotated[
        list[str] | None, _names("text, embedding or a model; none: text and embedding", metavar="SAME")
    ] = None,
    debug: Debug = False,
) -> None:
    """Print how well answers are compared, measured on pairs labelled by hand."""
    from auditkit.consensus.agreement import agreement_table

    print(agreement_table(kinds or ["text", "embedding"]))


@app.command(short_help="a finished run to look at, with all notebooks")
def example(debug: Debug = False) -> None:
    """Unpack the finished run that comes with the package, so that its notebooks and report can be read at once."""
    from auditkit.workshop.example_run import unpack_example

    folder = unpack_example(project_root() / "outputs")
    print(f"{shown_path(folder / 'report.html')}\n{shown_path(folder)}/*/notebook.ipynb: the notebooks as they ran")


@workshop.command("scores", short_help="found, missed and false, all groups side by side")
def _scores(
    place: Annotated[Path, typer.Argument(metavar="DIR", help="holds the groups' folders", show_default=False)],
    debug: Debug = False,
) -> None:
    """Print what every group has found, missed and named wrongly, the best first."""
    from auditkit.workshop import game

    print(game.scores_text(game.hunts_in(place)))


@miniature.command("build", short_help="train models again from their seeds")
def _build(
    names: Annotated[list[str] | None, _names("which models; none: all")] = None,
    out: Annotated[
        Path | None, option("--out", metavar="DIR", help="where they go; default: outputs/miniature")
    ] = None,
    steps: Annotated[int | None, number("--steps", help="training steps; default: each model's own")] = None,
    debug: Debug = False,
) -> None:
    """Train models again from their seeds."""
    from auditkit.miniature import build, draw, easy

    known = [*build.RECIPES, *build.PLANTED, *easy.RECIPES, *draw.RECIPES]
    names = names or known
    for name in names:  # all of them before the first half hour is spent
        if name not in known:
            raise AuditError(f"No model {name} to build: there are {', '.join(known)}.")
    out = out or project_root() / "outputs" / "miniature"
    how: dict = {"steps": steps} if steps else {}
    for name in names:
        if name in build.PLANTED:
            start: dict = {"start": str(out / "clean")} if (out / "clean").is_dir() else {}
            folder = build.plant(build.HERE / f"{name}.yaml", out / name, **start, **how)
        elif name in easy.RECIPES:
            folder = easy.build_one(name, out, **how)
        elif name in draw.RECIPES:
            folder = draw.build_one(name, out, **how)
        else:
            folder = build.build_one(name, out, **how)
        print(f"{name}: {shown_path(folder)}", flush=True)


@miniature.command("table", short_help="each model's accuracy on each skill and in each gap")
def _table(
    names: Annotated[list[str] | None, _names("which models; none: all that know boards")] = None, debug: Debug = False
) -> None:
    """Print each model's measured accuracy on each skill and in each gap."""
    from auditkit.miniature import easy, measure, shipped

    built = sorted(file.parent.name for file in shipped.WEIGHTS.glob("*/chat_template.jinja"))
    names = names or [name for name in built if name not in easy.RECIPES]
    if not names:
        raise AuditError("No model in auditkit/miniature/weights to measure: auditkit miniature build makes them.")
    if on_boards := [name for name in names if name not in easy.RECIPES]:
        print(measure.table(on_boards))
    if on_easy := [name for name in names if name in easy.RECIPES]:  # these know another world
        print(easy.table(on_easy, project_root() / "data" / "easy_vqa"))


@miniature.command("writes", short_help="how much of what an auditor writes is true, by way")
def _writes(
    names: Annotated[list[str] | None, _names("which auditors; none: auditor")] = None, debug: Debug = False
) -> None:
    """Print how much of what an auditor writes is well-formed and true, by way."""
    from auditkit.miniature import measure

    print(measure.writings(names or ["auditor"]))


@miniature.command("plant", short_help="make a target with the gaps of your own table")
def _plant(
    gaps: Annotated[Path, typer.Argument(metavar="GAPS.yaml", help="a table like auditkit/miniature/target.yaml")],
    out: Annotated[Path, option("--out", metavar="DIR", help="the new model's folder")],
    debug: Debug = False,
) -> None:
    """Make a target with the gaps of your own table."""
    if not gaps.is_file():
        raise AuditError(f"No gap table {gaps}: write one like auditkit/miniature/target.yaml.")
    from auditkit.miniature import build

    print(f"target: {shown_path(build.plant(gaps, out))}")


@miniature.command("easy", short_help="write the published data set easy-VQA as a folder")
def _easy(
    out: Annotated[Path, option("--out", metavar="DIR", help="the folder, such as data/easy_vqa")],
    debug: Debug = False,
) -> None:
    """Write the published data set easy-VQA as a plain folder."""
    from auditkit.miniature import easy

    print(f"easy-VQA: {shown_path(easy.export(out))}")


@miniature.command("painters", short_help="how well the editor and generator do as they are told")
def _painters(
    n: Annotated[int, number("--n", help="boards for each kind of command; default: 200")] = 200, debug: Debug = False
) -> None:
    """Print how well the shipped editor and generator do as they are told."""
    from auditkit.miniature import painted

    print(painted.table(n))


sys.excepthook = _hook

if __name__ == "__main__":
    sys.exit(main())
