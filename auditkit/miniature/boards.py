"""The board world as a source of images: `images: miniature` in a parameter file, or `miniature:SHIFT` (shifts.py).

A board is drawn from its key alone, so records store keys and never pictures. The oracle (`truth`, `gap`) only grades.
"""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path

from PIL import Image

from auditkit.data.source import Example, Picture, Task
from auditkit.errors import AuditError
from auditkit.miniature import edits, gaps, grammar, shifts
from auditkit.miniature.gaps import Gap
from auditkit.miniature.reading import CONTENTS, read
from auditkit.miniature.world import POSITIONS, Scene, random_scene, render


@lru_cache(maxsize=20_000)
def scene_of(key: str) -> Scene:
    """The scene of a picture or example key (what follows "/" names a question); "KEY + COMMAND" is an edited board,
    "seen:..." one that Boards.read made out in a picture.
    """
    base, *commands = key.split("/")[0].split(" + ")
    if base.startswith("seen:"):
        scene = _seen(base)
    else:
        scene = shifts.scene(base) if "~" in base else random_scene(random.Random(base))
    for command in commands:
        scene = edits.apply(scene, command) or scene
    return scene


def _seen(base: str) -> Scene:
    """The scene of a key "seen:BACKGROUND:" and two hexadecimal digits a cell, its number in reading.CONTENTS."""
    _, background, numbers = base.split(":")
    return Scene(tuple(CONTENTS[i] for i in bytes.fromhex(numbers)), background)


class Boards:
    """Images, labelled examples, benchmarks and oracle of the board world, as Source describes them."""

    complete = True  # a question without a truth is ill-posed, not merely unlabelled
    unreadable: list[str] = []  # a board is drawn, so there is always one
    guide = (
        "A board has four columns, a to d, and four rows, 1 to 4 from the top, so a1 is its upper left corner. A cell "
        "holds an object, a letter or digit, a clock, an arrow sign, or nothing. Only coloured shapes are objects: "
        "circle, square, triangle, diamond, cross or star, red, green, blue, yellow, purple or orange, small or large, "
        "plain, striped or dotted. Letters, digits, clocks and signs are never counted. The background is day (light "
        "blue), dusk (pink), fog (grey) or night (dark)."
    )
    edges = ("abcd", "1234")

    def __init__(self, shift: str = ""):
        if shift and shift not in shifts.SHIFTS:
            raise AuditError(
                f'images: "miniature:{shift}" is not one of miniature, miniature:{", miniature:".join(shifts.SHIFTS)}.'
            )
        self.name, self.shift = f"miniature:{shift}" if shift else "miniature", shift
        self.prefix = f"{shift}~" if shift else ""

    def counts(self) -> dict[str, int]:
        """{}: boards are drawn, so there is no end of them."""
        return {}

    def pictures(self, split: str, n: int, seed: int) -> list[Picture]:
        return [self.picture(f"{self.prefix}{split}-{seed}-{i}") for i in range(n)]

    def picture(self, key: str) -> Picture:
        return Picture(key, Image.fromarray(render(scene_of(key))))

    def examples(self, n: int, seed: int) -> list[Example]:
        """The target's own kind of training data: every skill alike, with true answers."""
        return [self._example(f"{self.prefix}original-{seed}-{i}/q") for i in range(n)]

    def benchmarks(self, n: int) -> dict[str, list[Example]]:
        """One held-out benchmark a skill, `n` examples each, the same ones in every run."""
        skills = [skill for skill in grammar.SKILLS if (self.shift, skill) != ("backgrounds", "background")]
        return {
            skill: [self._example(f"{self.prefix}benchmark-{skill}-{i}/q", skill) for i in range(n)] for skill in skills
        }

    def tasks(self, n: int) -> list[Task]:
        """Describing a board, cell by cell: what the target was taught besides answering, and no audit asks about."""
        pictures = self.pictures("task", n, 0)
        examples = [Example(q.key, q.held, "describe the board", description(scene_of(q.key))) for q in pictures]
        return [Task("describe the board", examples, 120, cells_right)]

    def _example(self, key: str, skill: str | None = None) -> Example:
        question = grammar.ask(scene_of(key), random.Random(key), skill)
        said = shifts.reworded(question) if self.shift == "reworded" else question
        return Example(key, self.picture(key.split("/")[0]).held, said, grammar.answer(scene_of(key), question))

    def edits(self, key: str, n: int, seed: int) -> list[tuple[str, str]]:
        """Exact counterfactuals: up to n (edit command, key of the edited picture), each one change away from the
        picture.
        """
        rng = random.Random(f"edit-{key}-{seed}")
        commands = dict.fromkeys(edits.draw(scene_of(key), rng) for _ in range(n))
        return [(command, f"{key} + {command}") for command in commands]

    def question(self, key: str) -> str:
        """A question of any skill, drawn by the key alone."""
        return grammar.ask(scene_of(key), random.Random(f"own-{key}"))

    def read(self, image: Image.Image) -> str:
        """The key of the board that a picture by others shows, such as a generator's; the scene itself is in the key.

        >>> from auditkit.miniature.world import Cell
        >>> Boards().read(Image.fromarray(render(Scene((Cell("text", value="A"), *[Cell()] * 15), "fog"))))
        'seen:fog:d9000000000000000000000000000000'
        """
        scene = read(image)
        return f"seen:{scene.background}:{bytes(CONTENTS.index(cell) for cell in scene.cells).hex()}"

    def truth(self, key: str, question: str) -> str | None:
        return grammar.answer(scene_of(key), question)

    def accepted(self, key: str, question: str) -> tuple[str, ...]:
        truth = self.truth(key, question)
        return () if truth is None else (truth,)

    def gaps(self, target: Path) -> list[Gap]:
        """The table of planted gaps beside a model's weights; empty if it has none."""
        table = Path(target) / "gaps.yaml"
        return gaps.load(table) if table.exists() else []

    def gap(self, key: str, question: str, planted: list[Gap]) -> str | None:
        found = gaps.find(planted, scene_of(key), question)
        return found[0].name if found else None


def description(scene: Scene) -> str:
    """Every place and what it holds, as lessons.describe teaches it, in the order of the places.

    >>> from auditkit.miniature.world import Cell
    >>> description(Scene((Cell("text", value="A"), *[Cell()] * 15), "fog"))[:20]
    'a1 A b1 none c1 none'
    """
    parts = []
    for place, cell in zip(POSITIONS, scene.cells, strict=True):
        looks = [cell.colour, cell.shape, cell.size, cell.pattern, cell.value]
        parts.append(" ".join([place, *([look for look in looks if look] or ["none"])]))
    return " ".join(parts)


def cells_right(said: str, truth: str) -> list[bool]:
    """Cell by cell, whether a description says what is there; the order of the cells does not matter.

    >>> cells_right("b1 none a1 red star", "a1 red star b1 A")
    [True, False]
    """

    def told(text: str) -> dict[str, list[str]]:
        cells: dict[str, list[str]] = {}
        place = ""
        for word in text.split():
            place = word if word in POSITIONS else place
            cells.setdefault(place, [])
            cells[place] += [word] if word != place else []
        return cells

    heard = told(said)
    return [heard.get(place) == looks for place, looks in told(truth).items()]
