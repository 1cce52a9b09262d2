"""A folder of images: splits that never meet, labels that speak of what they know, and bad files that are named."""

import json

import pytest
from PIL import Image

from auditkit.data.folder import ImageFolder
from auditkit.data.load import load_images
from auditkit.data.source import ENOUGH, SPLITS, Picture
from auditkit.errors import AuditError


def save(folder, name, colour=(200, 30, 30), size=(8, 6), **options):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


def write(folder, *rows):
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path):
    """60 training pictures with two questions each, 12 test pictures with one, 5 without any."""
    rows = []
    for i in range(60):
        save(tmp_path, f"train/q{i}.png", colour=(i, 0, 0))
        row = {"image": f"train/q{i}.png", "answer": i, "split": "train"}
        rows += [{**row, "question": "what is a?"}, {**row, "question": "what is b?"}]
    for i in range(12):
        save(tmp_path, f"test/q{i}.png", colour=(0, i, 0))
        skill = "counting" if i % 2 else "colour"
        rows.append(
            {"image": f"test/q{i}.png", "question": "How many?", "answer": str(i), "split": "test", "skill": skill}
        )
    for i in range(5):
        save(tmp_path, f"more/{i}.png", colour=(0, 0, i))
    write(tmp_path, *rows)
    return tmp_path


def keys(pictures):
    return {picture.key for picture in pictures}


def test_splits_are_disjoint_complete_and_deterministic(folder, capsys):
    splits = {split: keys(ImageFolder(folder).pictures(split, 1000, seed=1)) for split in SPLITS}
    assert 'images: 1000 pictures asked for "test", only ' in capsys.readouterr().out
    assert sum(map(len, splits.values())) == len(set().union(*splits.values())) == 77
    assert {f"test:q{i}.png" for i in range(12)} <= splits["test"]
    assert not any(key.startswith("test:") for key in splits["train"] | splits["audit"] | splits["baseline"])
    assert all(splits.values())
    again = ImageFolder(folder).pictures("audit", 5, seed=3)
    assert [p.key for p in again] == [p.key for p in ImageFolder(folder).pictures("audit", 5, seed=3)]
    assert [p.key for p in again] != [p.key for p in ImageFolder(folder).pictures("audit", 5, seed=4)]


def test_new_files_leave_the_splits_of_the_others_alone(folder):
    before = keys(ImageFolder(folder).pictures("audit", 1000, seed=0))
    save(folder, "aaa/new.png")
    assert before <= keys(ImageFolder(folder).pictures("audit", 1000, seed=0)) <= before | {"aaa:new.png"}


def test_examples_come_from_training_pictures_and_benchmarks_from_test_pictures(folder):
    source = load_images(str(folder))
    train = keys(source.pictures("train", 1000, seed=0))
    examples = source.examples(20, seed=0)
    assert len(examples) == len({e.key for e in examples}) == 20
    assert {e.key.split("/q")[0] for e in examples} <= train
    benchmarks = source.benchmarks(4)
    assert list(benchmarks) == ["colour", "counting"] and all(len(rows) == 4 for rows in benchmarks.values())
    assert all(e.key.startswith("test:") for rows in benchmarks.values() for e in rows)
    assert benchmarks == load_images(str(folder)).benchmarks(4)
    for example in examples:
        picture = source.picture(example.key.split("/q")[0])
        assert picture.image.tobytes() == example.image.tobytes()
        assert source.truth(picture.key, example.question) == example.answer


def test_truth_is_the_files_answer_to_that_question_on_that_picture_or_unknown(folder):
    source = ImageFolder(folder)
    assert source.truth("train:q7.png", " What is A ?") == "7"
    assert source.truth("train:q7.png", "what is c?") is None
    assert source.truth("more:1.png", "what is a?") is None
    assert source.complete is False and source.gap("train:q7.png", "what is a?", []) is None
    assert source.gaps(folder) == []


def test_a_folder_without_questions_still_gives_pictures(tmp_path):
    for i in range(40):
        save(tmp_path, f"{i}.jpg")
    source = ImageFolder(tmp_path)
    assert len(source.pictures("audit", 5, seed=0)) == 5
    assert source.examples(5, seed=0) == [] and source.benchmarks(5) == {}


def test_images_are_turned_upright_and_made_rgb(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera turned
    save(tmp_path, "turned.jpg", size=(8, 6), exif=exif)
    odd = {"grey.png": "LA", "clear.png": "RGBA", "palette.gif": "P", "print.jpg": "CMYK", "deep.png": "I;16"}
    for name, mode in odd.items():
        Image.new(mode, (4, 4)).save(tmp_path / name)
    source = ImageFolder(tmp_path)
    assert source.picture("turned.jpg").image.size == (6, 8)
    assert {name: source.picture(name).image.mode for name in odd} == dict.fromkeys(odd, "RGB")


def test_a_picture_is_read_when_it_is_looked_at(folder):
    """So that twenty thousand photographs need no memory; what disappears meanwhile is named."""
    source = ImageFolder(folder)
    (picture,) = source.pictures("train", 1, seed=0)
    (example,) = source.examples(1, seed=0)
    assert callable(picture.held) and picture.image is not picture.image
    assert Picture("a", example.image).image.size == (8, 6)
    for path in folder.rglob("*.png"):
        path.unlink()
    for look in (picture, example, source.picture(picture.key)):
        with pytest.raises(AuditError, match=r"q\d+.png cannot be read as an image \(.*No such file"):
            look.image  # noqa: B018


def test_unreadable_images_are_counted_named_and_skipped(folder, capsys):
    for path in folder.glob("train/*.png"):
        if path.stem != "q3" and path.stem < "q4":
            path.write_bytes(path.read_bytes()[:40])
    source = ImageFolder(folder)
    found = source.pictures("train", 1000, seed=0)
    said = capsys.readouterr().out
    for key in source.unreadable:
        assert (
            f"{folder / key.replace(':', '/')} cannot be read as an image (no format Pillow knows); skipped.\n" in said
        )
    assert found and source.unreadable and not keys(found) & set(source.unreadable)
    before = list(source.unreadable)
    assert keys(source.pictures("train", 1000, seed=1)) == keys(found) and source.unreadable == before
    for path in folder.rglob("*.png"):
        path.write_bytes(b"not an image")
    with pytest.raises(AuditError, match='none of the 29 pictures of .* for "train" can be read'):
        ImageFolder(folder).pictures("train", 3, seed=0)
    with pytest.raises(AuditError, match="none of the labelled images"):
        ImageFolder(folder).benchmarks(3)


def test_names_that_are_no_utf8_or_hold_escapes_are_keys_that_can_be_stored_and_shown(tmp_path, capsys):
    import os

    from auditkit.runs import jsonl

    names = [b"gr\xfcn.png", b"\x1b[31mred.png", b"x\x07\n.png", "\u202egnp.exe.png".encode(), b"plain.png"]
    for i, name in enumerate(names):
        save(tmp_path, f"{i}.png", colour=(i, 0, 0))
        os.rename(tmp_path / f"{i}.png", os.path.join(os.fsencode(tmp_path), name))
    (tmp_path / "broken\x1b[31m.png").write_text("no picture")
    write(
        tmp_path, {"image": "\x1b[31mred.png", "question": "what is it?", "answer": "red"},
        {"image": "plain.png", "question": "half \ud83d?", "answer": "\ud83d", "skill": "co\x1b[31mlour"},
    )  # fmt: skip
    images = ImageFolder(tmp_path)
    rows = [{"key": key} for key in sorted(images._paths)]
    jsonl.append(tmp_path / "out" / "records.jsonl", rows)
    assert jsonl.read(tmp_path / "out" / "records.jsonl") == rows
    shown = {
        r"\x1b[31mred.png",
        r"\u202egnp.exe.png",
        r"gr\udcfcn.png",
        r"x\x07\x0a.png",
        r"broken\x1b[31m.png",
        "plain.png",
    }
    assert {row["key"] for row in rows} == shown
    assert images.picture(r"gr\udcfcn.png").image.size == (8, 6)
    assert images.truth(r"\x1b[31mred.png", "what is it?") == "red"
    assert images.truth("plain.png", r"half \ud83d?") == r"\ud83d"
    assert {row.skill for row in images._rows} == {tmp_path.name, r"co\x1b[31mlour"}
    for split in ("train", "audit"):
        images.pictures(split, 6, seed=1)
    said = capsys.readouterr().out
    assert (
        r"1 questions of" in said and r"half \\ud83d" in said and "\x1b" not in said and r"broken\x1b[31m.png" in said
    )


def test_a_folder_too_small_for_a_split_says_how_many_pictures_it_needs(tmp_path):
    for i in range(3):
        save(tmp_path, f"{i}.png")
    source = ImageFolder(tmp_path)
    empty = [split for split in SPLITS if split not in source._split.values()]
    with pytest.raises(AuditError, match=f'the split "{empty[0]}" of .* is empty .*give {ENOUGH} or more'):
        source.pictures(empty[0], 5, seed=0)
    for i in range(100):
        save(tmp_path, f"{i}.png")
    write(tmp_path, *({"image": f"{i}.png", "question": "a?", "answer": "b", "split": "train"} for i in range(100)))
    with pytest.raises(AuditError, match='"test" of .* is empty .*leave the split out'):
        ImageFolder(tmp_path).pictures("test", 5, seed=0)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"image": "a.png", "question": "what?"}', "line 1"),
        ("not json", "line 1"),
        ('{"image": "b.png", "question": "what?", "answer": "x"}', "no image b.png"),
        ('{"image": "a.png", "question": "what?", "answer": "x", "split": "val"}', 'not "val"'),
        ('{"image": "a.png", "question": " ", "answer": "x"}', "question must be"),
        ('{"image": "a.png", "question": "what?", "answer": null}', "line 1: the answer must be a text, not null"),
        ('{"image": "a.png", "question": "what?", "answer": ["x"]}', r'answer must be a text, not \["x"\]'),
        ('{"image": "a.png", "question": "what?", "answer": true}', "answer must be a text, not true"),
        (
            '{"image": "a.png", "question": "what?", "answer": "x", "skill": 3}',
            "line 1: the skill must be a text, not 3",
        ),
        ('{"image": ["a.png"], "question": "what?", "answer": "x"}', "the image must be a text"),
        ('["a.png", "what?", "x"]', "line 1"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, says):
    save(tmp_path, "a.png")
    (tmp_path / "questions.jsonl").write_text(line + "\n")
    with pytest.raises(AuditError, match=says):
        ImageFolder(tmp_path)


def test_a_file_of_another_encoding_is_named_with_its_line(tmp_path):
    save(tmp_path, "a.png")
    row = '{"image": "a.png", "question": "%s?", "answer": "x"}\n'
    (tmp_path / "questions.jsonl").write_bytes((row % "what" + row % "où").encode("latin-1"))
    with pytest.raises(AuditError, match="questions.jsonl, line 2: this is not UTF-8"):
        ImageFolder(tmp_path)
    (tmp_path / "questions.jsonl").write_text(row % "où\u2028va", encoding="utf-8-sig")  # as some editors save it
    assert ImageFolder(tmp_path).truth("a.png", "où va?") == "x"


def test_an_image_cannot_be_in_train_and_test(tmp_path):
    save(tmp_path, "a.png")
    row = {"image": "a.png", "question": "what?", "answer": "x"}
    write(tmp_path, {**row, "split": "train"}, {**row, "split": "test"})
    with pytest.raises(AuditError, match="train and in test"):
        ImageFolder(tmp_path)


def test_missing_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(AuditError, match="neither"):
        load_images(str(tmp_path / "nothing"))
    with pytest.raises(AuditError, match="no image"):
        load_images(str(tmp_path))


def test_the_board_world_keeps_the_same_promises():
    source = load_images("miniature")
    splits = {split: source.pictures(split, 4, seed=0) for split in SPLITS}
    assert len(set().union(*map(keys, splits.values()))) == 16
    first = splits["audit"][0]
    assert source.picture(first.key).image.tobytes() == first.image.tobytes()
    example = source.examples(1, seed=0)[0]
    assert source.truth(example.key.split("/q")[0], example.question) == example.answer
    assert source.complete and source.truth(first.key, "who painted this?") is None
