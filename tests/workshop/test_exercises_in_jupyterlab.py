"""Exercises a to e in a real JupyterLab under Chromium: run as they come, then with each blank filled at the keyboard.

Exercise f is tried in test_form_in_jupyterlab.py.
"""

import pytest
from browser import needs_playwright
from exercise_books import NOTEBOOKS, SMALLER, solutions
from lab import open_lab
from smoke_run import REPOSITORY, make_project

FEW_STEPS = """
from auditkit.workshop import lessons
lessons.FAST |= {"grpo_steps": 2, "grpo_images": 2, "train_images": 4}
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    needs_playwright("the exercises were NOT tried")
    project = make_project(tmp_path_factory.mktemp("exercises") / "project")
    for path in (project / "notebooks" / "workshop").glob("[a-e]_*.ipynb"):
        text = path.read_text()
        for usual, small in SMALLER.items():
            text = text.replace(usual.replace('"', '\\"'), small.replace('"', '\\"'))
        path.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        with open_lab(project) as opened:
            yield opened


@pytest.mark.parametrize("name", [path.stem for path in NOTEBOOKS[:5]])
def test_blanks_left_are_told_and_blanks_filled_pass(lab, name):
    book = lab.open(f"notebooks/workshop/{name}.ipynb")
    lab.tell(FEW_STEPS)
    lab.tell("%reset -f")
    checks = [cell.id for cell in book.cells if "check" in cell.metadata.get("tags", [])]
    assert checks and len(lab.unfold()) >= 3 + 2 * len(solutions(book))

    lab.run_all()
    met = [id for id in checks if lab.has_run(id)]
    assert met, "Run All ends before the first check"
    for id in met:
        assert "✗" in lab.shown(id) and "left in my_" in lab.shown(id).replace("`", "")
    (told,) = lab.errors()  # in one sentence, and the cells below it do not run
    assert "The check above is to pass first" in told or "fill in the blank above" in told
    assert "Traceback" not in told and not lab.has_run(lab.ids[-1])

    for id, solution in solutions(book).items():
        lab.type(id, solution)
    lab.run_all()
    assert lab.errors() == []
    for id in checks:
        assert "✓" in lab.shown(id) and "✗" not in lab.shown(id)
    assert all(map(lab.has_run, lab.ids)) and lab.pictures_cut_off() == []
