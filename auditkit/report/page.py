"""The report as one HTML page that stands alone: style, figures and pictures inside, no script, no address to fetch.

Figures come from report/plots.py as inline SVG whose colours are the page's CSS variables, so they follow light and
dark; each is drawn twice, for wide and narrow screens. Whatever a model wrote goes through the template's autoescape or
through an XML writer, never in as it is.
"""

import base64
import io
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from auditkit import stats
from auditkit.consensus.normalise import is_one_of
from auditkit.errors import AuditError
from auditkit.report import plots
from auditkit.runs import costs, inventory
from auditkit.runs.probe import OUTCOMES, SUMMARY_KEYS
from auditkit.text import SPACE, counted, duration, for_a_person, interval, percent, plain_slug, slug

THEME = {  # colour in a figure -> CSS variable of the page
    plots.INK: "ink",
    plots.MUTED: "muted",
    plots.GRID: "line",
    plots.PAPER: "paper",
    plots.BEFORE: "before",
    plots.AFTER: "after",
    plots.PEER: "peer",
    plots.WRONG: "wrong",
}
SIDES = ("before", "after", "peer")
# pictures a failure type, false alarms, irrelevant edits, and failure types in the figure; the rest is told
CARDS, ALARMS, EDITS, BARS = 3, 6, 6, 12


def render_report(
    summary: Mapping,
    stages: Mapping[str, str],
    unfinished: Sequence[str],
    parameters: Mapping,
    types: Sequence[Mapping],
    planted: Mapping,
    edits: Sequence[Mapping],
    explained: str,
    history: Sequence[Mapping],
    folders: Sequence[Path],
) -> str:
    """The page's HTML.

    Args:
        summary: as in summary.json.
        stages, unfinished: finished stages (folder name -> in words) and, in words, those that are not.
        parameters: of the latest stage.
        types, planted, edits, explained, history: what the stage files of these names hold (see report/summary.py).
        folders: stage folders to look for pictures in; a record's own `image` is relative to the first.

    Raises AuditError where a record names a picture outside the run folder.
    """
    benchmarks = summary.get("benchmarks", {})
    largest = sorted(types, key=lambda kind: -kind["size"])
    alarms = planted.get("false_alarms", [])
    html = _template("report.html.j2").render(
        summary=summary,
        hosted=costs.in_words(summary.get("hosted", {})),
        stages=stages,
        unfinished=unfinished,
        outcomes=OUTCOMES,
        key=lambda outcome: SUMMARY_KEYS.get(outcome, outcome),
        parameters=parameters,
        types=[
            {**kind, "examples": [card(row, folders) for row in kind.get("examples", [])[:CARDS]]} for kind in largest
        ],
        bars=BARS,
        planted=planted,
        alarms=[card(row, folders) for row in alarms[:ALARMS]],
        alarm_count=len(alarms),
        edits=[pair(row, folders) for row in edits[:EDITS]],
        edit_count=len(edits),
        paragraphs=[paragraph.strip() for paragraph in explained.split("\n\n") if paragraph.strip()],
        means=means(benchmarks),
        falls=falls(benchmarks),
        figures=figures(summary, largest[:BARS], history),
    )
    return html.strip() + "\n"


def render_study(study: Any, table: Mapping, measures: Mapping, curves: Mapping | None = None) -> str:
    """The page of a study (compare_arms): a table of arms and measures, and a figure for each share among them.

    Args:
        curves: what the arms had found after so many questions, as compare_curves gives it.
    """
    measures = {name: one for name, one in measures.items() if any(name in found for found in table.values())}
    shares = [name for name, measure in measures.items() if measure.unit]
    curve = _gap_curves(curves) if curves else []
    if study.curve:
        lines: dict[str, list] = {}
        for arm, found in table.items():
            x, y = study.arms[arm].get(study.curve["x"]), found.get(study.curve["y"])
            if "," in arm and x is not None and y:
                lines.setdefault(arm.split(",")[0], []).append((x, y))
        lines = {name: points for name, points in lines.items() if len(points) > 1}
        y = measures[study.curve["y"]]
        curve += [_drawn("curve", y.label, plots.curve, lines, study.curve["x"], y.label, y.unit)]
    html = _template("study.html.j2").render(
        study=study,
        table=table,
        measures=measures,
        first=next(iter(table)),
        curves=curves or {},
        figures=curve
        + [
            _drawn(
                name,
                one.label,
                plots.arms,
                {arm: found[name] for arm, found in table.items() if name in found},
                one.label,
                one.unit,
            )
            for name in shares
            for one in [measures[name]]
        ],
    )
    return html.strip() + "\n"


def _gap_curves(curves: Mapping) -> list[Markup]:
    """For each way of counting questions, planted gaps found against questions, a line an arm."""
    figures = []
    for by in dict.fromkeys(name for ways in curves.values() for name in ways):
        lines = {
            arm: [(budget, row["gaps"]) for budget, row in ways[by].items() if "gaps" in row]
            for arm, ways in curves.items()
        }
        lines = {arm: points for arm, points in lines.items() if points}
        label = f"planted gaps found; questions put to the target: {by}"
        if lines:
            name = f"gaps-{by.replace(' ', '-')}"
            figures.append(_drawn(name, label, plots.curve, lines, "questions", label, ""))
    return figures


def render_rounds(summary: Mapping) -> str:
    """The page of several rounds (summarise_rounds): a table of the rounds, and a figure of how they went."""
    rows = summary["rounds"]
    drawn = any(row.get("skills") or row.get("search_success") for row in rows)
    figure = _drawn("rounds", "Search success and skills, round by round", plots.rounds, rows) if drawn else ""
    return _template("rounds.html.j2").render(summary=summary, rows=rows, figure=figure).strip() + "\n"


def _template(name: str) -> jinja2.Template:
    folder = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    pages = jinja2.Environment(
        loader=folder, autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_without_commands
    )
    pages.filters |= {"percent": percent, "interval": interval, "confusion": confusion, "duration": duration}
    pages.filters |= {"counted": counted}
    pages.filters |= {"points": lambda share: f"{100 * share:+.1f}"}
    pages.filters |= {"shown": measure_text, "change": change_text}
    return pages.get_template(name)


def _without_commands(value: Any) -> Any:
    """A value on its way into a page: what hides or turns text round is shown as an escape."""
    return type(value)(for_a_person(str(value))) if isinstance(value, str) else value


def measure_text(value: float, measure: Any) -> str:
    """A study's figure as text: a share in per cent, a difference in points, a count as it is."""
    text = f"{100 * value:.1f}" if measure.unit else f"{value:,.1f}".removesuffix(".0")
    return text.replace("-", "\N{MINUS SIGN}") + (f"{SPACE}%" if measure.unit == "%" else "")


def change_text(value: float, measure: Any) -> str:
    """How far two such figures are apart, with its sign; in points where they are no counts."""
    text = f"{100 * value:+.1f}" if measure.unit else f"{value:+,.1f}".removesuffix(".0")
    return text.replace("-", "\N{MINUS SIGN}")


def confusion(mixed: Sequence[Mapping]) -> Markup:
    """'says six for seven (31×), …' for the commonest mix-ups, the answers in bold."""
    words = Markup("<b>{}</b> for <b>{}</b> ({:,}×)")
    named = [words.format(one["target"] or "nothing", one["consensus"], one["count"]) for one in mixed[:3]]
    return Markup("says ") + Markup(", ").join(named)


def card(row: Mapping, folders: Sequence[Path]) -> dict:
    """A record made ready for its card; a picture that cannot be read leaves `src` empty, and the page says so."""
    run_folder = folders[0].parent.resolve()
    if row.get("image"):
        paths = [(folders[0] / row["image"]).resolve()]
        if not paths[0].is_relative_to(run_folder):
            raise AuditError(f"{folders[0].name} names the picture {row['image']!r}, which is outside the run folder.")
    else:
        paths = kept_pictures(row["picture"], folders)
    src, small = next((picture for path in paths if (picture := _picture(path))), ("", True))
    return {"references": {}, "truth": None, "reason": "", **row, "src": src, "small": small, "right": _is_right(row)}


def pair(row: Mapping, folders: Sequence[Path]) -> dict:
    """An edit made ready for its card: both pictures, the changed region framed, and all answers before and after."""
    before, after = (kept_pictures(row[name], folders) for name in ("base", "picture"))
    src = next((picture for path in before if (picture := _picture(path))), ("", True))
    then = next((picture for path in after if (picture := _picture(path, row.get("box")))), ("", True))
    return {"truth": None, **row, "src_before": src[0], "src": then[0], "small": src[1], "right": _is_right(row)}


def _is_right(row: Mapping) -> bool:
    """Whether the target is right by the truth, where that is known."""
    return is_one_of(str(row["target"]), row.get("accepted") or filter(None, [row.get("truth")]))


def kept_pictures(key: str, folders: Sequence[Path]) -> list[Path]:
    """Where the picture of a key may be; in a folder made before names were one to one, also under its old name."""
    paths = [folder / "images" / f"{slug(key)}.png" for folder in folders]
    before = [folder for folder in folders if inventory.is_before_lists(folder)]
    return paths + [folder / "images" / f"{plain_slug(key)}.png" for folder in before]


def means(benchmarks: Mapping) -> dict[str, dict]:
    """Mean rate over the skills for each side, only where a side has every skill."""
    sides = {side: [rates[side] for rates in benchmarks.values() if side in rates] for side in SIDES}
    return {side: stats.mean(rates) for side, rates in sides.items() if rates and len(rates) == len(benchmarks)}


def falls(benchmarks: Mapping) -> list[tuple[str, float]]:
    """Skills that lost more than two points to the repair, worst first: (skill, points)."""
    both = {skill: rates for skill, rates in benchmarks.items() if {"before", "after"} <= set(rates)}
    points = {skill: 100 * (rates["after"]["value"] - rates["before"]["value"]) for skill, rates in both.items()}
    return sorted(((skill, change) for skill, change in points.items() if change < -2 - 1e-9), key=lambda pair: pair[1])


def figures(summary: Mapping, types: Sequence[Mapping], history: Sequence[Mapping]) -> dict[str, str]:
    """Every figure the run has something for; "" for the others."""
    success = summary.get("search_success") or summary.get("search_success_by_consensus") or {}
    benchmarks = summary.get("benchmarks", {})
    before, after, peer = ({s: rates[side] for s, rates in benchmarks.items() if side in rates} for side in SIDES)
    shown = [success.get(name) for name in ("untrained", "trained", "best_blind_question")]
    compared = [kind for kind in types if "peer" in kind]
    alone = [{"name": kind["name"], **kind["untrained"]} for kind in types if "untrained" in kind]
    words = alternative_texts(summary, types, history)
    drawn = {
        "search": success and _drawn("search", words["search"], plots.search_success, *shown),
        "types": types and _drawn("types", words["types"], plots.types_bar, types),
        "versus": compared and _drawn("versus", words["versus"], plots.versus, compared),
        "versus_untrained": alone
        and _drawn("versus_untrained", "The same over the untrained auditor's questions", plots.versus, alone),
        "history": history and _drawn("history", words["history"], plots.training_curve, history),
        "skills": before and _drawn("skills", words["skills"], plots.skills, before, after, peer),
    }
    return {name: figure or "" for name, figure in drawn.items()}


def alternative_texts(summary: Mapping, types: Sequence[Mapping], history: Sequence[Mapping]) -> dict[str, str]:
    """What is to be seen on each figure, for whoever cannot see it: its name and its main numbers."""
    success = summary.get("search_success") or summary.get("search_success_by_consensus") or {}
    rates = [f"{name.replace('_', ' ')} {percent(rate)}" for name, rate in success.items()]
    worst = [f"{kind['name']} {percent(kind.get('rate_when') or kind['rate'])}" for kind in types if kind["rate"]][:3]
    both = [kind for kind in types if "target" in kind and "peer" in kind]
    more = sum(kind["peer"]["value"] < kind["target"]["value"] for kind in both)
    means_of = [f"{side} {percent(rate)}" for side, rate in means(summary.get("benchmarks", {})).items()]
    ends = [row["reward/disagreement"] for row in (*history[:1], *history[-1:]) if "reward/disagreement" in row]
    return {
        "search": f"Search success: {', '.join(rates)}",
        "types": f"Failure rate of each failure type, the largest first: {'; '.join(worst)}",
        "versus": f"Target against peer: of {counted(len(both), 'type')} the target fails more often on {more}",
        "history": "Rewards step by step"
        + (f": success from {percent(ends[0])} to {percent(ends[-1])}" if ends else ""),
        "skills": f"Accuracy on each skill; in the mean {', '.join(means_of)}",
    }


def _drawn(name: str, alt: str, plot, *arguments) -> Markup:
    wide, narrow = (_svg(plot(*arguments, width=width), f"{name}-{width:.0f}", alt) for width in (7.2, 3.6))
    return Markup(f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>')


def _svg(figure: Figure, name: str, alt: str) -> str:
    """A figure as inline SVG in the page's colours, with ids of its own."""
    written = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    ET.register_namespace("", "http://www.w3.org/2000/svg")
    ET.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ET.fromstring(written.getvalue())
    for element in list(root.iter()):
        for child in list(element):
            if child.tag.endswith(("}metadata", "}style")):  # a style in here would rule the whole page
                element.remove(child)
        for key, value in element.attrib.items():
            if key == "id":
                value = f"{name}-{value}"
            elif key.endswith("href"):
                value = value.replace("#", f"#{name}-", 1)
            else:
                value = value.replace("url(#", f"url(#{name}-")
                for colour, variable in THEME.items():
                    value = value.replace(colour, f"var(--{variable})")
            element.set(key, value)
    root.set("role", "img")
    root.set("aria-label", alt)
    return ET.tostring(root, encoding="unicode")


def _picture(path: Path, box: Sequence[int] | None = None) -> tuple[str, bool] | None:
    """A picture's file as `encoded` gives it; None where it cannot be read."""
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, ValueError):
        return None
    return encoded(image, box)


def encoded(image: Image.Image, box: Sequence[int] | None = None) -> tuple[str, bool]:
    """A picture as (data address, is it tiny); large ones are made smaller, so that the page stays light to send.

    Around `box` a frame is drawn; a tiny picture is enlarged first, so that the frame hides nothing.
    """
    small = max(image.size) <= 128
    if box:
        k = 4 if small else 1
        image = image.resize((image.width * k, image.height * k), Image.Resampling.NEAREST)
        x0, y0, x1, y1 = (k * edge for edge in box)
        width = max(2, max(image.size) // 120)
        ImageDraw.Draw(image).rectangle((x0, y0, x1 - 1, y1 - 1), outline=plots.WRONG, width=width)
    image = image.copy()
    image.thumbnail((480, 480))
    data = io.BytesIO()
    image.save(data, "PNG" if small else "JPEG", quality=85)
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}", small
