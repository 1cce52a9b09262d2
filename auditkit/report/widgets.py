"""Two widgets for JupyterLab: one's own edit commands (notebook 03), a menu of failure types (notebook 06)."""

from collections.abc import Sequence

import ipywidgets as widgets

from auditkit.counterfactual.make import ImagePipeline, attempt_edit
from auditkit.data.source import Picture, Source
from auditkit.findings.failure_types import FailureType
from auditkit.report import plots
from auditkit.report.cards import probe_cards


class EditWidget(widgets.VBox):
    """A picture, a command, sliders, a button; the pair before and after stands below them.

    Args:
        pipeline: that edits (load_pipeline).
        pictures: to choose from.
        command: that stands there at first, and is carried out at once.
        seed: of the pipeline's noise, at first.
        edit_region, edit_rest: as for `attempt_edit`.
    """

    def __init__(
        self,
        pipeline: ImagePipeline,
        pictures: Sequence[Picture],
        command: str,
        seed: int,
        edit_region: float,
        edit_rest: float,
    ):
        self._pipeline, self._pictures = pipeline, pictures
        self._bounds = {"edit_region": edit_region, "edit_rest": edit_rest}
        steps, scale = pipeline.call.get("num_inference_steps", 4), pipeline.call.get("guidance_scale", 2.5)
        self._which = widgets.IntSlider(0, 0, len(pictures) - 1, description="picture")
        self._command = widgets.Text(command, description="command", layout={"width": "95%"})
        self._noise = widgets.IntSlider(seed, 0, 99, description="seed")
        self._steps = widgets.IntSlider(steps, 1, 50, description="steps")
        self._guidance = widgets.FloatSlider(scale, min=1, max=10, step=0.5, description="guidance")
        self._button, self._said, self._view = widgets.Button(description="edit"), widgets.Label(), widgets.Image()
        self._said.add_class("mathjax_ignore")  # what stands there may quote a command
        self._button.on_click(self._edit)
        self._edit()
        sliders = [self._noise, self._steps, self._guidance]
        super().__init__([self._which, self._command, *sliders, self._button, self._said, self._view])

    def _edit(self, _=None) -> None:
        how = {"num_inference_steps": self._steps.value, "guidance_scale": self._guidance.value}
        image = self._pictures[self._which.value].image
        card, self._said.value = attempt_edit(
            self._pipeline, image, self._command.value, self._noise.value, **self._bounds, **how
        )
        self._view.value = plots.pairs([card])._repr_png_() if card else b""


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
        super().__init__([menu, self._view] if types else [])

    def _show(self, change: dict) -> None:
        shown = self._types[change["new"]].examples
        self._view.value = plots.gallery(probe_cards(shown, self._source))._repr_png_()
