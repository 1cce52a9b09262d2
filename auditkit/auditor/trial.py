"""One small GRPO step before a training: does TRL's trainer learn from the log-probabilities that are the model's own?

TRL prepares what a model is given, and applies the last layer, in its own way. Where a family needs an input that TRL
does not hand on, or has a head that TRL takes for another, the gradients are those of another model, and nothing in the
training's figures shows it. So the trainer computes one step on a few rows, by all that a training runs through, and
each row's log-probabilities are held against one plain forward pass. Where they differ, the training learns from that
forward pass itself. The model is left as it was.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import trl
from accelerate.utils.memory import should_reduce_batch_size
from peft import LoraConfig
from PIL import Image
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer
from trl.models import unwrap_model_for_generation

from auditkit.auditor.grpo_setup import grpo_config, training_rows
from auditkit.auditor.write import auditor_prompt
from auditkit.data.source import Picture
from auditkit.errors import AuditError
from auditkit.models import by_image, processors
from auditkit.models.base import evaluating, quiet
from auditkit.models.lora import TEXT_PART, adapts
from auditkit.models.offload import frozen_vision
from auditkit.models.trainer_internals import CompletionInputs, LearntRows
from auditkit.models.transformers import VLM, written
from auditkit.params import Params
from auditkit.runs.temporary import temporary_folder

TOKENS = 8  # of a completion
# the largest mean difference of a row's log-probabilities that is rounding: a wrong head or input makes 0.3 and more
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.1}


class FamilyTrainer(LearntRows, CompletionInputs, GRPOTrainer):
    """TRL's GRPOTrainer, with what some families' processors return put right.

    Args:
        reader: the model, with its processor; `pictures`: those of the data set.
        own_forward: learn from the model's own forward pass, as a repair does, not from TRL's, which hands on some
            inputs only and applies the last layer itself. It takes more memory: all logits of the completions.
    """

    def __init__(self, *args, reader: VLM, pictures: Sequence[Picture], own_forward: bool = False, **kwargs):
        by_vllm = kwargs["args"].use_vllm
        with warnings.catch_warnings(action="ignore"):  # that a rollout_func is new to TRL
            super().__init__(*args, rollout_func=None if by_vllm else write_rollouts, **kwargs)
        self.reader, self.own_forward = reader, own_forward
        self.pictured = {picture.key: picture for picture in pictures}

    def shown(self, model: torch.nn.Module, rows: Sequence[dict]) -> tuple[VLM, list[Image.Image], list[str]]:
        """The model with its processor; of rows the images, one object for each, and the prompts as whole texts."""
        reader = replace(self.reader, model=self.accelerator.unwrap_model(model))
        images = {key: self.pictured[key].image for key in {row["picture"] for row in rows}}
        texts = {way: processors.chat(reader, auditor_prompt(way)) for way in {row["way"] for row in rows}}
        return reader, [images[row["picture"]] for row in rows], [texts[row["way"]] for row in rows]

    def completion_inputs(self, inputs: dict, completion: int) -> dict:
        """What a family's model needs beside its tokens.

        PaliGemma's completions may see only what came before: tokens of type 1, where TRL has 0, with which they see
        what they are to predict. LLaVA-OneVision's count of images is not needed for one image a prompt.
        """
        if processors.is_paligemma(self.processing_class):
            inputs["token_type_ids"] = inputs["token_type_ids"].clone()
            inputs["token_type_ids"][:, -completion:] = 1
        for name in ("labels", "batch_num_images"):
            inputs.pop(name, None)
        return inputs

    def own_logps(
        self, model: torch.nn.Module, rows: list[dict], completions: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of completions [n, C] behind their prompts, in one forward pass: log-probabilities and entropies [n, C]."""
        reader, images, texts = self.shown(model, rows)
        kept = mask.bool()
        endings = [ids[keep] for ids, keep in zip(completions, kept, strict=True)]
        longest = max(map(len, endings))
        # where they stand now, in the last columns
        at_end = torch.arange(longest, device=kept.device) >= longest - kept.sum(1, keepdim=True)
        with self.accelerator.autocast():
            begun = by_image.begin(reader, images, texts, endings, 0) if shares(reader, self.args) else None
            inputs = processors.continued(reader, images, texts, endings) if begun is None else begun.rest
            inputs.pop("labels", None)
            logits = model(**inputs, logits_to_keep=longest + 1).logits[:, -longest - 1 : -1]
        logps = (logits.float() / self.args.temperature).log_softmax(-1)
        entropies = -(logps.exp() * logps).sum(-1)
        found = logps.gather(-1, inputs["input_ids"][:, -longest:, None])[..., 0]
        nothing = found.new_zeros(kept.shape)
        return nothing.masked_scatter(kept, found[at_end]), nothing.masked_scatter(kept, entropies[at_end])


def shares(auditor: VLM, config: GRPOConfig) -> bool:
    """Whether what rows begin with can be read once and learnt from; not where it is not kept, but read again."""
    return not (config.gradient_checkpointing or config.activation_checkpointing or by_image.why_unshared(auditor, 0))


def write_rollouts(prompts: list, trainer: FamilyTrainer) -> dict:
    """What the model writes to the rows of a step, as TRL's `rollout_func` gives it; each image is read once.

    Returns {"prompt_ids", "completion_ids": a list of tokens for each row, "logprobs": None}.
    """
    reader, images, texts = trainer.shown(trainer.model, trainer.rows_at_work)
    config, ends = trainer.generation_config, trainer.eos_token_ids
    generating = unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator)
    with generating as model, evaluating(model), torch.no_grad():
        inputs = by_image.prompts(replace(reader, model=model), images, texts, config.max_new_tokens)
        new = written(model, inputs["input_ids"], model.generate(**inputs, generation_config=config)).tolist()
    stops = [next((i + 1 for i, token in enumerate(row) if token in ends), len(row)) for row in new]
    mask = inputs["attention_mask"].bool()
    asked = [ids[keep].tolist() for ids, keep in zip(inputs["input_ids"], mask, strict=True)]
    return {
        "prompt_ids": asked,
        "completion_ids": [row[:stop] for row, stop in zip(new, stops, strict=True)],
        "logprobs": None,
    }


class TrialTrainer(FamilyTrainer):
    """A trainer that holds the log-probabilities it learns from against those of a plain forward pass."""

    off = 0.0

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        rows, ids, mask = self.learnt_rows(inputs), inputs["completion_ids"], inputs["completion_mask"]
        size = 1 if self.own_forward else len(rows)  # what it has made in a batch is held against each row alone
        parts = [slice(i, i + size) for i in range(0, len(rows), size)]
        with torch.no_grad():
            own = torch.cat([self.own_logps(model, rows[part], ids[part], mask[part])[0] for part in parts])
        for theirs, mask, plain in zip(self.learnt_logps, inputs["completion_mask"].bool(), own, strict=True):
            row_off = (theirs[mask].float() - plain[mask]).abs().mean().item()
            self.off = max(self.off, row_off) if row_off == row_off else float("inf")  # not a number is not the same
        return loss


class Trial(NamedTuple):
    """What a trial has found, in words, and whether the training must learn from the model's own forward pass."""

    found: str
    own_forward: bool


def trial_step(
    auditor: VLM, pictures: Sequence[Picture], p: Params, processes: int = 1, out: Path | None = None
) -> Trial:
    """Take one small GRPO step on a model and undo it.

    Where TRL's own way from the tokens to their log-probabilities is not the model's, or fails, the step is taken once
    more by the model's own forward pass. The random state is as it was before, so a training that follows draws the
    same.

    Args:
        pictures: two of them are looked at, by each process.
        p: its settings of the training and of the questions.
        out: gets the adapter that the step has left, where it is wanted.

    Raises AuditError where the model has nothing to train, where TRL's trainer cannot take a step with it, and where
    the log-probabilities it would learn from are not the model's own.
    """
    processors.refuse_encoder_decoder(auditor)
    if not any(adapts(name) for name, _ in auditor.model.named_modules()):
        raise AuditError(f'"{auditor.name}": no text layers found to put an adapter on; it can be asked, not trained.')
    kind = f"a {type(auditor.model).__name__}"
    same, why_not = "log-probabilities in a GRPO step are the model's own, within", ""
    for own_forward in (True,) if _may_share(auditor, p) else (False, True):
        try:
            off = _step(auditor, pictures, p, processes, out, own_forward)
        except AuditError:
            raise
        except Exception as error:  # whatever TRL or the model stumbles over, it is why there can be no training
            if should_reduce_batch_size(error):
                raise AuditError(
                    f'"{auditor.name}": out of memory in a training step of {min(2, p.grpo_micro_batch or 2)} '
                    "questions; make grpo_micro_batch or ?max_pixels smaller."
                ) from error
            why = f"TRL {trl.__version__} cannot take a step with it ({type(error).__name__}: {_short(error)})"
        else:
            if off <= TOLERANCE[auditor.model.dtype]:
                return Trial(f"{same} {off:.1g}" + why_not, own_forward)
            why = f"the log-probabilities that TRL {trl.__version__} would learn from are {off:.2g} off the model's own"
        why_not = f", by its own forward pass, for {why}"
    raise AuditError(
        f'"{auditor.name}": {kind} can be target or reference but not auditor, for {why}; name another auditor.'
    )


def _may_share(auditor: VLM, p: Params) -> bool:
    config = grpo_config(p, Path(), auditor.model.device.type, auditor.model.dtype)
    return shares(auditor, config)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def _step(
    auditor: VLM, pictures: Sequence[Picture], p: Params, processes: int, out: Path | None, own_forward: bool
) -> float:
    """The largest mean difference of a row's log-probabilities from the model's own, in one step that is undone."""
    small = replace(
        p, grpo_steps=1, grpo_images=2 * processes, group_size=2, grpo_micro_batch=min(2, p.grpo_micro_batch or 2),
        grpo_warmup=0.0, max_question_tokens=min(TOKENS, p.max_question_tokens), grpo_rollouts="transformers",
        report_to=[],
    )  # fmt: skip
    with temporary_folder("trial-") as folder, _same_random_state(), quiet():
        config = grpo_config(small, Path(folder), auditor.model.device.type, auditor.model.dtype, processes)
        config.save_strategy, config.reward_weights = "no", [1.0]
        some = [replace(picture, key=f"trial-{i}") for i, picture in enumerate(pictures[: small.grpo_images])]
        trainer = None
        try:
            trainer = TrialTrainer(
                model=auditor.model,
                processing_class=auditor.processor,
                args=config,
                reward_funcs=[_every_other],
                train_dataset=training_rows(some, p.ways, small.grpo_images, auditor.max_pixels),
                peft_config=LoraConfig(r=p.grpo_lora_rank, target_modules=TEXT_PART, task_type="CAUSAL_LM"),
                reader=auditor,
                pictures=some,
                own_forward=own_forward,
            )
            trainer.remove_callback(PrinterCallback)
            with frozen_vision(auditor.model), warnings.catch_warnings(action="ignore", category=FutureWarning):
                trainer.train()
            if out:
                trainer.model.save_pretrained(out)
            return trainer.off
        finally:  # the model as it was: the trainer has put an adapter into its layers
            if trainer is not None:
                take_adapter_off(auditor, trainer)
            vars(auditor.model).pop("forward", None)  # TRL's own, with a fused head


def take_adapter_off(auditor: VLM, trainer: GRPOTrainer) -> None:
    """Make a model what it was before a trainer put an adapter into its layers."""
    auditor.model = trainer.accelerator.unwrap_model(trainer.model).unload().eval().requires_grad_(True)
    vars(auditor.model).pop("forward", None)  # TRL's own, with a fused head


def _every_other(completions, **_) -> list[float]:
    """A reward that differs within each group, so that there is something to learn."""
    return [float(i % 2) for i in range(len(completions))]


@contextmanager
def _same_random_state() -> Iterator[None]:
    """Whatever is drawn while it lasts, those after it draw as if nothing had been."""
    plain, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(numpy)
