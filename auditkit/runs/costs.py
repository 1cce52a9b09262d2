"""What is counted from the answers on disk: what models behind a server cost, and what the limit of an answer cut.

Each answer of such a model has its tokens in its row of answers.jsonl (models/openai.py), so the counts hold however
often a run was killed. Requests that failed, and answers that a kill overtook on their way, are not among them.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from auditkit import specs
from auditkit.runs import jsonl

# what models replied, in a stage's folder: to probes, whether two answers mean the same, what to call a failure type
ANSWERS_FILE, JUDGED_FILE, NAMED_FILE = "answers.jsonl", "judged.jsonl", "named.jsonl"
MANY_CUT = 0.1  # share of a model's answers
PARTS = ("calls", "tokens_read", "tokens_written", "refused", "retries", "dollars")


def spent(answers: Path, models: Iterable[str]) -> dict[str, dict]:
    """Per model, what a file of answers was paid with: {"calls", "tokens_read", "tokens_written", "refused"?,
    "retries"?, "dollars"?}; {} where no server was asked.

    Tokens and dollars are absent for a server that does not count, dollars also without `?price_in=` and `?price_out=`.

    Args:
        answers: a file of an AnswerBook.
        models: the texts of models, whose prices count.
    """
    prices = {spec.name: spec.options for spec in map(specs.parse, filter(None, models))}
    rows: dict[str, list[dict]] = {}
    for row in jsonl.each(answers):
        if "tokens" in row:
            rows.setdefault(row["model"], []).append(row)
    found = {}
    for name, paid in rows.items():
        found[name] = {"calls": len(paid)}
        if all(row["tokens"] or row.get("refused") for row in paid):
            tokens = [sum(row["tokens"][i] for row in paid if row["tokens"]) for i in (0, 1)]
            found[name] |= {"tokens_read": tokens[0], "tokens_written": tokens[1]}
            price = [prices.get(name, {}).get(option) for option in ("price_in", "price_out")]
            if any(price):
                found[name]["dollars"] = round(
                    sum(n * (each or 0) for n, each in zip(tokens, price, strict=True)) / 1e6, 6
                )
        found[name] |= {"refused": refused} if (refused := sum("refused" in row for row in paid)) else {}
        found[name] |= {"retries": retries} if (retries := sum(row.get("retries", 0) for row in paid)) else {}
    return found


def answers_cut(answers: Path) -> dict[str, tuple[int, int]]:
    """Per model, how many of its answers ended by `max_answer_tokens`, and of how many; {} where none was asked."""
    asked: Counter = Counter()
    cut: Counter = Counter()
    for row in jsonl.each(answers):
        asked[row["model"]] += 1
        cut[row["model"]] += bool(row.get("cut"))
    return {name: (cut[name], n) for name, n in asked.items()}


def answers_changed(answers: Path) -> dict[str, int]:
    """How many answers were not kept as a server wrote them: {"answers_escaped"?, "answers_redacted"?}.

    Escaped: half characters, which no file takes, are escapes. Redacted: a key that stood in it was taken out.
    """
    counted = Counter(mark for row in jsonl.each(answers) for mark in ("escaped", "redacted") if row.get(mark))
    return {f"answers_{mark}": n for mark, n in counted.items()}


def cut_in_words(counted: Mapping[str, tuple[int, int]], limit: int) -> list[str]:
    """A sentence for each model of whose answers more than a tenth were cut.

    Args:
        counted: as from `answers_cut`.
        limit: max_answer_tokens.

    >>> cut_in_words({"large": (30, 200), "small": (20, 200)}, 8)
    ['"large": 30 of 200 answers end by the limit and are compared as they stand; raise max_answer_tokens (now 8).']
    """
    return [
        f'"{name}": {cut:,} of {n:,} answers end by the limit and are compared as they stand; raise '
        f"max_answer_tokens (now {limit})."
        for name, (cut, n) in counted.items()
        if cut > n * MANY_CUT
    ]


def judge_counts(folder: Path) -> dict[str, int]:
    """How many pairs a model judged in a stage, and how many replies were neither yes nor no; {} where none was asked.

    Returns {"judge_called", "judge_unclear"}, totals over all attempts.
    """
    rows = jsonl.read(folder / JUDGED_FILE)
    return {"judge_called": len(rows), "judge_unclear": sum("unclear" in row for row in rows)} if rows else {}


def total(stages: Iterable[Mapping[str, Mapping]]) -> dict[str, dict]:
    """Several of `spent`'s results added up; a part that one of a model's stages lacks is only kept where it is a count
    of exceptions.

    >>> total([{"a": {"calls": 2, "dollars": 0.5}}, {"a": {"calls": 1, "dollars": 0.25, "refused": 1}}, {}])
    {'a': {'calls': 3, 'refused': 1, 'dollars': 0.75}}
    """
    each: dict[str, list[Mapping]] = {}
    for stage in stages:
        for name, parts in stage.items():
            each.setdefault(name, []).append(parts)
    return {
        name: {
            part: round(sum(parts.get(part, 0) for parts in some), 6)
            for part in PARTS
            if all(part in parts for parts in some)
            or (part in ("refused", "retries") and any(part in parts for parts in some))
        }
        for name, some in each.items()
    }


def in_words(hosted: Mapping[str, Mapping]) -> list[str]:
    """One line a model.

    >>> in_words({"large": {"calls": 1200, "tokens_read": 36000, "tokens_written": 2400, "dollars": 0.0046}})
    ['large: 1,200 answers by its server, 36,000 tokens read, 2,400 written, $0.0046']
    """
    said = []
    for name, parts in hosted.items():
        line = f"{name}: {parts['calls']:,} answers by its server"
        if "tokens_read" in parts:
            line += f", {parts['tokens_read']:,} tokens read, {parts['tokens_written']:,} written"
        for part, words in (("refused", "refused"), ("retries", "requests repeated")):
            line += f", {parts[part]:,} {words}" if part in parts else ""
        if "dollars" in parts:
            line += f", ${parts['dollars']:,.2f}" if parts["dollars"] >= 1 else f", ${parts['dollars']:.2g}"
        said.append(line)
    return said
