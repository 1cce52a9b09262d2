"""A disk that takes nothing more, told in one sentence: what the matter is, and what to free."""

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from auditkit.params import project_root

TROUBLES = {  # what the system says, or a library that hides the system's number -> what it means, what to do
    errno.ENOSPC: ("No space left on device", "the disk is full", "free some room"),
    errno.EDQUOT: ("Disk quota exceeded", "your share of the disk is used up", "free some room"),
    errno.EFBIG: ("File too large", "the file may not grow further", "raise the limit (ulimit -f) or free some room"),
    errno.EROFS: ("Read-only file system", "the disk is read-only", "write elsewhere"),
    errno.EACCES: ("Permission denied", "this user may not", "give yourself the right to it"),
}
TORCH_CANNOT_WRITE = ("PytorchStreamWriter failed writing", "unexpected pos", "file write failed")
NO_TEMPORARY = "No usable temporary directory"


class DiskError(OSError):
    """Something could not be written. The message says which file, why, and what to do."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """While it lasts, a disk that refuses is a DiskError that names `path` and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in TROUBLES or isinstance(error, DiskError):
            raise
        raise DiskError(disk_sentence(f"[Errno {error.errno}]", Path(error.filename or path))) from None


def disk_sentence(said: str, path: Path | None = None) -> str:
    """What an error's text says of a disk, as one sentence with what to do; "" where it is about something else.

    Args:
        said: the text of an error of the system, of safetensors or of torch.
        path: what was to be written, if known; else looked for in the text.

    >>> disk_sentence("KeyError: 'a'")
    ''
    """
    number = re.search(r"\[Errno (\d+)\]|os error (\d+)", said)
    code = int(number[1] or number[2]) if number else None
    if code not in TROUBLES:
        code = next((code for code, (words, *_) in TROUBLES.items() if words in said), None)
    if code is None and (NO_TEMPORARY in said or any(words in said for words in TORCH_CANNOT_WRITE)):
        code = errno.ENOSPC
    if code is None:
        return ""
    _, what, do = TROUBLES[code]
    named = re.search(r": '([^']+)'", said)
    where = str(path or (named[1] if named else "")) or "a file of this run"
    where = "the folder for temporary files" if NO_TEMPORARY in said else _short(where)
    done = "opened" if code == errno.EACCES else "written"
    return f"{where} could not be {done}, for {what}: {do} ({_free()}). What is done is kept."


def _short(where: str) -> str:
    root = str(project_root()) + os.sep
    return where.removeprefix(root)


def _free() -> str:
    """What is free where this project and everybody's temporary files lie."""
    temporary = os.environ.get("TMPDIR") or "/tmp"
    with contextlib.suppress(OSError):
        temporary = tempfile.gettempdir()
    found = []
    for folder, advice in ((project_root() / "outputs", "old runs"), (Path(temporary), "TMPDIR names another place")):
        with contextlib.suppress(OSError):
            there = folder if folder.exists() else folder.parent
            found.append(f"{shutil.disk_usage(there).free / 1e9:.1f} GB free in {_short(str(folder))}, {advice}")
    return "; ".join(found)
