"""Where a numbered notebook stands among the nine: the picture under its title, kept in the notebook as an attachment.

An attachment goes with the notebook wherever papermill or a reader copies it, and is seen before anything has run. It
is a PNG, for JupyterLab shows no other drawing from an attachment. After a change here, draw them anew:

    python -m auditkit.report.lesson notebooks
"""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path
from typing import Any

import nbformat
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image

from auditkit.report.plots import AFTER as HERE
from auditkit.report.plots import INK, MUTED
from auditkit.runs.folder import STAGES

PICTURE = "where_we_are.png"  # the attachment's name
STEPS = {  # number of a notebook -> what is done there, what comes out
    "00": ("check", "set-up"),
    "01": ("meet", "models"),
    "02": ("measure", "disagreement"),
    "03": ("change", "images"),
    "04": ("train", "auditor"),
    "05": ("audit", "probes"),
    "06": ("read", "failure types"),
    "07": ("repair", "adapter"),
    "08": ("compare", "report"),
}


def where_we_are(number: str) -> bytes:
    """A PNG, 990 x 110 pixels, of the nine notebooks in a row, the one of this number set off and named in words.

    >>> where_we_are("05")[:4]
    b'\\x89PNG'
    """
    figure = Figure(figsize=(9, 1), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 9), ylim=(0, 1))
    axes.set_axis_off()
    for place, (name, (verb, gives)) in enumerate(STEPS.items()):
        here = name == number
        axes.add_patch(
            FancyBboxPatch(
                (place + 0.09, 0.3), 0.76, 0.52,
                boxstyle="round,pad=0,rounding_size=0.07",
                facecolor=HERE if here else "white", edgecolor=HERE if here else "#c3c9d0",
            )
        )  # fmt: skip
        words: dict[str, Any] = {"ha": "center", "va": "center", "color": "white" if here else INK}
        axes.text(place + 0.47, 0.64, f"{name} {verb}", fontsize=8, weight="bold" if here else "normal", **words)
        axes.text(place + 0.47, 0.45, gives, fontsize=7, **(words if here else words | {"color": MUTED}))
        if place:
            arrow = FancyArrowPatch((place - 0.15, 0.56), (place + 0.09, 0.56), arrowstyle="->", mutation_scale=8)
            arrow.set_color(MUTED)
            axes.add_patch(arrow)
        if here:
            axes.text(place + 0.47, 0.14, "you are here", fontsize=8, ha="center", va="center", color=HERE)
    drawn, png = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    Image.open(drawn).convert("RGB").quantize(16).save(png, "PNG", optimize=True)  # a quarter of the bytes
    return png.getvalue()


def attach(notebook: Path) -> None:
    """Put the picture of its place into a numbered notebook's title cell, which shows it as `attachment:...`."""
    book = nbformat.read(notebook, as_version=4)
    data = base64.b64encode(where_we_are(notebook.name[:2])).decode()
    book.cells[0]["attachments"] = {PICTURE: {"image/png": data}}
    nbformat.write(book, notebook)


def main(arguments: list[str]) -> int:
    """Draw the pictures of all numbered notebooks in a folder."""
    (folder,) = arguments
    for stage in STAGES:
        for notebook in sorted(Path(folder).glob(f"{stage[:2]}_*.ipynb")):
            attach(notebook)
            print(notebook)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
