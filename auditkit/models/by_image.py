"""Ask by image: an image that several prompts are about is prepared and encoded once, and what its prompts begin with
is read once.

A batch of n rows is about m different images. The processor prepares m of the rows. The model reads, for each image,
the tokens that all its rows begin with, the image among them; its cache is repeated for the rows, which go on from
there. Rows end together at the right, so between what was read and a shorter row's own tokens is padding, which is
masked and takes no position.

That is exact where a token sees the same in both ways: a decoder whose layers look at all that came before, or at a
window that is longer than the text. Whether a model is one is decided by what it is (`why_unshared`), and tried on two
rows before the first batch: where the two ways differ, a line says so and each row is read whole. Then at least the
image is encoded once for all of them, where the model can be given its features (models/image_features.py).

`vlm` is a loaded model (models/transformers.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from auditkit.models import processors
from auditkit.models.image_features import tried, with_features
from auditkit.models.prompt_tokens import PER_TOKEN, inner, prompt_tokens, rows_by_image

ATTENTION = {"full_attention", "sliding_attention"}  # kinds of layers whose past is what a cache holds


@dataclass(frozen=True)
class Begun:
    """A batch whose rows' beginnings have been read.

    `input_ids` [n, read + rest] and `attention_mask` [n, read + rest] are those of the whole rows; the cache holds the
    first `read` columns.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    cache: Any
    read: int

    @property
    def rest(self) -> dict[str, Any]:
        """What a forward pass over the columns that are still to be read takes."""
        return self.whole | {
            "input_ids": self.input_ids[:, self.read :],
            "position_ids": places(self.attention_mask)[:, self.read :],
        }

    @property
    def whole(self) -> dict[str, Any]:
        """What `generate` takes to go on from the whole rows."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "position_ids": places(self.attention_mask),
            "past_key_values": self.cache,
        }


def places(attention_mask: torch.Tensor) -> torch.Tensor:
    """The position [n, tokens] of each token of a row; padding, wherever it stands, takes none."""
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)


def why_unshared(vlm: Any, tokens: int) -> str:
    """Why a model's rows cannot share their beginnings, in a few words; "" where they can.

    Args:
        tokens: columns of a batch, with what is to be written.
    """
    return why_model_unshared(vlm.model, processors.is_paligemma(vlm.processor), tokens)


def why_model_unshared(model: Any, both_ways: bool, tokens: int) -> str:
    """The same of a model without its processor, which may be one without weights, too.

    Args:
        both_ways: whether it reads a prompt in both directions.
    """
    config = model.config
    text = config.get_text_config()
    if config.is_encoder_decoder:
        return "it is an encoder-decoder"
    if both_ways:
        return "it reads a prompt in both directions"
    if hasattr(inner(model).base_model, "get_rope_index"):
        return "its positions are counted by the image's height and width"
    if strange := sorted(set(getattr(text, "layer_types", None) or ()) - ATTENTION):
        return f"some of its layers are of {strange[0]}"
    window = getattr(text, "sliding_window", None)
    if window and tokens > window:
        return f"some of its layers see {window} tokens, fewer than the text has"
    return ""


def begin(
    vlm: Any, images: Sequence[Image.Image | None], texts: Sequence[str], ends: Sequence, new: int
) -> Begun | None:
    """Read what rows about the same image begin with; None where nothing can be shared, and each is to be read whole.

    Args:
        images: one for each of n rows; the same object for rows about the same image.
        texts: whole texts, as a chat template writes them.
        ends: n tensors of tokens that follow the texts, or empty ones.
        new: tokens that are to be written after them.
    """
    if None in images or why_unshared(vlm, 0):
        return None
    firsts, of = rows_by_image(images)
    if len(firsts) == len(images) or tried(vlm, "shared", _next_tokens, images, texts):
        return None
    return _begin(vlm, images, texts, ends, new, firsts, of)


def _next_tokens(vlm: Any, images: Sequence, texts: Sequence[str]) -> list[torch.Tensor]:
    """The probabilities [2, vocabulary] of what comes after two prompts about one image: shared, and read whole."""
    begun = _begin(vlm, images, texts, [torch.zeros(0, dtype=torch.long)] * 2, 0, [0], [0, 0])
    whole = processors.batch(vlm, images, texts)
    return [
        vlm.model(**inputs, logits_to_keep=1).logits[:, -1].float().softmax(-1)
        for inputs in (
            begun.rest if begun else whole,
            whole | {"position_ids": places(whole["attention_mask"])},
        )
    ]


def _begin(
    vlm: Any,
    images: Sequence,
    texts: Sequence[str],
    ends: Sequence,
    new: int,
    firsts: Sequence[int],
    of: Sequence[int],
) -> Begun | None:
    """`begin`, given the first row about each image and, for each row, the place of its image among them."""
    inputs = processors.batch(vlm, [images[i] for i in firsts], [texts[i] for i in firsts])
    width = inputs["input_ids"].shape
    strange = [key for key, value in inputs.items() if value.shape[:2] == width and key not in PER_TOKEN]
    if any("pixel" not in key for key in strange):  # such as Mllama's mask of what each token sees
        return None
    prompts = prompt_tokens(vlm, inputs, [texts[i] for i in firsts], texts, of)
    if prompts is None:
        return None
    device = inputs["input_ids"].device
    whole = [torch.cat([prompt, end.to(device)]) for prompt, end in zip(prompts, ends, strict=True)]
    begins = [_common([p for p, its in zip(prompts, of, strict=True) if its == k]) for k in range(len(firsts))]
    read, rest = max(begins), max(len(row) - begins[k] for row, k in zip(whole, of, strict=True))
    if why_unshared(vlm, read + rest + new):
        return None
    cache = _read(vlm, inputs, begins)
    # by index_select: threads that learn through an index ([of]) add up in any order, and wait for each other
    cache.reorder_cache(torch.tensor(of, device=device))
    pad = vlm.processor.tokenizer.pad_token_id

    def left(rows: list[torch.Tensor], value: int) -> torch.Tensor:
        return pad_sequence(rows, batch_first=True, padding_value=value, padding_side="left")

    heads = [row[: begins[k]] for row, k in zip(whole, of, strict=True)]
    tails = [row[begins[k] :] for row, k in zip(whole, of, strict=True)]
    heads = [torch.cat([row.new_full((read - len(row),), -1), row]) for row in heads]
    ids = torch.cat([left(heads, -1), left(tails, -1)], 1)
    mask = (ids >= 0).long()
    return Begun(ids.masked_fill(ids < 0, pad), mask, cache, read)


def prompts(vlm: Any, images: Sequence[Image.Image | None], texts: Sequence[str], new: int) -> dict[str, Any]:
    """What `generate` is given for n whole texts about n images: beginnings that are shared have been read."""
    begun = begin(vlm, images, texts, [torch.zeros(0, dtype=torch.long)] * len(texts), new)
    return whole_rows(vlm, images, texts) if begun is None else begun.whole


def whole_rows(vlm: Any, images: Sequence[Image.Image | None], texts: Sequence[str]) -> dict[str, Any]:
    """What a model takes for n whole texts about n images, each image encoded once where that can be had."""
    shared = with_features(vlm, images, texts)
    return processors.batch(vlm, images, texts) if shared is None else shared


def _common(rows: Sequence[torch.Tensor]) -> int:
    """How many tokens all rows begin with; of each at least one is left, for what comes next is predicted from it."""
    shortest = min(map(len, rows)) - 1
    same = torch.stack([row[:shortest] == rows[0][:shortest] for row in rows]).all(0)
    return int(same.long().cumprod(0).sum())


def _read(vlm: Any, inputs: dict, begins: Sequence[int]) -> Any:
    """A cache that holds the first tokens of each row of a batch, ending together."""
    from transformers import DynamicCache

    mask = inputs["attention_mask"].bool()
    rows = {}
    for key, value in inputs.items():
        if key in PER_TOKEN:
            cut = [row[keep][:n] for row, keep, n in zip(value, mask, begins, strict=True)]
            fill = vlm.processor.tokenizer.pad_token_id if key == "input_ids" else 0
            rows[key] = pad_sequence(cut, batch_first=True, padding_value=fill, padding_side="left")
        else:
            rows[key] = value
    cache = DynamicCache(config=vlm.model.config.get_text_config())
    vlm.model(
        **rows, position_ids=places(rows["attention_mask"]), past_key_values=cache, use_cache=True, logits_to_keep=1
    )
    return cache
