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
    "trl.trainer.GRPOTrainer": "_compute_loss",
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

    `learnt_logps` [rows, C] are the log-probabilities that the last loss was made of. Where `own_forward` is set, they
    are those of `own_logps`, not of GRPOTrainer, which then sees nothing of the pictures.
    """

    own_forward = False
    processing_class: Any
    rows_at_work: list[dict]  # those of the data set that are being written about, or learnt from

    def own_logps(
        self, model: Any, rows: list[dict], completions: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The log-probabilities and entropies [rows, C] of completions [rows, C], where their mask is 1."""
        raise NotImplementedError

    def _generate_and_score_completions(self, inputs):
        self._given = self.rows_at_work = inputs
        processor = self.processing_class
        if self.own_forward:
            self.processing_class = _WithoutPictures(processor)
        try:
            made = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        finally:
            self.processing_class = processor
        return made | {"given": torch.arange(len(inputs))}  # shuffled and cut like all the rest

    def learnt_rows(self, inputs: dict) -> list[dict]:
        """The data set's rows of a micro-batch."""
        return [self._given[i] for i in inputs["given"].tolist()]

    def _compute_loss(self, model, inputs):
        self.rows_at_work = self.learnt_rows(inputs)
        return super()._compute_loss(model, inputs)  # type: ignore[misc]

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *more, **inputs):
        if self.own_forward:
            size = (more[0] if more else inputs.get("batch_size")) or len(input_ids)
            ends, mask = input_ids[:, -logits_to_keep:].split(size), attention_mask[:, -logits_to_keep:].split(size)
            parts = [
                self.own_logps(model, self.rows_at_work[i * size : (i + 1) * size], *part)
                for i, part in enumerate(zip(ends, mask, strict=True))
            ]
            out = (torch.cat([logps for logps, _ in parts]), torch.cat([entropies for _, entropies in parts]), None)
        else:
            out = super()._get_per_token_logps_and_entropies(  # type: ignore[misc]
                model, input_ids, attention_mask, logits_to_keep, *more, **inputs
            )
        self.learnt_logps = out[0].detach()
        return out


class _WithoutPictures:
    """A processor that, called, gives one number a picture: enough for GRPOTrainer to deal rows out by.

    A chat is still rendered and tokenized by the processor itself, pictures and all, but as tensors, which Ovis 2's
    needs.
    """

    def __init__(self, processor: Any):
        self.processor = processor

    def __getattr__(self, name: str):
        return getattr(self.processor, name)

    def apply_chat_template(self, *chats: Any, **how: Any) -> Any:
        if how.get("tokenize"):
            how["processor_kwargs"] = {"images_kwargs": {"return_tensors": "pt"}} | how.get("processor_kwargs", {})
        return self.processor.apply_chat_template(*chats, **how)

    def __call__(self, images, **_) -> dict:
        return {"pixel_values": torch.zeros(sum(map(len, images)), 1)}


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
