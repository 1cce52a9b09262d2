"""Ask by image: an image that several prompts are about is prepared and encoded once, and what its prompts begin with
is read once.

A batch of n rows is about m different images. The processor prepares m of the rows. The model reads, for each image,
the tokens that all its rows begin with, the image among them; its cache is repeated for the rows, which go on from
there. Rows end together at the right, so between what was read and a shorter row's own tokens is padding, which is
masked and takes no position.

That is exact where a token sees the same in both ways: a decoder whose layers look at all that came before, or at a
window that is longer than the text. Whether a model is one is decided by what it is (`why_unshared`), and tried on two
rows before the first batch: where the two ways differ, a line says so and each row is read whole.

`vlm` is a loaded model (models/transformers.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from auditkit.models import processors

ATTENTION = {"full_attention", "sliding_attention"}  # kinds of layers whose past is what a cache holds
ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.03}  # of a probability, by the number format
PER_TOKEN = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}  # [n, tokens] each


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
    model = model.get_base_model() if hasattr(model, "get_base_model") else model  # peft's is around it
    if hasattr(model.base_model, "get_rope_index"):
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
    first: dict[int, int] = {}  # image -> the first row about it
    for i, image in enumerate(images):
        first.setdefault(id(image), i)
    if len(first) == len(images) or _differs(vlm, images, texts):
        return None
    return _begin(vlm, images, texts, ends, new, first)


def _differs(vlm: Any, images: Sequence, texts: Sequence[str]) -> str:
    """Whether two rows about one image expect another next token when they share it; tried once for each model."""
    if "shared" not in vlm.tried:
        seen: dict[int, int] = {}
        pair = next([seen[id(image)], i] for i, image in enumerate(images) if seen.setdefault(id(image), i) != i)
        shown, asked = [images[i] for i in pair], [texts[i] for i in pair]
        with torch.no_grad():
            begun = _begin(vlm, shown, asked, [torch.zeros(0, dtype=torch.long)] * 2, 0, {id(shown[0]): 0})
            whole = processors.batch(vlm, shown, asked)
            chances = [
                vlm.model(**inputs, logits_to_keep=1).logits[:, -1].float().softmax(-1)
                for inputs in (
                    (whole | {"position_ids": places(whole["attention_mask"])}),
                    begun.rest if begun else whole,
                )
            ]
        off = (chances[0] - chances[1]).abs().max().item()
        vlm.tried["shared"] = "" if off <= ROUNDING[vlm.model.dtype] else f"a probability is {off:.2g} off"
        if why := vlm.tried["shared"]:
            print(f'"{vlm.name}": rows about one image are read whole, for shared {why}.', flush=True)
    return vlm.tried["shared"]


def _begin(
    vlm: Any, images: Sequence, texts: Sequence[str], ends: Sequence, new: int, first: dict[int, int]
) -> Begun | None:
    """`begin` of rows of which some are about the same image; `first` is the first row about each."""
    firsts = list(first.values())
    of = [list(first).index(id(image)) for image in images]  # row -> place of its image
    inputs = processors.batch(vlm, [images[i] for i in firsts], [texts[i] for i in firsts])
    width = inputs["input_ids"].shape
    strange = [key for key, value in inputs.items() if value.shape[:2] == width and key not in PER_TOKEN]
    if any("pixel" not in key for key in strange):  # such as Mllama's mask of what each token sees
        return None
    prompts = _prompt_tokens(vlm, inputs, [texts[i] for i in firsts], texts, of)
    if prompts is None:
        return None
    device = inputs["input_ids"].device
    whole = [torch.cat([prompt, end.to(device)]) for prompt, end in zip(prompts, ends, strict=True)]
    begins = [_common([p for p, its in zip(prompts, of, strict=True) if its == k]) for k in range(len(firsts))]
    read, rest = max(begins), max(len(row) - begins[k] for row, k in zip(whole, of, strict=True))
    if why_unshared(vlm, read + rest + new):
        return None
    cache = _read(vlm, inputs, begins)
    cache.batch_select_indices(torch.tensor(of, device=device))
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
    return processors.batch(vlm, images, texts) if begun is None else begun.whole


def _prompt_tokens(
    vlm: Any, inputs: dict, known: Sequence[str], texts: Sequence[str], of: Sequence[int]
) -> list[torch.Tensor] | None:
    """The tokens of each row's prompt, of which only those of the first rows have been through the processor.

    What stands behind an image's last token is text; it is tokenized alone. None where that does not give what the
    processor has given for the rows that are known.
    """
    image_token = getattr(vlm.model.config, "image_token_id", None)
    if image_token is None:
        image_token = getattr(vlm.model.config, "image_token_index", None)
    heads, before, behind = [], [], []
    tokenizer = vlm.processor.tokenizer
    for ids, mask, text in zip(inputs["input_ids"], inputs["attention_mask"].bool(), known, strict=True):
        ids = ids[mask]
        places = (ids == image_token).nonzero()
        if not len(places):
            return None
        head, tail = ids[: places[-1] + 1], ids[places[-1] + 1 :]
        written = tokenizer.decode(tail, clean_up_tokenization_spaces=False)
        start = next((k for k in range(len(written) + 1) if text.endswith(written[k:])), None)
        if start is None or tokenizer(written, add_special_tokens=False)["input_ids"] != tail.tolist():
            return None
        heads.append(head)
        before.append(text[: len(text) - len(written) + start])
        behind.append(written[:start])
    if any(not text.startswith(before[k]) for text, k in zip(texts, of, strict=True)):
        return None
    tails = [behind[k] + text[len(before[k]) :] for text, k in zip(texts, of, strict=True)]
    ids = tokenizer(tails, add_special_tokens=False)["input_ids"]
    return [
        torch.cat([heads[k], torch.tensor(row, dtype=heads[k].dtype, device=heads[k].device)])
        for row, k in zip(ids, of, strict=True)
    ]


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
