"""Name and count what the target gets wrong, from the words of the findings alone.

A finding is a scored record with gate "ok" (audit.score). Failure types are groups of findings that ask alike and
are answered alike, named by their own words (naming.py) or by a model (namer.py). Nothing in `failure_types` and
`explain` knows what a picture shows or what the truth is.

`search_success`, `planted`, `type_gaps`, `agreement_with_gaps` and `best_blind_question` are different: they ask the
oracle, and only grade for the report.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from sklearn.metrics import completeness_score, homogeneity_score

from auditkit import naming
from auditkit.disagreement import normalise, same_text
from auditkit.errors import AuditError
from auditkit.stats import rate

ASKED = ("ok", "agrees")  # gates of the probes that could have become findings; the others were dropped
FOUND = 3  # true findings in its condition make a planted gap found
OUTSIDE = "outside all gaps"


@dataclass(frozen=True)
class FailureType:
    """A named group of findings.

    `rate` is how often such a question found a failure: findings over all probes that asked it. `rate_when` looks only
    at those of them whose consensus was one of the type's: "where the references said purple, …".
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


def only_findings(records: Sequence[dict]) -> list[dict]:
    """The records on which the target departed from a consensus and every gate held."""
    return [record for record in records if record.get("gate") == "ok"]


def failure_types(records: Sequence[dict], p) -> list[FailureType]:
    """Group the findings among scored records and name the groups, largest first.

    Args:
        records: all scored records of an audit (audit.score), not only the findings: the rest are the denominators.
        p: uses `failure_types`, the largest number of groups, and `types_by`, what makes findings alike.
    """
    findings, asked = only_findings(records), [r for r in records if r.get("gate") in ASKED]
    types = [_type(members, asked, len(findings)) for members in naming.groups(findings, p.failure_types, p.types_by)]
    return sorted(types, key=lambda t: (-t.size, t.name))


def explain(types: Sequence[FailureType], records: Sequence[dict]) -> str:
    """One paragraph in plain words: how often it fails, what it is strong and weak at, what to fine-tune on."""
    asked = [r for r in records if r.get("gate") in ASKED]
    if not asked:
        return "No probe got as far as a comparison, so nothing can be said about the target."
    total = rate(len(only_findings(asked)), len(asked))
    text = [f"The target departed from its references on {_counted(total, 'questions that could be compared')}."]
    strong = _strong(asked, total["value"])
    if strong:
        text.append("It is strong at " + _list([f"“{t}” (wrong on {_counted(r)})" for t, r in strong]) + ".")
    if not types:
        return " ".join([*text, "No failure type was found."])
    weak = sorted((t for t in types if t.size >= 3), key=lambda t: -t.rate_when["low"])[:3]
    if weak:
        listed = [f"“{t.name}” (wrong on {_counted(t.rate_when, 'such questions')})" for t in weak]
        text.append(f"It is weakest at {_list(listed)}.")
    held, chosen, half = 0, 0, sum(t.size for t in types) / 2
    for t in types:  # the fewest types that hold half of the findings
        if held < half:
            held, chosen = held + t.size, chosen + 1
    templates = list(dict.fromkeys(f"“{t.template}”" for t in types[:chosen]))
    if len(templates) > 5:
        templates = [*templates[:4], f"{len(templates) - 4} more"]
    text.append(
        f"To repair most with least, fine-tune it on {_list(templates)}: "
        f"{chosen} of {len(types)} failure types hold {held} of {sum(t.size for t in types)} findings."
    )
    return " ".join(text)


def _type(members: list[dict], asked: list[dict], total: int) -> FailureType:
    questions = [r["question"] for r in members]
    template = naming.template(questions)
    matches, keys = naming.matcher(template, questions), {r["key"] for r in members}
    alike = [r for r in asked if r["key"] in keys or matches(r["question"])]
    consensus = {normalise(r["consensus"]) for r in members}
    when = [r for r in alike if normalise(r["consensus"]) in consensus]
    return FailureType(
        name=naming.name(members),
        template=template,
        size=len(members),
        share=round(len(members) / total, 4),
        rate=rate(len(members), len(alike)),
        rate_when=rate(len(members), len(when)),
        confusion=naming.confusions(members)[:12],
        questions=[q for q, _ in Counter(questions).most_common(12)],
        examples=_telling(members),
        keys=sorted(keys),
        asked=sorted(r["key"] for r in when),
    )


def _telling(findings: Sequence[dict], most: int = 6) -> list[dict]:
    """The findings its references agree on most, first such that differ in picture, confusion and question."""
    left = sorted(findings, key=lambda r: (-(r.get("agreement") or 0), r["key"]))
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


def _strong(asked: Sequence[dict], usual: float, most: int = 3) -> list[tuple[str, dict]]:
    """Question templates asked at least 20 times and surely seldom wrong: (template, rate), surest first."""
    kinds = {}
    for cluster in naming.clusters([(r["question"], "") for r in asked], 24):
        questions = [asked[i]["question"] for i in cluster]
        template = naming.template(questions)
        matches = naming.matcher(template, questions)
        alike = [r for r in asked if matches(r["question"])]
        if len(alike) >= 20:
            kinds[template] = rate(sum(r["gate"] == "ok" for r in alike), len(alike))
    good = [(template, r) for template, r in kinds.items() if r["high"] < min(usual, 0.25)]
    return sorted(good, key=lambda item: item[1]["high"])[:most]


def _counted(r: dict, things: str = "") -> str:
    return f"{round(r['value'] * r['n']):,} of {r['n']:,} {things}".rstrip() + f", {r['value']:.0%}"


def _list(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


# ---- pictures that were made ----------------------------------------------------------------------------------------


def painted(scored: Sequence[dict], pictures: Sequence[dict], p) -> dict:
    """How the making of pictures went, from an audit's scored records and its album's rows (album.FILE).

    Args:
        p: uses edit_region and edit_rest.

    Returns {"images": {"asked", "made", "dropped": {reason: count}, "cut", "seconds_each"}, "editor":
    {"command_applied": rate, "rest_unchanged": rate}, "generator": {"objects_present": rate}}. `cut` counts texts whose
    end was not read. By the references' word on each wish's check; with a picture judge both also have
    "towards_the_wish": rate, by its word alone. Keys without a single picture are absent.
    """
    wishes = [row for row in scored if row["way"] != "question" and row["pairing"] == "(Q*, I*)" and row["made"]]
    if not wishes:
        return {}
    dropped = Counter(row["why"].split(":")[0] for row in wishes if row.get("why"))
    result: dict = {"images": {"asked": len(wishes), "made": len(wishes) - sum(dropped.values())}}
    result["images"] |= {"dropped": dict(dropped.most_common()), "cut": sum(bool(row["cut"]) for row in pictures)}
    seconds = [row["seconds"] for row in pictures]
    result["images"] |= {"seconds_each": round(sum(seconds) / len(seconds), 4)} if seconds else {}
    for way, model, name in (("edit", "editor", "command_applied"), ("regenerate", "generator", "objects_present")):
        checked = [
            row for row in wishes if row["way"] == way and row.get("checked") and row.get("why") != "implausible"
        ]
        if checked:
            right = sum(row.get("why") != "not applied" for row in checked)
            result.setdefault(model, {})[name] = rate(right, len(checked))
        if gains := [row["gain"] for row in wishes if row["way"] == way and row.get("gain") is not None]:
            above = sum(gain > p.picture_gain for gain in gains)
            result.setdefault(model, {})["towards_the_wish"] = rate(above, len(gains))
    edits = [row for row in pictures if row["way"] == "edit" and row["share"] is not None]
    if edits:
        same = sum((row["rest"] or 0) >= p.edit_rest and row["share"] <= p.edit_region for row in edits)
        result.setdefault("editor", {})["rest_unchanged"] = rate(same, len(edits))
    return result


def before_and_after(rows: Sequence[dict], source) -> list[dict]:
    """Scored records of pictures that were made, with both pictures and all answers, as `plots.pairs` shows them.

    source: images of the run with the made pictures among them (album.within).
    """
    found = []
    for row in rows:
        old = row.get("before") or {}
        found.append(
            row
            | {"before_image": source.picture(row["base"]).image, "image": source.picture(row["picture"]).image}
            | {"box": source.made[row["picture"]].box, "consensus_before": row.get("consensus_before")}
            | {"target_before": old.get("target"), "references_before": old.get("references")}
        )
    return found


def irrelevant_edits(scored: Sequence[dict]) -> list[dict]:
    """The findings on which an edit that left the consensus as it was turned the target (paper, Sec. 3.2), by key."""
    return sorted((row for row in scored if row.get("irrelevant_edit")), key=lambda row: row["key"])


def by(scored: Sequence[dict], field: str, source) -> dict[str, dict]:
    """What the probes of each way, or each pairing, came to.

    Args:
        field: "way" or "pairing".

    Returns {value: {"probes", "search_success"?: rate, "by_consensus": rate, "precision"?: rate, "findings"}}; what
    the source cannot grade is absent.
    """
    parts: dict[str, list[dict]] = {}
    for row in scored:
        parts.setdefault(row[field], []).append(row)
    found = {}
    for value, rows in parts.items():
        kept = only_findings(rows)
        found[value] = {"probes": len(rows), "findings": len(kept), "by_consensus": rate(len(kept), len(rows))}
        try:
            found[value]["search_success"] = search_success(rows, source)
        except AuditError:
            pass
        if (precision := planted(kept, source, []).get("precision")) is not None:
            found[value]["precision"] = precision
    return found


# ---- grading, where the source of the images knows the truth --------------------------------------------------------


def search_success(records: Sequence[dict], source) -> dict:
    """Share of probes on which the target is truly wrong (paper, Sec. 4.1), judged by the source, not by the consensus.

    For a complete source a malformed probe, a question without an answer and a picture that was dropped are no success.
    Another source cannot tell what it does not know: there, only probes of known answer count. Raises AuditError where
    no probe can be graded.
    """
    graded = []
    for record in records:
        question = None if record.get("gate") == "bad picture" else record["question"]
        truth = source.truth(record["picture"], question) if question else None
        if truth is not None or source.complete:
            graded.append(truth is not None and not same_text(record["target"], truth))
    if not graded:
        raise AuditError(
            f"search success cannot be assessed: {source.name} knows the answer to none of the {len(records)} probes."
        )
    return rate(sum(graded), len(graded))


def planted(records: Sequence[dict], source, gaps: list) -> dict:
    """Which of the target's known gaps the audit found, and which of its findings are false alarms.

    A gap is found if at least 3 findings lie in its condition and the target is truly wrong there. A false alarm is a
    finding on which the target was right, or whose question has no answer. Keys that cannot be measured are absent.

    Returns {"planted", "found", "missed": [name], "recall": rate, "findings_outside_gaps", "precision": rate,
    "gaps": [{"name", "skill", "condition", "says", "probes", "findings", "found"}],
    "false_alarms": [record + "truth", "reason"], "false_alarm_groups": [{"name", "size", "reason"}]}.
    """
    alarms, true, findings, probes = [], 0, Counter(), Counter()
    for record in records:
        if record.get("gate") not in ASKED:
            continue
        key, question = record["picture"], record["question"]
        gap = source.gap(key, question, gaps) if gaps else None
        probes[gap] += 1
        if record["gate"] == "agrees":
            continue
        truth = source.truth(key, question)
        if truth is not None and not same_text(record["target"], truth):
            true += 1
            findings[gap] += 1
        elif truth is not None:
            alarms.append({**record, "truth": truth, "reason": "the target was right"})
        elif source.complete:
            alarms.append({**record, "truth": None, "reason": "the question has no answer"})
    result = {}
    if gaps:
        rows = []
        for gap in gaps:
            n = findings[gap.name]
            rows.append({**_described(gap), "probes": probes[gap.name], "findings": n, "found": n >= FOUND})
        found = sum(row["found"] for row in rows)
        result = {
            "planted": len(rows),
            "found": found,
            "missed": [row["name"] for row in rows if not row["found"]],
            "recall": rate(found, len(rows)),
            "gaps": rows,
            "findings_outside_gaps": findings[None],
        }
    if true + len(alarms):
        groups = []
        for reason in sorted({alarm["reason"] for alarm in alarms}):
            for members in naming.groups([alarm for alarm in alarms if alarm["reason"] == reason], 12):
                groups.append({"name": naming.name(members), "size": len(members), "reason": reason})
        result["precision"] = rate(true, true + len(alarms))
        result["false_alarms"] = alarms
        result["false_alarm_groups"] = sorted(groups, key=lambda group: (-group["size"], group["name"]))
    return result


def probes_until(gaps: Sequence[dict], probes: int, share: float) -> int | None:
    """How many probes an audit needs, on average, until this share of the planted gaps have three true findings each.

    Its probes are taken in a random order, 200 times over; None where the audit, all of it, does not get there.

    Args:
        gaps: as `planted` gives them, with "findings".
        probes: of the audit, all of them.
        share: of the gaps, above 0 and at most 1.

    >>> gaps = [{"findings": 300}, {"findings": 3}, {"findings": 2}, {"findings": 0}]
    >>> probes_until(gaps, 1000, 0.25), 600 < probes_until(gaps, 1000, 0.5) < 900, probes_until(gaps, 1000, 0.75)
    (10, True, None)
    """
    rng, wanted = np.random.default_rng(0), math.ceil(share * len(gaps))
    found = [gap["findings"] for gap in gaps if gap["findings"] >= FOUND]
    if not gaps or len(found) < wanted:
        return None
    # where in the order the third finding of each gap comes: positions of findings, of which the third is taken
    third = [np.sort(rng.random((200, n)), axis=1)[:, FOUND - 1] for n in found]  # [gaps][200], 0 to 1
    return math.ceil(probes * np.sort(third, axis=0)[wanted - 1].mean())


def type_gaps(types: Sequence[FailureType], records: Sequence[dict], source, gaps: list) -> dict[str, dict]:
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


def agreement_with_gaps(types: Sequence[FailureType], records: Sequence[dict], source, gaps: list) -> dict:
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
        "purity": rate(pure, len(of_gap)),
        "gaps": len(set(of_gap)),
        "gaps_with_a_type": len(own),
        "homogeneity": round(float(homogeneity_score(of_gap, of_type)), 4),
        "completeness": round(float(completeness_score(of_gap, of_type)), 4),
    }


def _described(gap) -> dict:
    condition = ", ".join(f"{fact}: {_plain(value)}" for fact, value in gap.when.items())
    return {"name": gap.name, "skill": gap.skill, "condition": condition, "says": _plain(gap.says)}


def _plain(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{b} for {a}" for a, b in value.items())
    return " or ".join(map(str, value)) if isinstance(value, list) else str(value)


def best_blind_question(
    target, source, candidates: Sequence[str], pictures: Sequence, ask: Callable | None = None
) -> dict:
    """How far one fixed question gets that never looks: chosen on half of the pictures, rated on the other half.

    Args:
        target: the VLM.
        candidates: fixed questions to try, such as the untrained auditor's.
        pictures: list of images.Picture, at least two.
        ask: (vlm, pictures, questions) -> answers, such as an AnswerBook's `ask`; vlm.answer if not given.

    Returns {"question", "rate", "chosen_on": its rate on the first half, "candidates"}; {} where none can be graded.
    """
    ask = ask or _ask
    candidates, half = list(dict.fromkeys(candidates)), len(pictures) // 2

    def successes(questions, some) -> dict[str, tuple[int, int]]:
        """Per question how often the target is wrong, and of how many. Without a truth there is nothing to ask."""
        rows, counted, wrong = [], Counter(), Counter()
        for question in questions:
            for picture in some:
                truth = source.truth(picture.key, question)
                counted[question] += truth is not None or source.complete
                rows += [(question, picture, truth)] if truth is not None else []
        answers = ask(target, [row[1] for row in rows], [row[0] for row in rows]) if rows else []
        for (question, _, truth), said in zip(rows, answers, strict=True):
            wrong[question] += not same_text(said, truth)
        return {question: (wrong[question], n) for question, n in counted.items() if n}

    # a source that knows a question's answer on two pictures only must not make it the best by luck
    first = {q: r for q, r in successes(candidates, pictures[:half]).items() if r[1] >= min(10, half)}
    for question in sorted(first, key=lambda q: (-first[q][0] / first[q][1], q)):
        if last := successes([question], pictures[half:]):
            best = {"question": question, "rate": rate(*last[question]), "chosen_on": rate(*first[question])}
            return {**best, "candidates": len(candidates)}
    return {}


def _ask(vlm, pictures, questions) -> list[str]:
    from auditkit.vlm import answer

    return answer(vlm, [picture.image for picture in pictures], questions)
