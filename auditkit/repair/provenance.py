"""What the target is to learn, and where each of it comes from: from a probe to the example it became, and back.

Two routes (paper, Sec. 3.3). *Unlabeled*: the probes of fresh pictures, those of earlier rounds among them, labelled by
the references' consensus. *Labeled*: one new sample for each labelled training example, added to the original set.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from auditkit.audit.allocation import pool_size
from auditkit.data.source import Example, Picture, Source
from auditkit.errors import AuditError
from auditkit.params import Params, project_root
from auditkit.runs import jsonl
from auditkit.runs.files import read_json
from auditkit.runs.folder import damage_in_words, shown_path
from auditkit.runs.probe import audit_probes

AUDIT, TRACE = "05_audit", "training.jsonl"
KINDS = {
    "finding": "finding",
    "agrees": "agreed",
}  # outcome of a probe -> what it is called among the training examples


def audit_pictures(source: Source, p: Params) -> list[Picture]:
    """The pictures an audit asks about: fresh ones, or on the labeled route those of the training examples, in order.

    A search has as many as it has probes to choose among. On the labeled route a picture comes as often as it has
    examples, and it may be one that the auditor was trained on.
    """
    if p.route == "labeled":
        return [Picture(example.key.split("/q")[0], example.held) for example in labelled_examples(source, p)]
    return source.pictures("audit", pool_size(p), p.seed)


def labelled_examples(source: Source, p: Params) -> list[Example]:
    """The training examples that get a new sample each, p.audit_probes of them.

    Raises AuditError where the source has none.
    """
    if examples := source.examples(p.audit_probes, p.seed):
        return examples
    raise AuditError(
        f"route: labeled adds a sample to each labelled training example, and {source.name} has none; write route: "
        "unlabeled, or give the images known answers."
    )


def draw_originals(source: Source, p: Params) -> list[Example]:
    """The labelled originals of either route; none where the unlabeled one mixes none in."""
    if p.route == "labeled":
        return labelled_examples(source, p)
    return source.examples(p.rectify_original, p.seed) if p.rectify_original else []


def earlier_audits(p: Params) -> list[Path]:
    """The audit folders of the runs that `p.earlier` names, whose pictures and findings are learnt from again.

    Raises AuditError naming the run that has no finished audit, or one of other images.
    """
    found = []
    for name in p.earlier:
        folder = project_root() / "outputs" / name / AUDIT
        if not (folder / "DONE").is_file():
            raise AuditError(f"earlier: {shown_path(folder)} is not done; run {name} to its audit, or leave it out.")
        if lost := damage_in_words(folder):
            raise AuditError(f"earlier: {lost}, FILE being that of {name}.")
        images = read_json(folder / "manifest.json").get("parameters", {}).get("images")
        if images != p.images:
            raise AuditError(f'earlier: {name} audited "{images}", not "{p.images}"; its pictures are not here.')
        found.append(folder)
    return found


def gather_probes(scored: Iterable[dict], p: Params) -> list[dict]:
    """A run's scored probes and those of the earlier runs, each with the run and the key it has there.

    An earlier probe keeps its label; its own key, which may be another's here, follows the name of its run.
    """
    rows = [{**row, "run": p.run_name, "probe": row["key"]} for row in scored]
    for name, folder in zip(p.earlier, earlier_audits(p), strict=True):
        for row in jsonl.each(folder / "scored.jsonl"):
            rows.append({**row, "key": f"{name}/{row['key']}", "run": name, "probe": row["key"]})
    return rows


def learnable_probes(rows: Sequence[dict], p: Params) -> list[dict]:
    """The probes there is something to learn from: the findings, then those on which the target agreed.

    On the labeled route one for each example: a made picture gets a question of its own or, where a gate drops that,
    the source's; what the auditor's training has met is not of an example.
    """
    kept = [row for row in rows if row["outcome"] in KINDS]
    if p.route == "labeled":
        kept = audit_probes(kept)
        first = {row["key"].removesuffix("/own"): row for row in reversed(kept)}
        kept = list(reversed(first.values()))
    return sorted(kept, key=lambda row: row["outcome"] != "finding")


def write_trace(examples: Sequence[Example], rows: Sequence[dict], folder: Path) -> list[dict]:
    """Write training.jsonl into a folder, one line for each distinct training example, and return the lines.

    A line is {"key", "kind": finding | agreed | original, "run"?, "probe"?: the key of its probe in that run's audit,
    "picture", "question", "answer", "times": how often it is in the set}; an original has no probe.
    """
    by_key, times = {row["key"]: row for row in rows}, Counter(example.key for example in examples)
    found = []
    for key, example in {example.key: example for example in examples}.items():
        about = {"key": key, "kind": "original", "picture": key.split("/q")[0]}
        if row := by_key.get(key):
            about |= {
                "kind": KINDS[row["outcome"]],
                "run": row["run"],
                "probe": row["probe"],
                "picture": row["picture"],
            }
        found.append(about | {"question": example.question, "answer": example.answer, "times": times[key]})
    jsonl.replace(folder / TRACE, found)
    return found


def probe_of(folder: Path, key: str) -> dict | None:
    """The scored probe behind a training example, from a repair's folder and the example's key; None: an original.

    Raises AuditError where no training example has this key.
    """
    row = next((row for row in jsonl.each(folder / TRACE) if row["key"] == key), None)
    if row is None:
        raise AuditError(f"{shown_path(folder / TRACE)} has no training example {key!r}.")
    if "probe" not in row:
        return None
    scored = jsonl.each(folder.parent.parent / row["run"] / AUDIT / "scored.jsonl")
    return next(one for one in scored if one["key"] == row["probe"])


def example_of(folder: Path, run_name: str, probe: str) -> dict | None:
    """The training example, a line of training.jsonl, that a run's probe became; None: it was not learnt."""
    rows = jsonl.each(folder / TRACE)
    return next((row for row in rows if row.get("run") == run_name and row.get("probe") == probe), None)
