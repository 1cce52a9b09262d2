"""Make a counterfactual image: regenerate one from a caption, or edit one by a command, through any diffusers pipeline.

The paper regenerates with FLUX.1-dev and edits with FLUX.1-Kontext-dev. Here a pipeline is named as a model is
(specs.py) and loaded by `DiffusionPipeline`; what its call takes, and under which name, is read from its signature:

    black-forest-labs/FLUX.1-dev                        generates; gated, not for commerce
    black-forest-labs/FLUX.1-Kontext-dev                edits; likewise
    black-forest-labs/FLUX.2-klein-4B?steps=4           does both in 4 steps (Flux2KleinPipeline); Apache-2.0
    Tongyi-MAI/Z-Image-Turbo?steps=9&guidance=0         generates in 8 passes (ZImagePipeline)
    Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers   generates in 2 steps (SanaSprintPipeline)
    stabilityai/sdxl-turbo?steps=1&guidance=0&size=512  generates in 1 step (StableDiffusionXLPipeline)
    carlofkl/DreamLite-mobile?revision=diffusers        does both in 4 steps (DreamLiteMobilePipeline, torchvision)
    black-forest-labs/FLUX.2-klein-9b-kv                edits in 4 steps, faster than klein (Flux2KleinKVPipeline)
    timbrooks/instruct-pix2pix                          edits (StableDiffusionInstructPix2PixPipeline)
    diffusers/sdxl-instructpix2pix-768?size=768         edits (StableDiffusionXLInstructPix2PixPipeline)

Tiny pipelines of these classes, but for DreamLite's, are what the tests run; published weights are not tried there.

Three things are ours:
1) every picture has a generator of its own, on the CPU, so that it depends on its seed and not on its batch;
2) an image to edit is given to the pipeline upright, RGB, in its own proportions at the pipeline's number of pixels,
   and what comes back is brought to the image's own size, so that the two can be compared pixel by pixel;
3) a picture that fails, is blocked or shows nothing is dropped with the reason, and the others go on.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils.memory import should_reduce_batch_size
from PIL import Image, ImageOps
from scipy import ndimage
from skimage.metrics import structural_similarity

from auditkit import specs
from auditkit.counterfactual import pipelines
from auditkit.errors import AuditError
from auditkit.models import downloads
from auditkit.models.batching import in_batches
from auditkit.models.device import choose_device, choose_dtype
from auditkit.text import short_error

FLAT = 8  # grey levels of 256 between a picture's darkest and lightest value, in which there is nothing to see
# These take a list of images as one for each prompt. Others (FLUX.2, Qwen-Image-Edit-Plus) take it as several
# references that every prompt sees, and do not say so in any way a program could read: they get one image a call.
ONE_EACH = {"FluxKontextPipeline", "StableDiffusionInstructPix2PixPipeline", "StableDiffusionXLInstructPix2PixPipeline"}
TOO_LARGE = "make it smaller (?size=...), or let weights wait in CPU memory (?offload=model)"


@dataclass
class Painter:
    """A loaded pipeline, under the name that records use for it."""

    name: str
    pipe: Any
    batch_size: int = 16
    call: dict = field(default_factory=dict)  # the arguments its call gets besides texts, images, seeds and sizes
    size: tuple[int, int] | None = None  # width and height of a picture it makes; None: as the pipeline likes

    @property
    def takes(self) -> set[str]:
        """The names of the arguments of its call."""
        return set(pipelines.arguments(type(self.pipe)))

    @property
    def edits(self) -> bool:
        return "image" in self.takes


@dataclass(frozen=True)
class Painting:
    """What came of one request."""

    image: Image.Image | None  # None: dropped
    why: str = ""  # why it was dropped: "blocked" (a safety checker), "black" (nothing to see), "failed: ..."
    cut: str = ""  # the end of the text, which is beyond what the text encoder reads
    seconds: float = 0.0  # its share of its batch


@dataclass(frozen=True)
class Change:
    """What is different between two pictures of one size."""

    box: tuple[int, int, int, int] | None  # x0, y0, x1, y1 in pixels, around the largest region; None: nothing changed
    share: float  # of the picture, that the box covers
    rest: float | None  # structural similarity of what is outside, 1 at most; None: nothing is


def load_painter(spec: str | Path, device: str = "auto", dtype: str = "auto", batch_size: int = 16) -> Painter:
    """Load a pipeline.

    Its weights are read from safetensors only, and no code is run that comes with it. A folder may hold a painter.json
    with the options that its weights were trained for, {"size": 64, "max_length": 16}; those of the spec go before
    them, and both before the arguments given here. "auto" is as in `load_model`.

    Args:
        spec: "miniature:NAME", a folder or a hub id, with options (specs.PAINTER); any other option is an argument of
            the pipeline's call.
        batch_size: pictures made at once; halved when they do not fit.

    Raises AuditError for a pipeline that does not exist, is of no known class or lacks weights, for an option that its
    call does not take, and for offload without a GPU to load on.
    """
    parsed = specs.parse_pipeline(spec)
    place = downloads.resolve(parsed.place, like="black-forest-labs/FLUX.2-klein-4B")
    own = pipelines.defaults(place) | parsed.options
    device = choose_device(own.get("device", device))
    kind = choose_dtype(own.get("dtype", dtype), device)
    offload = own.get("offload", "none")
    if offload != "none" and device == "cpu":
        raise AuditError(
            f'"{spec}": offload={offload} moves weights to a GPU and back, and none is used; leave it out.'
        )
    with pipelines.quiet_diffusers():
        place, how = downloads.source(place, spec, own, pipelines.INDEX)
        how = {"revision": how["revision"]}
        call = pipelines.call_of(pipelines.class_of(place, spec, how), spec, own)
        pipe = pipelines.read_pipeline(place, spec, kind, how)
        pipe.set_progress_bar_config(disable=True)
        pipelines.cache(pipe, spec, own.get("cache", "none"), call)
        pipelines.settle(pipe, device, offload)
    return Painter(parsed.name, pipe, own.get("batch_size", batch_size), call, own.get("size"))


def regenerate_images(painter: Painter, captions: Sequence[str], seeds: Sequence[int]) -> list[Painting]:
    """A new picture for each of n captions, in their order, of the painter's size or else of the pipeline's own.

    Raises AuditError for a pipeline that makes nothing without an image, when every picture fails, and when a single
    one does not fit into memory.
    """
    _same_length("regenerate", captions, seeds)
    image = pipelines.arguments(type(painter.pipe)).get("image")
    if image is not None and image.default is image.empty:
        raise AuditError(_only_edits(painter))
    size = {} if painter.size is None else _sized(painter, *_fitted(painter, *painter.size))
    return _paint(painter, captions, seeds, [list(range(len(captions)))], lambda rows: size)


def edit_images(
    painter: Painter, images: Sequence[Image.Image], commands: Sequence[str], seeds: Sequence[int]
) -> list[Painting]:
    """Each of n images, changed by its command, in their order and each of its own size.

    An image may be of any mode, size and EXIF orientation; what is transparent is laid on white. The size of the result
    is that of the image when it stands upright.

    Raises AuditError for a pipeline that takes no image, when every picture fails, and when a single one does not fit
    into memory.
    """
    _same_length("edit", images, commands, seeds)
    if not painter.edits:
        raise AuditError(
            f'"{painter.name}": a {type(painter.pipe).__name__} takes no image, so it cannot edit; name an editor, '
            "such as black-forest-labs/FLUX.1-Kontext-dev."
        )
    pictures = [upright(image) for image in images]
    sizes = [_working_size(painter, picture) for picture in pictures]
    groups: dict[Any, list[int]] = {}
    for i, size in enumerate(sizes):
        groups.setdefault(size if type(painter.pipe).__name__ in ONE_EACH else i, []).append(i)

    def arguments(rows: list[int]) -> dict:
        ready = [pictures[i].resize(sizes[i], Image.Resampling.LANCZOS) for i in rows]
        return {"image": ready if len(ready) > 1 else ready[0]} | _sized(painter, *sizes[rows[0]])

    made = _paint(painter, commands, seeds, list(groups.values()), arguments)
    return [
        one if one.image is None else Painting(_as_large(one.image, picture), one.why, one.cut, one.seconds)
        for one, picture in zip(made, pictures, strict=True)
    ]


def upright(image: Image.Image) -> Image.Image:
    """The image in RGB, turned as its EXIF says; 16 bits become 8, what is transparent is laid on white.

    >>> upright(Image.new("RGBA", (1, 1), (0, 0, 0, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        grey = np.asarray(image, dtype=np.float64)
        deep = grey.max(initial=0) > 255
        image = Image.fromarray(np.clip(grey / 257 if deep else grey, 0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def measure_change(before: Image.Image, after: Image.Image, threshold: float = 16.0) -> Change:
    """Where two pictures of one size differ, and how alike they are elsewhere.

    The absolute difference (its largest channel, 0 to 255) is smoothed over a hundredth of the longer side; what is
    above `threshold` falls into connected regions, the largest of which gets the box. Outside of it, structural
    similarity is averaged over the windows that do not reach into it (Wang et al. 2004, skimage's). LPIPS would see
    more of what people see, but its network comes only from torchvision's server, so it is not used.

    Raises ValueError when the sizes differ.
    """
    if before.size != after.size:
        raise ValueError(f"changed: {before.size} and {after.size} pixels cannot be compared")
    a, b = (np.asarray(upright(image), dtype=np.float32) for image in (before, after))
    height, width = a.shape[:2]
    difference = ndimage.gaussian_filter(np.abs(a - b).max(axis=2), sigma=max(1.0, max(height, width) / 100))
    regions, found = ndimage.label(difference > threshold)
    outside, box, share = np.ones((height, width), dtype=bool), None, 0.0
    window = min(7, (min(height, width) - 1) // 2 * 2 + 1)
    if found:
        largest = np.bincount(regions.ravel())[1:].argmax()
        rows, columns = ndimage.find_objects(regions)[largest]
        box = columns.start, rows.start, columns.stop, rows.stop
        share = (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
        margin = window // 2
        outside[
            max(0, rows.start - margin) : rows.stop + margin, max(0, columns.start - margin) : columns.stop + margin
        ] = 0
    rest = None
    if window >= 3 and outside.any():
        _, similar = structural_similarity(a, b, win_size=window, channel_axis=2, data_range=255, full=True)
        rest = float(similar.mean(axis=2)[outside].mean())
    return Change(box, share, rest)


def incoherence(change: Change, most: float = 0.5, rest: float = 0.8) -> str:
    """Why a change is not a targeted one: "unchanged", "not targeted" or "rest changed"; "" where it is.

    Args:
        most: share of the picture that a targeted change may cover.
        rest: structural similarity that the rest must keep.

    >>> incoherence(Change((0, 0, 8, 8), 0.1, 0.97)), incoherence(Change(None, 0.0, 1.0))
    ('', 'unchanged')
    """
    if change.box is None:
        return "unchanged"
    if change.share > most or change.rest is None:
        return "not targeted"
    return "rest changed" if change.rest < rest else ""


def attempt_edit(
    painter: Painter, image: Image.Image, command: str, seed: int, *, edit_region: float, edit_rest: float, **call
) -> tuple[dict | None, str]:
    """One command of one's own: (before and after as `plots.pairs` shows them, what came of it in a few words).

    Args:
        edit_region, edit_rest: as `most` and `rest` of `incoherence`.
        call: arguments of the pipeline's call; what it does not take is left out.

    The first is None where no picture was made.
    """
    call = painter.call | {name: value for name, value in call.items() if name in painter.takes}
    (painting,) = edit_images(replace(painter, call=call), [image], [command], [seed])
    if painting.image is None:
        return None, painting.why
    before = upright(image)
    change = measure_change(before, painting.image)
    said = incoherence(change, most=edit_region, rest=edit_rest) or f"{change.share:.0%} changed"
    return {"before_image": before, "image": painting.image, "made": command, "box": change.box}, said


# ---------------------------------------------------------------------------------------------------------- painting


def _paint(
    painter: Painter,
    texts: Sequence[str],
    seeds: Sequence[int],
    groups: list[list[int]],
    arguments: Callable[[list[int]], dict],
) -> list[Painting]:
    """The pictures of n texts and seeds. Rows of one group may share a call, which gets `arguments(rows)` besides."""
    found: dict[int, Painting] = {}

    def tried(rows: list[int]) -> list[Painting]:
        try:
            return _painted(painter, [texts[i] for i in rows], [seeds[i] for i in rows], arguments(rows))
        except AuditError:
            raise
        except Exception as error:  # whatever a pipeline raises about one picture, the others can still be made
            if should_reduce_batch_size(error):
                raise
            if len(rows) == 1:
                return [Painting(None, f"failed: {short_error(error) or type(error).__name__}")]
        return [painting for i in rows for painting in tried([i])]

    for group in groups:
        batches = in_batches(
            painter, [texts[i] for i in group], lambda rows, its=group: tried([its[r] for r in rows]), TOO_LARGE
        )
        for rows, paintings in batches:
            found |= {group[r]: painting for r, painting in zip(rows, paintings, strict=True)}
    paintings = [found[i] for i in range(len(texts))]
    if paintings and all(painting.why.startswith("failed") for painting in paintings):
        raise AuditError(
            f'"{painter.name}": not one of {len(texts)} pictures could be made '
            f"({paintings[0].why.removeprefix('failed: ')}); {_advice(painter, arguments([0]))}."
        )
    return paintings


def _advice(painter: Painter, arguments: dict) -> str:
    """What may be the matter when a pipeline makes nothing at all."""
    kind = type(painter.pipe).__name__
    if getattr(pipelines.denoiser(painter.pipe), "is_cache_enabled", False):
        return f"leave ?cache out, which a {kind} may not go with"
    if painter.edits and "image" not in arguments:
        return f"a {kind} may be one that only edits"
    return f"check its options against what the call of {kind} wants"


def _painted(painter: Painter, texts: list[str], seeds: list[int], arguments: dict) -> list[Painting]:
    """One call of the pipeline."""
    began = time.perf_counter()
    n = len(texts)
    call = painter.call | arguments
    generators = [torch.Generator(device="cpu").manual_seed(seed) for seed in seeds]
    if n > 1:  # some want as many negative prompts as prompts
        call |= {
            name: [value] * n
            for name, value in call.items()
            if name.startswith("negative_prompt") and isinstance(value, str)
        }
    with pipelines.quiet_diffusers(), pipelines.caching(painter.pipe):
        out = painter.pipe(
            prompt=list(texts) if n > 1 else texts[0],  # a list of its own: Z-Image writes into it
            generator=generators if n > 1 else generators[0],
            **call,
        )
    if len(out.images) != n:
        raise ValueError(f"the pipeline made {len(out.images)} pictures of {n} texts")
    blocked = getattr(out, "nsfw_content_detected", None) or [False] * n
    seconds = (time.perf_counter() - began) / n
    whys = [
        "blocked" if bad else "black" if _flat(image) else "" for image, bad in zip(out.images, blocked, strict=True)
    ]
    return [
        Painting(None if why else image.convert("RGB"), why, pipelines.unread_end(painter.pipe, text, call), seconds)
        for image, why, text in zip(out.images, whys, texts, strict=True)
    ]


def _flat(image: Image.Image) -> bool:
    return all(high - low <= FLAT for low, high in image.convert("RGB").getextrema())


def _as_large(image: Image.Image, other: Image.Image) -> Image.Image:
    return image if image.size == other.size else image.resize(other.size, Image.Resampling.LANCZOS)


def _same_length(where: str, *columns: Sequence) -> None:
    if len({len(column) for column in columns}) > 1:
        raise ValueError(f"{where}: {' and '.join(str(len(column)) for column in columns)} of what belongs together")


def _only_edits(painter: Painter) -> str:
    return (
        f'"{painter.name}": a {type(painter.pipe).__name__} makes nothing from a text alone; name a pipeline that '
        "generates, such as black-forest-labs/FLUX.1-dev."
    )


# -------------------------------------------------------------------------------------------------------------- sizes


def _multiple(painter: Painter) -> int:
    """What the sides of its pictures are multiples of."""
    processor = getattr(painter.pipe, "image_processor", None)
    return getattr(getattr(processor, "config", None), "vae_scale_factor", None) or 8


def _fitted(painter: Painter, width: float, height: float) -> tuple[int, int]:
    multiple = _multiple(painter)
    return tuple(max(multiple, round(side / multiple) * multiple) for side in (width, height))


def _sized(painter: Painter, width: int, height: int) -> dict:
    """The arguments that make the result just this large: Kontext's max_area would override height and width, and its
    _auto_resize enlarge the reference to about a million pixels."""
    known = {"height": height, "width": width, "max_area": width * height, "_auto_resize": False}
    return {name: value for name, value in known.items() if name in painter.takes}


def _working_size(painter: Painter, picture: Image.Image) -> tuple[int, int]:
    """The size at which a picture is edited: its own proportions at the pixels of the painter's size, or else of the
    pipeline's own."""
    size = painter.size or _own_size(painter.pipe) or picture.size
    scale = math.sqrt(size[0] * size[1] / (picture.width * picture.height))
    return _fitted(painter, picture.width * scale, picture.height * scale)


def _own_size(pipe) -> tuple[int, int] | None:
    side = getattr(pipe, "default_sample_size", None)
    if side is None:
        side = getattr(getattr(pipelines.denoiser(pipe), "config", None), "sample_size", None)
    factor = getattr(pipe, "vae_scale_factor", None)
    return (side * factor, side * factor) if isinstance(side, int) and factor else None
