"""Folders for temporary files that do not outlive their process for long: the next one clears what a kill has left."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import filelock

from auditkit.runs.disk import writing

PREFIX = "auditkit-"
LOCK = ".owner"  # held as long as the process lives, however it ends, and also where processes have other numbers
YOUNG = 2  # seconds: a folder that has its lock file may be about to be locked


@contextlib.contextmanager
def temporary_folder(what: str = "") -> Iterator[str]:
    """A folder for temporary files, gone afterwards; those of this user's dead processes are removed before and after.

    Raises DiskError where none can be made.
    """
    _clear_dead()
    with writing(Path(tempfile.gettempdir())):
        folder = tempfile.mkdtemp(prefix=f"{PREFIX}{what}{os.getpid()}-")
    lock = filelock.FileLock(os.path.join(folder, LOCK))
    try:
        with writing(Path(folder)):
            lock.acquire(timeout=0)
        yield folder
    finally:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)
        _clear_dead()  # what was too young at the beginning


def _clear_dead() -> None:
    """Remove the folders whose owners have ended; one of an earlier version has no lock, and is left."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError, filelock.Timeout):
            about = folder.lstat()
            mine = not hasattr(os, "getuid") or about.st_uid == os.getuid()
            if folder.is_symlink() or not mine or not (folder / LOCK).is_file() or time.time() - about.st_mtime < YOUNG:
                continue
            with filelock.FileLock(folder / LOCK, timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
