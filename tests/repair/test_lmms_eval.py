"""The sixteen benchmarks through lmms-eval's own evaluator, here on boards in its task format, by a shipped model."""

import importlib.util
import io
import json
import re
import shutil
import sys
from types import SimpleNamespace

import datasets
import pytest
import torch
import yaml
from PIL import Image

from auditkit.cli import main
from auditkit.errors import AuditError
from auditkit.miniature.boards import Boards
from auditkit.models.answers import AnswerBook
from auditkit.models.load import load_model
from auditkit.repair.lmms_eval import _manager, _side_by_side, _task, evaluate_tasks, paper_table, table_text
from auditkit.repair.paper import BENCHMARKS
from auditkit.repair.skills import evaluate_skills

needs = pytest.mark.skipif(
    importlib.util.find_spec("lmms_eval") is None,
    reason="lmms-eval is not here: pip install --no-deps -r .ci/lmms.txt",
)
UTILS = """
from auditkit.consensus.normalise import same_text

def look(doc):
    return [doc["image"].convert("RGB")]

def score(doc, results):
    return {"right": float(same_text(results[0], doc["answer"]))}

def points(doc, results):
    return {"points": {"score": 100 * same_text(results[0], doc["answer"])}}

def total(results):
    return sum(result["score"] for result in results)
"""
N = 24


@pytest.fixture(scope="module")
def boards():
    return {skill: Boards().benchmarks(N)[skill] for skill in ("counting", "colour")}


@pytest.fixture
def tasks(tmp_path, monkeypatch, boards):
    """A folder of tasks as lmms-eval wants them: one a skill, and one that adds points up."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "utils.py").write_text(UTILS)
    for skill, examples in boards.items():
        columns = {
            "image": [example.image for example in examples],
            "question": [example.question for example in examples],
            "answer": [example.answer for example in examples],
        }
        data = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
        data.to_parquet(tmp_path / f"{skill}.parquet")
        write(folder, f"boards_{skill}", tmp_path / f"{skill}.parquet", "right", "score", "mean")
    write(folder, "boards_points", tmp_path / "colour.parquet", "points", "points", "!function utils.total")
    return folder


def write(folder, name, data, metric, score, aggregation):
    text = yaml.safe_dump(
        {
            "task": name,
            "dataset_path": "parquet",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_visual": "!function utils.look",
            "doc_to_text": "{{question}}",
            "doc_to_target": "answer",
            "generation_kwargs": {"max_new_tokens": 8, "until": ["ASSISTANT:"]},
            "process_results": f"!function utils.{score}",
            "metric_list": [{"metric": metric, "aggregation": aggregation, "higher_is_better": True}],
            "metadata": [{"version": 0.0}],
        }
    )
    (folder / f"{name}.yaml").write_text(re.sub(r"'(!function [\w.]+)'", r"\1", text))


@needs
def test_the_score_is_the_one_that_auditkit_counts_itself(tasks, boards, tmp_path):
    target = load_model("miniature:target")
    target.batch_size = 5  # so that several chunks and batches are written
    names = [f"boards_{skill}" for skill in boards]
    found = evaluate_tasks(target, names, tmp_path / "out", include=tasks)
    own = evaluate_skills(target, boards, AnswerBook(tmp_path / "book.jsonl"))
    for skill in boards:
        result = found[f"boards_{skill}"]
        assert result["scores"] == [float(right) for right in own.right[skill]]
        assert (result["n"], result["metric"]) == (N, "right")
        assert result["value"] == pytest.approx(own[skill]["value"], abs=1e-4)
    assert {0.0, 1.0} <= {score for result in found.values() for score in result["scores"]}, "the test tells nothing"


@needs
def test_before_and_after_are_compared_on_pairs_and_kept(tasks, tmp_path, capsys, monkeypatch):
    before, after = load_model("miniature:target"), load_model("miniature:clean")
    names = ["boards_counting", "boards_colour", "boards_points"]
    first = evaluate_tasks(before, names, tmp_path / "before", include=tasks)
    second = evaluate_tasks(after, names, tmp_path / "after", include=tasks)
    rows = {row["benchmark"]: row for row in paper_table(first, second)}
    change = rows["boards_colour"]["change"]
    assert change["low"] <= change["value"] <= change["high"] and change["n"] == N
    assert change["value"] == pytest.approx(
        rows["boards_colour"]["after"]["value"] - rows["boards_colour"]["before"]["value"]
    )
    assert "p_holm" in rows["boards_colour"]
    points = rows["boards_points"]
    assert "change" not in points and "low" not in points["before"], "a sum has no interval of a mean"
    assert points["before"]["value"] == pytest.approx(rows["boards_colour"]["before"]["value"] * N * 100)

    monkeypatch.setattr(AnswerBook, "ask", None)  # whatever asks again fails
    assert evaluate_tasks(before, names, tmp_path / "before", include=tasks) == first
    with pytest.raises(AuditError, match="is of model target, not clean; give another --out"):
        evaluate_tasks(after, names, tmp_path / "before", include=tasks)
    with pytest.raises(AuditError, match="is of limit None, not 3"):
        evaluate_tasks(before, names, tmp_path / "before", limit=3, include=tasks)


@needs
def test_one_command_prints_the_table(tasks, tmp_path, capsys):
    command = ["benchmarks", "miniature:target", "--tasks", "boards_counting", "--limit", "8"]
    command += ["--include", str(tasks), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    said = capsys.readouterr().out
    kept = json.loads((tmp_path / "out" / "before" / "boards_counting.json").read_text())
    assert kept["n"] == 8 and kept["limit"] == 8
    assert f"boards_counting  8  {100 * kept['value']:.1f} (" in said
    assert main([*command[:3], "boards_countin", *command[4:]]) == 2
    assert "did you mean boards_counting?" in capsys.readouterr().err
    assert main([*command[:3], "vqav3", *command[4:]]) == 2
    assert "did you mean vqav2?" in capsys.readouterr().err


@needs
def test_after_is_the_model_with_the_adapter(tasks, tmp_path, capsys):
    from peft import LoraConfig, get_peft_model

    model = load_model("miniature:target").model
    lora = get_peft_model(model, LoraConfig(target_modules=r".*language_model.*\.(q_proj|v_proj)", r=4))
    with torch.no_grad():
        for name, weight in lora.named_parameters():
            if "lora_B" in name:
                weight.fill_(1.0)  # a repair that spoils the model
    lora.save_pretrained(tmp_path / "repair")
    command = ["benchmarks", "miniature:target", "--tasks", "boards_colour", "--include", str(tasks)]
    command += ["--adapter", str(tmp_path / "repair"), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    said = capsys.readouterr().out
    before, after = (
        json.loads((tmp_path / "out" / part / "boards_colour.json").read_text()) for part in ("before", "after")
    )
    assert before["model"] == "miniature:target"
    assert re.fullmatch(re.escape(f"miniature:target + {tmp_path / 'repair'}") + r" \([0-9a-f]{12}\)", after["model"])
    assert before["value"] - after["value"] > 0.5
    row = next(line for line in said.split("\n") if line.startswith("boards_colour"))
    file = tmp_path / "repair" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\0")
    assert main(command) == 2, "other weights in the same folder are another model"
    assert "give another --out" in capsys.readouterr().err
    assert f" {100 * (after['value'] - before['value']):.1f} (-" in row


@needs
def test_data_that_cannot_be_had_are_one_sentence(tasks, tmp_path, monkeypatch, capsys):
    from lmms_eval.api.task import ConfigurableTask

    monkeypatch.setattr(ConfigurableTask.download.retry, "sleep", lambda seconds: None)
    (tmp_path / "colour.parquet").unlink()
    command = ["benchmarks", "miniature:target", "--tasks", "boards_colour", "--include", str(tasks), "--out", "out"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and 'the data of "boards_colour" could not be loaded' in said and "network" in said


@needs
def test_answers_outlive_a_scorer_that_fails_and_the_other_tasks_go_on(tasks, tmp_path, capsys):
    scorer = tasks / "utils.py"
    scorer.write_text(UTILS.replace("return sum(", "import java_is_not_here\n    return sum("))
    command = ["benchmarks", "miniature:target", "--tasks", "boards_points,boards_colour", "--limit", "9"]
    command += ["--include", str(tasks), "--out", str(tmp_path / "out")]
    assert main(command) == 2
    said = capsys.readouterr()
    assert "boards_colour  9  " in said.out and "boards_points is not done:" in said.out
    assert "could not be finished (ModuleNotFoundError: No module named 'java_is_not_here')" in said.out
    assert said.err.split("\n")[-2].startswith("auditkit: 1 of 2 benchmarks could not be done")
    kept = next((tmp_path / "out" / "before").glob("boards_points.*.answers.jsonl"))
    answers = kept.read_text()
    assert answers.count("\n") == 9

    scorer.write_text(UTILS)
    assert main(command) == 0
    assert kept.read_text() == answers, "asked again"
    assert "boards_points  9  " in capsys.readouterr().out


@needs
def test_answers_drawn_at_random_are_refused(tasks, tmp_path):
    file = tasks / "boards_colour.yaml"
    file.write_text(file.read_text().replace("max_new_tokens: 8", "max_new_tokens: 8\n  temperature: 0.7"))
    with pytest.raises(AuditError, match='"boards_colour" wants its answers drawn at random'):
        evaluate_tasks(load_model("miniature:target"), ["boards_colour"], tmp_path / "out", include=tasks)


HALF = 4  # of the answers to 2 * HALF questions are right
A_PICTURE = Image.new("RGB", (24, 24), "red")


def documents(name):
    """2 * HALF rows of the columns that a benchmark's published data have, as far as its task reads them, and what is
    right: (rows by split, right answers, wrong answers)."""
    count = range(2 * HALF)
    rows = [{"image": A_PICTURE, "question": f"item {i} ?", "question_id": str(i), "answer": "red"} for i in count]
    right, wrong = ["red"] * len(rows), ["blue"] * len(rows)
    letters = {"A": "red", "B": "blue", "C": "green", "D": "black"}
    if name == "vqav2":
        answers = [{"answer": "red", "answer_confidence": "yes", "answer_id": k} for k in range(10)]
        return {"validation": [row | {"answers": answers} for row in rows]}, right, wrong
    if name == "gqa":
        return (
            {"testdev": [{"imageId": "7", "question": row["question"], "answer": "red"} for row in rows]},
            right,
            wrong,
        )
    if name == "okvqa":
        return {"val2014": [row | {"answers": ["red"] * 10} for row in rows]}, right, wrong
    if name == "docvqa":
        rows = [row | {"answers": ["red"], "questionId": str(i)} for i, row in enumerate(rows)]
        return {"validation": rows}, right, wrong
    if name == "chartqa":
        return {"test": [row | {"type": "human_test"} for row in rows]}, right, wrong
    if name == "refcoco":
        rows = [row | {"answer": [f"item {i} ?"], "bbox": [6.0, 6.0, 12.0, 12.0]} for i, row in enumerate(rows)]
        return {"val": rows}, ["[0.25, 0.25, 0.75, 0.75]"] * len(rows), wrong
    if name in ("mme", "pope"):  # two questions on a picture, the answers are yes and no
        right = [("yes", "no")[i % 2] for i in count]
        wrong = [("no", "yes")[i % 2] for i in count]
        rows = [
            row | {"answer": said, "question_id": str(i // 2)}
            for i, (row, said) in enumerate(zip(rows, right, strict=True))
        ]
        return {"test": [row | {"category": "color", "id": row["question_id"]} for row in rows]}, right, wrong
    right, wrong = ["B"] * len(rows), ["C"] * len(rows)
    rows = [row | {"answer": "B", "index": i} for i, row in enumerate(rows)]
    if name == "ai2d":
        return {"test": [row | {"answer": "1", "options": list(letters.values())} for row in rows]}, right, wrong
    if name == "mmbench":
        more = letters | {"hint": "nan", "category": "colour", "L2-category": "finer", "source": "s", "split": "dev"}
        return {"dev": [row | more for row in rows]}, right, wrong
    if name == "mmtbench":
        more = letters | {"split": "VAL", "category": "colour", "l2-category": "finer"}
        return {"val": [row | more for row in rows]}, right, wrong
    if name == "seed":
        choices = {f"choice_{letter.lower()}": text for letter, text in letters.items()}
        rows = [row | choices | {"image": [A_PICTURE], "data_type": "image"} for row in rows]
        film = rows[0] | {"image": [A_PICTURE] * 3, "data_type": "video", "question": "item 99 ?"}
        return {"test": [*rows, film]}, right, wrong
    if name == "mmmu":
        more = {f"image_{k}": A_PICTURE if k < 3 else None for k in range(1, 8)}
        more |= {"options": str(list(letters.values())), "question_type": "multiple-choice"}
        ids = [{"id": f"validation_Art_{i}", "question": f"item {i} ? <image 1> <image 2>"} for i in count]
        return {"validation": [row | more | own for row, own in zip(rows, ids, strict=True)]}, right, wrong
    if name == "mmstar":
        return {"val": [row | {"category": "math", "l2_category": "finer"} for row in rows]}, right, wrong
    assert name == "realworldqa"
    return {"test": rows}, right, wrong


class Scripted:
    """Writes the right answer to the first half of the questions."""

    name, batch_size = "scripted", 3

    def __init__(self, right, wrong):
        self.answers = right[:HALF] + wrong[HALF:]

    def write(self, images, prompts, max_new_tokens, temperature=0.0):
        assert all(isinstance(image, Image.Image) for image in images)
        numbers = [int(re.search(r"item (\d+)", prompt)[1]) for prompt in prompts]
        return [self.answers[number] if number < len(self.answers) else "D" for number in numbers]


@needs
@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "cococap"])
def test_each_task_reads_its_data_and_scores_in_the_papers_unit(name, tmp_path, monkeypatch):
    """lmms-eval's own prompt, picture, score and sum of every benchmark, on rows of its form in place of the hub's."""
    if name == "mmmu":
        pytest.importorskip("openai", reason="lmms-eval's MMMU imports it")
    splits, right, wrong = documents(name)

    def load_dataset(path, name=None, split=None, **_):
        if name == "testdev_balanced_images":
            return datasets.Dataset.from_list([{"id": "7", "image": A_PICTURE}])
        return datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split, rows in splits.items()})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    found = evaluate_tasks(Scripted(right, wrong), [name], tmp_path / "out")
    (row,) = paper_table(found, found)
    assert (row["n"], row["before"]["value"]) == (2 * HALF, pytest.approx(100.0 if name == "mme" else 50.0))
    # of 200 points a picture, two pictures have all and two have none; the other figures are means over the answers
    assert ("low" in row["before"]) == ("change" in row) == (name not in ("mme", "pope", "mmbench"))


@needs
@pytest.mark.skipif(not shutil.which("java"), reason="the scorer of captions needs Java")
def test_captions_are_fetched_and_scored(tmp_path, monkeypatch):
    pytest.importorskip("pycocoevalcap")
    things = [
        "a red bus on a wide street",
        "two cats asleep in the sun",
        "an old clock over a door",
        "a man with a kite",
    ]
    rows = [
        {
            "url": f"https://example.org/{i}.png",
            "filename": f"COCO_val2014_{i:012}.jpg",
            "sentences": [thing, f"this is {thing}"],
            "imgid": i,
        }
        for i, thing in enumerate(things)
    ]
    file = io.BytesIO()
    A_PICTURE.save(file, "PNG")
    data = datasets.DatasetDict(validation=datasets.Dataset.from_list(rows))
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **_: data)
    monkeypatch.setattr("requests.get", lambda url, **_: SimpleNamespace(content=file.getvalue()))
    monkeypatch.chdir(tmp_path)
    said = iter([*things[:2], "a green field", "a green field"])
    model = SimpleNamespace(name="m", batch_size=4, write=lambda images, *_: [next(said) for _ in images])
    found = evaluate_tasks(model, ["cococap"], tmp_path / "out")["cococap"]
    assert found["n"] == 4 and 1 < found["value"] < 5, "CIDEr goes up to 10, and half of these are right"
    assert found["scores"] is None


@needs
def test_lmms_eval_has_every_task_and_its_metric():
    from lmms_eval import utils

    manager = _manager(None)
    for name, row in BENCHMARKS.items():
        file = manager.task_index[_task(name, manager)]["yaml_path"]
        config = utils.load_yaml_config(file, mode="simple")
        assert row.metric in [metric["metric"].strip() for metric in config["metric_list"]], name
        assert config.get("output_type", "generate_until") == "generate_until", name


def test_the_paper_has_sixteen_and_its_gains():
    assert len(BENCHMARKS) == len({b.title for b in BENCHMARKS.values()}) == 16
    gains = {name: round(b.audited - b.base, 1) for name, b in BENCHMARKS.items()}
    assert min(gains.values()) > 0, "the paper reports a gain on every one"
    assert (gains["ai2d"], gains["vqav2"], gains["mmbench"], gains["mme"]) == (9.3, 1.9, 7.4, 74.3)


def test_the_table_stands_beside_the_papers_figures():
    result = {"n": 4, "scores": [1.0, 0.0, 1.0, 1.0], "keys": [0, 1, 2, 3], "value": 0.75}
    points = {"n": 4, "scores": None, "keys": [0, 1, 2, 3], "value": 1400.0}
    rows = paper_table({"gqa": result, "mme": points}, {"gqa": result, "mme": points})
    assert rows[0]["before"]["value"] == 75.0 and rows[1]["after"] == {"value": 1400.0, "n": 4}
    assert rows[0]["change"]["value"] == 0.0 and rows[0]["p_holm"] == 1.0
    text = table_text(rows)
    heads, gqa, mme = text.split("\n")[:3]
    assert heads.split()[0] == "benchmark" and gqa.endswith("68.1      71.1     68.3     68.3")
    assert mme.split()[-4:] == ["1376.0", "1450.3", "1517.3", "1526.6"]
    assert "GQA: gqa, testdev, balanced." in text


def test_without_lmms_eval_one_sentence_says_how_to_get_it(monkeypatch, capsys):
    _manager.cache_clear()
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    monkeypatch.setitem(sys.modules, "lmms_eval.evaluator", None)
    assert main(["benchmarks", "miniature:target"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "the benchmarks need lmms-eval" in said and "pip install" in said


def test_several_pictures_become_one():
    tall, wide = Image.new("RGB", (10, 40), "red"), Image.new("L", (20, 20), 255)
    whole = _side_by_side([tall, wide])
    assert whole.size == (50, 40) and whole.getpixel((5, 5)) == (255, 0, 0) and whole.getpixel((30, 5)) == (255,) * 3
    assert _side_by_side([]) is None
    with pytest.raises(AuditError, match="shows its models a str"):
        _side_by_side(["video.mp4"])
