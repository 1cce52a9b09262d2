"""Files of one JSON object a line, only ever appended to, that survive being killed in the middle of a line."""

import json
from collections.abc import Iterable
from pathlib import Path

from auditkit.errors import AuditError
from auditkit.runs.files import fit_for_disk, write_text


def read(path: Path) -> list[dict]:
    """All whole lines of a file, [] when there is none. A torn last line is cut off, so that appending is safe again.

    Raises AuditError for a line in the middle that is no JSON, naming file and line.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    rows = []
    for number, line in enumerate(whole.decode("utf-8").split("\n")[:-1], 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise AuditError(f"{path}, line {number} is damaged: {line[:60]!r}; delete it and run again.") from error
    return rows


def append(path: Path, rows: Iterable[dict]) -> None:
    """Add rows at the end, in one write, and flush."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if text:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(fit_for_disk(text))


def replace(path: Path, rows: Iterable[dict]) -> None:
    """Write a file anew, so that a kill leaves the old one or the new one whole."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
