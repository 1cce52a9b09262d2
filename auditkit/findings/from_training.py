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

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import islice, zip_longest
from pathlib import Path

from auditkit.audit.baseline import score_run
from auditkit.audit.batches import Loader
from auditkit.auditor.rewards import failure_kind
from auditkit.consensus.normalise import normalise
from auditkit.consensus.same import Same
from auditkit.data.source import Picture
from auditkit.findings.recheck import apply_gates, recheck_findings
from auditkit.params import Params
from auditkit.runs.probe import TRAINING, Probe, only_findings


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


def training_findings(
    rollouts: Iterable[Mapping],
    records: Sequence[dict],
    target: Loader,
    references: Sequence[Loader],
    alike: Same,
    p: Params,
    picture: Callable[[str], Picture],
    out: Path,
) -> tuple[list[dict], dict[str, dict]]:
    """What a training met, with the outcome that the audit's rules give it, and what was said to it again.

    Args:
        rollouts: rows of the training; none where there was none.
        records: of the audit; what it has asked of the same picture is left to it.
        target, references, p, picture, out: as for `recheck_findings`.
        alike: as for `score_probes`.

    Returns scored records and the rows of `recheck_findings`, by key; ([], {}) without a training.
    """
    names = next((list(record["references"]) for record in records if record["references"]), [])
    met = training_records(rollouts, names, len(records)) if names else []
    if not met:
        return [], {}
    scored = score_run([*records, *met], alike, p)
    probes, met = scored[: len(records)], [row for row in scored[len(records) :] if row["outcome"] != "duplicate"]
    again = recheck_findings(met, target, references, p, picture, out, elsewhere=probes)
    return apply_gates(met, again, p.gates, alike, p.quorum), again


def from_training_in_words(met: Sequence[dict]) -> str:
    """How many failures a training has met and how many of these are findings, in a sentence.

    >>> from_training_in_words([{"outcome": "finding"}, {"outcome": "not reproduced"}])
    'different failures met in training: 2, findings among them: 1'
    >>> from_training_in_words([])
    'No failure was met in training.'
    """
    found = len(only_findings(met))
    said = f"different failures met in training: {len(met):,}, findings among them: {found:,}"
    return said if met else "No failure was met in training."
