"""Read a picture of a board back into a scene, pixel by pixel and without any model.

What a generator or editor shows is judged by this reader, never by the models under audit.
"""

from __future__ import annotations

import functools
from itertools import product

import numpy as np
from PIL import Image

from auditkit.miniature.world import (
    BACKGROUNDS,
    CELL,
    COLOURS,
    DIGITS,
    DIRECTIONS,
    HOURS,
    LETTERS,
    PATTERNS,
    SHAPES,
    SIDE,
    SIZES,
    Cell,
    Scene,
    tile,
)

CONTENTS = (  # all 255 things that a cell can hold
    Cell(),
    *(Cell("object", *look) for look in product(SHAPES, COLOURS, SIZES, PATTERNS)),
    *(Cell("text", value=sign) for sign in LETTERS + DIGITS),
    *(Cell("clock", value=str(hour)) for hour in HOURS),
    *(Cell("sign", value=direction) for direction in DIRECTIONS),
)


@functools.cache
def tiles() -> np.ndarray:
    """Every content of a cell on every background as pixels: float32 [4, 255, 768], in the order of BACKGROUNDS and
    CONTENTS.
    """
    drawn = [[tile(cell, background).ravel() for cell in CONTENTS] for background in BACKGROUNDS]
    return np.array(drawn, dtype=np.float32)


def read(image: Image.Image | np.ndarray) -> Scene:
    """The board that a picture shows: the contents and the one background whose tiles fit all sixteen cells best.

    image: a PIL image, or uint8 [height, width, 3]; a size other than 64 x 64 is resized first. Any picture is read as
    some board.

    >>> from auditkit.miniature.world import render
    >>> board = Scene((Cell("clock", value="3"), *[Cell()] * 15), "fog")
    >>> read(render(board)) == board
    True
    """
    side = SIDE * CELL
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    if picture.size != (side, side):
        picture = picture.resize((side, side), Image.Resampling.BICUBIC)
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    cells = pixels.reshape(SIDE, CELL, SIDE, CELL, 3).swapaxes(1, 2).reshape(SIDE * SIDE, -1)
    # |cell - tile|^2 without |cell|^2, which is the same for every tile: [4, 16, 255]
    distance = (tiles() ** 2).sum(-1)[:, None] - 2 * cells @ tiles().swapaxes(1, 2)
    background = int(distance.min(-1).sum(-1).argmin())
    found = tuple(CONTENTS[i] for i in distance[background].argmin(-1))
    return Scene(found, tuple(BACKGROUNDS)[background])
