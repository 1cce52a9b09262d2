"""How often the target fails: by the oracle, where the source of the images has one, and by the consensus anywhere."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from auditkit import stats
from auditkit.consensus.normalise import is_one_of
from auditkit.data.source import Source
from auditkit.errors import AuditError
from auditkit.findings.grading import best_blind_question, search_success
from auditkit.models.answers import AnswerBook
from auditkit.models.base import Writer
from auditkit.params import Params
from auditkit.runs.probe import only_findings
from auditkit.text import counted


def baseline_rates(scored: Sequence[dict], source: Source) -> dict[str, dict]:
    """The metrics of notebook 02: how often references agree, and how often the target fails (`success_rates`)."""
    answered = [row for row in scored if row["question"] is not None]
    agree = stats.rate(sum(row["consensus"] is not None for row in answered), len(answered))
    return {"references_agree": agree, **success_rates(scored, source, "untrained")}


def success_rates(rows: Sequence[dict], source: Source, name: str) -> dict[str, dict]:
    """How often the target fails on scored probes: {name + "_by_consensus": rate, name?: rate by the oracle}.

    Where the source can grade none of them the second is absent, and a printed sentence says so.
    """
    found = {f"{name}_by_consensus": consensus_rate(rows)}
    try:
        found[name] = search_success(rows, source)
    except AuditError as no_oracle:
        print(no_oracle)
    return found


def baseline_in_words(scored: Sequence[dict], source: Source) -> str:
    """How the two rates of notebook 02 differ, probe by probe: false findings and missed failures may cancel."""
    found = {row["key"] for row in only_findings(scored)}
    false, missed, known = 0, 0, 0
    for row in scored:
        right = source.accepted(row["picture"], row["question"]) if row["question"] else ()
        if right or source.complete:
            known += 1
            wrong = bool(right) and not is_one_of(row["target"], right)
            false += row["key"] in found and not wrong
            missed += wrong and row["key"] not in found
    if not known:
        return "Nobody knows the right answers here, so the consensus is all there is."
    return (
        f"{counted(false, 'finding is', 'findings are')} false (the target is not wrong), and "
        f"{counted(missed, 'failure is', 'failures are')} missed (the target is wrong, and no consensus says so)"
    )


def success_on_both(first: Sequence[dict], second: Sequence[dict], source: Source) -> tuple[dict, dict]:
    """The rates of two sets of scored probes, to be compared: by the oracle, or where it cannot grade either of them
    both by the consensus.
    """
    try:
        return search_success(first, source), search_success(second, source)
    except AuditError:
        return consensus_rate(first), consensus_rate(second)


def consensus_rate(rows: Sequence[dict]) -> dict:
    """The share of scored probes that are findings."""
    return stats.rate(len(only_findings(rows)), len(rows))


def rate_blind_questions(scored: Sequence[dict], target: Writer, source: Source, p: Params, folder: Path) -> dict:
    """The best of the questions that produced most findings, asked of every picture without looking at it.

    Args:
        scored: the audit's records.
        target: the model under audit.
        source: draws fresh pictures, of the split "test", and grades.
        p: uses blind_candidates, blind_images, seed and max_answer_tokens.
        folder: of the audit, whose answers.jsonl holds the answers, so that nothing is asked twice.

    Returns as `best_blind_question`.
    """
    asked = Counter(row["question"] for row in only_findings(scored))
    fixed = [question for question, _ in asked.most_common(p.blind_candidates)]
    ask = partial(AnswerBook(folder / "answers.jsonl").ask, max_new_tokens=p.max_answer_tokens)
    return best_blind_question(target, source, fixed, source.pictures("test", p.blind_images, p.seed), ask)


def blind_in_words(blind: dict, scored: Sequence[dict], source: Source) -> str:
    """What `rate_blind_questions` found, or why there is nothing to say."""
    if not blind:
        return f"{source.name} cannot grade these" if only_findings(scored) else "no finding to take a question from"
    return f"“{blind['question']}”, of every picture: {blind['rate']['value']:.0%}"
