"""A study: one audit under several conditions (arms), each with several seeds, and a table of what came of each.

    auditkit run params/study_ways.yaml --jobs 2

A study's file names a parameter file to start from, what all runs change in it, and what each arm changes:

    study: ways
    question: Which way of making probes finds and repairs more?
    base: params/demo.yaml
    seeds: [0, 1, 2]
    settings: {grpo_steps: 100}
    arms:
      question only: {ways: [question]}
      edit only: {ways: [edit]}
    measures: [trained, gain]        # of MEASURES; all where this is left out
    curve: {x: audit_probes, y: gain}  # one line for arms whose names are alike up to their comma; may be left out
    audits: [edit only]              # arms whose runs end with the findings, without a repair; may be left out
    budgets: [250, 500]              # questions after which it is read what these (or all) had found; may be left out

Every run is an ordinary run, in a folder outputs/study_NAME.ARM.SEED of its own, with a report of its own. What is done
is not done again, and a stage that any study has made of the same seed and settings is copied from there: arms that
differ in the repair alone share one audit. Runs of one seed draw the same pictures, so arms are compared in pairs with
the first, seed by seed.

Every `auditkit run` asks `is_study`, so what is heavy is imported where it is used.
"""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from auditkit.errors import AuditError
from auditkit.params import FIELDS, Params, find_params_file, load_params, project_root
from auditkit.runs.files import write_json, write_text
from auditkit.runs.folder import STAGES, damage_in_words, is_done, run_folder, shown_path, would_fit
from auditkit.yaml_file import read_yaml

KEYS = {"study": str, "question": str, "base": str, "seeds": list, "settings": dict, "arms": dict}
OPTIONAL = {"measures": list, "curve": dict, "budgets": list, "audits": list}
NEEDED = tuple(stage for stage in STAGES if not stage.startswith(("00", "01", "03")))  # for what a study measures
AUDIT = NEEDED[:4]  # what is measured of audits alone needs no repair


@dataclass(frozen=True)
class Study:
    """A study's file, read and checked (`load_study` makes it)."""

    name: str
    question: str
    base: str
    seeds: list[int]
    arms: dict[str, dict]  # label -> what its runs change, the settings of all among them
    measures: list[str]  # names of MEASURES
    curve: dict[str, str] = field(default_factory=dict)  # x: a parameter, y: a measure
    budgets: list[int] = field(default_factory=list)  # questions after which audits are compared (curves.py)
    audits: list[str] = field(default_factory=list)  # arms without a repair

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages its measures need."""
        return NEEDED if any(MEASURES[name].repair for name in self.measures) else AUDIT

    def stages_of(self, arm: str) -> tuple[str, ...]:
        """Those of them that an arm's runs go through."""
        return AUDIT if arm in self.audits else self.stages

    def run_name(self, arm: str, seed: int) -> str:
        return f"study_{self.name}.{re.sub(r'[^A-Za-z0-9]+', '_', arm)}.{seed}"

    @property
    def folder(self) -> Path:
        return project_root() / "outputs" / f"study_{self.name}"


@dataclass(frozen=True)
class Measure:
    """One column of the table: what it is called, and how to read it from the summary.json of an arm's runs."""

    label: str
    of: Callable[[Sequence[Mapping]], Sequence[float | None]]  # a value a run; None where it was not measured
    unit: str = "%"  # of a share; "points" of a difference of shares, "" of a count
    repair: bool = False  # of the repair, not of the audit


def _each(of: Callable[[Mapping], float | None]) -> Callable[[Sequence[Mapping]], list[float | None]]:
    return lambda summaries: list(map(of, summaries))


def _success(summary: Mapping) -> float | None:
    rates = [way["search_success"] for way in summary.get("ways", {}).values() if "search_success" in way]
    n = sum(rate["n"] for rate in rates)
    return sum(rate["value"] * rate["n"] for rate in rates) / n if n else None


def _trained(summary: Mapping) -> float | None:
    return (summary.get("search_success", {}).get("trained") or {}).get("value")


def _mean(summary: Mapping, side: str) -> float | None:
    rates = [sides[side]["value"] for sides in summary.get("benchmarks", {}).values() if side in sides]
    return sum(rates) / len(rates) if rates else None


def _ahead(summary: Mapping, side: str) -> float | None:
    """How far the repaired target is ahead of itself before, or of its peer, in the mean over the skills."""
    other, after = _mean(summary, side), _mean(summary, "after")
    return None if other is None or after is None else after - other


def _lost(sides: Mapping) -> float | None:
    return sides["before"]["value"] - sides["after"]["value"] if {"before", "after"} <= sides.keys() else None


def _recall(summary: Mapping) -> float | None:
    return (summary.get("planted_gaps", {}).get("recall") or {}).get("value")


def _estimate(summary: Mapping) -> Mapping | None:
    """By a model that did not vote, or else by leaving one reference out."""
    estimates = summary.get("false_share", {})
    return estimates.get("held_out") or estimates.get("leave_one_out")


def _holds(summary: Mapping) -> float | None:
    found, precision = _estimate(summary), summary.get("precision")
    return float(found["low"] <= 1 - precision["value"] <= found["high"]) if found and precision else None


def _asked(summary: Mapping, stage: str) -> int | None:
    counts = summary.get("counts", {}).get(stage)
    return counts and counts.get("target_called", 0) + counts.get("references_called", 0)


def _called(summary: Mapping, whose: str) -> int | None:
    return summary.get("counts", {}).get("05_audit", {}).get(f"{whose}_called")


def _types(summary: Mapping) -> set[str]:
    """What is asked in its failure types; what is answered differs too easily from audit to audit."""
    from auditkit.findings.grouping import DASH

    return {name.split(f" {DASH} ")[0] for name in summary.get("findings", {}).get("by_type", {})}


def _shared(found: Sequence[Mapping]) -> list[float]:
    """For each seed, how much its failure types are those of the others: their mean overlap (Jaccard's).

    The values of the seeds hang together, each pair being in two of them; nothing where there is one seed, or no type.
    """
    types = [_types(summary) for summary in found]
    if len(types) < 2 or not all(types):
        return []

    def alike(i: int) -> float:
        others = [other for j, other in enumerate(types) if j != i]
        return sum(len(types[i] & other) / len(types[i] | other) for other in others) / len(others)

    return [alike(i) for i in range(len(types))]


def _until(share: str) -> Callable[[Mapping], float | None]:
    return lambda summary: summary.get("planted_gaps", {}).get("probes_until", {}).get(share)


def _fall(summary: Mapping) -> float | None:
    both = [sides for sides in summary.get("benchmarks", {}).values() if {"before", "after"} <= sides.keys()]
    return max([0.0, *(s["before"]["value"] - s["after"]["value"] for s in both)]) if both else None


MEASURES = {
    "trained": Measure("search success, trained auditor", _each(_trained)),
    "success": Measure("search success, all probes", _each(_success)),
    "findings": Measure("findings", _each(lambda s: s.get("findings", {}).get("total")), unit=""),
    "precision": Measure("findings that are true", _each(lambda s: s.get("precision", {}).get("value"))),
    "ungated": Measure("findings that are true, before the gates", _each(lambda s: (
        s.get("gates", {}).get("none", {}).get("precision") or {}).get("value"))),
    "estimated": Measure("share of false findings, as estimated", _each(lambda s: (_estimate(s) or {}).get("value"))),
    "holds": Measure("the estimate's interval holds the truth", _each(lambda s: _holds(s))),
    "gaps": Measure("planted gaps found", _each(lambda s: s.get("planted_gaps", {}).get("found")), unit=""),
    "recall": Measure("share of the planted gaps found", _each(_recall)),
    "half": Measure("probes until half of the gaps have three findings", _each(_until("half")), unit=""),
    "every": Measure("probes until every gap has three findings", _each(_until("every")), unit=""),
    "types": Measure("failure types named", _each(
        lambda s: len(s.get("findings", {}).get("by_type", {})) or None), unit=""),
    "again": Measure("failure types it shares with the other seeds' audits", _shared),
    "distinct": Measure("distinct texts, last steps", _each(lambda s: s.get("training", {}).get("distinct_last"))),
    "target_calls": Measure("answers of the target in the audit", _each(lambda s: _called(s, "target")), unit=""),
    "reference_calls": Measure("answers of references in the audit", _each(
        lambda s: _called(s, "references")), unit=""),
    "asked": Measure("questions put to models in training", _each(lambda s: _asked(s, "04_auditor")), unit=""),
    "pairs": Measure("pairs trained on", _each(
        lambda s: s.get("rectification", {}).get("trained_on")), unit="", repair=True),
    "before": Measure("mean skill before", _each(lambda s: _mean(s, "before")), repair=True),
    "after": Measure("mean skill after the repair", _each(lambda s: _mean(s, "after")), repair=True),
    "gain": Measure("gain, points", _each(lambda s: _ahead(s, "before")), unit="points", repair=True),
    "beats": Measure("ahead of the larger peer, points", _each(
        lambda s: _ahead(s, "peer")), unit="points", repair=True),
    "fall": Measure("largest fall of a skill, points", _each(_fall), unit="points", repair=True),
    "inside": Measure("gain on questions in a gap, found or not, points", _each(
        lambda s: -lost if (lost := _lost(s.get("all_gaps", {}))) is not None else None), unit="points", repair=True),
    "outside": Measure("lost outside the gaps, points", _each(
        lambda s: _lost(s.get("outside_gaps", {}))), unit="points", repair=True),
    "untouched": Measure("lost in a task no audit asks for, points", _each(lambda s: max(
        (lost for sides in s.get("untouched", {}).values() if (lost := _lost(sides)) is not None), default=None)),
        unit="points", repair=True),
}  # fmt: skip


def is_study(path: str | Path) -> bool:
    """Whether a parameter file is a study's."""
    values = read_yaml(find_params_file(path))
    return isinstance(values, dict) and "arms" in values


def load_study(path: str | Path) -> Study:
    """Read a study's file, and every parameter file it amounts to.

    Raises AuditError naming the key, or the arm, that is wrong.
    """
    file = find_params_file(path)
    read = read_yaml(file)
    if not isinstance(read, dict):
        raise AuditError(f"{file.name}: expected lines of `key: value`, as in params/study_ways.yaml.")
    for name in read:
        if name not in KEYS | OPTIONAL:
            raise AuditError(f"{file.name}: unknown key {name}; a study has {', '.join(KEYS | OPTIONAL)}.")
    values: dict = {"settings": {}, "measures": list(MEASURES), "curve": {}, "budgets": [], "audits": []} | read
    for name, kind in (KEYS | OPTIONAL).items():
        if not isinstance(values.get(name), kind):
            raise AuditError(f"{file.name}: {name} must be there, as a {kind.__name__}.")
    _refuse_unmeasured(file.name, values["measures"], values["curve"])
    seeds, settings = values["seeds"], values["settings"]
    if not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise AuditError(f"{file.name}: seeds must be different whole numbers, as in [0, 1, 2].")
    if len(values["arms"]) < 2:
        raise AuditError(f"{file.name}: arms: a study compares at least two.")
    for arm, own in values["arms"].items():
        if not isinstance(arm, str) or not isinstance(own, dict | None):
            raise AuditError(f"{file.name}: arms: {arm!r} must be a name with settings behind it, as in {{seed: 1}}.")
        for key in settings | (own or {}):
            if not isinstance(key, str) or key in ("run_name", "params_file", "seed", "path"):
                raise AuditError(f"{file.name}, arm {arm!r}: {key} is no key that an arm can set.")
    _refuse_uncounted(file.name, values)
    arms = {arm: settings | (own or {}) for arm, own in values["arms"].items()}
    name, question, base = (values[key] for key in ("study", "question", "base"))
    more = {key: values[key] for key in OPTIONAL}
    study = Study(name, question, base, seeds, arms, **more)
    names = [study.run_name(arm, 0) for arm in arms]
    if len(set(names)) < len(names):
        raise AuditError(f"{file.name}: arms: two names differ in punctuation alone, and would share a folder.")
    for arm in arms:
        try:
            _parameters(study, arm, seeds[0])
        except AuditError as error:
            raise AuditError(f"{file.name}, arm {arm!r}: {error}") from error
    return study


def _refuse_unmeasured(file: str, measures: list, curve: Mapping) -> None:
    if unknown := [name for name in measures if name not in list(MEASURES)]:
        raise AuditError(f"{file}: measures: {unknown[0]!r} is not one of {', '.join(MEASURES)}.")
    if curve and (curve.keys() != {"x", "y"} or curve["x"] not in list(FIELDS) or curve["y"] not in measures):
        raise AuditError(f"{file}: curve: write {{x: a parameter, y: one of the measures}}, not {dict(curve)}.")


def _refuse_uncounted(file: str, values: Mapping) -> None:
    if not all(type(budget) is int and budget > 0 for budget in values["budgets"]):
        raise AuditError(f"{file}: budgets: write numbers of questions, as in [250, 500], not {values['budgets']}.")
    if unknown := [arm for arm in values["audits"] if arm not in values["arms"]]:
        raise AuditError(f"{file}: audits: {unknown[0]!r} is none of its arms.")


def run_study(study: Study, jobs: int, tell: Callable[[str], None] = print) -> Path:
    """Do all runs of a study, `jobs` at a time, and write its report; returns the report's path.

    A run that fails does not stop the others. Raises AuditError at the end where one failed, naming its log.
    """
    from auditkit.report.summary import write_report

    study.folder.mkdir(parents=True, exist_ok=True)
    total, number = len(study.seeds) * len(study.arms), itertools.count(1)
    threads = {"OMP_NUM_THREADS": "1"} if jobs > 1 else {}  # a core for each job
    tell(f"study {study.name}: {len(study.arms)} arms x {len(study.seeds)} seeds -> {shown_path(study.folder)}")

    def one(seed: int, arm: str) -> str | None:
        log, p = study.folder / f"{study.run_name(arm, seed)}.log", _parameters(study, arm, seed)
        code = 0
        with log.open("a", encoding="utf-8") as out:
            for stage in study.stages_of(arm):
                if not code and not is_done(p, stage) and not _borrowed(p, stage):
                    command = _command(study, arm, seed, stage)
                    code = subprocess.run(
                        command, cwd=project_root(), env=threads | os.environ, stdout=out, stderr=out
                    ).returncode
        if code == 130:
            raise KeyboardInterrupt
        folder = run_folder(p)
        if not code and (study.stages_of(arm) is AUDIT or not (folder / "summary.json").is_file()):
            write_report(folder)  # which notebook 08 does, unless it too was copied
        said = "FAILED, see " + shown_path(log) if code else "done"
        tell(f"  {next(number)} of {total}: {arm}, seed {seed}: {said}")
        return shown_path(log) if code else None

    with ThreadPoolExecutor(
        jobs
    ) as pool:  # a seed's arms one after another, so that the later can take from the earlier
        tried = pool.map(lambda seed: [one(seed, arm) for arm in study.arms], study.seeds)
        failed = [log for logs in tried for log in logs if log]
    if failed:
        raise AuditError(f"{len(failed)} of {total} runs failed; {failed[0]} says why, the same command goes on.")
    return write_study(study)


def write_study_report(study: Study, table: Mapping, measures: Mapping, curves: Mapping | None = None) -> Path:
    """Write a study's `summary.json` and `report.html` into its folder and return the report's path."""
    from auditkit.report.page import render_study  # it draws, so it takes a second to import

    summary = {"study": study.name, "base": study.base, "seeds": study.seeds, "settings": study.arms, "arms": table}
    summary |= {"curves": curves} if curves else {}
    write_json(study.folder / "summary.json", summary, indent=2)
    write_text(study.folder / "report.html", render_study(study, table, measures, curves))
    return study.folder / "report.html"


def write_study(study: Study) -> Path:
    """Write the study's summary.json and report.html from the summaries of its runs; returns the report's path."""
    summaries: dict[str, list[Mapping]] = {
        arm: [as_kept(json.loads((_folder(study, arm, seed) / "summary.json").read_text())) for seed in study.seeds]
        for arm in study.arms
    }
    curves = None
    if study.budgets:
        from auditkit.experiments.curves import compare_curves, run_curves  # they need the images and the gaps

        curves = compare_curves(
            {
                arm: [run_curves(_parameters(study, arm, seed), study.budgets) for seed in study.seeds]
                for arm in study.audits or study.arms
            }
        )
    measures = {name: MEASURES[name] for name in study.measures}
    return write_study_report(study, compare_arms(summaries), measures, curves)


def as_kept(summary: Mapping) -> Mapping:
    """A run's summary; where its repair was not kept, the target after is the target before."""
    if summary.get("rectification", {}).get("held_out", {}).get("kept", True):
        return summary
    rates = [*summary.get("benchmarks", {}).values(), *summary.get("untouched", {}).values()]
    places = [summary.get(name, {}) for name in ("outside_gaps", "found_gaps", "all_gaps")]
    for sides in [*rates, *places]:
        if "before" in sides:
            sides["after"] = sides["before"]
    return summary


def compare_arms(summaries: Mapping[str, list[Mapping]]) -> dict[str, dict[str, dict]]:
    """Arm -> measure -> {"mean", "low", "high" (95 %, over seeds), "seeds": values, "against"?: difference to the first
    arm, seed by seed, with interval and p (`stats.over_seeds`)}. What not every run measured is absent.
    """
    from auditkit import stats

    first = next(iter(summaries))
    table: dict[str, dict[str, dict]] = {}
    for arm, found in summaries.items():
        table[arm] = {}
        for name, measure in MEASURES.items():
            values = [value for value in measure.of(found) if value is not None]
            if not values or len(values) < len(found):
                continue
            table[arm][name] = stats.over_seeds(values) | {"seeds": values}
            if arm != first and name in table[first]:
                base = table[first][name]["seeds"]
                table[arm][name]["against"] = stats.over_seeds([a - b for a, b in zip(values, base, strict=True)])
    return table


def _parameters(study: Study, arm: str, seed: int) -> Params:
    return load_params(study.base, **study.arms[arm], seed=seed, run_name=study.run_name(arm, seed))


def _folder(study: Study, arm: str, seed: int) -> Path:
    return run_folder(_parameters(study, arm, seed))


def _borrowed(p: Params, stage: str) -> bool:
    """Whether a stage could be copied from another run of a study, made with the same settings, on the same stages."""
    here = run_folder(p) / stage
    if here.exists():
        return False
    for other in sorted((project_root() / "outputs").glob("study_*")):
        if (other / stage / "DONE").is_file() and would_fit(p, other / stage) and not damage_in_words(other / stage):
            beside = here.with_name(f"{stage}.copied")
            shutil.rmtree(beside, ignore_errors=True)
            shutil.copytree(other / stage, beside, ignore=shutil.ignore_patterns(".lock"))
            beside.rename(here)
            return True
    return False


def _command(study: Study, arm: str, seed: int, stage: str) -> list[str]:
    settings = study.arms[arm] | {"seed": seed, "run_name": study.run_name(arm, seed)}
    return [
        *(sys.executable, "-m", "auditkit.cli", "run", study.base, "--only", stage[:2]),
        *itertools.chain.from_iterable(("--set", text) for text in as_texts(settings)),
    ]


def as_texts(settings: Mapping) -> Iterable[str]:
    """Settings as the command line takes them: a list as [a, b]."""
    for name, value in settings.items():
        yield f"{name}={json.dumps(value) if isinstance(value, list) else value}"
