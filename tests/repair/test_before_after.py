"""What a repair changed: skills, gaps, the consensus, and the sentences about it."""

from types import SimpleNamespace

import pytest
from PIL import Image

from auditkit import stats
from auditkit.consensus.same import Same
from auditkit.data.source import Example, Picture, Task
from auditkit.repair import before_after
from auditkit.repair.skills import SkillScores, compare_skills

IMAGE = Image.new("RGB", (8, 8))
BENCHMARKS = {
    "counting": [Example(f"a{i}/q0", IMAGE, f"count {i}?", "two") for i in range(4)],
    "reading": [Example(f"b{i}/q0", IMAGE, f"read {i}?", "two") for i in range(4)],
}
BEFORE = SkillScores({"counting": [False, False, True, True], "reading": [True] * 4})
AFTER = SkillScores({"counting": [True] * 4, "reading": [True, True, True, False]})


class Book:
    """Says the same to everything."""

    def __init__(self, says):
        self.says, self.asked = says, []

    def ask(self, model, pictures, questions, max_new_tokens):
        self.asked += [
            (model.name, picture.key, question) for picture, question in zip(pictures, questions, strict=True)
        ]
        return [self.says] * len(questions)


class Source:
    """The questions about pictures a0 and a1 lie in a gap that was found, that about a2 in one that was missed."""

    def picture(self, key):
        return Picture(key, IMAGE)

    def gap(self, key, question, gaps):
        return {"a0": "small", "a1": "small", "a2": "far"}.get(key) if gaps else None


def finding(i, target="one", consensus="two", disagrees=True):
    return {"key": f"p{i}", "picture": f"pic{i}", "question": "how many?", "target": target, "consensus": consensus,
            "disagrees": disagrees}  # fmt: skip


def test_sides_are_what_there_is(tmp_path):
    def load(spec, adapter=None):
        return (spec, adapter)

    assert list(before_after.load_sides(load, "t", tmp_path / "none", "")) == ["before"]
    sides = before_after.load_sides(load, "t", tmp_path, "p")
    assert sides == {"before": ("t", None), "after": ("t", tmp_path), "peer": ("p", None)}


def test_all_models_are_asked_the_same_and_nobody_without_benchmarks():
    models, book = {side: SimpleNamespace(name=side) for side in ("before", "after")}, Book("two")
    scores = before_after.evaluate_all(models, BENCHMARKS, book, 8)
    assert {side: its["mean"]["value"] for side, its in scores.items()} == {"before": 1.0, "after": 1.0}
    assert len(book.asked) == 16 and before_after.evaluate_all(models, {}, book, 8) == {}


def test_examples_are_parted_by_the_gap_they_lie_in():
    planted = {"gaps": [{"name": "small", "found": True}, {"name": "far", "found": False}]}
    parted = before_after.score_by_gap({"before": BEFORE, "after": AFTER}, BENCHMARKS, Source(), [object()], planted)
    assert list(parted) == ["in a found gap", "in a missed gap", "outside"]
    assert {place: sides["before"]["n"] for place, sides in parted.items()} == {
        "in a found gap": 2, "in a missed gap": 1, "outside": 5,
    }  # fmt: skip
    assert parted["in a found gap"]["before"]["value"] == 0.0 and parted["in a found gap"]["after"]["value"] == 1.0
    assert parted["outside"]["after"]["value"] == 0.8


def test_without_gaps_all_is_outside():
    parted = before_after.score_by_gap({"before": BEFORE}, BENCHMARKS, Source(), [], {})
    assert list(parted) == ["outside"] and parted["outside"]["before"]["n"] == 8
    assert before_after.score_by_gap({}, {}, Source(), [], {}) == {}


def test_a_gap_that_was_never_graded_counts_as_outside():
    parted = before_after.score_by_gap({"before": BEFORE}, BENCHMARKS, Source(), [object()], {})
    assert list(parted) == ["outside"]


def test_tasks_are_not_put_to_the_peer():
    task = Task("describe", [Example("a", IMAGE, "describe it", "x y")], 8, lambda said, right: [True, False])
    models = {side: SimpleNamespace(name=side) for side in ("before", "after", "peer")}
    found = before_after.evaluate_tasks_aside(models, [task], Book("x"))
    assert list(found["describe"]) == ["before", "after"] and found["describe"]["before"]["value"] == 0.5


def test_the_repaired_target_is_asked_and_both_answers_are_kept():
    book = Book("two")
    rows = before_after.ask_again([finding(0)], SimpleNamespace(name="t+"), Source(), book, 8)
    assert rows == [{"key": "p0", "picture": "pic0", "question": "how many?", "consensus": "two", "before": "one",
                     "after": "two"}]  # fmt: skip
    assert book.asked == [("t+", "pic0", "how many?")]
    assert before_after.share_learnt(rows, Same()) == stats.rate(1, 1)


def test_without_a_repaired_target_nobody_is_asked():
    rows = before_after.ask_again([finding(0)], None, Source(), None, 8)
    assert rows[0]["after"] == rows[0]["before"] == "one"
    departs = before_after.departures([finding(0)], rows, False, Same())
    assert departs == {"before": [True]}


def test_who_departs_from_the_consensus_is_told_probe_by_probe():
    rows = [finding(0), finding(1, target="two", disagrees=False)]
    again = before_after.ask_again(rows, SimpleNamespace(name="t"), Source(), Book("2"), 8)
    departs = before_after.departures(rows, again, True, Same())
    assert departs == {"before": [True, False], "after": [False, False]}
    assert before_after.departure_rates(departs)["before"] == stats.rate(1, 2)


@pytest.fixture
def measured():
    parted = {"in a found gap": {"before": stats.rate(0, 2), "after": stats.rate(1, 2)},
              "in a missed gap": {"before": stats.rate(0, 4), "after": stats.rate(0, 4)},
              "outside": {"before": stats.rate(5, 5), "after": stats.rate(4, 5)}}  # fmt: skip
    departs = {"before": [True, True, False, False], "after": [False, False, False, False]}
    scores = {"before": BEFORE, "after": AFTER}
    return before_after.repair_metrics(scores, departs, {"describe": {"before": stats.rate(1, 1)}}, parted, [object()])


def test_metrics_are_what_the_report_reads(measured):
    assert measured["disagreement_before"] == stats.rate(2, 4) and measured["disagreement_after"] == stats.rate(0, 4)
    assert set(measured["benchmarks"]) == {"counting", "reading"} and measured["mean"]["after"]["value"] == 0.875
    assert measured["found_gaps"]["after"]["value"] == 0.5 and measured["outside_gaps"]["before"]["value"] == 1.0
    assert measured["all_gaps"] == {"before": stats.rate(0, 6), "after": stats.rate(1, 6)}
    assert measured["gain"]["agreement"]["value"] == 0.5 and "untouched" in measured


def test_what_was_not_measured_is_absent():
    metrics = before_after.repair_metrics({}, {"before": [True]}, {}, {}, [])
    assert metrics == {"disagreement_before": stats.rate(1, 1), "gain": {}}
    told = before_after.repair_in_words(metrics, [])
    assert told == ["departs from the consensus on this share of the 1 probes: 100.0% before"]


def test_without_planted_gaps_outside_is_no_measure():
    parted = {"outside": {"before": stats.rate(5, 5), "after": stats.rate(4, 5)}}
    scores = {"before": BEFORE, "after": AFTER}
    metrics = before_after.repair_metrics(scores, {"before": [True]}, {}, parted, [])
    assert not {"outside_gaps", "all_gaps"} & set(metrics)


def test_the_sentences_say_what_fell_and_what_is_gone(measured):
    told = before_after.repair_in_words(measured, compare_skills(BEFORE, AFTER))
    assert told[0] == "departs from the consensus on this share of the 4 probes: 50.0% before, 0.0% after"
    assert told[1] == "mean over the skills: before 75.0%, after 87.5%"
    assert told[2] == "skills that fell by more than 2 points: reading"
    assert told[3].startswith("gain in agreement with the references: +50.0 points (")
    assert told[-1] == "of the error inside the found gaps, 50% is gone"
