"""Who takes part in an audit."""

from types import SimpleNamespace

from PIL import Image

from auditkit.data.examples import one_of_each_skill
from auditkit.data.source import Example, Picture
from auditkit.models.answers import AnswerBook, answers_by_model
from auditkit.models.roles import ask_all, deferred, load_roles, model_roles, whole_prompts
from auditkit.runs import jsonl

IMAGE = Image.new("RGB", (8, 8))


def test_roles_are_in_the_order_in_which_they_are_met():
    assert list(model_roles("t", ["a", "b"], "p", "w")) == ["target", "peer", "reference 1", "reference 2", "auditor"]


def test_a_model_is_loaded_when_it_is_called():
    loaded = []
    one, two = deferred(loaded.append, "a", "b")
    assert loaded == []
    two(), one()
    assert loaded == ["b", "a"]


def test_what_runs_elsewhere_has_a_class_and_no_size():
    models, rows = load_roles({"target": "x"}, lambda spec: SimpleNamespace(name=spec.upper()))
    (row,) = rows
    assert models["target"].name == row["model"] == "X" and row["key"] == "target"
    assert row["class"] == "SimpleNamespace" and "parameters" not in row and row["seconds"] >= 0
    assert whole_prompts(models, "why?") == {}


def test_everybody_is_asked_about_the_same_pictures():
    examples = [Example("board-3/q1", IMAGE, "how many?", "two")]
    seen = []

    class Book:
        def ask(self, model, pictures, questions, tokens):
            seen.append((model.name, pictures[0].key, questions, tokens))
            return ["two"]

    assert ask_all([SimpleNamespace(name="m")], examples, Book(), 5) == {"m": ["two"]}
    assert seen == [("m", "board-3", ["how many?"], 5)]


def test_answers_are_counted_once_however_often_a_book_is_named(tmp_path):
    path = tmp_path / "answers.jsonl"
    jsonl.append(path, [{"model": m, "picture": "a", "question": m, "answer": "x"} for m in ("t", "r1", "r2")])
    jsonl.append(path, [{"model": "t", "picture": "b", "question": "q", "answer": "x"}])
    assert answers_by_model(path, AnswerBook(path).path) == {"t": 2, "r1": 1, "r2": 1}
    assert answers_by_model(tmp_path / "none.jsonl") == {}


def test_a_source_without_labels_gets_a_question_that_fits_any_picture():
    source = SimpleNamespace(
        benchmarks=lambda n: {}, pictures=lambda split, n, seed: [Picture(f"{split}-{i}", IMAGE) for i in range(n)]
    )
    found = one_of_each_skill(source, 0)
    assert len(found) == 6 and found[0].key == "audit-0/q0" and found[0].answer == "" and found[0].image is IMAGE
    labelled = Example("test-1/q0", IMAGE, "how many?", "two")
    source.benchmarks = lambda n: {"counting": [labelled], "reading": []}
    assert one_of_each_skill(source, 0) == [labelled]
