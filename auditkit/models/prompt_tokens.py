"""The tokens of prompts about images of which each has been through the processor once.

A processor writes an image's placeholders into the text and prepares its pixels at once. Of rows about the same image
one is enough for that: what the others have behind the image is text, which is tokenized alone.

`vlm` is a loaded model (models/transformers.py).
"""

from collections.abc import Sequence
from typing import Any

import torch

PER_TOKEN = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}  # [n, tokens] each


def rows_by_image(images: Sequence) -> tuple[list[int], list[int]]:
    """The first row about each image, and for each row the place of its image among them; same image: same object."""
    first: dict[int, int] = {}
    for i, image in enumerate(images):
        first.setdefault(id(image), i)
    places = {image: place for place, image in enumerate(first)}
    return list(first.values()), [places[id(image)] for image in images]


def inner(model: Any) -> Any:
    """transformers' model itself, without peft's around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def prompt_tokens(
    vlm: Any, inputs: dict, known: Sequence[str], texts: Sequence[str], of: Sequence[int]
) -> list[torch.Tensor] | None:
    """The tokens of n rows' prompts, of which only those of the first row about each image have been through the
    processor; None where tokenizing the rest alone does not give what the processor has given for those.

    Args:
        inputs: what the processor has given for the m known rows.
        known: their m whole texts.
        texts: all n whole texts.
        of: for each of the n rows, the place of its image among the m.
    """
    image_token = getattr(vlm.model.config, "image_token_id", None)
    if image_token is None:
        image_token = getattr(vlm.model.config, "image_token_index", None)
    heads, before, around = [], [], []
    tokenizer = vlm.processor.tokenizer
    for ids, mask, text in zip(inputs["input_ids"], inputs["attention_mask"].bool(), known, strict=True):
        ids = ids[mask]
        places = (ids == image_token).nonzero()
        if not len(places):
            return None
        head, tail = ids[: places[-1] + 1], ids[places[-1] + 1 :]
        written = tokenizer.decode(tail, clean_up_tokenization_spaces=False)
        if tokenizer(written, add_special_tokens=False)["input_ids"] != tail.tolist():
            return None
        start, end = _own_part(written, text)
        heads.append(head)
        before.append(text[: len(text) - (end - start)])
        around.append((written[:start], written[end:]))
    if any(not text.startswith(before[k]) for text, k in zip(texts, of, strict=True)):
        return None
    tails = [around[k][0] + text[len(before[k]) :] + around[k][1] for text, k in zip(texts, of, strict=True)]
    ids = tokenizer(tails, add_special_tokens=False)["input_ids"]
    return [
        torch.cat([heads[k], torch.tensor(row, dtype=heads[k].dtype, device=heads[k].device)])
        for row, k in zip(ids, of, strict=True)
    ]


def _own_part(written: str, text: str) -> tuple[int, int]:
    """Where in what a processor wrote behind the image the end of the text stands: from, to.

    PaliGemma's has put a token before it and a line's end behind it.

    >>> _own_part("* why?", "@ why?"), _own_part("*answer en why?.", "@answer en why?")
    ((1, 6), (1, 15))
    """
    start = next(k for k in range(len(written) + 1) if text.endswith(written[k:]))
    if start < len(written):
        return start, len(written)
    longest = next(text[k:] for k in range(len(text) + 1) if text[k:] in written)
    start = written.rfind(longest)
    return start, start + len(longest)
