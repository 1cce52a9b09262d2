"""One image file as the models see it: upright, RGB, 8 bits, nothing transparent.

What a file holds is never guessed at in silence: an unknown format, or a depth that had to be scaled, is said.
"""

import contextlib
import mimetypes
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from auditkit.errors import AuditError

SUFFIXES = frozenset(
    ".png .apng .jpg .jpeg .jpe .jfif .webp .bmp .gif .tif .tiff .avif .jp2 .j2k .jpx .heic .heif".split()
)
HEIF = frozenset((".heic", ".heif"))  # what phones take; read by a package of its own (extra `heic`)
OTHERS = frozenset(".dcm .nii .czi .nd2 .svs .lif .raw .cr2 .nef .arw .dng .psd .svg .pdf .mp4 .mov .avi .mkv".split())
LEAST = 4  # pixels a side: a processor takes a picture 3 pixels high for one whose rows are its colours
SLENDER = 100  # times as long as wide: beyond this a processor shrinks a picture to a line, or refuses it


def is_other_image(path: Path) -> bool:
    """Whether a file looks like an image or a film, but of a kind that is not read here."""
    kind = (mimetypes.guess_type(path.name)[0] or "").partition("/")[0]
    return path.suffix.lower() not in SUFFIXES and (kind in ("image", "video") or path.suffix.lower() in OTHERS)


def depth_note(image: Image.Image) -> str:
    """What `upright` has to do to a picture of more than 8 bits, in words; "" for any other.

    >>> depth_note(Image.new("I;16", (2, 2), 4000)), depth_note(Image.new("RGB", (2, 2)))
    ('values from 4000 to 4000 are scaled to 0 to 255', '')
    """
    if not _is_deep(image):
        return ""
    grey = np.asarray(image, dtype=np.float64)
    return f"values from {grey.min():g} to {grey.max():g} are scaled to 0 to 255"


def upright(image: Image.Image) -> Image.Image:
    """The image in RGB, turned as its EXIF says; more than 8 bits are scaled by the picture's own range, what is
    transparent is laid on white.

    >>> upright(Image.new("RGBA", (1, 1), (0, 0, 0, 0))).getpixel((0, 0))
    (255, 255, 255)
    >>> deep = Image.fromarray(np.array([[1000, 2000, 3000]], dtype=np.uint16))
    >>> [upright(deep).getpixel((x, 0))[0] for x in range(3)]
    [0, 128, 255]
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        grey = np.asarray(image, dtype=np.float64)
        if _is_deep(image):
            grey = (grey - grey.min()) * (255 / max(grey.max() - grey.min(), 1e-12))
        image = Image.fromarray(np.clip(grey, 0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _is_deep(image: Image.Image) -> bool:
    """Whether there are values beyond 0 to 255, or all of them are fractions."""
    if not (image.mode.startswith("I") or image.mode == "F"):
        return False
    grey = np.asarray(image, dtype=np.float64)
    return bool(grey.size) and (grey.max() > 255 or grey.min() < 0 or (image.mode == "F" and 0 < grey.max() <= 1))


def read_picture(file: Path | BinaryIO, which: str, say: Callable[[str], None] = lambda note: None) -> Image.Image:
    """The picture in a file.

    Args:
        file: a path, or a file's bytes.
        which: what messages call it.
        say: is told what had to be done to read it (`depth_note`).

    Raises AuditError for what is no picture, or one that no model can look at.
    """
    if isinstance(file, Path) and file.exists() and not file.is_file():  # a pipe would be waited for
        raise AuditError(f"images: {which} cannot be read as an image (it is no file).")
    if isinstance(file, Path) and file.suffix.lower() in HEIF:
        _register_heif(which)
    try:
        with Image.open(file) as opened:
            if note := depth_note(opened):
                say(note)
            image = upright(opened)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        why = "no format Pillow knows" if isinstance(error, UnidentifiedImageError) else error
        raise AuditError(f"images: {which} cannot be read as an image ({why}).") from error
    longest, shortest = max(image.size), min(image.size)
    if shortest < LEAST:
        raise AuditError(f"images: {which} is {image.width} x {image.height} pixels, less than {LEAST} wide or high.")
    if longest > SLENDER * shortest:
        raise AuditError(
            f"images: {which} is {image.width} x {image.height} pixels, more than {SLENDER} times as long as wide."
        )
    return image


def _register_heif(which: str) -> None:
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
        return
    raise AuditError(f'images: {which} needs a package to be read: pip install "auditkit[heic]".')
