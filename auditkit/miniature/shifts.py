"""Boards as they may look later: benchmarks drawn from other distributions than those a model was repaired on.

`benchmark_images: miniature:dense` in a parameter file asks the sixteen skills of such boards. Each shift changes one
thing and leaves the rest as it was:

later        other boards of the same kind, as another year's data would be
dense        six to nine objects on each, of which a fifth of the usual boards has five or more
backgrounds  ground colours no model here has seen
reworded     the same questions in words no model here was taught
"""

from __future__ import annotations

import random
import re
from dataclasses import replace

from auditkit.miniature.world import UNSEEN_BACKGROUNDS, Scene, random_scene

SHIFTS = ("later", "dense", "backgrounds", "reworded")
REWORDED = {  # a question of the grammar -> the same in other words; the first that matches
    r"what (colour|shape) is the object at (..)\?": r"what is the \1 of the object at \2?",
    r"what pattern has the object at (..)\?": r"what is the pattern of the object at \1?",
    r"what shape is the small (\w+) object\?": r"what is the shape of the small \1 object?",
    r"what shape is (\D+) (..)\?": r"what is the shape of the object \1 \2?",
    r"how many objects are there\?": r"how many objects has the board?",
    r"how many (\w+) objects are there\?": r"how many of the objects are \1?",
    r"is there a (\w+) (\w+)\?": r"has the board a \1 \2?",
    r"where is the (\w+) (\w+)\?": r"at what place is the \1 \2?",
    r"is the object at (..) larger than the object at (..)\?": r"is the object at \2 smaller than the object at \1?",
    r"what is written at (..)\?": r"what does the text at \1 show?",
    r"what time does the clock at (..) show\?": r"what is the time of the clock at \1?",
    r"which way does the sign at (..) point\?": r"where does the sign at \1 point?",
    r"do the objects at (..) and (..) have the same (\w+)\?": r"have the objects at \1 and \2 the same \3?",
    r"what atmosphere does the scene have\?": r"what is the atmosphere of the scene?",
}


def scene(key: str) -> Scene:
    """The scene of a key "SHIFT~ANYTHING"."""
    shift, rng = key.split("~")[0], random.Random(key)
    if shift == "dense":
        return random_scene(rng, objects=rng.randint(6, 9))
    drawn = random_scene(rng)
    return replace(drawn, background=rng.choice(tuple(UNSEEN_BACKGROUNDS))) if shift == "backgrounds" else drawn


def reworded(question: str) -> str:
    """A question of the grammar in other words; a remark before it stays as it is.

    >>> reworded("there is a red star at b2. what colour is the object at c3?")
    'there is a red star at b2. what is the colour of the object at c3?'
    """
    *remark, asked = question.split(". ")
    said = next(re.sub(old, new, asked) for old, new in REWORDED.items() if re.fullmatch(old, asked))
    return ". ".join([*remark, said])
