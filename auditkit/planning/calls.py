"""How often each model is asked in a run, and how long that takes at measured rates.

Calls follow from the parameters and are upper bounds: a question that is malformed, or met again on the same picture,
is not put to anyone. Time needs rates that `auditkit bench` measured on the GPU in question and wrote to
outputs/bench.json. Where none was measured there is no estimate.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from auditkit.audit.allocation import checkpoint_shares
from auditkit.auditor.clusters import KINDS_FROM, TEXTS_EACH
from auditkit.data.source import Source
from auditkit.findings.narrow import KEPT, MEASURED, TELLING, TRIED
from auditkit.findings.probing import MOST
from auditkit.findings.recheck import ELSEWHERE
from auditkit.params import Params, project_root
from auditkit.planning import memory, sizes
from auditkit.planning.placement import PlacedModel
from auditkit.runs.files import read_json

WISHED = 96  # pictures about which the untrained auditor wishes for others (notebook 03)
CHECKED = 200  # findings the repaired target is asked again (notebook 07)
SPLIT_OF = {"train_images": "train", "baseline_images": "baseline", "audit_probes": "audit", "blind_images": "test"}


def model_calls(p: Params, skills: int | None) -> list[dict]:
    """How often each model is asked in each stage, at most.

    Of a picture that is made, a question is written and asked besides, the references answer its check, and all models
    the source's own question; after an edit both also about the original.

    Returns rows {"stage", "images", "auditor", "target", "references": each of them, "peer", "trained": the questions
    or examples of a training, "painted": pictures made}. `skills` counts the benchmarks the images come with; None,
    where that is not known yet, leaves them out.
    """
    some = (skills or 0) * max(4, p.benchmark_examples // 10)
    every = (skills or 0) * p.benchmark_examples
    blind = p.blind_candidates * (p.blind_images // 2) + p.blind_images - p.blind_images // 2
    rollouts = p.grpo_steps * p.grpo_images * p.group_size
    first = min(KINDS_FROM, p.train_images) * TEXTS_EACH
    base, probes, checked = p.baseline_images, p.audit_probes, min(CHECKED, p.audit_probes)
    peer = some if p.peer else 0, every if p.peer else 0
    # the labeled route learns its originals whether the target knows them or not, so it is not asked
    drawn, known = (p.rectify_original,) * 2 if p.route == "unlabeled" else (probes, 0)
    edited, anew = (math.ceil(probes * p.ways.count(way) / len(p.ways)) for way in ("edit", "regenerate"))
    last = list(checkpoint_shares(["untrained", *map(str, range(p.grpo_checkpoints))], probes).values())[-1]
    beside = (p.candidates - 1) * (probes - last) * p.ways.count("question") // len(p.ways) * (p.asks == "auditor")
    rewarded = math.ceil(rollouts * sum(way != "question" for way in p.ways) / len(p.ways))
    edits = math.ceil(rollouts * p.ways.count("edit") / len(p.ways))
    own = [bool(p.generator), bool(p.editor)]  # the ways of notebook 03 take turns
    tried = [math.ceil(WISHED * way / (sum(own) or 1)) for way in own]
    asked = {  # stage -> (questions to each model, checks to the references, pictures made)
        "03_counterfactual": (2 * tried[0] + 3 * tried[1], tried[0] + 2 * tried[1], sum(tried)),
        "05_audit": (probes + anew + 2 * edited, anew + 2 * edited, anew + edited),
    }
    q3, c3, m3 = asked["03_counterfactual"]
    q5, c5, m5 = asked["05_audit"]
    again = p.repeats + bool(p.paraphraser)  # of every probe, if all were findings
    crossed = q5 * again * ("reproduces" in p.gates)
    crossed_references = q5 * (again * ("sound" in p.gates) + (ELSEWHERE + 1) * ("visual" in p.gates))
    # of each failure type: probing questions tried, those that tell something, and these once more for its rates
    probings = p.failure_types * (2 * TRIED * MOST + 3 * KEPT * TELLING + min(probes, MEASURED) * TELLING)
    described = max(1, p.benchmark_examples // 8) * _tasks(p)
    rows = [
        ("01_models", some + 3, 3, some, some, peer[0], 0, 0),
        ("02_disagreement", base, base, base, base, 0, 0, 0),
        ("03_counterfactual", WISHED if m3 else 0, 2 * m3, q3, q3 + c3, 0, 0, m3),
        (
            "04_auditor",
            p.train_images,
            first + rollouts + rewarded,
            rollouts,
            rollouts + rewarded + edits,
            0,
            rollouts,
            rewarded,
        ),
        (
            "05_audit",
            probes + p.blind_images,
            probes + beside + m5,
            q5 + blind + crossed,
            q5 + c5 + crossed_references,
            0,
            0,
            m5,
        ),
        ("06_findings", 0, 0, 0, probings, q5 if p.peer else 0, 0, 0),
        ("07_rectify", drawn, 0, known + checked, 0, 0, p.rectify_steps * p.rectify_batch, 0),
        ("08_benchmark", every + described, 0, 2 * (every + described) + base, 0, peer[1], 0, 0),
    ]
    names = ("stage", "images", "auditor", "target", "references", "peer", "trained", "painted")
    return [dict(zip(names, row, strict=True)) for row in rows]


def questions_an_image(p: Params) -> dict[str, int]:
    """How many rows of one batch are about the same image, at most, where it is more than one: {what: rows}.

    Everywhere else one is: the audit's own questions, what its auditor writes (further candidates for an image are in
    other batches), benchmarks, examples of the repair. GRPO's loss on a GPU and its replay read each row whole.
    """
    found = {"04_auditor, rollouts": p.group_size}
    found["04_auditor, answers and plausibility"] = min(p.group_size, p.batch_size)
    found["05_audit, blind questions"] = min(p.blind_candidates, p.batch_size)
    if "reproduces" in p.gates or "sound" in p.gates:
        found["05_audit, asked again"] = min(p.repeats, p.batch_size)
    if "visual" in p.gates:
        found["05_audit, asked about other pictures"] = p.batch_size
    return {what: rows for what, rows in found.items() if rows > 1}


def answer_operations(model: PlacedModel, p: Params, questions: int = 1) -> float:
    """Floating-point operations of an answer as long as it may be to a question as long as it may be, where a batch
    has so many `questions` about each image.

    Before the question all rows have the image's tokens alone: a chat's own words are counted with the question.
    """
    assert model.size is not None  # nobody asks it of a model nobody knows
    read = memory.read_operations(
        model.size, 1, model.prompt(p.max_question_tokens), questions, model.size.image_tokens, p.max_answer_tokens
    )
    return read + memory.write_operations(model.size, 1, p.max_answer_tokens)


def _tasks(p: Params) -> int:
    """How many tasks no audit touches the images come with."""
    from auditkit.data.load import load_images

    return 0 if p.images.startswith("hub:") else len(load_images(p.images).tasks(1))


def stage_seconds(
    p: Params, cast: Sequence[PlacedModel], skills: int | None, bench: Mapping
) -> dict[str, float | None]:
    """Seconds of each stage at the rates `auditkit bench` measured; None where it did not measure what the stage does.

    A step of another size is taken to last in proportion to its questions.
    """
    by_role = {role: model for model in cast for role in model.roles}
    step = bench.get("step", {})
    aud = sizes.kind(by_role["auditor"].text)
    of_step = step.get("seconds", {}) if step.get("auditor") == aud else {}
    writes = sum(of_step.get(part, 0) for part in ("generation", "plausibility")) / step["rows"] if of_step else None
    learns = sum(of_step.get(part, 0) for part in ("loss", "backward", "rest")) / step["rows"] if of_step else None
    found: dict[str, float | None] = {}

    def rate(text: str, stage: str) -> float | None:
        """Answers a second; in 04 those of rows that share an image, where as many of them as were measured do."""
        measured = bench.get("answers", {}).get(sizes.kind(text), {})
        by_image = measured.get("by_image")
        if stage == "04_auditor" and by_image and min(p.group_size, p.batch_size) >= by_image["questions"]:
            return by_image["shared"]["per_second"]
        return measured.get("per_second")

    for row in model_calls(p, skills):
        asked = [(rate(by_role["target"].text, row["stage"]), row["target"])]
        asked += [(rate(text, row["stage"]), row["references"]) for text in p.references]
        asked += [(rate(p.peer, row["stage"]), row["peer"])] if p.peer else []
        asked = [(1 / each if each else None, n) for each, n in asked] + [(writes, row["auditor"])]
        asked += [(learns if row["stage"] == "04_auditor" else None, row["trained"]), (None, row["painted"])]
        each = [(unit, n) for unit, n in asked if n]
        found[row["stage"]] = None if any(unit is None for unit, _ in each) else sum(unit * n for unit, n in each)
    return found


def at_hand(p: Params) -> tuple[Params, int | None]:
    """The settings with no more pictures than there are of each split, and how many benchmarks the images come with.

    A source without end leaves the settings as they are. So does a data set that would have to be downloaded to know,
    and its benchmarks are None.

    Raises AuditError where a split that is asked for is empty.
    """
    from auditkit.data.load import load_images

    if p.images.startswith("hub:"):
        return p, None
    source = load_images(p.images)
    splits = SPLIT_OF if p.route == "unlabeled" else SPLIT_OF | {"audit_probes": "train"}
    there = source.counts()
    refuse_empty(source, splits.values())
    fewer = {key: min(getattr(p, key), there[split]) for key, split in splits.items() if there}
    return replace(p, **fewer), len(source.benchmarks(1))


def refuse_empty(source: Source, splits: Iterable[str]) -> None:
    """Raise AuditError, as who asks for its pictures would, for the first of the splits that has none."""
    there = source.counts()
    for split in splits:
        if there and not there[split]:
            source.pictures(split, 1, 0)


def read_bench() -> dict:
    """What `auditkit bench` wrote to outputs/bench.json; {} where it did not run, or only at toy size."""
    path = project_root() / "outputs" / "bench.json"
    bench = read_json(path, advice="delete it, or run auditkit bench again") if path.is_file() else {}
    return {} if bench.get("tiny") else bench
