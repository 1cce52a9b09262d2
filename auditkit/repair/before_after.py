"""What a repair changed, measured on the target before, the target after and the larger peer: all of notebook 08, and
the first look at it in notebook 07.

A *side* is one of "before", "after" and "peer"; what is not there is absent from every result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from auditkit import stats
from auditkit.data.source import Example, Source, Task
from auditkit.models.answers import AnswerBook
from auditkit.models.base import Writer
from auditkit.params import Params
from auditkit.repair.held_out import keep_what_helps, usual_failures
from auditkit.repair.skills import MEAN, SkillScores, evaluate_skills, evaluate_task, repair_gain

FOUND, MISSED, OUTSIDE = "in a found gap", "in a missed gap", "outside"
FELL = -0.02  # a skill that changed by less than this has fallen
GAINS = {  # keys of `repair_gain` -> in words
    "agreement": "gain in agreement with the references",
    "skills": "gain over the skills",
    "over_peer": "after the repair, above the larger peer",
}

Alike = Callable[[str, str, str], bool]  # (answer, answer, question) -> whether the two mean the same


def load_sides(load: Callable[..., Writer], target: str, adapter: Path, peer: str) -> dict[str, Writer]:
    """The models to compare, by side; no "after" where there is no adapter.

    Args:
        load: (text that names a model, adapter=) -> the model (`model_loader(p)`).
    """
    models = {"before": load(target)}
    models |= {"after": load(target, adapter=adapter)} if adapter.is_dir() else {}
    return models | ({"peer": load(peer)} if peer else {})


# ---- by known answers -----------------------------------------------------------------------------------------------


def evaluate_all(
    models: Mapping[str, Writer], benchmarks: Mapping[str, list[Example]], book: AnswerBook, max_answer_tokens: int
) -> dict[str, SkillScores]:
    """The scores of several models on the same benchmarks, by the names given to them; {} without benchmarks."""
    if not benchmarks:
        return {}
    return {name: evaluate_skills(model, benchmarks, book, max_answer_tokens) for name, model in models.items()}


def skill_rates(scores: Mapping[str, SkillScores]) -> dict[str, dict[str, dict]]:
    """{side: {skill: rate}}, without the mean."""
    return {side: {skill: its[skill] for skill in its.right} for side, its in scores.items()}


def score_by_gap(
    scores: Mapping[str, SkillScores],
    benchmarks: Mapping[str, list[Example]],
    source: Source,
    gaps: list,
    planted: Mapping,
) -> dict[str, dict[str, dict]]:
    """The held-out examples parted by the target's known gaps: how often each side is right within and without.

    Args:
        scores: as from `evaluate_all`, of these benchmarks.
        source: of the benchmarks.
        gaps: the target's, as `source.gaps` gives them; none for an ordinary target.
        planted: as from `grade_planted_gaps`, which says which of them were found.

    Returns {"in a found gap" | "in a missed gap" | "outside": {side: rate}}, places in the order of the examples.
    """
    where = {gap["name"]: FOUND if gap["found"] else MISSED for gap in planted.get("gaps", [])}
    asked = [example for examples in benchmarks.values() for example in examples]
    names = [source.gap(example.key.split("/q")[0], example.question, gaps) for example in asked]
    places = [where.get(name, OUTSIDE) for name in names]
    right = {side: [one for skill in benchmarks for one in its.right[skill]] for side, its in scores.items()}
    parted: dict[str, dict[str, dict]] = {}
    for place in dict.fromkeys(places):
        here = {side: [one for one, at in zip(of, places, strict=True) if at == place] for side, of in right.items()}
        parted[place] = {side: stats.rate(sum(of), len(of)) for side, of in here.items()}
    return parted


def evaluate_tasks_aside(
    models: Mapping[str, Writer], tasks: Sequence[Task], book: AnswerBook
) -> dict[str, dict[str, dict]]:
    """What no audit asked about, the target before and after: {task: {side: rate}}."""
    sides = {side: model for side, model in models.items() if side != "peer"}
    return {task.name: {side: evaluate_task(model, task, book) for side, model in sides.items()} for task in tasks}


# ---- by the consensus -----------------------------------------------------------------------------------------------


def ask_again(
    rows: Sequence[Mapping], repaired: Writer | None, source: Source, book: AnswerBook, max_answer_tokens: int
) -> list[dict]:
    """Scored probes put to the repaired target.

    Args:
        rows: scored records.
        repaired: None where there is none: then "after" is what the target said before.
        source: images of the run, those that were made among them (with_counterfactuals).
        book: holds the answers, so that nothing is asked twice.

    Returns rows {"key", "picture", "question", "consensus", "before": answer, "after": answer}.
    """
    said = [row["target"] for row in rows]
    if repaired is not None:
        pictures = [source.picture(row["picture"]) for row in rows]
        said = book.ask(repaired, pictures, [row["question"] for row in rows], max_answer_tokens)
    kept = ("key", "picture", "question", "consensus")
    return [
        {name: row[name] for name in kept} | {"before": row["target"], "after": after}
        for row, after in zip(rows, said, strict=True)
    ]


def ask_held_out(
    load: Callable[..., Writer],
    target: str,
    held: Sequence[Mapping],
    source: Source,
    folder: Path,
    max_answer_tokens: int,
    adapter: Path,
) -> list[dict]:
    """Probes held out, put to the target with an adapter, as from `ask_again`.

    Args:
        load, target: as for `load_sides`.
        folder: gets held_out.NAME.jsonl, the answers with the adapter of this name.
    """
    book = AnswerBook(folder / f"held_out.{adapter.name}.jsonl")
    return ask_again(held, load(target, adapter=adapter), source, book, max_answer_tokens)


def keep_repair(
    trained: Path | None,
    held: Sequence[dict],
    scored: Sequence[dict],
    load: Callable[..., Writer],
    source: Source,
    alike: Alike,
    p: Params,
    folder: Path,
) -> tuple[Path | None, dict]:
    """`keep_what_helps` of a run: the folder of what is kept of a repair, and what its check found.

    Args:
        trained: as from `train_repair`; None where nothing was trained, and then nothing is checked.
        held: probes held out.
        scored: all of the audit.
        load, source: as for `load_sides` and `ask_again`.
        p: uses target, max_answer_tokens and run_name.
        folder: of the stage.
    """
    if trained is None:
        return None, {}
    ask = partial(ask_held_out, load, p.target, held, source, folder, p.max_answer_tokens)
    return keep_what_helps(trained, ask, held, usual_failures(scored, p), alike)


def share_learnt(again: Sequence[Mapping], alike: Alike) -> dict:
    """The share of findings, put to the repaired target by `ask_again`, that it now answers as the references do."""
    return stats.rate(sum(alike(row["after"], row["consensus"], row["question"]) for row in again), len(again))


def departures(
    rows: Sequence[Mapping], again: Sequence[Mapping], repaired: bool, alike: Alike
) -> dict[str, list[bool]]:
    """Whether the target departs from the consensus, probe by probe: {"before": [...], "after"?: [...]}.

    Args:
        rows: scored records.
        again: the same, put to the repaired target (`ask_again`), if it is `repaired`.
    """
    found = {"before": [row["disagrees"] for row in rows]}
    if repaired:
        found["after"] = [not alike(row["after"], row["consensus"], row["question"]) for row in again]
    return found


def departure_rates(departs: Mapping[str, Sequence[bool]]) -> dict[str, dict]:
    """{side: rate} of `departures`."""
    return {side: stats.rate(sum(rows), len(rows)) for side, rows in departs.items()}


# ---- all of it ------------------------------------------------------------------------------------------------------


def repair_metrics(
    scores: Mapping[str, SkillScores],
    departs: Mapping[str, Sequence[bool]],
    untouched: Mapping[str, Mapping],
    parted: Mapping[str, Mapping],
    gaps: Sequence,
) -> dict:
    """The metrics of notebook 08, as report/summary.py describes them.

    Args:
        scores: as from `evaluate_all`.
        departs: as from `departures`.
        untouched: as from `evaluate_tasks_aside`.
        parted: as from `score_by_gap`.
        gaps: the target's known ones.
    """
    metrics: dict = {f"disagreement_{side}": rate for side, rate in departure_rates(departs).items()}
    metrics |= {"untouched": untouched} if untouched else {}
    if scores:
        rates = skill_rates(scores)
        metrics["benchmarks"] = {skill: {side: rates[side][skill] for side in rates} for skill in rates["before"]}
        metrics["mean"] = {side: its[MEAN] for side, its in scores.items()}
    metrics["gain"] = repair_gain(scores, departs)
    for name, place in (("outside_gaps", OUTSIDE), ("found_gaps", FOUND)):
        if "after" in scores and place in parted and (gaps or place == FOUND):
            metrics[name] = {side: parted[place][side] for side in ("before", "after")}
    within = [parted[place] for place in (FOUND, MISSED) if place in parted]
    if "after" in scores and gaps and within:  # the same questions whoever audits: what runs are compared by
        metrics["all_gaps"] = {side: _pooled([rates[side] for rates in within]) for side in ("before", "after")}
    return metrics


def _pooled(rates: Sequence[Mapping]) -> dict:
    return stats.rate(sum(round(rate["value"] * rate["n"]) for rate in rates), sum(rate["n"] for rate in rates))


def repair_in_words(metrics: Mapping, compared: Sequence[Mapping]) -> list[str]:
    """`repair_metrics` in a sentence each.

    Args:
        compared: as from `compare_skills`.
    """
    departs = {
        side: metrics[f"disagreement_{side}"] for side in ("before", "after") if f"disagreement_{side}" in metrics
    }
    shares = ", ".join(f"{rate['value']:.1%} {side}" for side, rate in departs.items())
    told = [f"departs from the consensus on this share of the {departs['before']['n']} probes: {shares}"]
    if "mean" in metrics:
        means = ", ".join(f"{side} {rate['value']:.1%}" for side, rate in metrics["mean"].items())
        told.append(f"mean over the skills: {means}")
    if compared:
        fallen = [row["skill"] for row in compared if row["change"]["value"] < FELL]
        told.append("skills that fell by more than 2 points: " + (", ".join(fallen) or "none"))
    for name, change in metrics["gain"].items():
        points = [100 * change[bound] for bound in ("value", "low", "high")]
        told.append("{}: {:+.1f} points ({:+.1f} to {:+.1f})".format(GAINS[name], *points))
    if "found_gaps" in metrics:
        wrong = {side: 1 - rate["value"] for side, rate in metrics["found_gaps"].items()}
        gone = 1 - wrong["after"] / wrong["before"] if wrong["before"] else 0.0
        told.append(f"of the error inside the found gaps, {gone:.0%} is gone")
    return told
