"""Where images come from: the miniature world, a folder of one's own, or a Hugging Face data set (data/hf_dataset.py).

A source hands out pictures in four splits that never share a picture, the labelled examples a target was trained on,
and held-out benchmarks. `truth` is the oracle. It only grades: nothing that trains, gates or labels may call it.

A collection of photographs does not fit into memory, so its pictures are decoded each time they are looked at.
"""

import hashlib
import random
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol

from PIL import Image

from auditkit.data.pictures import read_picture
from auditkit.errors import AuditError
from auditkit.text import storable, visible

SPLITS = ("train", "audit", "baseline", "test")
ENOUGH = 50  # pictures, dealt out by their names, leave the smallest split empty once in sixty folders
Held = Image.Image | Callable[[], Image.Image]


@dataclass(frozen=True, slots=True)
class Picture:
    """An image and the key by which its source can hand it out again."""

    key: str
    held: Held = field(compare=False, repr=False)  # the image, or what reads it

    @property
    def image(self) -> Image.Image:
        """The image, upright and RGB. Raises AuditError when its file cannot be read any more."""
        return self.held() if callable(self.held) else self.held


@dataclass(frozen=True, slots=True)
class Example(Picture):
    """A picture with a question and its true answer; `key.split("/q")[0]` is the picture's key."""

    question: str
    answer: str
    others: tuple[str, ...] = ()  # answers that are accepted, too

    @property
    def accepted(self) -> tuple[str, ...]:
        """All answers that are right."""
        return (self.answer, *self.others)


@dataclass(frozen=True)
class Task:
    """Something a target can besides answering questions, to see whether a repair makes it forget that."""

    name: str
    examples: list[Example]
    max_answer_tokens: int
    right: Callable[[str, str], list[bool]]  # what it said, what is true -> piece by piece, whether it is right


class Source(Protocol):
    """What the pipeline knows of its images.

    `complete`: a truth of None means that the question makes no sense on that picture; else only that nobody knows.
    `unreadable`: the pictures met so far that could not be opened and were skipped.
    `guide`: how a person reads its pictures, in a few sentences; "" where they speak for themselves.
    `edges`: names of the columns and of the rows of its pictures, a letter each: ("abcd", "1234"); ("", "") for none.
    """

    name: str
    complete: bool
    unreadable: list[str]
    guide: str
    edges: tuple[str, str]

    def counts(self) -> dict[str, int]: ...  # pictures of each split; {}: there is no end of them
    def pictures(self, split: str, n: int, seed: int) -> list[Picture]: ...
    def examples(self, n: int, seed: int) -> list[Example]: ...
    def benchmarks(self, n: int) -> dict[str, list[Example]]: ...
    def tasks(self, n: int) -> list[Task]: ...  # that an audit never touches
    def picture(self, key: str) -> Picture: ...
    def question(self, key: str) -> str | None: ...  # its own about a picture, where it has one
    def read(self, image: Image.Image) -> str | None: ...  # the key of what an image made by others shows, if it can
    def truth(self, key: str, question: str) -> str | None: ...
    def accepted(self, key: str, question: str) -> tuple[str, ...]: ...  # the truth, and what else is right
    def gap(self, key: str, question: str, gaps: list) -> str | None: ...
    def gaps(self, target_folder: Path) -> list: ...


@dataclass(frozen=True, slots=True)
class Row:
    """A labelled question about the picture of a key."""

    id: str  # KEY/qN, an example's key
    key: str
    question: str
    answers: tuple[str, ...]  # the answer, and what else is accepted
    skill: str


def _storable(row: Row) -> Row:
    """The row as files and models take it, its skill as a name that hides nothing."""
    return replace(
        row,
        question=storable(row.question),
        answers=tuple(map(storable, row.answers)),
        skill=visible(row.skill, keep=""),
    )


class Collection:
    """Pictures with questions to some of them, wherever they lie: what `ImageFolder` and HubDataset have in common.

    Args:
        name: what reports call it.
        declared: every picture's key -> "train", "test" or None. Those without a word are dealt out by a hash of their
            key, a fifth to "test"; what is not for testing likewise to "train" (40 %), "audit" (50 %) and "baseline"
            (10 %). So the splits stay the same whatever else is added.
        rows: the labelled questions; those on test pictures are the benchmarks.

    A subclass adds `_file(key)`, a picture's file or its bytes as a file. A picture that cannot be read is skipped,
    which is printed, and listed in `unreadable`.
    """

    complete = False
    guide, edges = "", ("", "")

    def __init__(self, name: str, declared: dict[str, str | None], rows: list[Row]):
        self.name = name
        self.unreadable: list[str] = []
        self.scaled: set[str] = set()  # pictures of more than 8 bits met so far
        self._split = {key: _deal(key, split) for key, split in declared.items()}
        self._accepted: dict[tuple[str, str], tuple[str, ...]] = {}
        self._questions_on: dict[str, str] = {}
        self._rows, twice, contradictions = [], [], []
        if halves := [row for row in rows if _storable(row) != row]:
            print(
                f"images: {len(halves)} questions of {name} hold characters that no file takes (half of a pair); "
                f"these are escapes now, as in {_storable(halves[0]).question!r}.",
                flush=True,
            )
        for row in map(_storable, rows):
            self._questions_on.setdefault(row.key, row.question)
            asked = (row.key, _plain(row.question))
            if asked not in self._accepted:
                self._accepted[asked] = row.answers
                self._rows.append(row)
            else:
                (twice if self._accepted[asked] == row.answers else contradictions).append(row)
        if twice:
            print(f"images: {len(twice)} questions of {name} are there twice; each is taken once.", flush=True)
        if contradictions:
            row = contradictions[0]
            print(
                f"images: {len(contradictions)} questions of {name} have a second, other answer; the first is taken: "
                f"{row.question!r} on {row.key} is {self.truth(row.key, row.question)!r} and {row.answers[0]!r}.",
                flush=True,
            )

    def _file(self, key: str) -> Path | BinaryIO:
        raise NotImplementedError

    def _read(self, key: str) -> Image.Image:
        file = self._file(key)
        return read_picture(file, str(file) if isinstance(file, Path) else f"{key} of {self.name}", self._scaled(key))

    def _scaled(self, key: str) -> Callable[[str], None]:
        def say(note: str) -> None:
            if not self.scaled:
                print(
                    f"images: {key} has more than 8 bits, so its {note}; likewise any other such picture.", flush=True
                )
            self.scaled.add(key)

        return say

    def _open(self, key: str) -> Picture | None:
        """The picture, once it is certain that it can be read; None: it cannot."""
        if key in self.unreadable:
            return None
        try:
            self._read(key)
        except AuditError as error:
            self.unreadable.append(key)
            print(f"{str(error).rstrip('.')}; skipped.", flush=True)
            return None
        return Picture(key, partial(self._read, key))

    def counts(self) -> dict[str, int]:
        """How many pictures each split has, without a look at them."""
        dealt = Counter(self._split.values())
        return {split: dealt[split] for split in SPLITS}

    def pictures(self, split: str, n: int, seed: int) -> list[Picture]:
        """Up to `n` pictures of a split, drawn by `seed`; fewer, which is printed, when there are fewer.

        Raises AuditError for an unknown split, and when not a single picture of it is there or can be read.
        """
        if split not in SPLITS:
            raise AuditError(f'images: there is no split "{split}"; the splits are {", ".join(SPLITS)}.')
        keys = [key for key, its in self._split.items() if its == split]
        random.Random(f"{seed}/{split}").shuffle(keys)
        found: list[Picture] = []
        for key in keys:
            if len(found) == n:
                break
            if (picture := self._open(key)) is not None:
                found.append(picture)
        if not found and n > 0:
            raise AuditError(self._nothing(split, len(keys)))
        if len(found) < n:
            print(f'images: {n} pictures asked for "{split}", only {len(found)} there in {self.name}.', flush=True)
        return found

    def how_many(self) -> dict[str, int]:
        """Pictures of each split, those that cannot be read among them."""
        return dict(Counter(self._split.values()))

    def _nothing(self, split: str, files: int) -> str:
        if files:
            return f'images: none of the {files} pictures of {self.name} for "{split}" can be read.'
        had = ", ".join(f"{name} {n}" for name, n in self.counts().items())
        advice = (
            f"pictures are dealt out by their names, so give {ENOUGH} or more"
            if len(self._split) < ENOUGH
            else 'its labels say that every picture is for "train" or "test"; leave the split out, or give some to each'
        )
        return f'images: the split "{split}" of {self.name} is empty ({had}); {advice}.'

    def _examples(self, rows: list[Row], n: int) -> list[Example]:
        opened: dict[str, Picture | None] = {}  # the questions on a picture share its image
        found: list[Example] = []
        for row in rows:
            if len(found) == n:
                break
            if row.key not in opened:
                opened[row.key] = self._open(row.key)
            if (picture := opened[row.key]) is not None:
                found.append(Example(row.id, picture.held, row.question, row.answers[0], row.answers[1:]))
        if not found and rows and n > 0:
            raise AuditError(f"images: none of the labelled images of {self.name} can be read.")
        return found

    def examples(self, n: int, seed: int) -> list[Example]:
        """Up to `n` labelled examples on pictures of the split "train", drawn by `seed`."""
        rows = [row for row in self._rows if self._split[row.key] == "train"]
        random.Random(f"{seed}/examples").shuffle(rows)
        return self._examples(rows, n)

    def benchmarks(self, n: int) -> dict[str, list[Example]]:
        """Up to `n` examples a skill on test pictures; always the same ones."""
        skills: dict[str, list[Row]] = {}
        for row in self._rows:
            if self._split[row.key] == "test":
                skills.setdefault(row.skill, []).append(row)
        for name, rows in skills.items():
            random.Random(f"benchmark/{name}").shuffle(rows)
        return {name: self._examples(skills[name], n) for name in sorted(skills)}

    def tasks(self, n: int) -> list[Task]:
        return []

    def picture(self, key: str) -> Picture:
        """The picture of a key, which reads it again. Raises AuditError when there is none."""
        if key not in self._split:
            raise AuditError(f"images: {self.name} has no picture {key!r}; was it changed since the run?")
        return Picture(key, partial(self._read, key))

    def question(self, key: str) -> str | None:
        """The first labelled question on a picture, without its answer."""
        return self._questions_on.get(key)

    def read(self, image: Image.Image) -> str | None:
        """None: nobody knows what a new photograph shows."""
        return None

    def truth(self, key: str, question: str) -> str | None:
        """The known answer to just this question on this picture (case and punctuation aside); None: unknown."""
        return next(iter(self.accepted(key, question)), None)

    def accepted(self, key: str, question: str) -> tuple[str, ...]:
        """The known answer and what else is right, such as other people's answers; () where it is unknown."""
        return self._accepted.get((key, _plain(question)), ())

    def gap(self, key: str, question: str, gaps: list) -> str | None:
        """None: nobody planted gaps in a model of one's own."""
        return None

    def gaps(self, target_folder: Path) -> list:
        """[]: see `gap`."""
        return []


def _plain(question: str) -> str:
    """A question as it is looked up: case, spacing and punctuation aside, in whatever script."""
    plain = unicodedata.normalize("NFC", question.lower())
    return " ".join("".join(" " if unicodedata.category(c).startswith("P") else c for c in plain).split())


def _deal(key: str, declared: str | None) -> str:
    share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") / 2**32
    if declared == "test" or (declared is None and share >= 0.8):
        return "test"
    # a hash of its own, so that dealing does not depend on whether the file names a split
    share = int.from_bytes(hashlib.sha256(f"deal {key}".encode()).digest()[:4], "big") / 2**32
    return "train" if share < 0.4 else "audit" if share < 0.9 else "baseline"
