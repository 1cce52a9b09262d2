"""Rules that narrow failure types: on constructed records, on an audit whose gaps are known, with a real reference."""

import functools
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
from scoring import score

from auditkit.consensus.same import Same
from auditkit.findings import narrow
from auditkit.findings.failure_types import find_failure_types
from auditkit.findings.grading import grade_rules, graded_in_words, type_gaps
from auditkit.findings.probing import Kind, Probing, probing_questions, question_kinds, words_of
from auditkit.findings.rules import Condition, Rule, find_rule, question_facts
from auditkit.miniature import gaps, grammar, shipped
from auditkit.miniature.boards import Boards, scene_of
from auditkit.models.load import load_model
from auditkit.runs import jsonl
from auditkit.runs.probe import TRAINING

P = SimpleNamespace(min_token_probability=1e-3, same="text", quorum=0.6)
TABLE = gaps.load(Path(gaps.__file__).parent / "target.yaml")
COLOURS, SHAPES, PLACES = ("red", "blue", "green"), ("star", "cross"), ("street", "garden", "kitchen", "roof")


def audit(n, seed=0, skills=None):
    """Random questions, some skills' alone, put to a target with exactly the shipped table of gaps."""
    rng, records = random.Random(seed), []
    for i in range(n):
        key = f"audit-{seed}-{i}"
        question = grammar.ask(scene_of(key), rng, rng.choice(skills) if skills else None)
        truth, hit = grammar.answer(scene_of(key), question), gaps.find(TABLE, scene_of(key), question)
        said = {"target": hit[1] if hit else truth, "references": dict.fromkeys("abc", truth)}
        records.append({"key": f"p{i}", "picture": key, "question": question, "text": question, **said})
    return score(records, P)


def asked(n, fails):
    """n questions of people's own about n pictures, and which of them fail: (kind, facts, wrong)."""
    rng, rows = random.Random(0), []
    for _ in range(n):
        colour, shape, place, hour = rng.choice(COLOURS), rng.choice(SHAPES), rng.choice(PLACES), rng.randint(1, 12)
        rows.append((f"is the {colour} {shape} in the {place}?", str(hour), (colour, shape, place, hour)))
    kinds = question_kinds((str(i), question) for i, (question, _, _) in enumerate(rows))
    (kind,) = set(kinds.values())
    return kind, [question_facts(kind, q, said) for q, said, _ in rows], [fails(*of) for _, _, of in rows]


def test_a_rule_is_exactly_the_planted_conjunction():
    def fails(colour, shape, place, hour):
        return colour == "blue" and place in ("street", "roof") and hour >= 8

    rule = find_rule(*asked(600, fails))
    assert rule.in_words() == "“is the ① ② in the ③?”: the references say 8 to 12 and ① is blue and ③ is roof or street"
    assert rule.inside["value"] == 1 and rule.outside["value"] == 0
    assert rule.inside["n"] + rule.outside["n"] == 600


def test_a_rule_stands_some_failures_outside_and_some_successes_inside():
    rng = random.Random(1)
    noise = [rng.random() < 0.04 for _ in range(600)]
    kind, facts, wrong = asked(600, lambda colour, shape, place, hour: colour == "blue" and shape == "star")
    rule = find_rule(kind, facts, [bad != flip for bad, flip in zip(wrong, noise, strict=True)])
    assert rule.in_words() == "“is the ① ② in the ③?”: ① is blue and ② is star"
    assert 0.9 < rule.inside["value"] < 1 and 0 < rule.outside["value"] < 0.1


@pytest.mark.parametrize("seed", range(4))
def test_where_nothing_parts_failures_from_successes_there_is_no_rule(seed):
    kind, facts, _ = asked(300, lambda *of: False)
    rng = random.Random(seed)
    assert find_rule(kind, facts, [rng.random() < 0.2 for _ in facts]) is None


def test_three_failures_are_too_few_for_a_rule():
    kind, facts, _ = asked(40, lambda *of: False)
    assert find_rule(kind, facts, [i < 3 for i in range(40)]) is None


def test_what_is_not_is_said_where_that_is_shorter():
    rule = find_rule(*asked(400, lambda colour, shape, place, hour: place != "roof"))
    assert rule.in_words().endswith("③ is not roof")


def test_kinds_of_question_are_made_out_from_the_words():
    keys = [f"audit-0-{i}" for i in range(1500)]
    kinds = question_kinds((key, grammar.ask(scene_of(key), random.Random(key))) for key in keys)
    texts = {kind.text() for kind in kinds.values()}
    assert {"is there a ① ②?", "what time does the clock at … show?", "how many objects are there?"} <= texts
    assert len(texts) < 22, "sixteen skills, of which some ask in two forms"
    assert kinds["what colour is the object at a2?"] == kinds["what shape is the object at b3?"]
    assert kinds["is there a red star?"].parts("is there a red star?") == ("red", "star")
    of = kinds["what pattern has the object at a2?"]
    assert of.text() == "what ① ② the object at ③?", "patterns and colours are asked for alike elsewhere"
    asked = [
        Probing(of, (what, verb, 0)).ask(("a2",), "no") for what in ("pattern", "colour") for verb in ("has", "is")
    ]
    assert asked == ["what pattern has the object at a2?", None, None, "what colour is the object at a2?"]
    assert words_of("at 8:30, a3.") == ("at", "8:30", ",", "a3", ".")


def test_a_slip_of_the_auditor_makes_no_kind_of_its_own():
    places = [f"what stands at {letter}{number}?" for letter in "abc" for number in "123"]
    kinds = question_kinds(enumerate([*places, *(q.replace("stands", "lies") for q in places[:1])]))
    assert kinds["what stands at a1?"].text() == "what stands at …?" and kinds["what lies at a1?"].vocabulary == ()


def test_probing_questions_are_filled_from_the_question_its_answer_and_few_words():
    keys = [f"audit-0-{i}" for i in range(1500)]
    kinds = question_kinds((key, grammar.ask(scene_of(key), random.Random(key))) for key in keys)
    of = kinds["where is the red star?"]
    put = [one.ask(("red", "star"), "b2") for one in probing_questions(of, ["b2", "c3", "none"], kinds.values())]
    assert {"is there a red star?", "what pattern has the object at b2?", "how many red objects are there?"} <= set(put)
    assert {"what colour is the object at b2?", "what atmosphere does the scene have?"} <= set(put)
    assert "where is the red star?" not in put
    larger = next(kind for question, kind in kinds.items() if "larger" in question)
    swapped = probing_questions(larger, [], kinds.values())
    assert "is the object at b2 larger than the object at a1?" in [one.ask(("a1", "b2"), "no") for one in swapped]
    assert Probing(of, (0, 1)).ask(("red", "clock"), "no") is None, "nobody ever asked for a clock so"


def test_every_type_of_an_audit_is_narrowed_by_words_and_consensus_where_these_are_enough(tmp_path):
    skills = ["clock reading", "background", "colour", "same or different", "conditional counting"]
    records, boards = audit(1500, skills=skills), Boards()
    types = find_failure_types(records, 20)
    rules = narrow.narrow_types(types, records, [], [], boards.picture, Same(), 0.6, 8, tmp_path)
    told = {rule.in_words() for rule in rules.values()}
    assert "“what time does the clock at … show?”: the references say 7 to 12" in told
    assert "“what atmosphere does the scene have?”: the references say dusk" in told
    assert any("the number of … is 1 or 2" in words and "yellow" in words for words in told)
    gap_of = type_gaps(types, records, boards, TABLE)
    graded = grade_rules(types, rules, gap_of, boards, TABLE)
    assert graded["types"] >= 7 and graded["named"]["value"] >= 0.6, graded
    assert f"of {graded['types']} types in one gap" in graded_in_words({}, graded)[0]
    assert not (tmp_path / narrow.FILE).exists(), "nobody was asked"


@pytest.mark.skipif(not (shipped.WEIGHTS / "gemma3").is_dir(), reason="the miniature models are not built yet")
def test_a_reference_is_asked_what_the_records_do_not_say_and_only_once(tmp_path, monkeypatch):
    monkeypatch.setattr(narrow, "MEASURED", 1000)  # all of them
    records, boards = audit(700, skills=["material", "shape"]), Boards()
    types = [kind for kind in find_failure_types(records, 8) if "plain" in kind.name]
    how = {"alike": Same(), "quorum": 0.6, "max_answer_tokens": 8, "folder": tmp_path}
    loader = functools.partial(load_model, "miniature:gemma3")
    (rule,) = narrow.narrow_types(types, records, [], [loader], boards.picture, **how).values()
    assert "the references say dotted" in rule.in_words()
    assert "the answer to “what shape is the object at …?” is circle or square" in rule.in_words()
    assert rule.inside["value"] > 0.9 and rule.outside["value"] < 0.2
    alike = [row["outcome"] == "finding" for row in records if "what pattern has the object" in row["question"]]
    failures = sum(round(side["value"] * side["n"]) for side in (rule.inside, rule.outside))
    assert rule.inside["n"] + rule.outside["n"] == len(alike), "every such question is on one side"
    assert failures == sum(alike) > sum(of.size for of in types), "and failures of other types count, too"
    met = [row | {"key": f"met-{row['key']}", "checkpoint": TRAINING} for row in records if row["outcome"] == "finding"]
    (same,) = narrow.narrow_types(types, [*records, *met], [], [loader], boards.picture, **how).values()
    assert same == rule, "of what training met only failures were kept, so they are in no rate"
    book = jsonl.read(tmp_path / narrow.FILE)
    assert {row["model"] for row in book} == {"gemma3"}
    again = narrow.narrow_types(types, records, [], [loader], boards.picture, **how)
    assert list(again.values()) == [rule] and jsonl.read(tmp_path / narrow.FILE) == book
    graded = grade_rules(types, again, type_gaps(types, records, boards, TABLE), boards, TABLE)
    assert graded["named"]["value"] == 1 and graded["with_a_rule"] == graded["types"] == 1


def test_a_rule_names_its_gap_if_all_its_facts_follow_and_no_condition_is_idle():
    boards, gap = Boards(), next(gap for gap in TABLE if gap.name == "yellow in the upper half is called green")
    kind = Kind(("what", "colour", "is", "the", "object", "at", None, "?"), (frozenset(),), 0, frozenset())
    yellow = Condition(("answer",), frozenset(["yellow"]))
    upper = Condition(("word", 0, "number"), frozenset("12"))
    top, left = Condition(("word", 0, "number"), frozenset("1")), Condition(("word", 0, "letter"), frozenset("ab"))

    def graded(*conditions):
        types, of = [SimpleNamespace(name="t")], {"t": {"name": gap.name, "share": 1.0}}
        return grade_rules(types, {"t": Rule(kind, conditions)}, of, boards, TABLE)["by_type"]["t"]

    assert graded(yellow, upper)["names"] and graded(yellow, upper)["covers"]["value"] == 1
    assert graded(yellow, top)["names"] and graded(yellow, top)["covers"]["value"] < 0.8, "a part of the gap"
    assert not graded(yellow)["names"], "that it stands above is missing"
    assert not graded(yellow, upper, left)["names"], "the column is idle"


def test_a_type_without_a_rule_counts_as_not_named_and_one_of_several_gaps_does_not_count():
    types = [SimpleNamespace(name=name) for name in "abc"]
    gap_of = {
        "a": {"name": TABLE[0].name, "share": 1.0},
        "b": {"name": TABLE[0].name, "share": 0.5},
        "c": {"name": "outside all gaps", "share": 1.0},
    }
    graded = grade_rules(types, {}, gap_of, Boards(), TABLE)
    assert (graded["types"], graded["with_a_rule"], graded["named"]["value"]) == (1, 0, 0.0)
    assert grade_rules(types, {}, {}, Boards(), []) == {}
