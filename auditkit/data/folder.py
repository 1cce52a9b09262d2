"""A folder of images of one's own, with or without questions and answers beside them."""

import json
from collections import Counter
from pathlib import Path

from auditkit.data.source import SUFFIXES, Collection, Row
from auditkit.errors import AuditError


class ImageFolder(Collection):
    """A folder of images, at any depth, with an optional `questions.jsonl` beside them.

    One object a line: {"image": path within the folder, "question": ..., "answer": ..., "split": "train" | "test",
    "skill": name of the benchmark}; the last two may be missing (see `Collection` for what then happens).

    Raises AuditError for a folder without images and for a malformed line of questions.jsonl, naming it.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        paths = sorted(p for p in self.folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not paths:
            raise AuditError(f"images: no image in {self.folder} (looked for {', '.join(sorted(SUFFIXES))}).")
        self._paths = {self._key(p.relative_to(self.folder).as_posix()): p for p in paths}
        declared: dict[str, str | None] = dict.fromkeys(self._paths)
        rows = self._questions(declared)
        super().__init__(self.folder.resolve().name, declared, rows)

    @staticmethod
    def _key(path: str) -> str:
        # "/q" ends a picture's key inside an example's key, so no key may hold a slash of its own
        return path.replace("/", ":")

    def _file(self, key: str) -> Path:
        return self._paths[key]

    def _questions(self, declared: dict[str, str | None]) -> list[Row]:
        """The lines of questions.jsonl; the splits they name go into `declared`."""
        path = self.folder / "questions.jsonl"
        if not path.is_file():
            return []
        rows: list[Row] = []
        count: Counter[str] = Counter()
        for number, line in enumerate(_text(path).split("\n"), 1):
            if not line.strip():
                continue
            where = f"{path.name}, line {number}"
            row = _labelled(line, where)
            key, split = self._key(row["image"]), row["split"]
            if key not in self._paths:
                raise AuditError(f"{where}: there is no image {row['image']} in {self.folder}.")
            if split and declared[key] not in (None, split):
                raise AuditError(f"{where}: {row['image']} is in train and in test; choose one.")
            declared[key] = split or declared[key]
            skill = row["skill"] or self.folder.resolve().name
            rows.append(Row(f"{key}/q{count[key]}", key, row["question"], row["answer"], skill))
            count[key] += 1
        return rows


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        number = path.read_bytes()[: error.start].count(b"\n") + 1
        raise AuditError(f"{path.name}, line {number}: this is not UTF-8; save the file as UTF-8.") from error


def _labelled(line: str, where: str) -> dict:
    """A line of questions.jsonl with every value of the kind it should be."""
    try:
        row = json.loads(line)
        row = {"split": None, "skill": None, **row}
        image, question, answer = row["image"], row["question"], row["answer"]
    except (ValueError, TypeError, KeyError) as error:
        raise AuditError(f'{where}: wants {{"image", "question", "answer"}}, not {line[:80]!r}.') from error
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        row["answer"] = answer = str(answer)
    for name, value in (("image", image), ("question", question), ("answer", answer)):
        if not isinstance(value, str) or not value.strip():
            raise AuditError(f"{where}: the {name} must be a text, not {json.dumps(value)}.")
    if row["split"] not in (None, "train", "test"):
        raise AuditError(f'{where}: the split is "train" or "test", not {json.dumps(row["split"])}.')
    if row["skill"] is not None and not (isinstance(row["skill"], str) and row["skill"].strip()):
        raise AuditError(f"{where}: the skill must be a text, not {json.dumps(row['skill'])}.")
    return row
