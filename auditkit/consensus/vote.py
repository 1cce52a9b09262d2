"""Does the target say something else than its references?  (paper, Sec. 3.1)

Departs from the paper in three ways:
1) a tie among the references, or too few behind one answer (`quorum`), is no consensus: the probe is dropped;
2) what counts as "the same answer" is an argument: the paper does not say which judge it used;
3) the consensus is the wording most references chose, since it becomes the label when the target is repaired.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from auditkit.consensus.normalise import has_content, same_text
from auditkit.consensus.same import Same

ALREADY = "already so"  # why an edited picture is not used: what was asked for was there before


@dataclass(frozen=True, slots=True)
class Vote:
    """What a target's answer is worth against its references' answers."""

    consensus: str | None  # None: the references do not agree
    agreement: float  # share of the references behind the most common answer, 0 to 1
    disagrees: bool  # the target departs from the consensus; one that says nothing does not
    silent: bool = field(
        default=False, repr=False, compare=False
    )  # the target said nothing, so it neither agrees nor disagrees


def vote(
    target: str, references: Sequence[str], same: Callable = same_text, quorum: float = 0.6, question: str | None = None
) -> Vote:
    """Compare a target's answer with its references' answers to the same probe.

    Args:
        same: takes two answers, and the question where one is given (`Same`).
        quorum: the share of all references that must stand behind one answer; one that says nothing stands behind none.

    Raises ValueError when there are no references.

    >>> vote("two", ["2", "2", "3"])
    Vote(consensus='2', agreement=0.67, disagrees=False)
    >>> vote("blue", ["purple", "violet", "purple"], quorum=1.0)
    Vote(consensus='purple', agreement=1.0, disagrees=True)
    >>> vote("blue", ["purple", "green"], quorum=0.5)
    Vote(consensus=None, agreement=0.5, disagrees=False)
    """
    if not references:
        raise ValueError("vote: there are no references to compare with")
    alike = same if question is None else lambda a, b: same(a, b, question)
    groups: list[list[str]] = []
    for answer in references:
        if not has_content(answer):
            continue
        for group in groups:
            if alike(answer, group[0]):
                group.append(answer)
                break
        else:
            groups.append([answer])
    groups.sort(key=len, reverse=True)  # stable: among equals the first to speak stays first
    if not groups:
        return Vote(None, 0.0, False)
    share = len(groups[0]) / len(references)
    tie = len(groups) > 1 and len(groups[1]) == len(groups[0])
    if tie or share + 1e-9 < quorum:
        return Vote(None, round(share, 2), False)
    consensus = Counter(answer.strip() for answer in groups[0]).most_common(1)[0][0]
    # who says what one behind the consensus says does not depart from it, even if a judge finds the two wordings unlike
    joins = any(same_text(target, answer) for answer in groups[0]) or alike(target, consensus)
    silent = not has_content(target)
    return Vote(consensus, round(share, 2), not (joins or silent), silent)


def vote_all(rows: Sequence[tuple[str, str, Sequence[str]]], alike: Same, quorum: float) -> list[Vote]:
    """`vote` for many (question, target's answer, references' answers), in two large calls of what decides.

    First any two references are compared, then each target with its consensus, where there is one.
    """
    alike.prepare((question, a, b) for question, _, references in rows for a, b in combinations(references, 2))
    agreed = [vote("", references, alike, quorum, question).consensus for question, _, references in rows]
    alike.prepare((row[0], row[1], said) for row, said in zip(rows, agreed, strict=True) if said is not None)
    return [vote(target, references, alike, quorum, question) for question, target, references in rows]


def unmet_wishes(
    rows: Sequence[tuple[str, str, Sequence[str]]],
    alike: Same,
    quorum: float,
    before: Mapping[int, Sequence[str]] | None = None,
) -> list[str]:
    """Why painted pictures are not what was wished for: "" where they are.

    Args:
        rows: (the wish's check question, the answer it expects, the references' answers on the painted picture).
        before: the place of a row -> the references' answers to its check on the picture that was edited.

    Returns "implausible" where the references do not agree on what they see, "not applied" where it is not the wish,
    "already so" where the original showed it too.

    >>> expected = "what colour is the bus?", "red"
    >>> rows = [(*expected, said) for said in (["red", "red"], ["blue", "blue"], ["red", "blue"], ["red", "red"])]
    >>> unmet_wishes(rows, Same(), 1.0, before={3: ["red", "red"]})
    ['', 'not applied', 'implausible', 'already so']
    """
    earlier = before or {}
    asked_before = [(rows[i][0], rows[i][1], said) for i, said in earlier.items()]
    votes = vote_all([*rows, *asked_before], alike, quorum)
    original = dict(zip(earlier, votes[len(rows) :], strict=True))
    return [unmet_reason(verdict, original.get(i)) for i, verdict in enumerate(votes[: len(rows)])]


def unmet_reason(verdict: Vote, before: Vote | None = None) -> str:
    """Why a picture is not what was wished for, by the vote on its check question; "" where it is.

    Args:
        before: the vote on the same check of the picture that was edited. An edit whose check came true there already
            is "already so": that it did anything is not to be seen. Where the references did not agree, it is not.

    >>> so, other, unknown = Vote("red", 1.0, False), Vote("blue", 1.0, True), Vote(None, 0.5, False)
    >>> [unmet_reason(so, before) for before in (so, other, unknown, None)], unmet_reason(other, so)
    (['already so', '', '', ''], 'not applied')
    """
    if verdict.consensus is None:
        return "implausible"
    if verdict.disagrees:
        return "not applied"
    return ALREADY if before and before.consensus is not None and not before.disagrees else ""
