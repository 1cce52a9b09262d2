"""`auditkit bench --compare`: the kit beside what a person would write without it, on the same models and questions.

(a) answers a second: by the kit, by one call of transformers' pipeline a question, and by lmms-eval's own runner;
(b) a GRPO step: the kit's, and stock TRL with a reward function that asks a question at a time (compare_step.py);
(c) 1, 2, 4, 8 and 32 questions an image, shared and read whole (compare_answers.py, as (a) and (d));
(d) what an answer costs by the number of images;
(e) seconds, calls and money a finding, from a finished run's folder.

A ratio is the median of the repeats' own ratios.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import torch

from auditkit import specs
from auditkit.errors import AuditError
from auditkit.models import downloads
from auditkit.models.load import load_model
from auditkit.models.transformers import VLM
from auditkit.planning import bench
from auditkit.planning.compare_answers import answers, by_number, one_thread, questions_an_image
from auditkit.planning.compare_step import compare_step
from auditkit.planning.random_models import RANDOM_MODELS, build_random_model
from auditkit.runs.files import read_json
from auditkit.text import text_table

MODELS = ("miniature:llava", "miniature:gemma3", "miniature:idefics3")
IMAGES = 32
MANY = (250, 500, 1000, 2000, 4000)


def compare(
    names: Sequence[str],
    repeats: int = 5,
    images: int = IMAGES,
    many: Sequence[int] = MANY,
    run: Path | None = None,
    tiny: bool = False,
    **step: object,
) -> dict:
    """Measure (a) to (e) and return it, ready for JSON.

    Args:
        names: specs of models, or names of RANDOM_MODELS; (d) is of the first, (b) of the miniature's own.
        repeats: of each measurement, beside one that is not counted.
        images: with QUESTIONS questions each, that (a) and (c) ask.
        many: numbers of images of (d).
        run: a folder with a run's summary.json, for (e).
        tiny: build RANDOM_MODELS at toy size.
        step: changes to the values of the demo, whose GRPO step (b) takes.

    Raises AuditError for a model that is not there, that reads no images or that transformers does not run here.
    """
    costs = finding_costs(run) if run else []
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not tiny and (large := [name for name in names if name in RANDOM_MODELS]):
        raise AuditError(f"no GPU is here: {large[0]} takes one; --tiny builds it at toy size.")
    for name in names:  # before the first minutes are spent
        if name not in RANDOM_MODELS and specs.parse(name).engine != "transformers":
            raise AuditError(f'"{name}": bench --compare times models that transformers runs here; name such a one.')
        if name not in RANDOM_MODELS:
            downloads.resolve(specs.parse(name).place)
    with one_thread():
        found: dict = {"device": bench.device_name(device), "torch": torch.__version__, "repeats": repeats}
        found |= {"load": os.getloadavg()[0], "peaks": bench.peaks(device), "answers": [], "images": [], "skipped": []}
        for i, name in enumerate(names):
            print(f"answers of {name} ...", flush=True)
            model = build_random_model(name, device, 128, tiny) if name in RANDOM_MODELS else load_model(name)
            assert isinstance(model, VLM)
            found["answers"] += answers(model, name, images, repeats, found)
            found["answers"] += questions_an_image(model, images, repeats, found["peaks"])
            if i == 0 and many:
                print(f"{', '.join(map(str, many))} images ...", flush=True)
                found["images"] = by_number(model, many, repeats, found["peaks"])
            del model
            bench.free()
        print("GRPO steps ...", flush=True)
        found["step"] = compare_step(repeats, found["peaks"], **step)
    return found | {"findings": costs}


def finding_costs(run: Path) -> list[dict]:
    """(e): rows {"of", "findings", "seconds", "target_calls", "references_calls", "dollars"?}, each a finding.

    Raises AuditError for a folder without summary.json, or one whose run found nothing.
    """
    file = run / "summary.json"
    if not file.is_file():
        raise AuditError(f"--run {run}: there is no summary.json; name the folder of a finished run, as outputs/demo.")
    summary = read_json(file)
    total = summary.get("findings", {}).get("total", 0)
    counts, seconds = summary.get("counts", {}), summary.get("seconds", {})
    if not total or not seconds:
        raise AuditError(f"--run {run}: its summary.json tells of no finding and its seconds; name a finished run.")
    parts = {"the audit": ["05_audit"], "with the auditor's training": ["04_auditor", "05_audit"]}
    rows = []
    for of, stages in (parts | {"the whole run": sorted(seconds)}).items():
        row: dict = {"of": of, "findings": total, "seconds": sum(seconds.get(stage) or 0 for stage in stages) / total}
        for whose in ("target", "references"):
            row[f"{whose}_calls"] = sum(counts.get(stage, {}).get(f"{whose}_called", 0) for stage in stages) / total
        rows.append(row)
    hosted = [parts["dollars"] for parts in summary.get("hosted", {}).values() if "dollars" in parts]
    rows[-1] |= {"dollars": sum(hosted) / total} if hosted else {}
    return rows


def compare_table(found: dict) -> str:
    """The result as text: medians, with the least and the most of the repeats in brackets."""
    best = found["peaks"]
    lines = [
        f"{found['device']}, torch {found['torch']}: {best['flops'] / 1e12:.2f} TFLOP/s of a matrix product, "
        f"{best['bytes'] / 1e9:.0f} GB/s moved; {found['repeats']} repeats in turns, load {found['load']:.1f}"
    ]
    header = ["answers", "way", "questions an image", "a second", "takes", "near the floor"]
    rows = []
    for row in found["answers"]:
        rate = spread([row["answers"] / seconds for seconds in row["seconds"]], ".0f")
        near = f"{row['floor'] / median(row['seconds']):.0%}"
        rows.append([row["model"], row["way"], str(row["questions"]), rate, _takes(row["ratio"]), near])
    lines += [
        text_table(header, rows, "llrrrr"),
        "Takes: times as long as the kit, or as shared rows. Near the floor: its share of the time.",
        "",
    ]
    header = ["GRPO step", "seconds", "takes", "near the floor"]
    rows = [
        [way, spread(row["seconds"], ".2f"), _takes(row["ratio"]), f"{row['near']:.0%}"]
        for way, row in found["step"]["ways"].items()
    ]
    lines += [text_table(header, rows, "lrrr"), f"{found['step']['questions']} questions: {found['step']['cast']}.", ""]
    if found["images"]:
        header = [f"images, {found['images'][0]['model']}", "seconds", "ms an image", "near the floor"]
        rows = [
            [f"{row['images']:,}", spread(row["seconds"], ".2f"), spread([s * 1e3 for s in row["an_image"]], ".2f")]
            + [f"{row['floor'] / median(row['an_image']):.0%}"]
            for row in found["images"]
        ]
        lines += [text_table(header, rows, "rrrr"), ""]
    if found["findings"]:
        lines += [_findings_table(found["findings"])]
    return "\n".join([*lines, *(f"skipped: {why}" for why in found["skipped"])]).rstrip()


def _findings_table(costs: Sequence[Mapping]) -> str:
    header = [f"of {costs[0]['findings']:,} findings, each", "seconds", "target calls", "references' calls", "dollars"]
    rows = [
        [row["of"], f"{row['seconds']:.2f}", f"{row['target_calls']:.1f}", f"{row['references_calls']:.1f}"]
        + [f"{row['dollars']:.4f}" if "dollars" in row else ""]
        for row in costs
    ]
    return text_table(header, rows, "lrrrr")


def _takes(ratio: Sequence[float]) -> str:
    return "1" if set(ratio) == {1.0} else f"{spread(ratio, '.2f')} x"


def spread(values: Sequence[float], how: str) -> str:
    """The median, and least and most.

    >>> spread([3, 1, 2], ".1f")
    '2.0 (1.0-3.0)'
    """
    return f"{median(values):{how}} ({min(values):{how}}-{max(values):{how}})"
