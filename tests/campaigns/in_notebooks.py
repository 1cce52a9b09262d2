"""Payloads in everything that a finished run keeps, shown by all notebooks, opened in Chromium.

The records of a run are taken, every text in them that a model wrote is replaced by a payload, and the nine notebooks
are executed again, one after the other in one kernel. What they show is opened as exported HTML and as a trusted
notebook in JupyterLab. A notebook of careless displays is opened in the same way: in it payloads do run, or this would
prove nothing.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import nbformat
from campaigns.payloads import PAYLOADS
from smoke_run import as_if_ended_so, auditkit, make_project

from auditkit.text import visible

TEXTS = {
    "question", "answer", "target", "consensus", "truth", "text", "made", "check", "expected", "why", "wrote", "name",
    "reason", "says", "condition", "checked", "checked_before", "target_before", "consensus_before", "template",
    "found", "advice", "target_after", "before", "after", "pattern",
}  # fmt: skip
ANSWERS = {"references", "references_before", "elsewhere"}  # {model: answer}
EACH = 6  # payloads in the place of one text
KNOWN = ("benchmark", "original", "describe")  # pictures whose questions a source gives: nobody could write them
OWN = ("cdnjs.cloudflare.com", "unpkg.com", "cdn.jsdelivr.net")  # what an exported page loads whatever is in it
CARELESS = """
from IPython.display import HTML, Markdown, display
import pandas as pd
ends = ("http-equiv", "<base", "<select", "<textarea", "<style", "<template", "<noscript", "<!", "<portal", "fixed")
for text in PAYLOADS:  # but those that leave the page or swallow the rest of it
    if any(end in text for end in ends):
        continue
    display(Markdown(text))
    display(pd.DataFrame({"a": [text]}).style)
"""
CAREFUL = """
import inspect, types
import pandas as pd
from IPython.display import display
from auditkit.report import notebook, plots, tables, widgets
frame = pd.DataFrame({text: [text] for text in PAYLOADS[:20]}, index=PAYLOADS[20:21])
display(notebook.escaped_table(frame), notebook.escaped_table(frame.T, shaded=True))
display(notebook.escaped_table(pd.DataFrame({"a": PAYLOADS}, PAYLOADS)))
display(tables.column({text: text for text in PAYLOADS[-60:]}, PAYLOADS[0]))
for start in range(0, len(PAYLOADS), 60):
    texts = PAYLOADS[start : start + 60]
    rate = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10}
    display(tables.rates_table(dict.fromkeys(texts, rate)))
    display(tables.measured_table({text: {text: rate} for text in texts[:12]}))
    display(tables.models_table([{"key": text, "model": text, "parameters": 1.0, "seconds": 1.0} for text in texts]))
    display(tables.checks_table([{"key": text, "found": text, "ok": False} for text in texts]))
    display(tables.accuracy_table({texts[0]: {text: rate for text in texts}}, texts))
    skill = {"before": rate, "after": rate, "change": rate, "gained": 1, "lost": 0, "p": 1.0}
    display(tables.skills_table([{"skill": text, **skill} for text in texts]))
    display(tables.texts_table({texts[0]: texts, texts[1]: texts}))
    display(tables.samples_table({texts[0]: {texts[1]: texts[:9]}}))
    gap = {"findings": 1, "found": True}
    display(tables.planted_table({"gaps": [{"name": text, "says": text, **gap} for text in texts]}))
    rates = {"rate": rate, "rate_when": rate}
    kinds = [types.SimpleNamespace(name=text, size=1, share=0.5, **rates, examples=[]) for text in texts]
    gaps = {text: {"name": text, "share": 1} for text in texts}
    display(tables.types_table(kinds), tables.types_against_gaps(kinds, gaps))
    display(tables.false_alarms_table({"false_alarm_groups": [{"name": t, "size": 1, "reason": t} for t in texts]}))
for text in PAYLOADS:
    display(notebook.quote(text))
    print(text)
display(plots.types_bar([{"name": text, "rate": rate, "size": 1} for text in PAYLOADS]))
widgets.TypesWidget([types.SimpleNamespace(name=text, size=1, examples=[]) for text in PAYLOADS], None)
"""
FAILS = """
from auditkit.errors import AuditError, say_errors_in_one_sentence
say_errors_in_one_sentence()
raise AuditError(" ".join(PAYLOADS))
"""
LIVELY = r"""() => {
  const found = [];
  for (const root of document.querySelectorAll(".jp-OutputArea-output")) {
    for (const node of root.querySelectorAll("*")) {
      const name = node.localName, own = node.closest(".jupyter-widgets, .auditkit-desk");
      const type = node.getAttribute("type") || "";
      const address = node.getAttribute("href") || node.getAttribute("xlink:href") || "";
      const source = node.getAttribute("src") || "";
      const lively = ["iframe", "object", "embed", "form", "meta", "base", "link", "style", "svg", "math", "video",
                      "audio", "mjx-container", "portal"].includes(name)
        || (name === "script" && !type.startsWith("application/vnd.jupyter.widget")
            && !/^var element = document.getElementById\('[0-9a-f-]*'\);$/.test(node.textContent.trim())) // nbconvert's
        || (["input", "button", "select", "textarea"].includes(name) && !own)
        || [...node.attributes].some((one) => /^on/i.test(one.name) || one.name === "style" && /url/i.test(one.value))
        || (source && !/^(data:image|blob:)/.test(source))
        // JupyterLab makes a link of an address in printed text: it reads as it leads
        || (address && !(node.closest("pre") && /noopener/.test(node.rel) && address === node.textContent
            && /^(https?|data|file):/.test(address)) && !/anchor-link/.test(node.className));
      if (lively) found.push(node.outerHTML.slice(0, 200));
    }
  }
  return found;
}"""


# ---- a run that holds payloads -------------------------------------------------------------------------------------


def hostile_run(finished: Path, project: Path, turn: int = 0) -> Path:
    """A copy of a project and its smoke run, with EACH payloads in place of each text that a model or a person wrote.

    The repair is as if it had been interrupted before its first step, for it was trained on the texts that were there.

    Args:
        finished: the project with the run, `smoke`.
        turn: number of the payload with which the first text begins; equal texts become equal ones.
    """
    shutil.copytree(finished, project, ignore=shutil.ignore_patterns("notebook.ipynb", "*.log"))
    for path in (project / "outputs" / "smoke" / "07_rectify").iterdir():
        if path.name not in ("manifest.json", "answers.jsonl"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    became: dict[str, str] = {}

    def changed(value, known: bool = False):
        if isinstance(value, dict):
            known = known or str(value.get("picture", "")).startswith(KNOWN)
            return {
                key: {name: told(said) for name, said in one.items()}
                if key in ANSWERS and isinstance(one, dict)
                else told(one)
                if key in TEXTS and not (known and key == "question")
                else changed(one, known)
                for key, one in value.items()
            }
        return [changed(one, known) for one in value] if isinstance(value, list) else value

    def told(value):
        if isinstance(value, list):
            return [told(one) for one in value]
        if not isinstance(value, str) or not value:
            return changed(value)
        if value not in became:
            places = range(turn + EACH * len(became), turn + EACH * (len(became) + 1))
            became[value] = " ".join(PAYLOADS[n % len(PAYLOADS)] for n in places) + f" {len(became)}"
        return became[value]

    for file in sorted((project / "outputs" / "smoke").glob("0*/*.json*")):
        if file.name in ("manifest.json", "pictures.jsonl", "rollouts.jsonl"):  # the last two are read, not shown
            continue
        whole = file.read_text()
        if file.suffix == ".jsonl":
            rows = [json.dumps(changed(json.loads(line))) for line in whole.splitlines()]
            file.write_text("".join(row + "\n" for row in rows))
        else:
            file.write_text(json.dumps(changed(json.loads(whole))))
    for done in (project / "outputs" / "smoke").glob("0*/DONE"):
        as_if_ended_so(done.parent)
    return project


def merged(project: Path, numbers: str = "012345678") -> nbformat.NotebookNode:
    """Notebooks of a project as one, their variables taken away in between; a cell's id says whose it is."""
    cells = []
    for path in sorted((project / "notebooks").glob(f"0[{numbers}]_*.ipynb")):
        book = nbformat.read(path, as_version=4)
        for cell in book.cells:
            if "parameters" in cell.metadata.get("tags", []):
                cell.source = re.sub('"demo"', '"smoke"', cell.source).replace("params/demo.yaml", "params/smoke.yaml")
        cells += [*book.cells, nbformat.v4.new_code_cell("%reset -f", id=f"{path.name[:2]}-reset")]
    return _book(cells)


def executed(book: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs, errors among them, run in a kernel of its own in a folder."""
    from nbclient import NotebookClient

    root = Path(__file__).parents[2]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    NotebookClient(book, timeout=600, allow_errors=True, resources={"metadata": {"path": str(folder)}}).execute()
    return book


def display_book(*cells: str) -> nbformat.NotebookNode:
    """A notebook of these cells, which have PAYLOADS."""
    return _book([nbformat.v4.new_code_cell(cell) for cell in (f"PAYLOADS = {PAYLOADS!r}", *cells)])


def _book(cells: list) -> nbformat.NotebookNode:
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


def errors_in(book: nbformat.NotebookNode) -> list[str]:
    """What went wrong in a notebook, cell by cell."""
    cells = [(cell.id, out) for cell in book.cells for out in cell.get("outputs", [])]
    return [f"{id}: {out.ename}: {out.evalue[:500]}" for id, out in cells if out.output_type == "error"]


def shown_in(book: nbformat.NotebookNode) -> dict[str, set[int]]:
    """Which payloads each notebook shows as text, the notebook by its number; what it draws is not among them."""
    said: dict[str, str] = {}
    for cell in book.cells:
        for out in cell.get("outputs", []):
            html = out.get("data", {}).get("text/html", "") + json.dumps(out.get("data", {}).get("text/plain", ""))
            said[cell.id[:2]] = said.get(cell.id[:2], "") + html + out.get("text", "")
    forms = {n: (escape(visible(text)), text) for n, text in enumerate(PAYLOADS)}
    return {id: {n for n, both in forms.items() if any(one in text for one in both)} for id, text in said.items()}


# ---- Chromium ------------------------------------------------------------------------------------------------------


class Seen:
    """What a page did: payloads that ran, addresses asked elsewhere, elements that could act, dialogues."""

    def __init__(self):
        self.ran: set[int] = set()
        self.asked: list[str] = []
        self.lively: list[str] = []
        self.said: list[str] = []

    def nothing(self) -> bool:
        return not (self.ran or self.asked or self.lively or self.said)

    def __repr__(self) -> str:
        return f"ran {sorted(self.ran)}, asked {self.asked[:9]}, elements {self.lively[:9]}, dialogues {self.said[:9]}"


@contextlib.contextmanager
def chromium() -> Iterator:
    """Chromium as playwright drives it; the system's, for playwright's own is not installed.

    Raises ImportError or FileNotFoundError where one of the two is missing.
    """
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not path:
        raise FileNotFoundError("chromium is not installed: apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def visit(browser, address: str, own: str, ready: str, ready_count: int = 1, shot: str = "") -> Seen:
    """Open a page, wait until it has shown everything, and say what it did.

    Args:
        own: what addresses of the page's own origin begin with.
        ready: CSS selector of what stands there when all is shown, at least `ready_count` times.
    """
    seen, page = Seen(), browser.new_page(viewport={"width": 1366, "height": 768})
    others = lambda url: not url.startswith((own, "data:", "blob:", "about:", "chrome:"))  # noqa: E731

    def routed(route):
        if others(route.request.url):
            if not any(f"//{host}/" in route.request.url for host in OWN) or "evil" in route.request.url:
                seen.asked.append(route.request.url)
            route.abort()
        else:
            route.continue_()

    page.route("**/*", routed)
    page.on("websocket", lambda one: seen.asked.append(one.url) if "evil" in one.url else None)
    page.on("dialog", lambda one: (seen.said.append(one.message), one.dismiss()))
    try:
        page.goto(address, wait_until="domcontentloaded")
        all_there = "([css, n]) => document.querySelectorAll(css).length >= n"
        page.wait_for_function(all_there, arg=[ready, ready_count], timeout=60_000)
        if shot:
            page.screenshot(path=shot)
        page.wait_for_timeout(2500)  # MathJax, widgets and whatever was begun
        page.mouse.move(600, 400)
        seen.ran = set(page.evaluate("top.__ran || []"))
        seen.lively = page.evaluate(LIVELY)
        if page.title() == "taken":
            seen.said.append("the page's title was taken")
    except Exception as error:  # of playwright: the page went elsewhere, or never came
        seen.said.append(f"{type(error).__name__}: {str(error)[:200]}")
    finally:
        page.close()
    return seen


def visit_exported(browser, book: nbformat.NotebookNode, folder: Path, name: str) -> Seen:
    """Open a notebook as `jupyter nbconvert --to html` exports it."""
    from nbconvert import HTMLExporter

    page = folder / f"{name}.html"
    page.write_text(HTMLExporter().from_notebook_node(book)[0], encoding="utf-8", errors="backslashreplace")
    return visit(browser, page.as_uri(), "file://", ".jp-OutputArea-output")


@contextlib.contextmanager
def jupyterlab(folder: Path) -> Iterator[str]:
    """JupyterLab in a folder, on a port and with settings of its own; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = folder / ".jupyter"
    settings = {
        "notebook-extension/tracker": {"windowingMode": "none", "maxNumberOutputs": 100_000},  # show all outputs
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    }
    for name, values in settings.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    places = {"CONFIG_DIR": home / "config", "DATA_DIR": home / "data", "RUNTIME_DIR": home / "runtime"}
    own = {f"JUPYTER_{name}": str(path) for name, path in places.items()}
    own |= {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces")}
    environment = os.environ | own
    trust = [sys.executable, "-m", "jupyter", "trust", *map(str, folder.rglob("*.ipynb"))]
    subprocess.run(trust, env=environment, check=True, capture_output=True, timeout=120)
    options = [
        "--no-browser",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        "--IdentityProvider.token=",
        f"--ServerApp.root_dir={folder}",
        "--ServerApp.allow_root=True",
    ]
    with open(home / "lab.log", "w") as log:
        command = [sys.executable, "-m", "jupyterlab", *options]
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(240):
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{address}/api").read()
                    break
                assert server.poll() is None, (home / "lab.log").read_text()
                time.sleep(0.25)
            yield address
        finally:
            server.terminate()
            server.wait(30)


def visit_in_lab(browser, address: str, book: nbformat.NotebookNode, name: str) -> Seen:
    """Open a notebook in JupyterLab, where it is trusted."""
    outputs = sum(len(cell.get("outputs", [])) for cell in book.cells)
    return visit(browser, f"{address}/lab/tree/{name}.ipynb?reset", address, ".jp-OutputArea-output", outputs * 9 // 10)


def open_all(books: dict[str, nbformat.NotebookNode], folder: Path) -> dict[str, dict[str, Seen]]:
    """What each notebook did as exported HTML and trusted in JupyterLab."""
    found: dict[str, dict[str, Seen]] = {name: {} for name in books}
    for name, book in books.items():
        nbformat.write(book, folder / f"{name}.ipynb")
    with jupyterlab(folder) as address, chromium() as browser:
        for name, book in books.items():
            found[name] = {
                "exported": visit_exported(browser, book, folder, name),
                "JupyterLab": visit_in_lab(browser, address, book, name),
            }
    return found


def main(arguments: Sequence[str] = ()) -> int:
    """Everything: the records in two turns, each text another payload in each.

    Args:
        arguments: a project with a finished smoke run, to spare making one.
    """
    began, turns = time.monotonic(), 2
    with tempfile.TemporaryDirectory(prefix="auditkit-campaign-") as scratch:
        folder = Path(scratch)
        finished = Path(arguments[0]) if arguments else make_project(folder / "finished")
        if not arguments:
            done = auditkit(finished)
            assert done.returncode == 0, done.stderr
        books = {"careless": executed(display_book(CARELESS), folder)}
        books["careful"] = executed(display_book(CAREFUL, FAILS), folder)
        shown: dict[str, set[int]] = {}
        for turn in range(turns):
            project = hostile_run(finished, folder / f"turn-{turn}", turn * len(PAYLOADS) // turns)
            books[f"turn-{turn}"] = executed(merged(project), project)
            for name, its in shown_in(books[f"turn-{turn}"]).items():
                shown[name] = shown.get(name, set()) | its
            print(f"turn {turn}: errors {errors_in(books[f'turn-{turn}'])}", flush=True)
        (folder / "opened").mkdir()
        found = open_all(books, folder / "opened")
    careless = found.pop("careless")
    for where, seen in careless.items():
        print(f"careless displays, {where}: {len(seen.ran)} payloads ran, {len(seen.asked)} requests")
    for name, its in sorted(shown.items()):
        print(f"notebook {name}: {len(its)} payloads shown as text")
    every = [seen for its in found.values() for seen in its.values()]
    bad = [
        f"{name}, {where}: {seen!r}" for name, its in found.items() for where, seen in its.items() if not seen.nothing()
    ]
    print("\n".join(bad), end="\n" * bool(bad))
    print(
        f"{len(PAYLOADS)} payloads, {len(shown)} notebooks, {len(every)} pages: "
        f"executed {sum(len(s.ran) for s in every)}, "
        f"requests {sum(len(s.asked) for s in every)}, elements {sum(len(s.lively) for s in every)}, "
        f"dialogues {sum(len(s.said) for s in every)}; {time.monotonic() - began:.0f} s"
    )
    return int(bool(bad) or not careless["JupyterLab"].ran)
