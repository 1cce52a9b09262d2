"""Failure types, on an audit of boards whose gaps are known to the test and to nothing that is tested."""

import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from auditkit import findings, naming
from auditkit.audit import score
from auditkit.errors import AuditError
from auditkit.miniature import gaps, grammar
from auditkit.miniature.boards import Boards, scene_of

P = SimpleNamespace(failure_types=30, min_token_probability=1e-3, same="text", quorum=0.6)
TABLE = gaps.load(Path(gaps.__file__).parent / "target.yaml")


def audit(n=1200, seed=0, blind_spot=False):
    """What an audit of a target with exactly these gaps records; its references are right but for a blind spot."""
    rng, records = random.Random(seed), []
    for i in range(n):
        key = f"audit-{seed}-{i}"
        question = grammar.ask(scene_of(key), rng)
        truth = grammar.answer(scene_of(key), question)
        hit = gaps.find(TABLE, scene_of(key), question)
        references = dict.fromkeys(("one", "two", "three"), truth)
        if blind_spot and truth == "circle":
            references["one"] = references["two"] = "diamond"
        records.append({"key": f"p{i}", "picture": key, "question": question, "text": question,
                        "target": hit[1] if hit else truth, "references": references})  # fmt: skip
    return score(records, P)


@pytest.fixture(scope="module")
def records():
    return audit()


@pytest.fixture(scope="module")
def types(records):
    return findings.failure_types(records, P)


def test_every_finding_is_in_exactly_one_type(records, types):
    keys = [key for t in types for key in t.keys]
    assert sorted(keys) == sorted(r["key"] for r in findings.only_findings(records))
    assert 10 <= len(types) <= P.failure_types
    assert sum(t.share for t in types) == pytest.approx(1, abs=0.01)


def test_types_are_the_planted_weaknesses_though_nothing_told_them(records, types):
    def gap(r):
        return gaps.find(TABLE, scene_of(r["picture"]), r["question"])[0].name

    where = {r["key"]: gap(r) for r in findings.only_findings(records)}
    pure = sum(Counter(where[key] for key in t.keys).most_common(1)[0][1] for t in types)
    assert pure >= 0.85 * sum(t.size for t in types)


def test_names_can_be_read(types):
    names = [t.name for t in types]
    assert len(set(names)) == len(names)
    clock = next(name for name in names if "clock" in name)
    assert clock.startswith("what time does the clock at … show? — says “6” for ") and clock.endswith("…")
    assert "what atmosphere does the scene have? — says “day” for dusk" in names


def test_rates_count_the_probes_that_asked_alike(records, types):
    dusk = next(t for t in types if "atmosphere" in t.template)
    asked = [r for r in records if r["question"] == "what atmosphere does the scene have?"]
    assert dusk.rate["n"] == len(asked)
    assert dusk.rate_when == findings.rate(dusk.size, sum(r["consensus"] == "dusk" for r in asked))
    for t in types:
        assert t.rate["low"] <= t.size / t.rate["n"] <= t.rate["high"] and t.size <= t.rate_when["n"] <= t.rate["n"]


def test_examples_show_different_pictures(types):
    for t in types:
        pictures = [example["picture"] for example in t.examples]
        assert len(pictures) == min(6, t.size) == len(set(pictures))
    clock = next(t for t in types if "clock" in t.name and "“6”" in t.name)
    assert len({example["consensus"] for example in clock.examples}) >= 5


def test_the_order_of_the_records_does_not_matter_to_their_number(records):
    mixed = random.Random(1).sample(records, len(records))
    again = findings.failure_types(mixed, P)
    assert sum(t.size for t in again) == len(findings.only_findings(records))
    assert findings.failure_types(records, P) == findings.failure_types(records, P)


def test_open_questions_of_people_are_named_too():
    asked = [("what colour is the bus in the {}?", "red", "orange"), ("how many dogs are on the {}?", "2", "3")]
    places = "street rain park corner bridge square hill left right back".split()
    rows = [{"key": f"{i}-{place}", "picture": place, "question": question.format(place), "target": said,
             "references": dict.fromkeys("abc", right)}
            for i, (question, said, right) in enumerate(asked) for place in places]  # fmt: skip
    assert {t.name for t in findings.failure_types(score(rows, P), P)} == {
        "what colour is the bus in the …? — says “red” for orange",
        "how many dogs are on the …? — says “2” for 3",
    }


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_findings_are_no_problem(records, count):
    few = [r for r in records if r["gate"] != "ok"] + findings.only_findings(records)[:count]
    types = findings.failure_types(few, P)
    assert sum(t.size for t in types) == count
    assert isinstance(findings.explain(types, few), str)


def test_the_paragraph_speaks_in_numbers(records, types):
    text = findings.explain(types, records)
    n = len(findings.only_findings(records))
    assert f"{n} of 1,200" in text
    assert "strong at" in text and "weakest at" in text and "fine-tune it on" in text
    assert findings.explain([], []).startswith("No probe")


def test_planted_gaps_are_graded_by_the_oracle(records):
    graded = findings.planted(records, Boards(), TABLE)
    assert graded["planted"] == len(TABLE) == len(graded["gaps"])
    assert graded["found"] + len(graded["missed"]) == graded["planted"]
    assert graded["found"] >= 20
    assert graded["precision"]["value"] == 1.0 and graded["false_alarms"] == []
    for gap in graded["gaps"]:
        assert gap["found"] == (gap["findings"] >= 3) and gap["findings"] <= gap["probes"]
        assert gap["skill"] in grammar.SKILLS and gap["condition"]


def test_a_blind_spot_shared_by_the_references_is_a_false_alarm():
    fooled = audit(blind_spot=True)
    graded = findings.planted(fooled, Boards(), TABLE)
    assert graded["precision"]["value"] < 0.95
    assert {alarm["truth"] for alarm in graded["false_alarms"]} == {"circle"}
    assert {alarm["reason"] for alarm in graded["false_alarms"]} == {"the target was right"}
    assert sum(group["size"] for group in graded["false_alarm_groups"]) == len(graded["false_alarms"])
    assert any("“circle” for diamond" in group["name"] for group in graded["false_alarm_groups"])


def test_a_source_without_truth_measures_nothing(records):
    photos = SimpleNamespace(name="photos", complete=False, truth=lambda key, question: None, gap=lambda *a: None)
    assert findings.planted(records, photos, []) == {}
    with pytest.raises(AuditError, match="photos knows the answer to none"):
        findings.search_success(records, photos)


def test_search_success_is_the_truth_and_not_the_consensus(records):
    malformed = {"picture": "audit-0-0", "question": None, "target": None}
    nonsense = {"picture": "audit-0-0", "question": "why is the board so sad?", "target": "yes"}
    wrong = sum(gaps.find(TABLE, scene_of(r["picture"]), r["question"]) is not None for r in records)
    success = findings.search_success([*records, malformed, nonsense], Boards())
    assert (success["n"], round(success["value"] * success["n"])) == (len(records) + 2, wrong)


def test_the_best_blind_question_is_rated_on_other_pictures():
    calls = []

    def ask(target, pictures, questions):
        calls.extend((picture.key, question) for picture, question in zip(pictures, questions, strict=True))
        hits = [gaps.find(TABLE, scene_of(p.key), q) for p, q in zip(pictures, questions, strict=True)]
        return [hit[1] if hit else grammar.answer(scene_of(p.key), q)
                for hit, p, q in zip(hits, pictures, questions, strict=True)]  # fmt: skip

    boards = Boards()
    pictures = boards.pictures("baseline", 60, 0)
    often = ["what atmosphere does the scene have?", "how many objects are there?"]
    questions = [*often, "is there a red star?", "is it art?"]
    best = findings.best_blind_question(None, boards, questions, pictures, ask)
    assert best["question"] in often and best["candidates"] == 4
    assert best["rate"]["n"] == best["chosen_on"]["n"] == 30
    assert {question for key, question in calls if key in {p.key for p in pictures[30:]}} == {best["question"]}


def test_a_template_matches_questions_of_its_own_length_only():
    asked = ["what shape is left of b3?", "what shape is above c1?"]
    matches = naming.matcher(naming.template(asked), asked)
    assert matches("what shape is right of a1?") and not matches("what shape is the object at a1 or b2?")
