"""A folder of images of one's own, with or without questions and answers beside them."""

import posixpath
import re
import unicodedata
from collections import Counter
from pathlib import Path
from urllib.parse import parse_qsl

from auditkit.data.files import files_in
from auditkit.data.pictures import SUFFIXES, is_other_image
from auditkit.data.question_files import COLUMNS, Labelled, read_questions
from auditkit.data.source import Collection, Row
from auditkit.errors import AuditError
from auditkit.text import visible

FOLDER_OPTIONS = {
    "links": "yes: linked folders are looked into, and linked pictures may lie anywhere; else they are named"
}


class ImageFolder(Collection):
    """A folder of images, at any depth, with questions beside them in any of the forms of question_files.py.

    What is not read is said once: images of other kinds, linked folders, links to files elsewhere, what is no file
    (pipes, devices), files of questions that are not understood.

    Args:
        folder: where the images are.
        options: as behind "?" in a parameter file, see FOLDER_OPTIONS.

    Raises AuditError for a folder without images and for a row of questions that cannot be meant, naming it.
    """

    def __init__(self, folder: str | Path, options: str = ""):
        self.folder = Path(folder)
        chosen = dict(parse_qsl(options, keep_blank_values=True))
        for name in chosen:
            if name not in FOLDER_OPTIONS:
                raise AuditError(
                    f'images: "{folder}?{options}": no option {name}; there is {", ".join(FOLDER_OPTIONS)}.'
                )
        follow = chosen.get("links") == "yes"
        found = files_in(self.folder, follow)
        paths = [path for path in found.files if path.suffix.lower() in SUFFIXES]
        others = [path for path in found.files if is_other_image(path)]
        if not paths:
            beside = f"; {_some(others, 'image', 'images')} of another kind" if others else ""
            raise AuditError(f"images: no image in {self.folder} (looked for {', '.join(sorted(SUFFIXES))}){beside}.")
        self._paths = {self._key(path.relative_to(self.folder).as_posix()): path for path in paths}
        self._named = _names({path.relative_to(self.folder).as_posix(): key for key, path in self._paths.items()})
        if others:
            print(f"images: {_some(others, 'file', 'files')} of kinds that are not read here.", flush=True)
        if found.folders:
            print(f"images: {_some(found.folders, 'linked folder', 'linked folders')} not looked into; write "
                  f"{self.folder}?links=yes to do so.", flush=True)  # fmt: skip
        if found.links:
            what = _some(found.links, "link to a file elsewhere", "links to files elsewhere")
            print(
                f"images: {what} followed, as ?links=yes says."
                if follow
                else f"images: {what} not followed; write {self.folder}?links=yes to do so.",
                flush=True,
            )
        if found.strange:
            what = _some(found.strange, "is no file", "are no files")
            print(f"images: {what} but pipes, devices or links to nothing; they are not opened.", flush=True)
        declared: dict[str, str | None] = dict.fromkeys(self._paths)
        labelled, strange = read_questions(self.folder, found.files)
        if strange:
            print(
                f"images: {_some(strange, 'file', 'files')} with no questions that are understood: a table needs a "
                f"column of each kind {COLUMNS}; docs/data.md has the other forms that are read.",
                flush=True,
            )
        super().__init__(self.folder.resolve().name, declared, self._rows_of(labelled, declared))

    @staticmethod
    def _key(path: str) -> str:
        # "/q" ends a picture's key inside an example's key, so no key may hold a slash of its own; a colon in a name is
        # told from one that stands for a slash, and a name that looks like such a colon from both. It is stored and
        # shown: control characters and bytes that are no UTF-8 are escapes in it, told from a name's own backslashes
        key = re.sub("%(?=3A|25|5C)", "%25", path).replace("\\", "%5C").replace(":", "%3A")
        return visible(key, keep="").replace("/", ":")

    def _file(self, key: str) -> Path:
        return self._paths[key]

    def _rows_of(self, labelled: list[Labelled], declared: dict[str, str | None]) -> list[Row]:
        """Rows with their pictures' keys; the splits they name go into `declared`."""
        rows: list[Row] = []
        count: Counter[str] = Counter()
        for one in labelled:
            key = self._find(one)
            if one.split and declared[key] not in (None, one.split):
                raise AuditError(f"{one.where}: {one.image} is in train and in test; choose one.")
            declared[key] = one.split or declared[key]
            rows.append(
                Row(f"{key}/q{count[key]}", key, one.question, one.answers, one.skill or self.folder.resolve().name)
            )
            count[key] += 1
        return rows

    def _find(self, one: Labelled) -> str:
        """The key of the picture that a row names: from its own file's folder, from the images' folder, or by its
        name alone where only one picture has it."""
        beside = one.folder.relative_to(self.folder).as_posix()
        name = one.image.replace("\\", "/")
        for path in (posixpath.join(beside, name), name, posixpath.basename(name)):
            if found := self._named.get(visible(unicodedata.normalize("NFC", posixpath.normpath(path)), keep="")):
                return found
        raise AuditError(f"{one.where}: there is no image {one.image} in {self.folder}.")


def _names(keys: dict[str, str]) -> dict[str, str]:
    """How a row may name each picture: by its path, and by its name alone where no other picture has it."""
    whole = {visible(unicodedata.normalize("NFC", path), keep=""): key for path, key in keys.items()}
    often = Counter(posixpath.basename(path) for path in whole)
    return {
        posixpath.basename(path): key for path, key in whole.items() if often[posixpath.basename(path)] == 1
    } | whole


def _some(paths: list[Path], one: str, several: str) -> str:
    """How many there are, and the first three by name."""
    names = ", ".join(visible(path.name, keep="") for path in paths[:3]) + (", …" if len(paths) > 3 else "")
    return f"{len(paths)} {one if len(paths) == 1 else several} ({names})"
