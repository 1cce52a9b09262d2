"""How well do the miniature editor and generator do what they are told?  Counted by a reader that is no model.

auditkit miniature painters
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from PIL import Image

from auditkit import stats
from auditkit.counterfactual.make import ImagePipeline, edit_images, load_pipeline, regenerate_images
from auditkit.miniature import edits, reading
from auditkit.miniature.world import SIDE, Cell, Scene, random_scene, render
from auditkit.text import text_table, with_interval

STEPS = (1, 2, 4, 8)


def tasks(n: int, seed: int = 0) -> list[tuple[Scene, str]]:
    """Boards with a command to each, n of every kind, never used in training."""
    found = []
    for kind in edits.COMMANDS:
        rng, wanted = random.Random(f"painted-{kind}-{seed}"), len(found) + n
        while len(found) < wanted:
            scene = random_scene(rng)
            command = edits.draw(scene, rng, kind)
            if edits.kind(command) == kind:  # a board without objects has none to paint
                found.append((scene, command))
    return found


def edited(painter: Any, n: int, steps: int, seed: int = 0, shuffled: bool = False) -> dict:
    """Rates of an editor on n boards of every kind of command: "applied" by kind and over "all", "rest" (other cells as
    they were, and their background too), and "seconds" an image.

    shuffled: a control, in which every board gets the command of another one and must not show its own.
    """
    asked = tasks(n, seed)
    commands = [command for _, command in asked]
    if shuffled:
        random.Random(seed).shuffle(commands)
    images = [Image.fromarray(render(scene)) for scene, _ in asked]
    painted = edit_images(_in(painter, steps), images, commands, list(range(len(asked))))
    applied = {kind: 0 for kind in edits.COMMANDS}
    rest = others = 0
    for (before, command), picture in zip(asked, painted, strict=True):
        if picture.image is None:  # nothing of it is right
            others += SIDE * SIDE - (edits.kind(command) != "background")
            continue
        after, seen = edits.apply(before, command), reading.read(picture.image)
        kind = edits.kind(command)
        right = [a == b for a, b in zip(seen.cells, after.cells, strict=True)]
        if kind == "background":
            applied[kind] += seen.background == after.background
            changed = None
        else:
            changed = next(i for i, (a, b) in enumerate(zip(before.cells, after.cells, strict=True)) if a != b)
            applied[kind] += right[changed]
        same_ground = seen.background == after.background or kind == "background"
        rest += sum(right[i] and same_ground for i in range(SIDE * SIDE) if i != changed)
        others += SIDE * SIDE - (changed is not None)
    return {
        "applied": {kind: stats.rate(ones, n) for kind, ones in applied.items()}
        | {"all": stats.rate(sum(applied.values()), len(asked))},
        "rest": stats.rate(rest, others),
        "seconds": sum(picture.seconds for picture in painted) / len(painted),
    }


def generated(painter: Any, n: int, steps: int, seed: int = 0) -> dict:
    """Rates of a generator on n new captions: things "there" by kind and over "all", places left "empty" that should
    be, the "background", and "seconds" an image.
    """
    rng = random.Random(f"painted-captions-{seed}")
    scenes = [edits.fewer(random_scene(rng), rng) for _ in range(n)]
    captions = [edits.caption(scene, rng) for scene in scenes]
    painted = regenerate_images(_in(painter, steps), captions, list(range(n)))
    there = {kind: [] for kind in ("object", "text", "clock", "sign", "empty")}
    grounds = 0
    for scene, picture in zip(scenes, painted, strict=True):
        seen = reading.read(picture.image) if picture.image else Scene((Cell("failed"),) * SIDE**2, "")
        grounds += seen.background == scene.background
        for wanted, cell in zip(scene.cells, seen.cells, strict=True):
            there[wanted.kind].append(wanted == cell)
    empty = there.pop("empty")
    every = [right for ones in there.values() for right in ones]
    return {
        "there": {kind: stats.rate(sum(ones), len(ones)) for kind, ones in (there | {"all": every}).items()},
        "empty": stats.rate(sum(empty), len(empty)),
        "background": stats.rate(grounds, n),
        "seconds": sum(picture.seconds for picture in painted) / n,
    }


def _in(painter: ImagePipeline, steps: int) -> ImagePipeline:
    return replace(painter, call=painter.call | {"num_inference_steps": steps})


def table(n: int = 200, editor: str = "miniature:editor", generator: str = "miniature:generator") -> str:
    """Both pipelines' rates at each number of steps, printed."""
    painter = load_pipeline(editor, "cpu")
    by_steps = [edited(painter, n, steps) for steps in STEPS]
    control = edited(painter, n, STEPS[0], shuffled=True)
    steps = [str(steps) for steps in STEPS]
    rows = [
        [kind, *(with_interval(found["applied"][kind]) for found in (*by_steps, control))]
        for kind in (*edits.COMMANDS, "all")
    ]
    rows.append(["other cells unchanged", *(with_interval(found["rest"]) for found in by_steps), ""])
    rows.append(["ms an image", *(f"{1000 * found['seconds']:.1f}" for found in by_steps), ""])
    said = [f"editor: {n} new boards for each kind of command, % with 95 % interval; last: shuffled commands, 1 step"]
    said += [text_table(["steps", *steps, "shuffled"], rows)]
    painter = load_pipeline(generator, "cpu")
    by_steps = [generated(painter, 2 * n, steps) for steps in STEPS]
    rows = [
        [f"{kind} there", *(with_interval(found["there"][kind]) for found in by_steps)]
        for kind in ("object", "text", "clock", "sign", "all")
    ]
    rows.append(["other cells empty", *(with_interval(found["empty"]) for found in by_steps)])
    rows.append(["background", *(with_interval(found["background"]) for found in by_steps)])
    rows.append(["ms an image", *(f"{1000 * found['seconds']:.1f}" for found in by_steps)])
    said += ["", f"generator: {2 * n} new captions of up to {edits.MOST} things", text_table(["steps", *steps], rows)]
    return "\n".join(said)
