"""Does a larger model of the target's family fail where the target does?  (paper, Fig. 4: shares by failure type)

The peer answers the probes of every failure type, findings and those on which the target agreed, and is judged as the
target was. The paper shows normalised shares, target / (target + peer), each pair adding up to 100. They hide how
often either fails, so the absolute rates stand beside them, with intervals.

The probes were hunted for the target: where it fails is where the auditor asked. That flatters the peer, of which
nobody asked what it gets wrong. So the same is counted over the untrained auditor's questions of notebook 02, which
were hunted for nobody, where a type has at least `FEW` of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from auditkit import stats
from auditkit.consensus.normalise import normalise
from auditkit.consensus.same import Same
from auditkit.consensus.vote import vote_all
from auditkit.data.source import Source
from auditkit.findings.failure_types import ASKED, FailureType
from auditkit.findings.grouping import matcher
from auditkit.models.answers import AnswerBook
from auditkit.models.base import Writer

FEW = 20  # probes of a type below which a rate of the untrained auditor's alone says nothing


def compare_with_peer(
    types: Sequence[FailureType],
    scored: Sequence[dict],
    untrained: Sequence[dict],
    peer: Writer | None,
    source: Source,
    alike: Same,
    quorum: float,
    max_answer_tokens: int,
    folder: Path,
) -> dict[str, dict]:
    """How often target and peer depart from the consensus on the same probes of each failure type.

    Args:
        peer: None where there is none to compare with; then the result is {}.
        scored: the audit's records (score_probes).
        untrained: those of notebook 02; none where it was not run.
        source: images of the run, those that were made among them (with_counterfactuals).
        alike, quorum: as for `score_probes`.
        folder: gets answers.jsonl; what it holds is not asked again.

    Returns {type's name: {"target": rate, "peer": rate, "untrained"?: {"target": rate, "peer": rate}}}. A type's probes
    are those that ask alike and whose consensus is one of the type's, as for `rate_when`; one without any is absent.
    """
    if peer is None:
        return {}
    rows = {row["key"]: row for row in scored}
    asked = {kind.name: [rows[key] for key in kind.asked] for kind in types}
    nobody = {kind.name: _of_type(kind, untrained) for kind in types}
    put = {(row["picture"], row["question"]): row for some in (asked, nobody) for of in some.values() for row in of}
    pictures, questions = [source.picture(key) for key, _ in put], [question for _, question in put]
    said = AnswerBook(folder / "answers.jsonl").ask(peer, pictures, questions, max_answer_tokens)
    judged = [(row["question"], s, list(row["references"].values())) for row, s in zip(put.values(), said, strict=True)]
    verdicts = vote_all(judged, alike, quorum)
    peers = {one: verdict.disagrees or verdict.silent for one, verdict in zip(put, verdicts, strict=True)}

    def both(some: Sequence[dict]) -> dict:
        wrong = (
            sum(row["outcome"] == "finding" for row in some),
            sum(peers[row["picture"], row["question"]] for row in some),
        )
        return {side: stats.rate(n, len(some)) for side, n in zip(("target", "peer"), wrong, strict=True)}

    found = {}
    for kind in types:
        if not asked[kind.name]:  # all of it was met in training
            continue
        found[kind.name] = both(asked[kind.name])
        if len(nobody[kind.name]) >= FEW:
            found[kind.name]["untrained"] = both(nobody[kind.name])
    return found


def _of_type(kind: FailureType, records: Sequence[dict]) -> list[dict]:
    matches = matcher(kind.template, kind.questions)
    consensus = {normalise(pair["consensus"]) for pair in kind.confusion}
    return [
        row
        for row in records
        if row["outcome"] in ASKED and normalise(row["consensus"]) in consensus and matches(row["question"])
    ]
