"""What notebook 04 shows while the auditor is trained: a figure that grows (runs/progress.py has the line below it)."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from IPython.display import display

from auditkit.report import plots
from auditkit.runs import jsonl
from auditkit.runs.checkpoints import last_checkpoint

EVERY = 10  # seconds, for to draw it takes a fifth of one


class AuditorProgress:
    """The auditor's training curve, drawn anew every so often on axes that stay; a trainer's `on_step`.

    Args:
        steps: of the whole training.
        file: history.jsonl, with the steps that an earlier attempt has made, if there was one; those after its last
            checkpoint are made again, and are not drawn until they are.
    """

    def __init__(self, steps: int, file: Path):
        last = last_checkpoint(file.parent)
        kept = int(last.rpartition("-")[2]) if last else 0
        self.steps, self._drawn = steps, time.monotonic()
        self.history = [row for row in jsonl.read(file) if row["step"] <= kept]
        self._figure = display(plots.training_curve(self.history, steps=steps), display_id=True)

    def __call__(self, row: Mapping) -> None:
        self.history = [*(one for one in self.history if one["step"] < row["step"]), dict(row)]
        if row["step"] == self.steps or time.monotonic() - self._drawn >= EVERY:
            self.draw(self.history)
            self._drawn = time.monotonic()

    def draw(self, history: Sequence[Mapping]) -> None:
        """Draw the curve of these steps in place of the one before."""
        if self._figure:  # outside of a notebook there is none
            self._figure.update(plots.training_curve(history, steps=self.steps))
