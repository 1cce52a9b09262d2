"""What notebook 06 found, kept for the report and the next notebooks; report/summary.py says what is in each file."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from auditkit.data.source import Source
from auditkit.errors import AuditError
from auditkit.findings.failure_types import FailureType
from auditkit.findings.grading import told_truth
from auditkit.findings.narrow import FILE as PROBING
from auditkit.findings.rules import Rule
from auditkit.runs import jsonl
from auditkit.runs.files import read_json, replacing, write_json, write_text
from auditkit.text import slug

SHOWN = 6  # false alarms and irrelevant edits whose pictures are kept


def type_records(
    types: Sequence[FailureType],
    beside: Mapping[str, Mapping] | None = None,
    rules: Mapping[str, Rule] | None = None,
) -> list[dict]:
    """Failure types as plain records, each with what else is known of it.

    Args:
        beside: type's name -> more of its record, such as `compare_with_peer` gives.
        rules: type's name -> its rule, as `narrow_types` gives it.
    """
    more = {name: {"rule": rule.record()} for name, rule in (rules or {}).items()}
    return [asdict(kind) | dict((beside or {}).get(kind.name, {})) | more.get(kind.name, {}) for kind in types]


def stage_counts(folder: Path, metrics: Mapping, planted: Mapping) -> dict[str, int]:
    """The counts of notebook 06: answers of the peer and of the references, findings, types, false alarms."""
    answers = {"peer_called": "answers.jsonl", "references_called": PROBING}
    counts = {name: sum(1 for _ in jsonl.each(folder / file)) for name, file in answers.items()}
    counts |= {name: metrics[name] for name in ("findings", "types")}
    return counts | {"false_alarms": len(planted.get("false_alarms", []))}


def keep_findings(
    folder: Path,
    source: Source,
    types: Sequence[Mapping],
    gap_of: Mapping[str, Mapping],
    explained: str,
    edits: Sequence[Mapping],
    planted: Mapping,
) -> None:
    """Write types.json, explain.txt, edits.json, planted.json where gaps or the truth are known, and their pictures.

    Args:
        folder: of the findings.
        source: images of the run, those that were made among them (with_counterfactuals).
        types: as `type_records` gives them; examples get the true answer where the source knows it.
        gap_of: as from `type_gaps`; {} where nothing was planted.
        explained: the plain words (`explain_types`).
        edits: irrelevant edits (`describe_edits`).
        planted: as from `grade_planted_gaps`.
    """
    kept = [{**row, "gap": gap_of[row["name"]]} if gap_of else dict(row) for row in types]
    for row in kept:
        row["examples"] = [_with_truth(example, source) for example in row["examples"]]
    write_json(folder / "types.json", kept)
    write_text(folder / "explain.txt", explained + "\n")
    write_json(folder / "edits.json", list(edits))
    if planted:
        write_json(folder / "planted.json", planted)
    keys = [example["picture"] for row in kept for example in row["examples"]]
    keys += [row["picture"] for row in planted.get("false_alarms", [])[:SHOWN]]
    keys += [key for row in edits[:SHOWN] for key in (row["base"], row["picture"])]
    for key in dict.fromkeys(keys):
        with replacing(folder / "images" / f"{slug(key)}.png") as beside:
            source.picture(key).image.save(beside, "PNG")


def findings_metrics(
    types: Sequence[FailureType],
    edits: Sequence[Mapping],
    planted: Mapping,
    against: Mapping,
    estimated: Mapping,
    rules: Mapping | None = None,
) -> dict:
    """The metrics of notebook 06; what was not measured is absent.

    Args:
        edits: irrelevant edits.
        planted, against: as from `grade_planted_gaps` and `agreement_with_gaps`.
        estimated: as from `estimate_false_rate`.
        rules: how many types have one, and as from `grade_rules`.
    """
    metrics: dict = {"findings": sum(kind.size for kind in types), "types": len(types), "irrelevant_edits": len(edits)}
    metrics |= {"types_against_gaps": dict(against)} if against else {}
    metrics |= {name: planted[name] for name in ("planted", "found", "recall", "precision") if name in planted}
    metrics |= {"rules": dict(rules)} if rules else {}
    return metrics | ({"false_share": dict(estimated)} if estimated else {})


def kept_planted(folder: Path) -> dict:
    """What planted.json in a folder of findings says; {} where nothing could be graded.

    Raises AuditError for one that is damaged.
    """
    file, advice = folder / "planted.json", "make it again with --only 06 --start-over"
    planted = read_json(file, advice=advice) if file.exists() else {}
    for name, of in (("gaps", dict), ("false_alarms", dict)):
        rows = planted.get(name, [])
        if not isinstance(rows, list) or not all(isinstance(row, of) for row in rows):
            raise AuditError(f'{file}: "{name}" is no list of objects; {advice}.')
    return planted


def _with_truth(row: Mapping, source: Source) -> dict:
    return {**row, **told_truth(source.accepted(row["picture"], row["question"]))}
