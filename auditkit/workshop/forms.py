"""The two forms of the game, for JupyterLab: one plants gaps, the other hands in what a hunt has found.

    PlantForm(project_root() / "outputs")     # as the last line of a cell

Both offer the same rows of four menus, so a guess is written in the words in which gaps are planted.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Sequence
from pathlib import Path

import ipywidgets as widgets

from auditkit.errors import AuditError
from auditkit.miniature.gaps import Gap
from auditkit.report.widgets import keep_open, lasting_id
from auditkit.text import clock, counted
from auditkit.workshop import game

NOTHING = "(nothing)"
ROWS = 4


class GapRow(widgets.HBox):
    """One gap on one line: a kind of question, a value, what the model says instead, and on which boards."""

    def __init__(self, skill: str, value: str = "", says: str = ""):
        narrow, wide = {"width": "11em"}, {"width": "15em"}
        self.skill = widgets.Dropdown(options=[NOTHING, *game.CHOICES], value=skill, layout=wide)
        self.value = widgets.Dropdown(layout=narrow)
        self.says = widgets.Dropdown(layout=narrow)
        self.where = widgets.Dropdown(options=list(game.PLACES), layout=wide)
        self.skill.observe(self._offer, "value")
        self._offer()
        for menu, word in ((self.value, value), (self.says, says)):
            if word:
                menu.value = word
        words = [widgets.Label("in questions of"), widgets.Label("about"), widgets.Label("it says")]
        menus = (self.skill, self.value, self.says)
        super().__init__([part for pair in zip(words, menus, strict=True) for part in pair] + [self.where])

    def _offer(self, _: object = None) -> None:
        """The values and answers of the kind that is chosen; the answer is at first another than the value."""
        choice = game.CHOICES.get(self.skill.value)
        for menu, words, first in (
            (self.value, choice.values if choice else (), 0),
            (self.says, choice.says if choice else (), 1),
        ):
            menu.options, menu.disabled = words, choice is None
            if words:
                menu.value = words[first]

    def gap(self) -> Gap | None:
        """What stands on this line; None for nothing. Raises AuditError where the answer is the right one."""
        if self.skill.value == NOTHING:
            return None
        return game.make_gap(self.skill.value, self.value.value, self.says.value, self.where.value)


class GapForm(widgets.VBox):
    """A group's name, rows of gaps, a button and a line below it that says what came of it."""

    def __init__(self, title: str, rows: Sequence[GapRow], button: str, *parts: object):
        self.group = widgets.Text(description="your group", placeholder="a name", layout={"width": "24em"})
        self.rows = list(rows)
        self.button = widgets.Button(description=button, button_style="primary")
        self.bar = widgets.IntProgress(layout={"width": "60%", "visibility": "hidden"})
        self.said = widgets.Textarea(disabled=True, rows=4, layout={"width": "95%"})  # a label would not wrap
        self.said.add_class("auditkit-said")
        self.button.on_click(self._pressed)
        fields = [widgets.Label(title), self.group, *self.rows, widgets.HBox([self.button, self.bar]), self.said]
        super().__init__(fields, model_id=lasting_id(type(self).__name__, *parts))
        keep_open(self)

    def gaps(self) -> list[Gap]:
        """What stands on the lines, without the empty ones."""
        return [gap for gap in (row.gap() for row in self.rows) if gap is not None]

    def _pressed(self, _: object) -> None:
        self.button.disabled, self.said.value = True, "…"
        try:
            self.said.value = self.work()
        except (AuditError, OSError) as error:
            self.said.value = f"✗ {error}"
        finally:
            self.button.disabled = False

    def work(self) -> str:
        """Do what the button is for, and say what came of it."""
        raise NotImplementedError


class PlantForm(GapForm):
    """Choose up to four gaps and plant them: outputs/workshop/GROUP is then what a neighbour is handed.

    Args:
        outputs: the project's outputs/.
        steps: of planting.
        rows: (kind of question, value, answer) that stand there at first; the first menu's words if there are fewer.
    """

    def __init__(self, outputs: Path, steps: int = game.STEPS, rows: Sequence[tuple[str, str, str]] = ()):
        self.outputs, self.steps, self.folder = outputs, steps, outputs
        first = [GapRow(*row) for row in rows] or [GapRow(skill) for skill in list(game.CHOICES)[:ROWS]]
        super().__init__("Choose what your model is to get wrong:", first, "plant", str(outputs.resolve()), steps)

    def work(self) -> str:
        gaps, began = self.gaps(), time.monotonic()
        self.folder = game.group_folder(self.outputs, self.group.value)
        self.bar.layout.visibility = "visible"

        def tell(done: int, of: int) -> None:
            self.bar.value, self.bar.max, taken = done, of, time.monotonic() - began
            left = f", {clock(taken * (of - done) / done)} left" if done else ""
            self.said.value = f"planting: step {done} of {of}, {clock(taken)} so far{left}"

        with contextlib.redirect_stdout(io.StringIO()):  # the trainer's own lines
            sealed = game.plant_sealed(gaps, self.folder, self.group.value, self.steps, tell)
        self.bar.value = self.bar.max
        depth = "; ".join(f"{name}: {share:.0%}" for name, share in sealed["wrong"].items())
        return (
            f"✓ planted in {clock(time.monotonic() - began)}. Wrong as planned: {depth}; right elsewhere: "
            f"{sealed['right_outside']:.0%}. Hand over the folder outputs/workshop/{self.folder.name}."
        )


class HuntForm(GapForm):
    """Write down what an audit has found and hand it in, once; the score is shown below.

    Args:
        hunt: as `game.open_hunt` gives it.
        group: who hunts.
    """

    def __init__(self, hunt: Path, group: str):
        self.hunt, self.score = hunt, {}
        rows = [GapRow(NOTHING) for _ in range(ROWS + 2)]
        super().__init__("What is wrong with this model? Leave a line empty rather than guess.", rows, "hand in",
                         str(hunt.resolve()))  # fmt: skip
        self.group.value, self.group.disabled = group, True

    def work(self) -> str:
        self.score = game.hand_in(self.hunt, self.gaps())
        told = {name: ", ".join(self.score[name]) or "none" for name in ("found", "missed", "false")}
        n = len(self.score["found"]) + len(self.score["missed"])
        return (
            f"✓ {len(self.score['found'])} of {counted(n, 'gap')} found in {self.score['minutes']:.0f} minutes. "
            f"Found: {told['found']}. Missed: {told['missed']}. False: {told['false']}."
        )
