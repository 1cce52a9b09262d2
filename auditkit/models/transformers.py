"""Models that look at a picture and write: load any Hugging Face one, ask it in batches, remember answers.

The miniature models, a hub id and a local folder go through the same lines: `AutoModelForImageTextToText`,
`AutoProcessor` and the model's own chat template. Weights are read from safetensors only, and code that comes with a
model is run only where its spec asks for it by name (`?trust_remote_code=yes`).

What asks a model needs three things of it: `name`, `batch_size`, and `write`, which answers one batch. `VLM` has them
here by transformers; models behind other engines (models/openai.py, models/vllm.py) have the same three.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError

from auditkit.errors import AuditError
from auditkit.models import downloads, processors
from auditkit.models.base import quiet
from auditkit.models.batching import in_batches
from auditkit.models.offload import Parked, at_work, quantization
from auditkit.params import project_root
from auditkit.text import short_error


@dataclass
class VLM:
    """A model and its processor, under the name that records use for it."""

    name: str
    model: Any
    processor: Any
    batch_size: int = 128
    max_pixels: int | None = None  # larger pictures are shrunk to this many
    parked: Parked | None = field(default=None, repr=False)  # its weights' place while it does not write

    def write(
        self,
        images: Sequence[Image.Image | None],
        prompts: Sequence[str],
        max_new_tokens: int,
        temperature: float = 0.0,
    ) -> list[str]:
        """What the model writes to one batch of (image, prompt) pairs, stripped; an image of None is no image."""
        return _write(self, list(images), list(prompts), max_new_tokens, temperature)


@torch.inference_mode()
def token_probabilities(
    vlm: VLM, images: Sequence[Image.Image], prompts: Sequence[str], texts: Sequence[str]
) -> list[list[float]]:
    """How probable each token of n texts is to the model, as what it writes to n (image, prompt) pairs."""
    found: list[list[float]] = [[] for _ in texts]
    ids = vlm.processor.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []

    def score(rows: list[int]) -> list[list[float]]:
        endings = [torch.tensor(ids[i], dtype=torch.long) for i in rows]
        inputs = processors.continued(
            vlm, [images[i] for i in rows], [processors.chat(vlm, prompts[i]) for i in rows], endings
        )
        longest = max(map(len, endings))  # the prompts' own tokens are never scored
        del inputs["labels"]
        logits = vlm.model(**inputs, logits_to_keep=longest + 1).logits[:, :-1]  # [n, longest, vocabulary]
        chances = logits.float().softmax(-1).gather(-1, inputs["input_ids"][:, -longest:, None])[..., 0]
        return [row[longest - len(end) :] for end, row in zip(endings, chances.tolist(), strict=True)]

    with at_work(vlm):
        for rows, chances in in_batches(vlm, texts, score):
            for i, row in zip(rows, chances, strict=True):
                found[i] = row
    return found


@torch.inference_mode()
def _write(vlm: VLM, images: list, prompts: list[str], max_new_tokens: int, temperature: float) -> list[str]:
    """One batch through processor, model and tokenizer."""
    model, tokenizer = vlm.model, vlm.processor.tokenizer
    texts = [processors.chat(vlm, prompt, image is not None) for image, prompt in zip(images, prompts, strict=True)]
    inputs = processors.batch(vlm, images, texts)
    how: dict = {"do_sample": False}
    if temperature:  # from the whole distribution, as GRPO samples, whatever the model's generation_config prefers
        how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    training = model.training
    model.eval()
    try:
        with quiet():
            out = model.generate(**inputs, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id, **how)
    finally:
        model.train(training)
    new = out[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


def _device(device: str) -> str:
    """The device meant: under `accelerate launch` each process has the GPU of its own rank."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise AuditError(f"device: {device} is not here: torch {torch.__version__} sees no GPU; write auto or cpu.")
        if device == "cuda" and "LOCAL_RANK" in os.environ:
            return f"cuda:{os.environ['LOCAL_RANK']}"
        if device.partition(":")[2] and int(device.partition(":")[2]) >= torch.cuda.device_count():
            raise AuditError(f"device: there is no {device}; this machine has {torch.cuda.device_count()} GPU(s).")
    return device


def _dtype(dtype: str, device: str) -> torch.dtype:
    # a GPU older than Ampere only emulates bfloat16, slowly
    bfloat16 = device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)
    if dtype == "auto":
        return torch.float32 if not device.startswith("cuda") else torch.bfloat16 if bfloat16 else torch.float16
    kind = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}.get(dtype)
    if kind is None:
        raise AuditError(f'dtype: "{dtype}" is not known; write auto, float32, bfloat16 or float16.')
    if kind == torch.bfloat16 and device.startswith("cuda") and not bfloat16:
        raise AuditError(f"dtype: {torch.cuda.get_device_name(device)} has no bfloat16; write float16 or auto.")
    return kind


def _model(place: str, spec: str | Path, dtype: torch.dtype, device: str, own: dict, how: dict):
    from transformers import AutoModelForImageTextToText

    how = how | {"dtype": dtype, "attn_implementation": own.get("attention")}
    if device != "cpu":
        how["device_map"] = {"": device}  # straight to where they are wanted, without a second copy in CPU memory
    if bits := own.get("bits"):
        how["quantization_config"] = quantization(bits, dtype)
    try:
        model, info = AutoModelForImageTextToText.from_pretrained(
            place, use_safetensors=True, output_loading_info=True, **how
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        downloads.refuse_weights(error, place, spec, how)
    if missing := sorted(info["missing_keys"]):
        raise AuditError(f'"{spec}": {place} lacks {len(missing)} tensors of the model, {missing[0]} among them.')
    return model


def _folder(adapter: str | Path) -> Path:
    """An adapter's folder: like a model's, from the working folder or else from the project's."""
    folder = next((f for f in (Path(adapter).expanduser(), project_root() / adapter) if f.is_dir()), Path(adapter))
    if not any((folder / name).is_file() for name in ("adapter_config.json", "config.json")):
        raise AuditError(
            f"{folder} is no adapter: it has no adapter_config.json, nor a whole model's config.json; name the folder "
            "that a finished training has left."
        )
    return folder


def _adapted(model, folder: Path):
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except (RuntimeError, ValueError) as error:
        raise AuditError(f"the adapter in {folder} does not fit the model ({short_error(error)}).") from error


def _base_of(folder: Path) -> str:
    from peft import PeftConfig

    base = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if not base:
        raise AuditError(f"{folder}: its adapter_config.json names no base model; load that one with adapter=.")
    return downloads.resolve(base)
