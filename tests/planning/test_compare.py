"""`auditkit bench --compare`: every way it times really answers, and what cannot be compared is told in a sentence."""

import contextlib
import json
import sys

import pytest
import tiny
import torch
import transformers as hf

from auditkit.cli import main
from auditkit.miniature import shipped
from auditkit.models import by_image
from auditkit.models.base import generate_texts
from auditkit.models.load import load_model
from auditkit.planning import bench, compare, compare_answers
from auditkit.planning.compare_answers import QUESTIONS, TOKENS, in_turns, lmms_runner, material, pipeline_loop

pytestmark = pytest.mark.skipif(
    not (shipped.WEIGHTS / "target").is_dir(), reason="the miniature models are not built yet"
)
SMALL = dict(images=2, many=(4, 8), grpo_images=2, group_size=2, batch_size=4, grpo_steps=2)


@pytest.fixture
def llava():
    model = load_model("miniature:llava", device="cpu")
    pictures, asked = material(model, 2, 2)
    return model, [picture.image for picture in pictures for _ in range(2)], asked


@pytest.fixture(scope="module")
def result(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    summary = {"findings": {"total": 50}, "seconds": {"04_auditor": 100.0, "05_audit": 20.0}}
    summary |= {"counts": {"05_audit": {"target_called": 200, "references_called": 600}}}
    summary |= {"hosted": {"large": {"calls": 600, "dollars": 2.5}}}
    (folder / "summary.json").write_text(json.dumps(summary))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(request.config.rootpath)
        found = compare.compare([str(tiny.save("gemma3", folder / "gemma3"))], 1, run=folder, **SMALL)
    bench.write_bench(found, folder / "compare.json")
    return json.loads((folder / "compare.json").read_text())


def test_every_comparison_has_as_many_repeats_as_asked_for_and_a_floor(result):
    assert result["repeats"] == 1 and result["peaks"]["flops"] > 1e8
    ways = [(row["way"], row["questions"]) for row in result["answers"]]
    assert ways[0] == ("the kit", 8) and ("a pipeline, one at a time", 8) in ways
    assert [pair for pair in ways if pair[0] == "whole"] == [("whole", n) for n in compare_answers.PER_IMAGE]
    assert [row["images"] for row in result["images"]] == [4, 8]
    steps = result["step"]["ways"]
    assert list(steps) == ["the kit", "the kit, each row whole", "stock TRL, one at a time"]
    for row in (*result["answers"], *result["images"], *steps.values()):
        assert len(row["seconds"]) == 1 and min(row["seconds"]) > 0
    for row in (*result["answers"], *result["images"]):
        assert 0 < row["floor"] < max(row["seconds"])
    kit, loop = result["answers"][:2]
    assert loop["ratio"] == pytest.approx([b / a for a, b in zip(kit["seconds"], loop["seconds"], strict=True)])
    assert steps["the kit"]["ratio"] == [1.0] and result["step"]["questions"] == 4


def test_the_table_has_a_line_for_each(result):
    text = compare.compare_table(result | {"skipped": ["one: has none"]})
    for words in ("a pipeline, one at a time", "stock TRL, one at a time", "ms an image", "near the floor"):
        assert words in text
    assert "of 50 findings, each" in text and text.endswith("skipped: one: has none")


def test_a_finding_costs_what_its_run_has_cost(result):
    audit, both, whole = result["findings"]
    assert audit["seconds"] == 0.4 and audit["target_calls"] == 4 and audit["references_calls"] == 12
    assert both["seconds"] == whole["seconds"] == 2.4
    assert whole["dollars"] == 0.05 and "dollars" not in audit


def test_a_pipeline_in_a_loop_says_what_the_kit_says(llava):
    model, images, asked = llava
    said = [text.strip() for text in pipeline_loop(model, images, asked)()]
    assert said == generate_texts(model, images, asked, TOKENS) and len(set(said)) > 1


def test_lmms_evals_own_runner_says_what_the_kit_says(llava):
    pytest.importorskip("lmms_eval", reason="pip install --no-deps -r .ci/lmms.txt")
    model, images, asked = llava
    with contextlib.ExitStack() as until_then:
        work, name = lmms_runner(model, "miniature:llava", until_then)
        said = work(images, asked)
    assert name == "lmms-eval 0.7.3, llava_hf, batches of 1" and "decord" not in sys.modules
    assert [text.strip() for text in said] == generate_texts(model, images, asked, TOKENS)


def test_without_lmms_eval_its_runner_is_skipped_aloud(llava, monkeypatch, capsys):
    model = llava[0]
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    found = {"skipped": [], "peaks": {"flops": 1e11, "bytes": 1e10}}
    rows = compare_answers.answers(model, "miniature:llava", 1, 1, found)
    assert [row["way"] for row in rows] == ["the kit", "a pipeline, one at a time"]
    assert (
        "pip install --no-deps -r .ci/lmms.txt" in found["skipped"][0]
        and found["skipped"][0] in capsys.readouterr().out
    )


def test_questions_about_an_image_are_its_own_and_all_different(llava):
    pictures, asked = material(llava[0], 3, QUESTIONS)
    assert len({picture.key for picture in pictures}) == 3
    for i in range(3):
        assert len(set(asked[i * QUESTIONS : (i + 1) * QUESTIONS])) == QUESTIONS


def test_with_rows_read_whole_nothing_is_shared_and_the_answers_are_the_same(llava, monkeypatch):
    model, images, asked = llava
    begun, begin = [], by_image._begin
    monkeypatch.setattr(by_image, "_begin", lambda *rows: begun.append(1) or begin(*rows))
    shared = generate_texts(model, images, asked, TOKENS)
    assert begun
    begun.clear()
    with bench.whole_rows():
        assert generate_texts(model, images, asked, TOKENS) == shared and not begun
    assert by_image.why_unshared(model, 0) == ""


def test_ways_take_turns_and_the_first_of_each_is_not_counted():
    order: list[str] = []
    spent = in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b") or 7.0}, 2, "cpu")
    assert order == ["a", "b"] * 3 and spent["b"] == [7.0, 7.0] and len(spent["a"]) == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--compare", "--models", "miniature:nobody"], "nobody"),
        (["--compare", "--models", "http://localhost:9/v1#org/large"], "transformers runs here"),
        (["--compare", "--models", "TEXT"], "does not read images"),
        (["--compare", "--models", ","], "--models names no model"),
        (["--compare", "--models", "gemma3-27b"], "no GPU is here"),
        (["--compare", "--repeats", "0"], "'0' is not a whole number above 0"),
        (["--compare", "--run", "outputs/nobody"], "there is no summary.json"),
        (["--repeats", "3"], "--repeats and --run go with bench --compare"),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence, repository, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(repository)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if "TEXT" in arguments:
        hf.GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=16).save_pretrained(tmp_path)
        arguments = [str(tmp_path) if word == "TEXT" else word for word in arguments]
    assert main(["bench", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("auditkit: ") and sentence in said and said.count("\n") == 1


def test_a_run_without_findings_has_no_cost_of_one(tmp_path, repository, monkeypatch, capsys):
    monkeypatch.chdir(repository)
    (tmp_path / "summary.json").write_text('{"findings": {"total": 0}, "seconds": {"05_audit": 3}}')
    assert main(["bench", "--compare", "--run", str(tmp_path)]) == 2
    assert "tells of no finding" in capsys.readouterr().err
