"""The untrained auditor's probes, found by no training: what later stages compare with."""

from collections.abc import Sequence

from auditkit.audit.score import score_probes
from auditkit.params import Params
from auditkit.runs import jsonl
from auditkit.runs.folder import is_done, run_folder

BASELINE = "02_disagreement"


def baseline_probes(p: Params) -> list[dict]:
    """The scored records of notebook 02; [] where it was not run, or with other parameters.

    Args:
        p: the run's parameters, and what `score_probes` uses of them.
    """
    if not is_done(p, BASELINE):
        return []
    folder = run_folder(p) / BASELINE
    return score_probes(jsonl.read(folder / "records.jsonl"), p, folder)


def untrained_probes(p: Params, scored: Sequence[dict]) -> list[dict]:
    """The untrained auditor's scored probes of the way that the trained one is measured by, the first of p.ways.

    Those of notebook 02, where it was run and asked in that way; otherwise the untrained share of this audit (`scored`).
    """
    if p.ways[0] == "question" and (rows := baseline_probes(p)):
        return rows
    return [row for row in scored if row["checkpoint"] == "untrained" and row["way"] == p.ways[0]]
