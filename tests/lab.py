"""Notebooks in a real JupyterLab under Chromium, driven as a person would: open, type into cells, run them, look.

All notebooks of a test run in one kernel, whose variables are taken away in between: importing torch anew for each of
them would take longer than the notebooks themselves.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
from campaigns import in_notebooks
from jupyter_client import BlockingKernelClient

SOON = 240_000  # ms: importing torch beside other tests takes its time
START = """async ([path, kernel]) => {
  const token = document.cookie.match(/_xsrf=([^;]*)/)[1];
  const ask = (address, body) => fetch(address, {method: "POST", body: JSON.stringify(body),
    headers: {"X-XSRFToken": token, "Content-Type": "application/json"}}).then(reply => reply.json());
  kernel = kernel || (await ask("/api/kernels", {name: "python3", path})).id;
  await ask("/api/sessions", {path, name: path, type: "notebook", kernel: {id: kernel}});
  return kernel;
}"""
SHOWN = ".jp-OutputArea-output"
BEGUN = r"""[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(one => one.textContent)
  .filter(text => /\d|\*/.test(text)).join()"""  # the prompts of cells that run or have run
RUNNING = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].some(one => one.textContent.includes('*'))"
OUTSIDE = """width => [...document.querySelectorAll('.jp-OutputArea-output img')]
  .filter(one => !one.naturalWidth || one.getBoundingClientRect().right > width)
  .map(one => one.outerHTML.slice(0, 80))"""


class Lab:
    """A JupyterLab in a folder, one page of it on a screen of 1366 x 768, and one kernel."""

    def __init__(self, folder: Path, address: str, page):
        self.folder, self.address, self.page = folder, address, page
        self.page.on("dialog", lambda one: one.accept())  # that something is not saved
        self.page.goto(f"{address}/lab?reset", wait_until="domcontentloaded")
        self.page.wait_for_selector(".jp-Launcher", timeout=SOON)
        self.kernel = ""

    def open(self, path: str) -> nbformat.NotebookNode:
        """Show a notebook of the folder, none of whose cells has run, and no variable is set; returns it as it is."""
        if self.kernel:
            self.tell("%reset -f")
        self.kernel = self.page.evaluate(START, [path, self.kernel])
        book = nbformat.read(self.folder / path, as_version=4)
        self.ids = [cell.id for cell in book.cells if cell.cell_type == "code"]
        self.page.goto(f"{self.address}/lab/tree/{path}?reset", wait_until="domcontentloaded")
        self.page.wait_for_selector(f".jp-CodeCell >> nth={len(self.ids) - 1}", timeout=SOON)
        self.page.locator('.jp-Toolbar-kernelName:has-text("Python 3")').first.wait_for(timeout=SOON)
        return book

    def tell(self, source: str) -> None:
        """Run something in the kernel that no cell of the notebook says."""
        client = BlockingKernelClient(
            connection_file=str(self.folder / ".jupyter" / "runtime" / f"kernel-{self.kernel}.json")
        )
        client.load_connection_file()
        client.start_channels()
        try:
            reply = client.execute_interactive(source, timeout=SOON / 1000, output_hook=lambda message: None)
            assert reply["content"]["status"] == "ok", reply["content"]
        finally:
            client.stop_channels()

    def cell(self, id: str):
        """A code cell, as it stands in the page."""
        return self.page.locator(f".jp-CodeCell >> nth={self.ids.index(id)}")

    def type(self, id: str, source: str) -> None:
        """Put other code into a cell, by the keyboard."""
        self.cell(id).locator(".cm-content").click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.insert_text(source)

    def run_all(self) -> None:
        """Run all cells, and wait until the last one that runs is done."""
        before = self.page.evaluate(BEGUN)  # an error may end it before anybody has seen that it runs
        self.page.click('.lm-MenuBar-item:has-text("Run")')
        self.page.click('.lm-Menu-item:has-text("Run All Cells") >> nth=0')
        self.page.wait_for_function(f"before => {BEGUN} !== before", arg=before, timeout=SOON)
        self.page.wait_for_function(f"!{RUNNING}", timeout=SOON)
        self.page.wait_for_timeout(500)  # what is shown last

    def save(self) -> None:
        self.page.click('.lm-MenuBar-item:has-text("File")')
        self.page.click('.lm-Menu-item:has-text("Save Notebook") >> nth=0')
        self.page.wait_for_timeout(1500)

    def reload(self) -> None:
        """Load the page again, as a person does by F5, and wait until all outputs are back."""
        shown = self.page.locator(SHOWN).count()
        self.page.reload(wait_until="domcontentloaded")
        self.page.wait_for_function(f"document.querySelectorAll('{SHOWN}').length >= {shown}", timeout=SOON)
        self.page.wait_for_timeout(1500)  # widgets

    def shown(self, id: str) -> str:
        """What a person reads below a cell."""
        return "\n".join(self.cell(id).locator(SHOWN).all_inner_texts())

    def has_run(self, id: str) -> bool:
        return bool(re.search(r"\d", self.cell(id).locator(".jp-InputPrompt").inner_text()))

    def errors(self) -> list[str]:
        """What stands in red boxes: errors, and what is printed to stderr."""
        return self.page.locator(f"{SHOWN}[data-mime-type='application/vnd.jupyter.stderr']").all_inner_texts()

    def pictures_cut_off(self) -> list[str]:
        """Pictures that are broken, or that leave the screen on the right."""
        return self.page.evaluate(OUTSIDE, 1366)

    def unfold(self) -> list[str]:
        """Click every folded answer, hint and solution that is on the page; returns what then is to be read of each."""
        folded = self.page.locator(".jp-MarkdownOutput details")
        said = []
        for number in range(folded.count()):
            one = folded.nth(number)
            one.locator("summary").click()
            assert one.get_attribute("open") is not None
            said.append(one.inner_text())
        return said


@contextlib.contextmanager
def open_lab(folder: Path) -> Iterator[Lab]:
    """JupyterLab in a project's folder, in Chromium."""
    with in_notebooks.jupyterlab(folder) as address, in_notebooks.chromium() as browser:
        yield Lab(folder, address, browser.new_page(viewport={"width": 1366, "height": 768}))
