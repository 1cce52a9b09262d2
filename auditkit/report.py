"""A run folder read once more: `summary.json` for machines, `report.html` for people.

The report knows nothing but the stage folders, so it can be written again at any time, without a model. A stage counts
when its DONE is there. What a run did not measure is absent from both files; a key marked ? may be absent.
A *rate* is {"value", "low", "high", "n"}, 0 to 1, with a 95 % interval. A *picture path* is a PNG's path relative to
the stage folder it is named in ("images/x.png", "../05_audit/images/x.png"), and stays inside the run folder.

    every stage       manifest.json  {"metrics": {}, "counts": {name: int}, "seconds": s, "versions": {package: version},
                                      "parameters": {}, "commit"?}
    02_disagreement   metrics        {"untrained"?: rate, "untrained_by_consensus"?: rate}
    04_auditor        history.jsonl  one object a step: {"step", "reward/disagreement", "reward/format"?,
                                      "reward/coverage"?, "distinct_share"?, ...}
    05_audit          metrics        {"trained"?: rate, "trained_by_consensus"?: rate, "precision"?: rate,
                                      "best_blind_question"?: rate + {"question"}}
                      scored.jsonl   one object a probe: {"key", "picture", "question", "target", "consensus",
                                      "references", "gate": "ok" | "malformed" | "no consensus" | "agrees" | "duplicate"}
    06_findings       types.json     [{"name", "size", "share" (of all findings, 0 to 1), "rate" (rate, of the probes of
                                      this type), "confusion"? (text, or [{"consensus", "target", "count"}]), "examples":
                                      [{"picture", "image"?: picture path, "question", "target", "consensus",
                                      "references": {name: answer}, "truth"?}]}]
                      planted.json?  {"planted", "found", "recall": rate, "precision": rate,
                                      "gaps": [{"name", "skill", "condition", "probes", "findings", "found"}],
                                      "false_alarms": [{"picture", "image"?, "question", "target", "consensus",
                                      "references"?, "truth"? (null: the question has no answer), "reason"?}]}
                      explain.txt?   the plain-words paragraphs, an empty line between two
    07_rectify        metrics        {"pairs", "steps", "seconds"}
    08_benchmark      metrics        {"benchmarks": {skill: {"before"?: rate, "after"?: rate, "peer"?: rate}},
                                      "found_gaps"?: {"before": rate, "after": rate}}
"""

import base64
import io
import json
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jinja2
import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from . import lines, plots, stats
from .disagreement import same_text
from .errors import AuditError

STAGES = {
    "00_setup": "check the set-up",
    "01_models": "meet the models",
    "02_disagreement": "measure disagreement",
    "03_counterfactual": "counterfactual images",
    "04_auditor": "train the auditor",
    "05_audit": "run the audit",
    "06_findings": "read the findings",
    "07_rectify": "repair the target",
    "08_benchmark": "before and after",
}
GATES = {  # in the order in which a probe meets them
    "malformed": "not a question: the target was not asked",
    "duplicate": "asked before, of the same picture",
    "no consensus": "the references did not agree",
    "agrees": "the target said what the references say",
    "ok": "findings: the target departs from the consensus",
}
THEME = {
    plots.INK: "ink",
    plots.MUTED: "muted",
    plots.GRID: "line",
    plots.PAPER: "paper",
    plots.BEFORE: "before",
    plots.AFTER: "after",
    plots.PEER: "peer",
    plots.WRONG: "wrong",
}  # colour in a figure -> CSS variable
SIDES = ("before", "after", "peer")
CARDS = 3  # pictures shown for each failure type


@dataclass(frozen=True)
class Stage:
    """One finished stage folder, read."""

    name: str
    folder: Path
    manifest: dict

    @property
    def metrics(self) -> dict:
        return self.manifest.get("metrics") or {}

    def json(self, name: str, default=None):
        path = self.folder / name
        return _json(path) if path.exists() else default

    def records(self, name: str) -> list[dict]:
        return lines.read(self.folder / name)


def write(run_folder: Path) -> Path:
    """Write `summary.json` and `report.html` into a run folder and return the report's path.

    Raises AuditError when no stage of the run is finished, or when a stage file breaks the contract above.
    """
    run_folder = Path(run_folder)
    stages = read(run_folder)
    summary = summarise(run_folder.name, stages)
    validate(summary)
    _replace(run_folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    _replace(run_folder / "report.html", render(run_folder, stages, summary))
    return run_folder / "report.html"


def read(run_folder: Path) -> dict[str, Stage]:
    """The finished stages of a run, by name, in order."""
    folders = [run_folder / name for name in STAGES if (run_folder / name / "DONE").exists()]
    if not folders:
        raise AuditError(
            f"{run_folder} has no finished stage to report on; run notebooks/00_check_the_setup.ipynb first."
        )
    return {folder.name: Stage(folder.name, folder, _json(folder / "manifest.json")) for folder in folders}


def summarise(run_name: str, stages: Mapping[str, Stage]) -> dict:
    """The machine-readable result of a run (DESIGN.md, section 4). What was not measured is absent."""
    metrics = {name: stages[name].metrics if name in stages else {} for name in STAGES}
    manifests = [stage.manifest for stage in stages.values()]
    parameters = manifests[-1].get("parameters") or {}
    untrained, audit, benchmark = metrics["02_disagreement"], metrics["05_audit"], metrics["08_benchmark"]
    types = stages["06_findings"].json("types.json") if "06_findings" in stages else None
    gates = (
        Counter(row.get("gate") for row in stages["05_audit"].records("scored.jsonl")) if "05_audit" in stages else {}
    )
    planted = stages["06_findings"].json("planted.json") if "06_findings" in stages else None
    findings = {"total": gates["ok"] if gates else sum(kind["size"] for kind in types or [])}
    if types is not None:
        findings["by_type"] = {kind["name"]: {key: kind[key] for key in ("size", "share", "rate")} for kind in types}
    summary = {
        "run_name": run_name,
        "seed": parameters.get("seed"),
        "commit": manifests[-1].get("commit"),
        "search_success": {
            "untrained": untrained.get("untrained"),
            "trained": audit.get("trained"),
            "best_blind_question": audit.get("best_blind_question"),
        },
        "search_success_by_consensus": {
            "untrained": untrained.get("untrained_by_consensus"),
            "trained": audit.get("trained_by_consensus"),
        },
        "precision": audit.get("precision"),
        "findings": findings if gates or types is not None else None,
        "probes": {gate: gates[gate] for gate in GATES if gates[gate]} if gates else None,
        "planted_gaps": planted and {key: planted[key] for key in ("planted", "found", "recall", "precision")},
        "rectification": metrics["07_rectify"],
        "benchmarks": benchmark.get("benchmarks"),
        "found_gaps": benchmark.get("found_gaps"),
        "counts": {name: stage.manifest.get("counts") for name, stage in stages.items()},
        "seconds": {name: stage.manifest.get("seconds") for name, stage in stages.items()},
        "versions": {
            name: version for manifest in manifests for name, version in (manifest.get("versions") or {}).items()
        },
    }
    return _present(summary)


def validate(summary: Mapping) -> None:
    """Raise AuditError, naming the key, where a summary breaks its contract."""

    def rate(value, key):
        if not isinstance(value, Mapping) or not {"value", "low", "high", "n"} <= set(value):
            raise AuditError(f"summary key {key} must be a rate with value, low, high and n, not {value!r}.")
        numbers = [value[part] for part in ("low", "value", "high")]
        if not all(isinstance(number, (int, float)) for number in numbers) or not 0 <= numbers[0] <= 1 >= numbers[2]:
            raise AuditError(f"summary key {key} must lie between 0 and 1, not {value!r}.")
        if (
            not numbers[0] - 1e-9 <= numbers[1] <= numbers[2] + 1e-9
            or not isinstance(value["n"], int)
            or value["n"] < 1
        ):
            raise AuditError(f"summary key {key} must have low <= value <= high and n >= 1, not {value!r}.")

    for group in ("search_success", "search_success_by_consensus", "found_gaps"):
        for name, value in summary.get(group, {}).items():
            rate(value, f"{group}.{name}")
    for name in ("recall", "precision"):
        if "planted_gaps" in summary:
            rate(summary["planted_gaps"].get(name), f"planted_gaps.{name}")
    if "precision" in summary:
        rate(summary["precision"], "precision")
    for skill, sides in summary.get("benchmarks", {}).items():
        for side, value in sides.items():
            rate(value, f"benchmarks.{skill}.{side}")
    for name, kind in summary.get("findings", {}).get("by_type", {}).items():
        rate(kind["rate"], f"findings.by_type.{name}.rate")
    for key in ("seconds", "versions"):
        if key not in summary:
            raise AuditError(f"summary key {key} is missing: no manifest.json of this run has any.")


def render(run_folder: Path, stages: Mapping[str, Stage], summary: Mapping) -> str:
    """The report as one HTML page that needs nothing from outside itself; everything a model wrote is escaped."""
    findings = stages.get("06_findings")
    types = (findings.json("types.json") if findings else None) or []
    planted = findings.json("planted.json") if findings else None
    explain = findings.folder / "explain.txt" if findings else None
    history = stages["04_auditor"].records("history.jsonl") if "04_auditor" in stages else []
    folder = findings.folder if findings else run_folder
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, interval=interval, confusion=_confusion, duration=_duration)
    return environment.get_template("report.html.j2").render(
        summary=summary,
        stages=stages,
        stage_names=STAGES,
        gates=GATES,
        parameters=next(reversed(stages.values())).manifest.get("parameters") or {},
        types=[
            {**kind, "examples": [_card(run_folder, folder, row) for row in kind.get("examples", [])[:CARDS]]}
            for kind in sorted(types, key=lambda kind: -kind["size"])
        ],
        planted=planted
        and {
            "gaps": [],
            **planted,
            "false_alarms": [_card(run_folder, folder, row) for row in planted.get("false_alarms", [])],
        },
        paragraphs=explain.read_text(encoding="utf-8").split("\n\n") if explain and explain.exists() else [],
        means=_means(summary.get("benchmarks", {})),
        falls=_falls(summary.get("benchmarks", {})),
        figures=_figures(summary, types, history),
    )


def percent(value: float | Mapping) -> str:
    """A share or a rate as text: 0.8615 -> '86.2 %'."""
    return f"{100 * (value['value'] if isinstance(value, Mapping) else value):.1f}\N{NO-BREAK SPACE}%"


def interval(rate: Mapping) -> str:
    """A rate's interval and size as text: '84.9 to 87.4 %, n = 1,000'."""
    return f"{100 * rate['low']:.1f} to {100 * rate['high']:.1f}\N{NO-BREAK SPACE}%, n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{rate['n']:,}"


def _figures(summary: Mapping, types: list[dict], history: list[dict]) -> dict[str, str]:
    """Every figure the run has something for, drawn wide and narrow."""
    success = summary.get("search_success") or {}
    judged = summary.get("search_success_by_consensus") or {}
    benchmarks = summary.get("benchmarks") or {}
    sides = [{skill: rates[side] for skill, rates in benchmarks.items() if side in rates} for side in SIDES]
    figures = dict.fromkeys(("search", "types", "history", "skills"), "")
    if success or judged:
        shown = success or judged
        figures["search"] = _drawn(
            "search",
            "Search success of the untrained and the trained auditor, with intervals",
            plots.search_success,
            shown.get("untrained"),
            shown.get("trained"),
            shown.get("best_blind_question"),
        )
    if types:
        figures["types"] = _drawn("types", "Failure rate of each failure type, with intervals", plots.types_bar, types)
    if history:
        figures["history"] = _drawn("history", "GRPO rewards over the training steps", plots.training_curve, history)
    if sides[0]:
        figures["skills"] = _drawn(
            "skills", "Accuracy on each skill before and after the repair, and of the larger peer", plots.skills, *sides
        )
    return figures


def _drawn(name: str, alt: str, plot, *arguments) -> Markup:
    wide, narrow = (_svg(plot(*arguments, width=width), f"{name}-{width:.0f}", alt) for width in (7.2, 3.6))
    return Markup(f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>')


def _svg(figure: Figure, name: str, alt: str) -> str:
    """A figure as inline SVG whose colours follow the page's theme, and whose ids are its own."""
    drawn = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    ET.register_namespace("", "http://www.w3.org/2000/svg")
    ET.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ET.fromstring(drawn.getvalue())  # parsing drops the comments, in which matplotlib repeats the texts
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):  # a style here would rule the whole page
                parent.remove(child)
        for key, value in list(parent.attrib.items()):
            if key == "id":
                parent.set(key, f"{name}-{value}")
            elif key.endswith("href"):
                parent.set(key, value.replace("#", f"#{name}-", 1))
            else:
                value = value.replace("url(#", f"url(#{name}-")
                for colour, variable in THEME.items():
                    value = value.replace(colour, f"var(--{variable})")
                parent.set(key, value)
    root.set("role", "img")
    root.set("aria-label", alt)
    return ET.tostring(root, encoding="unicode")


def _card(run_folder: Path, folder: Path, row: Mapping) -> dict:
    """An example with its picture inside; a picture that cannot be read leaves `src` empty and says so on the page."""
    path = (folder / row["image"]).resolve() if row.get("image") else None
    if path is not None and not path.is_relative_to(run_folder.resolve()):
        raise AuditError(f"{folder.name} names the picture {row['image']!r}, which lies outside the run folder.")
    src, small = "", True
    try:
        with Image.open(path) as image:
            image = image.convert("RGB")
            small = max(image.size) <= 128
            image.thumbnail((480, 480))
            data = io.BytesIO()
            image.save(data, "PNG" if small else "JPEG", quality=85)
        src = f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(data.getvalue()).decode()}"
    except (OSError, AttributeError, TypeError):
        pass
    right = bool(row.get("truth")) and same_text(str(row.get("target")), str(row["truth"]))
    return {
        "references": {},
        "truth": None,
        "reason": "",
        "picture": "",
        **row,
        "src": src,
        "small": small,
        "right": right,
    }


def _means(benchmarks: Mapping) -> dict[str, dict]:
    """Mean rate over the skills for each side, only where a side has every skill."""
    sides = {side: [rates[side] for rates in benchmarks.values() if side in rates] for side in SIDES}
    return {side: stats.mean(rates) for side, rates in sides.items() if rates and len(rates) == len(benchmarks)}


def _falls(benchmarks: Mapping) -> list[tuple[str, float]]:
    """Skills that lost more than two points to the repair, worst first: (skill, points)."""
    changes = [
        (skill, 100 * (rates["after"]["value"] - rates["before"]["value"]))
        for skill, rates in benchmarks.items()
        if {"after", "before"} <= set(rates)
    ]
    return sorted((change for change in changes if change[1] < -2), key=lambda change: change[1])


def _confusion(confusion: object) -> Markup | str:
    """'says *six* for *seven* (31 times)' for each of the commonest mix-ups."""
    if not confusion or isinstance(confusion, str):
        return confusion or ""
    return Markup(", ").join(
        Markup("says <b>{}</b> for <b>{}</b>{}").format(
            one["target"], one["consensus"], f" ({one['count']:,}×)" if one.get("count") else ""
        )
        for one in confusion[:3]
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def _present(value):
    """Without None and without what is empty because of it."""
    if not isinstance(value, Mapping):
        return value
    kept = {key: _present(inner) for key, inner in value.items()}
    return {key: inner for key, inner in kept.items() if inner is not None and inner != {}}


def _json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AuditError(f"{path} cannot be read as JSON ({error}); run that stage's notebook again.") from error


def _replace(path: Path, text: str) -> None:
    """Write beside and rename, so that nobody ever sees half a file."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
