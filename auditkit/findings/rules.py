"""Rules: a few conditions on what is known of a question and its picture that part failures from successes.

A *fact* is a word of the question, what the references answered to it, or what they answer to a probing question about
the same picture (findings/probing.py). A *condition* says which values a fact may have; a *rule* is conditions that
must all hold. Of all rules the one is taken that describes the records in the fewest bits, its own included (minimum
description length, Rissanen 1978). So a condition has to save more than it costs, and where nothing parts failures from
successes, or there is too little of either, there is no rule. Who is asked for the facts: findings/narrow.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from auditkit import stats
from auditkit.consensus.normalise import normalise
from auditkit.findings.grouping import ELLIPSIS
from auditkit.findings.probing import ORDINALS, Kind, is_code

MOST_CONDITIONS = 4
FOLLOWED = 6  # unfinished rules that are made longer at a time
SURE = 0.6  # share of failures inside of a rule; with less it narrows nothing
COVERS = 0.5  # share of the failures that a rule must hold for
MORE = 1.0  # bits that a condition costs beside the others where somebody had to be asked for its fact

Fact = tuple  # ("word", its place), ("answer",), ("echo",) or ("asked", Probing); the part of a code behind it
Facts = dict[Fact, str]


@dataclass(frozen=True)
class Condition:
    """A fact has one of these values, or (`but`) some other one."""

    fact: Fact
    values: frozenset[str]
    but: bool = False

    def holds(self, facts: Mapping[Fact, str]) -> bool:
        return bool(facts.get(self.fact)) and (facts[self.fact] in self.values) != self.but


@dataclass(frozen=True)
class Rule:
    """Conditions that must all hold of a question of a kind; how often the target fails where they do and do not."""

    kind: Kind
    conditions: tuple[Condition, ...]
    inside: dict = field(default_factory=dict)  # rate, {} where there is no such question
    outside: dict = field(default_factory=dict)  # rate, {} where there is no such question

    def holds(self, question: str, answer: str, ask: Callable[[str], str]) -> bool:
        """Whether a question of its kind lies inside.

        Args:
            answer: what is right.
            ask: a probing question about the same picture -> what is right; "" where that is not known.
        """
        facts = question_facts(self.kind, question, answer)
        for condition in self.conditions:
            if condition.fact[0] == "asked":
                said = condition.fact[1].ask(self.kind.parts(question), normalise(answer))
                facts |= with_codes({condition.fact[:2]: normalise(ask(said)) if said else ""})
        return all(condition.holds(facts) for condition in self.conditions)

    def in_words(self) -> str:
        """What it says, without the rates."""
        return f"“{self.kind.text()}”: " + " and ".join(_in_words(one, self.kind) for one in self.conditions)

    def record(self) -> dict:
        """As types.json and summary.json have it."""
        return {"words": self.in_words(), "inside": self.inside, "outside": self.outside}


# ---- facts ----------------------------------------------------------------------------------------------------------


def question_facts(kind: Kind, question: str, consensus: str) -> Facts:
    """What a question says, and the references to it; "echo" is whether their answer is a word of the question."""
    parts, answer = kind.parts(question), normalise(consensus)
    facts: Facts = {("word", place): word for place, word in enumerate(parts)}
    return with_codes(facts | {("answer",): answer}) | {("echo",): "yes" if answer in parts else "no"}


def with_codes(facts: Facts) -> Facts:
    """The facts, and beside each value that is a code, such as "b3", its letter and its number."""
    codes = [(fact, value) for fact, value in facts.items() if is_code(value)]
    return facts | {(*f, "letter"): v[:1] for f, v in codes} | {(*f, "number"): v[1:] for f, v in codes}


# ---- from facts to a rule -------------------------------------------------------------------------------------------


def find_rule(kind: Kind, facts: Sequence[Facts], wrong: Sequence[bool]) -> Rule | None:
    """The rule for n questions of a kind, with its rates among them; None where there is none worth telling.

    Args:
        facts: n mappings, fact -> value.
        wrong: whether the target failed, n times.
    """
    conditions = follow_rules(facts, wrong)[0]
    held = np.array([all(one.holds(known) for one in conditions) for known in facts])
    bad = np.array(wrong)
    if not conditions or not held.any() or held.all() or bad[held].sum() < COVERS * bad.sum():
        return None
    inside, outside = (stats.rate(int(bad[some].sum()), int(some.sum())) for some in (held, ~held))
    return Rule(kind, conditions, inside, outside) if inside["value"] >= SURE else None


def follow_rules(facts: Sequence[Facts], wrong: Sequence[bool]) -> list[tuple[Condition, ...]]:
    """The rules that describe which of n questions are wrong in fewer bits than none does, that of the fewest first.

    The last one is (), no condition at all. Rules grow by a condition at a time, the FOLLOWED best of each length.
    """
    bad = np.array(wrong, dtype=bool)
    names = sorted({fact for known in facts for fact in known}, key=str)
    columns = {fact: np.array([known.get(fact, "") for known in facts]) for fact in names}
    none: tuple[float, tuple[Condition, ...], np.ndarray] = (_bits(bad), (), np.ones(len(bad), dtype=bool))
    found, longest = [none], [none]
    for _ in range(MOST_CONDITIONS):
        longer = {}
        for _, conditions, held in longest:
            for fact in names:
                if fact in {one.fact for one in conditions}:
                    continue
                for condition in _conditions(fact, columns[fact], bad, held):
                    both = tuple(sorted((*conditions, condition), key=lambda one: str(one.fact)))
                    now = held & _holding(condition, columns[fact])
                    cost = sum(_cost(one, columns[one.fact], len(names)) for one in both)
                    longer[both] = (cost + _bits(bad[now]) + _bits(bad[~now]), both, now)
        shortest = found[0][0]
        longest = sorted(longer.values(), key=lambda rule: (rule[0], str(rule[1])))[:FOLLOWED]
        found = sorted([*found, *longest], key=lambda rule: (rule[0], str(rule[1])))
        if found[0][0] == shortest:
            break
    return [conditions for bits, conditions, _ in found if bits <= none[0]]


def _conditions(fact: Fact, column: np.ndarray, bad: np.ndarray, held: np.ndarray) -> Iterator[Condition]:
    """The conditions on a fact worth a look, given what holds already: the value that fails most, the first two, ...

    That order holds the best of all sets of values (Breiman et al. 1984). Of numbers also all from one on, or up to it.
    """
    counts: dict[str, list[int]] = {}
    for value, fails in zip(column[held], bad[held], strict=True):
        if value:
            counts.setdefault(str(value), [0, 0])[int(fails)] += 1
    values = sorted(counts, key=lambda v: (-(counts[v][1] + 0.5) / (sum(counts[v]) + 1), v))
    known = {str(value) for value in column if value}
    tried = [frozenset(values[:n]) for n in range(1, len(values) + 1)]
    if len(numbers := sorted(filter(str.isdigit, known), key=int)) > 2:
        tried += [frozenset(numbers[n:]) for n in range(1, len(numbers))]
        tried += [frozenset(numbers[:n]) for n in range(1, len(numbers))]
    for some in dict.fromkeys(tried):
        if any(counts.get(value, [0, 0])[1] for value in some):
            rest = len(some) > len(known) / 2 and not _is_span(some, known)  # what it is not is said in fewer words
            yield Condition(fact, frozenset(known - some), but=True) if rest else Condition(fact, some)


def _is_span(values: frozenset[str], known: set[str]) -> bool:
    """Whether values are all the known numbers from one on, or up to it."""
    numbers = sorted(int(value) for value in known if value.isdigit())
    own = sorted(int(value) for value in values if value.isdigit())
    return 2 <= len(own) == len(values) < len(numbers) and own in (numbers[: len(own)], numbers[-len(own) :])


def _holding(condition: Condition, column: np.ndarray) -> np.ndarray:
    return (np.isin(column, list(condition.values)) != condition.but) & (column != "")


def _cost(condition: Condition, column: np.ndarray, facts: int) -> float:
    """Bits that say which condition it is: on which of the facts, on how many of its values, and on which."""
    known = {str(value) for value in column if value}
    which = math.log2(facts) + (MORE if condition.fact[0] == "asked" else 0.0)
    if not condition.but and _is_span(condition.values, known):
        return which + math.log2(len(known)) + 1
    return which + math.log2(len(known) + 1) + math.log2(math.comb(len(known), len(condition.values & known)))


def _bits(bad: np.ndarray) -> float:
    """Bits that say which of n questions are wrong: how many, and which so many."""
    n, k = len(bad), int(bad.sum())
    return math.log2(n + 1) + (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)


# ---- in words -------------------------------------------------------------------------------------------------------


def _in_words(condition: Condition, kind: Kind) -> str:
    several, what = len(kind.vocabulary) > 1, condition.fact[0]
    if what == "echo":
        holds = ("yes" in condition.values) != condition.but
        return "the references’ answer is " + ("a word of the question" if holds else "no word of the question")
    part = f"the {condition.fact[-1]} of " if condition.fact[-1] in ("letter", "number") else ""
    values = ("not " if condition.but else "") + _listed(condition.values)
    if what == "word":
        return f"{part}{ORDINALS[condition.fact[1]] if several else ELLIPSIS} is {values}"
    if what == "answer":
        return f"{part}what the references say is {values}" if part else f"the references say {values}"
    return f"{part}the answer to “{condition.fact[1].told(several)}” is {values}"


def _listed(values: frozenset[str]) -> str:
    """
    >>> _listed(frozenset(["7", "8", "9", "10"])), _listed(frozenset(["red", "blue"]))
    ('7 to 10', 'blue or red')
    """
    if len(values) > 3 and all(value.isdigit() for value in values):
        numbers = sorted(map(int, values))
        if numbers[-1] - numbers[0] == len(numbers) - 1:
            return f"{numbers[0]} to {numbers[-1]}"
    return " or ".join(sorted(values, key=lambda v: (not v.isdigit(), int(v) if v.isdigit() else 0, v)))
