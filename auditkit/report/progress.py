"""What a notebook shows while a model is trained: a line every so often, and for the auditor a figure that grows.

Each is given to a trainer as its `on_step` and called with the row of every step.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from IPython.display import display

from auditkit.errors import note_step
from auditkit.report import plots
from auditkit.runs import jsonl

LINES = 20  # printed over a whole training
NOT_YET = {"distinct": float("nan"), "kinds": float("nan")}  # the first step has neither


class AuditorProgress:
    """The auditor's training curve, drawn anew every so often, and a line beside.

    Args:
        steps: of the whole training.
        file: history.jsonl, with the steps that an earlier attempt has made, if there was one.
    """

    def __init__(self, steps: int, file: Path):
        self.steps, self.every, self.history = steps, math.ceil(steps / LINES), jsonl.read(file)
        self._figure = display(plots.training_curve(self.history), display_id=True)

    def __call__(self, row: Mapping) -> None:
        self.history.append(dict(row))
        note_step(row["step"], self.steps)
        if row["step"] % self.every == 0:
            seen = NOT_YET | dict(row)
            print(
                f"step {seen['step']}/{self.steps}  success {seen['reward/disagreement']:.0%}  "
                f"distinct {seen['distinct']:.0%}  kinds {seen['kinds']:.0f}",
                flush=True,
            )
            self.draw(self.history)

    def draw(self, history: Sequence[Mapping]) -> None:
        """Draw the curve of these steps in place of the one before."""
        if self._figure:  # outside of a notebook there is none
            self._figure.update(plots.training_curve(history))


def repair_progress(steps: int) -> Callable[[Mapping], None]:
    """What prints a line about a step of the repair, some twenty times over the training."""

    every = max(1, steps // LINES)

    def say(row: Mapping) -> None:
        note_step(row["step"], steps)
        if row["step"] % every == 0:
            print(f"step {row['step']}/{steps}  loss {row['loss']:.3f}", flush=True)

    return say
