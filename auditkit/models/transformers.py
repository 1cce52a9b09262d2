"""Models that transformers runs: load any Hugging Face one that looks at an image and writes, and ask it in batches.

The miniature models, a hub id and a local folder go through the same lines: `AutoModelForImageTextToText`,
`AutoProcessor` and the model's own chat template. Weights are read from safetensors only, and code that comes with a
model is run only where its spec asks for it by name (`?trust_remote_code=yes`).

What asks a model needs three things of it: `name`, `batch_size`, and `write`, which answers one batch. `VLM` has them
here by transformers; models behind other engines (models/openai.py, models/vllm.py) have the same three.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from auditkit.errors import AuditError
from auditkit.models import by_image, downloads, processors, weights
from auditkit.models.base import WrittenText, evaluating, quiet
from auditkit.models.batching import in_batches
from auditkit.models.confined import refuse_endless_patterns
from auditkit.models.device import choose_device, choose_dtype, keep_freed_memory
from auditkit.models.offload import Parked, at_work, quantization
from auditkit.runs.progress import Progress
from auditkit.specs import Spec
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
    tried: dict[str, str] = field(default_factory=dict, repr=False)  # what is found out at first (by_image.py)

    def write(
        self,
        images: Sequence[Image.Image | None],
        prompts: Sequence[str],
        max_new_tokens: int,
        temperature: float = 0.0,
    ) -> list[str]:
        """What the model writes to one batch of (image, prompt) pairs, stripped; an image of None is no image.

        Prompts without an image are a batch of their own: beside one, Mllama's text layers look at what is not there.
        """
        said: dict[int, str] = {}
        for without in (False, True):
            rows = [i for i, image in enumerate(images) if (image is None) == without]
            if rows:
                some, asked = [images[i] for i in rows], [prompts[i] for i in rows]
                said |= zip(rows, _write(self, some, asked, max_new_tokens, temperature), strict=True)
        return [said[i] for i in range(len(said))]


@torch.inference_mode()
def token_probabilities(
    vlm: VLM, images: Sequence[Image.Image], prompts: Sequence[str], texts: Sequence[str]
) -> list[list[float]]:
    """How probable each token of n texts is to the model, as what it writes to n (image, prompt) pairs."""
    found: list[list[float]] = [[] for _ in texts]
    ids = vlm.processor.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []

    def score(rows: list[int]) -> list[list[float]]:
        endings = [torch.tensor(ids[i], dtype=torch.long) for i in rows]
        shown, texts = [images[i] for i in rows], [processors.chat(vlm, prompts[i]) for i in rows]
        longest = max(map(len, endings))  # the prompts' own tokens are never scored
        if begun := by_image.begin(vlm, shown, texts, endings, new=0):
            inputs = begun.rest
        else:
            inputs = processors.continued(vlm, shown, texts, endings, by_image.whole_rows(vlm, shown, texts))
            del inputs["labels"]
        # [n, longest, vocabulary], cut here too, for not every model heeds logits_to_keep
        logits = vlm.model(**inputs, logits_to_keep=longest + 1).logits[:, -longest - 1 : -1]
        chances = logits.float().softmax(-1).gather(-1, inputs["input_ids"][:, -longest:, None])[..., 0]
        return [row[longest - len(end) :] for end, row in zip(endings, chances.tolist(), strict=True)]

    with at_work(vlm), evaluating(vlm.model), Progress(f"texts weighed by {vlm.name}", len(texts)) as line:
        for rows, chances in in_batches(vlm, texts, score, together=[id(image) for image in images]):
            for i, row in zip(rows, chances, strict=True):
                found[i] = row
            line.add(len(rows))
    return found


def load_transformers(
    parsed: Spec,
    spec: str | Path,
    device: str,
    dtype: str,
    batch_size: int,
    adapter: str | Path | None,
    turns: bool,
) -> VLM:
    """A folder's or a hub id's model, with its adapters merged into it; arguments and errors as in `load_model`.

    Args:
        parsed: `spec` taken apart; its own options go before the arguments.
    """
    own, name = parsed.options, parsed.name
    place = downloads.resolve(spec)
    adapters = [
        weights.adapter_folder(folder) for folder in (*parsed.adapters, *([] if adapter is None else [adapter]))
    ]
    if adapter is not None:
        name = f"{name}+{Path(adapter).name}"
    if (Path(place) / "adapter_config.json").is_file():
        place, adapters = _base_of(Path(place)), [Path(place), *adapters]
    device = choose_device(own.get("device", device))
    if device == "cpu":
        keep_freed_memory()
    kind = choose_dtype(own.get("dtype", dtype), device)
    bits = own.get("bits")
    if bits and adapters:
        raise AuditError(f'"{spec}": an adapter cannot be merged into weights of {bits} bits; leave ?bits out.')
    turns = turns and device != "cpu" and not bits
    with quiet():
        place, how = downloads.source(place, spec, own)
        downloads.config_of(place, spec, how)
        processor = downloads.processor_of(place, spec, how)
        whole = [i for i, folder in enumerate(adapters) if (folder / "config.json").is_file()]
        last, adapters = (str(adapters[whole[-1]]), adapters[whole[-1] + 1 :]) if whole else (place, adapters)
        model = _model(last, spec, kind, "cpu" if turns else device, own, how)
        for folder in adapters:
            model = _adapted(model, folder)
    parked = Parked(model, device) if turns else None
    return VLM(name, model.eval(), processor, batch_size, own.get("max_pixels"), parked)


@torch.inference_mode()
def _write(vlm: VLM, images: list, prompts: list[str], max_new_tokens: int, temperature: float) -> list[str]:
    """One batch through processor, model and tokenizer."""
    model, tokenizer = vlm.model, vlm.processor.tokenizer
    texts = [processors.chat(vlm, prompt, image is not None) for image, prompt in zip(images, prompts, strict=True)]
    how: dict = {"do_sample": False}
    if temperature:  # from the whole distribution, as GRPO samples, whatever the model's generation_config prefers
        how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    with evaluating(model), quiet():
        inputs = by_image.prompts(vlm, images, texts, max_new_tokens)
        out = model.generate(**inputs, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id, **how)
    new = written(model, inputs["input_ids"], out)
    texts = [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    cut = _cut(model, tokenizer, new, max_new_tokens)
    return [WrittenText(text, {"cut": True}) if short else text for text, short in zip(texts, cut, strict=True)]


def _cut(model, tokenizer, new: torch.Tensor, limit: int) -> list[bool]:
    """Whether each row of what was written [n, tokens] ended by the limit: as long as it may be, without an end."""
    ends = processors.end_tokens(model, tokenizer)
    rows = new[:, -limit:].tolist()  # without the token that starts an encoder-decoder's, which may be an end's
    return [len(row) == limit and ends.isdisjoint(row) for row in rows]


def written(model: Any, prompts: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """What `generate` added to prompts [n, tokens], of what it returned [n, tokens].

    A decoder returns its prompt with what it wrote behind it. What an encoder-decoder returns is its decoder's own, and
    so is what a model returns that hands embeddings on to a part of its own; none of it is prompt.
    """
    length = prompts.shape[1]
    if model.config.is_encoder_decoder or not torch.equal(out[:, :length], prompts):
        return out
    return out[:, length:]


def _model(place: str, spec: str | Path, dtype: torch.dtype, device: str, own: dict, how: dict):
    from transformers import AutoModelForImageTextToText

    how = how | {"dtype": dtype, "attn_implementation": own.get("attention")}
    if device != "cpu":
        how["device_map"] = {"": device}  # straight to where they are wanted, without a second copy in CPU memory
    if bits := own.get("bits"):
        how["quantization_config"] = quantization(bits, dtype)
    downloads.refuse_unsafe_index(place, spec, how)
    try:
        with weights.no_pickles():
            model, info = AutoModelForImageTextToText.from_pretrained(
                place, use_safetensors=True, output_loading_info=True, **how
            )
    except Exception as error:  # a configuration that fits no weights fails in any way
        downloads.refuse_weights(error, place, spec, how)
    if missing := sorted(info["missing_keys"]):
        raise AuditError(f'"{spec}": {place} lacks {len(missing)} tensors of the model, {missing[0]} among them.')
    return model


def _adapted(model, folder: Path):
    from peft import PeftModel

    refuse_endless_patterns(folder, [name for name, _ in model.named_modules()])
    try:
        # the warning is peft's own, about a next version
        with weights.no_pickles(), warnings.catch_warnings(action="ignore", category=FutureWarning):
            return PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except Exception as error:  # whatever stands in its configuration
        raise AuditError(f"the adapter in {folder} does not fit the model ({short_error(error)}).") from error


def _base_of(folder: Path) -> str:
    base = weights.read_object(folder / weights.ADAPTER, folder).get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise AuditError(f"{folder}: its adapter_config.json names no base model; load that one with adapter=.")
    return downloads.resolve(base)
