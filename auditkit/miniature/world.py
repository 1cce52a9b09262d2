"""The board world: 64 x 64 px scenes of which everything is known.

A scene is a 4 x 4 board of cells of 16 px, named like a spreadsheet from a1 (top left) to d4 (bottom right). A cell
holds an object (shape, colour, size, pattern), a letter or digit, a clock face, an arrow sign, or nothing; the whole
board has a background. One cell is one patch of the models' vision towers: that alignment is why a model of one
million parameters learns it in minutes.
"""

from __future__ import annotations

import functools
import math
import random
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star")
COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 150, 44),
    "blue": (31, 90, 200),
    "yellow": (235, 200, 20),
    "purple": (150, 60, 190),
    "orange": (255, 127, 14),
}
SIZES = {"small": 3.6, "large": 6.8}  # radius in pixels
PATTERNS = ("plain", "striped", "dotted")
BACKGROUNDS = {"day": (226, 240, 252), "dusk": (246, 214, 196), "fog": (200, 203, 206), "night": (42, 46, 72)}
UNSEEN_BACKGROUNDS = {"moss": (176, 196, 150), "sand": (222, 206, 150), "lilac": (206, 190, 224)}  # see shifts.py
LETTERS = "ABCEFHKLNPTX"
DIGITS = "0123456789"
HOURS = tuple(range(1, 13))
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SIDE = 4
CELL = 16
POSITIONS = tuple(
    f"{column}{row}" for row in range(1, SIDE + 1) for column in "abcd"
)  # row-major, as the vision patches

# 5 x 7 pixel glyphs, one row a group of five bits; drawn here so that no font file decides what a model reads
GLYPHS = {
    "A": "01110 10001 10001 11111 10001 10001 10001",
    "B": "11110 10001 10001 11110 10001 10001 11110",
    "C": "01111 10000 10000 10000 10000 10000 01111",
    "E": "11111 10000 10000 11110 10000 10000 11111",
    "F": "11111 10000 10000 11110 10000 10000 10000",
    "H": "10001 10001 10001 11111 10001 10001 10001",
    "K": "10001 10010 10100 11000 10100 10010 10001",
    "L": "10000 10000 10000 10000 10000 10000 11111",
    "N": "10001 11001 10101 10101 10011 10001 10001",
    "P": "11110 10001 10001 11110 10000 10000 10000",
    "T": "11111 00100 00100 00100 00100 00100 00100",
    "X": "10001 01010 00100 00100 00100 01010 10001",
    "0": "01110 10001 10011 10101 11001 10001 01110",
    "1": "00100 01100 00100 00100 00100 00100 01110",
    "2": "01110 10001 00001 00110 01000 10000 11111",
    "3": "11110 00001 00001 01110 00001 00001 11110",
    "4": "00010 00110 01010 10010 11111 00010 00010",
    "5": "11111 10000 11110 00001 00001 10001 01110",
    "6": "00110 01000 10000 11110 10001 10001 01110",
    "7": "11111 00001 00010 00100 01000 01000 01000",
    "8": "01110 10001 10001 01110 10001 10001 01110",
    "9": "01110 10001 10001 01111 00001 00010 01100",
}


@dataclass(frozen=True)
class Cell:
    """What stands in one cell. `kind` is empty, object, text, clock or sign; `value` is the character, hour or
    direction.
    """

    kind: str = "empty"
    shape: str = ""
    colour: str = ""
    size: str = ""
    pattern: str = ""
    value: str = ""


@dataclass(frozen=True)
class Scene:
    """Sixteen cells, row by row from the top left, and the background."""

    cells: tuple[Cell, ...]
    background: str
    objects: tuple[int, ...] = field(init=False, compare=False, repr=False)  # indices of the cells that hold an object

    def __post_init__(self):
        object.__setattr__(self, "objects", tuple(i for i, cell in enumerate(self.cells) if cell.kind == "object"))

    def at(self, position: str) -> Cell:
        return self.cells[POSITIONS.index(position)]


def random_scene(rng: random.Random, objects: int | None = None) -> Scene:
    """Draw a scene: up to 8 objects (3 on average, five or more on a fifth of the boards), 1-3 characters, 0-2 clocks,
    0-2 signs.
    """
    if objects is None:
        objects = rng.choices(range(9), weights=(2, 11, 20, 25, 22, 9, 6, 3, 2))[0]
    cells = [
        Cell("object", rng.choice(SHAPES), rng.choice(tuple(COLOURS)), rng.choice(tuple(SIZES)), rng.choice(PATTERNS))
        for _ in range(objects)
    ]
    # E and F are drawn twice as often as other letters, as vowels and common digits are in real text
    cells += [Cell("text", value=rng.choice(LETTERS + "EF" + DIGITS)) for _ in range(rng.randint(1, 3))]
    cells += [Cell("clock", value=str(rng.choice(HOURS))) for _ in range(rng.choice((0, 1, 1, 1, 2)))]
    cells += [Cell("sign", value=rng.choice(tuple(DIRECTIONS))) for _ in range(rng.choice((0, 1, 1, 1, 2)))]
    cells += [Cell()] * (SIDE * SIDE - len(cells))
    rng.shuffle(cells)
    return Scene(tuple(cells), rng.choice(tuple(BACKGROUNDS)))


def polygon(shape: str, radius: float) -> list[tuple[float, float]]:
    """Corner points of a shape around (0, 0); a circle is drawn by its bounding box instead."""
    r = radius
    if shape == "square":
        r *= 0.85
        return [(-r, -r), (r, -r), (r, r), (-r, r)]
    if shape == "triangle":
        return [(0, -r), (r, r * 0.85), (-r, r * 0.85)]
    if shape == "diamond":
        return [(0, -r), (r * 0.75, 0), (0, r), (-r * 0.75, 0)]
    if shape == "cross":
        w = r * 0.36
        return [
            (-w, -r),
            (w, -r),
            (w, -w),
            (r, -w),
            (r, w),
            (w, w),
            (w, r),
            (-w, r),
            (-w, w),
            (-r, w),
            (-r, -w),
            (-w, -w),
        ]
    star = []
    for k in range(10):
        length = r if k % 2 == 0 else r * 0.42
        star.append((length * math.sin(k * math.pi / 5), -length * math.cos(k * math.pi / 5)))
    return star


@functools.cache
def tile(cell: Cell, background: str) -> np.ndarray:
    """Draw one cell as uint8 [16, 16, 3], eight times enlarged and then averaged, so that edges are smooth."""
    k = 8
    ground = (BACKGROUNDS | UNSEEN_BACKGROUNDS)[background]
    ink = (240, 240, 245) if background == "night" else (25, 25, 30)
    picture = Image.new("RGB", (CELL * k, CELL * k), ground)
    draw = ImageDraw.Draw(picture)
    centre = CELL * k / 2

    def place(points):
        return [(centre + x * k, centre + y * k) for x, y in points]

    if cell.kind == "object":
        radius = SIZES[cell.size]
        mask = Image.new("1", picture.size)
        if cell.shape == "circle":
            ImageDraw.Draw(mask).ellipse(place([(-radius, -radius), (radius, radius)]), fill=1)
        else:
            ImageDraw.Draw(mask).polygon(place(polygon(cell.shape, radius)), fill=1)
        surface = Image.new("RGB", picture.size, COLOURS[cell.colour])
        mark = ImageDraw.Draw(surface)
        if cell.pattern == "striped":
            for y in range(-7, 8, 3):  # white lines of one whole pixel
                mark.rectangle(place([(-8, y), (8, y + 0.9)]), fill=(255, 255, 255))
        elif cell.pattern == "dotted":
            for x in range(-7, 8, 3):  # black dots of one whole pixel
                for y in range(-7, 8, 3):
                    mark.rectangle(place([(x, y), (x + 0.9, y + 0.9)]), fill=(20, 20, 20))
        picture.paste(surface, mask=mask)
    elif cell.kind == "text":
        for y, row in enumerate(GLYPHS[cell.value].split()):
            for x, bit in enumerate(row):
                if bit == "1":
                    draw.rectangle(place([(x * 1.6 - 4, y * 1.6 - 5.6), (x * 1.6 - 2.4, y * 1.6 - 4)]), fill=ink)
    elif cell.kind == "clock":
        draw.ellipse(place([(-7, -7), (7, 7)]), fill=(250, 250, 250), outline=ink, width=k)
        angle = int(cell.value) * math.pi / 6
        draw.line(place([(0, 0), (0, -6)]), fill=(150, 150, 155), width=k)
        draw.line(place([(0, 0), (5 * math.sin(angle), -5 * math.cos(angle))]), fill=(200, 20, 20), width=2 * k)
    elif cell.kind == "sign":
        draw.rectangle(place([(-7, -7), (7, 7)]), fill=(20, 110, 90))
        arrow = [(6, 0), (1, -5), (1, -2), (-6, -2), (-6, 2), (1, 2), (1, 5)]  # pointing right
        turn = {
            "right": lambda x, y: (x, y),
            "left": lambda x, y: (-x, y),
            "down": lambda x, y: (y, x),
            "up": lambda x, y: (y, -x),
        }
        draw.polygon(place([turn[cell.value](x, y) for x, y in arrow]), fill=(255, 255, 255))
    small = np.asarray(picture, dtype=np.float32).reshape(CELL, k, CELL, k, 3).mean((1, 3))
    return small.round().astype(np.uint8)


def render(scene: Scene) -> np.ndarray:
    """Draw a scene as uint8 [64, 64, 3]."""
    tiles = np.stack([tile(cell, scene.background) for cell in scene.cells])  # [16, 16, 16, 3]
    return tiles.reshape(SIDE, SIDE, CELL, CELL, 3).swapaxes(1, 2).reshape(SIDE * CELL, SIDE * CELL, 3)
