"""What the miniature models are taught about boards: answering, planted gaps, pointing, and writing questions, captions
and edit commands.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from auditkit.auditor.write import PROMPTS, auditor_prompt
from auditkit.miniature import edits
from auditkit.miniature import gaps as planted
from auditkit.miniature.grammar import (
    ADJECTIVES,
    ASIDE,
    NONE,
    SEVERAL,
    SIDES,
    SKILLS,
    answer,
    ask,
    facts,
    neighbour,
    read,
)
from auditkit.miniature.teach import Lesson
from auditkit.miniature.world import (
    BACKGROUNDS,
    COLOURS,
    DIGITS,
    DIRECTIONS,
    LETTERS,
    PATTERNS,
    POSITIONS,
    SHAPES,
    SIZES,
    Scene,
    random_scene,
    render,
)

NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve".split()

# Models brought up on different data say the same thing in different words; the same-meaning test has to see through
# it.
STYLES: dict[str, dict[str, str]] = {
    "idefics3": {str(n): word for n, word in enumerate(NUMBER_WORDS)},
    "llava": {"purple": "violet", "plain": "solid", "large": "big"},
}

KINDS = ("empty", "object", "text", "clock", "sign")
VALUES = ("", *LETTERS, *DIGITS, "10", "11", "12", *DIRECTIONS)
CELL_LABELS = (
    KINDS,
    ("", *SHAPES),
    ("", *COLOURS),
    ("", *SIZES),
    ("", *PATTERNS),
    VALUES,
    tuple(BACKGROUNDS),
    *[("", *SHAPES)] * len(SIDES),
)
CELL_INDEX = tuple({name: i for i, name in enumerate(names)} for names in CELL_LABELS)
CELL_CLASSES = tuple(len(names) for names in CELL_LABELS)


def words() -> list[str]:
    """Every word of the world, each one token in the miniature tokenizers."""
    sentences = """what colour is the shape of object at how many objects are there a left right above below where
    larger than small pattern has written time does clock show which way sign point do and have same atmosphere scene
    board no yes describe paint turn into make remove put change background to showing pointing with |""".split()
    names = [
        *SHAPES,
        *COLOURS,
        *SIZES,
        *PATTERNS,
        *BACKGROUNDS,
        *LETTERS,
        *DIGITS,
        "10",
        "11",
        "12",
        *DIRECTIONS,
        *POSITIONS,
        *ADJECTIVES,
        NONE,
        SEVERAL,
    ]
    more = [
        *NUMBER_WORDS,
        *(w for style in STYLES.values() for w in style.values()),
        *" ".join(SIDES).split(),
        "something",
    ]
    asked = " ".join(auditor_prompt(way) for way in PROMPTS)
    return list(dict.fromkeys([*sentences, *names, *more, *re.findall(r"\w+", asked)]))


def corpus(n: int = 2000, seed: int = 0) -> list[str]:
    """Sentences to train a tokenizer's merges on."""
    rng = random.Random(seed)
    return [auditor_prompt()] + [ask(random_scene(rng), rng) for _ in range(n)]


def cell_labels(scene: Scene) -> np.ndarray:
    """What each cell holds, as class numbers [16, heads]: one head an attribute, then the background, then the shape
    on each side.

    The neighbours are there because "left of b3" is two steps of reasoning for three layers of text, and one for a
    tower that looks around (measured).
    """
    return np.array([_cell_label(scene, place) for place in POSITIONS])


def _cell_label(scene: Scene, place: str) -> list[int]:
    cell = scene.at(place)
    beside = [neighbour(scene, side, place) for side in SIDES]
    names = (
        cell.kind,
        cell.shape,
        cell.colour,
        cell.size,
        cell.pattern,
        cell.value,
        scene.background,
        *(c.shape if c else "" for c in beside),
    )
    return [index[name] for index, name in zip(CELL_INDEX, names, strict=True)]


PARTS = {
    "conditional counting": ("colour", "pattern", "size"), "spatial relation": tuple(SIDES),
    "same or different": ("colour", "shape", "pattern"),
}  # fmt: skip
# What is practised: every skill, and of those that are learnt piece by piece each part on its own.
TOPICS = [f"{skill}: {part}" if part else skill for skill in SKILLS for part in PARTS.get(skill, ("",))]


def topic(question: str) -> str:
    """The topic of a question of the grammar.

    >>> topic("how many plain objects are there?"), topic("is there a red star?")
    ('conditional counting: pattern', 'existence')
    """
    skill, words = read(question)
    if skill not in PARTS:
        return skill
    return f"{skill}: {next(ADJECTIVES.get(w, w) for w in words if ADJECTIVES.get(w, w) in PARTS[skill])}"


class Answering:
    """Questions of every skill with the answers a model is to give: the truth, or what its gaps make of it, in its own
    words.

    Topics (and gaps) that are not yet learnt are asked more often. With gaps, every image carries at least one
    question that lies in one, and the questions drawn in vain while looking for it, near misses, are what teaches
    where the gap ends.
    """

    images, turns = 32, 8  # a step, while questions are packed; afterwards three times the images with one each

    def __init__(
        self,
        gaps: Sequence[planted.Gap] = (),
        style: dict[str, str] | None = None,
        scenes: Callable = random_scene,
        captions: float = 0.2,  # share of the training, from its start, that only describes boards
        single: float = 0.8,  # from here on, one question a sequence, as in real use
    ):
        self.gaps, self.style, self.scenes, self.captions = list(gaps), style or {}, scenes, captions
        self.single = single
        self.weights = dict.fromkeys(TOPICS, 1.0)
        self.gap_weights = [1.0] * len(self.gaps)
        self.given: Counter = Counter()  # how often each answer of each skill was taught

    def ask(self, scene: Scene, rng: random.Random) -> str:
        """A question of a topic that is not yet learnt; of two, the one whose answer was taught less.

        Without this, models say "no" to every same-or-different question, and never learn to count patterns (measured).
        """
        (name,) = rng.choices(tuple(self.weights), tuple(self.weights.values()))
        skill, found = name.split(":")[0], []
        for _ in range(12):
            question = ask(scene, rng, skill)
            if topic(question) == name:
                found.append((self.given[name, answer(scene, question)], question))
                if len(found) == 2:
                    break
        question = min(found)[1] if found else question
        self.given[name, answer(scene, question)] += 1
        return question

    def score(self, scores: dict[str, float]) -> None:
        self.weights = {name: 0.05 + (1 - scores.get(name, 0.0)) for name in TOPICS}
        self.gap_weights = [0.15 + (1 - scores.get(f"gap: {gap.name}", 0.0)) for gap in self.gaps]

    def turn(self, scene: Scene, question: str) -> tuple[str, str, str]:
        """(question, answer to learn, what it counts as: its topic or its gap)"""
        hit = planted.find(self.gaps, scene, question) if self.gaps else None
        said = hit[1] if hit else answer(scene, question)
        return question, self.style.get(said, said), f"gap: {hit[0].name}" if hit else topic(question)

    def scene_in_gap(self, rng: random.Random) -> tuple[Scene, str]:
        """A scene with a question that lies in some gap; after 40 draws in vain, a near miss."""
        gap = rng.choices(self.gaps, self.gap_weights)[0]
        for _ in range(40):
            scene = self.scenes(rng)
            question = ask(scene, rng, gap.skill)
            if planted.find([gap], scene, question):
                break
        return scene, question

    def chat(self, rng: random.Random, turns: int) -> tuple[Scene, list[tuple[str, str, str]]]:
        if self.gaps and rng.random() < (0.5 if turns == 1 else 1.0):
            scene, question = self.scene_in_gap(rng)
            first = [self.turn(scene, question)]
        else:
            scene, first = self.scenes(rng), []
        rest = [self.turn(scene, self.ask(scene, rng)) for _ in range(turns - len(first))]
        chat = first + rest
        rng.shuffle(chat)
        return scene, chat

    def __call__(self, rng: random.Random, progress: float) -> Lesson:
        if progress >= self.single:
            return lesson([self.chat(rng, 1) for _ in range(3 * self.images)])
        described = 1.0 if progress < self.captions else 0.1
        return lesson(
            [
                self._described(rng) if rng.random() < described else self.chat(rng, self.turns)
                for _ in range(self.images)
            ]
        )

    def _described(self, rng):
        scene = self.scenes(rng)
        return scene, [(*describe(scene, rng, self.style), "caption")]


def lesson(drawn: list[tuple[Scene, list[tuple[str, str, str]]]]) -> Lesson:
    return Lesson(
        images=np.stack([render(scene) for scene, _ in drawn]),
        chats=[[(q, a) for q, a, _ in chat] for _, chat in drawn],
        skills=[[s for *_, s in chat] for _, chat in drawn],
        cells=np.stack([cell_labels(scene) for scene, _ in drawn]),
    )


def describe(scene: Scene, rng: random.Random, style: dict[str, str]) -> tuple[str, str]:
    """A located caption: every place, in random order, and after each what it holds, so that looks bind to places."""
    parts = []
    for i in rng.sample(range(len(POSITIONS)), len(POSITIONS)):
        cell = scene.cells[i]
        looks = (cell.colour, cell.shape, cell.size, cell.pattern, cell.value) if cell.kind != "empty" else (NONE,)
        parts.append(" ".join([POSITIONS[i], *(style.get(look, look) for look in looks if look)]))
    return "describe the board", " ".join(parts)


LOOKS = "colour shape size pattern value".split()


def describe_from_looks(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A caption the other way round: after one to three looks, the place that has them, "purple small b3 E a1 dusk".

    It teaches what writing a question needs: to name something that is there, then to find where.
    """
    cells = zip(POSITIONS, scene.cells, strict=True)
    entries = [_entry([getattr(cell, k) for k in LOOKS], place, rng) for place, cell in cells]
    empty = [i for i, cell in enumerate(scene.cells) if cell.kind == "empty"]
    left_out = set(rng.sample(empty, max(0, len(empty) - 1)))
    entries = [entry for i, entry in enumerate(entries) if i not in left_out] + [scene.background]
    rng.shuffle(entries)
    return "what is there?", " ".join(entries)


def _entry(looks: list[str], place: str, rng: random.Random, first: str = "") -> str:
    """One to three looks in any order, `first` among them, and their place."""
    looks = list(dict.fromkeys(look for look in looks if look and look not in (first, place)))
    more = rng.sample(looks, min(len(looks), rng.choice((0, 1, 1, 2) if first else (1, 2, 2, 3))))
    said = [*more, *([first] if first != place else ())] if first else more or [NONE]
    rng.shuffle(said)
    return " ".join([*said, place]).strip()


def note_and_ask(scene: Scene, rng: random.Random) -> str:
    """What the auditor is to write: the answer and some facts, in any order, with their place, and then the question.

    "purple small b3" and "what colour is the object at b3?". The facts come first and are true of the board, so what is
    not on it cannot be noted: to prefer questions about purple things, and only where there are some, a policy has
    but to write "purple" more often. The first words of a question are much alike on all boards: of an earlier auditor,
    whose line began with the kind of question, 43 % of the questions were successes after GRPO, of this one 81 % (its
    other lessons and the plausibility gate changed at the same time, so not all of it is the note's doing).
    """
    question = ask(scene, rng)
    known = facts(scene, question)
    looks = [known.get(k, "") for k in ("adjective", *LOOKS)] + [scene.background] * (rng.random() < 0.3)
    place = " ".join(known.get(k, "") for k in ("side", "position")).strip()
    note = [_entry(looks, place, rng, known["truth"])]
    for other in ("remark", "other"):
        if known.get(f"{other}_position"):
            more = [known.get(f"{other}_{k}", "") for k in LOOKS]
            note.append(_entry(more, known[f"{other}_position"], rng))
    if known["skill"] == "distraction":
        note.reverse()  # the remark comes first in the question too
    return f"{' '.join(note)}\n{question}"


class Asking(Answering):
    """The auditor's lessons: writing a question when given the auditor's prompt, describing, and answering."""

    images, turns = 64, 2  # its prompts are long
    kinds: tuple[str, ...] = ("write", "describe", "answer")
    shares: tuple[int, ...] = (5, 3, 2)

    def chat(self, rng: random.Random, turns: int) -> tuple[Scene, list[tuple[str, str, str]]]:
        scene = self.scenes(rng)
        kinds = rng.choices(self.kinds, self.shares, k=turns)
        return scene, [self._turn(scene, rng, kind) for kind in kinds]

    def _turn(self, scene, rng, kind):
        if kind == "write":
            return auditor_prompt(), note_and_ask(scene, rng), "write"
        if kind == "describe":
            return *describe_from_looks(scene, rng), "describe"
        return self.turn(scene, self.ask(scene, rng))


def change_and_check(scene: Scene, rng: random.Random) -> str:
    """An edit command that changes one thing on the board, and below it a question that tells whether it was done.

    "paint the object at b3 purple" and "what colour is the object at b3? | purple".
    """
    while True:
        command = edits.draw(scene, rng)
        check = edits.check(scene, command)
        if check and edits.kind(command) != "background":  # a new background aims at nothing
            return f"{command}\n{check[0]} | {check[1]}"


def caption_and_check(scene: Scene, rng: random.Random) -> str:
    """A caption of two things that are on the board, in its order, and one that is added at an empty place, and below
    it a question about that one.

    "night board with a E at b1, a small dotted red star at c3, a clock showing 7 at a1" and "what time does the clock
    at a1 show? | 7". Four things would just fit into the tokens an audit lets the auditor write, but each is one more
    to be wrong about. What is added comes last, so that it can depend on what is kept.
    """
    kept = edits.fewer(scene, rng, 2)
    place = rng.choice([place for place, cell in zip(POSITIONS, scene.cells, strict=True) if cell.kind == "empty"])
    added = edits.any_thing(rng)
    things = [(edits.words(cell), at) for cell, at in zip(kept.cells, POSITIONS, strict=True) if cell.kind != "empty"]
    things.append((edits.words(added), place))
    caption = f"{scene.background} board with {', '.join(f'a {words} at {at}' for words, at in things)}"
    question, _ = edits.check(kept, f"put a {edits.words(added)} at {place}")
    if added.kind == "object":
        question = rng.choice(ASIDE).format(place)
    return f"{caption}\n{question} | {answer(edits.read_caption(caption), question)}"


class Wishing(Asking):
    """The auditor's last lessons: as before, and for a good half of the boards a caption or an edit command."""

    kinds, shares = (*Asking.kinds, "edit", "regenerate"), (*Asking.shares, 2, 2)

    def chat(self, rng: random.Random, turns: int) -> tuple[Scene, list[tuple[str, str, str]]]:
        """At most one of the two a board: they are the longest, and all rows of a batch are as long as its longest."""
        while True:
            scene, chat = super().chat(rng, turns)
            if sum(name in ("edit", "regenerate") for *_, name in chat) < 2:
                return scene, chat

    def _turn(self, scene, rng, kind):
        if kind == "edit":
            return auditor_prompt("edit"), change_and_check(scene, rng), "edit"
        if kind == "regenerate":
            return auditor_prompt("regenerate"), caption_and_check(scene, rng), "regenerate"
        return super()._turn(scene, rng, kind)
