"""Name and count what the target gets wrong, from the words of the findings alone.

A finding is a scored record with outcome "finding" (score_probes). Failure types are groups of findings that ask alike
and are answered alike, named by their own words (findings/grouping.py) or by a model (findings/llm_names.py). Nothing
here knows what a picture shows or what the truth is; findings/grading.py does, and only grades for the report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from auditkit import stats
from auditkit.consensus.normalise import normalise
from auditkit.findings.grouping import (
    NO_TEMPLATE,
    clusters_by_text,
    common_template,
    confusions,
    group_findings,
    group_name,
    of_templates,
)
from auditkit.runs.probe import TRAINING, audit_probes, only_findings
from auditkit.text import counted

ASKED = ("finding", "agrees")  # outcomes of the probes that could have become findings; the others were dropped
FOUND = 3  # true findings in its condition make a planted gap found
OUTSIDE = "outside all gaps"
ENOUGH = 5  # probes below which a rate is not told in words
SELDOM = 0.15  # of the probes of a kind at which the target is called strong, with the whole interval below
ADVISED = 20  # findings below which nothing is said of what to learn


@dataclass(frozen=True)
class FailureType:
    """A named group of findings.

    `rate` is how often such a question found a failure: findings over all probes that asked it. `rate_when` looks only
    at those of them whose consensus was one of the type's: "where the references said purple, …". Both are of the
    audit's probes, and {} where none of them asked it, so that all of the type's findings were met in training.
    """

    name: str  # template + what the target says instead
    template: str  # the words its questions share, variable parts as "…"
    size: int  # findings
    share: float  # of all findings
    rate: dict
    rate_when: dict
    confusion: list[dict]  # {"target", "consensus", "count"}, most frequent first
    questions: list[str]  # distinct, most frequent first
    examples: list[dict] = field(repr=False)  # up to 6 records, on different pictures
    keys: list[str] = field(repr=False)  # the keys of its findings
    asked: list[str] = field(repr=False)  # the keys of the probes that `rate_when` counts
    from_training: int = 0  # findings among its own that the auditor's training has met


def find_failure_types(records: Sequence[dict], most: int, types_by: str = "text") -> list[FailureType]:
    """Group the findings among scored records and name the groups, largest first.

    Args:
        records: all scored records of an audit (score_probes), not only the findings: the rest are the denominators;
            among them those that its training has met.
        most: the largest number of groups (`failure_types`).
        types_by: what makes findings alike, their "text" or an "embedding" of it.
    """
    findings, asked = only_findings(records), [r for r in audit_probes(records) if r.get("outcome") in ASKED]
    groups = [_Group(members) for members in group_findings(findings, most, types_by)]
    like = of_templates(((group.template, group.questions) for group in groups), (r["question"] for r in asked))
    types = [_type(group, asked, alike, len(findings)) for group, alike in zip(groups, like, strict=True)]
    return sorted(types, key=lambda t: (-t.size, t.name))


def explain_types(types: Sequence[FailureType], records: Sequence[dict]) -> str:
    """One paragraph in plain words: how often it fails, what it is strong and weak at, what to fine-tune on."""
    asked = [r for r in audit_probes(records) if r.get("outcome") in ASKED]
    if not asked:
        return "No probe got as far as a comparison, so nothing can be said about the target."
    total = stats.rate(len(only_findings(asked)), len(asked))
    text = [f"The target departed from its references on {_counted(total, 'questions that could be compared')}."]
    strong = _strong(asked, total["value"], types)
    if strong:
        text.append("It is strong at " + _list([f"“{t}” (wrong on {_counted(r)})" for t, r in strong]) + ".")
    if not types:
        return " ".join([*text, "No failure type was found."])
    told = (t for t in types if t.size >= FOUND and t.rate_when and t.rate_when["n"] >= ENOUGH)
    weak = sorted(told, key=lambda t: -t.rate_when["low"])[:3]
    if weak:
        listed = [f"“{t.name}” (wrong on {_counted(t.rate_when, 'such questions')})" for t in weak]
        text.append(f"It is weakest at {_list(listed)}.")
    findings, held, chosen = sum(t.size for t in types), 0, []
    if findings < ADVISED:
        few = counted(findings, "finding is", "findings are")
        return " ".join([*text, f"{few} too few to say what to fine-tune it on."])
    for t in types:  # the fewest types that hold half of the findings
        if held < findings / 2 and t.template != NO_TEMPLATE:
            held += t.size
            chosen.append(t)
    templates = list(dict.fromkeys(f"“{t.template}”" for t in chosen))
    if len(templates) > 5:
        templates = [*templates[:4], f"{len(templates) - 4} more"]
    if templates:
        text.append(
            f"To repair most with least, fine-tune it on {_list(templates)}: "
            f"{len(chosen)} of {len(types)} failure types hold {held} of {findings} findings."
        )
    return " ".join(text)


class _Group:
    """Findings that are alike, with what their questions share."""

    def __init__(self, members: list[dict]):
        self.members, self.questions = members, Counter(r["question"] for r in members)
        self.template = common_template(self.questions)


def _type(group: _Group, asked: Sequence[dict], like: set[str], total: int) -> FailureType:
    """The failure type of a group; `like` are the questions of its template among those of all probes `asked`."""
    members, keys = group.members, {r["key"] for r in group.members}
    met = sum(r.get("checkpoint") == TRAINING for r in members)
    alike = [r for r in asked if r["question"] in like or r["key"] in keys]
    consensus = {normalise(r["consensus"]) for r in members}
    when = [r for r in alike if normalise(r["consensus"]) in consensus]
    return FailureType(
        name=group_name(members, group.template),
        template=group.template,
        size=len(members),
        share=round(len(members) / total, 4),
        rate=stats.rate(len(members) - met, len(alike)) if alike else {},
        rate_when=stats.rate(len(members) - met, len(when)) if when else {},
        confusion=confusions(members)[:12],
        questions=[q for q, _ in group.questions.most_common(12)],
        examples=_telling(members),
        keys=sorted(keys),
        asked=sorted(r["key"] for r in when),
        from_training=met,
    )


def _telling(findings: Sequence[dict], most: int = 6) -> list[dict]:
    """The findings its references agree on most, first such that differ in picture, confusion and question.

    Of those on which they agree alike, one of the commonest confusion is the first, for the type may be named by it.
    """
    common = confusions(findings)[0]

    def rare(r: dict) -> bool:
        return any(normalise(r[side]) != normalise(common[side]) for side in ("target", "consensus"))

    left = sorted(findings, key=lambda r: (-(r.get("agreement") or 0), rare(r), r["key"]))
    chosen, seen = [], Counter()

    def facts(r):
        return ("picture", r["picture"]), ("says", r["target"], r["consensus"]), ("asks", r["question"])

    while left and len(chosen) < most:
        pick = min(left, key=lambda r: [seen[f] for f in facts(r)])  # the first of equals, so agreement decides
        if seen[("picture", pick["picture"])]:
            break
        chosen.append(pick)
        left.remove(pick)
        seen.update(facts(pick))
    return chosen


def _strong(asked: Sequence[dict], usual: float, types: Sequence[FailureType], most: int = 3) -> list[tuple[str, dict]]:
    """Question templates asked at least 20 times and surely seldom wrong: (template, rate), surest first.

    None in which a failure type shows that the target is mostly wrong where the references say certain things.
    """
    at = {r["key"]: r["question"] for r in asked}
    weak = {at[key] for t in types if t.rate_when and t.rate_when["value"] > 0.5 for key in t.asked if key in at}
    kinds, often = {}, Counter(r["question"] for r in asked)
    wrong = Counter(r["question"] for r in only_findings(asked))
    clusters = clusters_by_text([(r["question"], "") for r in asked], 24)
    groups = []
    for cluster in clusters:
        questions = Counter(asked[i]["question"] for i in cluster)
        groups.append((common_template(questions), questions))
    for (template, _), alike in zip(groups, of_templates(groups, often), strict=True):
        n = sum(often[question] for question in alike)
        if n >= 20 and not weak & alike:
            kinds[template] = stats.rate(sum(wrong[question] for question in alike), n)
    good = [(template, r) for template, r in kinds.items() if r["high"] < min(usual, SELDOM)]
    return sorted(good, key=lambda item: item[1]["high"])[:most]


def _counted(r: dict, things: str = "") -> str:
    return f"{round(r['value'] * r['n']):,} of {r['n']:,} {things}".rstrip() + f", {r['value']:.0%}"


def _list(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
