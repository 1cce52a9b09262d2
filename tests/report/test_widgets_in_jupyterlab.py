"""The widgets with a live kernel in a real JupyterLab under Chromium: keys, Enter, another picture, reloaded pages."""

import nbformat
import pytest
from browser import needs_playwright
from campaigns import in_notebooks
from lab import open_lab

from auditkit.runs import jsonl

SET_UP = """
from types import SimpleNamespace
from PIL import Image
from auditkit.counterfactual.make import load_pipeline
from auditkit.data.load import load_images
from auditkit.models import load, roles
from auditkit.report import review_widget, widgets
boards = load_images("miniature")
pictures = boards.pictures("baseline", 3, 0)
said = {"target": "blue", "consensus": "red", "references": {"a": "red", "b": "red"}, "outcome": "finding"}
scored = [{"key": one.key, "picture": one.key, "question": "which colour?", **said} for one in pictures]
answering = roles.deferred(load.load_model, "miniature:target", "miniature:gemma3", "miniature:llava")
print("set up")
"""
DESK = "review_widget.ReviewWidget(scored, boards, '.', 0)"
EDIT = """
widgets.EditWidget(load_pipeline("miniature:editor", "cpu"), pictures, "remove what is at a1", 0, 0.5, 0.9,
                   ask=roles.everyone(answering, 8), question=boards.question)
"""
SAID = "document.querySelector('.widget-label.mathjax_ignore').textContent"


@pytest.fixture
def lab(tmp_path, monkeypatch, request):
    """JupyterLab with these three cells run."""
    needs_playwright("widgets were NOT tried")
    monkeypatch.setenv("PYTHONPATH", str(request.config.rootpath))
    nbformat.write(in_notebooks._book([nbformat.v4.new_code_cell(cell) for cell in (SET_UP, DESK, EDIT)]),
                   tmp_path / "tried.ipynb")  # fmt: skip
    with open_lab(tmp_path) as lab:
        lab.open("tried.ipynb")
        lab.run_all()
        yield lab


def test_the_desk_is_blind_hears_keys_and_survives_reloads(lab, tmp_path):
    page = lab.page
    desk = page.locator(".auditkit-desk")
    desk.wait_for(timeout=30_000)
    assert "target" not in desk.locator(".answers").inner_text() and desk.locator("button.option").count() == 2
    desk.click(position={"x": 4, "y": 4})
    page.keyboard.press("1")
    page.wait_for_function("document.querySelector('.auditkit-desk .answers').textContent.includes('target')")
    (row,) = jsonl.read(tmp_path / "reviews.jsonl")
    assert row["decision"] in ("accept", "reject")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('.auditkit-desk .count').textContent.startsWith('card 2')")
    lab.save()
    lab.run_all()  # once more, and not saved: what the file shows is the desk of before
    for _ in range(3):
        page.reload(wait_until="domcontentloaded")
        page.locator(".auditkit-desk .count").wait_for(timeout=60_000)
        page.locator(".jp-OutputArea-output .widget-text input").first.wait_for(timeout=60_000)
        assert "model not found" not in page.content().lower()
        assert "card 2 of 3 · 1 decided" in desk.locator(".count").inner_text()


def test_an_edit_of_one_s_own_is_put_to_target_and_references(lab):
    page = lab.page
    fields = page.locator(".jp-OutputArea-output .widget-text input")
    image = page.locator(".jp-OutputArea-output img.widget-image")
    before = image.get_attribute("src")
    fields.nth(0).fill("remove what is at b2")
    fields.nth(0).press("Enter")
    turned = (
        "/turned|do not agree|Nobody says/.test(document.querySelector('.widget-label.mathjax_ignore').textContent)"
    )
    page.wait_for_function(turned, timeout=60_000)
    assert image.get_attribute("src") != before
    fields.nth(0).fill("")
    fields.nth(0).press("Enter")
    page.wait_for_function(f"{SAID}.includes('command first')")
    board = image.get_attribute("src")
    page.locator(".jp-OutputArea-output .widget-slider .noUi-handle").first.press("ArrowRight")
    page.wait_for_function(f"{SAID}.includes('Press Enter in')")
    assert image.get_attribute("src") != board, "the other board is shown"
