"""All nine notebooks, one after another, in a real JupyterLab under Chromium, by mouse and keys, on the smoke run."""

import json
import re

import pytest
from browser import needs_playwright
from lab import open_lab
from smoke_run import REPOSITORY, make_project

from auditkit.runs import jsonl
from auditkit.runs.folder import STAGES

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("[0-9]*.ipynb"))
UGLY = re.compile(r"\bnan\b|\bNaN\b|Traceback|FutureWarning|model not found|\{'|\\n")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    needs_playwright("the notebooks were NOT run")
    project = make_project(tmp_path_factory.mktemp("notebooks") / "project")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        with open_lab(project) as opened:
            yield opened


def test_all_are_run_and_read(lab):
    """The run is chosen once, in notebook 00; the others are opened, run and read as they are."""
    for path in NOTEBOOKS:
        number = path.name[:2]
        book = lab.open(f"notebooks/{path.name}")
        where = lab.page.get_by_alt_text(f"Where we are: notebook {number} of nine")
        assert where.is_visible() and where.bounding_box()["width"] > 300
        if number == "00":
            (cell,) = [cell for cell in book.cells if cell.id == "00-parameters"]
            lab.type(cell.id, cell.source.replace('"demo"', '"smoke"').replace("params/demo", "params/smoke"))
        lab.run_all()
        assert lab.errors() == [] and all(map(lab.has_run, lab.ids)), number
        said = {id: lab.shown(id) for id in lab.ids}
        listings = {cell.id for cell in book.cells if "source_of(" in cell.source}
        assert not [id for id, text in said.items() if UGLY.search(text) and id not in listings], number
        setup = "\n".join(said.values())
        assert "smoke: params/smoke.yaml" in setup and (number == "00" or "notebook 00" in setup)
        assert lab.pictures_cut_off() == [] and lab.page.locator(".jp-OutputArea-output img").count()
        answers = lab.unfold()
        assert len(answers) == 3 and all(len(text) > 60 for text in answers)
        moved = MOVED.get(number)
        if moved:
            moved(lab)
            lab.save()
            lab.reload()
            assert "model not found" not in lab.page.content().lower()
    done = [stage for stage in STAGES if (lab.folder / "outputs" / "smoke" / stage / "DONE").is_file()]
    assert done == list(STAGES) and "report.html" in said["08-report"]
    summary = json.loads((lab.folder / "outputs" / "smoke" / "summary.json").read_text())
    assert summary["findings"]["total"] > 0 and summary["benchmarks"]


def edit_a_picture(lab) -> None:
    """Notebook 03: every field and slider of the widget is used, and the picture and what is said follow."""
    cell = lab.cell("03-try")
    picture, said = cell.locator("img.widget-image"), cell.locator(".widget-label.mathjax_ignore")
    sliders, fields = cell.locator(".noUi-handle"), cell.locator(".widget-text input")
    assert (sliders.count(), fields.count()) == (4, 2)
    for number in range(4):
        sliders.nth(number).focus()
        lab.page.keyboard.press("ArrowRight")
    lab.page.wait_for_timeout(500)
    other = picture.get_attribute("src")
    fields.nth(0).fill("remove what is at b2")
    fields.nth(1).fill("how many objects are there?")
    cell.get_by_role("button", name="edit").click()
    turned = "one => /turned|do not agree|Nobody says|stay/.test(one.textContent)"
    lab.page.wait_for_function(turned, arg=said.element_handle(), timeout=60_000)
    assert picture.get_attribute("src") != other


def decide_and_browse(lab) -> None:
    """Notebook 06: a card is decided at the desk by a key, another type is chosen in the menu."""
    desk = lab.cell("06-review").locator(".auditkit-desk")
    desk.click(position={"x": 4, "y": 4})
    lab.page.keyboard.press("1")
    desk.locator('.answers:has-text("target")').wait_for(timeout=30_000)
    assert len(jsonl.read(lab.folder / "outputs/smoke/06_findings/reviews.jsonl")) == 1
    menu = lab.cell("06-browse").locator("select")
    picture = lab.cell("06-browse").locator("img").first
    before = picture.get_attribute("src")
    menu.select_option(index=1)
    lab.page.wait_for_function("([one, before]) => one.src !== before", arg=[picture.element_handle(), before])


MOVED = {"03": edit_a_picture, "06": decide_and_browse}
