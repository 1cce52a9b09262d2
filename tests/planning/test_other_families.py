"""Families that can be asked and repaired, or only asked: what they write is whole, and why not is one sentence."""

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from auditkit.errors import AuditError
from auditkit.models import processors
from auditkit.models.base import answer_questions
from auditkit.models.load import load_model
from auditkit.models.roles import load_roles
from auditkit.models.transformers import token_probabilities
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


def test_an_encoder_decoder_is_asked_but_neither_auditor_nor_repaired(folder, images, tmp_path):
    place = str(folder("t5gemma2"))
    assert why_not_trainable(place).startswith("target: audited but not repaired, for it is an encoder-decoder;")
    model, sentence = load_model(place), "is an encoder-decoder, which can be target or reference"
    with pytest.raises(AuditError, match=sentence):
        train_repair(model, [], None, tmp_path)
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
