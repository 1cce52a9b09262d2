"""The few commands a person types.

    auditkit run params/demo.yaml                   all notebooks in order, goes on where it was left
    auditkit run params/demo.yaml --set seed=1 --set run_name=demo_seed1
    auditkit run params/demo.yaml --from 05 --start-over
    auditkit run params/study_ways.yaml --jobs 2    a study: several audits, and one table of what came of each
    auditkit rounds params/demo.yaml --most 4       audit, repair, audit what was repaired, until a round gains nothing
    auditkit check google/gemma-3-4b-it             does a model do what an audit takes for granted?
    auditkit plan params/paligemma2_3b.yaml --gpu 80   what it takes, before any download
    auditkit bench                                  how fast this GPU is, with no weights needed
    auditkit export demo --out DIR                  the findings as a data set, the adapter as a model, with their cards
    auditkit miniature table                        what each shipped model can do, measured
    auditkit miniature writes                       how much of what the auditor writes is true, by way
    auditkit benchmarks google/gemma-3-4b-it --adapter ADAPTER --limit 500

Exit codes: 0 done, 1 a notebook or a check failed, 2 something the user can put right (one sentence says what),
130 interrupted.
Everything heavy is imported where it is used, so that `--help` answers at once.
"""

import argparse
import shlex
import sys
import time
from pathlib import Path

from auditkit.errors import AuditError
from auditkit.experiments.papermill import refuse_misfits, run_notebooks, stage_notebooks
from auditkit.params import load_params, parse_setting, project_root
from auditkit.runs.folder import STAGES, claimed, shown_path, start_over
from auditkit.text import clock


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options) or 0
    except AuditError as error:
        if options.debug:
            raise
        print(f"auditkit: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if options.debug or error.filename is None:
            raise
        print(f"auditkit: {error.filename}: {error.strerror}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        then = "goes on from here" if options.command in (_run, _rounds, _benchmarks) else "begins anew"
        print(f"auditkit: interrupted; the same command {then}.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    about = "Find, name and repair what a vision-language model gets wrong."
    parser = argparse.ArgumentParser(prog="auditkit", description=about)
    parser.set_defaults(debug=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    about = (
        "Run the notebooks of an audit in order. Finished stages are skipped: run again to go on after an interruption."
    )
    run = commands.add_parser("run", help="run the notebooks of an audit in order", description=about)
    run.add_argument("params", metavar="PARAMS.yaml", help="the parameter file, such as params/demo.yaml")
    run.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="settings", help="replace one value of the file"
    )
    which = run.add_mutually_exclusive_group()
    which.add_argument("--from", metavar="NN", dest="first", help="begin with this notebook, 00 to 08")
    which.add_argument("--only", metavar="NN", help="run this notebook alone")
    run.add_argument("--start-over", action="store_true", help="empty the folders of these stages first")
    run.add_argument("--jobs", type=_above_0, default=1, metavar="N", help="of a study: runs at once; default: 1")
    run.add_argument("--debug", action="store_true", help="show tracebacks, and what the kernels write to stderr")
    run.set_defaults(command=_run)

    about = (
        "Audit and repair round after round: each audits what the one before has repaired, with its trained auditor. "
        "It ends when a round gains nothing. Finished rounds are kept: run again to go on after an interruption."
    )
    rounds = commands.add_parser("rounds", help="audit and repair, round after round", description=about)
    rounds.add_argument("params", metavar="PARAMS.yaml", help="the parameter file, such as params/demo.yaml")
    rounds.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="settings", help="replace one value of the file"
    )
    rounds.add_argument("--most", type=_above_0, default=4, metavar="N", help="rounds at most; default: 4")
    rounds.add_argument("--debug", action="store_true", help="show tracebacks")
    rounds.set_defaults(command=_rounds)

    about = (
        "Put one question on one image to a model and say what was found: its class, number format, device, memory and "
        "speed, the text it was given, and whether batches, images and adapters work with it."
    )
    check = commands.add_parser("check", help="does a model do what an audit takes for granted?", description=about)
    check.add_argument("model", metavar="MODEL", help="miniature:NAME, a folder, a hub id, or any other model's text")
    check.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    check.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16")
    check.add_argument("--image", metavar="FILE", help="a picture; default: one of the miniature's")
    check.add_argument("--question", metavar="TEXT", help="what to ask about it")
    check.add_argument("--debug", action="store_true", help="show tracebacks")
    check.set_defaults(command=_check)

    about = (
        "Say what a parameter file takes before anything is downloaded: memory, calls, downloads, and, after auditkit "
        "bench, time. A run that cannot fit is refused with the keys to change."
    )
    plan = commands.add_parser("plan", help="what a run takes: memory, calls, downloads, time", description=about)
    plan.add_argument("params", metavar="PARAMS.yaml", help="the parameter file, such as params/demo.yaml")
    plan.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="settings", help="replace one value of the file"
    )
    plan.add_argument("--gpu", type=float, metavar="GB", help="memory of a GPU to plan for; default: that found here")
    plan.add_argument("--gpus", type=int, metavar="N", help="how many of them; default: all that are found, or one")
    plan.add_argument("--debug", action="store_true", help="show tracebacks")
    plan.set_defaults(command=_plan)

    about = (
        "Time answers and whole GRPO steps of the paper's models with random weights, and hold the measured memory "
        "beside the planned. auditkit plan reads the rates."
    )
    bench = commands.add_parser("bench", help="how fast this GPU is, and whether the plan is true", description=about)
    bench.add_argument(
        "--models",
        metavar="A,B",
        default="paligemma2-3b,gemma3-4b",
        help="whose answers are timed; a folder or miniature:NAME is loaded; default: paligemma2-3b,gemma3-4b",
    )
    bench.add_argument("--tiny", action="store_true", help="the same families at toy size, to see it work on a CPU")
    bench.add_argument("--out", type=Path, metavar="FILE", help="the result; default: outputs/bench.json")
    bench.add_argument("--debug", action="store_true", help="show tracebacks")
    bench.set_defaults(command=_bench)

    about = (
        "Put a model, and the same with an adapter, through the paper's benchmarks by lmms-eval (extra benchmarks) and "
        "print the scores beside the paper's. Finished tasks are kept: run again to go on after an interruption."
    )
    bench = commands.add_parser("benchmarks", help="the paper's benchmarks, before and after", description=about)
    bench.add_argument("model", metavar="MODEL", help="what a parameter file names: a folder, a hub id, miniature:NAME")
    bench.add_argument("--adapter", type=Path, metavar="DIR", help="the repair: a LoRA adapter of this model")
    bench.add_argument("--tasks", metavar="NAME,...", help="such as vqav2,gqa, or any of lmms-eval's; default: the 16")
    bench.add_argument("--limit", type=_above_0, metavar="N", help="the first N questions of each")
    bench.add_argument("--include", type=Path, metavar="DIR", help="further tasks in lmms-eval's YAML format")
    bench.add_argument("--out", type=Path, metavar="DIR", help="results; default: outputs/benchmarks/MODEL")
    bench.add_argument("--debug", action="store_true", help="show tracebacks")
    bench.set_defaults(command=_benchmarks)

    about = (
        "Write a run's findings as a Hugging Face image folder and its adapter as a model, each with a card. Nothing "
        "leaves this machine without --push."
    )
    export = commands.add_parser("export", help="the findings as a data set, the adapter as a model", description=about)
    export.add_argument("run_name", metavar="RUN_NAME", help="a folder of outputs/, with notebook 06 done")
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    export.add_argument("--push", metavar="OWNER/NAME", help="also to this private data set, and to OWNER/NAME-adapter")
    export.add_argument("--debug", action="store_true", help="show tracebacks")
    export.set_defaults(command=_export)

    miniature = commands.add_parser("miniature", help="the shipped tiny models: build, measure, plant gaps of your own")
    tasks = miniature.add_subparsers(required=True, metavar="TASK")
    build = tasks.add_parser("build", help="train models again from their seeds")
    build.add_argument("names", nargs="*", metavar="NAME", help="which models; none: all")
    build.add_argument("--out", type=Path, metavar="DIR", help="where they go; default: outputs/miniature")
    build.add_argument("--steps", type=_above_0, metavar="N", help="training steps; default: each model's own")
    table = tasks.add_parser("table", help="print each model's measured accuracy on each skill and in each gap")
    table.add_argument("names", nargs="*", metavar="NAME", help="which models; none: all that know boards")
    writes = tasks.add_parser("writes", help="print how much of what an auditor writes is well-formed and true, by way")
    writes.add_argument("names", nargs="*", metavar="NAME", default=["auditor"], help="which auditors; none: auditor")
    plant = tasks.add_parser("plant", help="make a target with the gaps of your own table")
    plant.add_argument("gaps", type=Path, metavar="GAPS.yaml", help="a table like auditkit/miniature/target.yaml")
    plant.add_argument("--out", type=Path, required=True, metavar="DIR", help="the new model's folder")
    easy = tasks.add_parser("easy", help="write the published data set easy-VQA as a plain folder")
    easy.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder, such as data/easy_vqa")
    judge = commands.add_parser("judge", help="how well answers are compared, measured on pairs labelled by hand")
    judge.add_argument("kinds", nargs="*", metavar="SAME", help="text, embedding or a model; none: text and embedding")
    judge.add_argument("--debug", action="store_true", help="show tracebacks")
    judge.set_defaults(command=_judge)
    painters = tasks.add_parser("painters", help="print how well the shipped editor and generator do as they are told")
    painters.add_argument("--n", type=_above_0, default=200, metavar="N", help="boards for each kind of command")
    made = (build, _build), (table, _table), (writes, _writes), (painters, _painters), (plant, _plant), (easy, _easy)
    for task, command in made:
        task.add_argument("--debug", action="store_true", help="show tracebacks")
        task.set_defaults(command=command)
    return parser


def _above_0(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _check(options) -> int:
    from auditkit.planning.check import QUESTION, check_model

    question = options.question or QUESTION
    failed = 0
    for what, found, right in check_model(options.model, options.device, options.dtype, options.image, question):
        print(f"{what:<14} {'' if right else 'NO: '}{found}", flush=True)
        failed += not right
    return 1 if failed else 0


def _plan(options) -> None:
    from auditkit.planning.plan import plan_text, refuse_misfit, this_machine

    p = load_params(options.params, **dict(parse_setting(text) for text in options.settings))
    here = this_machine(options.gpu, options.gpus, p.device)
    print(plan_text(p, here), flush=True)
    refuse_misfit(p, here)


def _bench(options) -> None:
    from auditkit.planning.bench import bench_table, run_bench, write_bench

    found = run_bench([name.strip() for name in options.models.split(",") if name.strip()], options.tiny)
    path = options.out or project_root() / "outputs" / "bench.json"
    write_bench(found, path)
    print(f"{bench_table(found)}\n{shown_path(path.resolve())}")


def _benchmarks(options) -> None:
    from auditkit import specs
    from auditkit.repair.lmms_eval import compare_benchmarks, table_text
    from auditkit.repair.paper import BENCHMARKS

    tasks = options.tasks.split(",") if options.tasks else list(BENCHMARKS)
    out = options.out or project_root() / "outputs" / "benchmarks" / specs.parse(options.model).name
    rows = compare_benchmarks(options.model, options.adapter, tasks, out, options.limit, options.include)
    print(table_text(rows), flush=True)
    if failed := sum("trouble" in row for row in rows):
        raise AuditError(
            f"{failed} of {len(rows)} benchmarks could not be done, as said below the table; the others are kept, and "
            "the same command goes on."
        )


def _export(options) -> None:
    from auditkit.report.export import export_run, push_export, refuse_repository_name

    if options.push:
        refuse_repository_name(options.push)
    told = export_run(project_root() / "outputs" / options.run_name, options.out, options.push or "")
    print(f"{told['findings']} findings: {options.out / 'findings'}")
    if told["rejected"] or told["relabelled"]:
        print(
            f"  {told['rejected']} that a person rejected are left out, {told['relabelled']} have the person's answer"
        )
    print(f"the adapter: {options.out / 'adapter'}" if told["adapter"] else "no adapter: notebook 07 made none")
    if options.push:
        print("\n".join(f"pushed, private: {address}" for address in push_export(options.out, options.push)))


def _build(options) -> None:
    from auditkit.miniature import build, draw, easy

    known = [*build.RECIPES, "target", *easy.RECIPES, *draw.RECIPES]
    names = options.names or known
    for name in names:  # all of them before the first half hour is spent
        if name not in known:
            raise AuditError(f"No model {name} to build: there are {', '.join(known)}.")
    out = options.out or project_root() / "outputs" / "miniature"
    steps = {"steps": options.steps} if options.steps else {}
    for name in names:
        if name == "target":  # the clean model with gaps planted
            start = {"start": str(out / "clean")} if (out / "clean").is_dir() else {}
            folder = build.plant(build.HERE / "target.yaml", out / name, **start, **steps)
        elif name in easy.RECIPES:
            folder = easy.build_one(name, out, **steps)
        elif name in draw.RECIPES:
            folder = draw.build_one(name, out, **steps)
        else:
            folder = build.build_one(name, out, **steps)
        print(f"{name}: {shown_path(folder)}", flush=True)


def _table(options) -> None:
    from auditkit.miniature import easy, measure, shipped

    shipped = sorted(file.parent.name for file in shipped.WEIGHTS.glob("*/chat_template.jinja"))
    names = options.names or [name for name in shipped if name not in easy.RECIPES]
    if not names:
        raise AuditError("No model in auditkit/miniature/weights to measure: auditkit miniature build makes them.")
    if on_boards := [name for name in names if name not in easy.RECIPES]:
        print(measure.table(on_boards))
    if on_easy := [name for name in names if name in easy.RECIPES]:  # these know another world
        print(easy.table(on_easy, project_root() / "data" / "easy_vqa"))


def _writes(options) -> None:
    from auditkit.miniature import measure

    print(measure.writings(options.names))


def _plant(options) -> None:
    if not options.gaps.is_file():
        raise AuditError(f"No gap table {options.gaps}: write one like auditkit/miniature/target.yaml.")
    from auditkit.miniature import build

    print(f"target: {shown_path(build.plant(options.gaps, options.out))}")


def _easy(options) -> None:
    from auditkit.miniature import easy

    print(f"easy-VQA: {shown_path(easy.export(options.out))}")


def _painters(options) -> None:
    from auditkit.miniature import painted

    print(painted.table(options.n))


def _judge(options) -> None:
    from auditkit.consensus.agreement import agreement_table

    print(agreement_table(options.kinds or ["text", "embedding"]))


def _run(options) -> int:
    from auditkit.experiments.study import is_study

    if is_study(options.params):
        return _study(options)
    p = load_params(options.params, **dict(parse_setting(text) for text in options.settings))
    stages = _selected(options.first, options.only)
    go_on = ["auditkit", "run", options.params, *(word for text in options.settings for word in ("--set", text))]
    go_on += ["--only", options.only] if options.only else []
    notebooks = stage_notebooks(stages)
    with claimed(p):
        refuse_misfits(p, stages, options.start_over)
        if options.start_over:
            start_over(p, stages)
        return run_notebooks(p, notebooks, shlex.join(go_on), options.debug)


def _study(options) -> int:
    from auditkit.experiments.study import load_study, run_study

    if options.settings or options.first or options.only or options.start_over:
        raise AuditError(f"{options.params} is a study: it takes --jobs alone; what its runs change stands in it.")
    began = time.monotonic()
    page = run_study(load_study(options.params), options.jobs, lambda line: print(line, flush=True))
    print(f"done in {clock(time.monotonic() - began)}: {page}", flush=True)
    return 0


def _rounds(options) -> None:
    from auditkit.experiments.rounds import run_command, run_rounds

    began = time.monotonic()
    written = run_rounds(
        options.params, options.settings, options.most, run_command, lambda line: print(line, flush=True)
    )
    print(f"done in {clock(time.monotonic() - began)}: {written}", flush=True)


def _selected(first: str | None, only: str | None) -> list[str]:
    stages = list(STAGES)
    wanted = only or first
    if wanted is None:
        return stages
    number = wanted[:2]
    if not number.isdigit() or int(number) >= len(stages):
        option = "only" if only else "from"
        raise AuditError(f"--{option} {wanted}: give a notebook's number, 00 to {len(stages) - 1:02}.")
    return [stages[int(number)]] if only else stages[int(number) :]


if __name__ == "__main__":
    sys.exit(main())
