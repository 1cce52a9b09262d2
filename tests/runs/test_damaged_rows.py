"""What no stage has written is named by file and line, with what to do, by whoever reads it."""

import json

import pytest

from auditkit.data.load import load_images
from auditkit.errors import AuditError
from auditkit.findings import review
from auditkit.findings.keep import kept_planted
from auditkit.models.answers import AnswerBook
from auditkit.params import load_params
from auditkit.report.summary import write_report
from auditkit.runs import jsonl
from auditkit.runs.files import read_json
from auditkit.runs.folder import is_done, open_stage

WHOLE = {"model": "m", "picture": "p", "question": "q", "answer": "a", "key": "k", "outcome": "finding", "step": 1}
WHOLE |= {"round": 1, "judge": "j", "a": "1", "b": "2", "namer": "n", "prompt": "p", "reply": "r"}


@pytest.mark.parametrize("name", sorted(jsonl.COLUMNS))
@pytest.mark.parametrize(
    "line",
    [
        b'{"key": "\xff\xfe"}',
        b'{"key": ',
        b"[1, 2]",
        b'"text"',
        b"null",
        b"{}",
        b'{"key": ["a"], "step": "x"}',
        b"[" * 10**5,
    ],
    ids=["no UTF-8", "cut", "a list", "a text", "nothing", "no columns", "a list for a text", "100,000 brackets"],
)
def test_a_damaged_row_is_named_by_file_and_line(tmp_path, name, line):
    path, whole = tmp_path / f"{name}.jsonl", json.dumps(WHOLE).encode()
    path.write_bytes(b"\n".join([whole, whole, line, whole, b""]))
    with pytest.raises(AuditError) as error:
        jsonl.read(path)
    said = str(error.value)
    assert f"{name}.jsonl, line 3 " in said and "delete that line" in said and len(said) < 300 and "\n" not in said


def test_a_list_where_an_object_belongs(tmp_path):
    path = tmp_path / "scored.jsonl"
    path.write_text(json.dumps(WHOLE | {"references": ["a"]}) + "\n")
    with pytest.raises(AuditError, match='scored.jsonl, line 1 has a list for "references", which is an object'):
        jsonl.read(path)


def test_books_and_reviews_read_by_the_one_reader(tmp_path):
    (tmp_path / "answers.jsonl").write_text('{"model": "m", "picture": "p", "question": "q"}\n')
    with pytest.raises(AuditError, match='line 1 has no "answer", which is a text in every row'):
        AnswerBook(tmp_path / "answers.jsonl")
    (tmp_path / "reviews.jsonl").write_text('{"key": ["k"], "decision": "accept"}\n')
    with pytest.raises(AuditError, match='reviews.jsonl, line 1 has a list for "key"'):
        review.decisions(tmp_path, [])


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b'{"a": "\xff"}', b"[" * 10**5, b"1" * 5000])
def test_a_damaged_json_file_is_one_sentence(tmp_path, text):
    path = tmp_path / "planted.json"
    path.write_bytes(text)
    with pytest.raises(AuditError) as error:
        kept_planted(tmp_path)
    assert "planted.json" in str(error.value) and "--only 06 --start-over" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("planted", ['{"gaps": {}}', '{"gaps": ["a"]}', '{"false_alarms": 3}'])
def test_planted_gaps_are_a_list_of_objects(tmp_path, planted):
    (tmp_path / "planted.json").write_text(planted)
    with pytest.raises(AuditError, match="is no list of objects"):
        kept_planted(tmp_path)


def test_the_line_of_a_json_file_is_told(tmp_path):
    (tmp_path / "types.json").write_text('[\n{"name": 1},\n{"name" 2}]')
    with pytest.raises(AuditError, match=r"types.json is no JSON \(line 3: "):
        read_json(tmp_path / "types.json", list)
    (tmp_path / "types.json").write_text('[{"name": 1}, ["name"]]')
    with pytest.raises(AuditError, match="entry 2 is a list where an object belongs"):
        read_json(tmp_path / "types.json", list, of=dict)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"id": 3, "parameters": {}, "needs": {}}', '{"id": "a"}'])
def test_a_damaged_manifest_is_one_sentence_wherever_it_is_read(project, text):
    p = load_params("params/demo.yaml")
    run = open_stage(p, "06_findings")
    run.append({"key": "a"})
    run.finish()
    (run.folder / "manifest.json").write_text(text)
    for read in (lambda: is_done(p, "06_findings"), lambda: open_stage(p, "06_findings")):
        with pytest.raises(AuditError, match="manifest.json .*start this stage over with"):
            read()
    if not text.startswith("{}"):
        return
    with pytest.raises(AuditError):  # no versions, no seconds
        write_report(run.folder.parent)


def test_a_damaged_row_of_questions_is_named_too(tmp_path):
    (tmp_path / "questions.jsonl").write_bytes(b'{"image": "a.png", "question": "q?", "answer": "\xff"}\n')
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(AuditError, match="questions.jsonl"):
        load_images(str(tmp_path))
