"""Language models without eyes: as a judge of answers, or to name failure types."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from auditkit import specs
from auditkit.errors import AuditError
from auditkit.models import downloads, weights
from auditkit.models.base import Writer, quiet
from auditkit.models.confined import refuse_unruly_template
from auditkit.models.device import choose_device, choose_dtype
from auditkit.models.load import load_model
from auditkit.models.trainer_internals import reads_images
from auditkit.params import Params
from auditkit.text import short_error


@dataclass
class TextModel:
    """A language model without eyes; a picture given to it is not looked at."""

    name: str
    model: Any
    tokenizer: Any
    batch_size: int
    parked: Any = None  # Parked: its weights' place while it does not write

    @torch.inference_mode()
    def write(
        self, images: Sequence, prompts: Sequence[str], max_new_tokens: int, temperature: float = 0.0
    ) -> list[str]:
        """What it writes to one batch of prompts, greedily or sampled; without thinking first, if its template can."""
        inputs = self.tokenizer.apply_chat_template(
            [[{"role": "user", "content": prompt}] for prompt in prompts],
            add_generation_prompt=True,
            enable_thinking=False,
            padding=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self.model.device)
        how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
        with quiet():
            out = self.model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                pad_token_id=self.tokenizer.pad_token_id,
                **how or {"do_sample": False},
            )
        new = out[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)]


def load_language_model(
    text: str,
    key: str = "same",
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int = 128,
    turns: bool = False,
) -> Writer:
    """The model that a text names: as an image-text model where it is one, else as a language model.

    Args:
        text, device, dtype, batch_size, turns: as for `load_model`.
        key: the parameter that names it, for what is said of errors.

    Raises AuditError for a model that cannot be had, for weights that are no safetensors, and for no chat template.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from auditkit.models.offload import Parked, quantization

    spec, seeing = specs.parse(text), partial(load_model, text, device, dtype, batch_size, turns=turns)
    if spec.engine != "transformers":
        return seeing()
    own = spec.options
    place, source = downloads.source(downloads.resolve(text), text, own)
    device = choose_device(own.get("device", device))
    turns = turns and device != "cpu" and "bits" not in own
    how: dict = {"dtype": choose_dtype(own.get("dtype", dtype), device), "attn_implementation": own.get("attention")}
    if device != "cpu" and not turns:
        how["device_map"] = {"": device}
    if "bits" in own:
        how["quantization_config"] = quantization(own["bits"], how["dtype"])
    try:
        config = AutoConfig.from_pretrained(place, **source)
        sees = reads_images(config) or "AutoModelForImageTextToText" in getattr(config, "auto_map", {})
        with quiet():
            tokenizer = None if sees else AutoTokenizer.from_pretrained(place, padding_side="left", **source)
    except Exception as error:  # its files can be wrong in any way: tokenizers raises bare Exceptions
        raise AuditError(f'{key}: "{text}" is no language model here ({short_error(error)}).') from error
    if tokenizer is None:
        return seeing()
    downloads.refuse_unsafe_index(place, text, source)
    try:
        with quiet(), weights.no_pickles():
            model = AutoModelForCausalLM.from_pretrained(place, use_safetensors=True, **source, **how).eval()
    except Exception as error:
        downloads.refuse_weights(error, place, text, source)
    if not tokenizer.chat_template:
        raise AuditError(f'{key}: "{text}" has no chat template, so it cannot be asked; name an instruct model.')
    try:
        refuse_unruly_template(tokenizer.chat_template, tokenizer.special_tokens_map, image=False)
    except AuditError as error:
        raise AuditError(f'{key}: "{text}": {error}') from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    parked = Parked(model, device) if turns else None
    return TextModel(spec.name, model, tokenizer, own.get("batch_size", batch_size), parked)


def language_model_loader(p: Params) -> Callable[..., Writer]:
    """`load_language_model` as a parameter file wants it: with its device, dtype, batch_size and memory."""
    return partial(
        load_language_model, device=p.device, dtype=p.dtype, batch_size=p.batch_size, turns=p.memory == "turns"
    )
