"""The checks of the exercises: each takes what a participant wrote and says in words what is wrong with it.

    check_vote(my_vote)     # as the last line of a cell

A check never raises: a blank that is still `...`, an error inside the function and a wrong answer are each one
sentence, with the example that shows it. What is right is decided by the library's own functions, on cases chosen so
that each common slip fails on one of them; a participant's function is compared by what it returns, however it is
written.
"""

from __future__ import annotations

import math
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from auditkit import stats
from auditkit.auditor.rewards import CAP, Scorer
from auditkit.consensus.normalise import same_text
from auditkit.consensus.vote import vote
from auditkit.counterfactual.quality import incoherence
from auditkit.report.notebook import Quote

BLANK = "There is a `...` left in `{name}`: replace each by an expression, and run its cell again."


class Checked(Quote):
    """What a check says, as a notebook shows it; `right` is whether all of it was."""

    def __init__(self, right: bool, words: str):
        super().__init__(f"{'✓' if right else '✗'} {words}")
        self.right = right


def _wrong(words: str) -> Checked:
    return Checked(False, words)


def _called(function: Callable, *given: Any) -> tuple[Any, Checked | None]:
    """(what the function gives back, None), or (None, what is to be said where it gives nothing that can be judged)."""
    name = getattr(function, "__name__", "the function")
    if _has_blank(getattr(function, "__code__", None)):
        return None, _wrong(BLANK.format(name=name))
    try:
        found = function(*given)
    except Exception as error:  # of a participant's code: whatever it is, it becomes a sentence
        at = traceback.extract_tb(error.__traceback__)[-1]
        return None, _wrong(f"`{name}` stops at “{(at.line or '').strip()}”: {type(error).__name__}: {error}.")
    return (found, None) if found is not None else (None, _wrong(f"`{name}` gives back nothing: it needs a `return`."))


def _has_blank(code: Any) -> bool:
    """Whether a `...` stands anywhere in a function, in what it defines inside, too."""
    constants = getattr(code, "co_consts", ())
    return any(one is ... or _has_blank(one) for one in constants)


# ---- (a) vote -------------------------------------------------------------------------------------------------------

VOTES = (  # target, references, what this case is there for
    ("blue", ["purple", "purple", "purple"], "all references agree, and the target says something else"),
    ("purple", ["purple", "purple", "purple"], "all say the same, so nobody departs"),
    ("blue", ["red", "green", "yellow"], "every reference says something else, so there is no consensus"),
    ("blue", ["red", "green"], "a tie is no consensus"),
    ("blue", ["red", "red", "green"], "two of three are 67 %, which is enough for 60 %"),
    ("2", ["two", "2", "3"], "“two” and “2” mean the same: compare what `normalise` makes of the answers"),
    ("green", ["red", "red", "green", "blue"], "two of four are 50 %, which is less than 60 %"),
    ("green", ["red", "red", "green", "green", "red"], "three of five are 60 %, and that is enough"),
)


def check_vote(my_vote: Callable) -> Checked:
    """Exercise (a): (target, references) -> (consensus or None, whether the target departs), as `consensus.vote`."""
    for target, references, why in VOTES:
        given, trouble = _called(my_vote, target, references)
        if trouble:
            return trouble
        case = f"The target says “{target}”, the references “{'”, “'.join(references)}”"
        if not isinstance(given, tuple | list) or len(given) != 2:
            return _wrong(
                f"`my_vote` is to give back two things, the consensus and whether the target departs; "
                f"it gives {given!r}."
            )
        right, (consensus, departs) = vote(target, references), given
        if (consensus is None) != (right.consensus is None) or (
            right.consensus is not None and not same_text(str(consensus), right.consensus)
        ):
            return _wrong(
                f"{case}. Your consensus is {_said(consensus)}; it should be {_said(right.consensus)}: {why}."
            )
        if bool(departs) != right.disagrees:
            does = "departs from it" if right.disagrees else "does not depart"
            there = "There is no consensus" if right.consensus is None else f"The consensus is {_said(right.consensus)}"
            return _wrong(f"{case}. {there}, and the target {does}; you say the opposite: {why}.")
    return Checked(True, f"Your vote agrees with the library's on all {len(VOTES)} cases.")


def _said(answer: object) -> str:
    return "none" if answer is None else f"“{answer}”"


# ---- (b) reward -----------------------------------------------------------------------------------------------------


def check_reward(my_reward: Callable) -> Checked:
    """Exercise (b): (target, references) -> what a question earns, 1 or 0 (paper, Eq. 2)."""
    cases = [(target, references, why) for target, references, why in VOTES if len(references) != 5]
    for target, references, why in cases:
        given, trouble = _called(my_reward, target, references)
        if trouble:
            return trouble
        right = float(vote(target, references).disagrees)
        if not isinstance(given, int | float) or float(given) != right:
            return _wrong(
                f"The target says “{target}”, the references “{'”, “'.join(references)}”: the question earns "
                f"{right:.0f}, yours {given!r}. {why[0].upper()}{why[1:]}.",
            )
    return Checked(True, f"Your reward is the paper's: 1 for a failure, 0 for all else, on {len(cases)} cases.")


def check_coverage(my_coverage: Callable) -> Checked:
    """Exercise (b): (kind, recent, kinds) -> what a success of this kind earns, as `Scorer.novelty`.

    The kinds of the latest successes are numbers below `kinds`.
    """
    cases = ((0, [0, 1, 2, 3] * 10, 4), (0, [0] * 40, 4), (1, [0] * 40, 4), (2, [], 4), (5, [0, 1] * 30, 20))
    for kind, recent, kinds in cases:
        given, trouble = _called(my_coverage, kind, recent, kinds)
        if trouble:
            return trouble
        memory: Any = SimpleNamespace(recent=deque(recent), text_clusters=SimpleNamespace(n=kinds))
        right, often = Scorer.novelty(memory, kind), Counter(recent)[kind]
        if not isinstance(given, int | float) or not math.isclose(float(given), right, rel_tol=0.02):
            return _wrong(
                f"Of the last {len(recent)} successes {often} are of kind {kind}, of {kinds} kinds: this one "
                f"earns {right:.2f}, yours {given!r}. Its share is ({often} + 1) / ({len(recent)} + {kinds}); it earns "
                f"1 / (kinds × share), and never more than {CAP:g}.",
            )
    return Checked(True, "What is rare earns more, what is common less, and an even share earns 1: as in the library.")


# ---- (c) does it look? ----------------------------------------------------------------------------------------------

FINDINGS = (
    [{"question": "what colour is the object at a1?", "outcome": "agrees"}] * 9
    + [{"question": "how many objects are there?", "outcome": "finding"}] * 4
    + [{"question": "is there a red star?", "outcome": "finding"}] * 3
    + [{"question": "is there a red star?", "outcome": "no consensus"}] * 5
    + [{"question": "what is the background?", "outcome": "finding"}] * 2
)


def check_blind(my_blind_questions: Callable) -> Checked:
    """Exercise (c): (scored records, n) -> the n questions with most findings, which need no look at a picture."""
    given, trouble = _called(my_blind_questions, FINDINGS, 2)
    if trouble:
        return trouble
    right = ["how many objects are there?", "is there a red star?"]
    if not isinstance(given, list | tuple) or any(not isinstance(one, str) for one in given):
        return _wrong(f"Give back the questions alone, as a list of texts; yours is {given!r}.")
    if list(given) == right:
        return Checked(True, "These are the questions that found most, and asking them needs no look at a picture.")
    if "what colour is the object at a1?" in given:
        return _wrong(
            "“what colour is the object at a1?” was asked most, but found nothing: count the records "
            "whose outcome is “finding” only."
        )
    if len(given) != 2:
        return _wrong(f"For n = 2 you give {len(given)} questions.")
    return _wrong(
        f"Of these records the two questions with most findings are {right}, yours {list(given)}: the "
        "one with most findings comes first."
    )


def check_elsewhere(my_elsewhere: Callable) -> Checked:
    """Exercise (c): (pictures) -> the same pictures, each at another's place, so that no question meets its own."""
    for pictures in (["p1", "p2", "p3", "p4", "p5"], ["p1", "p2"]):
        given, trouble = _called(my_elsewhere, list(pictures))
        if trouble:
            return trouble
        given = list(given) if isinstance(given, list | tuple) else [given]
        if sorted(map(str, given)) != pictures:
            return _wrong(f"Of the pictures {pictures} you make {given}: each is to be there once.")
        own = [one for one, other in zip(pictures, given, strict=True) if one == other]
        if own:
            return _wrong(
                f"Of the pictures {pictures} you make {given}: {', '.join(own)} stays where it was, so "
                "its question is asked of its own picture. Move all of them on by one."
            )
    return Checked(True, "Every question is asked of a picture it was not written about.")


# ---- (d) counterfactual ---------------------------------------------------------------------------------------------

TURNS = (  # (target before, consensus before), (target after, consensus after)
    (("red", "red"), ("blue", "red"), "the target was right, says something else now, and the references stay"),
    (("red", "red"), ("blue", "blue"), "the references turned too: the edit changed the right answer"),
    (("red", "red"), ("red", "red"), "nobody turned"),
    (("blue", "red"), ("green", "red"), "the target was wrong before, so the edit is not what made it fail"),
    (("red", "red"), ("blue", None), "the references do not agree after the edit, so nobody knows what is right"),
    (("2", "two"), ("3", "2"), "“two” and “2” mean the same: use `same_text`"),
)


def check_turned(my_turned: Callable) -> Checked:
    """Exercise (d): (before, after), each with .target and .consensus -> whether the target alone turned."""
    for before, after, why in TURNS:
        sides = [SimpleNamespace(target=target, consensus=consensus) for target, consensus in (before, after)]
        given, trouble = _called(my_turned, *sides)
        if trouble:
            return trouble
        stays = all(one is not None for one in (before[1], after[1])) and same_text(before[1], str(after[1]))
        right = stays and same_text(*before) and not same_text(after[0], str(after[1]))
        if bool(given) != right:
            says = [f"target “{one.target}”, consensus {_said(one.consensus)}" for one in sides]
            return _wrong(
                f"Before: {says[0]}. After: {says[1]}. This {'counts' if right else 'does not count'}, "
                f"and you say the opposite: {why}."
            )
    return Checked(True, f"Your rule is the library's for an irrelevant edit, on {len(TURNS)} cases.")


def check_fair(my_fair: Callable) -> Checked:
    """Exercise (d): (share, rest) -> whether an edit is targeted, as `quality.incoherence` with its usual bounds.

    `share` is the part of the picture that changed, `rest` how alike the remainder still is, both 0 to 1.
    """
    cases = (
        (0.06, 0.99, "a small change, and the rest is as it was"),
        (0.0, 1.0, "nothing changed, so the edit was not carried out"),
        (0.8, 0.95, "more than half of the picture changed"),
        (0.1, 0.7, "the rest of the picture changed too: it is less than 0.9 like the original"),
        (0.5, 0.9, "just within both bounds"),
    )
    for share, rest, why in cases:
        given, trouble = _called(my_fair, share, rest)
        if trouble:
            return trouble
        change: Any = SimpleNamespace(share=share, rest=rest, box=(0, 0, 1, 1) if share else None)
        right = not incoherence(change, most=0.5, rest=0.9)
        if bool(given) != right:
            return _wrong(
                f"{share:.0%} of the picture changed and the rest is {rest:.2f} like the original: "
                f"{'fair' if right else 'not fair'}, for {why}; you say the opposite."
            )
    return Checked(True, "Your rule accepts a targeted edit and refuses the others, as the library's does.")


def check_commands(tried: Sequence[dict], my_turned: Callable) -> Checked:
    """Exercise (d): whether a command that was tried (lessons.try_commands) turned the target alone, and fairly."""
    if not tried:
        return _wrong("`my_commands` is empty: write at least one pair of a picture's number and a command.")
    if not (rule := check_turned(my_turned)).right:
        return _wrong(f"First `my_turned`: {rule.text[2:]}")
    turned = [row for row in tried if row["after"] and my_turned(row["before"], row["after"])]
    if not turned:
        return _wrong(
            f"{len(tried)} tried, and none turned the target alone. Look at what the table says: where "
            "both turned, the edit changed the right answer."
        )
    fair = [row["command"] for row in turned if not row["why"]]
    if not fair:
        return _wrong(
            f"“{turned[0]['command']}” turned the target alone, but was not fair: {turned[0]['why']}. "
            "Find one that changes less."
        )
    return Checked(True, f"“{fair[0]}” turned the target and not the references, and changed little else.")


# ---- (e) better, or luck? -------------------------------------------------------------------------------------------

PAIRS = (  # right before, right after
    ([0, 0, 0, 0, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1]),
    ([1, 1, 1, 0, 0, 0, 1, 0], [0, 1, 1, 1, 0, 1, 1, 0]),
    ([1] * 30 + [0] * 10, [1] * 26 + [0] * 4 + [1] * 9 + [0]),
)


def check_gain(my_gain: Callable) -> Checked:
    """Exercise (e): (before, after), lists of 0 and 1 -> (questions that turned right, questions that turned wrong)."""
    for before, after in PAIRS:
        given, trouble = _called(my_gain, list(before), list(after))
        if trouble:
            return trouble
        right = stats.mcnemar([bool(x) for x in before], [bool(x) for x in after])
        given = tuple(given) if isinstance(given, tuple | list) else given
        if given != (right["gained"], right["lost"]):
            return _wrong(
                f"Before {before}, after {after}: {right['gained']} turned right and {right['lost']} "
                f"turned wrong, question by question; you say {given}."
            )
    return Checked(True, "You count question by question, which is what makes the test strong.")


def check_mcnemar(my_p: Callable) -> Checked:
    """Exercise (e): (gained, lost) -> the p of McNemar's exact test."""
    for before, after in PAIRS:
        right = stats.mcnemar([bool(x) for x in before], [bool(x) for x in after])
        given, trouble = _called(my_p, right["gained"], right["lost"])
        if trouble:
            return trouble
        if not isinstance(given, int | float) or not math.isclose(float(given), right["p"], rel_tol=1e-3):
            return _wrong(
                f"{right['gained']} gained and {right['lost']} lost: p is {right['p']:.4g}, yours {given!r}. If the "
                "repair did nothing, each of these is a coin's toss: how often would so uneven a result, either way, "
                "come of so many tosses? Those that did not turn say nothing.",
            )
    return Checked(True, "This is McNemar's exact test, as the library does it.")


def check_interval(my_interval: Callable) -> Checked:
    """Exercise (e): (before, after) -> (low, high) of the mean change, by a paired bootstrap of the middle 95 %."""
    before, after = ([x for part in PAIRS for x in part[side]] for side in (0, 1))
    given, trouble = _called(my_interval, before, after)
    if trouble:
        return trouble
    right = stats.difference(before, after)
    if not isinstance(given, tuple | list) or len(given) != 2:
        return _wrong(f"`my_interval` is to give back its two ends; it gives {given!r}.")
    low, high = map(float, given)
    if low > high:
        return _wrong(f"The lower end ({low:.3f}) is above the upper one ({high:.3f}).")
    if abs(low - right["low"]) > 0.04 or abs(high - right["high"]) > 0.04:
        return _wrong(
            f"Over {len(before)} questions the mean change is {right['value']:+.3f}, and the library's interval is "
            f"{right['low']:+.3f} to {right['high']:+.3f}; yours is {low:+.3f} to {high:+.3f}. Draw whole questions, "
            "before and after together, with replacement, and take the 2.5th and 97.5th percentile of the means.",
        )
    return Checked(True, f"{low:+.3f} to {high:+.3f}: within what two bootstraps may differ by, this is the library's.")
