"""What narrows a failure type: the rule (findings/rules.py) that parts its failures from its successes.

Most types are narrowed by the words of their questions and by what the references answered. Where that leaves failures
and successes together, the references are asked probing questions about some of the same pictures. First each is put to
one reference, on a few failures and successes; what a rule is made of then is put to all of them, and their consensus
counts. All answers are in probing.jsonl. The truth has no part in it (findings/grading.py grades).
"""

from __future__ import annotations

import functools
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from auditkit import stats
from auditkit.audit.baseline import baseline_probes
from auditkit.audit.batches import Loader
from auditkit.consensus.choose import choose_same
from auditkit.consensus.normalise import normalise
from auditkit.consensus.same import Same
from auditkit.consensus.vote import vote_all
from auditkit.data.source import Picture, Source
from auditkit.findings.failure_types import ASKED, FailureType
from auditkit.findings.probing import ORDINALS, Kind, Probing, probing_questions, question_kinds
from auditkit.findings.rules import Facts, Rule, find_rule, follow_rules, question_facts, with_codes
from auditkit.models.answers import AnswerBook
from auditkit.models.base import Writer
from auditkit.models.load import model_loader
from auditkit.params import Params
from auditkit.runs.probe import audit_probes

FILE = "probing.jsonl"
LEAST = 5  # failures, and successes, below which nothing is said
ONE_KIND = 0.7  # share of a type's failures that must be asked in questions of one kind
WELL = 0.02  # share of the records that a rule without probing questions may get wrong
TRIED = 12  # failures, and successes, about which a probing question is put to one reference
KEPT = 30  # failures, successes inside the rule so far, and others, about which it is put to all
TELLING = 3  # probing questions of a type that are put to all
MOST_ROWS = 1000  # failures, and successes, of a type that are looked at
MEASURED = 300  # probes on which a rule is measured for which somebody has to be asked


@dataclass(frozen=True)
class _Asking:
    """Who is asked, and how."""

    references: Sequence[Loader]
    picture: Callable[[str], Picture]
    book: AnswerBook
    alike: Same
    quorum: float
    max_answer_tokens: int

    @functools.cached_property
    def models(self) -> list[Writer]:
        """The references, loaded when the first is needed."""
        return [load() for load in self.references]


def narrow_run(
    types: Sequence[FailureType], scored: Sequence[dict], p: Params, source: Source, folder: Path
) -> dict[str, Rule]:
    """`narrow_types` of a run, with the references that its parameters name and the probes of its notebook 02.

    Args:
        p: uses references, quorum, same, max_answer_tokens and where models run.
        source: images of the run, those that were made among them (with_counterfactuals).
    """
    loaders = [functools.partial(model_loader(p), name) for name in p.references]
    alike, before = choose_same(p, folder), baseline_probes(p)
    return narrow_types(types, scored, before, loaders, source.picture, alike, p.quorum, p.max_answer_tokens, folder)


def narrow_types(
    types: Sequence[FailureType],
    scored: Sequence[dict],
    untrained: Sequence[dict],
    references: Sequence[Loader],
    picture: Callable[[str], Picture],
    alike: Same,
    quorum: float,
    max_answer_tokens: int,
    folder: Path,
) -> dict[str, Rule]:
    """The rule of each failure type that has one, by the type's name.

    Args:
        types: as from `find_failure_types`.
        scored: the audit's records (score_probes). What parts a type's failures from successes is sought without the
            findings of other types; these count, as failures, in the rates of what was found.
        untrained: those of notebook 02, whose successes help to find a rule; none where it was not run.
        references: what loads them; none: then rules are made of words and consensus alone.
        picture: a key -> the picture, those that were made among them.
        alike, quorum: as for `score_probes`.
        folder: gets probing.jsonl; what it holds is not asked again.
    """
    asked = [row for row in [*scored, *untrained] if row["outcome"] in ASKED]
    kinds = question_kinds((row["picture"], row["question"]) for row in asked)
    failed, agreed = {row["key"]: row for row in scored if row["outcome"] == "finding"}, defaultdict(list)
    for row in asked:
        if row["outcome"] == "agrees":
            agreed[kinds[row["question"]]].append(row)
    asking = _Asking(references, picture, AnswerBook(folder / FILE), alike, quorum, max_answer_tokens)
    own, found = [row for row in audit_probes(scored) if row["outcome"] in ASKED], {}
    for of in types:
        members = [failed[key] for key in of.keys]
        [(kind, n)] = Counter(kinds[row["question"]] for row in members).most_common(1)
        good = _some(agreed[kind])
        if n < max(LEAST, ONE_KIND * of.size) or len(good) < LEAST or len(kind.vocabulary) > len(ORDINALS):
            continue
        bad = _some([row for row in members if kinds[row["question"]] == kind])
        wrong = [True] * len(bad) + [False] * len(good)
        if rule := _narrow(kind, [*bad, *good], wrong, kinds, asking):
            like = [row for row in own if kinds[row["question"]] == kind]
            found[of.name] = _measured(rule, like, asking)
    return found


def _measured(rule: Rule, rows: Sequence[dict], asking: _Asking) -> Rule:
    """The rule with the rates of failures, whatever their types, inside and outside among an audit's own probes.

    Those that training met are not among them, for of these only failures were kept.

    Args:
        rows: the records of its kind of question, of which MOST_ROWS or MEASURED are looked at.
    """
    probings = list(dict.fromkeys(part.fact[1] for part in rule.conditions if part.fact[0] == "asked"))
    rows = _some(rows, MEASURED if probings else MOST_ROWS)
    facts = [question_facts(rule.kind, row["question"], row["consensus"]) for row in rows]
    held = [all(part.holds(known) for part in rule.conditions if part.fact[0] != "asked") for known in facts]
    if probings:  # only where the rest of the rule holds is anybody asked
        left = [i for i, maybe in enumerate(held) if maybe]
        known = _ask(asking, asking.models, probings, [rows[i] for i in left], [facts[i] for i in left])
        for i, more in zip(left, known, strict=True):
            held[i] = all(part.holds(more) for part in rule.conditions)
    wrong: dict[bool, list[bool]] = {True: [], False: []}
    for row, inside in zip(rows, held, strict=True):
        wrong[inside].append(row["outcome"] == "finding")
    rates = {side: stats.rate(sum(bad), len(bad)) if bad else {} for side, bad in wrong.items()}
    return replace(rule, inside=rates[True], outside=rates[False])


def _some(rows: Sequence[dict], most: int = MOST_ROWS) -> Sequence[dict]:
    """The rows, or so many of them."""
    return rows if len(rows) <= most else random.Random(most).sample(list(rows), most)


def _narrow(kind: Kind, rows: list[dict], wrong: list[bool], kinds: Mapping[str, Kind], asking: _Asking) -> Rule | None:
    """The rule that parts wrong rows, all questions of a kind, from the others."""
    facts = [question_facts(kind, row["question"], row["consensus"]) for row in rows]
    conditions = follow_rules(facts, wrong)[0]
    inside = [all(one.holds(known) for one in conditions) for known in facts]
    missed = sum(bad != held for bad, held in zip(wrong, inside, strict=True))
    if missed <= WELL * len(rows) or not asking.references:
        return find_rule(kind, facts, wrong)
    order = random.Random(kind.text()).sample(range(len(rows)), len(rows))
    failures = [i for i in order if wrong[i]]
    mistaken = [i for i in order if inside[i] and not wrong[i]]
    others = [i for i in order if not inside[i] and not wrong[i]]
    some = [*failures[:TRIED], *[*mistaken, *others][:TRIED]]
    probings = probing_questions(kind, (normalise(row["consensus"]) for row in rows), kinds.values())
    tried = _ask(asking, asking.models[:1], probings, [rows[i] for i in some], [facts[i] for i in some])
    followed = follow_rules(tried, [wrong[i] for i in some])
    telling = [part.fact[1] for rule in followed for part in rule if part.fact[0] == "asked"]
    if not telling:
        return find_rule(kind, facts, wrong)
    more = [*failures[:KEPT], *mistaken[:KEPT], *others[:KEPT]]
    named = list(dict.fromkeys(telling))[:TELLING]
    known = _ask(asking, asking.models, named, [rows[i] for i in more], [facts[i] for i in more])
    return find_rule(kind, known, [wrong[i] for i in more]) or find_rule(kind, facts, wrong)


def _ask(
    asking: _Asking,
    models: Sequence[Writer],
    probings: Sequence[Probing],
    rows: Sequence[dict],
    facts: Sequence[Facts],
) -> list[Facts]:
    """The facts of n rows, and beside them what some references agree on when asked each probing question."""
    put = []
    for i, row in enumerate(rows):
        for probing in probings:
            kind_parts = tuple(value for fact, value in facts[i].items() if fact[0] == "word" and len(fact) == 2)
            if said := probing.ask(kind_parts, normalise(row["consensus"])):
                put.append((i, probing, said))
    pictures = [asking.picture(rows[i]["picture"]) for i, _, _ in put]
    questions = [question for _, _, question in put]
    by_model = [asking.book.ask(model, pictures, questions, asking.max_answer_tokens) for model in models]
    answers = [(question, "", said) for question, said in zip(questions, zip(*by_model, strict=True), strict=True)]
    found = list(facts)
    for (i, probing, _), one in zip(put, vote_all(answers, asking.alike, asking.quorum), strict=True):
        found[i] = found[i] | with_codes({("asked", probing): normalise(one.consensus or "")})
    return found
