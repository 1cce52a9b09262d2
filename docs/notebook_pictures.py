"""The best picture of each notebook, taken from a finished run: docs/notebook_00.png to notebook_08.png.

python docs/notebook_pictures.py outputs/demo
"""

import base64
import io
import sys
from pathlib import Path

import nbformat
from PIL import Image

BEST = (
    "00-images",
    "01-ask",
    "02-gallery",
    "03-irrelevant",
    "04-train",
    "05-figure",
    "06-figure",
    "07-again",
    "08-skills",
)
COLOURS = 128  # enough for figures and boards, at a third of the size


def main(run: Path, to: Path) -> None:
    for path in sorted(run.glob("0*/notebook.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            shown = [out.data["image/png"] for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
            if cell.id in BEST and shown:
                picture = Image.open(io.BytesIO(base64.b64decode(shown[-1]))).convert("RGB")
                picture = picture.quantize(COLOURS, dither=Image.Dither.NONE)
                picture.save(to / f"notebook_{cell.id[:2]}.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent)
