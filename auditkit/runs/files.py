"""Files that are there whole or not at all, whenever a run is killed, and that hold no key; the one reader of JSON."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from auditkit.errors import AuditError
from auditkit.redact import redacted
from auditkit.runs.disk import writing
from auditkit.text import storable

ASIDE = "damaged"  # the folder, beside it, for what was found torn or changed
KINDS = {dict: "an object", list: "a list", str: "a text", int: "a whole number"}


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write beside `path`, whose place it takes once it is written: a reader sees the old or the new one.

    Raises DiskError where the disk takes no more; what was begun is then removed.
    """
    beside = path.with_name(path.name + ".part")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield beside
            os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


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


def read_json(path: Path, kind: type = dict, advice: str = "run that stage's notebook again", of: type = object) -> Any:
    """What a JSON file of a run holds.

    Args:
        kind: dict or list, what it has to be.
        advice: what to do where it is not, in an error's sentence.
        of: what each of its values has to be.

    Raises AuditError, naming the file and, where there is one, the line.
    """
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise AuditError(f"{path}, line {line} is no UTF-8; {advice}.") from None
    except json.JSONDecodeError as error:
        raise AuditError(f"{path} is no JSON (line {error.lineno}: {error.msg}); {advice}.") from None
    except (RecursionError, ValueError) as error:  # 100,000 brackets; a number of 5,000 digits
        raise AuditError(f"{path} is no JSON that can be read ({type(error).__name__}); {advice}.") from None
    except OSError as error:
        raise AuditError(f"{path} cannot be read ({error.strerror}); {advice}.") from None
    if not issubclass(type(value), kind):
        raise AuditError(f"{path} holds {kind_in_words(value)} where {KINDS[kind]} belongs; {advice}.")
    entries: Any = value.items() if kind is dict else enumerate(value, 1)
    for name, inner in entries:
        if not isinstance(inner, of):
            raise AuditError(
                f"{path}, {f'entry {name}' if kind is list else repr(name)} is {kind_in_words(inner)} where "
                f"{KINDS[of]} belongs; {advice}."
            )
    return value


def kind_in_words(value: object) -> str:
    """What a value of JSON is, in a message.

    >>> kind_in_words([1]), kind_in_words("a"), kind_in_words(None)
    ('a list', 'a text', 'nothing')
    """
    return "nothing" if value is None else KINDS.get(type(value), type(value).__name__)


def set_aside(path: Path) -> Path:
    """Move a damaged file or folder into the folder `damaged` beside it, and return where it is now."""
    aside = path.parent / ASIDE / path.name
    aside.parent.mkdir(exist_ok=True)
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside)
    else:
        aside.unlink(missing_ok=True)
    path.rename(aside)
    return aside
