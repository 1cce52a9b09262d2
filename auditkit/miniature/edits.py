"""Edit commands and captions of the board world: what they mean, done to the scene itself, so the truth after is known.

An edit command changes one thing, a caption describes a whole board of a few things. The miniature editor and generator
learn both from pixels (draw.py); the auditor learns to write them (lessons.py).
"""

from __future__ import annotations

import random
import re
from dataclasses import replace

from auditkit.miniature.grammar import COLOUR, POSITION, SHAPE, answer, one_of
from auditkit.miniature.world import (
    BACKGROUNDS,
    COLOURS,
    DIGITS,
    DIRECTIONS,
    HOURS,
    LETTERS,
    PATTERNS,
    POSITIONS,
    SHAPES,
    SIZES,
    Cell,
    Scene,
)

MOST = 6  # things in a caption
LOOK = f"{one_of(SIZES)} {one_of(PATTERNS)} {COLOUR} {SHAPE}"  # "small dotted red star"
SIGN = f"(?:{LOOK}|([{LETTERS}{DIGITS}])|clock showing {one_of(map(str, HOURS))}|sign pointing {one_of(DIRECTIONS)})"
COMMANDS = {  # kind of command -> how it is read
    "colour": re.compile(f"paint the object at {POSITION} {COLOUR}"),
    "shape": re.compile(f"turn the object at {POSITION} into a {SHAPE}"),
    "size": re.compile(f"make the object at {POSITION} {one_of(SIZES)}"),
    "pattern": re.compile(f"make the object at {POSITION} {one_of(PATTERNS)}"),
    "remove": re.compile(f"remove what is at {POSITION}"),
    "put": re.compile(f"put a {SIGN} at {POSITION}"),
    "background": re.compile(f"change the background to {one_of(BACKGROUNDS)}"),
}
CAPTION = re.compile(f"{one_of(BACKGROUNDS)} board(?: with (.+))?")
THING = re.compile(f"a {SIGN} at {POSITION}")


def kind(command: str) -> str | None:
    """Which kind of command this is, None if it is none.

    >>> kind("make the object at b3 dotted"), kind("make it nice")
    ('pattern', None)
    """
    return next((name for name, pattern in COMMANDS.items() if pattern.fullmatch(command)), None)


def apply(scene: Scene, command: str) -> Scene | None:
    """The scene after an edit command, or None if the command is not of this language or has nothing to act on.

    >>> from auditkit.miniature.world import random_scene
    >>> apply(random_scene(random.Random(0)), "change the background to fog").background
    'fog'
    """
    name = kind(command)
    if name is None:
        return None
    found = COMMANDS[name].fullmatch(command).groups()
    if name == "background":
        return Scene(scene.cells, found[0])
    if name == "put":
        return _put(scene, found[-1], _cell(found[:-1]))
    cell = scene.at(found[0])
    if name == "remove":
        return _put(scene, found[0], Cell()) if cell.kind != "empty" else None
    return _put(scene, found[0], replace(cell, **{name: found[1]})) if cell.kind == "object" else None


def draw(scene: Scene, rng: random.Random, name: str | None = None) -> str:
    """A command that changes this scene, of one kind or of any that it allows, with equal chance."""
    held = [place for place, cell in zip(POSITIONS, scene.cells, strict=True) if cell.kind != "empty"]
    able = ["put", "background", *(["remove"] if held else [])]
    able += ["colour", "shape", "size", "pattern"] if scene.objects else []
    name = name if name in able else rng.choice(able)
    if name == "background":
        return f"change the background to {_other(BACKGROUNDS, scene.background, rng)}"
    if name == "remove":
        return f"remove what is at {rng.choice(held)}"
    if name == "put":
        place = rng.choice(POSITIONS)
        cell = scene.at(place)
        while cell == scene.at(place):
            cell = any_thing(rng)
        return f"put a {words(cell)} at {place}"
    at = rng.choice(scene.objects)
    place, cell = POSITIONS[at], scene.cells[at]
    new = _other({"colour": COLOURS, "shape": SHAPES, "size": SIZES, "pattern": PATTERNS}[name], vars(cell)[name], rng)
    if name == "shape":
        return f"turn the object at {place} into a {new}"
    return f"{'paint' if name == 'colour' else 'make'} the object at {place} {new}"


def check(before: Scene, command: str) -> tuple[str, str] | None:
    """A question of the grammar whose answer tells whether a command was carried out, and that answer.

    >>> from auditkit.miniature.world import random_scene
    >>> check(random_scene(random.Random(0)), "change the background to fog")
    ('what atmosphere does the scene have?', 'fog')
    """
    after = apply(before, command)
    if after is None or after == before:
        return None
    name, place = kind(command), command.split()[-1]
    if name == "background":
        question = "what atmosphere does the scene have?"
    elif name == "size":
        question = f"how many {place} objects are there?"
    elif name in ("put", "remove"):
        question = _asks(after.at(place) if name == "put" else before.at(place), place)
    else:
        place = POSITION_IN.search(command)[0]
        question = {"colour": "what colour is", "shape": "what shape is", "pattern": "what pattern has"}[name]
        question += f" the object at {place}?"
    said = answer(after, question)
    return (question, said) if said != answer(before, question) else None


POSITION_IN = re.compile(rf"\b{POSITION}\b")


def caption(scene: Scene, rng: random.Random) -> str:
    """What stands on a board, in any order, with its background.

    >>> from auditkit.miniature.world import Cell
    >>> star = Cell("object", "star", "red", "small", "dotted")
    >>> caption(Scene((star, *[Cell()] * 15), "night"), random.Random(0))
    'night board with a small dotted red star at a1'
    """
    things = [
        f"a {words(cell)} at {place}"
        for place, cell in zip(POSITIONS, scene.cells, strict=True)
        if cell.kind != "empty"
    ]
    rng.shuffle(things)
    return f"{scene.background} board" + (f" with {', '.join(things)}" if things else "")


def read_caption(text: str) -> Scene | None:
    """The board a caption describes, or None if it is none, or puts two things in one place."""
    found = CAPTION.fullmatch(text)
    if found is None:
        return None
    cells = dict.fromkeys(POSITIONS, Cell())
    for part in found[2].split(", ") if found[2] else ():
        thing = THING.fullmatch(part)
        if thing is None or cells[thing.groups()[-1]].kind != "empty":
            return None
        cells[thing.groups()[-1]] = _cell(thing.groups()[:-1])
    return Scene(tuple(cells.values()), found[1])


def fewer(scene: Scene, rng: random.Random, most: int = MOST) -> Scene:
    """The scene with at most so many things left on it, chosen evenly: what a caption can hold."""
    held = [i for i, cell in enumerate(scene.cells) if cell.kind != "empty"]
    gone = set(rng.sample(held, max(0, len(held) - most)))
    return Scene(tuple(Cell() if i in gone else cell for i, cell in enumerate(scene.cells)), scene.background)


def any_thing(rng: random.Random) -> Cell:
    """Any content of a cell but emptiness; half of the time an object."""
    name = rng.choice(("object", "object", "object", "text", "clock", "sign"))
    if name == "object":
        return Cell(
            name, rng.choice(SHAPES), rng.choice(tuple(COLOURS)), rng.choice(tuple(SIZES)), rng.choice(PATTERNS)
        )
    values = {"text": LETTERS + DIGITS, "clock": HOURS, "sign": tuple(DIRECTIONS)}[name]
    return Cell(name, value=str(rng.choice(values)))


def words(cell: Cell) -> str:
    """A thing in words: "small dotted red star", "E", "clock showing 7", "sign pointing left"."""
    if cell.kind == "object":
        return f"{cell.size} {cell.pattern} {cell.colour} {cell.shape}"
    return {"text": "", "clock": "clock showing ", "sign": "sign pointing "}[cell.kind] + cell.value


def _cell(found: tuple) -> Cell:
    """The cell that the groups of SIGN describe."""
    size, pattern, colour, shape, letter, hour, direction = found
    if shape:
        return Cell("object", shape, colour, size, pattern)
    name = "text" if letter else "clock" if hour else "sign"
    return Cell(name, value=letter or hour or direction)


def _asks(cell: Cell, place: str) -> str:
    return {
        "object": f"what shape is the object at {place}?",
        "text": f"what is written at {place}?",
        "clock": f"what time does the clock at {place} show?",
        "sign": f"which way does the sign at {place} point?",
    }[cell.kind]


def _other(names, but: str, rng: random.Random) -> str:
    return rng.choice([name for name in names if name != but])


def _put(scene: Scene, place: str, cell: Cell) -> Scene:
    at = POSITIONS.index(place)
    return Scene((*scene.cells[:at], cell, *scene.cells[at + 1 :]), scene.background)
