"""The untrained auditor's probes of notebook 02, hunted for nobody: what later stages compare with."""

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
