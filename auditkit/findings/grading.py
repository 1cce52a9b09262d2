"""Grading an audit by the truth, where the source of the images knows it: the one use the oracle has."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from sklearn.metrics import completeness_score, homogeneity_score

from auditkit import stats
from auditkit.consensus.normalise import is_one_of
from auditkit.data.source import Picture, Source
from auditkit.errors import AuditError
from auditkit.findings.failure_types import ASKED, FOUND, OUTSIDE, FailureType
from auditkit.findings.grouping import group_findings, group_name
from auditkit.findings.rules import Rule
from auditkit.models import downloads
from auditkit.runs.probe import TRAINING
from auditkit.text import counted

if TYPE_CHECKING:
    from auditkit.models.base import Writer  # which imports torch

ONE_GAP = 0.9  # share of a type's findings that makes it a type of one gap
FOLLOWS = 0.95  # share of the questions inside a rule on which a fact holds that follows from it
DRAWN = 6000  # questions drawn anew to grade rules

# ---- grading, where the source of the images knows the truth --------------------------------------------------------


def search_success(records: Sequence[dict], source: Source) -> dict:
    """Share of probes on which the target is truly wrong (paper, Sec. 4.1), judged by the source, not by the consensus.

    For a complete source a malformed probe, a question without an answer and a picture that was dropped are no success.
    Another source cannot tell what it does not know: there, only probes of known answer count. Raises AuditError where
    no probe can be graded.
    """
    graded = []
    for record in records:
        question = None if record.get("outcome") == "bad picture" else record["question"]
        right = source.accepted(record["picture"], question) if question else ()
        if right or source.complete:
            graded.append(bool(right) and not is_one_of(record["target"], right))
    if not graded:
        raise AuditError(
            f"search success cannot be assessed: {source.name} knows the answer to none of the {len(records)} probes."
        )
    return stats.rate(sum(graded), len(graded))


def grade_planted_gaps(records: Sequence[dict], source: Source, gaps: list) -> dict:
    """Which of the target's known gaps the audit found, and which of its findings are false alarms.

    A gap is found if at least 3 findings lie in its condition and the target is truly wrong there. A false alarm is a
    finding on which the target was right, or whose question has no answer. Keys that cannot be measured are absent.

    Returns {"planted", "found", "missed": [name], "recall": rate, "findings_outside_gaps", "precision": rate,
    "gaps": [{"name", "skill", "condition", "says", "probes": of the audit, "findings", "found", "from_training"?: those
    of its findings that the training has met}],
    "false_alarms": [record + "truth", "reason"], "false_alarm_groups": [{"name", "size", "reason"}]}.
    """
    alarms, true, findings, probes, met = [], 0, Counter(), Counter(), Counter()
    for record in records:
        if record.get("outcome") not in ASKED:
            continue
        key, question = record["picture"], record["question"]
        gap = source.gap(key, question, gaps) if gaps else None
        probes[gap] += record.get("checkpoint") != TRAINING
        if record["outcome"] == "agrees":
            continue
        right = source.accepted(key, question)
        if right and not is_one_of(record["target"], right):
            true += 1
            findings[gap] += 1
            met[gap] += record.get("checkpoint") == TRAINING
        elif right:
            alarms.append({**record, **told_truth(right), "reason": "the target was right"})
        elif source.complete:
            alarms.append({**record, "truth": None, "reason": "the question has no answer"})
    result = {}
    if gaps:
        rows = []
        for gap in gaps:
            n = findings[gap.name]
            row = {**_described(gap), "probes": probes[gap.name], "findings": n, "found": n >= FOUND}
            rows.append(row | ({"from_training": met[gap.name]} if met[gap.name] else {}))
        found = sum(row["found"] for row in rows)
        result = {
            "planted": len(rows),
            "found": found,
            "missed": [row["name"] for row in rows if not row["found"]],
            "recall": stats.rate(found, len(rows)),
            "gaps": rows,
            "findings_outside_gaps": findings[None],
        }
    if true + len(alarms):
        groups = []
        for reason in sorted({alarm["reason"] for alarm in alarms}):
            for members in group_findings([alarm for alarm in alarms if alarm["reason"] == reason], 12):
                groups.append({"name": group_name(members), "size": len(members), "reason": reason})
        result["precision"] = stats.rate(true, true + len(alarms))
        result["false_alarms"] = alarms
        result["false_alarm_groups"] = sorted(groups, key=lambda group: (-group["size"], group["name"]))
    return result


def told_truth(accepted: Sequence[str]) -> dict:
    """What a card says of the answers that are accepted: the truth, and the others where there are any.

    >>> told_truth(("net", "mesh")), told_truth(("net",)), told_truth(())
    ({'truth': 'net', 'accepted': ['net', 'mesh']}, {'truth': 'net'}, {})
    """
    told = {"truth": accepted[0]} if accepted else {}
    return told | ({"accepted": list(accepted)} if len(accepted) > 1 else {})


def known_truth(source: Source, picture: str, question: str | None) -> dict:
    """What a card says of the truth: as `told_truth`, or {"senseless": True} where the question has no answer there."""
    right = source.accepted(picture, question) if question else ()
    return told_truth(right) if right or not source.complete or not question else {"senseless": True}


def probes_until(gaps: Sequence[dict], probes: int, share: float) -> int | None:
    """How many probes an audit needs, on average, until this share of the planted gaps have three true findings each.

    Its probes are taken in a random order, 200 times over; None where the audit, all of it, does not get there. What
    the training has met does not count here.

    Args:
        gaps: as `grade_planted_gaps` gives them, with "findings".
        probes: of the audit, all of them.
        share: of the gaps, above 0 and at most 1.

    >>> gaps = [{"findings": 300}, {"findings": 3}, {"findings": 2}, {"findings": 0}]
    >>> probes_until(gaps, 1000, 0.25), 600 < probes_until(gaps, 1000, 0.5) < 900, probes_until(gaps, 1000, 0.75)
    (10, True, None)
    """
    rng, wanted = np.random.default_rng(0), math.ceil(share * len(gaps))
    own = [gap["findings"] - gap.get("from_training", 0) for gap in gaps]
    found = [n for n in own if n >= FOUND]
    if not gaps or len(found) < wanted:
        return None
    # where in the order the third finding of each gap comes: positions of findings, of which the third is taken
    third = [np.sort(rng.random((200, n)), axis=1)[:, FOUND - 1] for n in found]  # [gaps][200], 0 to 1
    return math.ceil(probes * np.sort(third, axis=0)[wanted - 1].mean())


def type_gaps(types: Sequence[FailureType], records: Sequence[dict], source: Source, gaps: list) -> dict[str, dict]:
    """Which planted gap most of a type's findings lie in: {type's name: {"name", "share"}}; {} where none is planted.

    A finding in no gap's condition counts as "outside all gaps".
    """
    rows, found = {row["key"]: row for row in records}, {}
    for kind in types if gaps else ():
        hit = Counter()
        for key in kind.keys:
            hit[source.gap(rows[key]["picture"], rows[key]["question"], gaps) or OUTSIDE] += 1
        name, n = hit.most_common(1)[0]
        found[kind.name] = {"name": name, "share": round(n / kind.size, 4)}
    return found


def agreement_with_gaps(types: Sequence[FailureType], records: Sequence[dict], source: Source, gaps: list) -> dict:
    """How well types match planted gaps, over the findings that lie in one; {} where no finding does.

    Returns {"types", "purity": rate of the findings in their type's dominant gap, "gaps": how many have findings,
    "gaps_with_a_type": how many dominate a type, "homogeneity", "completeness": of 1 (sklearn)}.
    """
    rows, of_type, of_gap, pure, own = {row["key"]: row for row in records}, [], [], 0, set()
    for place, kind in enumerate(types if gaps else ()):
        found = [source.gap(rows[key]["picture"], rows[key]["question"], gaps) for key in kind.keys]
        names = [gap for gap in found if gap]
        of_type, of_gap = of_type + [place] * len(names), of_gap + names
        for name, n in Counter(names).most_common(1):
            pure, own = pure + n, own | {name}
    if not of_gap:
        return {}
    return {
        "types": len(types),
        "purity": stats.rate(pure, len(of_gap)),
        "gaps": len(set(of_gap)),
        "gaps_with_a_type": len(own),
        "homogeneity": round(float(homogeneity_score(of_gap, of_type)), 4),
        "completeness": round(float(completeness_score(of_gap, of_type)), 4),
    }


def grade_rules(
    types: Sequence[FailureType], rules: Mapping[str, Rule], gap_of: Mapping[str, dict], source: Source, gaps: list
) -> dict:
    """Whether the rules of failure types name what was planted, on questions that the source draws anew; {} without
    gaps, and where no type lies in one.

    Of the types whose findings lie in one gap (ONE_GAP of them). A rule *names* its gap if all facts of the gap's
    condition follow from it, and each of its own conditions is needed for that: without it, one of them would not.

    Args:
        gap_of: as from `type_gaps`.

    Returns {"types": how many lie in one gap, "with_a_rule", "named": rate of the types, "by_type": {type's name:
    {"names": bool, "covers"?: rate of the questions in the gap that the rule holds for}}}.
    """
    by_name = {gap.name: gap for gap in gaps}
    lie = [kind.name for kind in types if gaps and gap_of[kind.name]["share"] >= ONE_GAP]
    lie = [name for name in lie if gap_of[name]["name"] in by_name]
    if not lie:
        return {}
    drawn = [(picture.key, source.question(picture.key) or "") for picture in source.pictures("rules", DRAWN, 0)]
    graded = {name: _names(rules[name], by_name[gap_of[name]["name"]], source, drawn) for name in lie if name in rules}
    named = stats.rate(sum(row["names"] for row in graded.values()), len(lie))
    return {"types": len(lie), "with_a_rule": len(graded), "named": named, "by_type": graded}


def _names(rule: Rule, gap, source: Source, drawn: Sequence[tuple[str, str]]) -> dict:
    """Whether a rule says what the condition of a gap says, on (picture, question) drawn anew."""
    asked = [(key, question) for key, question in drawn if rule.kind.asks(question)]
    # a gap with one of the facts alone, whose answer is never the true one
    alone = [replace(gap, when={fact: wanted}, says="\0") for fact, wanted in gap.when.items()]
    facts = [[source.gap(key, question, [one]) is not None for one in alone] for key, question in asked]

    def holds(conditions: tuple) -> list[bool]:
        only = replace(rule, conditions=conditions)
        return [
            only.holds(question, _first(source, key, question), partial(_first, source, key)) for key, question in asked
        ]

    def follow(inside: list[bool]) -> bool:
        """Whether all facts of the gap are there on nearly all questions inside."""
        some = [row for row, held in zip(facts, inside, strict=True) if held]
        return bool(some) and all(sum(column) >= FOLLOWS * len(some) for column in zip(*some, strict=True))

    inside, conditions = holds(rule.conditions), rule.conditions
    needed = [not follow(holds(conditions[:i] + conditions[i + 1 :])) for i in range(len(conditions))]
    of_gap = [held for held, one in zip(inside, asked, strict=True) if source.gap(*one, [gap]) is not None]
    covers = {"covers": stats.rate(sum(of_gap), len(of_gap))} if of_gap else {}
    return {"names": follow(inside) and all(needed), **covers}


def _first(source: Source, key: str, question: str) -> str:
    """The true answer; "" where there is none."""
    return next(iter(source.accepted(key, question)), "")


def _described(gap) -> dict:
    condition = ", ".join(f"{fact}: {_plain(value)}" for fact, value in gap.when.items())
    return {"name": gap.name, "skill": gap.skill, "condition": condition, "says": _plain(gap.says)}


def _plain(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{_plain(b)} for {_plain(a)}" for a, b in value.items())
    if isinstance(value, list):
        return " or ".join(map(_plain, value))
    return re.sub(
        r"\{(\w+)\}", lambda fact: f"the {fact[1].replace('remark_', 'remark’s ').replace('_', ' ')}", str(value)
    )


def agreement_in_words(against: dict) -> str:
    """What `agreement_with_gaps` found, in a sentence."""
    if not against:
        return "No finding lies in a gap that is known."
    own, known = against["gaps_with_a_type"], against["gaps"]
    return (
        f"{own} of {known} gaps with findings have a type of their own; purity {against['purity']['value']:.1%}, "
        f"homogeneity {against['homogeneity']:.2f}, completeness {against['completeness']:.2f}"
    )


def graded_in_words(planted: dict, rules: Mapping | None = None) -> list[str]:
    """What `grade_planted_gaps` found, in a sentence each: gaps found and missed, and how many findings are true; and
    what `grade_rules` did.
    """
    told = []
    if "planted" in planted:
        missed = ", ".join(planted["missed"]) or "none"
        told.append(f"{planted['found']} of {planted['planted']} planted gaps found; missed: {missed}")
    if "precision" in planted:
        alarms = len(planted["false_alarms"])
        told.append(f"{planted['precision']['value']:.1%} of the findings are true; {counted(alarms, 'false alarm')}")
    if rules:
        named = f"{rules['named']['value']:.0%} have a rule that names it"
        told.append(f"of {counted(rules['types'], 'type')} in one gap {named}")
    return told


def known_gaps(source: Source, target: str) -> list:
    """The gaps that are known of a target, named as in a parameter file; [] for an ordinary one."""
    return source.gaps(Path(downloads.resolve(target)))


def best_blind_question(
    target: Writer, source: Source, candidates: Sequence[str], pictures: Sequence[Picture], ask: Callable | None = None
) -> dict:
    """How far one fixed question gets that never looks: chosen on half of the pictures, rated on the other half.

    Args:
        target: the VLM.
        candidates: fixed questions to try, such as the untrained auditor's.
        pictures: list of Picture, at least two.
        ask: (vlm, pictures, questions) -> answers, such as an AnswerBook's `ask`; answer_questions if not given.

    Returns {"question", "rate", "chosen_on": its rate on the first half, "candidates"}; {} where none can be graded.
    """
    ask = ask or _ask
    candidates, half = list(dict.fromkeys(candidates)), len(pictures) // 2

    def successes(questions, some) -> dict[str, tuple[int, int]]:
        """Per question how often the target is wrong, and of how many. Without a truth there is nothing to ask."""
        rows, counted, wrong = [], Counter(), Counter()
        for question in questions:
            for picture in some:
                right = source.accepted(picture.key, question)
                counted[question] += bool(right) or source.complete
                rows += [(question, picture, right)] if right else []
        answers = ask(target, [row[1] for row in rows], [row[0] for row in rows]) if rows else []
        for (question, _, right), said in zip(rows, answers, strict=True):
            wrong[question] += not is_one_of(said, right)
        return {question: (wrong[question], n) for question, n in counted.items() if n}

    # a source that knows a question's answer on two pictures only must not make it the best by luck
    first = {q: r for q, r in successes(candidates, pictures[:half]).items() if r[1] >= min(10, half)}
    for question in sorted(first, key=lambda q: (-first[q][0] / first[q][1], q)):
        if last := successes([question], pictures[half:]):
            best = {
                "question": question,
                "rate": stats.rate(*last[question]),
                "chosen_on": stats.rate(*first[question]),
            }
            return {**best, "candidates": len(candidates)}
    return {}


def _ask(vlm, pictures, questions) -> list[str]:
    from auditkit.models.base import answer_questions

    return answer_questions(vlm, [picture.image for picture in pictures], questions)
