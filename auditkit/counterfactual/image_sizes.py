"""Images upright and in RGB, and the sizes at which a pipeline works.

`pipeline` is a loaded pipeline (counterfactual/make.py).
"""

import math
from typing import Any

from PIL import Image

from auditkit.counterfactual import pipelines


def as_large(image: Image.Image, other: Image.Image) -> Image.Image:
    return image if image.size == other.size else image.resize(other.size, Image.Resampling.LANCZOS)


def _multiple(pipeline) -> int:
    """What the sides of its pictures are multiples of."""
    processor = getattr(pipeline.pipe, "image_processor", None)
    return getattr(getattr(processor, "config", None), "vae_scale_factor", None) or 8


def fitted_size(pipeline: Any, width: float, height: float) -> tuple[int, int]:
    multiple = _multiple(pipeline)
    wide, high = (max(multiple, round(side / multiple) * multiple) for side in (width, height))
    return wide, high


def size_arguments(pipeline: Any, width: int, height: int) -> dict:
    """The arguments that make the result just this large: Kontext's max_area would override height and width, and its
    _auto_resize enlarge the reference to about a million pixels."""
    known = {"height": height, "width": width, "max_area": width * height, "_auto_resize": False}
    return {name: value for name, value in known.items() if name in pipeline.takes}


def working_size(pipeline: Any, picture: Image.Image) -> tuple[int, int]:
    """The size at which a picture is edited: its own proportions at the pixels of the size it is set to, or else of the
    pipeline's own."""
    size = pipeline.size or _own_size(pipeline.pipe) or picture.size
    scale = math.sqrt(size[0] * size[1] / (picture.width * picture.height))
    return fitted_size(pipeline, picture.width * scale, picture.height * scale)


def _own_size(pipe) -> tuple[int, int] | None:
    side = getattr(pipe, "default_sample_size", None)
    if side is None:
        side = getattr(getattr(pipelines.denoiser(pipe), "config", None), "sample_size", None)
    factor = getattr(pipe, "vae_scale_factor", None)
    return (side * factor, side * factor) if isinstance(side, int) and factor else None
