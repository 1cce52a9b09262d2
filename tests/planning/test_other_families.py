"""Families that can be asked and repaired, or only asked: what they write is whole, and why not is one sentence."""

import importlib.util
import json
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from auditkit.auditor import grpo, trial
from auditkit.auditor.trial import trial_step
from auditkit.cli import main
from auditkit.data.source import Picture
from auditkit.errors import AuditError
from auditkit.models import processors
from auditkit.models.base import answer_questions
from auditkit.models.load import load_model
from auditkit.models.roles import load_roles
from auditkit.models.transformers import VLM, token_probabilities
from auditkit.params import load_params
from auditkit.planning import check
from auditkit.planning.check import modalities, same_in_batches
from auditkit.repair.finetune import train_repair, why_not_trainable

QUESTIONS = ["how many boats?", "why?", "what colour is the small box at the top left of this picture?", "where is it?"]


@pytest.fixture(scope="module")
def images():
    draw = np.random.default_rng(0).integers
    sizes = [(64, 48), (40, 80), (90, 30), (32, 32)]
    return [Image.fromarray(draw(0, 256, (high, wide, 3), dtype=np.uint8)) for wide, high in sizes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = {}

    def save(name):
        if name not in made:
            made[name] = tiny.save(name, tmp_path_factory.mktemp("models") / name)
        return made[name]

    return save


def test_all_that_an_encoder_decoder_writes_is_its_answer(folder, images):
    model = load_model(folder("t5gemma2"))
    answers = answer_questions(model, images, QUESTIONS, 4)
    assert all(answers) and len(set(answers)) == 4
    inputs = processors.batch(model, images[:1], [processors.chat(model, QUESTIONS[0])])
    out = model.model.generate(**inputs, max_new_tokens=4, pad_token_id=0, do_sample=False)
    assert out.shape[1] < inputs["input_ids"].shape[1]  # cut behind the prompt's length nothing would be left
    assert answers[0] == model.processor.tokenizer.decode(out[0], skip_special_tokens=True).strip()
    same_in_batches(model, images, QUESTIONS)
    modalities(model, images, QUESTIONS)


def test_a_picture_that_a_processor_refuses_is_named_by_its_size(folder, images):
    model = load_model(folder("qwen2_5_vl"))
    line = Image.new("RGB", (12_000, 40))
    with pytest.raises(AuditError, match=r'"qwen2_5_vl": its processor refuses a picture of 12000 x 40 pixels \('):
        answer_questions(model, [*images[:3], line], QUESTIONS, 4)


def test_an_encoder_decoder_is_asked_but_neither_auditor_nor_repaired(folder, images, tmp_path):
    place = str(folder("t5gemma2"))
    assert why_not_trainable(place).startswith("target: audited but not repaired, for it is an encoder-decoder;")
    model, sentence = load_model(place), "is an encoder-decoder, which can be target or reference"
    with pytest.raises(AuditError, match=sentence):
        train_repair(model, [], load_params("params/smoke.yaml"), tmp_path)
    with pytest.raises(AuditError, match=sentence):
        token_probabilities(model, images[:1], ["ask"], ["how many boats?"])
    load_roles({"target": place, "reference 1": place}, load_model)
    with pytest.raises(AuditError, match=sentence):
        load_roles({"auditor": place}, load_model)


@pytest.mark.parametrize("name", ["aya_vision", "mllama", "ovis2"])
def test_what_is_scored_is_what_was_written(name, folder, images):
    """Mllama's text sees its picture through a mask, which goes on as long as the text does."""
    model = load_model(folder(name))
    same_in_batches(model, images, QUESTIONS)
    modalities(model, images, QUESTIONS)
    inputs = processors.batch(model, images, [processors.chat(model, question) for question in QUESTIONS])
    out = model.model.generate(**inputs, max_new_tokens=5, output_logits=True, return_dict_in_generate=True)
    ids = out.sequences[:, inputs["input_ids"].shape[1] :]
    stepwise = torch.stack(out.logits, 1).log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    texts = [processors.chat(model, question) for question in QUESTIONS]
    with torch.inference_mode():
        again = processors.continued(model, images, texts, list(ids))
        del again["labels"]
        logits = model.model(**again, logits_to_keep=6).logits[:, :-1]
    assert torch.allclose(logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0], stepwise, atol=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is here")
@pytest.mark.parametrize("name", tiny.REFUSED)
def test_a_family_that_needs_torchvision_is_told_so(name, tmp_path):
    folder = tiny.settings(tmp_path / "mine", *tiny.REFUSED[name])
    with pytest.raises(AuditError, match="needs the package torchvision, which is not installed; pip install"):
        load_model(folder)


def test_a_tokenizer_of_another_family_is_one_sentence(tmp_path):
    folder = tiny.settings(tmp_path / "mine", "florence2", "Florence2Processor")
    with pytest.raises(AuditError, match="is not that of this family .*no attribute image_token"):
        load_model(folder)


def test_a_family_without_a_chat_template_is_told_what_to_do(tmp_path):
    folder = tiny.settings(tmp_path / "mine", "blip", "BlipProcessor")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(AuditError, match="or name that version .* a family without one .* cannot be asked here"):
        load_model(folder)


def checked(capsys, folder, *more) -> tuple[int, dict[str, str]]:
    code = main(["check", str(folder), "--device", "cpu", *more])
    return code, {row[:14].strip(): row[15:] for row in capsys.readouterr().out.splitlines()}


def test_check_does_in_small_what_a_run_does(folder, capsys):
    place = folder("t5gemma2")
    code, found = checked(capsys, place, "--as", "reference")
    assert code == 0 and "repair step" not in found and "GRPO step" not in found and "content" in found
    code, found = checked(capsys, place, "--as", "target")
    assert code == 0 and found["repair"].startswith("target: audited but not repaired, for it is an encoder-decoder")
    code, found = checked(capsys, place, "--as", "auditor")
    assert code == 1 and found["GRPO step"].startswith("NO: ")
    assert "is an encoder-decoder, which can be target or reference" in found["GRPO step"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("aya_vision", "off the model's own"),
        ("mllama", "cannot take a step with it (ValueError: `aspect_ratio_ids` must be provided"),
    ],
)
def test_what_trl_would_learn_otherwise_is_learnt_from_the_models_own_forward_pass(
    name, why, folder, capsys, monkeypatch
):
    monkeypatch.setattr(trial, "shares", lambda *_: False)  # as on a GPU, where passes are checkpointed
    place = folder(name)
    code, found = checked(capsys, place, "--as", "reference")
    assert code == 0 and "repair step" not in found and "GRPO step" not in found and "content" in found
    code, found = checked(capsys, place, "--as", "target")
    assert code == 0
    assert found["repair step"].startswith("learns an answer") and "the same with" in found["saved, loaded"]
    code, found = checked(capsys, place, "--as", "auditor")
    assert code == 1 and "wrote no question" in found["questions"]  # its weights are random
    assert "the model's own" in found["GRPO step"] and "the same with" in found["saved, loaded"]
    assert ", by its own forward pass, for " in found["GRPO step"] and why in found["GRPO step"]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "internvl"])
def test_check_of_a_supported_family_takes_both_steps(name, folder, capsys):
    code, found = checked(capsys, folder(name))
    assert code == 0 and not [text for text in found.values() if text.startswith("NO: ")]
    assert "the model's own" in found["GRPO step"] and "learns an answer" in found["repair step"]
    assert "by its own forward pass" not in found["GRPO step"]
    assert "within" in found["saved, loaded"] and "within 0" != found["saved, loaded"][-8:]


def test_whatever_goes_wrong_in_check_is_a_line(folder, capsys, monkeypatch):
    def fails(*_, **__):
        raise KeyError("pixel_values")

    monkeypatch.setattr(check, "logits", fails)
    monkeypatch.setattr(check, "attention_of", fails)
    monkeypatch.setattr(VLM, "write", lambda self, images, *_: ["..." for _ in images])
    code, found = checked(capsys, folder("qwen2_5_vl"), "--as", "reference")
    assert code == 1
    assert found["described"] == found["image and text"] == "NO: KeyError: 'pixel_values'"
    assert found["content"].startswith('NO: "qwen2_5_vl": says nothing to any of 4 questions')
    monkeypatch.setattr(check, "load_model", fails)
    code, found = checked(capsys, folder("qwen2_5_vl"))
    assert code == 1 and found == {"loaded": "NO: KeyError: 'pixel_values'"}
    assert main(["check", "miniature:target", "--as", "judge"]) == 2
    assert "judge is none of target, reference, auditor" in capsys.readouterr().err


def test_a_training_starts_only_where_the_log_probabilities_are_the_models_own(folder, images, repository, tmp_path):
    p = replace(load_params(repository / "params" / "smoke.yaml"), ways=["question"], grpo_images=2, group_size=2)
    pictures = [Picture(f"p{i}", image) for i, image in enumerate(images)]
    (tmp_path / "untrained.json").write_text('["how many boats are there?", "where is it now?"]')
    forgetful = tiny.save("qwen2_5_vl", tmp_path / "forgetful")
    config = json.loads((forgetful / "config.json").read_text())
    config["text_config"]["attention_dropout"] = 0.9  # no two passes of a training are the same
    (forgetful / "config.json").write_text(json.dumps(config))
    with pytest.raises(AuditError, match=r"log-probabilities that TRL .* would learn from are .* off the model's own"):
        grpo.train_auditor(load_model(forgetful), None, [], pictures, p, tmp_path)
    assert not (tmp_path / "rollouts.jsonl").exists() and not list(tmp_path.glob("checkpoint-*"))
    with pytest.raises(AuditError, match="is an encoder-decoder"):
        grpo.train_auditor(load_model(folder("t5gemma2")), None, [], pictures, p, tmp_path)


def test_a_trial_leaves_the_model_and_what_is_drawn_as_they_were(folder, images, repository):
    p = load_params(repository / "params" / "smoke.yaml")
    model, pictures = load_model(folder("qwen2_5_vl")), [Picture(f"p{i}", image) for i, image in enumerate(images)]
    before = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    drawn = []
    for tried in (False, True):
        torch.manual_seed(3), np.random.seed(3), random.seed(3)
        if tried:
            trial_step(model, pictures, p)
        drawn.append((torch.rand(1).item(), np.random.rand(), random.random()))
    assert drawn[0] == drawn[1]
    after = model.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(after[name], weight) for name, weight in before.items())
    assert "forward" not in vars(model.model) and not model.model.training


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% for m in messages %}{% for c in m.content if c.type == 'text' %}{{ c.text }}{% endfor %}{% endfor %}",
         "its chat template leaves the picture out of the text"),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}",
         "its chat template leaves the picture out of the text"),
        ("{% for m in messages %}{{ m.role + m.content }}{% endfor %}",
         "its chat template does not take one question on one image"),
    ],
    ids=["skipped", "printed", "joined"],
)  # fmt: skip
def test_a_template_that_leaves_the_picture_out_is_one_sentence(template, why, folder, tmp_path, capsys):
    mine = shutil.copytree(folder("llava"), tmp_path / "mine")
    (mine / "chat_template.jinja").write_text(template)
    (mine / "model.safetensors").unlink()  # it is told before the weights are read
    capsys.readouterr()
    assert main(["check", str(mine), "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert why in said and said.count("\n") == 1 and "Traceback" not in said


def test_a_tokenizer_without_an_end_is_one_sentence(folder, tmp_path, capsys):
    mine = shutil.copytree(folder("llava"), tmp_path / "mine")
    settings = json.loads((mine / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (mine / "tokenizer_config.json").write_text(json.dumps(settings))
    (mine / "model.safetensors").unlink()
    capsys.readouterr()
    assert main(["check", str(mine), "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert "its tokenizer has no end token, so no answer would end; name it as eos_token" in said
    assert said.count("\n") == 1 and "Traceback" not in said


def test_a_repair_teaches_the_end_where_the_template_leaves_it_out(folder):
    model = load_model(folder("llava"))
    assert processors.ending(model, "how many boats?", "two").strip() == "two</s>"
    model = load_model(folder("qwen2_5_vl"))  # whose template writes it: it is not written twice
    assert processors.ending(model, "how many boats?", "two") == "two<|im_end|>"


def test_scores_are_of_a_texts_own_tokens_where_a_model_heeds_no_logits_to_keep(folder, images):
    model = load_model(folder("video_llama_3"))
    inputs = processors.batch(model, images[:1], [processors.chat(model, "ask")])
    with torch.inference_mode():
        assert model.model(**inputs, logits_to_keep=1).logits.shape[1] > 1
    text, ids = "how many boats?", model.processor.tokenizer("how many boats?")["input_ids"]
    chances = token_probabilities(model, images[:1], ["ask"], [text])[0]
    again = processors.batch(model, images[:1], [processors.chat(model, "ask") + text])
    with torch.inference_mode():
        logits = model.model(**again).logits[0, -len(ids) - 1 : -1].softmax(-1)
    assert chances == pytest.approx(logits[range(len(ids)), ids].tolist(), abs=1e-5)
