"""The exercises of the workshop: their notebooks, what fills each blank, and sizes at which a test runs them."""

import re
from pathlib import Path

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks" / "workshop").glob("[a-f]_*.ipynb"))
SMALLER = {  # sizes in the notebooks -> of a test
    "60, folder": "12, folder",
    "240, folder": "16, folder",
    '"test", 160': '"test", 8',
    "(scored, 12)": "(scored, 2)",
    "1000, hunt": "16, hunt",
}


def solutions(book) -> dict[str, str]:
    """What fills each blank: the cell's id -> the Python in the folded solution below it."""
    folded = {cell.id: cell.source for cell in book.cells if cell.id.endswith("-solution")}
    return {id.removesuffix("-solution"): re.findall(r"```python\n(.*?)\n```", text, re.DOTALL)[-1]
            for id, text in folded.items()}  # fmt: skip
