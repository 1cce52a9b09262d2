"""How well does the miniature CLIP model tell pictures that are as was wished from others?  Measured by `gains` itself.

auditkit miniature likeness
"""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace

from PIL import Image

from auditkit import stats
from auditkit.counterfactual.clip_direction import PictureCheck, direction_gains, load_picture_check
from auditkit.counterfactual.make import edit_images, load_painter, measure_change, regenerate_images
from auditkit.miniature import clip, edits, lessons, painted, reading
from auditkit.miniature.world import render
from auditkit.runs.probe import Wish, parse_wish

DONE, BOARDS, SAME_BOARD, OTHER, SAME = (
    "as was wished",
    "another board's wish",
    "another wish of this board",
    "another thing there, or elsewhere",
    "unchanged",
)


def changes(n: int, seed: int = 0) -> dict[str, list[tuple[str, Image.Image, Image.Image, Wish]]]:
    """Pictures before and after by the shipped editor and generator, with wishes that came true and such that did not:
    n of every kind were asked for, {what was done: [(kind, before, after, wish)]}.

    What a picture shows is read off it by a reader that is no model, so what the painters got wrong is left out; so is
    what they left as it was, which nobody is asked about (incoherence).
    """
    rng = random.Random(f"likeness-{seed}")
    drawn = [clip.wished(rng, kind) for kind in clip.KINDS for _ in range(n)]
    shown = [Image.fromarray(render(one.before)) for one in drawn]
    again = [wished_of(one, rng) for one in drawn]
    asked = {DONE: drawn, BOARDS: [drawn[i - 1] for i in range(len(drawn))], SAME_BOARD: again}
    found = {
        OTHER: [
            (one.kind, picture, Image.fromarray(render(one.other)), one.wish)
            for one, picture in zip(drawn, shown, strict=True)
        ],
        SAME: [(one.kind, picture, picture, one.wish) for one, picture in zip(drawn, shown, strict=True)],
    }
    for name, texts_of in asked.items():
        rows = []
        for (one, picture), image in zip(zip(drawn, shown, strict=True), _painted(shown, texts_of), strict=True):
            unseen = image is None or measure_change(picture, image).box is None  # an album drops it before
            if not unseen and clip.holds(reading.read(image), one.wish) == (name == DONE):
                rows.append((one.kind, picture, image, one.wish))
        found[name] = rows
    return {name: found[name] for name in (DONE, BOARDS, SAME_BOARD, OTHER, SAME)}


def wished_of(one: clip.Drawn, rng: random.Random) -> clip.Drawn:
    """Another wish about the same board."""
    if one.kind == "caption":
        text = parse_wish(lessons.caption_and_check(one.before, rng)).text
    else:
        text = edits.draw(one.before, rng)
    return replace(one, wish=replace(one.wish, text=text))


def _painted(shown: list[Image.Image], asked: list[clip.Drawn]) -> list[Image.Image | None]:
    """What the editor makes of each picture by a command, and the generator of a caption."""
    made: dict[int, Image.Image | None] = {}
    captions = [i for i, one in enumerate(asked) if one.kind == "caption"]
    commands = [i for i, one in enumerate(asked) if one.kind != "caption"]
    generator, editor = (load_painter(f"miniature:{name}", "cpu") for name in ("generator", "editor"))
    paintings = regenerate_images(generator, [asked[i].wish.text for i in captions], captions)
    made |= {i: painting.image for i, painting in zip(captions, paintings, strict=True)}
    paintings = edit_images(editor, [shown[i] for i in commands], [asked[i].wish.text for i in commands], commands)
    made |= {i: painting.image for i, painting in zip(commands, paintings, strict=True)}
    return [made[i] for i in range(len(asked))]


def measured(judge: PictureCheck, n: int, bound: float = clip.BOUND, seed: int = 0) -> dict[str, dict[str, dict]]:
    """How often a change passes as what was wished for: {what was done: {kind, and all "edits": rate}}."""
    rates: dict[str, dict[str, dict]] = {}
    for name, rows in changes(n, seed).items():
        gains = direction_gains(judge, *([row[i] for row in rows] for i in (1, 2, 3)))
        passed = {
            kind: [g > bound for g, row in zip(gains, rows, strict=True) if row[0] == kind] for kind in clip.KINDS
        }
        passed["edits"] = [one for kind in edits.COMMANDS for one in passed[kind]]
        rates[name] = {kind: stats.rate(sum(ones), len(ones)) for kind, ones in passed.items() if ones}
    return rates


def table(n: int = 100, judge: str = "miniature:likeness", bound: float = clip.BOUND) -> str:
    """The rates of `measured`, printed."""
    p = SimpleNamespace(picture_judge=judge, device="cpu", dtype="auto", batch_size=128, memory="together")
    found = measured(load_picture_check(p), n, bound)
    rows = [
        f"{judge}: share of changes that pass as what was wished for (gain above {bound}), % with 95 % interval;",
        f"{n} wishes of every kind on new boards; painted by the shipped pipelines, the last two columns drawn",
        f"{'':12}" + "".join(f"{name:>36}" for name in found),
    ]
    for kind in (*edits.COMMANDS, "edits", "caption"):
        cells = [painted._percent(rates[kind]) if kind in rates else "" for rates in found.values()]
        rows.append(f"{kind:12}" + "".join(f"{cell:>36}" for cell in cells))
    return "\n".join(rows)
