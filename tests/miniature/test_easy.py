"""easy-VQA as a plain folder with its official split, and the models trained on it: as good and as bad as intended."""

import json
import random
from collections import Counter

import pytest

from auditkit.auditor.write import propose_questions
from auditkit.consensus.normalise import same_text
from auditkit.data.folder import ImageFolder
from auditkit.data.load import load_images
from auditkit.data.source import SPLITS
from auditkit.errors import AuditError
from auditkit.miniature import easy, shipped
from auditkit.models.base import answer_questions
from auditkit.models.load import load_model
from auditkit.params import load_params

easy_vqa = pytest.importorskip("easy_vqa")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return easy.export(tmp_path_factory.mktemp("easy"))


@pytest.fixture(scope="module")
def source(folder):
    return ImageFolder(folder)


@pytest.fixture(scope="module")
def examples(source):
    """300 questions of the official test split, drawn alike from all of them."""
    found = [example for rows in source.benchmarks(10**6).values() for example in rows]
    assert len(found) == 9673
    return random.Random(0).sample(found, 300)


def rows_of(folder):
    return [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]


def test_everything_is_exported_with_its_official_split(folder):
    rows = rows_of(folder)
    assert Counter(row["split"] for row in rows) == {"train": 38575, "test": 9673}
    files = {path.relative_to(folder).as_posix() for path in folder.glob("images/*.png")}
    assert len(files) == 5000 and files == {row["image"] for row in rows}
    for split in ("train", "test"):
        questions, answers, numbers = getattr(easy_vqa, f"get_{split}_questions")()
        ours = [row for row in rows if row["split"] == split]
        assert [(row["question"], row["answer"]) for row in ours] == list(zip(questions, answers, strict=True))
        assert [int(row["image"].split("-")[1][:4]) for row in ours] == numbers
        paths = getattr(easy_vqa, f"get_{split}_image_paths")()
        number, path = sorted(paths.items())[7]
        with open(path, "rb") as theirs:
            assert (folder / "images" / f"{split}-{number:04}.png").read_bytes() == theirs.read()


def test_no_test_picture_is_ever_trained_on(folder, source):
    test = {row["image"].replace("/", ":") for row in rows_of(folder) if row["split"] == "test"}
    assert len(test) == 1000
    dealt = {split: {p.key for p in source.pictures(split, 10**4, 0)} for split in SPLITS}
    assert dealt["test"] == test
    learnt = source.examples(10**6, 0)
    assert {e.key.split("/q")[0] for e in learnt} == dealt["train"]
    book = easy.Book(learnt)
    images_of = {e.key.split("/q")[0]: e.image.tobytes() for rows in source.benchmarks(10**6).values() for e in rows}
    assert not {page.image.tobytes() for page in book.pages} & set(images_of.values())


def test_exporting_again_does_nothing_and_mends_an_interruption(folder):
    before = (folder / "questions.jsonl").stat().st_mtime_ns
    assert easy.export(folder) == folder and (folder / "questions.jsonl").stat().st_mtime_ns == before
    (folder / easy.MANIFEST).unlink()  # as if it had been killed half way
    (folder / "images" / "train-0003.png").unlink()
    easy.export(folder)
    assert len(list(folder.glob("images/*.png"))) == 5000 and (folder / easy.MANIFEST).is_file()


def test_lessons_agree_with_the_official_answers(source):
    book = easy.Book(source.examples(10**6, 0))
    assert [len(names) for names in book.labels] == [3, 8] and len(book.answers) == 24
    for page in book.pages:
        for question, answer in page.rows:
            assert (question, answer) in book.answers[page.fact][easy.kind(question, answer)]
    for kinds in book.answers.values():  # nowhere two answers to one question
        pairs = [pair for rows in kinds.values() for pair in rows]
        assert len(pairs) == len({question for question, _ in pairs})
    lesson = easy.Task(book, easy.RECIPES["easy_auditor"])(random.Random(0), 0.99)
    written = Counter(skill for skills in lesson.skills for skill in skills)["write"]
    assert lesson.cells.shape == (len(lesson.images), 16, 6) and 0.2 < written / len(lesson.chats) < 0.8


def test_a_moved_shape_stays_whole(source):
    book, rng = easy.Book(source.examples(2000, 0)), random.Random(0)
    for page in book.pages[:50]:
        if page.box[0] > 0 and page.box[2] > 0:
            assert easy._shape(page.moved(rng)).sum() == easy._shape(page.image).sum()


BANDS = {
    "easy_target": (0.72, 0.90),
    "easy_peer": (0.90, 0.985),
    "easy_gemma3": (0.96, 1.0),
    "easy_idefics3": (0.96, 1.0),
    "easy_llava": (0.96, 1.0),
}  # the bands aimed at (0.75-0.88, 0.93-0.97, 0.97-1), widened by what 300 questions leave open


def need(name: str) -> None:
    if not (shipped.WEIGHTS / name).is_dir():
        pytest.skip(f"{name} is not shipped yet; auditkit.miniature.easy.build_one makes it")


@pytest.mark.parametrize("name", BANDS)
def test_shipped_models_are_as_good_as_they_should_be(name, examples):
    need(name)
    model = load_model(f"miniature:{name}", device="cpu")
    said = answer_questions(model, [e.image for e in examples], [e.question for e in examples])
    right = sum(same_text(a, e.answer) for a, e in zip(said, examples, strict=True)) / len(examples)
    low, high = BANDS[name]
    assert low <= right <= high, right


def test_the_auditor_writes_questions_of_every_kind(source):
    need("easy_auditor")
    model = load_model("miniature:easy_auditor", device="cpu")
    probes = propose_questions(model, source.pictures("audit", 200, 0), 1.0, 48, seed=0)
    questions = [probe.question for probe in probes if probe.question]
    assert len(questions) >= 0.95 * len(probes)
    kinds = Counter(easy.kind(q, "yes" if q.split()[0] in ("is", "does") else "") for q in questions)
    assert len(kinds) == 6 and min(kinds.values()) >= 0.05 * len(questions), kinds


def test_the_parameter_file_is_sound_and_says_how_to_get_the_pictures(repository):
    assert load_params(repository / "params" / "easy_vqa.yaml").images == "data/easy_vqa"
    assert "auditkit miniature easy --out data/easy_vqa" in (repository / "params" / "easy_vqa.yaml").read_text()
    with pytest.raises(AuditError, match="nowhere.*parameter file"):
        load_images("nowhere")
