"""A part of the campaign about payloads, small enough for every run of the tests."""

import re

from browser import needs_playwright
from campaigns import in_notebooks
from campaigns.payloads import PAYLOADS

CI = "06"  # the notebooks with most texts of others in tables, quotes and widgets; the campaign runs all nine


def test_there_are_enough_payloads_and_each_has_its_number():
    assert len(set(PAYLOADS)) == len(PAYLOADS) >= 100
    assert all(
        re.search(rf"\b{n}\b|{n}", text) or "<style>*" in text for n, text in enumerate(PAYLOADS) if "{" not in text
    )


def test_no_payload_runs_loads_or_makes_a_link_in_a_notebook(smoke, tmp_path):
    """As exported HTML and trusted in JupyterLab: every payload through every kind of table, the quote, the menu and an
    error, and the records of a run through a notebook. In careless displays payloads do run.
    """
    needs_playwright("notebooks were NOT opened")
    project = in_notebooks.hostile_run(smoke, tmp_path / "project")
    displays = in_notebooks.display_book(in_notebooks.CAREFUL, in_notebooks.FAILS)
    books = {
        "careless": in_notebooks.executed(in_notebooks.display_book(in_notebooks.CARELESS), tmp_path),
        "careful": in_notebooks.executed(displays, tmp_path),
        "run": in_notebooks.executed(in_notebooks.merged(project, CI), project),
    }
    assert in_notebooks.errors_in(books["run"]) == [] and len(in_notebooks.errors_in(books["careful"])) == 1
    shown = in_notebooks.shown_in(books["careful"])
    assert set.union(*shown.values()) == set(range(len(PAYLOADS)))
    assert len(in_notebooks.shown_in(books["run"])["06"]) > 20
    (tmp_path / "opened").mkdir()
    found = in_notebooks.open_all(books, tmp_path / "opened")
    careless = found.pop("careless")
    assert all(len(seen.ran) > 40 and len(seen.asked) > 20 for seen in careless.values()), careless
    for name, pages in found.items():
        for where, seen in pages.items():
            assert seen.nothing(), f"{name}, {where}: {seen!r}"
