"""`auditkit bench`, at toy size on whatever is here: the same code that measures a GPU."""

import json

import pytest
import torch

from auditkit.cli import main
from auditkit.errors import AuditError
from auditkit.models import processors
from auditkit.models.base import answer_questions
from auditkit.models.transformers import VLM
from auditkit.params import load_params
from auditkit.planning import sizes
from auditkit.planning.bench import (
    BENCH_FILE,
    PARTS,
    REFERENCE,
    Clock,
    bench_table,
    fitted,
    made_up_questions,
    noise_pictures,
    run_bench,
)
from auditkit.planning.random_models import RANDOM_MODELS, build_processor, build_random_model


@pytest.fixture(scope="module")
def result(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "bench.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(request.config.rootpath)
        assert main(["bench", "--tiny", "--out", str(out)]) == 0
    return json.loads(out.read_text())


def test_it_says_what_it_ran_on(result):
    assert result["tiny"] is True and result["cuda"] is torch.cuda.is_available()
    assert result["cuda"] or result["device"].startswith("CPU (")
    assert result["peaks"]["flops"] > 1e8 and result["peaks"]["bytes"] > 1e8
    text = bench_table(result)
    assert "toy size" in text and "floor" in text
    assert result["cuda"] or ("Memory: not measured on a CPU" in text and "peak" not in text)


def test_answers_of_both_families_are_timed_beside_their_floor(result):
    assert list(result["answers"]) == ["paligemma2-3b-448", "gemma3-4b"]
    for row in result["answers"].values():
        assert row["per_second"] == pytest.approx(row["rows"] / row["seconds"], rel=0.01)
        assert 0 < row["preparing"] < row["seconds"] and 0 < row["floor"] < row["seconds"]
        assert result["cuda"] or "peak" not in row


def test_questions_that_share_a_picture_are_timed_shared_and_whole(result):
    for name, row in result["answers"].items():
        by_image = row["by_image"]
        assert by_image["questions"] == 4 and 0 < by_image["floor"]  # as many as a batch has
        assert min(by_image[how]["per_second"] for how in ("shared", "whole")) > 0
        assert ("both directions" in by_image["why"]) == (name == "paligemma2-3b-448")
        assert by_image["floor"] < row["floor"]
    whole = result["step"]["whole_rows"]
    assert sum(whole[part] for part in PARTS) == pytest.approx(whole["whole"])
    text = bench_table(result)
    assert text.count("4 questions a picture: ") == 2 and "each row whole" in text


def test_the_parts_of_a_step_make_up_the_step(result):
    step = result["step"]
    spent = step["seconds"]
    assert step["rows"] == 4 and set(PARTS) < set(spent)
    assert sum(spent[part] for part in PARTS) == pytest.approx(spent["whole"])
    for part in ("generation", "plausibility", "answers", "loss", "backward"):  # each of them really happened
        assert spent[part] > 0 and step["floors"][part] > 0
    assert spent["judge"] > 0 and spent["rest"] > 0
    assert result["audit"]["rows"] == 4


def test_a_step_is_as_large_as_the_plan_allows(repository, monkeypatch):
    monkeypatch.chdir(repository)
    p = load_params(BENCH_FILE, memory="together", peer="", references=[RANDOM_MODELS[REFERENCE]])
    found = [fitted(p, gb * 1e9) for gb in (200, 70, 57, 24)]
    assert found[0].grpo_images == p.grpo_images > found[1].grpo_images > found[2].grpo_images
    assert found[3] is None


def test_nothing_stays_patched(result):
    from auditkit.auditor import grpo
    from auditkit.runs.probe import parse_question

    assert parse_question("w1 w2") is None
    assert Clock.timing.__qualname__ not in str(grpo.AuditorTrainer.training_step)


def test_a_real_size_needs_a_gpu(repository, monkeypatch):
    monkeypatch.chdir(repository)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(AuditError, match="no GPU is here: gemma3-4b takes one"):
        run_bench(["gemma3-4b"])
    with pytest.raises(AuditError, match="no such model"):
        run_bench(["gemma5"])


def test_a_model_of_ones_own_is_timed_too(repository, monkeypatch, capsys):
    monkeypatch.chdir(repository)
    found = run_bench(["miniature:target"])
    assert list(found["answers"]) == ["miniature:target"] and "step" not in found and found["tiny"] is False
    assert "answers of miniature:target ..." in capsys.readouterr().out
    assert "miniature:target: " in bench_table(found)


@pytest.mark.parametrize(("name", "tokens"), [("gemma3-4b", 256), ("paligemma2-3b", 1024)])
def test_processors_are_the_families_own_at_full_size(name, tokens):
    config = sizes.known(RANDOM_MODELS[name])
    processor = build_processor(config)
    picture, side = noise_pictures(1, 0)[0].image, config.vision_config.image_size
    question = made_up_questions(1)[0]
    text = processors.chat(VLM(name, None, processor), question)
    inputs = processor(text=[text], images=[[picture]], return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, side, side)
    assert (inputs["input_ids"] == config.image_token_id).sum() == tokens
    assert int(inputs["input_ids"].max()) < config.get_text_config().vocab_size
    ids = processor.tokenizer(question, add_special_tokens=False)["input_ids"]
    assert len(ids) == 10 and processor.tokenizer.decode(ids) == question


def test_every_name_has_a_configuration(repository, monkeypatch):
    monkeypatch.chdir(repository)
    p = load_params(BENCH_FILE)
    assert {p.auditor, p.target} <= set(RANDOM_MODELS.values())
    assert all(sizes.known(place) for place in RANDOM_MODELS.values())
    for name in RANDOM_MODELS:
        model = build_random_model(name, "cpu", 2, tiny=True)
        assert answer_questions(model, [noise_pictures(1, 0)[0].image], ["w20 w21"], 3)[0]
