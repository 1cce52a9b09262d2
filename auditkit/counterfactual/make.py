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

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from PIL import Image

from auditkit import specs
from auditkit.counterfactual import pipelines
from auditkit.counterfactual.image_sizes import as_large, fitted_size, size_arguments, working_size
from auditkit.counterfactual.quality import incoherence, measure_change, nothing_to_see
from auditkit.data.pictures import upright
from auditkit.errors import AuditError
from auditkit.models import downloads
from auditkit.models.batching import in_batches
from auditkit.models.device import choose_device, choose_dtype, keep_freed_memory
from auditkit.runs.loading import timed_loading
from auditkit.runs.progress import Progress
from auditkit.text import short_error

# These take a list of images as one for each prompt. Others (FLUX.2, Qwen-Image-Edit-Plus) take it as several
# references that every prompt sees, and do not say so in any way a program could read: they get one image a call.
ONE_EACH = {"FluxKontextPipeline", "StableDiffusionInstructPix2PixPipeline", "StableDiffusionXLInstructPix2PixPipeline"}
TOO_LARGE = "make it smaller (?size=...)"
OR_WAIT = ", or let weights wait in CPU memory (?offload=model)"  # where there is a GPU for the others


@dataclass
class ImagePipeline:
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
class GeneratedImage:
    """What came of one request."""

    image: Image.Image | None  # None: dropped
    why: str = ""  # why it was dropped: "blocked" (a safety checker), "black" (nothing to see), "failed: ..."
    cut: str = ""  # the end of the text, which is beyond what the text encoder reads
    seconds: float = 0.0  # its share of its batch


@timed_loading
def load_pipeline(spec: str | Path, device: str = "auto", dtype: str = "auto", batch_size: int = 16) -> ImagePipeline:
    """Load a pipeline.

    Its weights are read from safetensors only, and no code is run that comes with it. A folder may hold a painter.json
    with the options that its weights were trained for, {"size": 64, "max_length": 16}; those of the spec go before
    them, and both before the arguments given here. "auto" is as in `load_model`.

    Args:
        spec: "miniature:NAME", a folder or a hub id, with options (specs.PIPELINE_OPTIONS); any other option is an
            argument of the pipeline's call.
        batch_size: pictures made at once; halved when they do not fit.

    Raises AuditError for a pipeline that does not exist, is of no known class or lacks weights, for an option that its
    call does not take, and for offload without a GPU to load on.
    """
    parsed = specs.parse_pipeline(spec)
    place = downloads.resolve(parsed.place, like="black-forest-labs/FLUX.2-klein-4B")
    own = pipelines.defaults(place) | parsed.options
    device = choose_device(own.get("device", device))
    if device == "cpu":
        keep_freed_memory()
    kind = choose_dtype(own.get("dtype", dtype), device)
    offload = own.get("offload", "none")
    if offload != "none" and device == "cpu":
        raise AuditError(
            f'"{spec}": offload={offload} moves weights to a GPU and back, and none is used; leave it out.'
        )
    with pipelines.quiet_diffusers():
        place, how = downloads.source(place, spec, own, pipelines.INDEX)
        how = {"revision": how["revision"]}
        call = pipelines.call_of(pipelines.class_of(place, spec, how), spec, own, device)
        pipe = pipelines.read_pipeline(place, spec, kind, how)
        pipe.set_progress_bar_config(disable=True)
        pipelines.cache(pipe, spec, own.get("cache", "none"), call)
        pipelines.settle(pipe, device, offload)
    return ImagePipeline(parsed.name, pipe, own.get("batch_size", batch_size), call, own.get("size"))


def regenerate_images(pipeline: ImagePipeline, captions: Sequence[str], seeds: Sequence[int]) -> list[GeneratedImage]:
    """A new picture for each of n captions, in their order, of the size it is set to, or else of the pipeline's own.

    Raises AuditError for a pipeline that makes nothing without an image, when every picture fails, and when a single
    one does not fit into memory.
    """
    _same_length("regenerate", captions, seeds)
    image = pipelines.arguments(type(pipeline.pipe)).get("image")
    if image is not None and image.default is image.empty:
        raise AuditError(_only_edits(pipeline))
    size = {} if pipeline.size is None else size_arguments(pipeline, *fitted_size(pipeline, *pipeline.size))
    return _generate(pipeline, captions, seeds, [list(range(len(captions)))], lambda rows: size)


def edit_images(
    pipeline: ImagePipeline, images: Sequence[Image.Image], commands: Sequence[str], seeds: Sequence[int]
) -> list[GeneratedImage]:
    """Each of n images, changed by its command, in their order and each of its own size.

    An image may be of any mode, size and EXIF orientation; what is transparent is laid on white. The size of the result
    is that of the image when it stands upright.

    Raises AuditError for a pipeline that takes no image, when every picture fails, and when a single one does not fit
    into memory.
    """
    _same_length("edit", images, commands, seeds)
    if not pipeline.edits:
        raise AuditError(
            f'"{pipeline.name}": a {type(pipeline.pipe).__name__} takes no image, so it cannot edit; name an editor, '
            "such as black-forest-labs/FLUX.1-Kontext-dev."
        )
    pictures = [upright(image) for image in images]
    sizes = [working_size(pipeline, picture) for picture in pictures]
    groups: dict[Any, list[int]] = {}
    for i, size in enumerate(sizes):
        groups.setdefault(size if type(pipeline.pipe).__name__ in ONE_EACH else i, []).append(i)

    def arguments(rows: list[int]) -> dict:
        ready = [pictures[i].resize(sizes[i], Image.Resampling.LANCZOS) for i in rows]
        return {"image": ready if len(ready) > 1 else ready[0]} | size_arguments(pipeline, *sizes[rows[0]])

    made = _generate(pipeline, commands, seeds, list(groups.values()), arguments)
    return [
        one if one.image is None else GeneratedImage(as_large(one.image, picture), one.why, one.cut, one.seconds)
        for one, picture in zip(made, pictures, strict=True)
    ]


def attempt_edit(
    pipeline: ImagePipeline,
    image: Image.Image,
    command: str,
    seed: int,
    *,
    edit_region: float,
    edit_rest: float,
    **call,
) -> tuple[dict | None, str]:
    """One command of one's own: (before and after as `plots.pairs` shows them, what came of it in a few words).

    Args:
        edit_region, edit_rest: as `most` and `rest` of `incoherence`.
        call: arguments of the pipeline's call; what it does not take is left out.

    The first is None where no picture was made.
    """
    call = pipeline.call | {name: value for name, value in call.items() if name in pipeline.takes}
    (result,) = edit_images(replace(pipeline, call=call), [image], [command], [seed])
    unknown = ", ".join(repr(word) for word in pipelines.unknown_words(pipeline.pipe, command))
    warnings = [f"{unknown}: the editor does not know that"] * bool(unknown)
    warnings += [f"{result.cut!r} was not read: the command is too long"] * bool(result.cut)
    if result.image is None:
        return None, "; ".join([result.why, *warnings])
    before = upright(image)
    change = measure_change(before, result.image)
    said = incoherence(change, most=edit_region, rest=edit_rest) or f"{change.share:.0%} of the picture changed"
    said = "; ".join([said, *(warnings or ["look whether it is what you asked for"] * bool(change.box))])
    return {"before_image": before, "image": result.image, "made": command, "box": change.box}, said


# ---------------------------------------------------------------------------------------------------------- generation


def _generate(
    pipeline: ImagePipeline,
    texts: Sequence[str],
    seeds: Sequence[int],
    groups: list[list[int]],
    arguments: Callable[[list[int]], dict],
) -> list[GeneratedImage]:
    """The pictures of n texts and seeds. Rows of one group may share a call, which gets `arguments(rows)` besides."""
    found: dict[int, GeneratedImage] = {}

    def tried(rows: list[int]) -> list[GeneratedImage]:
        try:
            return _call_pipeline(pipeline, [texts[i] for i in rows], [seeds[i] for i in rows], arguments(rows))
        except AuditError:
            raise
        except Exception as error:  # whatever a pipeline raises about one picture, the others can still be made
            if should_reduce_batch_size(error):
                raise
            if len(rows) == 1:
                return [GeneratedImage(None, f"failed: {short_error(error) or type(error).__name__}")]
        return [result for i in rows for result in tried([i])]

    advice = TOO_LARGE + ("" if torch.device(pipeline.pipe.device).type == "cpu" else OR_WAIT)
    with Progress(f"pictures by {pipeline.name}", len(texts)) as line:
        for group in groups:

            def of_group(rows: list[int], its: list[int] = group) -> list[GeneratedImage]:
                return tried([its[r] for r in rows])

            for rows, results in in_batches(pipeline, [texts[i] for i in group], of_group, advice):
                found |= {group[r]: result for r, result in zip(rows, results, strict=True)}
                line.add(len(rows))
    results = [found[i] for i in range(len(texts))]
    if results and all(result.why.startswith("failed") for result in results):
        raise AuditError(
            f'"{pipeline.name}": not one of {len(texts)} pictures could be made '
            f"({results[0].why.removeprefix('failed: ')}); {_advice(pipeline, arguments([0]))}."
        )
    return results


def _advice(pipeline: ImagePipeline, arguments: dict) -> str:
    """What may be the matter when a pipeline makes nothing at all."""
    kind = type(pipeline.pipe).__name__
    if getattr(pipelines.denoiser(pipeline.pipe), "is_cache_enabled", False):
        return f"leave ?cache out, which a {kind} may not go with"
    if pipeline.edits and "image" not in arguments:
        return f"a {kind} may be one that only edits"
    return f"check its options against what the call of {kind} wants"


def _call_pipeline(
    pipeline: ImagePipeline, texts: list[str], seeds: list[int], arguments: dict
) -> list[GeneratedImage]:
    """One call of the pipeline."""
    began = time.perf_counter()
    n = len(texts)
    call = pipeline.call | arguments
    generators = [torch.Generator(device="cpu").manual_seed(seed) for seed in seeds]
    if n > 1:  # some want as many negative prompts as prompts
        call |= {
            name: [value] * n
            for name, value in call.items()
            if name.startswith("negative_prompt") and isinstance(value, str)
        }
    with pipelines.quiet_diffusers(), pipelines.caching(pipeline.pipe):
        out = pipeline.pipe(
            prompt=list(texts) if n > 1 else texts[0],  # a list of its own: Z-Image writes into it
            generator=generators if n > 1 else generators[0],
            **call,
        )
    if len(out.images) != n:
        raise ValueError(f"the pipeline made {len(out.images)} pictures of {n} texts")
    blocked = getattr(out, "nsfw_content_detected", None) or [False] * n
    seconds = (time.perf_counter() - began) / n
    whys = [
        "blocked" if bad else "black" if nothing_to_see(image) else ""
        for image, bad in zip(out.images, blocked, strict=True)
    ]
    return [
        GeneratedImage(
            None if why else image.convert("RGB"), why, pipelines.unread_end(pipeline.pipe, text, call), seconds
        )
        for image, why, text in zip(out.images, whys, texts, strict=True)
    ]


def _same_length(where: str, *columns: Sequence) -> None:
    if len({len(column) for column in columns}) > 1:
        raise ValueError(f"{where}: {' and '.join(str(len(column)) for column in columns)} of what belongs together")


def _only_edits(pipeline: ImagePipeline) -> str:
    return (
        f'"{pipeline.name}": a {type(pipeline.pipe).__name__} makes nothing from a text alone; name a pipeline that '
        "generates, such as black-forest-labs/FLUX.1-dev."
    )
