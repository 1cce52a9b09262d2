"""Which question to ask is decided by words alone: likely to find a failure, of a kind that has few."""

from collections import Counter

from auditkit.audit.selection import find_chances, select_questions
from auditkit.runs.probe import Probe

P = dict(min_token_probability=1e-3, clusters=3, seed=0)
KINDS = ("what colour is the star?", "what time does the clock show?", "how many objects are there?")
TRIED = [
    {"way": "question", "question": q, "text": q, "success": i % 10 < often}
    for q, often in zip(KINDS, (9, 8, 1), strict=True)
    for i in range(50)
]


def wrote(picture, question, number=0, rarest=0.5):
    return Probe(f"untrained/{picture}.{number}", f"p{picture}", question, question or "", rarest=rarest)


def test_finds_are_spread_over_the_kinds_that_fail():
    candidates = [[wrote(i, q, n) for n, q in enumerate(KINDS)] for i in range(60)]
    asked = Counter(probe.question for probe in select_questions(candidates, [], TRIED, **P))
    assert [probe.picture for probe in select_questions(candidates, [], TRIED, **P)] == [f"p{i}" for i in range(60)]
    assert abs(asked[KINDS[0]] - asked[KINDS[1]]) <= 3, "two kinds that fail alike take turns"
    assert asked[KINDS[2]] > asked[KINDS[0]] >= 10, "one that seldom fails needs more questions for its finds"
    one = select_questions(candidates[:2], [], TRIED, **P)
    assert {probe.question for probe in one} == set(KINDS[:2]), "but the likely ones come first"


def test_what_is_asked_anyway_counts():
    candidates = [[wrote(i, q, n) for n, q in enumerate(KINDS[:2])] for i in range(10)]
    certain = [wrote(100 + i, KINDS[0]) for i in range(40)]
    assert {probe.question for probe in select_questions(candidates, certain, TRIED, **P)} == {KINDS[1]}


def test_nonsense_is_chosen_only_where_there_is_nothing_else():
    good, none, odd = wrote(0, KINDS[2]), wrote(0, None, 1), wrote(0, KINDS[0], 2, rarest=1e-6)
    assert select_questions([[none, odd, good], [wrote(1, None)]], [], TRIED, **P) == [good, wrote(1, None)]
    assert select_questions([[none]], [], TRIED, **P) == [none]


def test_rollouts_that_tell_nothing_leave_kinds_to_choose_by():
    assert find_chances(["a", "b"], [row | {"success": False} for row in TRIED]) == [0.5, 0.5]
    candidates = [[wrote(i, q, n) for n, q in enumerate(KINDS)] for i in range(30)]
    asked = Counter(probe.question for probe in select_questions(candidates, [], [], **P))
    assert set(asked.values()) == {10}
