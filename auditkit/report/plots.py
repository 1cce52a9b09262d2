"""The figures, for the notebooks and for the report: each function takes plain records and returns a Figure.

Rules they share
1) one colour has one meaning everywhere (Okabe and Ito's palette, told apart also by the colour-blind and on both light
   and dark), and no meaning rests on colour alone: markers, words and positions say it again;
2) a rate is never drawn without its interval;
3) tiny images are enlarged with hard pixels, so that what the model saw is what the reader sees;
4) text from a model is drawn as text: a stray "$" does not become mathematics.

A `Plot` is a matplotlib Figure that shows itself as the last line of a notebook cell and needs no pyplot state.
`width` is in inches; the report draws every figure twice, wide and narrow, for desks and telephones.
"""

import io
import textwrap
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter
from PIL import Image

from auditkit.consensus.normalise import is_one_of, same_text
from auditkit.text import counted

INK, MUTED, GRID, PAPER = "#1f2933", "#66707c", "#dde2e8", "#fffffe"
BEFORE, AFTER, PEER, WRONG = "#858c96", "#0072b2", "#009e73", "#d55e00"
LINES = ((AFTER, "o"), (WRONG, "s"), (PEER, "^"), (BEFORE, "D"), (INK, "v"))  # of a figure with one line a group

# history.jsonl key -> (panel, what it is called, colour); keys a run did not write are not drawn
CURVES = {
    "reward/disagreement": (0, "target departs from the consensus", AFTER),
    "reward/format": (0, "well-formed question", BEFORE),
    "distinct": (1, "distinct texts among those of a step", PEER),
    "granted": (1, "pictures that came out as wished", AFTER),
    "flat_groups": (1, "groups that earn all the same", WRONG),
    "commonest": (1, "share of the most frequent text", BEFORE),
    "kinds": (2, "kinds of text that find a failure", WRONG),
    "kinds_lately": (2, "the same, among the last 200 finds", PEER),
    "group_spread": (3, "spread of reward within a group", AFTER),
    "entropy": (3, "entropy of a token, in nats", BEFORE),
}


LIVE = (8.6, 4.9)  # inches of a figure that is watched: 946 x 539 pixels, beside JupyterLab's own on 1366 x 768
LEAST = {2: 10, 3: 0.6}  # to where the axes of these panels go at least while a training is watched


class Plot(Figure):
    """A Figure that a notebook can show without any backend being set."""

    def __init__(self, width: float, height: float):
        super().__init__(figsize=(width, height), layout="constrained", facecolor="white")

    def draw(self, renderer: Any) -> None:
        """Draw, and say nothing of signs that the font lacks, which are drawn as boxes."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"(Glyph|Matplotlib currently does not support)", UserWarning)
            super().draw(renderer)

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        self.savefig(png, format="png", dpi=110)
        return png.getvalue()


def gallery(rows: Iterable[Mapping], n: int = 6, columns: int = 3) -> Plot:
    """Pictures with the question asked about each and what everyone answered.

    Args:
        rows: records with `image` (PIL image or path) and `question`; any of `target`, `consensus`, `references`
            ({name: answer}), `truth` and `note` are shown where they are there. ✓ and ✗ say whether the target is
            right: by the truth (or the answers `accepted`) where it is known, else ✗ where it departs from the
            consensus; on a question that is `senseless` nobody is. `edges`: names of columns and rows, a letter each.
        n: how many rows to show, the first n.
        columns: pictures side by side.
    """
    rows = list(rows)[:n]
    columns = max(1, min(columns, len(rows)))
    lines = max(1, -(-len(rows) // columns))
    said = [_answers(row) for row in rows]
    asked = [_plain(row.get("question") or "(no question)", 30) for row in rows]
    above = 0.18 + 0.15 * max((text.count("\n") + 1 for text in asked), default=1)
    side, below = 2.0, 0.2 + 0.17 * max(map(len, said), default=0)  # inches: picture, question, answers
    legend = _marked_by(zip(rows, said, strict=True))
    width, height = columns * (side + 0.4), lines * (above + side + below) + 0.25 * bool(legend)
    figure = Plot(width, height)
    figure.text(0.2 / width, 0.06 / height, legend, fontsize=7.5, color=MUTED)
    figure.set_layout_engine("none")
    for place, row in enumerate(rows):
        left = 0.2 + place % columns * (side + 0.4)
        bottom = height - (place // columns) * (above + side + below) - above - side
        axis = figure.add_axes((left / width, bottom / height, side / width, side / height))
        picture = _open(row["image"])
        axis.set_axis_off()
        axis.imshow(picture, interpolation="nearest")
        _name_edges(axis, picture.size, *row.get("edges", ("", "")))
        axis.set_title(asked[place], fontsize=9, color=INK, loc="left")
        for line, (text, colour) in enumerate(said[place]):
            figure.text(
                left / width, (bottom - 0.08 - 0.17 * line) / height, text, va="top", fontsize=8.5, color=colour
            )
    if not rows:
        figure.text(0.5, 0.5, "nothing to show", ha="center", color=MUTED)
    return figure


def _name_edges(axis: Any, size: tuple[int, int], columns: str, rows: str) -> None:
    """The names of a picture's columns below it, and of its rows at its left, each in the middle of its own."""
    small = {"fontsize": 7, "color": MUTED, "annotation_clip": False, "textcoords": "offset points"}
    for i, name in enumerate(columns):
        axis.annotate(name, ((i + 0.5) * size[0] / len(columns), size[1]), (0, -8), ha="center", **small)
    for i, name in enumerate(rows):
        axis.annotate(name, (0, (i + 0.5) * size[1] / len(rows)), (-8, 0), va="center", **small)


def pairs(rows: Iterable[Mapping], n: int = 4, columns: int = 2) -> Plot:
    """Pictures before and after a change, the changed region framed, with what everyone answered to each.

    Args:
        rows: records with `before_image` and `image` (PIL image or path), `made` (the caption or command), `question`;
            `box` (x0, y0, x1, y1 in pixels), `target`, `consensus`, `references` ({name: answer}), `truth`, and the
            same with "_before", are shown where they are there; marked as in `gallery`.
        n: how many pairs to show, the first n.
        columns: pairs side by side.
    """
    rows = list(rows)[:n]
    columns = max(1, min(columns, len(rows)))
    lines = max(1, -(-len(rows) // columns))
    said = [(_answers_of(row, "_before"), _answers_of(row, "")) for row in rows]
    above = [(_plain(row["made"], 52), _plain(row.get("question") or "", 52)) for row in rows]
    top = 0.2 + 0.15 * max((sum(text.count("\n") + 1 for text in texts if text) for texts in above), default=1)
    side, gap, below = 1.75, 0.25, 0.2 + 0.17 * max((len(part) for both in said for part in both), default=0)
    across, down = 2 * side + gap + 0.4, top + side + below  # inches of one pair
    legend = _marked_by(
        ({"truth": row.get("truth" + when)}, part)
        for row, both in zip(rows, said, strict=True)
        for when, part in zip(("_before", ""), both, strict=True)
    )
    width, height = columns * across, lines * down + 0.25 * bool(legend)
    figure = Plot(width, height)
    figure.text(0.2 / width, 0.06 / height, legend, fontsize=7.5, color=MUTED)
    figure.set_layout_engine("none")
    for place, row in enumerate(rows):
        left, bottom = 0.2 + place % columns * across, height - place // columns * down - top - side
        text = "\n".join(text for text in above[place] if text)
        figure.text(left / width, (bottom + side + 0.06) / height, text, va="bottom", fontsize=8.5, color=INK)
        for half, (name, answers) in enumerate(zip(("before_image", "image"), said[place], strict=True)):
            x = left + half * (side + gap)
            axis = figure.add_axes((x / width, bottom / height, side / width, side / height))
            axis.set_axis_off()
            axis.imshow(_open(row[name]), interpolation="nearest")
            if half and row.get("box"):
                x0, y0, x1, y1 = row["box"]
                frame = Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor=WRONG, linewidth=1.5)
                axis.add_patch(frame)
            for line, (words, colour) in enumerate(answers):
                y = (bottom - 0.08 - 0.17 * line) / height
                figure.text(x / width, y, words, va="top", fontsize=8, color=colour)
    if not rows:
        figure.text(0.5, 0.5, "nothing to show", ha="center", color=MUTED)
    return figure


def search_success(
    untrained: Mapping | None, trained: Mapping | None, blind: Mapping | None = None, width: float = 7.2
) -> Figure:
    """Search success of the auditor before and after training, the best blind question between them.

    Args:
        untrained, trained: rates {"value", "low", "high", "n"}; None is left out.
        blind: the rate of the best single question asked of every image, with the question itself under "question".
    """
    asked = f": “{blind.get('question', '')}”" if blind and blind.get("question") else ""
    bars = [
        ("untrained auditor", untrained, BEFORE),
        (f"best blind question{asked}", blind, PEER),
        ("trained auditor", trained, AFTER),
    ]
    return _bars([(name, rate, colour, "") for name, rate, colour in bars if rate], width)


def types_bar(types: Sequence[Mapping], width: float = 7.2) -> Figure:
    """How often the target fails where it was asked as in a failure type and the references answered as there.

    Args:
        types: {"name", "size" (findings), "share" (of all findings), "rate" (of the probes that ask so), "rate_when"?
            (of those with one of the type's answers; where there is none the former is drawn)}, any order; a type
            without rates is left out.
    """
    rates = [(kind, kind.get("rate_when") or kind["rate"]) for kind in types if kind["rate"]]
    rates.sort(key=lambda pair: -pair[1]["value"])
    return _bars([(kind["name"], rate, WRONG, _size(kind)) for kind, rate in rates], width)


def versus(types: Sequence[Mapping], width: float = 7.2) -> Figure:
    """Target against peer on each failure type: which of the two fails there, and how often either does.

    Left their shares of the failures, target / (target + peer), as the paper has them; right the rates themselves, with
    intervals. A type on whose probes neither fails is not drawn.

    Args:
        types: {"name", "target": rate, "peer": rate} on the same probes, any order; without both a type is left out.
    """
    shown = []
    for kind in types:
        if "target" in kind and "peer" in kind and (both := kind["target"]["value"] + kind["peer"]["value"]):
            shown.append((kind["target"]["value"] / both, kind))
    shown.sort(key=lambda pair: -pair[0])
    wide = width > 5
    labels = [_plain(kind["name"], int(width * (11 if wide else 10))) for _, kind in shown]
    figure = Plot(width, 0.8 + sum(0.52 + 0.17 * label.count("\n") for label in labels))
    left, right = figure.subplots(1, 2, sharey=True, gridspec_kw={"width_ratios": (1, 1.25)})
    figure.set_layout_engine("constrained", wspace=0.07)
    left.set_zorder(1)  # its names run over both panels
    left.patch.set_visible(False)
    height, ticks = 0.0, []
    for label, (share, kind) in zip(labels, shown, strict=True):
        height += 0.32 * label.count("\n")
        named = left.text(
            0, height - 0.22, label, va="bottom", fontsize=9.5 if wide else 8.5, color=INK, linespacing=1.15
        )
        named.set_in_layout(False)  # so that the panels keep their widths
        left.barh(height, share, 0.3, color=WRONG, zorder=2)
        left.barh(height, 1 - share, 0.3, left=share, color=PEER, zorder=2, hatch="////", edgecolor=PAPER, linewidth=0)
        for x, value, side in ((0.015, share, "left"), (0.985, 1 - share, "right")):
            if value > 0.14 and wide:
                text = f"{100 * value:.0f}"
                box = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.8}
                left.text(x, height + 0.01, text, ha=side, va="center", fontsize=8, color=INK, bbox=box, zorder=4)
        for side, colour, marker, shift in (("target", WRONG, "o", -0.07), ("peer", PEER, "D", 0.09)):
            one = kind[side]
            right.hlines(height + shift, one["low"], one["high"], color=colour, linewidth=2.2, alpha=0.55, zorder=2)
            right.plot(one["value"], height + shift, marker, color=colour, markersize=5, zorder=3, clip_on=False)
        ticks.append(height)
        height += 1
    for axis, title in ((left, "share of the failures"), (right, "rate of failure")):
        _quiet(axis, grid="x")
        axis.set_yticks([])
        axis.set_xlim(-0.01, 1.01)
        axis.set_xticks([0, 0.5, 1] if axis is left or not wide else [0, 0.25, 0.5, 0.75, 1])
        axis.xaxis.set_major_formatter(PercentFormatter(1, 0, " %"))
        axis.set_xlabel(title, color=MUTED, fontsize=9)
    left.set_ylim((ticks[-1] if ticks else 0) + 0.35, -0.75)
    if shown:
        drawn = right.lines[:2]  # of the first type
        how = {"ncols": 2, "frameon": False, "fontsize": 9, "labelcolor": INK}
        figure.legend(drawn, ["target", "larger peer"], loc="outside upper left", **how)
    return figure


def training_curve(history: Sequence[Mapping], width: float = 7.2, steps: int = 0) -> Figure:
    """What GRPO earned, step by step: thin as measured, thick as a running mean over a tenth of the steps.

    Args:
        history: one record a step, with any of the keys in `CURVES`.
        steps: of the whole training, for a figure that is drawn while it lasts: then all panels are there from the
            first step on, two beside each other, low enough for a small screen, and the axis of steps stays.
    """
    present = [key for key in CURVES if any(_number(row.get(key)) for row in history)]
    panels = sorted({CURVES[key][0] for key in (CURVES if steps else present)}) or [0]
    if steps:
        figure = Plot(*LIVE)
        axes = figure.subplots(-(-len(panels) // 2), 2, sharex=True).flatten()
        axes[0].set_xlim(1, max(2, steps))
    else:
        figure = Plot(width, 0.5 + 1.5 * len(panels))
        axes = np.atleast_1d(figure.subplots(len(panels), 1, sharex=True))
    for key in CURVES if steps else present:  # of one that is not there yet the name is
        panel, name, colour = CURVES[key]
        axis = axes[panels.index(panel)]
        rows = [row for row in history if _number(row.get(key))]
        at = [row.get("step", place) for place, row in enumerate(rows)]
        values = np.array([row[key] for row in rows], float)
        axis.plot(at, values, color=colour, linewidth=0.7, alpha=0.35)
        axis.plot(at, _running_mean(values, max(1, len(values) // 10)), color=colour, linewidth=2, label=name)
    for panel, axis in zip(panels, axes, strict=True):
        _quiet(axis, grid="y")
        axis.set_ylim(bottom=0)
        if not steps:
            axis.margins(x=0.01)
        elif panel >= 2:
            highest = [line.get_ydata().max() for line in axis.lines if len(line.get_ydata())]
            axis.set_ylim(0, max(LEAST[panel], *(1.05 * value for value in highest), 0))
        axis.yaxis.set_major_locator(MaxNLocator(4))
        if panel < 2 and (steps or axis.get_ylim()[1] <= 1.2):  # shares
            axis.set_ylim(0, 1.04)
            axis.set_yticks([0, 0.25, 0.5, 0.75, 1])
            axis.yaxis.set_major_formatter(PercentFormatter(1, 0, " %"))
        if not axis.lines:
            continue
        axis.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=2 if width > 5 and not steps else 1,
            frameon=False,
            fontsize=8 if steps else 9,
            labelcolor=INK,
            borderpad=0,
            handlelength=1.4,
        )
    for axis in axes[-2:] if steps else axes[-1:]:
        axis.set_xlabel("GRPO step", color=MUTED, fontsize=9)
    axes[-1].xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return figure


def loss_curve(history: Sequence[Mapping], width: float = 7.2) -> Figure:
    """The loss of a repair, step by step, and its running mean over a fifteenth of the steps.

    Args:
        history: {"step", "loss"} a step.
    """
    figure = Plot(width, 2.6)
    axis = figure.subplots()
    steps, values = [row["step"] for row in history], np.array([row["loss"] for row in history], float)
    axis.plot(steps, values, color=BEFORE, linewidth=1.2, label="loss")
    mean = _running_mean(values, max(1, len(values) // 15))
    axis.plot(steps, mean, color=AFTER, linewidth=2, label="running mean")
    _quiet(axis, grid="y")
    axis.set_ylim(bottom=0)
    axis.set_xlabel("step", color=MUTED, fontsize=9)
    axis.set_ylabel("loss", color=MUTED, fontsize=9)
    axis.legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure


def skills(before: Mapping, after: Mapping | None = None, peer: Mapping | None = None, width: float = 7.2) -> Figure:
    """The held-out skills, weakest first: the target before and after rectification, the larger peer beside it.

    Args:
        before, after, peer: {skill: rate {"value", "low", "high", "n"}}; skills missing from one are not drawn for it.
    """
    names = sorted(before, key=lambda skill: -before[skill]["value"])  # the weakest ends on top: y grows upwards
    figure = Plot(width, 0.9 + 0.29 * len(names))
    axis = figure.subplots()
    series = [  # before and after share a line, so that the repair reads as a step to the right; the peer stands below
        (before, "before", BEFORE, "o", PAPER, 0.12),
        (after or {}, "after", AFTER, "o", AFTER, 0.12),
        (peer or {}, "larger peer", PEER, "D", PEER, -0.2),
    ]
    for rates, label, colour, marker, fill, shift in series:
        drawn = [(place + shift, rates[skill]) for place, skill in enumerate(names) if skill in rates]
        if not drawn:
            continue
        heights, values = [height for height, _ in drawn], [rate["value"] for _, rate in drawn]
        lows, highs = [rate["low"] for _, rate in drawn], [rate["high"] for _, rate in drawn]
        axis.hlines(heights, lows, highs, color=colour, linewidth=2.2, alpha=0.5, zorder=2)
        axis.plot(
            values, heights, color=colour, linestyle="none", label=label, zorder=3, marker=marker,
            markersize=4.5 if marker == "D" else 6.5, markeredgewidth=1.5, markerfacecolor=fill,
        )  # fmt: skip
    changed = [(place, before[skill], after[skill]) for place, skill in enumerate(names) if after and skill in after]
    for place, old, new in changed:
        axis.hlines(place + 0.12, old["value"], new["value"], color=AFTER, linewidth=0.8, alpha=0.6, zorder=1)
    _quiet(axis, grid="x")
    edges = np.arange(len(names) - 1) + 0.5
    axis.hlines(edges, 0, 1, transform=axis.get_yaxis_transform(), color=GRID, linewidth=0.6, zorder=0)
    axis.set_yticks(range(len(names)), [_plain(name, 22) for name in names])
    axis.set_ylim(-0.6, len(names) - 0.4)
    axis.tick_params(axis="y", labelcolor=INK, length=0)
    axis.set_xlim(right=1.015)
    axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.xaxis.set_major_formatter(PercentFormatter(1, 0, " %"))
    figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=9, labelcolor=INK, handletextpad=0.2)
    return figure


def arms(found: Mapping[str, Mapping], label: str, unit: str = "%", width: float = 7.2) -> Figure:
    """A study's measure, arm by arm: one dot a seed, a bar at their mean.

    Args:
        found: arm -> {"mean", "seeds": values}, shares from 0 to 1.
        label: what is measured.
        unit: "%", or "points" where it is a difference.
    """
    names = list(found)
    figure = Plot(width, 0.85 + 0.36 * len(names))
    axis = figure.subplots()
    for place, name in enumerate(names):
        values, mean = found[name]["seeds"], found[name]["mean"]
        axis.plot(values, [place] * len(values), "o", color=AFTER, markersize=5.5, alpha=0.65, zorder=3)
        axis.vlines(mean, place - 0.28, place + 0.28, color=INK, linewidth=2, zorder=2)
    _quiet(axis, grid="x")
    axis.set_yticks(range(len(names)), [_plain(name, 24) for name in names])
    axis.tick_params(axis="y", labelcolor=INK, length=0)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.xaxis.set_major_formatter(_shares(unit))
    axis.set_title(_plain(label), fontsize=9.5, color=INK, loc="left")
    return figure


def curve(
    lines: Mapping[str, Sequence[tuple[float, Mapping]]], x: str, label: str, unit: str = "%", width: float = 7.2
) -> Figure:
    """A study's measure against one of its parameters, on a logarithmic axis, one line a group of arms.

    Args:
        lines: group -> [(the parameter's value, {"mean", "low"?, "high"?: of a 95 % interval})].
        x: the parameter's name.
        label: what is measured, shares from 0 to 1.
        unit: as in `arms`; "" of a count.
    """
    figure = Plot(width, 3.4)
    axis = figure.subplots()
    for number, (name, points) in enumerate(lines.items()):
        points = sorted(points, key=lambda point: point[0])
        values = [place for place, _ in points]
        means = [found["mean"] for _, found in points]
        lows, highs = ([found.get(end, found["mean"]) for _, found in points] for end in ("low", "high"))
        colour, marker = LINES[number % len(LINES)]
        drawn = marker + ("-" if number < len(LINES) else "--")
        axis.plot(
            values,
            means,
            drawn,
            color=colour,
            markersize=5,
            linewidth=1.8,
            label=_plain(name, 30),
            zorder=3,
        )
        axis.fill_between(values, lows, highs, color=colour, alpha=0.12, linewidth=0, zorder=1)
    _quiet(axis, grid="y")
    axis.set_xscale("log")
    places = sorted({place for points in lines.values() for place, _ in points})
    axis.set_xticks(places, [f"{place:,}" for place in places])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel(_plain(x))
    if unit:
        axis.yaxis.set_major_formatter(_shares(unit))
    axis.set_title(_plain(label), fontsize=9.5, color=INK, loc="left")
    axis.legend(fontsize=8.5, labelcolor=INK)
    return figure


def search_rounds(rows: Sequence[Mapping], width: float = 7.2) -> Figure:
    """How a search that learns went: kinds of failure known so far, and how often each round's questions found one.

    Args:
        rows: after each round {"asked", "findings", "kinds"}, all so far; the first round was not chosen.
    """
    figure = Plot(width, 2.6)
    left, right = figure.subplots(1, 2)
    asked, findings = (np.array([0, *(row[name] for row in rows)]) for name in ("asked", "findings"))
    left.plot(asked, [0, *(row["kinds"] for row in rows)], "o-", color=AFTER, markersize=3)
    left.set_title("kinds with three findings", fontsize=9.5, color=INK, loc="left")
    left.yaxis.set_major_locator(MaxNLocator(integer=True))
    rates = np.diff(findings) / np.diff(asked)
    right.plot(asked[1:], rates, "s", color=WRONG, markersize=3)
    right.axhline(rates[0], color=BEFORE, linestyle="--", linewidth=1.2, label="the first round, not chosen")
    right.set_title("findings per question, round by round", fontsize=9.5, color=INK, loc="left")
    right.yaxis.set_major_formatter(PercentFormatter(1, None, " %"))
    right.legend(fontsize=8.5, labelcolor=INK)
    for axis in (left, right):
        _quiet(axis, grid="y")
        axis.set_ylim(bottom=0)
        axis.set_xlabel("questions put to the target", color=INK)
    return figure


def _shares(unit: str) -> PercentFormatter:
    return PercentFormatter(1, None, " %" if unit == "%" else "")


def rounds(rows: Sequence[Mapping], width: float = 7.2) -> Figure:
    """How several rounds went: the trained auditor's success and the mean over the skills after each repair.

    Args:
        rows: as from round_row; what they lack is not drawn.
    """
    figure = Plot(width, 2.8)
    axis = figure.subplots()
    curves = (
        ("search_success", "trained", "the trained auditor's success", WRONG, "s"),
        ("skills", "after", "mean over the skills after the repair", AFTER, "o"),
        ("skills", "peer", "the peer's", PEER, "^"),
    )
    for group, name, label, colour, marker in curves:
        found = [(row["round"], row[group][name]) for row in rows if name in row.get(group, {})]
        if found:
            x, rates = zip(*found, strict=True)
            values = np.array([rate["value"] for rate in rates])
            spans = [values - [rate["low"] for rate in rates], [rate["high"] for rate in rates] - values]
            axis.errorbar(x, values, np.clip(spans, 0, None), color=colour, marker=marker, label=label, capsize=3)
    _quiet(axis, grid="y")
    axis.set_xticks([row["round"] for row in rows])
    axis.set_xlabel("round", color=INK)
    axis.yaxis.set_major_formatter(PercentFormatter(1, 0, " %"))
    figure.legend(loc="outside upper left", ncols=3 if width > 5 else 1, frameon=False, fontsize=9, labelcolor=INK)
    return figure


def _bars(rows: Sequence[tuple[str, Mapping, str, str]], width: float) -> Figure:
    """Horizontal bars with intervals, each under its own name: (name, rate, colour, note behind the numbers)."""
    labels = [_plain(name, int(width * (8.5 if width > 5 else 8))) for name, *_ in rows]
    figure = Plot(width, 0.4 + sum(0.5 + 0.17 * label.count("\n") for label in labels))
    axis = figure.subplots()
    height, ticks = 0.0, []
    for label, (_, rate, colour, note) in zip(labels, rows, strict=True):
        height += 0.34 * label.count("\n")
        axis.barh(height, rate["value"], 0.28, color=colour, zorder=2)
        axis.hlines(height, rate["low"], rate["high"], color=INK, linewidth=1.3, zorder=3)
        axis.vlines([rate["low"], rate["high"]], height - 0.07, height + 0.07, color=INK, linewidth=1.3, zorder=3)
        axis.text(0, height - 0.2, label, va="bottom", fontsize=9.5, color=INK, linespacing=1.15)
        axis.text(
            1,
            height - 0.2,
            f"{100 * rate['value']:.1f} %",
            va="bottom",
            ha="right",
            fontsize=9.5,
            color=INK,
            weight="bold",
        )
        if note and width > 5:
            axis.text(0.88, height - 0.2, note, va="bottom", ha="right", fontsize=9, color=MUTED)
        ticks.append(height)
        height += 1
    _quiet(axis, grid="x")
    axis.set_yticks([])
    axis.set_ylim((ticks[-1] if ticks else 0) + 0.35, -0.75)
    axis.set_xlim(0, 1)
    axis.xaxis.set_major_formatter(PercentFormatter(1, 0, " %"))
    return figure


def _quiet(axis, grid: str) -> None:
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.grid(axis=grid, color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(length=0, labelsize=9, labelcolor=MUTED)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _answers(row: Mapping) -> list[tuple[str, str]]:
    lines = []
    if row.get("target") is not None:
        said = str(row["target"])
        differs = row.get("consensus") is not None and not same_text(said, str(row["consensus"]))
        mark, colour = ("✗ ", WRONG) if differs and not row.get("senseless") else ("", INK)
        if row.get("truth") is not None:
            right = is_one_of(said, [*(row.get("accepted") or []), str(row["truth"])])
            mark, colour = ("✓ ", PEER) if right else ("✗ ", WRONG)
        lines.append((f"{mark}target: {_plain(row['target'], 34)}", colour))
    if row.get("consensus") is not None:
        lines.append((f"consensus: {_plain(row['consensus'], 30)}", AFTER))
    lines += [(f"{_plain(name)}: {_plain(said, 30)}", MUTED) for name, said in (row.get("references") or {}).items()]
    if row.get("truth") is not None:
        lines.append((f"truth: {_plain(row['truth'], 34)}", INK))
    if row.get("senseless"):
        lines.append(("truth: there is no answer", INK))
    if row.get("note"):
        lines.append((_plain(row["note"], 34), MUTED))
    return lines


def _marked_by(shown: Iterable[tuple[Mapping, Sequence[tuple[str, str]]]]) -> str:
    """By what cards, each with its lines, are marked ✓ and ✗; "" where none is."""
    known = [row.get("truth") is not None for row, lines in shown if lines[:1] and lines[0][0][0] in "✓✗"]
    if not known:
        return ""
    if not any(known):
        return "✓ ✗ by the consensus"
    return "✓ ✗ by the truth" if all(known) else "✓ ✗ by the truth where it is known, else by the consensus"


def _answers_of(row: Mapping, when: str) -> list[tuple[str, str]]:
    """What all said before ("_before") or after ("") a change."""
    names = ("target", "consensus", "references", "truth", "accepted", "senseless")
    return _answers({name: row[name + when] for name in names if row.get(name + when) is not None})


def _open(image) -> Image.Image:
    return (Image.open(image) if isinstance(image, (str, Path)) else image).convert("RGB")


def _plain(text: object, width: int | None = None) -> str:
    """Model-written text made harmless for matplotlib: no control characters, no mathematics, wrapped at `width`."""
    clean = "".join(sign if sign.isprintable() else " " for sign in str(text))
    lines = textwrap.wrap(clean, width, max_lines=3, placeholder=" …") if width else [clean]
    return "\n".join(lines).replace("$", r"\$")  # after it is wrapped, which may part the two signs


def _size(kind: Mapping) -> str:
    share = f", {100 * kind['share']:.0f} % of all" if _number(kind.get("share")) else ""
    return f"{counted(kind['size'], 'finding')}{share}"


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over the last `window` values; at the start over what there is."""
    total = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (total[ends] - total[starts]) / (ends - starts)
