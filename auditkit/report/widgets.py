"""Two widgets for JupyterLab: one's own edit commands (notebook 03), a menu of failure types (notebook 06)."""

import hashlib
from collections.abc import Callable, Mapping, Sequence

import ipywidgets as widgets
from PIL import Image

from auditkit.consensus.normalise import same_text
from auditkit.consensus.vote import vote
from auditkit.counterfactual.make import ImagePipeline, attempt_edit
from auditkit.data.source import Picture, Source
from auditkit.findings.failure_types import FailureType
from auditkit.report import cards, plots

NO_COMMAND = "Write a command first, and press Enter or the button."
PRESS = "Press Enter in the command, or the button: the change is made, and put to target and references."


_open: dict[str, widgets.Widget] = {}  # the widgets of this process that a page may come back to


def lasting_id(*parts: object) -> str:
    """An id that a widget has again when its cell is run again: a page that was reloaded before its notebook was saved
    looks for the widget of before. That one is closed.
    """
    number = hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()[:32]
    if number in _open:
        _open.pop(number).close()
    return number


def keep_open(widget: widgets.Widget) -> None:
    """Remember a widget with a lasting id, as soon as it has it."""
    _open[widget.model_id] = widget


class EditWidget(widgets.VBox):
    """A picture, a command, a question; Enter or the button edits the picture and puts the question to all, before and
    after. The pair stands below with what they said.

    Args:
        pipeline: that edits (load_pipeline).
        pictures: to choose from.
        command: that stands there at first, and is carried out at once.
        seed: of the pipeline's noise, at first.
        edit_region, edit_rest: as for `attempt_edit`.
        ask: puts a question about some images to target and references (`models.roles.everyone`).
        question: a picture's key -> the question that stands there at first (`Source.question`).
        quorum: share of the references that must agree before there is a consensus.
    """

    def __init__(
        self,
        pipeline: ImagePipeline,
        pictures: Sequence[Picture],
        command: str,
        seed: int,
        edit_region: float,
        edit_rest: float,
        ask: Callable[[Sequence[Image.Image], str], list[dict]] | None = None,
        question: Callable[[str], str | None] = lambda key: None,
        quorum: float = 0.6,
    ):
        self._pipeline, self._pictures, self._own, self._quorum = pipeline, pictures, question, quorum
        self._bounds, self._everyone = {"edit_region": edit_region, "edit_rest": edit_rest}, ask
        steps, scale = pipeline.call.get("num_inference_steps", 4), pipeline.call.get("guidance_scale", 2.5)
        self._which = widgets.IntSlider(0, 0, len(pictures) - 1, description="picture")
        self._command = widgets.Text(command, description="command", layout={"width": "95%"})
        self._question = widgets.Text(question(pictures[0].key) or "", description="question", layout={"width": "95%"})
        self._noise = widgets.IntSlider(seed, 0, 99, description="seed")
        self._steps = widgets.IntSlider(steps, 1, 50, description="steps")
        self._guidance = widgets.FloatSlider(scale, min=1, max=10, step=0.5, description="guidance")
        self._button, self._said, self._view = widgets.Button(description="edit"), widgets.Label(), widgets.Image()
        self._said.add_class("mathjax_ignore")  # what stands there may quote a command
        self._button.on_click(self._edit)
        for text in (self._command, self._question):
            text.on_msg(self._entered)
        self._which.observe(self._chosen, "value")
        self._change(asking=False)
        sliders = [self._noise, self._steps, self._guidance]
        fields = [self._which, self._command, self._question]
        here = lasting_id("EditWidget", pictures[0].key, len(pictures))
        super().__init__([*fields, *sliders, self._button, self._said, self._view], model_id=here)
        keep_open(self)

    def _chosen(self, _: dict) -> None:
        """Another picture: it is shown as it is, with its own question."""
        picture = self._pictures[self._which.value]
        self._question.value = self._own(picture.key) or ""
        self._view.value = plots.gallery(cards.picture_cards([picture]))._repr_png_()
        self._said.value = PRESS

    def _entered(self, _: object, content: dict, __: object) -> None:
        if content.get("event") == "submit":
            self._edit()

    def _edit(self, _: object = None) -> None:
        self._button.disabled, self._said.value = True, "…"
        try:
            self._change(asking=True)
        finally:
            self._button.disabled = False

    def _change(self, asking: bool) -> None:
        command, question = self._command.value.strip(), self._question.value.strip()
        if not command:
            self._chosen({})
            self._said.value = NO_COMMAND
            return
        how = {"num_inference_steps": self._steps.value, "guidance_scale": self._guidance.value}
        image = self._pictures[self._which.value].image
        card, said = attempt_edit(self._pipeline, image, command, self._noise.value, **self._bounds, **how)
        if card and question and self._everyone:
            card["question"] = question
            if asking:
                before, after = (self._voted(one) for one in self._everyone([image, card["image"]], question))
                card |= {f"{name}_before": told for name, told in before.items()} | after
                said += f". {moves_in_words(before, after)}"
            else:
                said += f". {PRESS}"
        self._view.value = plots.pairs([card])._repr_png_() if card else b""
        self._said.value = said

    def _voted(self, said: dict) -> dict:
        """With the consensus of the references, where they have one."""
        verdict = vote(said["target"], list(said["references"].values()), quorum=self._quorum)
        return said | {"consensus": verdict.consensus}


def moves_in_words(before: Mapping, after: Mapping) -> str:
    """Who says something else after an edit than before: {"target", "consensus"}, the latter None where there is none.

    >>> moves_in_words({"target": "red", "consensus": "red"}, {"target": "blue", "consensus": "red"})
    'The target turned, the references did not: found what a counterfactual is for.'
    """
    if before["consensus"] is None or after["consensus"] is None:
        return "The references do not agree, so nothing can be said of the target."
    target, others = (not same_text(before[who], after[who]) for who in ("target", "consensus"))
    if target and not others:
        return "The target turned, the references did not: found what a counterfactual is for."
    if others and not target:
        return "The references turned, the target did not: it does not see the change."
    return "Target and references turned." if target else "Nobody says anything else: try another command."


class TypesWidget(widgets.VBox):
    """Shows the examples of one failure type at a time; without types it is empty.

    Args:
        types: as `find_failure_types` gives them.
        source: images of the run, those that were made among them (with_counterfactuals).
    """

    def __init__(self, types: Sequence[FailureType], source: Source):
        self._types, self._source = types, source
        options = [(f"{kind.name} ({kind.size})", number) for number, kind in enumerate(types)]
        menu = widgets.Dropdown(options=options, description="type", layout={"width": "95%"})
        self._view = widgets.Image()
        menu.observe(self._show, "value")
        if types:
            self._show({"new": 0})
        here = lasting_id("TypesWidget", len(types), *(kind.name for kind in types[:1]))
        super().__init__([menu, self._view] if types else [], model_id=here)
        keep_open(self)

    def _show(self, change: dict) -> None:
        shown = self._types[change["new"]].examples
        self._view.value = plots.gallery(cards.probe_cards(shown, self._source))._repr_png_()
