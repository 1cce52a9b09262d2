"""All that auditkit uses of TRL, transformers and diffusers that these keep private, in one place.

Tested with trl 1.16.0, transformers 5.23.0 and diffusers 0.42.0 (constraints.txt). Private names change without notice,
so pyproject.toml binds trl and transformers to these minor versions, and a test looks for every name in NAMES. Nothing
is imported before it is used: TRL alone takes seconds.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

TESTED = {"trl": "1.16", "transformers": "5.23"}
NAMES = {  # where each name is looked for -> the name
    "trl.GRPOTrainer": "_get_per_token_logps_and_entropies",
    "trl.trainer.grpo_trainer.GRPOTrainer": "_generate_and_score_completions",
    "transformers.Trainer": "_load_from_checkpoint",
    "transformers.ProcessorMixin": "_get_arguments_from_pretrained",
    "transformers.AutoModel": "_model_mapping",
    "transformers.AutoModelForImageTextToText": "_model_mapping",
    "transformers.PreTrainedConfig": "_attn_implementation",
    "diffusers.models.cache_utils.CacheMixin": "_reset_stateful_cache",
}


# ---- TRL's GRPOTrainer -----------------------------------------------------------------------------------------------


def log_metric(trainer: Any, name: str, value: float) -> None:
    """Add a value to what a GRPOTrainer logs at the end of its step, as the mean over all that was added."""
    trainer._metrics["train"][name].append(value)


def micro_batch(trainer: Any) -> int:
    """Which micro-batch of its step a GRPOTrainer computes, from 0 on."""
    return trainer._step % trainer.args.steps_per_generation


class CompletionInputs:
    """Put before GRPOTrainer: `completion_inputs` may change what the model gets beside its tokens."""

    def completion_inputs(self, inputs: dict, completion: int) -> dict:
        """The inputs [rows, tokens] of a forward pass, whose last `completion` tokens are the completions."""
        return inputs

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *more, **inputs):
        inputs = self.completion_inputs(inputs, logits_to_keep)
        return super()._get_per_token_logps_and_entropies(  # type: ignore[misc]  # GRPOTrainer's
            model, input_ids, attention_mask, logits_to_keep, *more, **inputs
        )


class LearntRows:
    """Put before GRPOTrainer: says of each micro-batch which rows of the data set it is about, and what it learnt from.

    `learnt_logps` [rows, C] are the log-probabilities that the last loss was made of.
    """

    def _generate_and_score_completions(self, inputs):
        self._given = inputs
        made = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        return made | {"given": torch.arange(len(inputs))}  # shuffled and cut like all the rest

    def learnt_rows(self, inputs: dict) -> list[dict]:
        """The data set's rows of a micro-batch."""
        return [self._given[i] for i in inputs["given"].tolist()]

    def _get_per_token_logps_and_entropies(self, *what, **inputs):
        out = super()._get_per_token_logps_and_entropies(*what, **inputs)  # type: ignore[misc]
        self.learnt_logps = out[0].detach()
        return out


# ---- transformers' Trainer -------------------------------------------------------------------------------------------


class OwnCheckpoints:
    """Put before Trainer: `load_weights` may read a checkpoint's weights in Trainer's stead."""

    def load_weights(self, checkpoint: str) -> bool:
        """Whether the weights of a checkpoint were read here; if not, Trainer reads them."""
        return False

    def _load_from_checkpoint(self, checkpoint, model=None):
        if not self.load_weights(checkpoint):
            super()._load_from_checkpoint(checkpoint, model)  # type: ignore[misc]  # Trainer's


# ---- transformers' models and processors -----------------------------------------------------------------------------


def reads_images(config: Any) -> bool:
    """Whether transformers has an image-text model for a configuration."""
    from transformers import AutoModelForImageTextToText

    return type(config) in AutoModelForImageTextToText._model_mapping


def model_class(config: Any) -> Any:
    """The bare model class of a configuration. Raises KeyError where there is none."""
    from transformers import AutoModel

    return AutoModel._model_mapping[type(config)]


def attention_of(config: Any) -> str:
    """The attention implementation that a configuration's model uses, such as "sdpa" or "eager"."""
    return config._attn_implementation


def without_video(kind: Any) -> Any:
    """A processor's class without its video part, which is the last of its parts."""
    from transformers import ProcessorMixin

    class WithoutVideo(ProcessorMixin):
        """Between the class and ProcessorMixin, which would insist on the part."""

        video_processor = SimpleNamespace(num_frames=None, fps=None)  # what SmolVLM's looks up, also without a video

        def __init__(self, *parts, video_processor=None, **named):
            super().__init__(*parts[: len(self.get_attributes())], **named)

        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in super().get_attributes() if name != "video_processor"]

        @classmethod
        def _get_arguments_from_pretrained(cls, *place, **how):
            return [*super()._get_arguments_from_pretrained(*place, **how), None]

    return type(kind.__name__, (kind, WithoutVideo), {"__module__": kind.__module__})


# ---- diffusers -------------------------------------------------------------------------------------------------------


def empty_cache(denoiser: Any) -> None:
    """Empty what a diffusers model with an enabled cache keeps from one step to the next."""
    denoiser._reset_stateful_cache()
