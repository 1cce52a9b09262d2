"""Questions in whichever file they came: the same rows from each form, values as written, odd ones named."""

import json
import unicodedata
from types import SimpleNamespace

import pytest
from PIL import Image

from auditkit.consensus.same import Same
from auditkit.data.folder import ImageFolder
from auditkit.errors import AuditError
from auditkit.findings.grading import grade_planted_gaps, search_success
from auditkit.repair.skills import evaluate_skills
from auditkit.repair.training_set import known_originals

ROWS = [("a.png", "What colour is it?", "red"), ("b.png", "How many?", "007"), ("sub/c.png", "Is it day?", "True")]


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.png", "sub/c.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    return tmp_path


def rows(folder):
    return [(row.key.replace(":", "/"), row.question, row.answers[0]) for row in ImageFolder(folder)._rows]


def table(delimiter, names=("file_name", "question", "answer")):
    return "\n".join(delimiter.join(row) for row in (names, *ROWS)) + "\n"


def json_lines(image):
    names = (image, "question", "answer")
    return "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in ROWS)


def conversations(name="{}", placeholder="<image>\n"):
    return [
        {"id": str(i), "image": name.format(image), "conversations": [
            {"from": "human", "value": f"{placeholder}{question}"}, {"from": "gpt", "value": answer}]}
        for i, (image, question, answer) in enumerate(ROWS)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("questions.jsonl", json_lines("image")),
        ("metadata.jsonl", json_lines("file_name")),
        ("metadata.csv", table(",")),
        ("metadata.csv", "\ufeff" + table(";")),
        ("metadata.csv", table("\t").replace("\n", "\r\n")),
        ("questions.tsv", table("\t", ("image", "question", "answer"))),
        ("questions.csv", table("|", ("Image", "Question", "Answer"))),
        ("data.json", json.dumps(conversations())),
        ("data.json", json.dumps(conversations("./{}"))),
        ("data.json", json.dumps(conversations("somewhere/else/{}"))),
        ("data.json", json.dumps(conversations(placeholder="<|image|>\n<image> "))),
    ],
)  # fmt: skip
def test_every_form_gives_the_same_rows(folder, file, content):
    (folder / file).write_text(content, encoding="utf-8", newline="")
    assert rows(folder) == ROWS


def test_utf_16_with_its_mark_is_read(folder):
    (folder / "metadata.csv").write_text(table(","), encoding="utf-16")
    assert rows(folder) == ROWS


def test_parquet_is_read_and_nan_is_no_answer(folder):
    import pandas as pd

    said = pd.DataFrame({"file_name": ["a.png", "b.png", "sub/c.png"], "question": ["q one?", "q two?", "q three?"],
                         "answer": ["red", None, float("nan")]})  # fmt: skip
    said.to_parquet(folder / "metadata.parquet")
    assert rows(folder) == [("a.png", "q one?", "red")]


def test_a_table_in_a_folder_names_the_pictures_beside_it(folder):
    (folder / "sub" / "metadata.csv").write_text("file_name,question,answer\nc.png,what?,x\n")
    assert rows(folder) == [("sub/c.png", "what?", "x")]


@pytest.mark.parametrize("value", ["007", "1e3", "1.50", "NA", "null", "2024-01-05", "True", "None", "nan", "-0"])
def test_values_of_a_table_stay_as_they_are_written(folder, value):
    (folder / "metadata.csv").write_text(f"file_name,question,answer\na.png,what?,{value}\n")
    assert rows(folder) == [("a.png", "what?", value)]
    (folder / "metadata.csv").unlink()
    if value in ("1e3", "1.50"):  # numbers of JSON keep their digits, too
        (folder / "questions.jsonl").write_text(f'{{"image": "a.png", "question": "what?", "answer": {value}}}\n')
        assert rows(folder) == [("a.png", "what?", value)]


def test_nan_in_json_is_no_answer(folder):
    (folder / "questions.jsonl").write_text('{"image": "a.png", "question": "what?", "answer": NaN}\n')
    with pytest.raises(AuditError, match="questions.jsonl, line 1: the answer must be a text, not nan"):
        ImageFolder(folder)


def test_vqa_questions_meet_their_annotations_and_of_ten_answers_the_commonest_counts(tmp_path):
    for number in (42, 7):
        Image.new("RGB", (8, 8)).save(tmp_path / f"COCO_train2014_{number:012}.jpg")
    asked = [{"image_id": 42, "question": "What is it?", "question_id": 420},
             {"image_id": 7, "question": "How many?", "question_id": 70},
             {"image_id": 999, "question": "Not fetched?", "question_id": 9990}]  # fmt: skip
    people = [{"answer": "net", "answer_id": i} for i in range(6)] + [
        {"answer": "mesh", "answer_id": i} for i in range(4)
    ]
    notes = [{"question_id": 420, "image_id": 42, "multiple_choice_answer": "net", "answers": people,
              "answer_type": "other"},
             {"question_id": 70, "image_id": 7, "multiple_choice_answer": "2", "answers": [], "answer_type": "number"},
             {"question_id": 9990, "image_id": 999, "multiple_choice_answer": "x", "answers": []}]  # fmt: skip
    (tmp_path / "v2_OpenEnded_mscoco_train2014_questions.json").write_text(json.dumps({"questions": asked}))
    (tmp_path / "v2_mscoco_train2014_annotations.json").write_text(json.dumps({"annotations": notes}))
    source = ImageFolder(tmp_path)
    assert {(row.question, row.answers, row.skill) for row in source._rows} == {
        ("What is it?", ("net", "mesh"), "other"), ("How many?", ("2",), "number"),
    }  # fmt: skip
    key = "COCO_train2014_000000000042.jpg"
    assert source.truth(key, "what is it") == "net" and source.accepted(key, "what is it") == ("net", "mesh")


def test_what_several_people_said_is_right_too(folder):
    """In a benchmark, among the originals, and when a finding is graded."""
    ten = ["sofa bed"] * 5 + ["divan"] * 3 + ["bench"] * 2
    lines = [
        {"file_name": "a.png", "question": "what is it?", "answers": ten, "split": "test"},
        {"file_name": "b.png", "question": "what is it?", "answers": ["grey cat", "tom"], "split": "train"},
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = ImageFolder(folder)
    (skill, examples), original = source.benchmarks(5).popitem(), source._examples(source._rows, 5)[1]
    assert examples[0].accepted == ("sofa bed", "divan") and original.accepted == ("grey cat", "tom")
    for said, right in (("a divan", True), ("sofa bed.", True), ("bench", False)):
        book = SimpleNamespace(ask=lambda *_, said=said: [said])
        assert evaluate_skills(None, {skill: examples}, book).right == {skill: [right]}
        record = {"picture": "a.png", "question": "What is it?", "target": said, "consensus": "x", "outcome": "finding"}
        assert search_success([record], source)["value"] == (not right)
        found = grade_planted_gaps([record], source, [])
        assert [alarm["accepted"] for alarm in found["false_alarms"]] == [["sofa bed", "divan"]] * right
    for said, kept in (("Tom", [original]), ("dog", [])):
        book = SimpleNamespace(ask=lambda *_, said=said: [said])
        assert known_originals(None, [original], book, Same(), 8) == kept


def test_options_are_asked_with_the_question(folder):
    (folder / "metadata.jsonl").write_text(
        json.dumps({"file_name": "a.png", "question": "What is it?", "options": ["cat", "dog"], "answer": "B"}) + "\n"
        + json.dumps({"file_name": "b.png", "question": "And this?", "options": '["cat", "dog"]', "answer": 0}) + "\n"
    )  # fmt: skip
    assert rows(folder) == [
        ("a.png", "What is it? Options: cat, dog.", "dog"), ("b.png", "And this? Options: cat, dog.", "cat"),
    ]  # fmt: skip


def test_a_placeholder_within_a_question_is_refused_by_its_row(folder):
    (folder / "data.json").write_text(json.dumps(conversations(placeholder="see <image> here: ")))
    with pytest.raises(AuditError, match="data.json, entry 1: the question holds the image placeholder <image>"):
        ImageFolder(folder)


def test_file_names_in_another_unicode_form_are_found(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / unicodedata.normalize("NFD", "café.png"))
    (tmp_path / "metadata.csv").write_text(
        f"file_name,question,answer\n./{unicodedata.normalize('NFC', 'café.png')},what?,x\n"
    )
    assert len(ImageFolder(tmp_path)._rows) == 1


def test_rows_there_twice_and_second_answers_are_counted_and_said(folder, capsys):
    text = "file_name,question,answer\n" + "a.png,what?,x\n" * 3 + "a.png,What ?,y\nb.png,what?,z\n"
    (folder / "metadata.csv").write_text(text)
    assert rows(folder) == [("a.png", "what?", "x"), ("b.png", "what?", "z")]
    said = capsys.readouterr().out
    assert "2 questions of" in said and "are there twice" in said
    assert "1 questions of" in said and "'What ?' on a.png is 'x' and 'y'" in said


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("metadata.csv", "file_name,question,answer\nz.png,what?,x\n", "metadata.csv, row 2: there is no image z.png"),
        ("metadata.csv", "file_name,question,answer\n,what?,x\n", "metadata.csv, row 2: the column file_name is empty"),
        (
            "metadata.csv",
            "file_name,question,answer\na.png,is it a, b or c?,x\n",
            "row 2: 4 cells under 3 column names",
        ),
        ("data.json", "[", "data.json: it is no JSON"),
        ("metadata.jsonl", "{}\nnope\n", "metadata.jsonl, line 2: it is no JSON"),
    ],
)
def test_a_bad_row_is_named_with_its_file(folder, file, content, says):
    (folder / file).write_text(content)
    with pytest.raises(AuditError, match=says):
        ImageFolder(folder)


def test_another_encoding_is_named_with_its_line(folder):
    (folder / "metadata.csv").write_bytes("file_name,question,answer\na.png,où?,x\n".encode("latin-1"))
    with pytest.raises(AuditError, match="metadata.csv, line 2: this is not UTF-8; save the file as UTF-8"):
        ImageFolder(folder)


def test_files_that_are_not_understood_are_named(folder, capsys):
    (folder / "labels.csv").write_text("file,class\na.png,3\n")
    (folder / "coco.json").write_text('{"categories": []}')
    assert rows(folder) == []
    said = capsys.readouterr().out
    assert "2 files (coco.json, labels.csv) with no questions that are understood" in said
    assert "file_name" in said and "question or query" in said and "multiple_choice_answer or answer" in said
