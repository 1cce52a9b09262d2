"""Exact edits of a board: what an edit command means, done to the scene itself, so that the truth after it is known.

These are the counterfactual images of the world's own making. A trained editor that draws them from pixels comes with
a pipeline of its own.
"""

from __future__ import annotations

import random
import re
from dataclasses import replace

from auditkit.miniature.grammar import COLOUR, POSITION, SHAPE, one_of
from auditkit.miniature.world import BACKGROUNDS, COLOURS, POSITIONS, SHAPES, SIZES, Cell, Scene

PAINT = re.compile(f"paint the object at {POSITION} {COLOUR}")
RESHAPE = re.compile(f"turn the object at {POSITION} into a {SHAPE}")
RESIZE = re.compile(f"make the object at {POSITION} {one_of(SIZES)}")
REMOVE = re.compile(f"remove what is at {POSITION}")
GROUND = re.compile(f"change the background to {one_of(BACKGROUNDS)}")


def apply(scene: Scene, command: str) -> Scene | None:
    """The scene after an edit command, or None if the command is not of this language or has nothing to act on.

    >>> from auditkit.miniature.world import random_scene
    >>> apply(random_scene(random.Random(0)), "change the background to fog").background
    'fog'
    """
    for pattern, attribute in ((PAINT, "colour"), (RESHAPE, "shape"), (RESIZE, "size")):
        if match := pattern.fullmatch(command):
            place, value = match.groups()
            cell = scene.at(place)
            return _put(scene, place, replace(cell, **{attribute: value})) if cell.kind == "object" else None
    if match := REMOVE.fullmatch(command):
        return _put(scene, match[1], Cell()) if scene.at(match[1]).kind != "empty" else None
    if match := GROUND.fullmatch(command):
        return Scene(scene.cells, match[1])
    return None


def _put(scene: Scene, place: str, cell: Cell) -> Scene:
    at = POSITIONS.index(place)
    return Scene((*scene.cells[:at], cell, *scene.cells[at + 1 :]), scene.background)


def draw(scene: Scene, rng: random.Random) -> str:
    """A command that changes this scene."""
    if not scene.objects or rng.random() < 0.15:
        return f"change the background to {rng.choice([b for b in BACKGROUNDS if b != scene.background])}"
    at = rng.choice(scene.objects)
    place, cell = POSITIONS[at], scene.cells[at]
    return rng.choice(
        [
            f"paint the object at {place} {rng.choice([c for c in COLOURS if c != cell.colour])}",
            f"turn the object at {place} into a {rng.choice([s for s in SHAPES if s != cell.shape])}",
            f"make the object at {place} {'large' if cell.size == 'small' else 'small'}",
            f"remove what is at {place}",
        ]
    )
