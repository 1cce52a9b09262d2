"""The files in a folder that somebody else has filled: regular files only, and nothing outside of it unless told so."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from auditkit.errors import AuditError


@dataclass
class Found:
    """What lies in a folder, at any depth, each sorted."""

    files: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)  # linked folders that were not looked into
    links: list[Path] = field(default_factory=list)  # to files outside of the folder; among `files` if followed
    strange: list[Path] = field(default_factory=list)  # pipes, devices, sockets, links to nothing: never opened


def files_in(folder: Path, follow: bool = False) -> Found:
    """The files in a folder and below.

    Args:
        follow: look into linked folders, and take links to files that lie elsewhere. A link to a file inside the folder
            is always taken.

    Raises AuditError for a folder that may not be looked into.
    """
    found, inside, seen = Found(), os.path.realpath(folder), set()
    todo, linked = [str(folder)], []  # linked folders last: a picture that has two ways to it goes by its own
    while todo or linked:
        place = todo.pop() if todo else linked.pop()
        if follow and (real := os.path.realpath(place)) in seen:
            continue  # a link to a folder above itself
        elif follow:
            seen.add(real)
        for entry in _entries(place):
            path, link = Path(entry.path), entry.is_symlink()
            kind = _kind(entry)
            if kind == "folder" and not link:
                todo.append(entry.path)
            elif kind == "folder" and follow:
                linked.append(entry.path)
            elif kind == "folder":
                found.folders.append(path)
            elif kind != "file":
                found.strange.append(path)
            elif link and not Path(os.path.realpath(path)).is_relative_to(inside):
                found.links.append(path)
                found.files += [path] if follow else []
            else:
                found.files.append(path)
    for paths in (found.files, found.folders, found.links, found.strange):
        paths.sort()
    return found


def _entries(place: str) -> list[os.DirEntry]:
    try:
        with os.scandir(place) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
    except OSError as error:
        why = error.strerror or error
        raise AuditError(f"images: {place} cannot be looked into ({why}); make it readable, or move it out.") from None


def _kind(entry: os.DirEntry) -> str:
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else "none"
    except OSError:  # a link to itself
        return "none"
