"""Answers are looked up outside of memory: the same ones as in the log, whatever became of the index beside it."""

import json
import os

import pytest
from PIL import Image

from auditkit.data.source import Picture
from auditkit.errors import AuditError
from auditkit.models import answer_index
from auditkit.models.answer_index import AnswerIndex, index_file
from auditkit.models.answers import AnswerBook
from auditkit.runs import inventory, jsonl

GREY = Image.new("RGB", (4, 4), "grey")


class Counting:
    """A model that says how long a question is, and counts what it is asked."""

    name, batch_size = "m", 3

    def __init__(self):
        self.asked = []

    def write(self, images, prompts, max_new_tokens):
        self.asked += prompts
        return [str(len(prompt)) for prompt in prompts]


def row(i, answer="a"):
    return {"model": "m", "picture": f"p{i}", "question": f"is it {i}?", "answer": f"{answer}{i}"}


def key(i):
    return "m", f"p{i}", f"is it {i}?"


@pytest.fixture
def log(tmp_path, monkeypatch):
    """A log of 200 answers that counts as large."""
    monkeypatch.setattr(answer_index, "LARGE", 1000)
    jsonl.append(tmp_path / "answers.jsonl", [row(i) for i in range(200)])
    return tmp_path / "answers.jsonl"


@pytest.fixture
def read_from(monkeypatch):
    """The bytes at which logs have been read from, one a reading."""
    begun, each = [], jsonl.each

    def noted(path, begin=0):
        begun.append(begin)
        return each(path, begin)

    monkeypatch.setattr(jsonl, "each", noted)
    return begun


def test_a_small_log_has_no_file_beside_it_and_its_last_word_counts(tmp_path):
    log = tmp_path / "answers.jsonl"
    jsonl.append(log, [row(1), row(2), row(1, "b")])
    index = AnswerIndex(log)
    assert index.get([key(1), key(2), key(3)]) == ["b1", "a2", None] and len(index) == 2
    index.add({key(3): "new"})
    assert index.get([key(3)]) == ["new"] and len(index) == 3
    assert os.listdir(tmp_path) == ["answers.jsonl"]


def test_keys_are_told_apart_where_their_parts_run_together(tmp_path):
    index = AnswerIndex(tmp_path / "answers.jsonl")
    index.add({("a", "bc", "d"): "1", ("ab", "c", "d"): "2", ("a", "b", "cd"): "3", ("a", "b 1", ""): "\ud800"})
    assert index.get([("a", "bc", "d"), ("ab", "c", "d"), ("a", "b", "cd")]) == ["1", "2", "3"]
    assert index.get([("a", "b 1", "")]) == ["\ud800"]  # as it is read from the log


def test_of_a_large_log_only_what_was_added_is_read_at_the_next_start(log, read_from):
    assert AnswerIndex(log).get([key(199)]) == ["a199"] and read_from == [0]
    assert AnswerIndex(log).get([key(0), key(199)]) == ["a0", "a199"] and read_from == [0]
    size = log.stat().st_size
    jsonl.append(log, [row(200), row(7, "b")])
    index = AnswerIndex(log)
    assert index.get([key(200), key(7), key(8)]) == ["a200", "b7", "a8"] and len(index) == 201
    assert read_from == [0, size]


@pytest.mark.parametrize("change", ["shorter", "changed", "other", "newer"])
def test_an_index_of_another_log_is_made_anew(log, read_from, change):
    AnswerIndex(log)
    rows = jsonl.read(log)
    if change == "shorter":
        rows = rows[:-1]
    elif change == "changed":  # as long as before, and written later
        rows[3]["answer"] = "b3"
    elif change == "other":  # longer, with another end of what was indexed
        rows = [row(i, "b") for i in range(300)]
    jsonl.replace(log, rows)
    os.utime(log, ns=(1, 1))
    del read_from[:]
    index = AnswerIndex(log)
    assert read_from == [0] and len(index) == len(rows)
    assert index.get([key(i) for i in range(len(rows))]) == [one["answer"] for one in rows]


@pytest.mark.parametrize("damage", ["empty", "no database", "torn", "a folder", "killed while it was made"])
def test_a_damaged_index_costs_a_reading_and_nothing_else(log, damage):
    AnswerIndex(log)
    path = index_file(log)
    whole = path.read_bytes()
    if damage == "a folder":
        path.unlink()
        path.mkdir()
    elif damage == "killed while it was made":
        path.rename(path.with_name(path.name + ".part"))
    else:
        path.write_bytes({"empty": b"", "no database": b"x" * 9000, "torn": whole[: len(whole) // 2]}[damage])
    index = AnswerIndex(log)
    assert index.get([key(0), key(120), key(200)]) == ["a0", "a120", None] and len(index) == 200


def test_where_no_index_can_be_kept_the_log_is_read_into_a_private_one(log, monkeypatch):
    connected = answer_index._connected

    def full(path):
        database = connected(path)
        if path:
            database.execute("PRAGMA max_page_count = 3")  # as a disk that is full
        return database

    monkeypatch.setattr(answer_index, "_connected", full)
    index = AnswerIndex(log)
    assert index.get([key(0), key(199)]) == ["a0", "a199"] and not index_file(log).exists()
    AnswerIndex(log)


def test_a_full_disk_for_temporary_files_is_one_sentence(tmp_path, monkeypatch):
    index = AnswerIndex(tmp_path / "answers.jsonl")
    index._own.execute("PRAGMA max_page_count = 4")
    with pytest.raises(AuditError, match="answers cannot be looked up, .*full.*TMPDIR"):
        index.add({key(i): "x" * 500 for i in range(100)})


def test_a_book_with_a_kept_index_asks_nothing_twice_even_after_a_torn_line(log):
    model, questions = Counting(), [f"is it {i}?" for i in range(190, 210)]
    pictures = [Picture(f"p{i}", GREY) for i in range(190, 210)]
    said = AnswerBook(log).ask(model, pictures, questions)
    assert said == [f"a{i}" for i in range(190, 200)] + ["10"] * 10 and len(model.asked) == 10
    with log.open("ab") as file:
        file.write(b'{"model": "m", "pict')
    again = AnswerBook(log)
    assert again.ask(model, pictures, questions) == said and len(model.asked) == 10 and again.known == 210
    assert [json.loads(line)["answer"] for line in log.read_text().splitlines()[200:]] == ["10"] * 10


def test_the_index_is_none_of_a_stages_files(log):
    AnswerIndex(log)
    assert index_file(log).exists() and list(inventory.list_files(log.parent)) == ["answers.jsonl"]


def test_a_line_that_was_added_and_damaged_is_named_by_its_number(log):
    AnswerIndex(log)
    with log.open("ab") as file:
        file.write(b'{"model": "m"}\n')
    with pytest.raises(AuditError, match="line 201 has no"):
        AnswerIndex(log)
