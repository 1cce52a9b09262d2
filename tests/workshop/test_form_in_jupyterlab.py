"""The plant-and-hunt notebook in a real JupyterLab under Chromium: planted by mouse and keys, audited, handed in."""

import re
import shutil

import nbformat
import pytest
from browser import needs_playwright
from lab import SOON, open_lab
from smoke_run import make_project

from auditkit.workshop import game

SAID = "document.querySelectorAll('.auditkit-said textarea')[{}].value"


@pytest.fixture
def page(tmp_path, monkeypatch, request):
    """The notebook in JupyterLab; two steps of planting, one gap, an audit of 16 boards."""
    needs_playwright("the form of plant and hunt was NOT tried")
    monkeypatch.setenv("PYTHONPATH", str(request.config.rootpath))
    project = make_project(tmp_path / "project")
    book = nbformat.read(project / "notebooks/workshop/f_plant_and_hunt.ipynb", as_version=4)
    for cell in book.cells:
        cell.source = cell.source.replace("PlantForm(outputs)", "PlantForm(outputs, 2)").replace(
            "1000, hunt", "16, hunt"
        )
    nbformat.write(book, project / "tried.ipynb")
    with open_lab(project) as lab:
        lab.open("tried.ipynb")
        yield lab.page, project


def run_cells(page, first: int, last: int) -> None:
    """Run code cells by Shift+Enter."""
    for number in range(first, last + 1):
        page.locator(f".jp-CodeCell >> nth={number} >> .cm-content").click()
        page.keyboard.press("Shift+Enter")


def form(page, button: str):
    """The form with this button."""
    return page.locator(f'.jp-OutputArea-output:has(button:text-is("{button}"))')


def test_a_gap_is_planted_and_hunted(page):
    page, project = page
    run_cells(page, 0, 1)
    plant = page.get_by_role("button", name="plant", exact=True)
    plant.wait_for(timeout=SOON)
    plant.click()
    page.wait_for_function(SAID.format(0) + ".includes('name first')")
    page.locator(".widget-text input").first.fill("Red")
    page.keyboard.press("Tab")
    for row in range(1, 4):  # one gap is enough: the others are nothing
        form(page, "plant").locator("select").nth(4 * row).select_option("(nothing)")
    plant.click()
    page.wait_for_function(SAID.format(0) + ".startsWith('✓ planted')", timeout=SOON)
    said = page.evaluate(SAID.format(0))
    assert re.search(r"colour: red is called green: \d+%", said) and "outputs/workshop/red" in said
    assert [gap.name for gap in game.unseal(project / "outputs/workshop/red")["gaps"]] == [
        "colour: red is called green"
    ]
    page.locator(".jp-CodeCell >> nth=2 >> .cm-content").click()
    page.keyboard.press("Control+a")
    page.keyboard.insert_text('their_folder = "red"\nour_group = "Blue"')
    run_cells(page, 2, 5)
    hand_in = page.get_by_role("button", name="hand in")
    hand_in.wait_for(timeout=SOON)
    form(page, "hand in").locator("select").first.select_option("colour")
    hand_in.click()
    page.wait_for_function(SAID.format(1) + ".startsWith('✓ 1 of 1 gap found')", timeout=SOON)
    assert "model not found" not in page.content().lower()
    shutil.rmtree(project / "outputs")
