"""Files of one JSON object a line, only ever appended to, that survive being killed in the middle of a line.

`each` and `read` are the one reader: a line that no stage has written is named with its number before anything is made
of it. Rows that are read together share their keys and their short texts, which else would fill the memory.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from auditkit.errors import AuditError
from auditkit.runs.disk import writing
from auditkit.runs.files import KINDS, fit_for_disk, kind_in_words, replacing

COLUMNS: dict[str, dict[str, type]] = {  # first part of a file's name -> what each of its rows must have
    "answers": {"model": str, "picture": str, "question": str, "answer": str},
    "judged": {"judge": str, "question": str, "a": str, "b": str},
    "named": {"namer": str, "prompt": str, "reply": str},
    "records": {"key": str},
    "proposals": {"key": str},
    "pictures": {"key": str},
    "scored": {"key": str, "outcome": str},
    "crossed": {"key": str},
    "reviews": {"key": str},
    "training": {"key": str},
    "rollouts": {"step": int},
    "rounds": {"round": int},
    "history": {"step": int},
    "collapses": {"step": int},
}
OBJECTS = {"records": ("references",), "scored": ("references",)}  # columns that hold an object where they are
SHORT, SHARED = 100, 100_000  # characters of a text that rows may share, and how many of these are remembered
AT_ONCE = 1000  # rows written together


def read(path: Path) -> list[dict]:
    """All whole lines of a file, as `each` yields them."""
    return list(each(path))


def each(path: Path, begin: int = 0) -> Iterator[dict]:
    """The whole lines of a file one after another, so that they need not fit in memory; nothing where there is none. A
    torn last line is cut off, so that appending is safe again.

    Args:
        begin: the byte at which the first line to be read begins.

    Raises AuditError, naming file and line, for a line that is no UTF-8, no JSON object, or lacks what every row of
    such a file has (COLUMNS).
    """
    if not path.exists():
        return
    kind, shared, whole = path.name.split(".")[0], _sharing(), begin
    with path.open("rb") as file:
        for number, line in enumerate(file, 1 + _lines(file, begin)):
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            yield _row(line[:-1], kind, f"{path}, line {number}", shared)
        else:
            return
    with writing(path), path.open("r+b") as file:
        file.truncate(whole)


def _lines(file: BinaryIO, size: int) -> int:
    """How many lines a file's first bytes have, past which it then stands."""
    count = 0
    while size > 0 and (block := file.read(min(size, 1 << 20))):
        count += block.count(b"\n")
        size -= len(block)
    return count


def _sharing() -> Callable[[list[tuple]], dict]:
    """What makes the objects of several lines, so that they share their keys and what short texts come first."""
    known: dict[str, str] = {}

    def one(value: object) -> object:
        if type(value) is not str or len(value) > SHORT:
            return value
        return known.setdefault(value, value) if len(known) < SHARED else known.get(value, value)

    return lambda pairs: {one(name): one(value) for name, value in pairs}


def _row(line: bytes, kind: str, where: str, shared: Callable[[list[tuple]], dict]) -> dict:
    advice = "delete that line and run again"
    try:
        row = json.loads(line.decode("utf-8"), object_pairs_hook=shared)
    except UnicodeDecodeError:
        raise AuditError(f"{where} is no UTF-8: {line[:60]!r}; {advice}.") from None
    except (ValueError, RecursionError):
        raise AuditError(f"{where} is damaged: {line[:60].decode('utf-8', 'replace')!r}; {advice}.") from None
    if not isinstance(row, dict):
        raise AuditError(f"{where} is {kind_in_words(row)} where an object belongs; {advice}.")
    for name, its in COLUMNS.get(kind, {}).items():
        if name == "outcome" and "gate" in row:  # of an earlier auditkit, whose runs the report refuses as such
            continue
        if not isinstance(row.get(name), its):
            what = f"{kind_in_words(row[name])} for" if name in row else "no"
            raise AuditError(f'{where} has {what} "{name}", which is {KINDS[its]} in every row; {advice}.')
    for name in OBJECTS.get(kind, ()):
        if not isinstance(row.get(name) or {}, dict):
            raise AuditError(f'{where} has {kind_in_words(row[name])} for "{name}", which is an object; {advice}.')
    return row


def append(path: Path, rows: Iterable[dict]) -> None:
    """Add rows at the end, in one write, and flush. Raises DiskError where the disk takes no more."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if text:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(fit_for_disk(text))


def replace(path: Path, rows: Iterable[dict]) -> None:
    """Write a file anew, so that a kill leaves the old one or the new one whole."""
    rows = iter(rows)
    with replacing(path) as beside, beside.open("w", encoding="utf-8", newline="\n") as file:
        while some := list(itertools.islice(rows, AT_ONCE)):
            file.write(fit_for_disk("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in some)))
