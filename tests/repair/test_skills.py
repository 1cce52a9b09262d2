from types import SimpleNamespace

import pytest
from PIL import Image

from auditkit.consensus.normalise import same_text
from auditkit.data.source import Example
from auditkit.errors import AuditError
from auditkit.repair.skills import SkillScores, compare_skills, evaluate_skills, repair_gain

IMAGE = Image.new("RGB", (8, 8))


def examples(skill, n=40):
    return [Example(f"{skill}-{i % 20}/q{i // 20}", IMAGE, f"{skill} {i}?", str(i)) for i in range(n)]


SKILLS = {"counting": examples("counting"), "reading": examples("reading")}


class Book:
    """Answers like a model that is right where `right(question)` says so; counts the calls."""

    def __init__(self, right):
        self.right, self.calls = right, 0

    def ask(self, vlm, pictures, questions, max_new_tokens):
        self.calls += 1
        self.pictures = pictures
        assert all(p.key.startswith(q.split()[0]) for p, q in zip(pictures, questions, strict=True))
        assert all("/" not in picture.key for picture in pictures)
        return [q.split()[1].strip("?") if self.right(q) else "wrong" for q in questions]


def scores(right):
    return evaluate_skills(SimpleNamespace(name="m"), SKILLS, Book(right))


def test_all_skills_are_asked_in_one_call():
    book = Book(lambda q: "reading" in q)
    result = evaluate_skills(SimpleNamespace(name="m"), SKILLS, book)
    assert book.calls == 1 and len(book.pictures) == 80
    assert len({id(picture) for picture in book.pictures}) == 40  # a picture asked about twice is one object
    assert (result["counting"]["value"], result["reading"]["value"]) == (0.0, 1.0)
    assert result["mean"]["value"] == 0.5 and result["mean"]["n"] == 80


def test_scores_are_plain_rates_for_a_file():
    result = scores(lambda q: True)
    assert set(result) == {"counting", "reading", "mean"}
    assert all(set(rate) == {"value", "low", "high", "n"} for rate in result.values())


def test_a_repair_is_tested_on_pairs():
    before, after = scores(lambda q: "reading" in q), scores(lambda q: "reading" in q or int(q.split()[1][:-1]) % 2)
    rows = {row["skill"]: row for row in compare_skills(before, after, before)}
    assert list(rows) == ["counting", "reading", "mean"]
    counting = rows["counting"]
    assert (counting["gained"], counting["lost"], counting["change"]["value"]) == (20, 0, 0.5)
    assert counting["p"] < counting["p_holm"] < 0.001 and counting["peer"] == before["counting"]
    assert rows["reading"]["p"] == 1.0 and rows["reading"]["change"]["value"] == 0.0
    assert rows["mean"]["change"]["value"] == 0.25 and "p_holm" not in rows["mean"]
    assert "peer" not in compare_skills(before, after)[0]


def test_a_benchmark_without_examples_is_refused():
    with pytest.raises(AuditError, match='"empty" has no examples'):
        evaluate_skills(None, {"empty": []}, None)
    with pytest.raises(AuditError, match="without benchmarks"):
        evaluate_skills(None, {}, None)
    with pytest.raises(AuditError, match="different skills"):
        compare_skills(scores(lambda q: True), SkillScores({"counting": [True]}))


def test_answers_count_by_meaning():
    assert same_text("three", "3")
    book = SimpleNamespace(ask=lambda vlm, pictures, questions, longest: ["It is three."])
    assert evaluate_skills(None, {"c": [Example("k/q0", IMAGE, "how many?", "3")]}, book)["c"]["value"] == 1.0


def test_a_gain_is_counted_in_pairs_towards_before_the_peer_and_the_references():
    sides = {
        "before": scores(lambda q: False),
        "after": scores(lambda q: "reading" in q),
        "peer": scores(lambda q: True),
    }
    departs = {"before": [True, True, False, False], "after": [True, False, False, False]}
    gain = repair_gain(sides, departs)
    assert (gain["skills"]["value"], gain["over_peer"]["value"], gain["skills"]["n"]) == (0.5, -0.5, 80)
    assert gain["agreement"]["value"] == 0.25 and gain["agreement"]["low"] <= 0.25 <= gain["agreement"]["high"]
    assert repair_gain({}, departs).keys() == {"agreement"}, "nothing is labelled"
    assert repair_gain({"before": sides["before"]}, {"before": departs["before"]}) == {}, "nothing was repaired"
