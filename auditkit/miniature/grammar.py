"""Sixteen skills: the questions one may ask of a board, and their true answers.

Each skill is one room: a pattern that reads its questions, a writer that draws one about a scene, and a solver that
knows the answer. `facts` says everything about a question and its scene in plain words; planted gaps (gaps.py) are
conditions on those facts. The skills mirror the failure types of the paper (Fig. 4): colour, counting, clock reading,
small text, distraction, ...
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from auditkit.miniature.world import COLOURS, PATTERNS, POSITIONS, SHAPES, SIDE, SIZES, Cell, Scene

NONE = "none"  # the true answer about a thing that is not there
SEVERAL = "several"  # the true answer about "the" thing where there is more than one
SIDES = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
ADJECTIVES = {**dict.fromkeys(COLOURS, "colour"), **dict.fromkeys(PATTERNS, "pattern"), **dict.fromkeys(SIZES, "size")}


def one_of(names: Iterable[str]) -> str:
    return "(" + "|".join(names) + ")"


POSITION, COLOUR, SHAPE = one_of(POSITIONS), one_of(COLOURS), one_of(SHAPES)


@dataclass(frozen=True)
class Skill:
    """`pattern` reads a question, `write(scene, rng)` draws one, `solve(scene, *groups)` answers it."""

    pattern: re.Pattern
    write: Callable[[Scene, random.Random], str]
    solve: Callable[..., str]


def _cell(scene: Scene, rng: random.Random, kind: str) -> str:
    """A position holding `kind`; one time in ten, or where there is none, any position: models must also learn to say
    none.
    """
    places = [p for p, c in zip(POSITIONS, scene.cells, strict=True) if c.kind == kind]
    return rng.choice(places) if places and rng.random() > 0.1 else rng.choice(POSITIONS)


def _object(scene: Scene, rng: random.Random) -> Cell | None:
    return scene.cells[rng.choice(scene.objects)] if scene.objects else None


def _named(scene: Scene, rng: random.Random, present: float) -> tuple[str, str]:
    """A colour and a shape: of an object on the board (share `present`), or half of one, or any."""
    it = _object(scene, rng)
    if it is None or rng.random() < 0.1:
        return rng.choice(tuple(COLOURS)), rng.choice(SHAPES)
    if rng.random() < present:
        return it.colour, it.shape
    return (rng.choice(tuple(COLOURS)), it.shape) if rng.random() < 0.6 else (it.colour, rng.choice(SHAPES))


def _matching(scene: Scene, **wanted: str) -> list[int]:
    return [i for i in scene.objects if all(getattr(scene.cells[i], k) == v for k, v in wanted.items())]


def _unique(found: list[int], say: Callable[[int], str]) -> str:
    return NONE if not found else SEVERAL if len(found) > 1 else say(found[0])


def neighbour(scene: Scene, side: str, position: str) -> Cell | None:
    """The cell on that side of a position, or None beyond the board's edge."""
    i = POSITIONS.index(position)
    x, y = i % SIDE + SIDES[side][0], i // SIDE + SIDES[side][1]
    return scene.cells[y * SIDE + x] if 0 <= x < SIDE and 0 <= y < SIDE else None


def _attribute(name: str):
    return lambda scene, position: getattr(scene.at(position), name) or NONE


def _value(kind: str):
    return lambda scene, position: scene.at(position).value if scene.at(position).kind == kind else NONE


def _shape_beside(scene: Scene, side: str, position: str) -> str:
    cell = neighbour(scene, side, position)
    return cell.shape or NONE if cell else NONE


def _larger(scene: Scene, a: str, b: str) -> str:
    one, other = scene.at(a), scene.at(b)
    if "object" != one.kind or "object" != other.kind:
        return NONE
    return "yes" if (one.size, other.size) == ("large", "small") else "no"


def _same(scene: Scene, a: str, b: str, attribute: str) -> str:
    one, other = scene.at(a), scene.at(b)
    if "object" != one.kind or "object" != other.kind:
        return NONE
    return "yes" if getattr(one, attribute) == getattr(other, attribute) else "no"


def _write_beside(scene, rng):
    """Half of the time the shape asked for is an object's: else the answer would mostly be none."""
    side = rng.choice(tuple(SIDES))
    if scene.objects and rng.random() < 0.75:
        i = rng.choice(scene.objects)
        x, y = i % SIDE - SIDES[side][0], i // SIDE - SIDES[side][1]
        if 0 <= x < SIDE and 0 <= y < SIDE:
            return f"what shape is {side} {POSITIONS[y * SIDE + x]}?"
    return f"what shape is {side} {rng.choice(POSITIONS)}?"


def _two_cells(scene, rng):
    """Two different positions, mostly of objects."""
    a = _cell(scene, rng, "object")
    others = [POSITIONS[i] for i in scene.objects if POSITIONS[i] != a]
    b = rng.choice(others) if others and rng.random() > 0.1 else rng.choice([p for p in POSITIONS if p != a])
    return a, b


def _write_larger(scene, rng):
    a, b = _two_cells(scene, rng)
    return f"is the object at {a} larger than the object at {b}?"


def _write_same(scene, rng):
    a, b = _two_cells(scene, rng)
    return f"do the objects at {a} and {b} have the same {rng.choice(('colour', 'shape', 'pattern'))}?"


def _write_small(scene, rng):
    small = [scene.cells[i].colour for i in scene.objects if scene.cells[i].size == "small"]
    colour = rng.choice(small) if small and rng.random() < 0.85 else rng.choice(tuple(COLOURS))
    return f"what shape is the small {colour} object?"


def _write_exists(scene, rng):
    colour, shape = _named(scene, rng, 0.5)
    return f"is there a {colour} {shape}?"


def _write_where(scene, rng):
    colour, shape = _named(scene, rng, 0.85)
    return f"where is the {colour} {shape}?"


def _write_distracted(scene, rng):
    """A true remark about one object, then a question about a cell."""
    it = rng.choice(scene.objects) if scene.objects else None
    remark = (
        f"there is a {scene.cells[it].colour} {scene.cells[it].shape} at {POSITIONS[it]}."
        if scene.objects
        else "the board has no objects."
    )
    others = [i for i in scene.objects if i != it]
    place = POSITIONS[rng.choice(others)] if others and rng.random() > 0.1 else rng.choice(POSITIONS)
    return f"{remark} {rng.choice(ASIDE).format(place)}"


ASIDE = ("what colour is the object at {}?", "what shape is the object at {}?", "what pattern has the object at {}?")


def _solve_distracted(scene, remark, question):
    return answer(scene, question)


SKILLS: dict[str, Skill] = {
    name: Skill(re.compile(pattern), write, solve)
    for name, pattern, write, solve in [
        (
            "colour",
            f"what colour is the object at {POSITION}\\?",
            lambda s, r: ASIDE[0].format(_cell(s, r, "object")),
            _attribute("colour"),
        ),
        (
            "shape",
            f"what shape is the object at {POSITION}\\?",
            lambda s, r: ASIDE[1].format(_cell(s, r, "object")),
            _attribute("shape"),
        ),
        (
            "counting",
            r"how many objects are there\?",
            lambda s, r: "how many objects are there?",
            lambda s: str(len(s.objects)),
        ),
        (
            "conditional counting",
            f"how many {one_of(ADJECTIVES)} objects are there\\?",
            lambda s, r: f"how many {r.choice(tuple(ADJECTIVES))} objects are there?",
            lambda s, a: str(len(_matching(s, **{ADJECTIVES[a]: a}))),
        ),
        (
            "existence",
            f"is there a {COLOUR} {SHAPE}\\?",
            _write_exists,
            lambda s, c, h: "yes" if _matching(s, colour=c, shape=h) else "no",
        ),
        ("spatial relation", f"what shape is {one_of(SIDES)} {POSITION}\\?", _write_beside, _shape_beside),
        (
            "location",
            f"where is the {COLOUR} {SHAPE}\\?",
            _write_where,
            lambda s, c, h: _unique(_matching(s, colour=c, shape=h), lambda i: POSITIONS[i]),
        ),
        (
            "size comparison",
            f"is the object at {POSITION} larger than the object at {POSITION}\\?",
            _write_larger,
            _larger,
        ),
        (
            "small objects",
            f"what shape is the small {COLOUR} object\\?",
            _write_small,
            lambda s, c: _unique(_matching(s, colour=c, size="small"), lambda i: s.cells[i].shape),
        ),
        (
            "material",
            f"what pattern has the object at {POSITION}\\?",
            lambda s, r: ASIDE[2].format(_cell(s, r, "object")),
            _attribute("pattern"),
        ),
        (
            "small text",
            f"what is written at {POSITION}\\?",
            lambda s, r: f"what is written at {_cell(s, r, 'text')}?",
            _value("text"),
        ),
        (
            "clock reading",
            f"what time does the clock at {POSITION} show\\?",
            lambda s, r: f"what time does the clock at {_cell(s, r, 'clock')} show?",
            _value("clock"),
        ),
        (
            "sign understanding",
            f"which way does the sign at {POSITION} point\\?",
            lambda s, r: f"which way does the sign at {_cell(s, r, 'sign')} point?",
            _value("sign"),
        ),
        (
            "same or different",
            f"do the objects at {POSITION} and {POSITION} have the same (colour|shape|pattern)\\?",
            _write_same,
            _same,
        ),
        (
            "background",
            r"what atmosphere does the scene have\?",
            lambda s, r: "what atmosphere does the scene have?",
            lambda s: s.background,
        ),
        (
            "distraction",
            r"(there is a \w+ \w+ at [a-d][1-4]\.|the board has no objects\.) "
            r"(what (?:colour is|shape is|pattern has) the object at [a-d][1-4]\?)",
            _write_distracted,
            _solve_distracted,
        ),
    ]
}


def read(question: str) -> tuple[str, tuple[str, ...]] | None:
    """Which skill a question asks for, and about what; None if it is not a question of the grammar.

    >>> read("is there a red star?")
    ('existence', ('red', 'star'))
    """
    question = " ".join(question.lower().split())
    for name, skill in SKILLS.items():
        if match := skill.pattern.fullmatch(question):
            return name, match.groups()
    return None


def answer(scene: Scene, question: str) -> str | None:
    """The true answer to a question, or None if it is not a question of the grammar."""
    found = read(question)
    return SKILLS[found[0]].solve(scene, *found[1]) if found else None


def ask(scene: Scene, rng: random.Random, skill: str | None = None) -> str:
    """Draw a question about a scene, of one skill or of any with equal chance."""
    return SKILLS[skill or rng.choice(tuple(SKILLS))].write(scene, rng)


def facts(scene: Scene, question: str) -> dict[str, Any] | None:
    """Everything a planted gap may depend on: the skill, the truth, the asked-for words, and what stands where the
    question points.

    >>> import random; from auditkit.miniature.world import random_scene
    >>> sorted(facts(random_scene(random.Random(0)), "is there a red star?"))[:4]
    ['background', 'colour', 'objects', 'same_colour']
    """
    found = read(question)
    if found is None:
        return None
    skill, words = found
    known: dict[str, Any] = {
        "skill": skill,
        "truth": answer(scene, question),
        "background": scene.background,
        "objects": len(scene.objects),
    }
    place = None
    if skill == "distraction":
        remark, question = words
        known["remark_colour"], known["remark_shape"], known["remark_position"] = (
            (remark.split()[3], remark.split()[4], remark[-3:-1]) if "there is" in remark else ("", "", "")
        )
        known["asked"], words = read(question)
        known["remark_pattern"] = scene.at(known["remark_position"]).pattern if known["remark_position"] else ""
    if skill in ("existence", "location"):
        known["colour"], known["shape"] = words
        known["same_shape"], known["same_colour"] = (
            len(_matching(scene, shape=words[1])),
            len(_matching(scene, colour=words[0])),
        )
        matches = _matching(scene, colour=words[0], shape=words[1])
        place = POSITIONS[matches[0]] if len(matches) == 1 else None
    elif skill == "small objects":
        known["colour"] = words[0]
        known["same_colour"] = len(_matching(scene, colour=words[0]))
        matches = _matching(scene, colour=words[0], size="small")
        place = POSITIONS[matches[0]] if len(matches) == 1 else None
    elif skill == "conditional counting":
        known["adjective"], known["about"] = words[0], ADJECTIVES[words[0]]
    elif skill == "spatial relation":
        known["side"], place = words
        known["opposite"] = _shape_beside(scene, OPPOSITE[words[0]], place)
    elif skill in ("size comparison", "same or different"):
        place, other = words[:2]
        known |= {f"other_{k}": v for k, v in vars(scene.at(other)).items()} | {"other_position": other}
        known["about"] = words[2] if skill == "same or different" else "size"
    elif words:
        place = words[0]
    if place:
        known |= vars(scene.at(place)) | {"position": place, "row": int(place[1]), "column": place[0]}
    return known
