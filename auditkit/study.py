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

Every run is an ordinary run, in a folder outputs/study_NAME.ARM.SEED of its own, with a report of its own; what is done
is not done again. Runs of one seed draw the same pictures, so arms are compared in pairs with the first, seed by seed.
"""

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml

from auditkit import params, report, runs, stats
from auditkit.errors import AuditError

KEYS = {"study": str, "question": str, "base": str, "seeds": list, "settings": dict, "arms": dict}
STAGES = ("02", "04", "05", "06", "07", "08")  # what a study measures needs no more


@dataclass(frozen=True)
class Study:
    """A study's file, read and checked (`load` makes it)."""

    name: str
    question: str
    base: str
    seeds: list[int]
    arms: dict[str, dict]  # label -> what its runs change, the settings of all among them

    def run_name(self, arm: str, seed: int) -> str:
        return f"study_{self.name}.{re.sub(r'[^A-Za-z0-9]+', '_', arm)}.{seed}"

    @property
    def folder(self) -> Path:
        return params.root() / "outputs" / f"study_{self.name}"


@dataclass(frozen=True)
class Measure:
    """One column of the table: what it is called, and how to read it from a run's summary.json (None: not there)."""

    label: str
    of: Callable[[Mapping], float | None]
    share: bool = True  # shown in per cent; a count otherwise


def _success(summary: Mapping) -> float | None:
    rates = [way["search_success"] for way in summary.get("ways", {}).values() if "search_success" in way]
    n = sum(rate["n"] for rate in rates)
    return sum(rate["value"] * rate["n"] for rate in rates) / n if n else None


def _trained(summary: Mapping) -> float | None:
    return (summary.get("search_success", {}).get("trained") or {}).get("value")


def _mean(summary: Mapping, side: str) -> float | None:
    rates = [sides[side]["value"] for sides in summary.get("benchmarks", {}).values() if side in sides]
    return sum(rates) / len(rates) if rates else None


def _gain(summary: Mapping) -> float | None:
    before, after = _mean(summary, "before"), _mean(summary, "after")
    return None if before is None or after is None else after - before


def _fall(summary: Mapping) -> float | None:
    both = [sides for sides in summary.get("benchmarks", {}).values() if {"before", "after"} <= sides.keys()]
    return max([0.0, *(s["before"]["value"] - s["after"]["value"] for s in both)]) if both else None


MEASURES = {
    "trained": Measure("search success, trained auditor", _trained),
    "success": Measure("search success, all probes", _success),
    "findings": Measure("findings", lambda s: s.get("findings", {}).get("total"), share=False),
    "precision": Measure("findings that are true", lambda s: s.get("precision", {}).get("value")),
    "gaps": Measure("planted gaps found", lambda s: s.get("planted_gaps", {}).get("found"), share=False),
    "types": Measure("failure types named", lambda s: len(s.get("findings", {}).get("by_type", {})) or None, False),
    "pairs": Measure("pairs trained on", lambda s: s.get("rectification", {}).get("trained_on"), share=False),
    "after": Measure("mean skill after the repair", lambda s: _mean(s, "after")),
    "gain": Measure("gain", _gain),
    "fall": Measure("largest fall of a skill", _fall),
}


def is_study(path: str | Path) -> bool:
    """Whether a parameter file is a study's."""
    try:
        return "arms" in (yaml.safe_load(params.find(path).read_text(encoding="utf-8")) or {})
    except (yaml.YAMLError, UnicodeDecodeError, TypeError):
        return False  # params.load says what is wrong with it


def load(path: str | Path) -> Study:
    """Read a study's file, and every parameter file it amounts to.

    Raises AuditError naming the key, or the arm, that is wrong.
    """
    file = params.find(path)
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    for name in values:
        if name not in KEYS:
            raise AuditError(f"{file.name}: unknown key {name}; a study has {', '.join(KEYS)}.")
    for name, kind in KEYS.items():
        if not isinstance(values.setdefault(name, {} if name == "settings" else None), kind):
            raise AuditError(f"{file.name}: {name} must be there, as a {kind.__name__}.")
    seeds, settings = values["seeds"], values["settings"]
    if not seeds or len(set(seeds)) < len(seeds) or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise AuditError(f"{file.name}: seeds must be different whole numbers, as in [0, 1, 2].")
    if len(values["arms"]) < 2:
        raise AuditError(f"{file.name}: arms: a study compares at least two.")
    arms = {arm: settings | (own or {}) for arm, own in values["arms"].items()}
    study = Study(values["study"], values["question"], values["base"], seeds, arms)
    names = [study.run_name(arm, 0) for arm in arms]
    if len(set(names)) < len(names):
        raise AuditError(f"{file.name}: arms: two names differ in punctuation alone, and would share a folder.")
    for arm in arms:
        try:
            _parameters(study, arm, seeds[0])
        except AuditError as error:
            raise AuditError(f"{file.name}, arm {arm!r}: {error}") from error
    return study


def run(study: Study, jobs: int, tell: Callable[[str], None] = print) -> Path:
    """Do all runs of a study, `jobs` at a time, and write its report; returns the report's path.

    A run that fails does not stop the others. Raises AuditError at the end where one failed, naming its log.
    """
    study.folder.mkdir(parents=True, exist_ok=True)
    todo = list(itertools.product(study.seeds, study.arms))
    tell(f"study {study.name}: {len(study.arms)} arms x {len(study.seeds)} seeds -> {runs.shown(study.folder)}")

    def one(place: tuple[int, tuple[int, str]]) -> str | None:
        number, (seed, arm) = place
        log = study.folder / f"{study.run_name(arm, seed)}.log"
        with log.open("a", encoding="utf-8") as out:
            codes = (
                subprocess.run(_command(study, arm, seed, stage), cwd=params.root(), stdout=out, stderr=out).returncode
                for stage in STAGES
            )
            failed = next((code for code in codes if code), 0)
        if failed == 130:
            raise KeyboardInterrupt
        tell(f"  {number} of {len(todo)}: {arm}, seed {seed}: {'FAILED, see ' + runs.shown(log) if failed else 'done'}")
        return runs.shown(log) if failed else None

    with ThreadPoolExecutor(jobs) as pool:
        failed = [log for log in pool.map(one, enumerate(todo, 1)) if log]
    if failed:
        raise AuditError(f"{len(failed)} of {len(todo)} runs failed; {failed[0]} says why, the same command goes on.")
    return write(study)


def write(study: Study) -> Path:
    """Write the study's summary.json and report.html from the summaries of its runs; returns the report's path."""
    summaries = {
        arm: [json.loads((_folder(study, arm, seed) / "summary.json").read_text()) for seed in study.seeds]
        for arm in study.arms
    }
    return report.write_study(study, compare(summaries), MEASURES)


def compare(summaries: Mapping[str, list[Mapping]]) -> dict[str, dict[str, dict]]:
    """Arm -> measure -> {"mean", "low", "high" (95 %, over seeds), "seeds": values, "against"?: difference to the first
    arm, seed by seed, with interval and p (`stats.over_seeds`)}. What not every run measured is absent.
    """
    first = next(iter(summaries))
    table: dict[str, dict[str, dict]] = {}
    for arm, found in summaries.items():
        table[arm] = {}
        for name, measure in MEASURES.items():
            values = [measure.of(summary) for summary in found]
            if None in values:
                continue
            table[arm][name] = stats.over_seeds(values) | {"seeds": values}
            if arm != first and name in table[first]:
                base = table[first][name]["seeds"]
                table[arm][name]["against"] = stats.over_seeds([a - b for a, b in zip(values, base, strict=True)])
    return table


def _parameters(study: Study, arm: str, seed: int) -> params.Params:
    return params.load(study.base, **study.arms[arm], seed=seed, run_name=study.run_name(arm, seed))


def _folder(study: Study, arm: str, seed: int) -> Path:
    return runs.run_folder(_parameters(study, arm, seed))


def _command(study: Study, arm: str, seed: int, stage: str) -> list[str]:
    settings = study.arms[arm] | {"seed": seed, "run_name": study.run_name(arm, seed)}
    return [
        *(sys.executable, "-m", "auditkit.cli", "run", study.base, "--only", stage),
        *itertools.chain.from_iterable(("--set", text) for text in as_texts(settings)),
    ]


def as_texts(settings: Mapping) -> Iterable[str]:
    """Settings as the command line takes them: a list as [a, b]."""
    for name, value in settings.items():
        yield f"{name}={json.dumps(value) if isinstance(value, list) else value}"
