"""Encode an image once for all rows about it, where a model cannot share more than that.

Where image and question see each other in both directions, or positions are counted in two dimensions, what was read of
one row cannot stand for another (models/by_image.py). What the vision part makes of the image alone still can: the
processor prepares each image once, the tower encodes it once, and its features are repeated for the rows, in the
model's own argument for them (`mm_encoder_outputs`).

Whether a model is one is decided by what it is, and tried on two rows before the first batch.

`vlm` is a loaded model (models/transformers.py).
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from auditkit.models import processors
from auditkit.models.prompt_tokens import PER_TOKEN, inner, prompt_tokens, rows_by_image

GIVEN = "mm_encoder_outputs"  # the argument of `forward` and `generate` that takes an encoder's outputs by modality
ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.03}  # of a probability, by the number format


def takes_features(vlm: Any) -> bool:
    """Whether a model can be given an image's features in place of its pixels."""
    model = inner(vlm.model)
    return (
        not model.config.is_encoder_decoder
        and GIVEN in inspect.signature(model.forward).parameters
        and hasattr(model, "get_image_features")
    )


def with_features(vlm: Any, images: Sequence, texts: Sequence[str]) -> dict[str, Any] | None:
    """What a model takes for n whole texts about n images, each image encoded once; None where no two rows share one,
    or the model cannot be given features.

    Args:
        images: one for each of n rows; the same object for rows about the same image.
        texts: whole texts, as a chat template writes them.
    """
    if None in images or not takes_features(vlm):
        return None
    firsts, of = rows_by_image(images)
    if len(firsts) == len(images) or tried(vlm, "features", _next_tokens, images, texts):
        return None
    return _with_features(vlm, images, texts, firsts, of)


def tried(vlm: Any, what: str, chances: Callable, images: Sequence, texts: Sequence[str]) -> str:
    """Why a way of sharing is not used for a model, "" where it is; tried once, on two rows about one image.

    Args:
        what: "shared" or "features".
        chances: (vlm, two images, two texts) -> the next token's probabilities [2, vocabulary] when they share the
            image, and when they do not.
    """
    if what not in vlm.tried:
        firsts, of = rows_by_image(images)
        second = next(i for i, place in enumerate(of) if firsts[place] != i)
        pair = [firsts[of[second]], second]
        with torch.no_grad():
            shared, whole = chances(vlm, [images[i] for i in pair], [texts[i] for i in pair])
        off = (shared - whole).abs().max().item()
        vlm.tried[what] = "" if off <= ROUNDING[vlm.model.dtype] else f"a probability is {off:.2g} off"
        if why := vlm.tried[what]:
            how = "read whole" if what == "shared" else "encoded each"
            print(f'"{vlm.name}": rows about one image are {how}, for shared {why}.', flush=True)
    return vlm.tried[what]


def _next_tokens(vlm: Any, images: Sequence, texts: Sequence[str]) -> list[torch.Tensor]:
    whole = processors.batch(vlm, images, texts)
    shared = _with_features(vlm, images, texts, [0], [0, 0])
    return [
        vlm.model(**inputs, logits_to_keep=1).logits[:, -1].float().softmax(-1)
        for inputs in (whole if shared is None else shared, whole)
    ]


def _with_features(
    vlm: Any, images: Sequence, texts: Sequence[str], firsts: Sequence[int], of: Sequence[int]
) -> dict[str, Any] | None:
    """`with_features`, given the first row about each of m images and, for each row, the place of its image."""
    known = [texts[i] for i in firsts]
    inputs = processors.batch(vlm, [images[i] for i in firsts], known)
    more = {key: value for key, value in inputs.items() if key not in PER_TOKEN and "pixel" not in key}
    tokens = prompt_tokens(vlm, inputs, known, texts, of)
    if tokens is None or any(len(value) != len(firsts) for value in more.values()):
        return None
    model = inner(vlm.model)
    wanted = inspect.signature(model.get_image_features).parameters
    repeated = _repeated(model.get_image_features(**{k: v for k, v in inputs.items() if k in wanted}), of, len(firsts))
    if repeated is None:
        return None
    which = torch.tensor(of, device=inputs["input_ids"].device)
    rows = _per_token(vlm, inputs, tokens, of) | {key: value[which] for key, value in more.items()}
    return rows | {GIVEN: {"image": repeated}}


def _per_token(vlm: Any, inputs: dict, tokens: Sequence[torch.Tensor], of: Sequence[int]) -> dict[str, torch.Tensor]:
    """Tokens, mask and kinds of tokens [n, longest] of n prompts, padded at the left.

    What stands behind an image is text, all of one kind: a row's further tokens are of the kind of the last one known.
    """

    def left(rows: list[torch.Tensor], value: int) -> torch.Tensor:
        return pad_sequence(rows, batch_first=True, padding_value=value, padding_side="left")

    rows = {
        "input_ids": left(list(tokens), vlm.processor.tokenizer.pad_token_id),
        "attention_mask": left([torch.ones_like(row) for row in tokens], 0),
    }
    mask = inputs["attention_mask"].bool()
    for key in (PER_TOKEN & set(inputs)) - set(rows):
        kinds = [row[keep] for row, keep in zip(inputs[key], mask, strict=True)]
        longer = [torch.cat([kinds[k], kinds[k][-1:].expand(len(row))]) for row, k in zip(tokens, of, strict=True)]
        rows[key] = left([kind[: len(row)] for row, kind in zip(tokens, longer, strict=True)], 0)
    return rows


def _repeated(encoded: Any, of: Sequence[int], images: int) -> Any | None:
    """An encoder's output for each row; None where it does not say which part is of which of the m images."""
    features, layers = encoded.pooler_output, getattr(encoded, "deepstack_features", None)
    if features is None or any(len(parts) != images for parts in (features, *(layers or ()))):
        return None

    def each(parts: Any) -> Any:  # [m, tokens, width], or m of [tokens, width]
        return parts[torch.tensor(of, device=parts.device)] if torch.is_tensor(parts) else [parts[k] for k in of]

    deeper = {"deepstack_features": [each(layer) for layer in layers]} if layers else {}
    return type(encoded)(pooler_output=each(features), **deeper)
