"""From an audit to a training set."""

from types import SimpleNamespace

import pytest

from auditkit.consensus.same import Same
from auditkit.data.load import load_images
from auditkit.findings import review
from auditkit.params import load_params
from auditkit.repair import prepare
from auditkit.runs import jsonl


def probe(i, outcome="finding", question=None):
    said = {"question": question or f"how many things of kind {i} are there?", "target": "one"}
    agreed = {"consensus": "two", "references": {"a": "two"}, "outcome": outcome}
    return {"key": f"untrained/{i}", "picture": f"audit/{i:05d}", **said, **agreed}


class Knows:
    """A book in which the target is right about every second original."""

    def __init__(self, examples):
        self.right = {example.question: example.answer for example in examples[::2]}

    def ask(self, model, pictures, questions, max_new_tokens):
        return [self.right.get(question, "nothing") for question in questions]


@pytest.fixture
def p(project):
    return load_params("params/smoke.yaml")


@pytest.fixture
def folders(tmp_path, p):
    audit, findings = tmp_path / "audit", tmp_path / "findings"
    audit.mkdir(), findings.mkdir()
    return audit, findings


@pytest.fixture(scope="module")
def source():
    return load_images("miniature")


def learn(folders, p, rows):
    jsonl.append(folders[0] / "scored.jsonl", rows)
    return prepare.findings_to_learn(*folders, p)


def test_findings_are_what_there_is_to_learn(folders, p):
    found = learn(folders, p, [probe(0), probe(1, "agrees")])
    assert len(found.findings) == 1 and found.why_not == "" and found.reviewed == {}
    assert found.in_words() == "1 finding to learn from"


def test_nothing_found_is_nothing_to_repair(folders, p):
    found = learn(folders, p, [probe(1, "agrees")])
    assert found.findings == [] and found.in_words() == "Nothing was found, so nothing is repaired."


def test_a_person_may_reject_all_and_relabel(folders, p):
    rows = [probe(0), probe(1)]
    jsonl.append(
        folders[1] / review.FILE, [review.decision(rows[0], "reject"), review.decision(rows[1], "relabel", "six")]
    )
    found = learn(folders, p, rows)
    assert [row["consensus"] for row in found.findings] == ["six"]
    assert found.in_words() == "1 finding to learn from\na person left out 1 finding and relabelled 1 probe"
    jsonl.append(folders[1] / review.FILE, [review.decision(rows[1], "reject")])
    assert prepare.findings_to_learn(*folders, p).why_not == "A person rejected every finding, so nothing is repaired."


def test_a_target_that_cannot_be_trained_learns_nothing_and_says_why(folders, p):
    served = SimpleNamespace(**{**vars(p), "target": "http://localhost:1/v1#m"})
    found = learn(folders, served, [probe(0)])
    assert found.findings == [] and found.why_not and found.why_not in found.in_words() and len(found.scored) == 1


def test_where_there_is_nothing_to_learn_the_set_is_empty(folders, p, source, tmp_path):
    found = learn(folders, p, [probe(1, "agrees")])
    made = prepare.prepare_training_set(found, source, None, None, Same(), p, tmp_path)
    assert (
        made.examples == [] and made.kinds == {"finding": 0, "agreed": 0, "original": 0} and made.near_duplicates == 0
    )
    assert (tmp_path / "training.jsonl").read_text() == ""


def test_the_set_is_findings_agreements_and_what_the_target_knows(folders, p, source, tmp_path):
    pictures = source.pictures("audit", 6, p.seed)
    asked = ["what colour is the ball?", "how many boats are there?", "is there a tree left of b2?", "what is at a1?",
             "which shape is largest?", "what colour is the ball?"]  # fmt: skip
    rows = [probe(i, question=question) | {"picture": picture.key} for i, (picture, question) in
            enumerate(zip(pictures, asked, strict=True))]  # fmt: skip
    rows[3]["outcome"] = "agrees"
    rows[5] |= {"picture": rows[0]["picture"]}  # the same again
    originals = source.examples(p.rectify_original, p.seed)
    found = learn(folders, p, rows)
    made = prepare.prepare_training_set(found, source, SimpleNamespace(name="t"), Knows(originals), Same(), p, tmp_path)
    assert made.near_duplicates == 1 and made.drawn == len(originals)
    assert made.learnt_from == {"untrained/0", "untrained/1", "untrained/2", "untrained/4"}
    assert made.kinds["finding"] == 4 and made.kinds["agreed"] == 1 and 0 < made.kinds["original"] < len(originals)
    lines = jsonl.read(tmp_path / "training.jsonl")
    assert len(lines) == sum(made.kinds.values()) and sum(row["times"] for row in lines) == len(made.examples)
    first, second = made.in_words("findings").split("\n")
    assert first == f"{len(originals)} originals drawn; 1 near-duplicate left out"
    assert second.startswith(
        f"{len(made.examples)} examples, 4 of them to learn (findings); different ones: 4 finding, 1 agreed"
    )
