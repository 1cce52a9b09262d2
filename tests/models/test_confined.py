"""Templates and patterns of a stranger's model are tried where they can take little time and memory."""

import json
import shutil
import time
from importlib.resources import files

import pytest
import tiny
import torch

from auditkit.errors import AuditError
from auditkit.miniature import shipped
from auditkit.models import confined
from auditkit.models.confined import refuse_endless_patterns, refuse_unruly_template
from auditkit.models.load import load_model

needs_weights = pytest.mark.skipif(
    not (shipped.WEIGHTS / "target").is_dir(), reason="the miniature models are not built yet"
)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "takes more than 2 seconds"),
        ("{{ 'x' * 10**10 }}", "more than 512 MB"),
        ("{{ 'x' * 10**8 }}", "writes 100,000,000 characters to one question"),
        ("{{ 1/0 }}", "ZeroDivisionError: division by zero"),
        ("{{ 10.0**1000 }}", "OverflowError"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "RecursionError"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "RecursionError"),
        ("{% if", "TemplateSyntaxError"),
        ("{{ raise_exception('no images\x1b[31m') }}", r"TemplateError: no images\x1b[31m"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("x" * 1_000_001, "has 1,000,001 characters"),
        ({"other": "x"}, "is no text"),
    ],
)
def test_a_template_that_fails_or_takes_too_much_is_one_sentence(template, said):
    began = time.monotonic()
    with pytest.raises(AuditError) as error:
        refuse_unruly_template(template, {})
    assert said in str(error.value) and "\n" not in str(error.value) and "\x1b" not in str(error.value)
    assert time.monotonic() - began < confined.WAIT + 10


def test_the_published_templates_are_taken():
    published = [file for file in files("trl").joinpath("chat_templates").iterdir() if file.name.endswith(".jinja")]
    assert len(published) > 5
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "image_token": "<image>"}
    taken = 0
    for file in published:  # those of language models take no pictures, and one of them wants tools
        try:
            refuse_unruly_template(file.read_text(encoding="utf-8"), tokens)
            taken += 1
        except AuditError as error:
            assert "does not take one question on one image" in str(error)
    assert taken > len(published) / 2


def test_a_family_is_rendered_elsewhere_as_it_is_here():
    """The process apart has the environment of transformers: the same lengths for all families with a template."""
    for name, family in tiny.FAMILIES.items():
        if not family.template:
            continue
        template, tokens = tiny.published(family.template), {"bos_token": family.bos or "", "eos_token": family.eos}
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
        chat = tokens | {"messages": messages, "add_generation_prompt": True, "tools": None, "documents": None}
        from transformers.utils.chat_template_utils import render_jinja_template

        (here,), _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=True, **tokens)
        assert confined._confined({"template": template, "chats": [chat]}) == {"found": [len(here)]}, name


def test_a_template_is_tried_once_in_a_process_and_the_process_apart_is_kept(monkeypatch):
    template = "{% for m in messages %}{{ m.role }}{% endfor %} of this test"
    refuse_unruly_template(template, {})
    child = confined._children[0].process.pid
    began = time.monotonic()
    for _ in range(100):
        refuse_unruly_template(template, {})
    assert time.monotonic() - began < 0.5
    refuse_unruly_template(template + ".", {})
    assert confined._children[0].process.pid == child


@needs_weights
def test_a_model_with_an_endless_template_is_refused(tmp_path):
    mine = shutil.copytree(shipped.WEIGHTS / "target", tmp_path / "mine")
    (mine / "chat_template.jinja").write_text(
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    )
    with pytest.raises(AuditError, match=r'mine": its chat template does not take one question .* more than 2 seconds'):
        load_model(mine)


@needs_weights
@pytest.mark.parametrize(
    "patterns",
    [
        {"target_modules": r"(?:\w+\.?)+!"},
        {"exclude_modules": r"(?:\w+\.?)+!"},
        {"rank_pattern": {r"(?:\w+\.?)+!": 4}},
        {"target_modules": "("},
    ],
)
def test_an_adapter_with_an_endless_pattern_is_refused(tmp_path, patterns):
    model = load_model("miniature:target")
    names = [name for name, _ in model.model.named_modules()]
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | patterns))
    with pytest.raises(AuditError, match=r"looking for its modules .* fails \(.*name them in a list"):
        refuse_endless_patterns(tmp_path, names)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"target_modules": ["q_proj"], "rank_pattern": {"q": 4}}))
    refuse_endless_patterns(tmp_path, names)


@needs_weights
def test_an_adapter_of_a_stranger_with_plain_patterns_is_put_on(tmp_path):
    from peft import LoraConfig, get_peft_model

    model = load_model("miniature:target")
    before = {name: weight.clone() for name, weight in model.model.named_parameters()}
    adapted = get_peft_model(
        model.model, LoraConfig(r=2, target_modules=r".*language_model.*q_proj", init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = load_model(f"miniature:target?adapter={tmp_path / 'adapter'}").model
    changed = [name for name, weight in loaded.named_parameters() if not torch.equal(weight, before[name])]
    assert changed and all("q_proj" in name for name in changed)
