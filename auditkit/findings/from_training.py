"""Failures that the auditor's training has met are findings like any other, on pictures of their own.

Every question of the training was put to all models, so what failed there is known already and costs no call. It goes
through the audit's own outcomes, quorum and gates, which put it to the models again, and is kept beside the audit's
probes in scored.jsonl, with TRAINING for its checkpoint. Such records count wherever findings are counted: in failure
types, gaps found, the review and the repair. How often the target fails is measured on the audit's probes alone, for
what succeeded was kept and what did not was left (`audit_probes`).

Questions about pictures that were made for the training are left out, since these pictures are not kept. Of more
failures than the audit has probes, as many are taken as it has, kinds of failure in turn, so that the rare ones are all
there: a training of a thousand steps asks ten times as much as an audit, and gates and peer would answer all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import islice, zip_longest
from pathlib import Path

from auditkit.audit.baseline import score_run
from auditkit.auditor.rewards import failure_kind
from auditkit.auditor.rollouts import read_rollouts
from auditkit.consensus.normalise import normalise
from auditkit.consensus.same import Same
from auditkit.params import Params
from auditkit.runs import jsonl
from auditkit.runs.probe import TRAINING, Probe, audit_probes, only_findings
from auditkit.text import counted


def training_rollouts(folder: Path | None) -> list[dict]:
    """All that a training has asked, by its folder (`read_rollouts`); [] without a training."""
    return read_rollouts(folder) if folder else []


def training_records(rollouts: Iterable[Mapping], references: Sequence[str], most: int) -> list[dict]:
    """The successful questions of a training as records of an audit; the same question on a picture once.

    Args:
        rollouts: rows of the training (Rollout).
        references: names of the models whose answers a row holds, in their order.
        most: the largest number of records; kinds of failure take turns.
    """
    found: dict[tuple[str, str], dict] = {}
    kinds: dict[tuple, list[dict]] = {}
    for row in rollouts:
        if row["success"] and row["way"] == "question" and row["question"]:
            probe = Probe(f"{TRAINING}/{row['key']}", row["picture"], row["question"], row["text"], checkpoint=TRAINING)
            said = {"target": row["target"], "references": dict(zip(references, row["references"], strict=True))}
            same = row["picture"], normalise(row["question"])
            if same not in found:
                found[same] = asdict(probe) | said
                kinds.setdefault(failure_kind(row["cluster"], row["consensus"], row["target"]), []).append(found[same])
    turns = (record for turn in zip_longest(*kinds.values()) for record in turn if record is not None)
    taken = {record["key"] for record in islice(turns, most)}
    return [record for record in found.values() if record["key"] in taken]


def score_all(records: Sequence[dict], rollouts: Iterable[Mapping], alike: Same, p: Params) -> list[dict]:
    """The audit's records scored, and after them what its training has met, scored by the same rules.

    Args:
        records: of the audit; what it has asked of the same picture is left to it.
        rollouts: rows of the training; none where there was none.
        alike, p: as for `score_run`.
    """
    scored = score_run(records, alike, p)
    names = next((list(record["references"]) for record in records if record["references"]), [])
    met = training_records(rollouts, names, len(records)) if names else []
    again = score_run([*records, *met], alike, p)[len(records) :] if met else []
    return scored + [row for row in again if row["outcome"] != "duplicate"]


def keep_scored(path: Path, scored: Sequence[dict]) -> list[dict]:
    """Write all scored records to a file, anew, and return those of the audit alone."""
    jsonl.replace(path, scored)
    return audit_probes(scored)


def findings_in_words(scored: Sequence[dict]) -> str:
    """How many findings there are, and where they come from, in a sentence.

    >>> findings_in_words([{"outcome": "finding", "checkpoint": "step 90"}, {"outcome": "agrees"}])
    'findings: 1 among 2 probes'
    >>> findings_in_words([{"outcome": "finding", "checkpoint": TRAINING}, {"outcome": "agrees"}])
    'findings: 0 among 1 probe, and 1 met in training'
    """
    asked, found = audit_probes(scored), only_findings(scored)
    own = len(audit_probes(found))
    met = f", and {len(found) - own:,} met in training" if len(found) > own else ""
    return f"findings: {own:,} among {counted(len(asked), 'probe')}{met}"
