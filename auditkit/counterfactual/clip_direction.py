"""Has a picture moved towards the wish?  A second opinion on made pictures, by a model of CLIP's kind.

(paper, Sec. 3.2, which takes the pictures as they come.) The references are asked the wish's check question, and may be
blind to the same thing. `picture_check` names a model of another kind, CLIP or SigLIP. It compares the pictures before
and after with two texts, the check alone and the check with its expected answer. The gain is the cosine between the two
changes, of the pictures and of the texts: directional similarity (StyleGAN-NADA, Gal et al. 2021,
https://arxiv.org/abs/2108.00946), by which InstructPix2Pix chose its pairs (Brooks et al. 2023, Sec. 3.1.2,
https://arxiv.org/abs/2211.09800). A picture is used only where the gain is above `picture_gain`; 0.2 is the default of
their script, for ViT-L/14.

What the texts are is ours. They had a caption of either picture; here an edit has a command alone. The step from a
check to its answer is there for edits and for pictures made from a caption, which are compared with the one they depart
from, and what the check question itself names falls out of it: "is there a dog? no" as a whole is nearer to a dog than
to none.

A picture made from a caption differs from the one it departs from in much that nobody wished for, and the cosine falls
with all of it. So the check is made for edits first.

Gains are numbers in the records, and `score` decides: another bound needs no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F

from auditkit import specs
from auditkit.errors import AuditError
from auditkit.models import downloads, weights
from auditkit.models.base import quiet
from auditkit.models.batching import in_batches
from auditkit.models.device import choose_device, choose_dtype
from auditkit.models.offload import Parked, at_work
from auditkit.models.trainer_internals import model_class
from auditkit.params import Params
from auditkit.runs.probe import Wish
from auditkit.text import short_error

UNLIKE = "unlike the wish"  # why a picture is not used
TEXT = ("input_ids", "attention_mask", "token_type_ids")  # what a processor returns of texts; the rest is of pictures
SAME = 1e-3  # a change shorter than this, of vectors of length 1, is rounding: it points nowhere


@dataclass
class PictureCheck:
    """A loaded model of CLIP's kind."""

    name: str
    model: Any
    processor: Any
    batch_size: int  # pairs of pictures at once
    parked: Parked | None = None


def load_picture_check(p: Params) -> PictureCheck:
    """The model that `picture_check` names.

    Args:
        p: uses picture_check, device, dtype, batch_size and memory.

    Raises AuditError for a model that does not exist, or does not put pictures and texts into one space.
    """
    import transformers as hf

    spec, own = p.picture_check, specs.parse(p.picture_check).options
    place = downloads.resolve(spec, like="openai/clip-vit-base-patch32")
    device = choose_device(own.get("device", p.device))
    dtype = choose_dtype(own.get("dtype", p.dtype), device)
    turns = p.memory == "turns" and device != "cpu"
    with quiet():
        place, how = downloads.source(place, spec, own)
        try:
            config = hf.AutoConfig.from_pretrained(place, **how)
            kind = model_class(config)
            if not (hasattr(kind, "get_image_features") and hasattr(kind, "get_text_features")):
                raise KeyError(config.model_type)
            processor = hf.AutoProcessor.from_pretrained(place, **how)
        except Exception as error:  # its files can be wrong in any way: tokenizers raises bare Exceptions
            raise AuditError(
                f'picture_check: "{spec}" is no model that compares pictures with texts ({short_error(error)}); name '
                "one of CLIP's or SigLIP's kind, such as openai/clip-vit-base-patch32."
            ) from error
        downloads.refuse_unsafe_index(place, spec, how)
        try:
            with weights.no_pickles():
                model = kind.from_pretrained(place, use_safetensors=True, dtype=dtype, **how)
        except Exception as error:
            downloads.refuse_weights(error, place, spec, how)
    model = model.eval().to("cpu" if turns else device)
    return PictureCheck(
        specs.parse(spec).name,
        model,
        processor,
        own.get("batch_size", p.batch_size),
        Parked(model, device) if turns else None,
    )


@torch.inference_mode()
def direction_gains(
    judge: PictureCheck, before: Sequence[Image.Image], after: Sequence[Image.Image], wishes: Sequence[Wish]
) -> list[float]:
    """How far each of n changes of a picture points where its wish does: cosines, 0 for no change at all."""
    longest = judge.model.config.text_config.max_position_embeddings
    found = [0.0] * len(wishes)

    def compare(rows: list[int]) -> list[float]:
        images = [picture.convert("RGB") for some in (before, after) for picture in (some[i] for i in rows)]
        texts = [wishes[i].check for i in rows] + [f"{wishes[i].check} {wishes[i].expected}" for i in rows]
        inputs = judge.processor(
            text=texts, images=images, padding="max_length", truncation=True, max_length=longest, return_tensors="pt"
        ).to(judge.model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(judge.model.dtype)
        words = {name: inputs.pop(name) for name in TEXT if name in inputs}
        seen = _changes(judge.model.get_image_features(**inputs))
        said = _changes(judge.model.get_text_features(**words))
        short = torch.minimum(seen.norm(dim=-1), said.norm(dim=-1)) < SAME
        return F.cosine_similarity(seen, said).masked_fill(short, 0.0).tolist()

    with at_work(judge):
        for rows, cosines in in_batches(judge, [wish.check for wish in wishes], compare):
            for i, cosine in zip(rows, cosines, strict=True):
                found[i] = round(cosine, 4)
    return found


def unlike(gain: float | None, bound: float) -> str:
    """Why a picture is not used; "" where its gain is above the bound (`picture_gain`), or where it has none."""
    return UNLIKE if gain is not None and gain <= bound else ""


def _changes(features) -> torch.Tensor:
    """From the first half of the vectors to the second, each brought to length 1."""
    vectors = getattr(features, "pooler_output", features)
    first, second = F.normalize(vectors.float(), dim=-1).chunk(2)
    return second - first
