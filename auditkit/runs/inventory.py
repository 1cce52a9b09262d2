"""Is a finished stage whole?  Its DONE lists the files it ended with; here they are listed and looked after.

    {"finished": when, "files": {"scored.jsonl": [bytes, "sha256"], "pictures/made-0f3c.png": [bytes], …}}

Not listed are what goes on changing (the notebook, which papermill still writes, the manifest and a person's reviews)
and what is thrown away (a trainer's `checkpoints`, what was set aside as damaged). Pictures have their size alone, for
there may be hundreds of thousands. When a stage is needed, the size of every file is compared, and the digest of each
up to 64 MB: larger ones are weights, whose digest is compared by nobody but who reads DONE. A file of rows may have
grown, for a cell that is run once more may ask something new, but what it began with must still be there.

A stage that was finished before there was such a list counts as whole.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from auditkit.runs.files import ASIDE, set_aside

CHANGING = ("DONE", "manifest.json", "notebook.ipynb", "reviews.jsonl")
THROWN_AWAY = ("checkpoints", "adapter.unfinished", ASIDE)
DIGESTED = 64_000_000  # bytes: larger files are compared by their size
PAID = ("answers.jsonl", "judged.jsonl", "named.jsonl", "crossed.jsonl")  # what is left of these is kept
TOGETHER = (  # what is made in one go: where one is damaged, all are made again
    ("untrained.json", "rollouts*.jsonl", "history.jsonl", "collapses.jsonl", "checkpoint-*"),
    ("proposals.jsonl", "pictures.jsonl", "pictures"),
    ("training.json", "history.jsonl", "adapter"),
)


def list_files(folder: Path) -> dict[str, list]:
    """A stage's files: path inside the folder -> [bytes, sha256], [bytes] for a picture."""
    found: dict[str, list] = {}
    for path in sorted(_files(folder)):
        size = path.stat().st_size
        found[path.relative_to(folder).as_posix()] = [size] if path.suffix == ".png" else [size, _digest(path, size)]
    return found


def listed_files(folder: Path) -> dict[str, list] | None:
    """What a stage's DONE lists; None where it was finished before there was a list.

    Raises ValueError for a list that cannot be read.
    """
    if is_before_lists(folder):
        return None
    try:
        return dict(json.loads((folder / "DONE").read_text(encoding="utf-8"))["files"])
    except (ValueError, TypeError, KeyError):
        raise ValueError("DONE") from None


def is_before_lists(folder: Path) -> bool:
    """Whether a stage was finished by an auditkit that kept no list of its files."""
    return (folder / "DONE").is_file() and not (folder / "DONE").read_bytes().startswith(b"{")


def damage(folder: Path) -> dict[str, str]:
    """What a finished stage has lost: file -> "missing", "changed", or how many bytes are left; {} for a whole one."""
    try:
        listed = listed_files(folder) or {}
    except ValueError:
        return {"DONE": "damaged"}
    found = {}
    for name, (size, *digest) in listed.items():
        path = folder / name
        if not path.is_file():
            found[name] = "missing"
        elif (now := path.stat().st_size) != size and not (name.endswith(".jsonl") and now > size):
            found[name] = f"{now:,} of {size:,} bytes" if now < size else "changed"
        elif digest and size <= DIGESTED and _digest(path, size) != digest[0]:
            found[name] = "changed"
    return found


def in_words(found: dict[str, str]) -> str:
    """The first three of what is damaged: 'scored.jsonl (missing), …'."""
    return ", ".join(f"{name} ({what})" for name, what in list(found.items())[:3]) + (", …" if len(found) > 3 else "")


def clear_damage(folder: Path, found: dict[str, str]) -> dict[str, list]:
    """Make a damaged stage an unfinished one, so that its notebook makes again what is missing, and nothing else.

    What is damaged is set aside, and what is made in one go with it. Returns what DONE said of the damaged files, for
    whoever compares them with those made again.
    """
    listed = {} if "DONE" in found else listed_files(folder) or {}
    tops = {name.split("/")[0] for name in found if name != "DONE"}
    aside = {top for top in tops if not (top in PAID and (folder / top).is_file() and found[top].endswith("bytes"))}
    for group in TOGETHER:
        if any(Path(top).match(pattern) for top in tops for pattern in group):
            aside |= {path.name for pattern in group for path in folder.glob(pattern)}
    for top in aside:
        if (folder / top).exists():
            set_aside(folder / top)
    (folder / "DONE").unlink()  # last: killed before, the stage is damaged still
    return {name: listed[name] for name in found if name in listed}


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        if Path(place) == folder:
            folders[:] = [name for name in folders if name not in THROWN_AWAY]
            names = [name for name in names if name not in CHANGING]
        yield from (Path(place, n) for n in names if not n.startswith(".") and not n.endswith(".part"))


def _digest(path: Path, size: int) -> str:
    """SHA-256 of a file's first `size` bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (block := file.read(min(size, 1 << 20))):
            digest.update(block)
            size -= len(block)
    return digest.hexdigest()
