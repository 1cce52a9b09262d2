"""A person's word on the findings: what is shown to them, what they said, and what follows from it.

(not in the paper, whose authors looked at examples by hand and gave no numbers.)

What is shown is a random sample in a fixed order, so the first so many cards are one as well and a person may stop
anywhere. One card in four is no finding but a probe on which all agreed or which a gate dropped; nothing on a card says
which it is. So a person's word measures the gates, too: how many findings are failures (precision), and how often the
gates and the person say the same of a probe (agreement, Cohen's kappa), each kind of card weighted by how many probes
of its kind there are.

What they say goes to reviews.jsonl in the findings' folder, one row a decision, only ever appended to:

    {"key", "decision": accept | reject | relabel | undo, "answer"? (of relabel), "note", "when", "shown"}

The last row of a key counts; "undo" takes the decision back. `shown` is a mark of what was on the card: a row whose
probe says something else by now, after a new audit, counts no more. Starting a stage over keeps the file (KEPT).

accept: the target is wrong, and the consensus is right. relabel: the target is wrong, and this is the right answer.
reject: no failure; the target is right, or the question makes no sense on this picture.
"""

import hashlib
import json
import math
import random
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from auditkit import stats
from auditkit.consensus.normalise import same_text
from auditkit.errors import AuditError
from auditkit.findings.failure_types import ASKED
from auditkit.runs import jsonl
from auditkit.runs.folder import KEPT
from auditkit.runs.probe import SUMMARY_KEYS, only_findings

FILE = KEPT
DECISIONS = ("accept", "reject", "relabel", "undo")
OTHERS = 1 / 3  # probes that are no findings, for each finding: one card in four
UNSEEN = ("finding", "malformed", "duplicate")  # no question to look at, or one that is looked at already


def queue(scored: Sequence[dict], seed: int) -> list[dict]:
    """The records to review, in their fixed random order: all findings, and other probes among them.

    The order depends on the keys and the seed alone. [] where nothing was found.
    """
    dice = random.Random(f"{seed}/review")
    found, rest = (sorted(rows, key=lambda row: row["key"]) for rows in _strata(scored))
    dice.shuffle(found)
    dice.shuffle(rest)
    order = found + rest[: math.ceil(OTHERS * len(found))]
    dice.shuffle(order)
    return order


def mark(row: Mapping) -> str:
    """A mark of all that a record's card shows."""
    content = [row[name] for name in ("picture", "question", "target", "references", "consensus")]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def decision(row: Mapping, what: str, answer: str = "", note: str = "") -> dict:
    """The row of reviews.jsonl that says what a person decided about a record.

    Raises AuditError, with a sentence for that person, where the decision contradicts what is on the card.
    """
    answer, note = " ".join(answer.split()), note.strip()
    if what == "accept" and row["consensus"] is None:
        raise AuditError("The references do not agree here, so there is no answer to accept: write the right one.")
    if what == "accept" and same_text(row["target"], row["consensus"]):
        raise AuditError("The target says what the references say: reject this, or write the right answer.")
    if what == "relabel" and not answer:
        raise AuditError("Write the right answer first.")
    if what == "relabel" and same_text(row["target"], answer):
        raise AuditError("That is what the target says, so it is no failure: reject this.")
    said = {"key": row["key"], "decision": what} | ({"answer": answer} if what == "relabel" else {})
    return said | {"note": note, "when": datetime.now(UTC).isoformat(timespec="seconds"), "shown": mark(row)}


def decisions(folder: Path, scored: Sequence[dict]) -> dict[str, dict]:
    """What a person decided, by key: the last word on each record that is still what it was.

    Args:
        folder: of the findings, 06_findings; without a reviews.jsonl there, {}.
        scored: the records of the audit (score_probes).

    Raises AuditError for a row that is no decision, naming file and key.
    """
    path, marks, last = Path(folder) / FILE, {}, {}
    said = jsonl.read(path)
    if said:
        keys = {row.get("key") for row in said}
        marks = {row["key"]: mark(row) for row in scored if row["key"] in keys}
    for number, row in enumerate(said, 1):
        if row.get("decision") not in DECISIONS or (row["decision"] == "relabel" and not row.get("answer")):
            raise AuditError(
                f"{path}, line {number} ({row.get('key')!r}) is no decision: write accept, reject, relabel with an "
                "answer, or undo."
            )
        if row.get("key") in marks and row.get("shown", marks[row["key"]]) == marks[row["key"]]:
            last[row["key"]] = row
    return {key: row for key, row in last.items() if row["decision"] != "undo"}


# ---- what follows for the repair ------------------------------------------------------------------------------------


def changes(scored: Sequence[dict], decided: Mapping[str, dict]) -> dict[str, str | None]:
    """What a review changes of what is learnt: key -> the person's answer, or None where a finding is left out."""
    found = {}
    for row in scored:
        said = decided.get(row["key"])
        if said is None or row["outcome"] not in ASKED:
            continue
        if said["decision"] == "relabel":
            found[row["key"]] = said["answer"]
        elif said["decision"] == "reject" and row["outcome"] == "finding":
            found[row["key"]] = None
    return found


def corrected(scored: Sequence[dict], changed: Mapping[str, str | None]) -> list[dict]:
    """The records as a person wants them learnt: rejected findings left out, relabelled ones with the person's answer.

    The records given stay as they are, and keys too, so that each leads back to its probe; what the references had
    agreed on is kept as "consensus_by_references".

    >>> rows = [{"key": "a", "consensus": "red"}, {"key": "b", "consensus": "two"}, {"key": "c", "consensus": "yes"}]
    >>> [(row["key"], row["consensus"]) for row in corrected(rows, {"a": "pink", "b": None})]
    [('a', 'pink'), ('c', 'yes')]
    """
    rows = []
    for row in scored:
        if row["key"] in changed:
            if changed[row["key"]] is None:
                continue
            row = {**row, "consensus": changed[row["key"]], "consensus_by_references": row["consensus"]}
        rows.append(row)
    return rows


def told(changed: Mapping[str, str | None]) -> dict:
    """What notebook 07 notes about the review it learnt from: {} where that changed nothing."""
    if not changed:
        return {}
    left_out = sum(answer is None for answer in changed.values())
    digest = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:12]
    return {"left_out": left_out, "relabelled": len(changed) - left_out, "digest": digest}


# ---- what it measures -----------------------------------------------------------------------------------------------


def measures(scored: Sequence[dict], decided: Mapping[str, dict], seed: int) -> dict:
    """What a review says about the findings and the gates; {} without one.

    Returns {"reviewed", "accepted", "rejected", "relabelled", "passed_over", "precision_by_human"?: rate over the
    findings reviewed, "by_gate": {gate: rate of probes that the person calls failures}, "agreement"?: rate,
    "kappa"?}. The last two speak of all probes that could have been shown: absent until a card of each kind there is
    was judged. `passed_over` are cards before the last judged one: were they the hard ones, the rates flatter.
    """
    order = queue(scored, seed) if decided else []
    places = [place for place, row in enumerate(order) if row["key"] in decided]
    if not places:
        return {}
    seen = [order[place] for place in places]
    what = [decided[row["key"]]["decision"] for row in seen]
    found: dict = {"reviewed": len(seen), "accepted": what.count("accept"), "rejected": what.count("reject")}
    found |= {"relabelled": what.count("relabel"), "passed_over": places[-1] + 1 - len(places)}
    is_finding, failures = [row["outcome"] == "finding" for row in seen], [said != "reject" for said in what]
    of = {outcome: [] for outcome in sorted({row["outcome"] for row in seen})}
    for row, failure in zip(seen, failures, strict=True):
        of[row["outcome"]].append(failure)
    found["by_gate"] = {SUMMARY_KEYS.get(name, name): stats.rate(sum(said), len(said)) for name, said in of.items()}
    if "finding" in of:
        found["precision_by_human"] = found["by_gate"][SUMMARY_KEYS["finding"]]
    return found | _agreement(is_finding, failures, [len(rows) for rows in _strata(scored)])


def _agreement(is_finding: Sequence[bool], failures: Sequence[bool], sizes: Sequence[int]) -> dict:
    """Agreement and kappa over all probes, from a sample of findings and one of the rest, `sizes` many there are."""
    alike = {True: [], False: []}
    for finding, failure in zip(is_finding, failures, strict=True):
        alike[finding].append(finding == failure)
    kinds = [(alike[gate], size) for gate, size in zip((True, False), sizes, strict=True) if size]
    if not all(said for said, _ in kinds):
        return {}
    rates = [stats.rate(sum(said), len(said)) for said, _ in kinds]
    agreed = {"agreement": stats.mean(rates, [size for _, size in kinds])}
    from sklearn.metrics import cohen_kappa_score

    weights = [sizes[0] / len(alike[True]) if finding else sizes[1] / len(alike[False]) for finding in is_finding]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a table with one class, whose kappa is no number
        kappa = float(cohen_kappa_score(is_finding, failures, sample_weight=weights, labels=[False, True]))
    return agreed if math.isnan(kappa) else agreed | {"kappa": round(kappa, 4)}


def _strata(scored: Sequence[dict]) -> tuple[list[dict], list[dict]]:
    """The findings, and the other probes that a person can judge."""
    return only_findings(scored), [row for row in scored if row["outcome"] not in UNSEEN and row["target"] is not None]
