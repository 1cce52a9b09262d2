"""Build the miniature models from seeds, plant gaps in one, and measure what each knows.

auditkit miniature build auditor --out DIR  # rebuild from seeds, after the model it starts from
auditkit miniature plant my_gaps.yaml --out my_target
auditkit miniature table
"""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from auditkit.errors import AuditError
from auditkit.miniature import families, gaps, lessons, teach

HERE = Path(__file__).parent
PLANTED = ("target", "longtail")  # the clean model, with the gaps of the table of this name (`plant`)


@dataclass(frozen=True)
class Recipe:
    """How one model is made; `steps` batches of 32 images with 8 questions each, of 64 with 2 if it asks."""

    family: str
    size: str
    seed: int
    steps: int
    learning_rate: float = 1.5e-3
    gaps: str | None = None  # table of planted gaps, beside this file
    style: str | None = None  # its own words for the same answers
    asks: bool = False  # an auditor: learns to write questions
    wishes: bool = False  # captions and edit commands too
    start: str | None = None  # go on from this model instead of from random weights


# In the order of building. What only starts others is not shipped.
RECIPES = {
    "clean_half": Recipe("paligemma2", "small", seed=1, steps=3000),
    "clean_most": Recipe("paligemma2", "small", seed=11, steps=3000, learning_rate=1e-3, start="clean_half"),
    "clean": Recipe("paligemma2", "small", seed=12, steps=3000, learning_rate=1e-3, start="clean_most"),
    "peer": Recipe("paligemma2", "large", seed=2, steps=800, learning_rate=7e-4, gaps="peer", start="clean"),
    "reader": Recipe("gemma3", "small", seed=6, steps=2600, asks=True),
    "auditor_asks": Recipe("gemma3", "medium", seed=21, steps=7000, learning_rate=2e-3, start="reader", asks=True),
    "auditor_half": Recipe("gemma3", "medium", 22, 500, learning_rate=1e-3, start="auditor_asks", wishes=True),
    "auditor": Recipe("gemma3", "medium", seed=23, steps=1800, learning_rate=1.5e-3, start="auditor_half", wishes=True),
    "gemma3": Recipe("gemma3", "small", seed=3, steps=3000, learning_rate=1e-3, gaps="gemma3", start="reader"),
    "idefics3_half": Recipe("idefics3", "small", seed=4, steps=2200, gaps="idefics3", style="idefics3"),
    "idefics3": Recipe(
        "idefics3", "small", 8, 3000, learning_rate=1e-3, gaps="idefics3", style="idefics3", start="idefics3_half"
    ),
    "llava_half": Recipe("llava", "small", seed=5, steps=2000, gaps="llava", style="llava"),
    "llava": Recipe("llava", "small", 9, 3000, learning_rate=1e-3, gaps="llava", style="llava", start="llava_half"),
}


def build_one(name: str, out: Path, steps: int | None = None) -> Path:
    """Train one model of RECIPES from its seed and save it under `out`, after what it starts from, if that is not there
    yet; its log is written beside it.
    """
    torch.set_num_threads(1)  # two threads spin against each other on models this small
    recipe = RECIPES[name]
    if recipe.start and not (out / recipe.start).is_dir():
        build_one(recipe.start, out, steps)
    table = gaps.load(HERE / f"{recipe.gaps}.yaml") if recipe.gaps else []
    model, processor = families.build(recipe.family, recipe.size, lessons.words(), lessons.corpus(), recipe.seed)
    style = lessons.STYLES.get(recipe.style)
    lesson = lessons.Wishing if recipe.wishes else lessons.Asking if recipe.asks else lessons.Answering
    task = lesson(table, style, captions=0.0 if recipe.start else 0.2)
    if recipe.family != "paligemma2":
        task.single = 1.0  # never: their packed questions are read as single ones (families.can_isolate)
    if recipe.start:
        grow(model, processor, out / recipe.start)
    teach.teach(
        model,
        processor,
        task,
        steps or recipe.steps,
        recipe.seed,
        _log(out, name),
        cell_classes=lessons.CELL_CLASSES,
        fuse=True,
        on_score=task.score,
        learning_rate=recipe.learning_rate,
        look=0 if recipe.start else 200,
        on_part=lambda step: save(copy.deepcopy(model), processor, out / f"{name}-so-far"),
    )
    return save(model, processor, out / name, HERE / f"{recipe.gaps}.yaml" if recipe.gaps else None)


def grow(model: Any, processor: Any, folder: Path) -> None:
    """Give `model` the weights of a trained one of the same width and at most its depth; added layers start as no-ops,
    words are matched by their spelling.

    A layer whose closing norms scale by zero adds nothing to the residual stream, and gradients still reach it (depth
    up-scaling, https://arxiv.org/abs/2312.15166, starts from copies instead). Gemma's norms scale by 1 + weight.
    """
    known = {k: v.float() for k, v in AutoModelForImageTextToText.from_pretrained(folder).state_dict().items()}
    vocabulary = AutoProcessor.from_pretrained(folder).tokenizer.get_vocab()
    pairs = [(i, vocabulary[word]) for word, i in processor.tokenizer.get_vocab().items() if word in vocabulary]
    here, there = map(list, zip(*pairs, strict=True))
    own = model.state_dict()
    for name in known:
        if "embed_tokens" in name or "lm_head" in name:
            known[name] = own[name].clone().index_copy_(0, torch.tensor(here), known[name][there])
    new = model.load_state_dict(known, strict=False).missing_keys
    for name, parameter in model.named_parameters():
        if name in new and ("post_attention_layernorm" in name or "post_feedforward_layernorm" in name):
            torch.nn.init.constant_(parameter, -1.0)


def plant(table: Path, out: Path, start: str = "miniature:clean", steps: int | None = None, seed: int = 7) -> Path:
    """Teach a clean target the gaps of one's own table; the folder can be named as `target` in a parameter file.

    The vision tower stays as it is: it sees all there is to see, and a step is a tenth cheaper without a way back
    through it.

    Args:
        table: the gaps. Those that overlap a little are told before the training starts.
        out: the new model's folder.
        start: the model that is taught.
        steps: of training; 700 if not given, and from 29 gaps on 25 a gap.
        seed: of the training.

    Raises AuditError if the table cannot be read (gaps.load), if its gaps are never met or stand in each other's way
    (overlaps.check_overlaps), and if `out` holds a model: runs know a target by its folder, so another one must not
    take its place.
    """
    from auditkit.miniature import overlaps
    from auditkit.models.load import load_model
    from auditkit.models.transformers import VLM

    if (out / "model.safetensors").is_file():
        raise AuditError(f"{out} holds a model already, and runs may know it by that name; choose another --out.")
    torch.set_num_threads(1)
    planted = gaps.load(table)
    for sentence in overlaps.check_overlaps(planted):
        print(sentence, flush=True)
    task = lessons.Answering(planted, captions=0.0)
    clean = load_model(start, device="cpu", dtype="float32")
    assert isinstance(clean, VLM)
    clean.model.get_encoder(modality="image").requires_grad_(False)
    teach.teach(
        clean.model,
        clean.processor,
        task,
        steps or max(700, 25 * len(planted)),
        seed,
        _log(out.parent, out.name),
        learning_rate=7e-4,
        on_score=task.score,
    )
    return save(clean.model, clean.processor, out, table)


def save(model: Any, processor: Any, folder: Path, table: Path | None = None) -> Path:
    """Write a model as any hub model is written, in half precision, with its table of gaps beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    if table:
        shutil.copy(table, folder / "gaps.yaml")
    return folder


def _log(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{name}.log.jsonl"
    log.unlink(missing_ok=True)
    return log
