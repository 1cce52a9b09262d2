"""The tables of the notebooks, as pandas shows them: each function takes plain records and returns a DataFrame, or one
with its numbers formatted.

Rates ({"value", "low", "high", "n"}) are shown as "86.2% of 1000" where a cell holds one, else in columns of their own.
"""

from collections.abc import Callable, Mapping, Sequence

import pandas as pd
from pandas.io.formats.style import Styler

CURVE_KEYS = (  # of history.jsonl, in the order in which notebook 04 lists them
    "reward/disagreement", "reward/format", "distinct", "kinds", "kinds_lately", "entropy", "group_spread",
    "flat_groups", "alike_groups", "repeats", "commonest",
)  # fmt: skip


def column(values: Mapping, name: str) -> pd.DataFrame:
    """A mapping as a table of one column."""
    return pd.Series(dict(values), name=name).to_frame()


def rates_table(rates: Mapping[str, Mapping], names: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Rates one a row, under other names where `names` has them."""
    return pd.DataFrame(dict(rates)).T.rename(index=dict(names or {}))


def measured_table(rows: Mapping[str, Mapping], counts: Sequence[str] = (), rates: Sequence[str] = ()) -> pd.DataFrame:
    """What was counted and measured of each row; a rate that a row lacks is left empty.

    Args:
        rows: row's name -> record.
        counts, rates: its keys to show; without either, all of them are rates.
    """
    shown = {}
    for name, row in rows.items():
        some = [rate for rate in rates if rate in row] if counts or rates else list(row)
        shown[name] = {count: row[count] for count in counts} | {rate: _of(row[rate]) for rate in some}
    return pd.DataFrame(shown).T


# ---- one notebook each ----------------------------------------------------------------------------------------------


def checks_table(checks: Sequence[Mapping]) -> pd.DataFrame:
    """What notebook 00 looked at, what it found, and whether that will do."""
    marked = [{"key": row["key"], "found": row["found"], "ok": "✓" if row["ok"] else "✗"} for row in checks]
    return pd.DataFrame(marked).set_index("key")


def models_table(rows: Sequence[Mapping]) -> Styler:
    """Who takes part (notebook 01): rows of `load_roles`."""
    how = {"parameters": "{:,.0f}", "seconds": "{:.2f}"}
    return pd.DataFrame(rows).set_index("key").style.format(how, na_rep="")


def accuracy_table(scores: Mapping[str, Mapping], skills: Sequence[str]) -> pd.DataFrame:
    """Accuracy by skill (rows) and model (columns), 0 to 1; empty where nothing was scored."""
    return pd.DataFrame({name: {skill: its[skill]["value"] for skill in skills} for name, its in scores.items()})


def coloured(table: pd.DataFrame) -> Styler:
    """Shares from 0 to 1 as percentages, from red to green."""
    return table.style.format("{:.0%}").background_gradient(cmap="RdYlGn", vmin=0, vmax=1, axis=None)


def pairs_table(pairs: Sequence[tuple[str, str]], same: Callable[[str, str], bool]) -> pd.DataFrame:
    """Pairs of answers, and whether they mean the same (notebook 02)."""
    return pd.DataFrame([{"a": a, "b": b, "same": same(a, b)} for a, b in pairs])


def answers_table(records: Sequence[Mapping]) -> pd.DataFrame:
    """What everyone said to each probe (notebook 02)."""
    return pd.DataFrame([{"question": r["question"], "target": r["target"], **r["references"]} for r in records])


def outcomes_table(scored: Sequence[Mapping]) -> pd.DataFrame:
    """How many probes came to each outcome, most frequent first."""
    table = pd.Series([row["outcome"] for row in scored]).value_counts().to_frame("probes")
    return table.assign(share=[f"{n / len(scored):.1%}" for n in table["probes"]])


def wishes_table(records: Sequence[Mapping]) -> Styler:
    """What the auditor wished for, with the check on it and why there is no such picture (notebook 03)."""
    return pd.DataFrame(records, columns=["way", "made", "check", "expected", "why"]).style.hide(axis="index")


def pictures_table(scored: Sequence[Mapping]) -> pd.DataFrame:
    """What became of the pictures that were wished for, by way: good, or why not (notebook 03)."""
    wished = [row for row in scored if row["pairing"] == "(Q*, I*)" and row["made"]]
    fate = pd.Series([row.get("why") or "good" for row in wished], name="picture", dtype=str)
    return pd.crosstab(fate, pd.Series([row["way"] for row in wished], name="way", dtype=str))


def moved_table(moved: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Consensus against target after an edit, from `who_moved` (notebook 03)."""
    return pd.crosstab(*(pd.Series(moves, name=who, dtype=str) for who, moves in moved.items()), margins=True)


def texts_table(texts: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Texts by way, a column each (notebook 04)."""
    return pd.DataFrame(dict(texts))


def samples_table(asked: Mapping[str, Mapping[str, Sequence[str]]]) -> pd.DataFrame:
    """What each checkpoint writes about one picture, way by way (notebook 04)."""
    return pd.DataFrame({(name, way): some for name, texts in asked.items() for way, some in texts.items()}).T


def ends_of_training(history: Sequence[Mapping]) -> pd.DataFrame:
    """Means over the first and over the last tenth of the steps of a training (notebook 04)."""
    table, tenth = pd.DataFrame(history, columns=list(CURVE_KEYS)), max(1, len(history) // 10)
    return pd.DataFrame({"first tenth": table[: tenth + 1].mean(), "last tenth": table[-tenth:].mean()})


def outcomes_by_auditor(scored: Sequence[Mapping], auditors: Sequence[str]) -> pd.DataFrame:
    """Outcomes of the probes of each auditor and way, the auditors in their order (notebook 05)."""
    table = pd.DataFrame(scored)
    rows = [pd.Categorical(table["checkpoint"], list(auditors)), table["way"]]
    return pd.crosstab(rows, table["outcome"], rownames=["auditor", "way"])


def ways_table(by: Mapping[str, Mapping[str, Mapping]]) -> pd.DataFrame:
    """What the probes of each way and of each pairing came to, from `outcomes_by` (notebook 05)."""
    rows = {name: row for part in by.values() for name, row in part.items()}
    return measured_table(rows, ("probes", "findings"), ("search_success", "by_consensus", "precision"))


def types_table(types: Sequence) -> Styler:
    """The failure types with how much of all findings each is and how often it fails (notebook 06)."""
    rows = [
        {"type": t.name, "findings": t.size, "share": t.share}
        | {"rate": t.rate["value"], "from": t.rate["low"], "to": t.rate["high"]}
        for t in types
    ]
    columns = ["type", "findings", "share", "rate", "from", "to"]
    return pd.DataFrame(rows, columns=columns).style.hide(axis="index").format("{:.0%}", columns[2:])


def false_share_table(estimated: Mapping[str, Mapping]) -> Styler:
    """The estimated share of false findings, by who was asked (notebook 06)."""
    knows = "knows what nobody doubts"
    rows = [
        {"asked": way.replace("_", " "), "contested": f"{e['contested']} of {e['n']}", "false": e["value"]}
        | {"from": e["low"], "to": e["high"], knows: e["knows"]["value"]}
        for way, e in estimated.items()
    ]
    shares = ["false", "from", "to", knows] if rows else []
    return pd.DataFrame(rows).style.hide(axis="index").format("{:.1%}", shares)


def planted_table(planted: Mapping) -> Styler:
    """Each planted gap and whether it was found, from `grade_planted_gaps`; empty where none is known (notebook 06)."""
    columns = ["name", "skill", "condition", "says", "probes", "findings", "found"]
    table = pd.DataFrame(planted.get("gaps", []), columns=columns).sort_values("findings", ascending=False)
    return table.style.hide(axis="index").format({"found": _tick})


def types_against_gaps(types: Sequence, gap_of: Mapping[str, Mapping]) -> pd.DataFrame:
    """The planted gap most of each type's findings lie in, from `type_gaps` (notebook 06)."""
    columns = ["type", "findings"] + (["name", "share"] if gap_of else [])
    return pd.DataFrame(
        [{"type": t.name, "findings": t.size, **gap_of.get(t.name, {})} for t in types], columns=columns
    )


def false_alarms_table(planted: Mapping) -> pd.DataFrame:
    """The largest groups of false alarms, from `grade_planted_gaps` (notebook 06)."""
    return pd.DataFrame(planted.get("false_alarm_groups", []), columns=["name", "size", "reason"]).head(8)


def sizes_table(models: Mapping[str, Mapping]) -> pd.DataFrame:
    """How many parameters each side has, from `class_and_size`; one behind a server is absent (notebook 08)."""
    return column({side: f"{its['parameters']:,}" for side, its in models.items() if "parameters" in its}, "parameters")


def skills_table(compared: Sequence[Mapping]) -> Styler:
    """Each skill before and after the repair and what chance has to do with it, from `compare_skills` (notebook 08)."""
    rows = []
    for row in compared:
        sides = {side: f"{row[side]['value']:.1%}" for side in ("before", "after", "peer") if side in row}
        moved = {"change": f"{100 * row['change']['value']:+.1f}", "gained": row["gained"], "lost": row["lost"]}
        rows.append({"skill": row["skill"]} | sides | moved | {"p": f"{row.get('p_holm', row['p']):.2g}"})
    return pd.DataFrame(rows).style.hide(axis="index")


def _of(rate: Mapping) -> str:
    return f"{rate['value']:.1%} of {rate['n']}"


def _tick(found: bool) -> str:
    return "✓" if found else "✗ missed"
