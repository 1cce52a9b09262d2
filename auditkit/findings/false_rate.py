"""How many findings are false?  An estimate for those who have no truth to ask.

A finding is false where the consensus is: the references share a blind spot, or agree on nonsense, and the target was
right to depart. Nothing in their own votes can show it, so somebody who did not vote has to be asked. Two ways:

leave one out: wherever one reference sides with the target against the others, the finding is contested. It needs no
    further model, and sees only what not all references are blind to.
held out: a model that is no reference answers all probes too; where it says what the target says, it contests.

Both divide the contested share by how often the one who is asked knows an answer that nobody doubts (those on which
target and references agree), for who errs cannot contest: Rogan and Gladen's correction of a prevalence, with a
specificity of 1. So a contesting model that shares a fault of the target counts a true finding as false, and one that
shares the references' blind spot overlooks a false one. Among thousands of findings the former is more than chance, and
the interval allows for it where it can: if a held-out model sides with the target against *all* references, either they
have a blind spot in common or it has the target's fault, and nobody who was asked can tell. So the lower end leaves
these findings out, and the upper one counts them all (bounds of what cannot be identified, as Manski's, beside chance).
Where the truth is known, `grade_planted_gaps` says what it is.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from auditkit import stats
from auditkit.consensus.same import Same
from auditkit.data.source import Source
from auditkit.errors import AuditError
from auditkit.findings.failure_types import ASKED
from auditkit.models.answers import AnswerBook
from auditkit.models.base import Writer
from auditkit.runs.probe import only_findings


def leave_one_out(scored: Sequence[dict], alike: Same) -> dict:
    """The estimated share of false findings, by the references themselves.

    Args:
        scored: records of score_probes; "agrees" says how well references know what nobody doubts.
        alike: when two answers mean the same.

    Returns {"value", "low", "high", "n": findings, "contested": findings, "knows": rate}.

    Raises AuditError where it cannot be assessed: without findings, and where a consensus is of all references, so that
    none can side with the target.
    """
    found, agreed = only_findings(scored), [row for row in scored if row["outcome"] == "agrees"]
    if found and all(row["agreement"] > 1 - 1e-9 for row in [*found, *agreed]):
        raise AuditError("false findings cannot be estimated by leaving one reference out: all of them always agree.")
    contested = [any(_says(said, row, "target", alike) for said in row["references"].values()) for row in found]
    knows = [_says(said, row, "consensus", alike) for row in agreed for said in row["references"].values()]
    return _estimate(contested, knows)


def held_out(scored: Sequence[dict], said: Mapping[str, str], alike: Same) -> dict:
    """The estimated share of false findings, by a model that is no reference; arguments and result as above.

    Args:
        said: what that model answers to the probes with outcome "finding" and "agrees", by their keys.

    The result has besides "against_all": contested findings on which all references agreed.
    """
    found, agreed = only_findings(scored), [row for row in scored if row["outcome"] == "agrees"]
    contested = [_says(said[row["key"]], row, "target", alike) for row in found]
    divided = [one and row["agreement"] < 1 - 1e-9 for one, row in zip(contested, found, strict=True)]
    knows = [_says(said[row["key"]], row, "consensus", alike) for row in agreed]
    return _estimate(contested, knows, divided) | {"against_all": sum(contested) - sum(divided)}


def estimate_false_rate(
    scored: Sequence[dict], peer: Writer | None, source: Source, alike: Same, max_answer_tokens: int, folder: Path
) -> dict[str, dict]:
    """Both estimates as far as they can be had: {"leave_one_out"?, "held_out"?: by the peer}.

    Args:
        peer: the larger model to compare with; one that is a reference has voted and is not asked.
        source: images of the run, those that were made among them (with_counterfactuals).
        alike: when two answers mean the same.
        folder: gets answers.jsonl; what it holds is not asked again.
    """
    found = {}
    rows = [row for row in scored if row["outcome"] in ASKED]
    try:
        found["leave_one_out"] = leave_one_out(rows, alike)
    except AuditError as cannot:
        print(cannot)
    if peer is None or not rows or peer.name in rows[0]["references"]:
        return found
    pictures, questions = [source.picture(row["picture"]) for row in rows], [row["question"] for row in rows]
    said = AnswerBook(folder / "answers.jsonl").ask(peer, pictures, questions, max_answer_tokens)
    try:
        found["held_out"] = held_out(rows, {row["key"]: one for row, one in zip(rows, said, strict=True)}, alike)
    except AuditError as cannot:
        print(cannot)
    return found


def _says(said: str, row: Mapping, side: str, alike: Same) -> bool:
    return alike(said, row[side], row["question"])


def _estimate(contested: Sequence[bool], knows: Sequence[bool], surely: Sequence[bool] | None = None) -> dict:
    """Contested share over how often the one asked knows the answer; the interval's ends take the other's ends.

    Args:
        surely: which findings the lower end counts as contested; the same where it is left out.
    """
    if not contested or not any(knows):
        raise AuditError(
            f"false findings cannot be estimated from {len(contested)} findings and {sum(knows)} answers nobody doubts."
        )
    share, known = stats.rate(sum(contested), len(contested)), stats.rate(sum(knows), len(knows))
    least = share if surely is None else stats.rate(sum(surely), len(surely))
    ends = {
        "value": share["value"] / known["value"],
        "low": least["low"] / known["high"],
        "high": share["high"] / known["low"],
    }
    bounded = {end: round(min(1.0, value), 4) for end, value in ends.items()}
    return bounded | {"n": share["n"], "contested": sum(contested), "knows": known}
