"""The tables of the notebooks: each function takes plain records and returns a `Table`, which escapes their texts.

Rates ({"value", "low", "high", "n"}) are shown as "86.2% of 1000" where a cell holds one, else in columns of their own.
"""

from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from auditkit.report.notebook import Table, escaped_table
from auditkit.text import p_value

CURVE_KEYS = (  # of history.jsonl, in the order in which notebook 04 lists them
    "reward/disagreement", "reward/format", "distinct", "kinds", "kinds_lately", "entropy", "group_spread",
    "flat_groups", "alike_groups", "repeats", "commonest",
)  # fmt: skip
FALSE_ASKED = {  # who was asked for an estimate of the false share -> in words
    "leave_one_out": "each reference, about the consensus of the others",
    "held_out": "the larger peer, which did not vote",
}


def column(values: Mapping, name: str) -> Table:
    """A mapping as a table of one column."""
    return escaped_table(pd.Series(dict(values), name=name, dtype=object).to_frame())


def rates_table(rates: Mapping[str, Mapping], names: Mapping[str, str] | None = None) -> Table:
    """Rates one a row, under other names where `names` has them."""
    shares, called = dict.fromkeys(("value", "low", "high"), "{:.1%}"), dict(names or {})
    return escaped_table(
        pd.DataFrame(dict(rates)).T.rename(index=lambda name: called.get(name, name.replace("_", " "))), shares
    )


def measured_table(rows: Mapping[str, Mapping], counts: Sequence[str] = (), rates: Sequence[str] = ()) -> Table:
    """What was counted and measured of each row; a rate that a row lacks is left empty.

    Args:
        rows: row's name -> record.
        counts, rates: its keys to show; without either, all of them are rates.
    """
    shown = {}
    for name, row in rows.items():
        some = [rate for rate in rates if rate in row] if counts or rates else list(row)
        shown[name] = {count: row[count] for count in counts} | {rate: _of(row[rate]) for rate in some}
    return escaped_table(pd.DataFrame(shown).T)


# ---- one notebook each ----------------------------------------------------------------------------------------------


def checks_table(checks: Sequence[Mapping]) -> Table:
    """What notebook 00 looked at, what it found, and whether that will do."""
    marked = [{"key": row["key"], "found": row["found"], "ok": "✓" if row["ok"] else "✗"} for row in checks]
    return escaped_table(pd.DataFrame(marked).set_index("key"))


def models_table(rows: Sequence[Mapping]) -> Table:
    """Who takes part (notebook 01): rows of `load_roles`."""
    how = {"parameters": "{:,.0f}", "seconds": "{:.2f}"}
    return escaped_table(pd.DataFrame(rows).set_index("key"), how)


def accuracy_table(scores: Mapping[str, Mapping], skills: Sequence[str]) -> Table:
    """Accuracy by skill (rows) and model (columns), from red to green; empty where nothing was scored (notebook 01)."""
    found = pd.DataFrame({name: {skill: its[skill]["value"] for skill in skills} for name, its in scores.items()})
    return escaped_table(found, dict.fromkeys(found.columns, "{:.0%}"), shaded=True)


def pairs_table(pairs: Sequence[tuple[str, str]], same: Callable[[str, str], bool]) -> Table:
    """Pairs of answers, and whether they mean the same (notebook 02)."""
    return escaped_table(pd.DataFrame([{"a": a, "b": b, "same": same(a, b)} for a, b in pairs]))


def answers_table(records: Sequence[Mapping]) -> Table:
    """What everyone said to each probe (notebook 02)."""
    rows = [{"question": r["question"], "target": r["target"], **r["references"]} for r in records]
    return escaped_table(pd.DataFrame(rows), index=False)


def outcomes_table(scored: Sequence[Mapping]) -> Table:
    """How many probes came to each outcome, most frequent first."""
    found = pd.Series([row["outcome"] for row in scored]).value_counts().to_frame("probes")
    return escaped_table(found.assign(share=[f"{n / len(scored):.1%}" for n in found["probes"]]))


def wishes_table(records: Sequence[Mapping]) -> Table:
    """What the auditor wished for, with the check on it and why there is no such picture (notebook 03)."""
    return escaped_table(pd.DataFrame(records, columns=["way", "made", "check", "expected", "why"]), index=False)


def pictures_table(scored: Sequence[Mapping]) -> Table:
    """What became of the pictures that were wished for, by way: good, or why not (notebook 03)."""
    wished = [row for row in scored if row["pairing"] == "(Q*, I*)" and row["made"]]
    fate = pd.Series([row.get("why") or "good" for row in wished], name="picture", dtype=str)
    return escaped_table(pd.crosstab(fate, pd.Series([row["way"] for row in wished], name="way", dtype=str)))


def moved_table(moved: Mapping[str, Sequence[str]]) -> Table:
    """Consensus against target after an edit, from `who_moved` (notebook 03)."""
    return escaped_table(
        pd.crosstab(*(pd.Series(moves, name=who, dtype=str) for who, moves in moved.items()), margins=True)
    )


def texts_table(texts: Mapping[str, Sequence[str]]) -> Table:
    """Texts by way, a column each (notebook 04)."""
    return escaped_table(pd.DataFrame(dict(texts)), index=False)


def samples_table(asked: Mapping[str, Mapping[str, Sequence[str]]]) -> Table:
    """What each checkpoint writes about one picture, way by way (notebook 04)."""
    rows = {(name, way): some for name, texts in asked.items() for way, some in texts.items()}
    return escaped_table(pd.DataFrame(rows).T.rename_axis(index=["auditor", "way"]))


def ends_of_training(history: Sequence[Mapping]) -> Table:
    """Means over the first and over the last tenth of the steps of a training (notebook 04)."""
    steps, tenth = pd.DataFrame(history, columns=list(CURVE_KEYS)), max(1, len(history) // 10)
    return escaped_table(pd.DataFrame({"first tenth": steps[: tenth + 1].mean(), "last tenth": steps[-tenth:].mean()}))


def outcomes_by_auditor(scored: Sequence[Mapping], auditors: Sequence[str]) -> Table:
    """Outcomes of the probes of each auditor and way, the auditors in their order (notebook 05)."""
    probes = pd.DataFrame(scored)
    rows = [pd.Categorical(probes["checkpoint"], list(auditors)), probes["way"]]
    return escaped_table(pd.crosstab(rows, probes["outcome"], rownames=["auditor", "way"]))


def ways_table(by: Mapping[str, Mapping[str, Mapping]]) -> Table:
    """What the probes of each way and of each pairing came to, from `outcomes_by` (notebook 05)."""
    rows = {name: row for part in by.values() for name, row in part.items()}
    return measured_table(rows, ("probes", "findings"), ("search_success", "by_consensus", "precision"))


def types_table(types: Sequence) -> Table:
    """The failure types with how much of all findings each is, and how often the target fails there (notebook 06)."""
    rows = [
        {"type": t.name, "findings": t.size, "share": t.share}
        | ({"rate": rate["value"], "from": rate["low"], "to": rate["high"]} if rate else {})
        for t in types
        for rate in [t.rate_when or t.rate]
    ]
    columns = ["type", "findings", "share", "rate", "from", "to"]
    return escaped_table(pd.DataFrame(rows, columns=columns), dict.fromkeys(columns[2:], "{:.0%}"), index=False)


def rules_table(types: Sequence, rules: Mapping) -> Table:
    """What narrows each failure type, and how often the target fails inside and outside of that (notebook 06)."""
    rows = [
        {"type": t.name, "rule": rules[t.name].in_words()}
        | {side: _of(getattr(rules[t.name], side)) for side in ("inside", "outside")}
        for t in types
        if t.name in rules
    ]
    return escaped_table(pd.DataFrame(rows, columns=["type", "rule", "inside", "outside"]), index=False)


def rule_grades_table(graded: Mapping) -> Table:
    """Whether each rule names its planted gap, and for which share of it it holds, by `grade_rules` (notebook 06)."""
    rows = [
        {"type": name, "names its gap": "✓" if row["names"] else "✗"}
        | ({"covers": _of(row["covers"])} if "covers" in row else {})
        for name, row in graded.get("by_type", {}).items()
    ]
    return escaped_table(pd.DataFrame(rows, columns=["type", "names its gap", "covers"]), index=False)


def false_share_table(estimated: Mapping[str, Mapping]) -> Table:
    """The estimated share of false findings, by who was asked (notebook 06)."""
    knows = "knows what nobody doubts"
    rows = [
        {"asked": FALSE_ASKED[way], "contested": f"{e['contested']} of {e['n']}", "false": e["value"]}
        | {"from": e["low"], "to": e["high"], knows: e["knows"]["value"]}
        for way, e in estimated.items()
    ]
    shares = ["false", "from", "to", knows]
    return escaped_table(pd.DataFrame(rows), dict.fromkeys(shares, "{:.1%}"), index=False)


def planted_table(planted: Mapping) -> Table:
    """Each planted gap and whether it was found, from `grade_planted_gaps`; empty where none is known (notebook 06)."""
    columns = ["name", "skill", "condition", "says", "probes", "findings", "found"]
    gaps = pd.DataFrame(planted.get("gaps", []), columns=columns).sort_values("findings", ascending=False)
    return escaped_table(gaps, {"found": _tick}, index=False)


def types_against_gaps(types: Sequence, gap_of: Mapping[str, Mapping]) -> Table:
    """The planted gap most of each type's findings lie in, from `type_gaps` (notebook 06)."""
    columns = ["type", "findings"] + (["name", "share"] if gap_of else [])
    rows = [{"type": t.name, "findings": t.size, **gap_of.get(t.name, {})} for t in types]
    return escaped_table(pd.DataFrame(rows, columns=columns), {"share": "{:.0%}"}, index=False)


def false_alarms_table(planted: Mapping) -> Table:
    """The largest groups of false alarms, from `grade_planted_gaps` (notebook 06)."""
    groups = pd.DataFrame(planted.get("false_alarm_groups", []), columns=["name", "size", "reason"])
    return escaped_table(groups.head(8), index=False)


def sizes_table(models: Mapping[str, Mapping]) -> Table:
    """How many parameters each side has, from `class_and_size`; one behind a server is absent (notebook 08)."""
    return column({side: f"{its['parameters']:,}" for side, its in models.items() if "parameters" in its}, "parameters")


def skills_table(compared: Sequence[Mapping]) -> Table:
    """Each skill before and after the repair and what chance has to do with it, from `compare_skills` (notebook 08)."""
    rows = []
    for row in compared:
        sides = {side: f"{row[side]['value']:.1%}" for side in ("before", "after", "peer") if side in row}
        moved = {"change": f"{100 * row['change']['value']:+.1f}", "gained": row["gained"], "lost": row["lost"]}
        rows.append({"skill": row["skill"]} | sides | moved | {"p": p_value(row.get("p_holm", row["p"]))})
    return escaped_table(pd.DataFrame(rows), index=False)


def _of(rate: Mapping) -> str:
    return f"{rate['value']:.1%} of {rate['n']}"


def _tick(found: object) -> str:
    return "✓" if found else "✗ missed"
