"""Does a larger model of the target's family fail where the target does?  (paper, Fig. 4: shares by failure type)

The peer answers the probes of every failure type, findings and those on which the target agreed, and is judged as the
target was. The paper shows normalised shares, target / (target + peer), each pair adding up to 100. They hide how
often either fails, so the absolute rates stand beside them, with intervals.

The probes were hunted for the target: where it fails is where the auditor asked. That flatters the peer, of which
nobody asked what it gets wrong. So the same is counted over the untrained auditor's probes alone, which were hunted for
nobody, where these are at least `FEW`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from auditkit import disagreement
from auditkit.findings import FailureType
from auditkit.stats import rate
from auditkit.vlm import AnswerBook, Writer

UNTRAINED = "untrained"  # the checkpoint whose probes were hunted for nobody (notebook 05)
FEW = 20  # probes of a type below which a rate of the untrained auditor's alone says nothing


def compared(
    types: Sequence[FailureType], scored: Sequence[dict], peer: Writer, source, p, folder: Path
) -> dict[str, dict]:
    """How often target and peer depart from the consensus on the same probes of each failure type.

    Args:
        scored: the audit's records (audit.score).
        source: images of the run, those that were made among them (album.within).
        p: uses quorum, same and max_answer_tokens.
        folder: gets answers.jsonl; what it holds is not asked again.

    Returns {type's name: {"target": rate, "peer": rate, "untrained"?: {"target": rate, "peer": rate}}}. A type's probes
    are those that ask alike and whose consensus is one of the type's, as for `rate_when`.
    """
    rows = {row["key"]: row for row in scored}
    keys = sorted({key for kind in types for key in kind.asked})
    pictures, questions = [source.picture(rows[k]["picture"]) for k in keys], [rows[k]["question"] for k in keys]
    said = AnswerBook(folder / "answers.jsonl").ask(peer, pictures, questions, p.max_answer_tokens)
    judged = [(q, s, list(rows[k]["references"].values())) for k, q, s in zip(keys, questions, said, strict=True)]
    verdicts = disagreement.verdicts(judged, disagreement.same(p, folder), p.quorum)
    peers = {key: verdict.disagrees for key, verdict in zip(keys, verdicts, strict=True)}

    def both(some: Sequence[str]) -> dict:
        wrong = sum(rows[key]["gate"] == "ok" for key in some), sum(peers[key] for key in some)
        return {side: rate(n, len(some)) for side, n in zip(("target", "peer"), wrong, strict=True)}

    found = {}
    for kind in types:
        found[kind.name] = both(kind.asked)
        first = [key for key in kind.asked if rows[key].get("checkpoint") == UNTRAINED]
        if len(first) >= FEW:
            found[kind.name]["untrained"] = both(first)
    return found
