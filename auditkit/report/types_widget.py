"""The menu of failure types in notebook 06, with the examples of the one that is chosen below it."""

from collections.abc import Sequence

import ipywidgets as widgets

from auditkit.data.source import Source
from auditkit.findings.failure_types import FailureType
from auditkit.report import plots
from auditkit.report.cards import probe_cards


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
