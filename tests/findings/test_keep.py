"""What notebook 06 keeps, and what it says of it."""

import json
from types import SimpleNamespace

import pytest
from PIL import Image

from auditkit import stats
from auditkit.findings import by_way, grading, keep, success
from auditkit.findings.failure_types import FailureType
from auditkit.findings.recheck import all_counts, recheck_counts
from auditkit.runs import jsonl
from auditkit.text import slug

IMAGE = Image.new("RGB", (8, 8))
RATE = stats.rate(3, 4)


class Source:
    name, complete = "photos", False

    def __init__(self):
        self.made = {"made-1": SimpleNamespace(box=(1, 2, 3, 4))}
        self.handed_out = []

    def picture(self, key):
        self.handed_out.append(key)
        return SimpleNamespace(key=key, image=IMAGE)

    def truth(self, key, question):
        return "two" if key == "audit/1" else None

    def accepted(self, key, question):
        return tuple(filter(None, [self.truth(key, question)]))


def probe(i, **more):
    return {"key": f"p{i}", "picture": f"audit/{i}", "question": "how many?", "target": "one", "consensus": "two",
            "outcome": "finding", **more}  # fmt: skip


@pytest.fixture
def types():
    examples = [probe(1), probe(2)]
    parts = {
        "size": 2,
        "share": 1.0,
        "rate": RATE,
        "rate_when": RATE,
        "questions": ["how many?"],
        "asked": ["p1", "p2"],
    }
    return [
        FailureType(name="how many", template="how many", confusion=[], examples=examples, keys=["p1", "p2"], **parts)
    ]


def edit(i):
    return probe(i, picture="made-1", base="audit/9", before={"target": "two"}, way="edit", irrelevant_edit=True)


def test_all_that_is_read_later_is_written_and_read_back(types, tmp_path):
    source, edits = Source(), by_way.describe_edits([edit(3)], Source())
    planted = {"planted": 2, "false_alarms": [probe(i) for i in range(20, 29)]}
    beside = keep.type_records(types, {"how many": {"peer": RATE}})
    keep.keep_findings(
        tmp_path, source, beside, {"how many": {"name": "far", "share": 1.0}}, "Plain words.", edits, planted
    )
    (kept,) = json.loads((tmp_path / "types.json").read_text())
    assert kept["gap"] == {"name": "far", "share": 1.0} and kept["peer"] == RATE and kept["keys"] == ["p1", "p2"]
    assert [example.get("truth") for example in kept["examples"]] == ["two", None]
    assert "truth" not in types[0].examples[0], "the findings themselves stay as they are"
    assert (tmp_path / "explain.txt").read_text() == "Plain words.\n"
    (told,) = json.loads((tmp_path / "edits.json").read_text())
    assert told["box"] == [1, 2, 3, 4] and told["target_before"] == "two"
    assert keep.kept_planted(tmp_path) == planted
    names = {path.name for path in (tmp_path / "images").iterdir()}
    keys = ["made-1", *(f"audit/{i}" for i in (1, 2, 9, *range(20, 26)))]
    assert names == {f"{slug(key)}.png" for key in keys}
    assert len(source.handed_out) == len(set(source.handed_out)), "each picture is read once"


def test_without_known_gaps_and_truth_there_is_nothing_to_hold_against(types, tmp_path):
    keep.keep_findings(tmp_path, Source(), keep.type_records(types), {}, "", [], {})
    assert "gap" not in json.loads((tmp_path / "types.json").read_text())[0]
    assert not (tmp_path / "planted.json").exists() and keep.kept_planted(tmp_path) == {}
    assert json.loads((tmp_path / "edits.json").read_text()) == []


def test_metrics_hold_what_was_measured_and_nothing_else(types):
    assert keep.findings_metrics(types, [], {}, {}, {}) == {"findings": 2, "types": 1, "irrelevant_edits": 0}
    planted = {"planted": 5, "found": 4, "recall": RATE, "gaps": [], "false_alarms": []}
    found = keep.findings_metrics(types, [1], planted, {"purity": RATE}, {"held_out": RATE})
    assert found["found"] == 4 and "precision" not in found and "gaps" not in found
    assert found["types_against_gaps"] == {"purity": RATE} and found["false_share"] == {"held_out": RATE}


def test_the_sentences_say_what_was_missed():
    planted = {"planted": 3, "found": 2, "missed": ["far"], "precision": RATE, "false_alarms": [1, 2]}
    assert grading.graded_in_words(planted) == [
        "2 of 3 planted gaps found; missed: far",
        "75.0% of the findings are true; 2 false alarms",
    ]
    assert grading.graded_in_words({}) == []
    against = {"gaps_with_a_type": 1, "gaps": 2, "purity": RATE, "homogeneity": 0.5, "completeness": 1.0}
    assert grading.agreement_in_words(against).startswith(
        "1 of 2 gaps with findings have a type of their own; purity 75"
    )
    assert grading.agreement_in_words({}) == "No finding lies in a gap that is known."


def test_without_an_oracle_the_rate_by_consensus_is_all_there_is(capsys):
    class Mute(Source):
        def truth(self, key, question):
            return None

    rows = [probe(1), probe(2, outcome="agrees", target="two")]
    assert success.success_rates(rows, Mute(), "trained") == {"trained_by_consensus": stats.rate(1, 2)}
    assert "search success cannot be assessed: photos" in capsys.readouterr().out
    assert success.success_on_both(rows, rows[:1], Mute()) == (stats.rate(1, 2), stats.rate(1, 1))
    assert success.success_on_both(rows[:1], [probe(2)], Source()) == (stats.rate(1, 1), stats.rate(1, 1)), "both alike"


def test_the_baseline_counts_agreement_over_what_was_a_question():
    rows = [probe(1), probe(2, consensus=None, outcome="no consensus"), probe(3, question=None, outcome="malformed")]
    rates = success.baseline_rates(rows, Source())
    assert rates["references_agree"] == stats.rate(1, 2) and rates["untrained_by_consensus"] == stats.rate(1, 3)
    assert list(rates) == ["references_agree", "untrained_by_consensus", "untrained"]


def test_a_blind_questioner_takes_what_found_most(tmp_path):
    class Photos(Source):
        complete = True

        def pictures(self, split, n, seed):
            assert split == "test"
            return [SimpleNamespace(key=f"t{i}", image=IMAGE) for i in range(n)]

        def truth(self, key, question):
            return "two"

    said = [{"model": "t", "picture": f"t{i}", "question": "how many?", "answer": "one"} for i in range(40)]
    jsonl.append(tmp_path / "answers.jsonl", said)
    p = SimpleNamespace(blind_candidates=1, blind_images=40, seed=0, max_answer_tokens=8)
    rows = [probe(1), probe(2), probe(3, question="what is it?")]
    blind = success.rate_blind_questions(rows, SimpleNamespace(name="t"), Photos(), p, tmp_path)
    assert blind["question"] == "how many?" and blind["rate"] == stats.rate(20, 20) and blind["candidates"] == 1
    assert success.blind_in_words(blind, rows, Photos()) == "“how many?”, of every picture: 100%"
    assert success.blind_in_words({}, rows, Photos()) == "photos cannot grade these"
    assert success.blind_in_words({}, [], Photos()) == "no finding to take a question from"


# ---- pictures that were made ----------------------------------------------------------------------------------------


def test_who_moved_is_told_of_consensus_and_target():
    row = {"question": "how many?", "consensus_before": "two", "consensus": "2", "target": "one"}
    moved = by_way.who_moved([row], lambda a, b, question: {a, b} <= {"two", "2"})
    assert moved == {"consensus": ["stays"], "target": ["moves"]}


def test_irrelevant_edits_come_first_and_none_twice():
    rows = [probe(1, way="edit"), edit(2), probe(3, way="edit")]
    assert [row["key"] for row in by_way.irrelevant_first(rows)] == ["p2", "p1", "p3"]


def test_without_a_picture_the_sentence_says_so():
    metrics = by_way.picture_metrics([], {}, Source())
    assert metrics == {"made": 0}
    (told,) = by_way.pictures_in_words(metrics, 0)
    assert told == "No counterfactual picture, so nothing to compare; the audit itself does not need any."


def test_pictures_are_summed_up():
    painted = {"images": {"asked": 4, "made": 3, "dropped": {"black": 1}}, "editor": {"command_applied": RATE}}
    rows = [probe(1, way="edit", pairing="(Q*, I*)"), edit(2) | {"pairing": "(Q, I*)"}]
    metrics = by_way.picture_metrics(rows, painted, Source())
    assert (
        metrics["made"] == 3
        and set(metrics["pairings"]) == {"(Q*, I*)", "(Q, I*)"}
        and metrics["irrelevant_edits"] == 1
    )
    assert by_way.pictures_in_words(metrics, 2) == [
        "4 wishes, 3 good pictures; dropped: black 1",
        "2 edits of pictures on which all agreed; irrelevant ones that turned the target: 1",
        "editor: command applied 75.0% of 4",
    ]


def test_what_was_asked_again_is_added_to_the_counts():
    scored = [probe(1, references={"a": "two"})]
    crossed = {"p1": {"target": ["one", "one"], "references": {"a": ["two"]}, "elsewhere": {"a": []}}}
    assert recheck_counts(crossed, scored) == {"target_called": 2, "references_called": 1}
    counted = all_counts(scored, crossed)
    assert counted["target_called"] == 3 and counted["references_called"] == 2 and counted["asked"] == 1
