"""From answers to outcomes: why each probe is a finding, or is none."""

from collections.abc import Sequence
from pathlib import Path

from auditkit.consensus.choose import choose_same
from auditkit.consensus.normalise import normalise
from auditkit.consensus.same import Same
from auditkit.consensus.vote import Vote, unmet_wishes, vote_all
from auditkit.counterfactual.clip_direction import unlike
from auditkit.errors import AuditError


def score_probes(records: Sequence[dict], p, folder: Path | None = None) -> list[dict]:
    """The records with consensus, agreement, disagrees and outcome, in their order; those given are left as they are.

    The outcome is the first reason why a probe is no finding: "malformed", "bad picture" (none was made, or it is not what
    was wished for; `why` says more), "implausible" (a word of the question is less probable to the untrained auditor
    than p.min_token_probability), "duplicate" (the same question on the same picture came before), "no consensus" or
    "agrees"; else it is "finding". A finding with `irrelevant_edit` is one where only the target moved: see the module.

    Args:
        p: uses min_token_probability, quorum, picture_gain and same, and device, dtype, batch_size and memory where a
            model judges what means the same.
        folder: where the verdicts of such a model are kept; those on file need no model.

    Raises AuditError when the target was never asked, and when the references never agree.
    """
    alike = choose_same(p, folder)
    said = [(r["question"], r["target"], list(r["references"].values())) for r in records if r["question"] is not None]
    found, scored = iter(vote_all(said, alike, p.quorum)), []
    seen, why, before = set(), _unmet(records, alike, p), _before(records, alike, p)
    for record in records:
        row = {**record, "consensus": None, "agreement": 0.0, "disagrees": False} | why.get(record["key"], {})
        asked = (record["picture"], normalise(record["question"] or ""))
        if record["question"] is None:
            row["outcome"] = "bad picture" if row.get("why") else "malformed"
        else:
            verdict = next(found)
            row |= {"consensus": verdict.consensus, "agreement": verdict.agreement, "disagrees": verdict.disagrees}
            rarest = record.get("rarest")  # 0.0 where softmax underflows: as implausible as can be
            row["outcome"] = (
                "bad picture" if row.get("why") else
                "implausible" if rarest is not None and rarest < p.min_token_probability else
                "duplicate" if asked in seen else
                "no consensus" if verdict.consensus is None else
                "finding" if verdict.disagrees else "agrees"
            )  # fmt: skip
            seen.add(asked)
            if earlier := before.get(record["key"]):
                stays = verdict.consensus is not None and alike(earlier.consensus, verdict.consensus, row["question"])
                row |= {"consensus_before": earlier.consensus, "irrelevant_edit": stays and row["outcome"] == "finding"}
        scored.append(row)
    answered = [row for row in scored if row["question"] is not None]
    if not answered:
        raise AuditError(f"none of {len(scored)} probes holds a question, so the target was never asked; "
                         "look at what the auditor wrote in proposals.jsonl.")  # fmt: skip
    if all(row["consensus"] is None for row in answered):
        names = ", ".join(answered[0]["references"])
        raise AuditError(f"the references ({names}) never agree on any of {len(answered)} probes, so nothing can be "
                         f"scored; lower `quorum` (now {p.quorum}) or name other references.")  # fmt: skip
    return scored


def _unmet(records: Sequence[dict], alike: Same, p) -> dict[str, dict]:
    """By key, why a picture that was made is not what was wished for: the references' word, then the judge's."""
    checked = [record for record in records if record.get("checked")]
    rows = [(record["check"], record["expected"], list(record["checked"].values())) for record in checked]
    found = zip(checked, unmet_wishes(rows, alike, p.quorum), strict=True)
    why = {record["key"]: why or unlike(record.get("gain"), p) for record, why in found}
    return {key: {"why": reason} for key, reason in why.items() if reason}


def _before(records: Sequence[dict], alike: Same, p) -> dict[str, Vote]:
    """By key, the verdict on the original picture, where target and references agreed there."""
    asked = [record for record in records if record.get("before")]
    rows = [(r["question"], r["before"]["target"], list(r["before"]["references"].values())) for r in asked]
    found = zip(asked, vote_all(rows, alike, p.quorum), strict=True)
    return {r["key"]: verdict for r, verdict in found if verdict.consensus is not None and not verdict.disagrees}


def outcome_counts(scored: Sequence[dict]) -> dict[str, int]:
    """What was asked, answered and dropped, from scored records: the same however often the audit was interrupted.

    A question that came twice on one picture was put to the models once, so calls count distinct ones.
    """
    outcomes, target, references = [row["outcome"] for row in scored], set(), set()
    for row in scored:
        if row["question"] is None:
            continue
        target.add((row["picture"], row["question"]))
        references |= {(name, row["picture"], row["question"]) for name in row["references"]}
        references |= {(name, row["picture"], row["check"]) for name in row.get("checked") or ()}
        if row.get("before"):
            target.add((row["base"], row["question"]))
            references |= {(name, row["base"], row["question"]) for name in row["references"]}
    return {
        "asked": len(scored),
        "parsed": sum(row["question"] is not None for row in scored),
        "target_called": len(target),
        "references_called": len(references),
        "scored": outcomes.count("finding") + outcomes.count("agrees"),
        "malformed": outcomes.count("malformed"),
        "bad_pictures": outcomes.count("bad picture"),
        "implausible": outcomes.count("implausible"),
        "no_consensus": outcomes.count("no consensus"),
        "duplicates": outcomes.count("duplicate"),
    }
