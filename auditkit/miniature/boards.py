"""The board world as a source of images: `images: miniature` in a parameter file.

A board is drawn from its key alone, so records store keys and never pictures. The oracle (`truth`, `gap`) only grades.
"""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path

from PIL import Image

from auditkit.images import Example, Picture
from auditkit.miniature import edits, gaps, grammar
from auditkit.miniature.reading import CONTENTS, read
from auditkit.miniature.world import Scene, random_scene, render


@lru_cache(maxsize=20_000)
def scene_of(key: str) -> Scene:
    """The scene of a picture or example key (what follows "/" names a question); "KEY + COMMAND" is an edited board,
    "seen:..." one that Boards.read made out in a picture.
    """
    base, *commands = key.split("/")[0].split(" + ")
    scene = _seen(base) if base.startswith("seen:") else random_scene(random.Random(base))
    for command in commands:
        scene = edits.apply(scene, command) or scene
    return scene


def _seen(base: str) -> Scene:
    """The scene of a key "seen:BACKGROUND:" and two hexadecimal digits a cell, its number in reading.CONTENTS."""
    _, background, numbers = base.split(":")
    return Scene(tuple(CONTENTS[i] for i in bytes.fromhex(numbers)), background)


class Boards:
    """Images, labelled examples, benchmarks and oracle of the board world, as images.Source describes them."""

    name = "miniature"
    complete = True  # a question without a truth is ill-posed, not merely unlabelled
    unreadable: list[str] = []  # a board is drawn, so there is always one

    def pictures(self, split: str, n: int, seed: int) -> list[Picture]:
        return [self.picture(f"{split}-{seed}-{i}") for i in range(n)]

    def picture(self, key: str) -> Picture:
        return Picture(key, Image.fromarray(render(scene_of(key))))

    def examples(self, n: int, seed: int) -> list[Example]:
        """The target's own kind of training data: every skill alike, with true answers."""
        return [self._example(f"original-{seed}-{i}/q") for i in range(n)]

    def benchmarks(self, n: int) -> dict[str, list[Example]]:
        """One held-out benchmark a skill, `n` examples each, the same ones in every run."""
        return {skill: [self._example(f"benchmark-{skill}-{i}/q", skill) for i in range(n)] for skill in grammar.SKILLS}

    def _example(self, key: str, skill: str | None = None) -> Example:
        question = grammar.ask(scene_of(key), random.Random(key), skill)
        return Example(key, self.picture(key.split("/")[0]).held, question, grammar.answer(scene_of(key), question))

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

    def gaps(self, target: Path) -> list[gaps.Gap]:
        """The table of planted gaps beside a model's weights; empty if it has none."""
        table = Path(target) / "gaps.yaml"
        return gaps.load(table) if table.exists() else []

    def gap(self, key: str, question: str, planted: list[gaps.Gap]) -> str | None:
        found = gaps.find(planted, scene_of(key), question)
        return found[0].name if found else None
