"""What an audit had found after so many questions put to its target: the curves of a study that states `budgets`.

An audit that decides each question by all answers so far is read in the order in which it asked. Every other one is
read in a random order, `ORDERS` times over, for its checkpoints ask one after another. Questions are counted in three
ways (COUNTED): those of the audit, with what it found itself; the same, with what its auditor's training had found
before, for nothing; and those of the training as well, which come first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from auditkit import stats
from auditkit.consensus.normalise import is_one_of, normalise
from auditkit.counterfactual.store import with_counterfactuals
from auditkit.data.load import load_images
from auditkit.data.source import Source
from auditkit.findings.failure_types import FOUND
from auditkit.findings.grading import known_gaps
from auditkit.params import Params
from auditkit.runs import jsonl
from auditkit.runs.folder import run_folder
from auditkit.runs.probe import audit_probes

ORDERS = 20  # random orders over which a curve is averaged
COUNTED = ("audit", "audit after training", "training and audit")
CURVES = {  # what is read at each budget: its label, and its unit as a study's Measure has it
    "gaps": ("planted gaps found", ""),
    "failures": ("true failures, each once", ""),
    "precision": ("findings that are true", "%"),
    "references": ("answers of references", ""),
}
NEARLY = 0.98  # of a budget that an audit has to have asked: it loses a few texts that are no questions
HALF = "half"  # beside the budgets: questions until half of the planted gaps are found


def found_after(
    asked: Sequence[Mapping], source: Source, gaps: list, budgets: Sequence[int], fixed: int
) -> dict:
    """What was found after each budget of questions.

    Args:
        asked: rows {"picture", "question", "target", "references", "finding": bool}, those put to the target, in order.
        source: judges which findings are true, and which gap each lies in.
        gaps: the planted ones.
        budgets: questions put to the target; one that is clearly larger than `asked` (NEARLY) is left out.
        fixed: so many rows keep their place, at the start; the others are taken in random orders.

    Returns {budget: {"gaps", "failures", "precision"?, "references"}, "half"?: questions}, means over the orders.
    """
    found, true, gap = _graded(asked, source, gaps)
    answered = np.array([len(row["references"]) for row in asked])
    rng = np.random.default_rng(0)
    orders = [
        np.concatenate([np.arange(fixed), fixed + rng.permutation(len(asked) - fixed)])
        for _ in range(ORDERS if fixed < len(asked) else 1)
    ]
    third = np.array([_third(gap[order], true[order], len(gaps)) for order in orders]).reshape(len(orders), len(gaps))
    curve: dict = {}
    for budget in sorted(budgets):
        if len(asked) < NEARLY * budget:
            continue
        taken = [order[:budget] for order in orders]
        n_found, n_true = (np.mean([which[some].sum() for some in taken]) for which in (found, true))
        curve[budget] = {
            "gaps": float((third <= budget).sum(axis=1).mean()),
            "failures": float(n_true),
            "references": float(np.mean([answered[some].sum() for some in taken])),
        } | ({"precision": float(n_true / n_found)} if n_found else {})
    until = np.sort(third, axis=1)[:, (len(gaps) + 1) // 2 - 1].mean() if gaps else np.inf
    return curve | ({HALF: round(float(until))} if np.isfinite(until) else {})


def run_curves(p: Params, budgets: Sequence[int]) -> dict[str, dict]:
    """The curves of one run, of each of COUNTED.

    Args:
        p: its parameters; its folder holds an audit (05_audit) and, where its auditor was trained, the training.
        budgets: as for `found_after`.
    """
    audited = run_folder(p) / "05_audit"
    source = with_counterfactuals(load_images(p.images), audited)
    gaps, audit = known_gaps(source, p.target), _of_audit(audit_probes(jsonl.read(audited / "scored.jsonl")))
    in_order = len(audit) if p.search != "once" else 0
    trained = _of_training(jsonl.read(run_folder(p) / "04_auditor" / "rollouts.jsonl")) if p.asks == "auditor" else []
    both = _once([*trained, *audit])
    fixed, before = len(both) if in_order else len(trained), len(trained)
    after = found_after(both, source, gaps, [before + budget for budget in budgets], fixed)
    ways = (
        found_after(audit, source, gaps, budgets, in_order),
        {budget: after[before + budget] for budget in budgets if before + budget in after}
        | ({HALF: max(0, after[HALF] - before)} if HALF in after else {}),
        found_after(both, source, gaps, budgets, fixed),
    )
    if in_order:  # it has asked the references more than it asked the target
        heard = _references_before(jsonl.each(audited / "answers.jsonl"), audit)
        for curve, of_training in zip(ways, (0, 0, before), strict=True):
            for budget in [key for key in curve if key != HALF and key > of_training]:
                asked = min(int(budget) - of_training, len(audit))
                own = curve[budget]
                own["references"] += heard[asked] - sum(len(row["references"]) for row in audit[:asked])
    return dict(zip(COUNTED, ways, strict=True))


def compare_curves(curves: Mapping[str, Sequence[Mapping]]) -> dict[str, dict[str, dict]]:
    """Arm -> counted -> budget (or "half") -> measure -> mean and interval over the seeds (`stats.over_seeds`), with
    its seeds and, but for the last arm, "against": the difference to the last arm, seed by seed.

    Args:
        curves: arm -> for each seed, as from `run_curves`. What not every seed has is absent.
    """
    last = list(curves)[-1]
    table: dict[str, dict[str, dict]] = {}
    for arm in (last, *(arm for arm in curves if arm != last)):
        table[arm] = {}
        for counted in COUNTED:
            of_arm = [seed[counted] for seed in curves[arm]]
            rows: dict = {}
            for budget in [key for key in of_arm[0] if all(key in seed for seed in of_arm)]:
                rows[budget] = {}
                for name in ["questions"] if budget == HALF else list(CURVES):
                    values = [seed[budget] if budget == HALF else seed[budget].get(name) for seed in of_arm]
                    if None in values:
                        continue
                    rows[budget][name] = stats.over_seeds(values) | {"seeds": values}
                    beside = table[last].get(counted, {}).get(budget, {}).get(name)
                    if arm != last and beside:
                        pairs = zip(values, beside["seeds"], strict=True)
                        rows[budget][name]["against"] = stats.over_seeds([a - b for a, b in pairs])
            table[arm][counted] = rows
    return {arm: table[arm] for arm in curves}


def _references_before(answers: Iterable[Mapping], audit: Sequence[Mapping]) -> list[int]:
    """How many answers of references are on file before the target's first answer, the second, ..., and in all."""
    before, n, asked = [], 0, {(row["picture"], row["question"]) for row in audit}
    names = {name for row in audit for name in row["names"]}
    for row in answers:
        if row["model"] in names:
            n += 1
        elif (row["picture"], row["question"]) in asked:
            before.append(n)
    return [*before[: len(audit)], *[n] * (len(audit) + 1 - len(before))]


def _of_audit(scored: Sequence[Mapping]) -> list[dict]:
    return [
        {**_said(row), "finding": row["outcome"] == "finding", "references": list(row["references"].values())}
        | {"names": list(row["references"])}
        for row in scored
        if row["target"] is not None and row["outcome"] != "duplicate"
    ]


def _of_training(rollouts: Sequence[Mapping]) -> list[dict]:
    asked = [row for row in rollouts if row["target"] is not None]
    return _once(
        [
            {**_said(row), "picture": row["made"] or row["picture"], "finding": row["success"]}
            | {"references": row["references"]}
            for row in asked
        ]
    )


def _said(row: Mapping) -> dict:
    return {name: row[name] for name in ("picture", "question", "target")}


def _once(asked: Sequence[dict]) -> list[dict]:
    """Without what was asked of the same picture before: a model is not asked twice (models/answers.py)."""
    first = {(row["picture"], normalise(row["question"])): i for i, row in reversed(list(enumerate(asked)))}
    return [asked[i] for i in sorted(first.values())]


def _graded(asked: Sequence[Mapping], source: Source, gaps: list) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which rows are findings, which of these are true, and the number of the gap that each of the latter lies in."""
    names = {gap.name: i for i, gap in enumerate(gaps)}
    found = np.array([bool(row["finding"]) for row in asked])
    true, gap = np.zeros(len(asked), bool), np.full(len(asked), -1)
    for i in map(int, np.flatnonzero(found)):
        key, question = asked[i]["picture"], asked[i]["question"]
        right = source.accepted(key, question)
        true[i] = bool(right) and not is_one_of(asked[i]["target"], right)
        if true[i] and gaps:
            gap[i] = names.get(source.gap(key, question, gaps) or "", -1)
    return found, true, gap


def _third(gap: np.ndarray, true: np.ndarray, gaps: int) -> list[float]:
    """After how many questions each gap has as many true findings as make it found; infinity where it never has."""
    places = [np.flatnonzero(true & (gap == number)) for number in range(gaps)]
    return [float(its[FOUND - 1] + 1) if len(its) >= FOUND else np.inf for its in places]
