"""From answers to outcomes: why each probe is a finding, or is none."""

from collections.abc import Sequence

from auditkit.consensus.normalise import has_content, normalise
from auditkit.consensus.same import Same
from auditkit.consensus.vote import Vote, unmet_reason, vote_all
from auditkit.counterfactual.clip_direction import unlike
from auditkit.errors import AuditError

FEW = 10  # questions below which silence says little about a model


def score_probes(
    records: Sequence[dict], alike: Same, *, quorum: float, min_token_probability: float, picture_gain: float
) -> list[dict]:
    """The records with consensus, agreement, disagrees and outcome, in their order; those given are left as they are.

    The outcome is the first reason why a probe is no finding: "malformed", "bad picture" (none was made, it is not what
    was wished for, or the original was so already; `why` says more), "implausible" (a word of the question is less
    probable to the untrained auditor than min_token_probability), "duplicate" (the same question on the same picture
    came before), "no consensus", "no answer" (the target said nothing) or "agrees"; else it is "finding". A finding
    with `irrelevant_edit` is one where only the target moved: see audit/loop.py.

    Args:
        alike: when two answers mean the same (`choose_same`).
        quorum: the share of all references that must stand behind one answer.
        min_token_probability: what each token of a question must have to the untrained auditor, 0 to 1.
        picture_gain: the cosine that a made picture's gain must be above, where a picture check measured one.

    Raises AuditError when the target was never asked, when a model said nothing to most questions, and when the
    references never agree.
    """
    verdicts, unmet, before = _vote_once(records, alike, quorum)
    seen, scored = set(), []
    for record, verdict in zip(records, verdicts, strict=True):
        earlier = before.get(record["key"])
        row = {**record, "consensus": None, "agreement": 0.0, "disagrees": False}
        if record.get("checked") and (why := unmet[record["key"]] or unlike(record.get("gain"), picture_gain)):
            row["why"] = why
        if verdict is None:
            row["outcome"] = "bad picture" if row.get("why") else "malformed"
        else:
            asked = (record["picture"], normalise(record["question"]))
            row |= {"consensus": verdict.consensus, "agreement": verdict.agreement, "disagrees": verdict.disagrees}
            rarest = record.get("rarest")  # 0.0 where softmax underflows: as implausible as can be
            row["outcome"] = (
                "bad picture" if row.get("why") else
                "implausible" if rarest is not None and rarest < min_token_probability else
                "duplicate" if asked in seen else
                "no consensus" if verdict.consensus is None else
                "no answer" if verdict.silent else
                "finding" if verdict.disagrees else "agrees"
            )  # fmt: skip
            seen.add(asked)
            if earlier is not None:
                stays = verdict.consensus is not None and alike(earlier, verdict.consensus, row["question"])
                row |= {"consensus_before": earlier, "irrelevant_edit": stays and row["outcome"] == "finding"}
        scored.append(row)
    _refuse_unscored(scored, quorum)
    return scored


def _vote_once(
    records: Sequence[dict], alike: Same, quorum: float
) -> tuple[list[Vote | None], dict[str, str], dict[str, str]]:
    """The votes on everything that was answered about n probes, decided together.

    Returns n votes on the questions, None without one; by key, why a picture that was made is not what was wished for,
    "" where it is; by key, the consensus on the original picture, where the target shared it.
    """
    asked = [r for r in records if r["question"] is not None]
    checked = [r for r in records if r.get("checked")]
    checked_before = [r for r in records if r.get("checked_before")]
    earlier = [r for r in records if r.get("before")]
    rows = [(r["question"], r["target"], list(r["references"].values())) for r in asked]
    rows += [(r["check"], r["expected"], list(r["checked"].values())) for r in checked]
    rows += [(r["check"], r["expected"], list(r["checked_before"].values())) for r in checked_before]
    rows += [(r["question"], r["before"]["target"], list(r["before"]["references"].values())) for r in earlier]
    votes = iter(vote_all(rows, alike, quorum))
    verdicts = [None if r["question"] is None else next(votes) for r in records]
    after = {r["key"]: next(votes) for r in checked}
    original = {r["key"]: next(votes) for r in checked_before}
    unmet = {key: unmet_reason(one, original.get(key)) for key, one in after.items()}
    agreed = {
        r["key"]: one.consensus
        for r, one in zip(earlier, votes, strict=True)
        if one.consensus is not None and not (one.disagrees or one.silent)
    }
    alike.prepare(
        (r["question"], agreed[r["key"]], verdict.consensus)
        for r, verdict in zip(records, verdicts, strict=True)
        if r["key"] in agreed and verdict is not None and verdict.consensus is not None
    )
    return verdicts, unmet, agreed


def _refuse_unscored(scored: Sequence[dict], quorum: float) -> None:
    answered = [row for row in scored if row["question"] is not None]
    if not answered:
        raise AuditError(
            f"none of {len(scored)} probes holds a question, so the target was never asked; look at what the auditor "
            "wrote in proposals.jsonl."
        )
    said = {"the target": [row["target"] for row in answered]}
    said |= {
        f'the reference "{name}"': [row["references"][name] for row in answered] for name in answered[0]["references"]
    }
    for who, answers in said.items():
        silent = sum(not has_content(answer or "") for answer in answers)
        if len(answers) >= FEW and silent > len(answers) / 2:
            raise AuditError(
                f"{who} said nothing to {silent} of {len(answers)} questions, so there is nothing to compare; "
                "`auditkit check` shows what it is given and what it writes."
            )
    if all(row["consensus"] is None for row in answered):
        names = ", ".join(answered[0]["references"])
        raise AuditError(
            f"the references ({names}) never agree on any of {len(answered)} probes, so nothing can be scored; lower "
            f"`quorum` (now {quorum}) or name other references."
        )


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
        references |= {(name, row["base"], row["check"]) for name in row.get("checked_before") or ()}
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
        "no_answer": outcomes.count("no answer"),
        "duplicates": outcomes.count("duplicate"),
    }
