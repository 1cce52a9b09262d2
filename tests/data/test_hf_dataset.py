"""A Hugging Face data set as a source of images, here as folders of parquet files, which go through the same loader."""

import io
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import datasets
import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, List
from PIL import Image

from auditkit.data import hf_dataset
from auditkit.data.hf_dataset import HUB_OPTIONS, parse_hub
from auditkit.data.load import load_images
from auditkit.data.source import SPLITS
from auditkit.errors import AuditError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder and a cache of the test's own, and no hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 255, (6, 8, 3), dtype=np.uint8))


def png(number: int) -> bytes:
    data = io.BytesIO()
    picture(number).save(data, "PNG")
    return data.getvalue()


def write(path, features=None, **columns):
    """A parquet file as `push_to_hub` writes it: its columns' features are in its schema."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = Dataset.from_dict(columns)
    kinds = {"image": datasets.Image(), "images": List(datasets.Image()), **(features or {})}
    for name in kinds.keys() & columns.keys():
        data = data.cast_column(name, kinds[name])
    data.to_parquet(str(path))


def people(*answers: str) -> list[dict]:
    return [{"answer": answer, "answer_confidence": "yes", "answer_id": i} for i, answer in enumerate(answers, 1)]


def vqa(path, numbers):
    """Like VQAv2: a row for each question, the picture in each of them, ten answers or so."""
    rows = [(n, kind) for n in numbers for kind in ("number", "other")]
    write(
        path,
        image=[{"bytes": png(n), "path": f"COCO_{n:012}.png"} for n, _ in rows],
        question=[f"What {kind} is in {n}?" for n, kind in rows],
        answer_type=[kind for _, kind in rows],
        answers=[people("some", f"{kind} {n}", f"{kind} {n}", "") for n, kind in rows],
    )


def test_a_row_for_each_question_is_one_picture_with_several(folder):
    vqa(folder / "set" / "train-00000-of-00002.parquet", range(40))
    vqa(folder / "set" / "train-00001-of-00002.parquet", range(40, 60))
    vqa(folder / "set" / "validation-00000-of-00001.parquet", range(55, 70))  # five of them are in train, too
    source = load_images("hub:set?skill=answer_type")
    splits = {split: {p.key for p in source.pictures(split, 100, 0)} for split in SPLITS}
    assert sum(map(len, splits.values())) == len(set().union(*splits.values())) == 70
    assert len(splits["test"]) == 15 and all(splits.values())
    assert (source.name, source.complete, source.unreadable) == ("set", False, [])

    for example in source.examples(1000, 0):
        number = int(example.question.split()[-1].rstrip("?"))
        assert example.answer == f"{example.question.split()[1]} {number}", "what most of the people said"
        assert example.key.split("/q")[0] in splits["train"] and number < 55
        for looked_at in (example, source.picture(example.key.split("/q")[0])):
            assert looked_at.image.tobytes() == picture(number).tobytes()
        assert source.truth(example.key.split("/q")[0], example.question.upper()) == example.answer
    benchmarks = source.benchmarks(12)
    assert {skill: len(rows) for skill, rows in benchmarks.items()} == {"number": 12, "other": 12}
    assert {e.key.split("/q")[0] for rows in benchmarks.values() for e in rows} <= splits["test"]
    assert source.truth(next(iter(splits["audit"])), "what else?") is None
    assert source.gap("any", "what?", []) is None and source.gaps(folder) == []


def test_pictures_keep_key_and_split_when_rows_come_and_go(folder):
    vqa(folder / "a" / "data.parquet", range(30))
    vqa(folder / "b" / "data.parquet", [*range(99, 90, -1), *range(29, -1, -1)])
    before, after = load_images("hub:a"), load_images("hub:b")
    keys = {p.key for p in before.pictures("audit", 100, 0)}
    assert keys and keys < {p.key for p in after.pictures("audit", 100, 0)}
    again = load_images("hub:a")
    assert [p.key for p in again.pictures("audit", 5, 3)] == [p.key for p in before.pictures("audit", 5, 3)]
    assert [e.key for e in again.examples(9, 0)] == [e.key for e in before.examples(9, 0)]


def test_turns_of_the_cauldron_and_finevision(folder):
    turns = [
        [{"user": f"<image>What is {n}?\nAnswer briefly.", "assistant": f"It is {n}.", "source": "vqav2"},
         {"user": "Why?", "assistant": "Because."}]
        for n in range(30)
    ]  # fmt: skip
    texts = [[{"user": t["user"], "assistant": t["assistant"]} for t in some] for some in turns]
    pictures = [[png(n)] for n in range(28)] + [[png(28), png(29)], []]
    write(folder / "set" / "train.parquet", images=pictures, texts=texts)
    source = load_images("hub:set")
    assert len(source._split) == 28, "rows with two pictures or none are left out"
    example = next(e for e in source.examples(1000, 0) if e.key.endswith("/q0"))
    number = int(example.answer.removeprefix("It is ").rstrip("."))
    assert example.question == f"What is {number}?\nAnswer briefly."
    assert example.image.tobytes() == picture(number).tobytes()
    assert source.benchmarks(100)["set"], "a fifth of the pictures is for testing where the set has no such split"


def test_pictures_and_questions_that_lie_apart_meet_by_the_picture_s_id(folder):
    """As in lmms-lab/GQA: one configuration of pictures, one of questions."""
    write(folder / "set/images/train.parquet", id=[f"n{n}" for n in range(30)], image=[png(n) for n in range(30)])
    asked = {"id": [f"q{i}" for i in range(90)], "imageId": [f"n{i % 45}" for i in range(90)]}
    asked |= {"question": [f"is it {i}?" for i in range(90)], "answer": [i % 2 == 0 for i in range(90)]}
    Dataset.from_dict(asked).to_parquet(str(folder / "set/questions/train.parquet"))
    (folder / "set" / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: pictures\n  data_files:\n  - split: train\n    path: images/*\n"
        "- config_name: instructions\n  data_files:\n  - split: train\n    path: questions/*\n---\n"
    )
    source = load_images("hub:set?config=pictures&questions=instructions")
    assert len(source._split) == 30 and len(source._rows) == 60, "fifteen ids name no picture"
    for example in source.examples(100, 0):
        number = int(example.question.split()[-1].rstrip("?"))
        assert example.answer == ("no" if number % 2 else "yes")
        assert example.image.tobytes() == picture(number % 45).tobytes()
    with pytest.raises(AuditError, match="choose one of its configurations .*pictures, instructions"):
        load_images("hub:set")
    with pytest.raises(AuditError, match="no such configuration; there are pictures, instructions"):
        load_images("hub:set?config=images")
    with pytest.raises(AuditError, match="no such configuration; there are pictures, instructions"):
        load_images("hub:set?config=pictures&questions=answers")


def test_classes_numbers_and_bytes_without_features(folder):
    names = ClassLabel(names=["cat", "dog"])
    labels = [n % 2 for n in range(20)]
    write(folder / "a" / "a.parquet", {"label": names}, image=[png(n) for n in range(20)], label=labels,
          question=["who is it?"] * 20)  # fmt: skip
    assert {e.answer for e in load_images("hub:a").examples(20, 0)} == {"cat", "dog"}
    photos = [{"bytes": png(n), "path": None} for n in range(20)]
    (folder / "b").mkdir()
    pd.DataFrame({"photo": photos, "query": "how many?", "n": range(20)}).to_parquet(folder / "b" / "b.parquet")
    source = load_images("hub:b?answer=n")
    assert {int(e.answer) for e in source.examples(20, 0)} <= set(range(20)) and source.picture(
        source.examples(1, 0)[0].key.split("/q")[0]
    ).image.size == (8, 6)
    with pytest.raises(AuditError, match="questions are in query, but where are the answers.*photo, query, n"):
        load_images("hub:b")
    bare = load_images("hub:b?question=")
    assert bare.examples(5, 0) == [] and bare.benchmarks(5) == {} and bare.pictures("audit", 3, 0)


def test_only_what_is_used_is_read(folder):
    """With a limit, files beyond it stay untouched, and so do splits that nobody asked for."""
    for number in range(3):
        vqa(folder / "set" / f"train-{number:05}-of-00003.parquet", range(10 * number, 10 * number + 10))
    vqa(folder / "set" / "test-00000-of-00001.parquet", range(90, 95))
    (folder / "set" / "train-00002-of-00003.parquet").write_bytes(b"never read")
    (folder / "set" / "test-00000-of-00001.parquet").write_bytes(b"never read")
    source = load_images("hub:set?test=&limit=30")
    assert len(source._split) == 15 and len(source._rows) == 30
    with pytest.raises(AuditError, match='its split "test" cannot be loaded'):
        load_images("hub:set?limit=30")
    with pytest.raises(AuditError, match='its split "train" cannot be loaded'):
        load_images("hub:set?test=")


def test_a_picture_that_cannot_be_decoded_is_skipped_and_counted(folder, capsys):
    write(folder / "set" / "a.parquet", image=[png(n) if n % 2 else png(n)[:60] for n in range(60)])
    source = load_images("hub:set")
    assert source.unreadable == [], "nothing is decoded until somebody looks"
    found = source.pictures("audit", 100, 0)
    assert found and source.unreadable and not {p.key for p in found} & set(source.unreadable)
    assert f"images: {source.unreadable[0]} of set cannot be read as an image" in capsys.readouterr().out


def test_what_is_not_there_is_named_with_what_is(folder):
    vqa(folder / "set" / "train.parquet", range(3))
    vqa(folder / "set" / "validation.parquet", range(3, 6))
    Dataset.from_dict({"question": ["what?"], "url": ["http://a.org/a.png"]}).to_parquet(folder / "bare.parquet")
    (folder / "bare").mkdir()
    (folder / "bare.parquet").rename(folder / "bare" / "a.parquet")
    (folder / "script").mkdir()
    (folder / "script" / "script.py").write_text("raise SystemExit('never run')")
    (folder / "empty").mkdir()
    for spec, says in {
        "hub:": "write a data set's id",
        "hub:set?splits=train": "there is no option splits; there are config, revision, train",
        "hub:set?limit=many": "limit is a number of rows, not 'many'",
        "hub:set?train=tarin": 'there is no split "tarin"; there are train, validation',
        "hub:set?test=train": '"train" cannot be both',
        "hub:set?image=photo": "no column photo; there are image, question, answer_type, answers",
        "hub:set?image=question": r"column question holds no images; its columns are .*question \(string\)",
        "hub:set?question=asked": "no column asked; there are",
        "hub:set?answer=said": "no column said; there are",
        "hub:set?skill=kind": "no column kind; there are",
        "hub:bare": r"it holds no images; its columns are question \(string\), url \(string\)",
        "hub:script": "needs a Python script of its own",
        "hub:empty": "holds no data files",
        "hub:./nothing": "there is no such folder",
        "hub:somebody/something": "the hub cannot be reached.*name the folder",
    }.items():
        with pytest.raises(AuditError, match=says) as error:
            load_images(spec)
        assert str(error.value).startswith(f'images: "{spec}": '), spec


@pytest.mark.parametrize("listens", [False, True])
def test_a_hub_that_is_not_there_or_says_nothing_is_told_in_seconds_and_asked_once(listens, monkeypatch):
    """A port of loopback where nobody listens, or where a connection is made and nothing comes."""
    monkeypatch.setattr(hf_dataset, "HUB_SECONDS", 1)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listens:
            silent.listen()
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(AuditError, match='images: "hub:some/thing": the hub cannot be reached .*name the folder'):
            load_images("hub:some/thing")
        assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (503, "", "the hub cannot be reached .*503"),
        (404, "", "the hub cannot be reached .*404"),  # something else answers, such as a proxy
        (404, "RepoNotFound", "there is no such data set on the hub, or it is private"),
        (401, "GatedRepo", "it is gated: accept its terms at https://huggingface.co/datasets/some/thing, then log in"),
        (403, "GatedRepo", "it is gated"),
        (404, "RevisionNotFound", "there is no revision v9"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(status, code, says, monkeypatch):
    """A server on loopback that answers as the hub does."""

    class Refuses(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD  # noqa: N815

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    try:
        with pytest.raises(AuditError, match=says):
            load_images("hub:some/thing?revision=v9")
    finally:
        server.shutdown()
        server.server_close()


def test_every_option_is_explained():
    assert set(parse_hub("hub:a/b?" + "&".join(f"{name}=1" for name in HUB_OPTIONS)).options) == set(HUB_OPTIONS)
