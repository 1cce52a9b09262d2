"""What a model reads: its processor, the whole text of a prompt, and the tensors of a batch.

The families differ in all three, and only here: where the beginning-of-sequence token comes from, which tokens see each
other in both directions, and what describes a picture besides its pixels.

`vlm` is a loaded model (models/transformers.py, which imports this module).
"""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from auditkit.errors import AuditError
from auditkit.models.confined import NOT_TAKEN, refuse_unruly_template
from auditkit.models.offload import shrunk
from auditkit.models.trainer_internals import without_video
from auditkit.text import short_error

# PaliGemma is asked with a task prefix and has no chat template; its processor adds BOS and "\n" of its own.
PALIGEMMA = (
    "{%- for m in messages if m.role == 'user' -%}{%- if m.content is string -%}{{- 'answer en ' + m.content -}}"
    "{%- else -%}{%- for c in m.content if c.type == 'image' -%}{{- '<image>' -}}{%- endfor -%}{{- 'answer en ' -}}"
    "{%- for c in m.content if c.type == 'text' -%}{{- c.text -}}{%- endfor -%}{%- endif -%}{%- endfor -%}"
)


def load_processor(place: str, how: dict) -> Any:
    """The processor of a model, by AutoProcessor, settled so that whoever uses it, TRL too, gets the same tokens.

    Processors that also read videos need torchvision for it. Where that is not installed, they are loaded without their
    video part, which nothing here asks for.

    Args:
        place: a folder or a hub id.
        how: arguments of `from_pretrained`.

    Raises what transformers raises.
    """
    from transformers import AutoConfig, AutoProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.utils import is_torchvision_available

    kind = None
    if not is_torchvision_available():
        kind = PROCESSOR_MAPPING.get(type(AutoConfig.from_pretrained(place, **how)), None)
    if kind is not None and "video_processor" in kind.get_attributes():
        return settled(without_video(kind).from_pretrained(place, **how))
    return settled(AutoProcessor.from_pretrained(place, **how))


def settled(processor: Any) -> Any:
    """The processor itself: padding left and only if asked, beginning a chat once, PaliGemma's with a template."""
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:
        return processor
    if is_paligemma(processor) and not processor.chat_template:
        processor.chat_template = PALIGEMMA
    tokenizer.padding_side = "left"  # a decoder continues at the right end
    if getattr(processor, "text_kwargs", {}).get("padding"):  # Gemma 4's: TRL would take the padding for prompt
        processor.text_kwargs = processor.text_kwargs | {"padding": False}
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if getattr(processor, "chat_template", None):
        refuse_unruly_template(processor.chat_template, tokenizer.special_tokens_map)
    if getattr(processor, "chat_template", None) and tokenizer.bos_token:
        if _rendered(processor, "?", True).startswith(tokenizer.bos_token):
            tokenizer.add_bos_token = False  # or a chat's text, tokenized, would begin twice
    return processor


def is_paligemma(processor: Any) -> bool:
    """PaliGemma is no chat model: a task prefix, read in both directions, and a suffix behind it."""
    return "paligemma" in type(processor).__name__.lower()


def chat(vlm: Any, prompt: str, image: bool = True) -> str:
    """The whole text a model gets for a prompt about one image, or about none, as its chat template writes it.

    Raises AuditError when the processor has no chat template, and for a PaliGemma without an image.
    """
    if not image and is_paligemma(vlm.processor):
        raise AuditError(f'"{vlm.name}": a PaliGemma reads no text without a picture; name another model for that.')
    if not getattr(vlm.processor, "chat_template", None):
        raise AuditError(f'"{vlm.name}": its processor has no chat template; add a chat_template.jinja to its folder.')
    return _rendered(vlm.processor, prompt, image)


def ending(vlm: Any, prompt: str, answer: str) -> str:
    """What follows the text of a prompt when the model has answered, its end of turn included.

    Some templates leave the end of the last turn out (LLaVA's, DeepSeek's, GLM's); then it is the tokenizer's end.

    Raises AuditError when the chat template writes the prompt differently once there is an answer.
    """
    if is_paligemma(vlm.processor):
        return answer + vlm.processor.tokenizer.eos_token
    text, before = _rendered(vlm.processor, prompt, True, answer), chat(vlm, prompt)
    if not text.startswith(before):
        raise AuditError(f'"{vlm.name}": its chat template writes a prompt differently once there is an answer.')
    end, tokenizer = text[len(before) :].rstrip(), vlm.processor.tokenizer
    if end_tokens(vlm.model, tokenizer).isdisjoint(tokenizer(end, add_special_tokens=False)["input_ids"]):
        end += tokenizer.eos_token
    return end


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The tokens with which a model ends an answer."""
    ends = model.generation_config.eos_token_id
    return {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id}


def leaves_pictures_out(processor: Any) -> bool:
    """Whether the chat template writes the same for a question on a picture as for one on none, or no text at all."""
    with_one = _rendered(processor, "?", True)
    return "'type': 'image'" in with_one or with_one == _rendered(processor, "?", False)


def refuse_encoder_decoder(vlm: Any) -> None:
    """Raise AuditError for a model that reads a prompt in one part and writes in another: it is asked, not trained."""
    if getattr(getattr(vlm.model, "config", None), "is_encoder_decoder", False):
        raise AuditError(
            f'"{vlm.name}": a {type(vlm.model).__name__} is an encoder-decoder, which can be target or reference, but '
            "neither auditor nor repaired; name a decoder-only model for that."
        )


def _rendered(processor, prompt: str, image: bool, answer: str | None = None) -> str:
    chat = [{"role": "user", "content": [{"type": "image"}] * image + [{"type": "text", "text": prompt}]}]
    if answer is not None:
        chat.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    try:
        return processor.apply_chat_template(chat, add_generation_prompt=answer is None)
    except AuditError:
        raise
    except Exception as error:  # whatever a template can do wrong
        raise AuditError(f"{NOT_TAKEN} ({type(error).__name__}: {short_error(error)}).") from error


def batch(vlm: Any, images: Sequence, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """One batch of n images, or None, and n whole texts as the model takes it, texts ending together at the right.

    Raises AuditError, with its size, for a picture that the model's processor refuses.
    """
    try:
        inputs = _processed(vlm, images, texts)
    except Exception:
        for image, text in zip(images, texts, strict=True):
            _named_if_refused(vlm, image, text)
        raise
    inputs = inputs.to(next(vlm.model.parameters()).device, dtype=vlm.model.dtype)
    inputs.pop("labels", None)  # PaliGemma's processor makes some even where there is nothing to learn
    return dict(inputs)


def _processed(vlm: Any, images: Sequence, texts: Sequence[str]) -> Any:
    pictures = [[] if image is None else [shrunk(image, vlm.max_pixels)] for image in images]
    return vlm.processor(
        text=list(texts),
        images=pictures if any(pictures) else None,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )


def _named_if_refused(vlm: Any, image: Any, text: str) -> None:
    """Raise AuditError for a picture that is refused where a plain one of a common size is taken."""
    if image is None:
        return
    try:
        _processed(vlm, [image], [text])
    except Exception as error:
        _processed(vlm, [Image.new("RGB", (224, 224), "grey")], [text])  # else it is not the picture
        raise AuditError(
            f'"{vlm.name}": its processor refuses a picture of {image.width} x {image.height} pixels '
            f"({short_error(error)}); take pictures like it out of the images."
        ) from error


def continued(
    vlm: Any, images: Sequence, texts: Sequence[str], endings: Sequence[torch.Tensor], prompts: dict | None = None
) -> dict[str, torch.Tensor]:
    """A batch of n images and n whole texts, each with tokens that come after it: what a model wrote, or should write.

    Prompts are tokenized on their own, so that an ending's first token is predicted from the same state as when it is
    generated. All endings stand at the right end, in the last columns.

    Args:
        prompts: the n prompts as the model takes them, where they have been made already; else `batch` makes them.

    Returns what the model's processor returns, and labels [n, tokens], -100 but on the endings.

    Raises AuditError for an encoder-decoder, whose endings do not stand behind the prompt.
    """
    refuse_encoder_decoder(vlm)
    inputs = batch(vlm, images, texts) if prompts is None else prompts
    shape, prompt = inputs["input_ids"].shape, inputs["attention_mask"].bool()
    endings = [end.to(prompt.device) for end in endings]
    # what kind of token an ending is: text, which is 0, but in PaliGemma, where 1 is what sees only what came before
    kind = torch.ones_like if is_paligemma(vlm.processor) else torch.zeros_like
    added = {"input_ids": endings, "attention_mask": [torch.ones_like(end) for end in endings]}
    added |= dict.fromkeys(("token_type_ids", "mm_token_type_ids"), [kind(end) for end in endings])
    fill = {"input_ids": vlm.processor.tokenizer.pad_token_id}

    def join(rows: list, value: int) -> torch.Tensor:
        return pad_sequence(rows, batch_first=True, padding_value=value, padding_side="left")

    for key, ends in added.items():
        if key in inputs and inputs[key].shape == shape:
            rows = [torch.cat([row[keep], end]) for row, keep, end in zip(inputs[key], prompt, ends, strict=True)]
            inputs[key] = join(rows, fill.get(key, 0))
    if (
        "cross_attention_mask" in inputs
    ):  # Mllama's [n, tokens, images, tiles]; an ending sees what the prompt's end does
        seen = inputs["cross_attention_mask"]
        rows = [
            torch.cat([row[keep], row[-1:].expand(len(end), *row.shape[1:])])
            for row, keep, end in zip(seen, prompt, endings, strict=True)
        ]
        inputs["cross_attention_mask"] = join(rows, 0)
    lengths = prompt.sum(1).tolist()
    labels = [torch.cat([end.new_full((n,), -100), end]) for n, end in zip(lengths, endings, strict=True)]
    return inputs | {"labels": join(labels, -100)}
