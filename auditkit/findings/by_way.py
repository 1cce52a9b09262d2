"""What came of the images that were made, and of each way and pairing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from auditkit import stats
from auditkit.consensus.vote import ALREADY
from auditkit.counterfactual.store import IMAGES_FILE, WithCounterfactuals
from auditkit.data.source import Source
from auditkit.errors import AuditError
from auditkit.findings.failure_types import ASKED
from auditkit.findings.grading import grade_planted_gaps, known_truth, search_success, told_truth
from auditkit.params import Params
from auditkit.runs import jsonl
from auditkit.runs.probe import only_findings
from auditkit.text import counted

# ---- pictures that were made ----------------------------------------------------------------------------------------


def image_outcomes(
    scored: Sequence[dict], pictures: Sequence[dict], *, edit_region: float, edit_rest: float, picture_gain: float
) -> dict:
    """How the making of pictures went, from an audit's scored records and its image store's rows (IMAGES_FILE).

    Args:
        edit_region, edit_rest: the share of a picture that an edit may change, and the structural similarity that the
            rest must keep.
        picture_gain: the bound of the picture check.

    Returns {"images": {"asked", "made", "dropped": {reason: count}, "cut", "seconds_each"}, "editor":
    {"command_applied": rate, "rest_unchanged": rate}, "generator": {"objects_present": rate}}. `cut` counts texts whose
    end was not read. By the references' word on each wish's check, where they agree; an edit that was so already says
    nothing of the editor and is left out. With a picture check both also have "towards_the_wish": rate, by its word
    alone. Keys without a single picture are absent.
    """
    wishes = [row for row in scored if row["way"] != "question" and row["pairing"] == "(Q*, I*)" and row["made"]]
    if not wishes:
        return {}
    dropped = Counter(row["why"].split(":")[0] for row in wishes if row.get("why"))
    result: dict = {"images": {"asked": len(wishes), "made": len(wishes) - sum(dropped.values())}}
    result["images"] |= {"dropped": dict(dropped.most_common()), "cut": sum(bool(row["cut"]) for row in pictures)}
    seconds = [row["seconds"] for row in pictures]
    result["images"] |= {"seconds_each": round(sum(seconds) / len(seconds), 4)} if seconds else {}
    for way, model, name in (("edit", "editor", "command_applied"), ("regenerate", "generator", "objects_present")):
        checked = [
            row
            for row in wishes
            if row["way"] == way and row.get("checked") and row.get("why") not in ("implausible", ALREADY)
        ]
        if checked:
            right = sum(row.get("why") != "not applied" for row in checked)
            result.setdefault(model, {})[name] = stats.rate(right, len(checked))
        if gains := [row["gain"] for row in wishes if row["way"] == way and row.get("gain") is not None]:
            above = sum(gain > picture_gain for gain in gains)
            result.setdefault(model, {})["towards_the_wish"] = stats.rate(above, len(gains))
    edits = [row for row in pictures if row["way"] == "edit" and row["share"] is not None]
    if edits:
        same = sum((row["rest"] or 0) >= edit_rest and row["share"] <= edit_region for row in edits)
        result.setdefault("editor", {})["rest_unchanged"] = stats.rate(same, len(edits))
    return result


def painted_outcomes(folder: Path, scored: Sequence[dict], p: Params) -> dict:
    """`image_outcomes` of a stage, by its folder and a parameter file.

    Args:
        p: uses edit_region, edit_rest and picture_gain.
    """
    bounds = {"edit_region": p.edit_region, "edit_rest": p.edit_rest, "picture_gain": p.picture_gain}
    return image_outcomes(scored, jsonl.read(folder / IMAGES_FILE), **bounds)


def before_and_after(rows: Sequence[dict], source: WithCounterfactuals) -> list[dict]:
    """Scored records of pictures that were made, with both pictures and all answers, as `plots.pairs` shows them.

    source: images of the run with the made pictures among them (with_counterfactuals).
    """
    found = []
    for row in rows:
        old = row.get("before") or {}
        found.append(
            row
            | {"before_image": source.picture(row["base"]).image, "image": source.picture(row["picture"]).image}
            | {"box": source.made[row["picture"]].box, "consensus_before": row.get("consensus_before")}
            | {"target_before": old.get("target"), "references_before": old.get("references")}
            | known_truth(source, row["picture"], row["question"])
            | {f"{name}_before": known for name, known in known_truth(source, row["base"], row["question"]).items()}
        )
    return found


def irrelevant_edits(scored: Sequence[dict]) -> list[dict]:
    """The findings on which an edit that left the consensus as it was turned the target (paper, Sec. 3.2), by key."""
    return sorted((row for row in scored if row.get("irrelevant_edit")), key=lambda row: row["key"])


def irrelevant_first(rows: Sequence[dict]) -> list[dict]:
    """The same findings, irrelevant edits before the others."""
    return irrelevant_edits(rows) + [row for row in rows if not row.get("irrelevant_edit")]


def outcomes_by(scored: Sequence[dict], field: str, source: Source) -> dict[str, dict]:
    """What the probes of each way, or each pairing, came to.

    Args:
        field: "way" or "pairing".

    Returns {value: {"probes", "search_success"?: rate, "by_consensus": rate, "precision"?: rate, "findings"}}; what
    the source cannot grade is absent.
    """
    parts: dict[str, list[dict]] = {}
    for row in scored:
        parts.setdefault(row[field], []).append(row)
    found = {}
    for value, rows in parts.items():
        kept = only_findings(rows)
        found[value] = {"probes": len(rows), "findings": len(kept), "by_consensus": stats.rate(len(kept), len(rows))}
        try:
            found[value]["search_success"] = search_success(rows, source)
        except AuditError:
            pass
        if (precision := grade_planted_gaps(kept, source, []).get("precision")) is not None:
            found[value]["precision"] = precision
    return found


def who_moved(edits: Sequence[dict], alike: Callable[[str, str, str], bool]) -> dict[str, list[str]]:
    """For each edit whether the consensus and the target "stays" or "moves": {"consensus": [...], "target": [...]}.

    Args:
        edits: scored records of the originals' own questions after an edit, all of which have a `consensus_before`; the
            target had agreed with it.
        alike: (answer, answer, question) -> whether the two mean the same (`choose_same`).
    """

    def moves(row: dict, said: str) -> str:
        return "stays" if alike(row["consensus_before"], said, row["question"]) else "moves"

    return {who: [moves(row, row[who]) for row in edits] for who in ("consensus", "target")}


def describe_edits(rows: Sequence[dict], source: WithCounterfactuals) -> list[dict]:
    """Irrelevant edits with the region that changed, what the target said before and, where the source knows it, the
    truth, as edits.json keeps them.
    """
    before = [{"box": source.made[row["picture"]].box, "target_before": row["before"]["target"]} for row in rows]
    known = [told_truth(source.accepted(row["picture"], row["question"])) for row in rows]
    return [row | old | truth for row, old, truth in zip(rows, before, known, strict=True)]


def picture_metrics(scored: Sequence[dict], painted: dict, source: Source) -> dict:
    """What notebook 03 notes of the pictures that were made.

    Args:
        painted: as from `image_outcomes`.

    Returns {"made", **painted, "ways"?, "pairings"?: as from `outcomes_by`, "irrelevant_edits"?}; the last three where
    any probe got as far as a comparison.
    """
    metrics = {"made": painted.get("images", {}).get("made", 0), **painted}
    if any(row["outcome"] in ASKED for row in scored):
        metrics |= {name + "s": outcomes_by(scored, name, source) for name in ("way", "pairing")}
        metrics["irrelevant_edits"] = len(irrelevant_edits(scored))
    return metrics


def pictures_in_words(metrics: dict, agreed: int) -> list[str]:
    """`picture_metrics` in a sentence each.

    Args:
        agreed: edits of pictures on which target and references had agreed.
    """
    if "ways" not in metrics:
        return ["No counterfactual picture, so nothing to compare; the audit itself does not need any."]
    images, irrelevant = metrics["images"], metrics["irrelevant_edits"]
    dropped = ", ".join(f"{why} {n:,}" for why, n in images["dropped"].items()) or "none"
    wishes, good = counted(images["asked"], "wish", "wishes"), counted(images["made"], "good picture")
    edits = counted(agreed, "edit")
    told = [
        f"{wishes}, {good}; dropped: {dropped}",
        f"{edits} of pictures on which all agreed; irrelevant ones that turned the target: {irrelevant}",
    ]
    for model in ("editor", "generator"):
        for name, rate in metrics.get(model, {}).items():
            told.append(f"{model}: {name.replace('_', ' ')} {rate['value']:.1%} of {rate['n']}")
    return told
