"""One small GRPO step before a training: does TRL's trainer learn from the log-probabilities that are the model's own?

TRL prepares what a model is given, and applies the last layer, in its own way. Where a family needs an input that TRL
does not hand on, or has a head that TRL takes for another, the gradients are those of another model, and nothing in the
training's figures shows it. So the trainer computes one step on a few rows, by all that a training runs through, and
each row's log-probabilities are held against one plain forward pass. The model is left as it was.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import trl
from accelerate.utils.memory import should_reduce_batch_size
from peft import LoraConfig
from transformers import PrinterCallback
from trl import GRPOTrainer

from auditkit.auditor.grpo_setup import grpo_config, training_rows
from auditkit.auditor.write import auditor_prompt
from auditkit.data.source import Picture
from auditkit.errors import AuditError
from auditkit.models import processors
from auditkit.models.base import quiet
from auditkit.models.lora import TEXT_PART, adapts
from auditkit.models.offload import frozen_vision
from auditkit.models.trainer_internals import CompletionInputs, LearntRows
from auditkit.models.transformers import VLM
from auditkit.params import Params
from auditkit.runs.temporary import temporary_folder

TOKENS = 8  # of a completion
# the largest mean difference of a row's log-probabilities that is rounding: a wrong head or input makes 0.3 and more
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.1}


class FamilyTrainer(CompletionInputs, GRPOTrainer):
    """TRL's GRPOTrainer, with what some families' processors return put right."""

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


class TrialTrainer(LearntRows, FamilyTrainer):
    """A trainer that holds the log-probabilities it learns from against those of a plain forward pass."""

    def __init__(self, *args, reader: VLM, pictures: Sequence[Picture], **kwargs):
        super().__init__(*args, **kwargs)
        self.reader, self.pictures, self.off = reader, {picture.key: picture for picture in pictures}, 0.0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        kept = inputs["completion_mask"].bool()
        endings = [ids[mask] for ids, mask in zip(inputs["completion_ids"], kept, strict=True)]
        own = self._plain(model, self.learnt_rows(inputs), endings)
        for theirs, mask, plain in zip(self.learnt_logps, kept, own, strict=True):
            row_off = (theirs[mask].float() - plain).abs().mean().item()
            self.off = max(self.off, row_off) if row_off == row_off else float("inf")  # not a number is not the same
        return loss

    @torch.no_grad()
    def _plain(self, model, rows: Sequence[dict], endings: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The log-probability of each token of each ending [C] behind its prompt, in one forward pass."""
        reader = replace(self.reader, model=self.accelerator.unwrap_model(model))
        images = [self.pictures[row["picture"]].image for row in rows]
        texts = [processors.chat(reader, auditor_prompt(row["way"])) for row in rows]
        inputs, longest = processors.continued(reader, images, texts, endings), max(map(len, endings))
        del inputs["labels"]
        with self.accelerator.autocast():
            logits = reader.model(**inputs, logits_to_keep=longest + 1).logits[:, :-1]
        logps = (logits.float() / self.args.temperature).log_softmax(-1)
        found = logps.gather(-1, inputs["input_ids"][:, -longest:, None])[..., 0]
        return [row[longest - len(end) :] for row, end in zip(found, endings, strict=True)]


def trial_step(
    auditor: VLM, pictures: Sequence[Picture], p: Params, processes: int = 1, out: Path | None = None
) -> str:
    """Take one small GRPO step on a model and undo it; what was found, in words.

    The random state is as it was before, so a training that follows draws the same.

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
    small = replace(
        p, grpo_steps=1, grpo_images=2 * processes, group_size=2, grpo_micro_batch=min(2, p.grpo_micro_batch or 2),
        grpo_warmup=0.0, max_question_tokens=min(TOKENS, p.max_question_tokens), grpo_rollouts="transformers",
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
            )
            trainer.remove_callback(PrinterCallback)
            with frozen_vision(auditor.model), warnings.catch_warnings(action="ignore", category=FutureWarning):
                trainer.train()
            if out:
                trainer.model.save_pretrained(out)
        except AuditError:
            raise
        except Exception as error:  # whatever TRL or the model stumbles over, it is why there can be no training
            if should_reduce_batch_size(error):
                raise AuditError(
                    f'"{auditor.name}": out of memory in a training step of {small.grpo_micro_batch} questions; '
                    "make grpo_micro_batch or ?max_pixels smaller."
                ) from error
            why = " ".join(str(error).split())[:120]
            raise AuditError(
                f'"{auditor.name}": a {type(auditor.model).__name__} can be target or reference but not auditor, for '
                f"TRL {trl.__version__} cannot take a step with it ({type(error).__name__}: {why}); name another one."
            ) from error
        finally:  # the model as it was: the trainer has put an adapter into its layers
            if trainer is not None:
                auditor.model = trainer.accelerator.unwrap_model(trainer.model).unload().eval().requires_grad_(True)
            vars(auditor.model).pop("forward", None)  # TRL's own, with a fused head
    if trainer.off > TOLERANCE[auditor.model.dtype]:
        raise AuditError(
            f'"{auditor.name}": a {type(auditor.model).__name__} can be target or reference but not auditor, for the '
            f"log-probabilities that TRL {trl.__version__} would learn from are {trainer.off:.2g} off the model's own; "
            "name another auditor."
        )
    return f"log-probabilities in a GRPO step are the model's own, within {trainer.off:.1g}"


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
