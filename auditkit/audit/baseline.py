"""The scored probes of a run, and among them the untrained auditor's, with which later stages compare."""

from collections.abc import Sequence

from auditkit.audit.score import score_probes
from auditkit.consensus.choose import choose_same
from auditkit.consensus.same import Same
from auditkit.params import Params
from auditkit.runs import jsonl
from auditkit.runs.folder import is_done, run_folder

BASELINE = "02_disagreement"


def score_run(records: Sequence[dict], alike: Same, p: Params) -> list[dict]:
    """`score_probes` with the bounds that a parameter file sets.

    Args:
        p: uses quorum, min_token_probability and picture_gain.
    """
    bounds = {"min_token_probability": p.min_token_probability, "picture_gain": p.picture_gain}
    return score_probes(records, alike, quorum=p.quorum, **bounds)


def baseline_probes(p: Params) -> list[dict]:
    """The scored records of notebook 02; [] where it was not run, or with other parameters.

    Args:
        p: the run's parameters; `score_run` uses some of them.
    """
    if not is_done(p, BASELINE):
        return []
    folder = run_folder(p) / BASELINE
    return score_run(jsonl.read(folder / "records.jsonl"), choose_same(p, folder), p)


def untrained_probes(p: Params, scored: Sequence[dict]) -> list[dict]:
    """The untrained auditor's scored probes of the way by which the trained one is measured, the first of p.ways.

    Those of notebook 02, if it was run and asked in that way; otherwise the untrained share of this audit (`scored`).
    """
    if p.ways[0] == "question" and (rows := baseline_probes(p)):
        return rows
    return [row for row in scored if row["checkpoint"] == "untrained" and row["way"] == p.ways[0]]
