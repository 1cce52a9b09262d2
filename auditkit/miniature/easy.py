"""Pictures and questions nobody here drew: easy-VQA (the PyPI package easy-vqa, MIT licence), and models trained on it.

    auditkit miniature easy --out data/easy_vqa     # the folder of pictures that params/easy_vqa.yaml names
    auditkit miniature build easy_target easy_peer  # train its models again

5,000 pictures of one shape on a plain ground, 48,000 questions, an official split. The shapes lie anywhere, so a vision
tower with patches of 16 pixels has to learn more than on the board. No wrong answer is planted: the target has learnt
from a collection that shows no teal, brown or gray and lacks four more pairs of shape and colour (UNSEEN), so it fails
by itself on what it never saw; the references have seen every picture that they may. No model has seen a picture that
an audit draws (ImageFolder's splits "audit", "baseline" and "test"), only those of its split "train".
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from auditkit.auditor.write import auditor_prompt
from auditkit.data.folder import ImageFolder
from auditkit.data.source import Example
from auditkit.errors import AuditError
from auditkit.miniature import families, shipped, teach
from auditkit.text import text_table

Fact = tuple[str, ...]  # what the official answers say a picture shows, as ("rectangle", "blue")
MANIFEST = "easy_vqa.json"  # written last, so that an export that was interrupted is done again
SINGLE = 0.8  # share of the lessons with questions after which one comes at a time, as in real use
LEARNT = 0.9  # running accuracy on presence from which on denials are asked


# ------------------------------------------------------------------------------------------------------------- the data


def export(out: Path) -> Path:
    """Write the package's pictures and questions as a plain folder (ImageFolder), with the official split; return it.

    Quick, and does nothing where it is done already. Raises AuditError when the package easy-vqa is not installed.
    """
    easy_vqa = _package()
    out = Path(out)
    rows, images = [], {}
    for split in ("train", "test"):
        paths = getattr(easy_vqa, f"get_{split}_image_paths")()
        images |= {f"images/{split}-{number:04}.png": Path(path) for number, path in paths.items()}
        for question, answer, number in zip(*getattr(easy_vqa, f"get_{split}_questions")(), strict=True):
            image = f"images/{split}-{number:04}.png"
            row = {"image": image, "question": question, "answer": answer, "split": split}
            rows.append(row | {"skill": kind(question, answer)})
    manifest = json.dumps({"images": len(images), "questions": len(rows)})
    done = out / MANIFEST
    if done.is_file() and done.read_text() == manifest:
        return out
    (out / "images").mkdir(parents=True, exist_ok=True)
    for name, path in images.items():
        shutil.copyfile(path, out / name)
    (out / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done.write_text(manifest)
    return out


def _package():
    try:
        import easy_vqa
    except ImportError as error:
        raise AuditError('easy-VQA is not installed: pip install easy-vqa, or pip install "auditkit[easy]".') from error
    return easy_vqa


def kind(question: str, answer: str) -> str:
    """What a question is about and how it asks, from its words and the type of its answer.

    >>> kind("what color is the circle?", "teal"), kind("what is the teal shape?", "circle")
    ('colour', 'shape')
    >>> kind("is there a circle?", "yes"), kind("is no teal shape present?", "no")
    ('presence of a shape', 'absence of a colour')
    """
    words = set(re.findall(r"\w+", question.lower()))
    if answer not in ("yes", "no"):
        return "colour" if "color" in words else "shape"
    subject = "a colour" if "shape" in words else "a shape"  # "a teal shape" asks for teal, "a circle" for the circle
    return f"{'absence' if words & {'no', 'not'} else 'presence'} of {subject}"


# ---------------------------------------------------------------------------------------------------------- the lessons


@dataclass
class Page:
    """A picture to learn from: uint8 [64, 64, 3], what it shows, and its own official questions and answers."""

    image: np.ndarray
    fact: Fact
    rows: list[tuple[str, str]]
    box: tuple[int, int, int, int]  # first and last row, first and last column that the shape reaches

    def moved(self, rng: random.Random) -> np.ndarray:
        """The same shape somewhere else, or mirrored: every answer stays true."""
        top, bottom, left, right = self.box
        end = families.IMAGE - 1
        shift = rng.randint(-top, end - bottom), rng.randint(-left, end - right)
        image = np.roll(self.image, shift, (0, 1))  # the ground is plain, so what leaves on one side is what comes in
        return image[:, ::-1] if rng.random() < 0.5 else image


class Book:
    """What the official training data teaches: its pictures, and what it answers to which question on what it shows.

    `answers`: fact -> kind -> [(question, answer)], collected from every official row; so a question that was asked of
    one blue rectangle can be asked of any other. `labels`: all that a picture may show, one tuple an attribute.
    """

    def __init__(self, examples: list[Example]):
        by_picture: dict[str, list[Example]] = defaultdict(list)
        for example in examples:
            by_picture[example.key.split("/q")[0]].append(example)
        named = [e for e in examples if e.answer not in ("yes", "no")]
        of_kind = {
            name: {e.answer for e in named if kind(e.question, e.answer) == name} for name in ("shape", "colour")
        }
        self.labels = tuple(tuple(sorted(names)) for names in of_kind.values())
        self.pages: list[Page] = []
        self.answers: dict[Fact, dict[str, list[tuple[str, str]]]] = defaultdict(lambda: defaultdict(list))
        for _, rows in sorted(by_picture.items()):
            if fact := self._fact(rows):
                image = np.asarray(rows[0].image)
                page = Page(image, fact, [(e.question, e.answer) for e in rows], _box(image))
                self.pages.append(page)
                for question, answer in page.rows:
                    known = self.answers[fact][kind(question, answer)]
                    if (question, answer) not in known:
                        known.append((question, answer))

    def _fact(self, rows: list[Example]) -> Fact | None:
        """What a picture shows, if its questions other than yes/no ones and their answers name it all."""
        said = {word for e in rows if e.answer not in ("yes", "no") for word in _words(f"{e.question} {e.answer}")}
        named = [sorted(said & set(names)) for names in self.labels]
        return tuple(names[0] for names in named) if all(named) else None

    def words(self) -> list[str]:
        """Every word of the data set and of the auditor's prompt: each one token."""
        texts = [f"{q} {a}" for kinds in self.answers.values() for rows in kinds.values() for q, a in rows]
        return sorted({word for text in [*texts, auditor_prompt()] for word in _words(text)})

    def corpus(self) -> list[str]:
        """Sentences to train a tokenizer's merges on."""
        return [auditor_prompt()] + [question for page in self.pages for question, _ in page.rows]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def _shape(images: np.ndarray) -> np.ndarray:
    """Which pixels are not ground; the ground is plain and fills more than half: uint8 [..., 64, 64, 3] -> bool."""
    ground = np.median(images, axis=(-3, -2), keepdims=True)
    away: np.ndarray = np.abs(images - ground).sum(-1)
    return away > 20


def _box(image: np.ndarray) -> tuple[int, int, int, int]:
    shape = _shape(image)
    if not shape.any():
        return 0, families.IMAGE - 1, 0, families.IMAGE - 1
    rows, columns = np.flatnonzero(shape.any(1)), np.flatnonzero(shape.any(0))
    return int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])


def edges(images: np.ndarray) -> np.ndarray:
    """Where in each cell the shape begins and ends, down and across, counted from 1; 0 where there is none: [B, 16, 4].

    Naming these beside what the picture shows is what lets a tower with coarse patches learn shapes at all: without
    them 60 % of test shapes were right after 1,600 batches, with them 94 %.
    """
    side, patch = families.IMAGE // families.PATCH, families.PATCH
    cells = _shape(images).reshape(len(images), side, patch, side, patch).swapaxes(2, 3)
    cells = cells.reshape(len(images), families.CELLS, patch, patch)
    found = []
    for line in map(np.asarray, (cells.any(3), cells.any(2))):  # rows, then columns, that the shape reaches
        first, last = line.argmax(2) + 1, patch - line[..., ::-1].argmax(2)
        found += [np.where(line.any(2), end, 0) for end in (first, last)]
    return np.stack(found, axis=-1)


@dataclass(frozen=True)
class Recipe:
    """How one model is made. Its vision tower learns alone for `look` batches of 32 pictures."""

    family: str
    size: str
    seed: int
    look: int
    steps: int  # all batches, those of `look` included
    unseen: tuple[str, ...] = ()  # what its pictures never show: "teal", or "red triangle"; nothing: every picture
    asks: bool = False  # an auditor: learns to write questions


@dataclass
class Task:
    """What `teach` draws from: first pictures alone, then eight questions a picture, then one, as in real use.

    Questions with "no" and "not" come last: presence, denial and both at once are a parity, which shows no slope to a
    model that knows neither (with both from the start nothing was learnt in 400 batches; without denials, presence was
    98 % after 540). Kinds that are not yet learnt are asked more often.

    An auditor answers half of the time; else it writes a question when given the auditor's prompt, every kind alike.
    """

    book: Book
    recipe: Recipe

    def __post_init__(self):
        self.pages = [page for page in self.book.pages if not self._unseen(page.fact)]
        self.scores: dict[str, float] = {}
        self.denials = False
        self.index = [{name: i for i, name in enumerate(names)} for names in self.book.labels]

    def _unseen(self, fact: Fact) -> bool:
        return any(set(thing.split()) <= set(fact) for thing in self.recipe.unseen)

    def score(self, scores: dict[str, float]) -> None:
        """Take the running accuracy of every kind, as `teach` tells it."""
        self.scores = dict(scores)
        present = [score for name, score in scores.items() if name.startswith("presence")]
        self.denials = self.denials or (bool(present) and min(present) > LEARNT)

    def __call__(self, rng: random.Random, progress: float) -> teach.Lesson:
        looking = self.recipe.look / self.recipe.steps
        done = (progress - looking) / (1 - looking)
        pictures, turns = (32, 0) if done < 0 else (12, 8) if done < SINGLE else (64, 1)
        pages = rng.choices(self.pages, k=pictures)
        chats = [[self._turn(rng, page) for _ in range(turns)] for page in pages]
        images = np.stack([page.moved(rng) for page in pages])
        facts = np.array([[index[name] for index, name in zip(self.index, page.fact, strict=True)] for page in pages])
        facts = np.repeat(facts[:, None], families.CELLS, axis=1)  # wherever it looks, the tower should know the shape
        return teach.Lesson(
            images=images,
            chats=[[(question, answer) for question, answer, _ in chat] for chat in chats],
            skills=[[skill for *_, skill in chat] for chat in chats],
            cells=np.concatenate([facts, edges(images)], axis=-1),
        )

    def _turn(self, rng: random.Random, page: Page) -> tuple[str, str, str]:
        kinds = self.book.answers[page.fact]
        if self.recipe.asks and rng.random() < 0.5:
            asked = self._balanced(rng, kinds[rng.choice(tuple(kinds))])[0]
            return (
                auditor_prompt(),
                f"{' '.join(page.fact)}\n{asked}",
                "write",
            )  # what it sees, then a question about it
        names = [name for name in kinds if self.denials or not name.startswith("absence")]
        (name,) = rng.choices(names, [1.1 - self.scores.get(name, 0.0) for name in names])
        return *self._balanced(rng, kinds[name]), name

    @staticmethod
    def _balanced(rng: random.Random, rows: list[tuple[str, str]]) -> tuple[str, str]:
        """One of the rows, every answer alike: "yes" as often as "no"."""
        answer = rng.choice(sorted({answer for _, answer in rows}))
        return rng.choice([row for row in rows if row[1] == answer])


# ----------------------------------------------------------------------------------------------------------- the models

UNSEEN = ("teal", "brown", "gray", "red triangle", "green triangle", "black circle", "blue rectangle")
RECIPES = {
    "easy_target": Recipe("paligemma2", "tiny", seed=11, look=1200, steps=2400, unseen=UNSEEN),
    "easy_peer": Recipe("paligemma2", "small", seed=12, look=800, steps=1900),
    "easy_gemma3": Recipe("gemma3", "tiny", seed=13, look=2000, steps=3400),
    "easy_idefics3": Recipe("idefics3", "tiny", seed=14, look=2000, steps=3400),
    "easy_llava": Recipe("llava", "tiny", seed=15, look=2000, steps=3400),
    "easy_auditor": Recipe("gemma3", "tiny", seed=16, look=2000, steps=3400, asks=True),
}


def build_one(name: str, out: Path, steps: int | None = None, data: Path | None = None) -> Path:
    """Train one model of RECIPES from its seed; save it under `out`, its log beside it, the data in `data`."""
    from auditkit.miniature import build

    torch.set_num_threads(1)  # two threads spin against each other on models this small
    recipe = RECIPES[name]
    recipe = replace(recipe, steps=steps, look=min(recipe.look, steps // 2)) if steps else recipe
    book = Book(ImageFolder(export(data or Path(out) / "easy_vqa_data")).examples(10**6, seed=0))
    model, processor = families.build(recipe.family, recipe.size, book.words(), book.corpus(), recipe.seed)
    classes = (*map(len, book.labels), *[families.PATCH + 1] * 4)
    log = build._log(Path(out), name)
    task = Task(book, recipe)
    teach.teach(
        model, processor, task, recipe.steps, recipe.seed, log, learning_rate=2.5e-3, look=recipe.look,
        cell_classes=classes, on_score=task.score,
    )  # fmt: skip
    return build.save(model, processor, Path(out) / name)


def table(names: list[str], data: Path, n: int = 10**6) -> str:
    """A printed table: each model's accuracy on up to n questions of every kind of the official test split."""
    from auditkit.consensus.normalise import same_text
    from auditkit.models.base import answer_questions
    from auditkit.models.load import load_model

    benchmarks = ImageFolder(export(data)).benchmarks(n)
    examples = [example for rows in benchmarks.values() for example in rows]
    right = {}
    for name in names:
        model = load_model(f"miniature:{name}" if (shipped.WEIGHTS / name).is_dir() else name)
        said = answer_questions(model, [e.image for e in examples], [e.question for e in examples])
        hits = iter([same_text(a, e.answer) for a, e in zip(said, examples, strict=True)])
        right[name] = {skill: [next(hits) for _ in rows] for skill, rows in benchmarks.items()}
        right[name]["all"] = [hit for rows in right[name].values() for hit in rows]
    rows = []
    for skill in [*benchmarks, "all"]:
        shares = [100 * sum(right[name][skill]) / len(right[name][skill]) for name in names]
        rows.append([f"{skill} ({len(right[names[0]][skill])})", *(f"{share:.1f}" for share in shares)])
    return text_table(["accuracy in % (n)", *(Path(name).name for name in names)], rows)
