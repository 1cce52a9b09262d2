"""Questions and answers beside a folder of images, in whichever of the common forms they come.

    questions.jsonl                      our own: {"image", "question", "answer", "split"?, "skill"?}
    questions.csv, .tsv                  the same as columns
    metadata.csv, .jsonl, .parquet       the imagefolder convention of `datasets`, in any folder: file_name and columns
    *.json, a list of conversations      LLaVA: {"image", "conversations": [{"from": "human", "value"}, …]}
    *questions*.json + *annotations*.json   VQAv2: question_id and image_id, ten answers to each

Values are taken as they are written: 007, 1e3, 1.50, NA, null and True in a table stay these texts. An empty cell is no
answer. A file beside the images that looks like questions but is none of these is named by the caller, not passed over.
"""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from auditkit.data.columns import ANSWER, QUESTION, accepted, without_placeholder
from auditkit.errors import AuditError

FILE_NAME = ("file_name", "image", "image_path", "img", "picture", "filename", "path")
OPTIONS = ("options", "choices")
SKILL = ("skill", "category", "question_type", "answer_type")
TABLES = (".csv", ".tsv")
COLUMNS = f"({'; '.join(' or '.join(names) for names in (FILE_NAME, QUESTION, ANSWER))})"  # of a table, one of each


@dataclass(frozen=True)
class Labelled:
    """One question with its answer, and where it stands."""

    where: str  # "questions.jsonl, line 3"
    image: str  # the path of the picture, as written, from the folder of the file
    folder: Path
    question: str
    answers: tuple[str, ...]  # the answer, and what else is accepted
    split: str | None = None
    skill: str | None = None


def read_questions(folder: Path, files: Iterable[Path]) -> tuple[list[Labelled], list[Path]]:
    """All questions beside a folder's images, and the files that look like questions but are not understood.

    Args:
        files: what lies in the folder, as `files_in` finds it.

    Raises AuditError, naming file and line, for a row that cannot be meant as it stands.
    """
    found: list[Labelled] = []
    strange: list[Path] = []
    vqa: dict[str, dict] = {}
    for path in sorted(p for p in files if p.suffix.lower() in (".json", ".jsonl", ".parquet", *TABLES)):
        suffix = path.suffix.lower()
        rows: Iterable[Labelled] | None = None
        if path == folder / "questions.jsonl":
            rows = _own(path)
        elif suffix == ".jsonl":
            rows = _metadata(path, _json_lines(path))
        elif suffix in TABLES:
            rows = _metadata(path, _table(path))
        elif suffix == ".parquet" and path.stem == "metadata":
            rows = _metadata(path, _parquet(path))
        elif suffix == ".json":
            content = _json(path)
            if isinstance(content, dict) and any(_are_objects(content.get(of)) for of in ("questions", "annotations")):
                vqa[str(path)] = content | {"path": path}
                continue
            rows = _conversations(path, content) if isinstance(content, list) else None
        if rows is None:
            strange.append(path)
        else:
            found += rows
    if vqa:
        rows = _vqa(vqa, folder)
        found += rows
        strange += [] if rows else [content["path"] for content in vqa.values()]
    return found, strange


def with_options(question: str, answer: str, options: Sequence[str]) -> tuple[str, str]:
    """A multiple-choice question with its options, and the text of the right one in place of its letter or number.

    >>> with_options("What is it?", "B", ["cat", "dog"]), with_options("What is it?", "0", ["cat", "dog"])
    (('What is it? Options: cat, dog.', 'dog'), ('What is it? Options: cat, dog.', 'cat'))
    """
    asked = f"{question} Options: {', '.join(options)}."
    if answer in options:
        return asked, answer
    letter = re.fullmatch(r"\(?([A-Za-z])\)?\.?", answer)
    place = ord(letter[1].upper()) - ord("A") if letter else int(answer) if answer.isdigit() else -1
    return (asked, options[place]) if 0 <= place < len(options) else (asked, answer)


def _own(path: Path) -> Iterator[Labelled]:
    """The lines of questions.jsonl, every value of the kind it should be."""
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path.name}, line {number}"
        try:
            row = json.loads(line, parse_float=str, parse_int=str)
            row = {"split": None, "skill": None, **row}
            image, question, answer = row["image"], row["question"], row["answer"]
        except (ValueError, TypeError, KeyError) as error:
            raise AuditError(f'{where}: wants {{"image", "question", "answer"}}, not {line[:80]!r}.') from error
        if isinstance(answer, float):  # NaN and Infinity, which JSON does not have and Python reads
            raise AuditError(f"{where}: the answer must be a text, not {answer}.")
        for name, value in (("image", image), ("question", question), ("answer", answer)):
            if not isinstance(value, str) or not value.strip():
                raise AuditError(f"{where}: the {name} must be a text, not {json.dumps(value)}.")
        if row["split"] not in (None, "train", "test"):
            raise AuditError(f'{where}: the split is "train" or "test", not {json.dumps(row["split"])}.')
        skill = json.loads(line).get("skill")  # once more, for a number stays one here
        if skill is not None and not (isinstance(skill, str) and skill.strip()):
            raise AuditError(f"{where}: the skill must be a text, not {json.dumps(skill)}.")
        asked = without_placeholder(question, where)
        yield Labelled(where, image, path.parent, asked, (answer,), row["split"], row["skill"])


def _metadata(path: Path, rows: Sequence[Mapping[str, Any]]) -> Iterator[Labelled] | None:
    """The rows of a table with a column of file names, of questions and of answers; None for any other table."""
    columns = list(dict.fromkeys(name for row in rows[:100] for name in row))

    def pick(usual: Sequence[str]) -> str | None:
        lower = {name.lower(): name for name in columns}
        return next((lower[name] for name in usual if name in lower), None)

    image, question, answer = pick(FILE_NAME), pick(QUESTION), pick(ANSWER)
    if not (image and question and answer):
        return None
    skill, options, split = pick(SKILL), pick(OPTIONS), pick(("split",))

    def labelled() -> Iterator[Labelled]:
        for number, row in enumerate(rows, 2 if path.suffix.lower() in TABLES else 1):
            where = f"{path.name}, row {number}"
            name, asked, said = _cell(row.get(image)), _cell(row.get(question)), _answers(row.get(answer))
            if not name:
                raise AuditError(f"{where}: the column {image} is empty; name the picture, or delete the row.")
            if not asked or not said:
                continue  # a picture without a question, or a question nobody answered
            asked = without_placeholder(asked, where)
            if options and (several := _options(row.get(options))):
                asked, right = with_options(asked, said[0], several)
                said = (right,)
            part = _cell(row.get(split)) if split else None
            if part and part not in ("train", "test"):
                part = "test" if part in ("val", "valid", "validation", "testing") else None
            yield Labelled(
                where, name, path.parent, asked, said, part or None, _cell(row.get(skill)) if skill else None
            )

    return labelled()


def _conversations(path: Path, content: list) -> Iterator[Labelled] | None:
    """LLaVA's format: turns of "human" and "gpt" about one image; None for any other list."""
    if not content or not all(isinstance(entry, dict) and "conversations" in entry for entry in content):
        if content and all(isinstance(entry, dict) for entry in content):
            return _metadata(path, content)
        return None

    def labelled() -> Iterator[Labelled]:
        for number, entry in enumerate(content, 1):
            where, image = f"{path.name}, entry {number}", entry.get("image")
            if image is None:
                continue  # a conversation without a picture
            if isinstance(image, list):
                if len(image) != 1:
                    continue  # about several pictures at once
                image = image[0]
            turns = entry["conversations"]
            for asked, said in zip(turns[::2], turns[1::2], strict=False):
                try:
                    question, answer = asked["value"], said["value"]
                except (TypeError, KeyError) as error:
                    raise AuditError(f'{where}: a turn wants {{"from", "value"}}, not {str(asked)[:60]!r}.') from error
                question = without_placeholder(str(question), where)
                if question and str(answer).strip():
                    yield Labelled(where, str(image), path.parent, question, (str(answer).strip(),))

    return labelled()


def _vqa(files: Mapping[str, dict], folder: Path) -> list[Labelled]:
    """VQAv2's two files: questions meet their annotations by question_id, and images by the number in their names."""
    annotations = {
        str(note["question_id"]): note for content in files.values() for note in content.get("annotations", ())
    }
    pictures = {
        int(digits[0]): path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if (digits := re.findall(r"\d+$", path.stem)) and path.suffix.lower() != ".json"
    }
    found = []
    for content in files.values():
        for number, asked in enumerate(content.get("questions", ()), 1):
            where = f"{content['path'].name}, question {number}"
            note = annotations.get(str(asked.get("question_id")), {})
            said = accepted(note.get("answers") or note.get("multiple_choice_answer"))
            image = pictures.get(int(asked["image_id"])) if str(asked.get("image_id", "")).isdigit() else None
            if said and image:  # a part of the pictures may have been fetched
                skill = note.get("answer_type")
                found.append(
                    Labelled(where, image, folder, without_placeholder(asked["question"], where), said, None, skill)
                )
    return found


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _cell(value: Any) -> str:
    """A cell as text, as it is written; "" for an empty one."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value).strip()


def _answers(value: Any) -> tuple[str, ...]:
    """The answer as text, and what else is accepted where several people answered."""
    if isinstance(value, str) and value.strip().startswith("[") and value.strip().endswith("]"):
        try:
            value = json.loads(value)
        except ValueError:
            pass
    if isinstance(value, list | tuple) or hasattr(value, "tolist"):
        return accepted(list(value))
    return (cell,) if (cell := _cell(value)) else ()


def _options(value: Any) -> list[str]:
    """The options of a question: a list, or a text that holds one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = [part for part in re.split(r"\s*[|;,]\s*", value) if part]
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [str(one).strip() for one in value] if isinstance(value, list) else []


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path), parse_float=str, parse_int=str)
    except ValueError as error:
        raise AuditError(f"{path.name}: it is no JSON ({error}); correct it, or move it out of the folder.") from error


def _json_lines(path: Path) -> list[dict]:
    rows = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line, parse_float=str, parse_int=str)
            except ValueError as error:
                raise AuditError(
                    f"{path.name}, line {number}: it is no JSON, {line[:60]!r}; correct or delete it."
                ) from error
            rows.append(row if isinstance(row, dict) else {})
    return rows


def _table(path: Path) -> list[dict[str, str]]:
    """A table of texts; the delimiter is the one that gives its first line the most columns."""
    text = _text(path)
    head = text.partition("\n")[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t|", key=head.count)
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    if not rows:
        return []
    names = [name.strip() for name in rows[0]]
    for number, row in enumerate(rows[1:], 2):
        if len(row) > len(names):
            raise AuditError(
                f"{path.name}, row {number}: {len(row)} cells under {len(names)} column names; put a cell that holds "
                f"{delimiter!r} in quotes."
            )
    return [dict(zip(names, row, strict=False)) for row in rows[1:] if any(cell.strip() for cell in row)]


def _parquet(path: Path) -> list[dict]:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()


def _text(path: Path) -> str:
    """A file's text, in UTF-8 or UTF-16 with its mark. Raises AuditError for any other encoding, naming the line."""
    data = path.read_bytes()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise AuditError(f"{path.name}, line {number}: this is not UTF-8; save the file as UTF-8.") from error
