"""A run folder read once more: `summary.json` for machines, `report.html` (report/page.py) for people.

The report knows nothing but the stage folders, so it can be written again at any time, without a model. A stage counts
when its DONE is there. What a run did not measure is absent from both files; a key marked ? may be absent.
A *rate* is {"value", "low", "high", "n"}, 0 to 1, with a 95 % interval. A record's "image" is a picture's path relative
to the stage folder it is named in, and inside the run folder. Without one, the picture is looked for as
images/<slug(record["picture"])>.png in 06_findings, then in 05_audit. More keys than these do no harm.

    every stage       manifest.json  {"metrics": {}, "counts": {name: int}, "seconds": s, "versions": {package: text},
                                      "parameters": {}, "commit"?, "hosted"?: as from costs.spent}
    02_disagreement   metrics        {"untrained"?: rate, "untrained_by_consensus"?: rate}
    04_auditor        metrics        {"collapses"?: as from collapse_metrics}
                      history.jsonl  one object a step: {"step", "reward/disagreement", "reward/format"?, "distinct"?,
                                      "kinds"?, "way"?, and what step_measures gives?}
    05_audit          metrics        {"trained"?: rate, "trained_by_consensus"?: rate, "precision"?: rate,
                                      "best_blind_question"?: as from best_blind_question (or in 02),
                                      "ways"?, "pairings"?: as from outcomes_by, "gates"?: as from gates.effect, and
                                      what image_outcomes gives}
                      scored.jsonl   one object a probe, as from score_probes; "outcome": of OUTCOMES (runs/probe.py);
                                      those with the checkpoint TRAINING are of the auditor's training
    06_findings       types.json     [{"name", "size", "share" (of all findings, 0 to 1), "rate" (of the audit's probes
                                      of this type; {} without any), "rate_when"?: rate, "from_training"?: findings,
                                      "target"?, "peer"?: rates on the same probes,
                                      "untrained"?: {"target", "peer"} on those of the untrained auditor alone,
                                      "gap"?: {"name", "share"} (the planted gap most findings are in),
                                      "rule"?: {"words", "inside", "outside": rates of failures of whatever type, {}
                                      without such a probe} (what narrows it),
                                      "confusion"?: [{"target", "consensus", "count"}],
                                      "examples": [{"picture", "image"?, "question", "target", "consensus",
                                      "references": {name: answer}, "truth"?}]}]
                      planted.json?  as from grade_planted_gaps: {"planted"?, "found"?, "recall"?: rate, "precision"?:
                                      rate, "gaps"?: [{"name", "skill", "condition", "probes", "findings", "found"}],
                                      "false_alarms"?: [record + "truth" (null: the question has no answer), "reason"]}
                      edits.json?    the irrelevant edits: [record + "box", "target_before"], their pictures kept
                      explain.txt?   the plain words; an empty line between two paragraphs
                      reviews.jsonl? a person's decisions (findings/review.py), read anew each time
    07_rectify        training.jsonl one object a distinct training example, as from write_trace
                      metrics        {"pairs", "steps"?, "seconds"?, "learnt"?: rate, "review"?: as from review.told,
                                      "held_out"?: as from check_repair: {"mended"?, "broken", "usual": rates, "gain",
                                      "kept", "step": share of the step that was kept}};
                                      0 pairs: nothing to repair
    08_benchmark      metrics        {"benchmarks": {skill: {"before"?: rate, "after"?: rate, "peer"?: rate}},
                                      "found_gaps"?: {"before": rate, "after": rate} (right inside the found gaps),
                                      "all_gaps"?, "outside_gaps"?: the same inside and outside of all planted ones,
                                      "untouched"?: {task: the same},
                                      "disagreement_before"?, "disagreement_after"?: rate (of 02's probes),
                                      "gain"?: as from repair_gain, paired differences with their intervals}
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from auditkit.consensus.normalise import normalise
from auditkit.errors import AuditError
from auditkit.findings import review
from auditkit.findings.failure_types import FOUND
from auditkit.findings.grading import probes_until
from auditkit.findings.keep import kept_planted
from auditkit.report.page import render_report
from auditkit.runs import costs, jsonl
from auditkit.runs.files import read_json, write_json, write_text
from auditkit.runs.folder import damage_in_words, shown_path
from auditkit.runs.probe import OUTCOMES, SUMMARY_KEYS, TRAINING

STAGES = {
    "00_setup": "check the set-up",
    "01_models": "meet the models",
    "02_disagreement": "measure disagreement",
    "03_counterfactual": "counterfactual images",
    "04_auditor": "train the auditor",
    "05_audit": "run the audit",
    "06_findings": "read the findings",
    "07_rectify": "repair the target",
    "08_benchmark": "before and after",
}


@dataclass(frozen=True)
class FinishedStage:
    """One finished stage folder; a missing file reads as empty."""

    folder: Path
    manifest: dict

    @property
    def metrics(self) -> dict:
        return self.manifest.get("metrics") or {}

    def json(self, name: str, kind: type = dict, of: type = object) -> Any:
        """What a JSON file holds, which has to be of this kind, as `read_json` checks it; None where there is none."""
        return read_json(self.folder / name, kind, of=of) if (self.folder / name).exists() else None

    def records(self, name: str) -> list[dict]:
        return jsonl.read(self.folder / name)

    def each(self, name: str) -> Iterator[dict]:
        """The same one after another, so that they need not fit in memory."""
        return jsonl.each(self.folder / name)

    def text(self, name: str) -> str:
        return (self.folder / name).read_text(encoding="utf-8") if (self.folder / name).exists() else ""


def write_report(run_folder: Path) -> Path:
    """Write `summary.json` and `report.html` into a run folder and return the report's path.

    Raises AuditError when no stage of the run is finished, or when a stage file breaks the contract above.
    """
    run_folder = Path(run_folder)
    stages = read_run(run_folder)
    findings, auditor = (
        stages.get(name, FinishedStage(run_folder / name, {})) for name in ("06_findings", "04_auditor")
    )
    summary = summarise_run(run_folder.name, stages)
    validate(summary)
    html = render_report(
        summary=summary,
        stages={name: what for name, what in STAGES.items() if name in stages},
        unfinished=[what for name, what in STAGES.items() if name not in stages],
        parameters=list(stages.values())[-1].manifest.get("parameters") or {},
        types=findings.json("types.json", list, dict) or [],
        planted=kept_planted(findings.folder) if findings.manifest else {},
        edits=findings.json("edits.json", list, dict) or [],
        explained=findings.text("explain.txt"),
        history=auditor.records("history.jsonl"),
        folders=[findings.folder, run_folder / "05_audit"],
    )
    write_json(run_folder / "summary.json", summary, indent=2)
    write_text(run_folder / "report.html", html)
    return run_folder / "report.html"


def where_to_open(page: Path) -> str:
    """Where a report is: in the project, and as an address that a browser opens, wherever JupyterLab was started."""
    return f"The report: {shown_path(page)}\nOpen it in a browser of this machine: {page.resolve().as_uri()}"


def read_run(run_folder: Path) -> dict[str, FinishedStage]:
    """The finished stages of a run, by name, in order.

    Raises AuditError when none is finished, where a finished one has lost files, and for records of before a probe had
    an outcome.
    """
    folders = [run_folder / name for name in STAGES if (run_folder / name / "DONE").exists()]
    if not folders:
        raise AuditError(f"{run_folder} has no finished stage to report on; run notebook 00_check_the_setup first.")
    for folder in folders:
        if lost := damage_in_words(folder):
            raise AuditError(lost)
    stages = {folder.name: FinishedStage(folder, read_json(folder / "manifest.json")) for folder in folders}
    for name, stage in stages.items():
        if "gate" in next(stage.each("scored.jsonl"), {}):
            raise AuditError(
                f"{run_folder.name}/{name} was made by an earlier auditkit, whose records say gate and not outcome; "
                "run it again with --from 05 --start-over, or report on it with the version in its manifest."
            )
    return stages


def summarise_run(run_name: str, stages: Mapping[str, FinishedStage]) -> dict:
    """The machine-readable result of a run (DESIGN.md, section 4). What was not measured is absent."""
    nothing = FinishedStage(Path(), {})
    at = {name: stages.get(name, nothing) for name in STAGES}
    untrained, audit, benchmark = (at[name].metrics for name in ("02_disagreement", "05_audit", "08_benchmark"))
    manifests = [stage.manifest for stage in stages.values()]
    types = at["06_findings"].json("types.json", list, dict)
    planted = kept_planted(at["06_findings"].folder) if at["06_findings"].manifest else {}
    outcomes, met, new = _audited(at["05_audit"])
    findings: dict[str, Any] = {"total": outcomes["finding"] + met} if outcomes else {}
    findings |= {"from_training": met} if met else {}
    if types is not None:
        findings.setdefault("total", sum(kind["size"] for kind in types))
        parts = ("size", "share", "rate", "rate_when", "target", "peer", "gap", "rule")
        findings["by_type"] = {kind["name"]: {part: kind.get(part) for part in parts} for kind in types}
        for kind in types:
            findings["by_type"][kind["name"]] |= {"from_training": kind.get("from_training") or None}
    measured = {
        "run_name": run_name,
        "seed": (manifests[-1].get("parameters") or {}).get("seed"),
        "commit": manifests[-1].get("commit"),
        "search_success": {
            "untrained": untrained.get("untrained"),
            "trained": audit.get("trained"),
            "best_blind_question": _flat(audit.get("best_blind_question") or untrained.get("best_blind_question")),
        },
        "search_success_by_consensus": {
            "untrained": untrained.get("untrained_by_consensus"),
            "trained": audit.get("trained_by_consensus"),
        },
        **{name: audit.get(name) for name in ("ways", "pairings", "images", "editor", "generator", "gates")},
        "probes": {SUMMARY_KEYS.get(name, name): outcomes[name] for name in OUTCOMES if outcomes[name]},
        "findings": findings,
        "not_by_repeating": _not_by_repeating(new, types or [], audit),
        "rules": at["06_findings"].metrics.get("rules"),
        "precision": audit.get("precision") or planted.get("precision"),
        "false_share": at["06_findings"].metrics.get("false_share"),
        "planted_gaps": _planted(planted, outcomes.total()),
        "training": at["04_auditor"].metrics,
        "review": _reviewed(at["05_audit"], at["06_findings"], at["07_rectify"]),
        "rectification": at["07_rectify"].metrics,
        "benchmarks": benchmark.get("benchmarks"),
        **{name: benchmark.get(name) for name in ("found_gaps", "all_gaps", "outside_gaps", "untouched", "gain")},
        "held_out_disagreement": {side: benchmark.get(f"disagreement_{side}") for side in ("before", "after")},
        "counts": {name: stage.manifest.get("counts") for name, stage in stages.items()},
        "hosted": costs.total(manifest.get("hosted", {}) for manifest in manifests),
        "seconds": {name: stage.manifest.get("seconds") for name, stage in stages.items()},
        "versions": {name: text for manifest in manifests for name, text in (manifest.get("versions") or {}).items()},
    }
    return _present(measured)


def _audited(audit: FinishedStage) -> tuple[Counter, int, dict]:
    """What became of the audit's probes; how many findings its training has met; and {"questions" put to the target,
    "failures": different ones in the words of question, consensus and answer} of the probes alone.
    """
    outcomes, met, questions, failures = Counter[str](), 0, 0, set()
    for row in audit.each("scored.jsonl"):
        if row.get("checkpoint") == TRAINING:
            met += row["outcome"] == "finding"
            continue
        outcomes[row["outcome"]] += 1
        if row["outcome"] in ("malformed", "bad picture", "duplicate") or "question" not in row:
            continue
        questions += 1
        if row["outcome"] == "finding":
            failures.add(tuple(normalise(row[name]) for name in ("question", "consensus", "target")))
    return outcomes, met, {"questions": questions, "failures": len(failures)}


def _not_by_repeating(new: Mapping, types: Sequence[Mapping], audit: Mapping) -> dict:
    """What cannot be had by asking one question again and again, of the audit's probes alone; {} without an audit.

    Returns {"questions", "failures", "failures_per_thousand", "kinds"?: failure types with FOUND findings or more,
    "kinds_per_thousand"?, "explained_by_blind_question"?: the success of the best blind question over the trained
    auditor's, 1 at most}.
    """
    if not new["questions"]:
        return {}
    found: dict = dict(new) | {"failures_per_thousand": round(1000 * new["failures"] / new["questions"], 1)}
    if types:
        kinds = sum(kind["size"] - kind.get("from_training", 0) >= FOUND for kind in types)
        found |= {"kinds": kinds, "kinds_per_thousand": round(1000 * kinds / new["questions"], 2)}
    blind = _flat(audit.get("best_blind_question"))
    if blind and (trained := audit.get("trained")) and trained["value"]:
        found["explained_by_blind_question"] = round(min(1.0, blind["value"] / trained["value"]), 4)
    return found


def _planted(planted: dict, probes: int) -> dict:
    """How many of the gaps were found, and with how many probes; {} where none is planted."""
    if "planted" not in planted:
        return {}
    until = {
        name: probes_until(planted.get("gaps", []), probes, share) for name, share in (("half", 0.5), ("every", 1.0))
    }
    kept = {key: planted.get(key) for key in ("planted", "found", "recall", "precision", "missed")}
    return kept | {"probes_until": until}


def _reviewed(audit: FinishedStage, findings: FinishedStage, repair: FinishedStage) -> dict:
    """What a person's review measures, and whether the repair has learnt from it as it stands; {} without one."""
    if not findings.manifest or not (findings.folder / review.FILE).exists():
        return {}
    scored = audit.records("scored.jsonl")
    decided = review.decisions(findings.folder, scored)
    measured = review.measures(scored, decided, (findings.manifest.get("parameters") or {}).get("seed", 0))
    if measured and repair.metrics.get("pairs") is not None:
        told = review.told(review.changes(scored, decided))
        measured["in_the_repair"] = told == repair.metrics.get("review", {})
    return measured


def validate(summary: Mapping) -> None:
    """Raise AuditError, naming the key, where a summary breaks its contract."""
    for key in ("seconds", "versions"):
        if key not in summary:
            raise AuditError(f"summary key {key} is missing: no manifest.json of this run has it.")
    for key, rate in _rates(summary):
        told = rate if isinstance(rate, Mapping) else {}
        parts = [part for name in ("low", "value", "high", "n") if isinstance(part := told.get(name), (int, float))]
        if len(parts) < 4 or parts[3] < 1:
            raise AuditError(f"summary key {key} must be a rate with value, low, high and n >= 1, not {rate!r}.")
        low, value, high, _ = parts
        if not -1e-6 <= low <= value + 1e-6 <= high + 2e-6 <= 1 + 3e-6:
            raise AuditError(f"summary key {key} must have 0 <= low <= value <= high <= 1, not {rate!r}.")


def _rates(summary: Mapping) -> Iterator[tuple[str, object]]:
    """Every place where the contract has a rate: (key, what stands there)."""
    for group in (
        "search_success",
        "search_success_by_consensus",
        "found_gaps",
        "all_gaps",
        "outside_gaps",
        "held_out_disagreement",
        "false_share",
    ):
        yield from ((f"{group}.{name}", rate) for name, rate in summary.get(group, {}).items())
    for group in ("ways", "pairings", "gates", "untouched"):
        for name, part in summary.get(group, {}).items():
            counts = ("probes", "findings", "kept", "dropped")
            yield from ((f"{group}.{name}.{key}", rate) for key, rate in part.items() if key not in counts)
    for group in ("editor", "generator"):
        yield from ((f"{group}.{name}", rate) for name, rate in summary.get(group, {}).items())
    if "precision" in summary:
        yield "precision", summary["precision"]
    said = summary.get("review", {})
    yield from ((f"review.{name}", said[name]) for name in ("precision_by_human", "agreement") if name in said)
    yield from ((f"review.by_gate.{gate}", rate) for gate, rate in said.get("by_gate", {}).items())
    for name in {"recall", "precision"} & set(summary.get("planted_gaps", {})):
        yield f"planted_gaps.{name}", summary["planted_gaps"][name]
    for skill, sides in summary.get("benchmarks", {}).items():
        yield from ((f"benchmarks.{skill}.{side}", rate) for side, rate in sides.items())
    for name, kind in summary.get("findings", {}).get("by_type", {}).items():
        if "rate" in kind or not kind.get("from_training"):  # what was met in training alone has none
            yield f"findings.by_type.{name}.rate", kind.get("rate")
        yield from ((f"findings.by_type.{name}.{side}", kind[side]) for side in ("target", "peer") if side in kind)
        rule = kind.get("rule", {})
        yield from (
            (f"findings.by_type.{name}.rule.{side}", rule[side]) for side in ("inside", "outside") if side in rule
        )
    if "named" in summary.get("rules", {}):
        yield "rules.named", summary["rules"]["named"]
    checked = summary.get("rectification", {}).get("held_out", {})
    yield from ((f"held_out.{name}", checked[name]) for name in ("mended", "broken", "usual") if name in checked)


def _flat(blind: dict | None) -> dict | None:
    """The best blind question as a rate with its question beside."""
    if not blind or "rate" not in blind:
        return blind
    return {**blind["rate"], **{key: value for key, value in blind.items() if key != "rate"}}


def _present(value):
    """Without None and without what is empty because of it."""
    if not isinstance(value, Mapping):
        return value
    kept = {key: _present(inner) for key, inner in value.items()}
    return {key: inner for key, inner in kept.items() if inner is not None and inner != {}}
