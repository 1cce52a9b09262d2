"""Files that are there whole or not at all, whenever a run is killed, and that hold no key."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from auditkit.redact import redacted
from auditkit.text import storable


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write beside `path`, whose place it takes once it is written: a reader sees the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    yield beside
    os.replace(beside, path)


def fit_for_disk(text: str) -> str:
    """What is written of a text: without keys, tokens and passwords, its half characters as escapes, as JSON has them
    too, so that what is read from a file of JSON is what was there before.
    """
    return storable(redacted(text))


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all, as `fit_for_disk`."""
    with replacing(path) as beside:
        beside.write_text(fit_for_disk(text), encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any, **how: Any) -> None:
    """Write a value as indented JSON, whole or not at all; `how` goes to `json.dumps`."""
    write_text(path, json.dumps(value, ensure_ascii=False, **{"indent": 1, **how}) + "\n")
