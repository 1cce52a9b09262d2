"""`auditkit check MODEL`: what it says of a good model, that it notices a bad one, and how it ends."""

import os
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from auditkit.cli import main
from auditkit.errors import AuditError
from auditkit.miniature import shipped
from auditkit.miniature.boards import Boards
from auditkit.models import processors
from auditkit.models.base import answer_questions
from auditkit.models.device import dtype_in_words
from auditkit.models.image_features import ROUNDING
from auditkit.models.load import load_model
from auditkit.models.transformers import VLM, _write
from auditkit.planning import check
from auditkit.planning.check import WRITE, _picture, drift, mixed, same_in_batches

pytestmark = pytest.mark.skipif(
    not (shipped.WEIGHTS / "target").is_dir(), reason="the miniature models are not built yet"
)


def said(capsys) -> dict[str, str]:
    rows = capsys.readouterr().out.splitlines()
    return {row[:14].strip(): row[15:] for row in rows}


def test_one_question_on_one_image_and_all_that_was_found(capsys, tmp_path):
    Image.new("RGB", (64, 64), (200, 30, 30)).save(tmp_path / "red.png")
    asked = ["--image", str(tmp_path / "red.png"), "--question", "what atmosphere does the scene have?"]
    assert main(["check", "miniature:gemma3?dtype=bfloat16", *asked, "--device", "cpu"]) == 0
    found = said(capsys)
    assert found["model"] == "Gemma3ForConditionalGeneration" and found["processor"] == "Gemma3Processor"
    assert found["dtype"] == dtype_in_words("bfloat16", torch.bfloat16, "cpu") and found["device"] == "cpu"
    assert found["template"] == "its own chat template"
    picture = "\n\n<start_of_image><image_soft_token>*16<end_of_image>\n\n"
    turn = f"<bos><start_of_turn>user\n{picture}what atmosphere does the scene have?<end_of_turn>\n"
    assert found["whole text"] == repr(turn + "<start_of_turn>model\n")
    assert "<bos> once, from the chat template" in found["begins"]
    assert " tokens in " in found["answers"] and " a second" in found["answers"]
    # an image of one colour is a question of its own: the answer is the model's, word for word
    model = load_model("miniature:gemma3?dtype=bfloat16", device="cpu")
    red = Image.open(tmp_path / "red.png")
    answer = answer_questions(model, [red], ["what atmosphere does the scene have?"], WRITE)[0]
    assert found["answers"].startswith(repr(answer))
    size = sum(p.numel() for p in model.model.parameters()) * 2
    assert found["memory"].startswith(f"{size / 1e6:,.1f} MB for ")
    assert {"in a batch", "image and text", "adapters"} <= set(found)


def test_an_answer_that_is_not_at_its_end_is_told(monkeypatch):
    model, picture = load_model("miniature:gemma3", device="cpu"), _picture(None)
    question = "what atmosphere does the scene have?"
    assert "not at its end" not in check.writing_speed(model, picture, question)
    monkeypatch.setattr(check, "WRITE", 1)
    assert "not at its end after 1 tokens, so max_answer_tokens" in check.writing_speed(model, picture, question)


def test_what_questions_about_one_image_share_is_told():
    picture, questions = _picture(None), ["how many objects are there?", "what atmosphere does the scene have?"]
    for name, shared in (
        ("gemma3", "share one are"),
        ("target", "share one's encoding alone, for it reads a prompt in"),
    ):
        model = load_model(f"miniature:{name}", device="cpu")
        told = check.sharing(model, picture, questions)
        assert shared in told and told.endswith("4 the same")
    model.tried["features"] = "a probability is 0.5 off"
    told = check.sharing(model, picture, questions)
    assert told == "each question with its image is read whole, for shared a probability is 0.5 off"


def test_a_model_that_ignores_its_image_is_told_and_fails(capsys, monkeypatch):
    load = load_model

    def blind(*how, **more):
        model = load(*how, **more)
        model.model.model.multi_modal_projector.linear.weight.data.zero_()
        model.model.model.multi_modal_projector.linear.bias.data.zero_()
        return model

    monkeypatch.setattr(check, "load_model", blind)
    assert main(["check", "miniature:target"]) == 1
    found = said(capsys)
    assert found["image and text"].startswith('NO: "target": another image changes nothing')
    assert not found["in a batch"].startswith("NO")


def test_a_model_whose_answers_depend_on_their_batch_is_told():
    model, write = load_model("miniature:target"), _write
    rows = Boards().examples(8, 0)
    images, questions = [row.image for row in rows], [row.question for row in rows]

    class Slipping(VLM):
        """Gives each picture its neighbour's question."""

        def write(self, images, prompts, *how):
            return write(self, images, [*prompts[1:], prompts[0]], *how, temperature=0.0)

    slipping = Slipping(model.name, model.model, model.processor)
    with pytest.raises(AuditError, match="only . of 8 answers as one by one"):
        same_in_batches(slipping, images, questions)
    turn = iter(range(99))

    class Fickle(VLM):
        def write(self, images, prompts, *how):
            return [f"{next(turn)}" for _ in prompts]

    with pytest.raises(AuditError, match="differently each time"):
        same_in_batches(Fickle(model.name, model.model, model.processor), images, questions)
    same_in_batches(model, images, questions)


def test_a_wrong_padding_is_seen_in_the_probabilities(monkeypatch):
    model = load_model("miniature:target")
    images, questions = mixed(_picture(None), "what colour is the object at b2?")
    assert drift(model, images, questions) < 1e-4
    batch = processors.batch

    def unmasked(*what):
        inputs = batch(*what)
        return inputs | {"attention_mask": torch.ones_like(inputs["attention_mask"])}

    monkeypatch.setattr(processors, "batch", unmasked)
    assert drift(model, images, questions) > ROUNDING[torch.float32]


def test_what_cannot_be_checked_is_one_sentence_in_seconds(capsys):
    assert main(["check", "miniature:target", "--image", "nowhere.png"]) == 2
    assert "--image nowhere.png: not a picture" in capsys.readouterr().err
    # a hub at a port where nothing listens, as the environment names it
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "auditkit.cli", "check", "google/gemma-3-4b-it"], env=environment, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr and time.monotonic() - began < 20
    assert done.stderr.startswith('auditkit: "google/gemma-3-4b-it": no such folder, and http://127.0.0.1:9')
    assert done.stderr.count("\n") == 1
