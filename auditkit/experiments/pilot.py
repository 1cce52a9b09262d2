"""A pilot: some pictures of a run through every stage, to say what the whole will take and how the models answer.

    auditkit run params/demo.yaml --pilot 50        into outputs/demo_pilot, with pilot.md and pilot.json

The run is the file's own but for its counts (`pilot_params`). Of each stage's seconds, the executed notebook says which
cells they went to (papermill keeps each cell's). What grows with the counts is scaled to the file's, but for the
loading of models, which every stage notes in its manifest; all else is start-up, and stays. A step of a training is
timed by the steps after the first.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median

from auditkit.auditor.clusters import KINDS_FROM
from auditkit.consensus.normalise import has_content
from auditkit.data.load import load_images
from auditkit.params import WAYS, Params
from auditkit.planning.calls import CHECKED, WISHED
from auditkit.runs import costs, jsonl
from auditkit.runs.files import write_json, write_text
from auditkit.runs.folder import STAGES, run_folder
from auditkit.text import duration

ENDING = "_pilot"
STEPS, REPAIR_STEPS, CHECKPOINTS = 4, 6, 2
SECONDS = ("pilot", "fixed", "whole", "low", "high")
MANY = 0.1  # share of answers or probes above which there is something to change
OFF_BY = 1.5  # beyond what is least and most, for a machine is not always as busy (our choice)


def pilot_params(p: Params, pictures: int) -> Params:
    """The parameters of a pilot: every count cut so that some `pictures` go through every stage.

    | key | becomes, where the file's own is not smaller |
    |---|---|
    | run_name | the same with `_pilot` |
    | baseline_images, audit_probes, blind_images, rectify_original, rectify_pairs | pictures |
    | grpo_steps | 4, or one for each of `ways` where these are more |
    | grpo_images | pictures / grpo_steps, so that all steps see as many |
    | grpo_micro_batch | the largest that divides a step of so few |
    | train_images | pictures, but one step's at least |
    | grpo_checkpoints | 2 |
    | blind_candidates | 4 |
    | rectify_steps | 6 |
    | benchmark_examples | a tenth of pictures, for each skill |
    | earlier | none |

    Nothing grows: a file of smaller counts keeps its own. Batches, lengths, models and ways stay as they are.
    """
    steps = min(p.grpo_steps, max(STEPS, len(p.ways)))
    images = min(p.grpo_images, max(1, pictures // steps))
    some = {"baseline_images", "audit_probes", "blind_images", "rectify_original", "rectify_pairs"}
    return replace(
        p,
        run_name=p.run_name + ENDING,
        **{name: min(getattr(p, name), pictures) for name in some},
        train_images=min(p.train_images, max(pictures, images)),
        grpo_steps=steps,
        grpo_images=images,
        grpo_micro_batch=math.gcd(images * p.group_size, p.grpo_micro_batch) if p.grpo_micro_batch else 0,
        grpo_checkpoints=min(p.grpo_checkpoints, CHECKPOINTS, steps),
        blind_candidates=min(p.blind_candidates, 4),
        rectify_steps=min(p.rectify_steps, REPAIR_STEPS),
        benchmark_examples=min(p.benchmark_examples, max(1, pictures // 10)),
        earlier=[],
    )


def wished_pictures(pictures: int) -> int:
    """About how many pictures the pilot's untrained auditor wishes for others, in notebook 03."""
    return min(WISHED, pictures)


@dataclass(frozen=True)
class StageEstimate:
    """Seconds of one stage: of the pilot, of what does not grow, and of the whole."""

    stage: str
    pilot: float
    fixed: float
    whole: float
    low: float
    high: float
    times: float  # how many times as much the whole has to do, by the stage's main count
    hosted: dict = field(default_factory=dict)  # what its servers' answers would cost, as costs.spent


@dataclass(frozen=True)
class Part:
    """Seconds that grow: of the pilot; of the whole at least, where a batch that was not full took as long as a full
    one; and at most, where all of it grows with the pictures. What is estimated is their geometric mean.
    """

    pilot: float
    low: float
    high: float


def amounts(p: Params, wished: int, there: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """What the seconds of a cell grow with: {stage: {cell of its notebook: how much it has to do}}, the main one first.

    Args:
        wished: pictures of notebook 03.
        there: how many pictures each split has, where that is known: no more of them can be looked at.
    """
    probes = min(p.audit_probes, there.get("audit" if p.route == "unlabeled" else "train", p.audit_probes))
    baseline = min(p.baseline_images, there.get("baseline", p.baseline_images))
    drawn = min(p.rectify_original, there.get("train", p.rectify_original)) if p.route == "unlabeled" else probes
    blind = p.blind_candidates * (p.blind_images / 2) + p.blind_images / 2
    return {
        "01_models": {"01-skills": max(4, p.benchmark_examples // 10)},
        "02_disagreement": {"02-ask": baseline},
        "03_counterfactual": {"03-ask": min(wished, there.get("baseline", wished))},
        "04_auditor": {"04-train": p.grpo_steps * p.grpo_images * p.group_size},
        "05_audit": {"05-run": probes, "05-gates": probes, "05-blind": blind},
        "06_findings": {"06-types": probes, "06-peer": probes, "06-false": probes, "06-words": probes},
        "07_rectify": {
            "07-train": p.rectify_steps * p.rectify_batch,
            "07-set": drawn + probes,
            "07-again": min(CHECKED, probes),
        },
        "08_benchmark": {
            "08-skills": p.benchmark_examples,
            "08-tasks": max(1, p.benchmark_examples // 8),
            "08-consensus": baseline,
        },
    }


def estimate_run(p: Params, pilot: Params, wished: int) -> list[StageEstimate]:
    """What each stage of the whole will take, from the finished stages of its pilot.

    Args:
        p: the file's parameters.
        pilot: the pilot's, whose folder is read.
        wished: pictures of the pilot's notebook 03.
    """
    there = _pictures_there(p)
    of_pilot, of_whole = amounts(pilot, wished, there), amounts(p, WISHED, there)
    return [
        _estimate(p, pilot, run_folder(pilot) / stage, of_pilot.get(stage, {}), of_whole.get(stage, {}))
        for stage in STAGES
    ]


def _estimate(
    p: Params, pilot: Params, folder: Path, had: Mapping[str, float], has: Mapping[str, float]
) -> StageEstimate:
    manifest = _read(folder / "manifest.json")
    book = _read(folder / "notebook.ipynb")
    measured = book["metadata"]["papermill"]["duration"]
    # what went by in attempts before this notebook's was work as well
    pilot_seconds = max(measured, manifest["seconds"])
    parts = [Part(0.0, 0.0, 0.0)]
    loads = manifest.get("loads", [])
    for cell in book["cells"]:
        name, took = cell.get("id", ""), cell["metadata"].get("papermill", {})
        if name not in had or not took.get("duration"):
            continue
        inside = [load for load in loads if took["start_time"] <= load["at"] <= took["end_time"]]
        seconds = max(0.0, took["duration"] - sum(load["seconds"] for load in inside))
        if name == "04-train":
            parts += _grpo_parts(p, pilot, folder, seconds, inside)
        elif name == "07-train":
            parts.append(_repair_part(p, folder))
        elif had[name]:
            batches = math.ceil(has[name] / p.batch_size) / math.ceil(had[name] / p.batch_size)
            parts.append(Part(seconds, seconds * batches, seconds * has[name] / had[name]))
    fixed = max(0.0, pilot_seconds - sum(part.pilot for part in parts))
    times = next((has[name] / had[name] for name in had if had[name]), 1.0)
    hosted = {name: _times(parts, times) for name, parts in manifest.get("hosted", {}).items()}
    whole = fixed + sum(math.sqrt(part.low * part.high) for part in parts)
    low, high = (fixed + sum(getattr(part, end) for part in parts) for end in ("low", "high"))
    return StageEstimate(folder.name, pilot_seconds, fixed, whole, low / OFF_BY, high * OFF_BY, times, hosted)


def _grpo_parts(p: Params, pilot: Params, folder: Path, seconds: float, loads: Iterable[Mapping]) -> list[Part]:
    """What the untrained auditor wrote before the first step, and the steps, by way; at least, the former is start-up
    and a smaller step took as long as one of the whole. A pipeline that was loaded for the first step of its way is
    taken out.
    """
    rows = jsonl.read(folder / "history.jsonl")
    took = _step_seconds(rows)
    loading = {load["model"]: load["seconds"] for load in loads}
    by_way: dict[str, list[float]] = {}
    for i, way in enumerate(row.get("way", "question") for row in rows):
        pipeline = getattr(pilot, WAYS[way]) if WAYS[way] else ""
        if way not in by_way:  # the first of its way waited for its pipeline
            took[i] = max(0.0, took[i] - loading.get(pipeline, 0.0))
        by_way.setdefault(way, []).append(took[i])
    for several in by_way.values():
        if len(several) > 1:
            several.pop(0)  # it warmed up
    each = {way: median(several) for way, several in by_way.items()}
    slowest = max(each.values(), default=0.0)
    steps = sum(each.get(way, slowest) for way in p.ways) / len(p.ways) * p.grpo_steps
    rows_of = [one.grpo_images * one.group_size for one in (pilot, p)]
    passes = [math.ceil(n / (p.grpo_micro_batch or n)) for n in rows_of]
    before = max(0.0, seconds - sum(took))
    written = min(KINDS_FROM, p.train_images) / min(KINDS_FROM, pilot.train_images)
    return [
        Part(before, before, before * written),
        Part(sum(took), steps * passes[1] / passes[0], steps * rows_of[1] / rows_of[0]),
    ]


def _repair_part(p: Params, folder: Path) -> Part:
    """The steps after the first, which stands for what it takes to begin; they are of the whole's size already."""
    later = _step_seconds(jsonl.read(folder / "history.jsonl"))[1:]
    whole = p.rectify_steps * sum(later) / len(later) if later else 0.0
    return Part(sum(later), whole, whole)


def _step_seconds(rows: Iterable[Mapping]) -> list[float]:
    """How long each step took, from the seconds since the training began, or since it went on after a kill."""
    told = [row["seconds"] for row in rows if "seconds" in row]
    return [now - before if now >= before else now for before, now in zip([0.0, *told], told, strict=False)]


def _times(parts: Mapping, times: float) -> dict:
    return {part: round(value * times, 6 if part == "dollars" else None) for part, value in parts.items()}


def _pictures_there(p: Params) -> dict[str, int]:
    """Pictures of each split, of a source that has so many and no more."""
    if p.images.startswith("hub:"):  # would be read once more, as a whole
        return {}
    how_many = getattr(load_images(p.images), "how_many", None)
    return how_many() if how_many else {}


# ---- how the models answer ------------------------------------------------------------------------------------------


def answers_told(pilot: Params) -> list[dict]:
    """How each model answered in the pilot: {"model", "answers", "cut", "empty"}, of stages 01, 02, 03 and 05."""
    answers: dict[str, Counter] = {}
    for stage in ("01_models", "02_disagreement", "03_counterfactual", "05_audit"):
        for row in jsonl.read(run_folder(pilot) / stage / costs.ANSWERS_FILE):
            its = answers.setdefault(row["model"], Counter())
            its.update(answers=1, cut=bool(row.get("cut")), empty=not has_content(row["answer"]))
    return [{"model": name, **{k: its[k] for k in ("answers", "cut", "empty")}} for name, its in answers.items()]


def outcomes_told(pilot: Params) -> dict[str, dict[str, int]]:
    """What became of the probes: {"untrained" (stage 02), "made pictures" (03), "audit" (05): the manifest's counts}.

    `findings` are added: of what was scored, where the target departs.
    """
    told = {}
    for name, stage in (
        ("untrained", "02_disagreement"),
        ("made pictures", "03_counterfactual"),
        ("audit", "05_audit"),
    ):
        manifest = _read(run_folder(pilot) / stage / "manifest.json")
        counts, metrics = manifest["counts"], manifest["metrics"]
        if not counts.get("asked"):
            continue
        found = counts.get("findings")
        found = found and found - counts.get("findings_from_training", 0)
        if stage == "02_disagreement" and (rate := metrics.get("untrained_by_consensus")):
            found = round(rate["value"] * rate["n"])
        if stage == "03_counterfactual":
            found = sum(way["findings"] for way in metrics.get("ways", {}).values())
        told[name] = counts | ({} if found is None else {"findings": found})
    return told


def what_to_change(p: Params, answers: Iterable[Mapping], outcomes: Mapping[str, Mapping]) -> list[str]:
    """A sentence for each share that calls for another setting before the whole is paid for.

    >>> what_to_change(None, [{"model": "small", "answers": 50, "cut": 0, "empty": 20}], {})
    ['"small" says nothing to 20 of 50 questions: `auditkit check` shows what it is given and what it writes.']
    """
    said = []
    for row in answers:
        name, n = row["model"], row["answers"]
        if row["cut"] > n * MANY:
            said.append(
                f'"{name}" is cut off in {row["cut"]} of {n} answers: raise max_answer_tokens (now '
                f"{p.max_answer_tokens})."
            )
        if row["empty"] > n * MANY:
            said.append(
                f'"{name}" says nothing to {row["empty"]} of {n} questions: `auditkit check` shows what it is given '
                "and what it writes."
            )
    total: Counter = Counter()
    for counts in outcomes.values():
        total.update({key: value for key, value in counts.items() if isinstance(value, int)})
    asked, parsed = total["asked"], total["parsed"]
    if total["malformed"] > asked / 2:
        said.append(
            f"{total['malformed']} of {asked} of the auditor's texts are no question: name another auditor, one that "
            "follows instructions, or raise max_question_tokens where its texts are cut."
        )
    elif total["malformed"] > asked * MANY:
        said.append(
            f"{total['malformed']} of {asked} of the auditor's texts are no question; a larger auditor, or a larger "
            "max_question_tokens, wastes fewer."
        )
    if total["implausible"] > parsed * MANY:
        said.append(
            f"{total['implausible']} of {parsed} questions are implausible to the untrained auditor: lower "
            f"min_token_probability (now {p.min_token_probability:g}) if they read well."
        )
    if total["no_consensus"] > parsed / 2:
        said.append(
            f"the references agree on too little ({total['no_consensus']} of {parsed} questions without a consensus): "
            f"write same: embedding if they answer in sentences (now {p.same}), or name references that are more alike."
        )
    elif total["no_consensus"] > parsed * 3 * MANY:
        said.append(
            f"{total['no_consensus']} of {parsed} questions are without a consensus and teach nothing: look whether "
            f"the answers differ in words alone (same, now {p.same}) or in fact."
        )
    made = total["images_made"]
    if total["bad_pictures"] > max(made, total["bad_pictures"]) / 2:
        said.append(
            f"{total['bad_pictures']} probes are lost to pictures that are not what was wished for: name another "
            "generator or editor, or write ways: [question]."
        )
    scored, found = total["scored"], total["findings"]
    if scored and not found:
        said.append(
            f"the target never departs from the consensus in {scored} probes: more pictures, longer training of the "
            "auditor or stronger references may find where it does; there is nothing to repair yet."
        )
    if scored and found > 0.9 * scored:
        said.append(
            f"the target departs in {found} of {scored} probes, which is hardly true: read some findings in notebook "
            "05, and look with `auditkit check` at what the target is given."
        )
    return said


# ---- what a person reads --------------------------------------------------------------------------------------------


def report_pilot(p: Params, pilot: Params, pictures: int) -> str:
    """Write pilot.json and pilot.md into the pilot's folder; the text of the latter.

    Args:
        p: the file's parameters.
        pilot: as `pilot_params` makes them, of a run that is done.
        pictures: how many the pilot was of.
    """
    estimates = estimate_run(p, pilot, wished_pictures(pictures))
    answers, outcomes = answers_told(pilot), outcomes_told(pilot)
    advice = what_to_change(p, answers, outcomes)
    hosted = costs.total(estimate.hosted for estimate in estimates)
    found = {
        "run_name": p.run_name,
        "pictures": pictures,
        "seconds": {name: round(sum(getattr(e, name) for e in estimates), 1) for name in SECONDS},
        "stages": [{k: round(v, 2) if isinstance(v, float) else v for k, v in asdict(e).items()} for e in estimates],
        **({"hosted": hosted} if hosted else {}),
        "answers": answers,
        "outcomes": outcomes,
        "change": advice,
    }  # fmt: skip
    folder = run_folder(pilot)
    write_json(folder / "pilot.json", found)
    text = _pilot_text(p, found, hosted)
    write_text(folder / "pilot.md", text)
    return text


def _pilot_text(p: Params, found: Mapping, hosted: Mapping) -> str:
    seconds = found["seconds"]
    lines = [f"# Pilot of {p.run_name}: {found['pictures']} pictures through every stage", ""]
    lines += [
        f"The whole will take about {duration(seconds['whole'])} here, between {duration(seconds['low'])} and "
        f"{duration(seconds['high'])}. The pilot took {duration(seconds['pilot'])}.",
        "",
    ]
    rows = [
        [e["stage"], *(duration(e[name]) for name in ("pilot", "fixed", "whole", "low", "high"))]
        for e in found["stages"]
    ]
    lines += [*_table(["stage", "pilot", "start-up", "whole", "from", "to"], rows), ""]
    lines += [
        "From one small run on this machine, as busy as it was; no confidence interval. The lower end takes a batch "
        "that was not full to last as long as a full one, the upper end takes all time to grow with the pictures; both "
        "leave half as much again.",
        "Where the images are fewer than the counts, and it was not known, it takes less.",
        "",
    ]
    if hosted:
        lines += ["By servers, for the whole:", "", *(f"- {line}" for line in costs.in_words(hosted)), ""]
    rows = [
        [row["model"], f"{row['answers']:,}", _share(row["cut"], row["answers"]), _share(row["empty"], row["answers"])]
        for row in found["answers"]
    ]
    lines += [*_table(["model", "answers", "cut", "empty"], rows), ""]
    rows = []
    for name, counts in found["outcomes"].items():
        parsed, scored = counts.get("parsed", 0), counts.get("scored", 0)
        of = [("malformed", counts["asked"]), ("bad_pictures", counts["asked"]), ("implausible", parsed)]
        of += [("no_consensus", parsed), ("no_answer", parsed), ("findings", scored)]
        rows.append([name, f"{counts['asked']:,}", *(_share(counts.get(key, 0), n) for key, n in of)])
    header = ["probes", "asked", "malformed", "bad picture", "implausible", "no consensus", "no answer", "departs"]
    lines += [*_table(header, rows), "", "## What to change before paying for the whole", ""]
    lines += [f"- {sentence}" for sentence in found["change"]] or ["Nothing that these pictures show."]
    return "\n".join(lines) + "\n"


def _share(part: int, of: int) -> str:
    return f"{100 * part / of:.0f} %" if of else "-"


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    """A table that reads the same in a terminal and as Markdown."""
    wide = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    ruled = ["-" * wide[0], *("-" * (n - 1) + ":" for n in wide[1:])]
    lines = []
    for first, *rest in (header, ruled, *rows):
        cells = [first.ljust(wide[0]), *(cell.rjust(n) for cell, n in zip(rest, wide[1:], strict=True))]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
