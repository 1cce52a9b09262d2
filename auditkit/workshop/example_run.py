"""A finished run of params/workshop.yaml that comes with the package, so that any notebook can be read at once.

    auditkit example                                             # unpacks it to outputs/workshop_example
    python -m auditkit.workshop.example_run outputs/workshop_example   # packs a run anew, as a maintainer does

It holds what people read: executed notebooks, records, figures, the report, the repair's adapter. Not in it are the
auditor's checkpoints, which are most of a run's size: whoever wants to go on from them runs the file.
"""

from __future__ import annotations

import base64
import io
import json
import lzma
import os
import shutil
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from auditkit.errors import AuditError
from auditkit.runs import inventory
from auditkit.runs.folder import STAGES, shown_path
from auditkit.runs.temporary import temporary_folder
from auditkit.text import byte_size

NAME = "workshop_example"  # the run's name, as its records have it
ARCHIVE = Path(__file__).parent / "example_run.tar.xz"
MOST = 3_000_000  # bytes of the archive
LEFT_OUT = ("checkpoint-*", "checkpoints", "damaged", "*.index", ".*", "rollouts.jsonl.part")
COLOURS = 64  # of a figure in a notebook


def unpack_example(outputs: Path) -> Path:
    """Unpack the finished run to outputs/workshop_example and return that folder; one that is there is left as it is.

    Raises AuditError for a run of that name that was begun here and is not the example.
    """
    folder = outputs / NAME
    if (folder / "report.html").is_file():
        return folder
    if folder.exists() and any(folder.iterdir()):
        raise AuditError(f"{shown_path(folder)} holds something else; move it away, and run this again.")
    outputs.mkdir(parents=True, exist_ok=True)
    part = outputs / f".{NAME}.part"
    shutil.rmtree(part, ignore_errors=True)
    with tarfile.open(ARCHIVE, "r:xz") as archive:
        archive.extractall(part, filter="data")
    shutil.rmtree(folder, ignore_errors=True)  # an empty one
    os.replace(part / NAME, folder)
    part.rmdir()
    return folder


def pack_example(run: Path, archive: Path = ARCHIVE) -> int:
    """Pack a finished run: its size in bytes.

    Raises AuditError for a run that is not finished, and for an archive above MOST.
    """
    if missing := [stage for stage in STAGES if not (run / stage / "DONE").is_file()]:
        raise AuditError(f"{shown_path(run)} is not finished: {missing[0]} is not done.")
    with temporary_folder("pack-") as scratch:
        folder = Path(scratch) / NAME
        shutil.copytree(run, folder, ignore=shutil.ignore_patterns(*LEFT_OUT))
        _forget_place(folder, run.resolve().parents[1])
        for stage in STAGES:
            _lighten(folder / stage / "notebook.ipynb")
            done = json.loads((folder / stage / "DONE").read_text(encoding="utf-8"))
            done["files"] = inventory.list_files(folder / stage)
            (folder / stage / "DONE").write_text(json.dumps(done), encoding="utf-8")
        packed = _packed(folder)
    if len(packed) > MOST:
        raise AuditError(f"the archive would have {byte_size(len(packed))}, and {byte_size(MOST)} are the most.")
    archive.write_bytes(packed)
    return len(packed)


def _packed(folder: Path) -> bytes:
    """The folder as one .tar.xz, the same bytes for the same files."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            about = tarfile.TarInfo(f"{NAME}/{path.relative_to(folder).as_posix()}")
            about.size, about.mode = path.stat().st_size, 0o644
            archive.addfile(about, io.BytesIO(path.read_bytes()))
    return lzma.compress(raw.getvalue(), preset=9 | lzma.PRESET_EXTREME)


def _forget_place(folder: Path, project: Path) -> None:
    """No file says where the project lay on the machine that made it."""
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".ipynb", ".html", ".md"):
            text = path.read_text(encoding="utf-8")
            if str(project) in text:
                path.write_text(text.replace(str(project), "PROJECT"), encoding="utf-8")


def _lighten(notebook: Path) -> None:
    """Fewer colours in the figures of an executed notebook, and nothing of the machine that ran it."""
    if not notebook.is_file():
        raise AuditError(f"{shown_path(notebook)} is missing: the example is a run of `auditkit run`.")
    book = json.loads(notebook.read_text(encoding="utf-8"))
    book["metadata"].pop("papermill", None)
    book["metadata"].pop("widgets", None)
    for cell in book["cells"]:
        cell["metadata"] = {name: kept for name, kept in cell["metadata"].items() if name == "tags"}
        for out in cell.get("outputs", []):
            data = out.get("data", {})
            data.pop("application/vnd.jupyter.widget-view+json", None)
            if "image/png" in data:
                data["image/png"] = _fewer_colours(data["image/png"])
    notebook.write_text(json.dumps(book, ensure_ascii=False), encoding="utf-8")


def _fewer_colours(png: str) -> str:
    image, small = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), io.BytesIO()
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def main(arguments: Sequence[str] | None = None) -> int:
    """Pack the run whose folder is given; exit codes as in cli.py."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if len(words) != 1:
        print("auditkit: name the folder of one finished run, such as outputs/workshop_example.", file=sys.stderr)
        return 2
    try:
        print(f"{shown_path(ARCHIVE)}: {byte_size(pack_example(Path(words[0]).resolve()))}")
    except AuditError as error:
        print(f"auditkit: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
