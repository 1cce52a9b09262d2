"""Where images come from: the miniature world, or a folder of one's own.

A source hands out pictures in four splits that never share a picture, the labelled examples a target was trained on,
and held-out benchmarks. `truth` is the oracle. It only grades: nothing that trains, gates or labels may call it.
"""

import hashlib
import json
import random
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from PIL import Image, ImageOps, UnidentifiedImageError

from auditkit.errors import AuditError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
SPLITS = ("train", "audit", "baseline", "test")


@dataclass(frozen=True)
class Picture:
    """An image and the key by which its source can hand it out again."""

    key: str
    image: Image.Image = field(compare=False)


@dataclass(frozen=True)
class Example:
    """A picture with a question and its true answer; `key.split("/q")[0]` is the picture's key."""

    key: str
    image: Image.Image = field(compare=False)
    question: str
    answer: str


class Source(Protocol):
    """What the pipeline knows of its images.

    `complete`: a truth of None means that the question makes no sense on that picture; else only that nobody knows.
    """

    name: str
    complete: bool

    def pictures(self, split: str, n: int, seed: int) -> list[Picture]: ...
    def examples(self, n: int, seed: int) -> list[Example]: ...
    def benchmarks(self, n: int) -> dict[str, list[Example]]: ...
    def picture(self, key: str) -> Picture: ...
    def truth(self, key: str, question: str) -> str | None: ...
    def gap(self, key: str, question: str, gaps: list) -> str | None: ...
    def gaps(self, target_folder: Path) -> list: ...


def load(spec: str) -> Source:
    """Open a source: "miniature" for the board world, else the path of a folder of images (see `Folder`).

    A relative path counts from the working folder, then from the project's.
    Raises AuditError when there is no such folder.
    """
    if spec == "miniature":
        from auditkit.miniature.boards import Boards

        return Boards()
    folder = Path(spec).expanduser()
    if not folder.is_dir():
        from auditkit.params import root

        folder = root() / folder
    if not folder.is_dir():
        raise AuditError(
            f'images: "{spec}" is neither "miniature" nor an existing folder; name a folder of images, '
            "or make this one first, if the top of the parameter file says how."
        )
    return Folder(folder)


class Folder:
    """A folder of images, at any depth, with an optional `questions.jsonl` beside them.

    One object a line: {"image": path within the folder, "question": ..., "answer": ..., "split": "train" | "test",
    "skill": name of the benchmark}; the last two may be missing. Without a split, a fifth of the images is for testing.
    Test images feed the benchmarks and the split "test"; the others are dealt out by a hash of their name to "train"
    (40 %), "audit" (50 %) and "baseline" (10 %), so the splits stay the same whatever else is added to the folder.

    `unreadable` lists the files that could not be opened: each is skipped with a warning.
    Raises AuditError for a folder without images and for a malformed line of questions.jsonl, naming it.
    """

    complete = False

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.name = self.folder.resolve().name
        self.unreadable: list[Path] = []
        paths = sorted(p for p in self.folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not paths:
            raise AuditError(f"images: no image in {self.folder} (looked for {', '.join(sorted(SUFFIXES))}).")
        self._paths = {self._key(p.relative_to(self.folder).as_posix()): p for p in paths}
        self._rows = self._read_questions()
        self._truth: dict[tuple[str, str], str] = {}
        declared: dict[str, str] = {}
        for row in self._rows:
            self._truth.setdefault((row["key"], _plain(row["question"])), row["answer"])
            if row["split"] and declared.setdefault(row["key"], row["split"]) != row["split"]:
                raise AuditError(f"{row['where']}: {row['image']} is in train and in test; choose one.")
        self._split = {key: _deal(key, declared.get(key)) for key in self._paths}

    @staticmethod
    def _key(path: str) -> str:
        # "/q" ends a picture's key inside an example's key, so no key may hold a slash of its own
        return path.replace("/", ":")

    def _read_questions(self) -> list[dict]:
        path = self.folder / "questions.jsonl"
        if not path.is_file():
            return []
        rows, count = [], {}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            where = f"{path.name}, line {number}"
            try:
                row = json.loads(line)
                row = {"split": None, "skill": self.name, **row, "answer": str(row["answer"]), "where": where}
                key, question = self._key(str(row["image"])), row["question"]
            except (ValueError, TypeError, KeyError) as error:
                raise AuditError(f'{where}: wants {{"image", "question", "answer"}}, not {line[:80]!r}.') from error
            if key not in self._paths:
                raise AuditError(f"{where}: there is no image {row['image']} in {self.folder}.")
            if row["split"] not in (None, "train", "test"):
                raise AuditError(f'{where}: the split is "train" or "test", not {row["split"]!r}.')
            if not isinstance(question, str) or not question.strip():
                raise AuditError(f"{where}: the question must be a text, not {question!r}.")
            count[key] = count.get(key, -1) + 1
            rows.append({**row, "key": key, "id": f"{key}/q{count[key]}"})
        return rows

    def _open(self, key: str) -> Picture | None:
        path = self._paths[key]
        if path in self.unreadable:
            return None
        try:
            with Image.open(path) as image:
                return Picture(key, ImageOps.exif_transpose(image).convert("RGB"))
        except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            self.unreadable.append(path)
            warnings.warn(f"{path}: cannot be read as an image ({error}); skipped.", stacklevel=3)
            return None

    def pictures(self, split: str, n: int, seed: int) -> list[Picture]:
        """Up to `n` pictures of a split, drawn by `seed`; fewer, with a warning, when the folder holds fewer.

        Raises AuditError for an unknown split, and when not a single picture of it can be read.
        """
        if split not in SPLITS:
            raise AuditError(f'images: there is no split "{split}"; the splits are {", ".join(SPLITS)}.')
        keys = [key for key in self._paths if self._split[key] == split]
        random.Random(f"{seed}/{split}").shuffle(keys)
        found: list[Picture] = []
        for key in keys:
            if len(found) == n:
                break
            if (picture := self._open(key)) is not None:
                found.append(picture)
        if not found and n > 0:
            raise AuditError(f'images: none of the {len(keys)} files of {self.folder} for "{split}" can be read.')
        if len(found) < n:
            warnings.warn(f'{self.folder}: {n} pictures asked for "{split}", only {len(found)} there.', stacklevel=2)
        return found

    def _examples(self, rows: list[dict], n: int) -> list[Example]:
        opened: dict[str, Picture | None] = {}  # the questions on a picture share its image
        found: list[Example] = []
        for row in rows:
            if len(found) == n:
                break
            key = row["key"]
            if key not in opened:
                opened[key] = self._open(key)
            if opened[key] is not None:
                found.append(Example(row["id"], opened[key].image, row["question"], row["answer"]))
        if not found and rows and n > 0:
            raise AuditError(f"images: none of the images of {self.folder} that questions.jsonl names can be read.")
        return found

    def examples(self, n: int, seed: int) -> list[Example]:
        """Up to `n` labelled examples on pictures of the split "train", drawn by `seed`."""
        rows = [row for row in self._rows if self._split[row["key"]] == "train"]
        random.Random(f"{seed}/examples").shuffle(rows)
        return self._examples(rows, n)

    def benchmarks(self, n: int) -> dict[str, list[Example]]:
        """Up to `n` examples a skill on test pictures; always the same ones."""
        skills: dict[str, list[dict]] = {}
        for row in self._rows:
            if self._split[row["key"]] == "test":
                skills.setdefault(row["skill"], []).append(row)
        for name, rows in skills.items():
            random.Random(f"benchmark/{name}").shuffle(rows)
        return {name: self._examples(skills[name], n) for name in sorted(skills)}

    def picture(self, key: str) -> Picture:
        """The picture of a key, read again. Raises AuditError when there is none or it cannot be read."""
        if key not in self._paths:
            raise AuditError(f"images: {self.folder} has no picture {key!r}; was the folder changed since the run?")
        if (picture := self._open(key)) is None:
            raise AuditError(f"images: {self._paths[key]} cannot be read any more.")
        return picture

    def truth(self, key: str, question: str) -> str | None:
        """The file's answer to just this question on this picture (case and punctuation aside); None: unknown."""
        return self._truth.get((key, _plain(question)))

    def gap(self, key: str, question: str, gaps: list) -> str | None:
        """None: nobody planted gaps in a model of one's own."""
        return None

    def gaps(self, target_folder: Path) -> list:
        """[]: see `gap`."""
        return []


def _plain(question: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", " ", question.lower()).split())


def _deal(key: str, declared: str | None) -> str:
    share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") / 2**32
    if declared == "test" or (declared is None and share >= 0.8):
        return "test"
    # a hash of its own, so that dealing does not depend on whether the file names a split
    share = int.from_bytes(hashlib.sha256(f"deal {key}".encode()).digest()[:4], "big") / 2**32
    return "train" if share < 0.4 else "audit" if share < 0.9 else "baseline"
