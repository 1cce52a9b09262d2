"""A GRPO step of the kit beside one of stock TRL, with the same models, images and number of questions.

Stock: `GRPOTrainer` as its documentation has it, with the kit's configuration and adapter, and a reward function that
takes one completion after another, puts its question to the target and to each reference by transformers' pipeline, and
gives 1 where the target departs from the references' majority. It does less than the kit: no plausibility, no replay.
"""

import contextlib
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from peft import LoraConfig
from PIL import Image
from transformers import PrinterCallback, TrainerCallback, pipeline
from trl import GRPOTrainer

from auditkit.auditor import grpo
from auditkit.auditor.grpo_setup import grpo_config, training_rows
from auditkit.auditor.write import auditor_prompt
from auditkit.consensus.normalise import normalise
from auditkit.data.source import Picture
from auditkit.miniature.boards import Boards
from auditkit.models.base import quiet
from auditkit.models.load import load_model
from auditkit.models.lora import TEXT_PART
from auditkit.models.offload import frozen_vision
from auditkit.models.transformers import VLM
from auditkit.params import Params, load_params
from auditkit.planning import bench, memory
from auditkit.planning.compare_answers import (
    SAMPLE,
    chat_about,
    in_turns,
    now,
    prompt_length,
    silent,
    written_length,
)
from auditkit.runs import jsonl
from auditkit.runs.probe import parse_question
from auditkit.runs.temporary import temporary_folder

FILE = "params/demo.yaml"  # whose step it is
STEPS = 3  # of each training, the first of which is not counted


def compare_step(repeats: int, peaks: dict, **changes: object) -> dict:
    """Steps in turns: {"questions", "cast", "floor": s, "ways": {way: {"seconds", "ratio": to the kit's, "near": the
    floor's share}}}, a number a repeat.

    Args:
        changes: to the parameter file's values.
    """
    p = load_params(
        FILE, ways=["question"], generator="", editor="", **{"grpo_steps": STEPS, "grpo_checkpoints": 1, **changes}
    )
    pictures = Boards().pictures("train", STEPS * p.grpo_images, 0)
    answering = [load_model(spec, batch_size=p.batch_size) for spec in (p.target, *p.references)]
    vlms = [model for model in answering if isinstance(model, VLM)]

    rollouts: list[dict] = []  # of the last training

    def whole() -> float:
        with bench.whole_rows():
            return kit_step(p, vlms, pictures, rollouts)

    ways = {
        "the kit": lambda: kit_step(p, vlms, pictures, rollouts),
        "the kit, each row whole": whole,
        "stock TRL, one at a time": lambda: stock_step(p, vlms, pictures),
    }
    spent = in_turns(ways, repeats, "cpu")  # each says its seconds itself
    floor = step_floor(peaks, _auditor(p), vlms, rollouts, pictures[0].image, p)
    rows = {
        way: {"seconds": s, "ratio": [a / b for a, b in zip(s, spent["the kit"], strict=True)]}
        | {"near": floor / median(s)}
        for way, s in spent.items()
    }
    cast = f"auditor {p.auditor}, target {p.target}, references {', '.join(p.references)}"
    return {"questions": p.grpo_images * p.group_size, "cast": cast, "floor": floor, "ways": rows}


def kit_step(p: Params, answering: Sequence[VLM], pictures: Sequence[Picture], rollouts: list[dict]) -> float:
    """Seconds of a step of `grpo.train_auditor`, the median of all but the first; its rows go to `rollouts`."""
    auditor, ends = _auditor(p), []
    with temporary_folder("bench-") as folder, _quietly():
        grpo.train_auditor(
            auditor, answering[0], answering[1:], pictures, p, Path(folder), lambda _: ends.append(_now(auditor))
        )
        rollouts[:] = jsonl.read(Path(folder, "rollouts.jsonl"))
    return _step_seconds(ends)


def step_floor(
    peaks: dict, auditor: VLM, answering: Sequence[VLM], rollouts: Sequence[dict], image: Image.Image, p: Params
) -> float:
    """Seconds of a step at best, whose texts are as long as those of these rollouts; what all questions about an image
    begin with is read once, and on a CPU, which keeps it, learnt from once.
    """
    rows, each = p.grpo_images * p.group_size, p.group_size
    size, e = bench.size_of(auditor)
    prompt, new = prompt_length(auditor, image, auditor_prompt()), fmean(len(row["tokens"]) for row in rollouts)
    read = memory.read_operations(size, rows, prompt + new, each, prompt)
    learns = each if auditor.model.device.type == "cpu" else 1
    operations = memory.read_operations(size, rows, prompt, each, prompt) + memory.write_operations(size, rows, new)
    operations += read + memory.train_operations(size, rows, prompt + new, new, learns, prompt)
    moved = memory.write_bytes(size, e, rows, prompt, new)
    asked = [row for row in rollouts if row["question"]]
    different = len({(row["picture"], row["question"]) for row in asked}) / len(rollouts) * rows
    for i, model in enumerate(answering):
        its, wide = bench.size_of(model)
        said = [row["references"][i - 1] if i else row["target"] for row in asked]
        read_of = fmean(prompt_length(model, image, row["question"]) for row in asked[:SAMPLE])
        its_new = written_length(model, said)
        operations += memory.read_operations(its, 1, read_of, each, its.image_tokens) * different
        operations += memory.write_operations(its, 1, its_new) * different
        moved += memory.write_bytes(its, wide, round(different), read_of, its_new)
    return operations / peaks["flops"] + moved / peaks["bytes"]


def stock_step(p: Params, answering: Sequence[VLM], pictures: Sequence[Picture]) -> float:
    """Seconds of a step of TRL's GRPOTrainer, likewise."""
    auditor, ends = _auditor(p), []
    with temporary_folder("bench-") as folder, _quietly():
        config = grpo_config(p, Path(folder), auditor.model.device.type, auditor.model.dtype)
        config.save_strategy, config.reward_weights = "no", [1.0]
        trainer = GRPOTrainer(
            model=auditor.model,
            processing_class=auditor.processor,
            args=config,
            reward_funcs=[departs(answering, pictures, p)],
            train_dataset=training_rows(pictures, p.ways, p.grpo_images, auditor.max_pixels),
            peft_config=LoraConfig(
                r=p.grpo_lora_rank, lora_alpha=2 * p.grpo_lora_rank, target_modules=TEXT_PART, task_type="CAUSAL_LM"
            ),
            callbacks=[_StepEnds(lambda: ends.append(_now(auditor)))],
        )
        trainer.remove_callback(PrinterCallback)
        with frozen_vision(auditor.model):
            trainer.train()
    return _step_seconds(ends)


def departs(answering: Sequence[VLM], pictures: Sequence[Picture], p: Params) -> Callable:
    """A reward that takes one completion at a time, and asks each model by a call of its own."""
    shown = {picture.key: picture.image for picture in pictures}
    asks = [pipeline("image-text-to-text", model=vlm.model, processor=vlm.processor) for vlm in answering]

    def disagreement(completions, picture, **_) -> list[float]:
        rewards = []
        for completion, key in zip(completions, picture, strict=True):
            question = parse_question(completion[0]["content"])
            if not question:
                rewards.append(0.0)
                continue
            chat = chat_about(shown[key], question)
            said = [
                ask(text=chat, max_new_tokens=p.max_answer_tokens, do_sample=False, return_full_text=False)
                for ask in asks
            ]
            target, *references = [normalise(one[0]["generated_text"]) for one in said]
            commonest, votes = Counter(references).most_common(1)[0]
            rewards.append(float(votes > len(references) / 2 and target != commonest))
        return rewards

    return disagreement


class _StepEnds(TrainerCallback):
    """Tells the end of each step, when it is logged."""

    def __init__(self, tell: Callable[[], None]):
        self.tell = tell

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **_: Any) -> None:
        if logs and "reward" in logs:
            self.tell()


def _auditor(p: Params) -> VLM:
    auditor = load_model(p.auditor, batch_size=p.batch_size)  # anew, for a training leaves its adapter in it
    assert isinstance(auditor, VLM)
    return auditor


def _now(auditor: VLM) -> float:
    return now(auditor.model.device.type)


def _step_seconds(ends: Sequence[float]) -> float:
    return median(after - before for before, after in zip(ends, ends[1:], strict=False))


@contextlib.contextmanager
def _quietly():
    with quiet(), warnings.catch_warnings(action="ignore"), silent():
        yield
