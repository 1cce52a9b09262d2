"""What the target learns: its findings, failure types in turn, among what must not be forgotten (paper, Sec. 3.3)."""

from __future__ import annotations

import functools
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence

from auditkit.consensus.normalise import normalise
from auditkit.consensus.same import Same
from auditkit.data.source import Example, Picture
from auditkit.errors import AuditError
from auditkit.findings.grouping import clusters_by_text, group_findings
from auditkit.findings.probing import Kind, question_kinds
from auditkit.models.answers import AnswerBook
from auditkit.models.base import Writer
from auditkit.models.transformers import VLM
from auditkit.params import Params
from auditkit.repair.finetune import FINDINGS_SHARE, HARMLESS, OFTENER


def ask_originals(target: Writer, originals: Sequence[Example], book: AnswerBook, max_answer_tokens: int) -> list[str]:
    """What the target answers to the original examples, in their order; the book holds it, too."""
    pictures = [Picture(example.key, example.held) for example in originals]
    return book.ask(target, pictures, [example.question for example in originals], max_answer_tokens)


def known_originals(
    target: VLM, originals: Sequence[Example], book: AnswerBook, alike: Same, max_answer_tokens: int
) -> list[Example]:
    """The original examples that the target answers right, in their order.

    Args:
        target: the model before its repair.
        originals: labelled examples.
        book: holds the answers, so that nothing is asked again.
        alike: when an answer is right.
    """
    answered = list(zip(originals, ask_originals(target, originals, book, max_answer_tokens), strict=True))
    alike.prepare((e.question, answer, right) for e, answer in answered for right in e.accepted)
    return [e for e, answer in answered if any(alike(answer, right, e.question) for right in e.accepted)]


def training_pairs(
    scored: Sequence[dict],
    labelled: Sequence[Example],
    picture: Callable[[str], Picture],
    *,
    rectify_on: str,
    rectify_pairs: int,
    failure_types: int,
    types_by: str,
    seed: int,
) -> list[list[Example]]:
    """What is to be learnt: the findings of each failure type, with the consensus for their answer.

    The types are found anew, for near-duplicates are gone here and earlier rounds and a person may have their part. A
    control in their place, probes or labels at random, is all of one type.

    Args:
        scored: records of an audit (score_probes).
        labelled: original examples, whether the target knows them or not; the control "labels" draws from these.
        picture: a picture's key -> the picture, such as a source's `picture`.
        rectify_on: "findings", or the control "consensus" or "labels".
        rectify_pairs: how many are kept, of each type in turn; 0: all.
        failure_types, types_by: as for `find_failure_types`.
        seed: of the order within a type.
    """
    if rectify_on == "labels":
        types = [list(labelled)]
    elif rectify_on == "consensus":
        types = [_labelled(scored, ("finding", "agrees"), picture)]
    else:
        findings = [row for row in scored if row["outcome"] == "finding"]
        groups = group_findings(findings, failure_types, types_by) if findings else []
        types = [_labelled(group, ("finding",), picture) for group in groups]
    for of_type in types:
        random.Random(f"{seed}/pairs").shuffle(of_type)
    if rectify_pairs:
        kept = {example.key for example in evenly(types, rectify_pairs)}
        types = [[example for example in of_type if example.key in kept] for of_type in types]
    return [of_type for of_type in types if of_type]


def evenly(types: Sequence[Sequence[Example]], n: int, times: int = 1) -> list[Example]:
    """n examples, of each type in turn, none of them more often than `times`.

    >>> evenly(["abcdef", "x"], 5), evenly(["abcdef", "x"], 5, times=2)
    (['a', 'x', 'b', 'c', 'd'], ['a', 'x', 'b', 'x', 'c'])
    """
    turns = itertools.zip_longest(*(list(of_type) * times for of_type in types))
    return list(itertools.islice((one for turn in turns for one in turn if one is not None), n))


def build_training_set(
    learnt: Sequence[Sequence[Example]],
    scored: Sequence[dict],
    originals: Sequence[Example],
    p: Params,
    picture: Callable[[str], Picture],
) -> list[Example]:
    """What is to be learnt, evenly over failure types, among what the target knows, in a fixed random order.

    Beside each copy of a finding goes one of a probe like it on which the target agreed (`contrasts`). On the labeled
    route each is there once: all originals, and what the audit asked whether the target failed or not.

    Args:
        learnt: as `training_pairs` gives it.
        scored: records of the audit. Unless the pairs are counted (rectify_pairs), those with outcome "agrees" are
            learnt once beside the findings, as far as `balanced` has them.
        originals: labelled examples the target knows (`known_originals`), of which the first `p.rectify_original`
            are used; on the labeled route those that were probed, known or not, all of them.
        p: uses route, rectify_on, rectify_original, rectify_pairs, failure_types and seed.
        picture: a picture's key -> the picture, such as a source's `picture`.

    Raises AuditError when there is nothing to learn.
    """
    if not any(learnt):
        raise AuditError("there are no findings to repair the target with; audit it with more probes (notebook 05).")
    every = list(itertools.chain.from_iterable(learnt))
    keys = {example.key for example in every}
    counted = p.rectify_pairs or p.rectify_on != "findings"
    agreed = []
    if not counted:
        thinned = scored if p.route == "labeled" else balanced(scored, p.failure_types)
        agreed = _labelled(thinned, ["agrees"], functools.cache(picture))
    given = originals if p.route == "labeled" else originals[: p.rectify_original]
    rest = [*agreed, *(example for example in given if example.key not in keys)]
    if p.route == "unlabeled":
        times = max(1, round(FINDINGS_SHARE / (1 - FINDINGS_SHARE) * len(rest) / len(every)))
        every = every * times if counted else evenly(learnt, times * len(every), OFTENER * times)
        rest += [] if counted else contrasts(every, scored, rest)
    examples = every + rest
    random.Random(p.seed).shuffle(examples)
    return examples


def contrasts(learnt: Sequence[Example], scored: Sequence[dict], known: Sequence[Example]) -> list[Example]:
    """Beside each finding to be learnt, as often as it comes, an example of its kind that has another answer.

    Who learns from findings alone that something stands above a cell where it saw nothing comes to see something
    everywhere (docs/repair.md). So beside it goes, in turn, one on which it is right to say what the target says there
    wrongly; or else one with any other answer than the finding's. Of its kind is what asks in the same words but for
    variable ones (`question_kinds`). Where there is nothing of the sort, nothing is added.

    Args:
        learnt: findings, copies of one being one example each.
        scored: records of the audit, with the findings.
        known: examples that the target answers right: probes on which it agreed, and originals.
    """
    said = {row["key"]: normalise(row["target"]) for row in scored if row["outcome"] == "finding"}
    kinds = question_kinds((example.key, example.question) for example in [*learnt, *known])
    pools: dict[Kind, dict[str, list[Example]]] = defaultdict(lambda: defaultdict(list))  # kind -> answer -> examples
    for example in known:
        pools[kinds[example.question]][normalise(example.answer)].append(example)
    turns: dict[tuple[Kind, str, str], Iterator[Example]] = {}
    chosen = []
    for example in learnt:
        kind, answer, wrong = kinds[example.question], normalise(example.answer), said[example.key]
        by_answer = pools.get(kind, {})
        others = by_answer.get(wrong) or [e for right, some in by_answer.items() if right != answer for e in some]
        if others:
            chosen.append(next(turns.setdefault((kind, answer, wrong), itertools.cycle(others))))
    return chosen


def balanced(scored: Sequence[dict], kinds: int) -> list[dict]:
    """The records without some on which the target agreed: of each kind of question no more of one answer than of all
    others together, findings counted, but for a handful (HARMLESS). The last in order go first.

    An auditor asks "what is left of a2?" where nothing is, nine times in ten, and a target that learnt from all of it
    may come to say "none" too often (a guess: the thinning was only measured together with the turns of types).

    Args:
        kinds: most kinds of question told apart, by their words.
    """
    rows = [row for row in scored if row["outcome"] in ("finding", "agrees")]
    dropped = set()
    for cluster in clusters_by_text([(row["question"], "") for row in rows], kinds):
        said = [(normalise(rows[i]["consensus"]), rows[i]) for i in cluster]
        for answer, n in Counter(answer for answer, _ in said).items():
            excess = n - max(len(said) - n, HARMLESS)
            if excess > 0:  # so for few answers of a kind
                agreed = [row["key"] for one, row in said if one == answer and row["outcome"] == "agrees"]
                dropped.update(agreed[-excess:])
    return [row for row in scored if row["key"] not in dropped]


def _labelled(scored: Sequence[dict], outcomes: Sequence[str], picture: Callable[[str], Picture]) -> list[Example]:
    rows = [row for row in scored if row["outcome"] in outcomes]
    return [Example(row["key"], picture(row["picture"]).held, row["question"], row["consensus"]) for row in rows]
