"""A model's text is taken apart, and what cannot be meant is refused before anything is loaded."""

import pytest

from auditkit import specs
from auditkit.errors import AuditError
from auditkit.params import load_params


@pytest.mark.parametrize(
    "text, words",
    [
        ("google/gemma-3-4b-it?bit=4", "unknown option bit; did you mean bits?"),
        ("google/gemma-3-4b-it?bits=3", "bits is one of 4, 8, not '3'"),
        ("google/gemma-3-4b-it?max_pixels=many", "max_pixels wants a number above 0, not 'many'"),
        ("google/gemma-3-4b-it?max_pixels=-1", "max_pixels wants a number above 0"),
        ("google/gemma-3-4b-it?bits", "write options as ?name=value"),
        ("vllm:google/gemma-3-4b-it?bits=4", "unknown option bits"),
        ("vllm:google/gemma-3-4b-it?adapter=outputs/x", "unknown option adapter"),
        ("google/gemma-3-4b-it?batch_size=2.0", "batch_size wants a number above 0, not '2.0'"),
        ("google/gemma-3-4b-it?attention=fast", "attention is one of eager, flash_attention_2"),
        ("https://host/v1?price_in=free#m", "price_in wants a number above 0, not 'free'"),
        ("https://host/v1?key=sk-secret#m", "?key= wants the name of the environment variable"),
        ("http://localhost:8000/v1", "say which of the server's models"),
        ("http://me:secret@localhost/v1#a", "no key belongs into a parameter file"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(text, words):
    with pytest.raises(AuditError) as error:
        specs.parse(text)
    assert words in str(error.value) and "secret" not in str(error.value)


@pytest.mark.parametrize(
    "text, words",
    [
        ("org/sdxl?size=5x", "size is written 512 or 768x512 (WIDTHxHEIGHT), not '5x'."),
        ("org/sdxl?guidance=-1", "guidance wants a number above 0, not '-1'"),
        ("org/sdxl?offload=disk", "offload is one of group, model, none, sequential, not 'disk'"),
    ],
)
def test_a_pipelines_options_likewise(text, words):
    with pytest.raises(AuditError) as error:
        specs.parse_pipeline(text)
    assert words in str(error.value)


def test_options_keep_their_order_for_a_text_is_made_of_them_again():
    text = "org/m?adapter=outputs/x&bits=4&batch_size=8"
    assert list(specs.parse(text).options) == ["adapter", "bits", "batch_size"]


def test_a_parameter_file_is_refused_before_anything_is_loaded(repository, monkeypatch):
    monkeypatch.chdir(repository)
    with pytest.raises(AuditError, match="unknown option bit"):
        load_params("params/demo.yaml", references=["google/gemma-3-4b-it?bit=4"])
    with pytest.raises(AuditError, match="auditor: .* cannot be trained"):
        load_params("params/demo.yaml", auditor="http://localhost:8000/v1#gemma")
    p = load_params("params/demo.yaml", references=["vllm:google/gemma-3-4b-it?gpus=2", "https://host/v1#b"])
    assert [specs.parse(text).engine for text in p.references] == ["vllm", "endpoint"]


def test_two_answering_models_of_one_name_are_refused_however_they_are_reached(repository, monkeypatch):
    monkeypatch.chdir(repository)
    with pytest.raises(AuditError, match="gemma"):
        load_params("params/demo.yaml", references=["vllm:google/gemma", "https://host/v1#other/gemma"])


def test_a_name_says_every_option_that_changes_answers_and_no_other():
    same = ["a/b", "a/b?device=cuda:1", "a/b?batch_size=4", "vllm:a/b?gpus=2&memory=0.5", "https://h/v1?key=K#a/b"]
    assert {specs.parse(text).name for text in same} == {"b"}
    options = ["bits=4", "bits=8", "revision=v2", "dtype=float16", "max_pixels=9", "attention=eager"]
    assert len({specs.parse(text).name for text in [*(f"a/b?{option}" for option in options), "a/b"]}) == 7
    assert specs.parse("a/b?max_pixels=9&bits=4").name == specs.parse("a/b?bits=4&max_pixels=9").name
    # a run's records hold these already
    assert [specs.parse(f"miniature:{name}").name for name in ("target", "clean")] == ["target", "clean"]
    assert specs.parse_pipeline("miniature:editor?steps=4").name == "editor"


def test_a_model_may_be_named():
    assert specs.parse("google/x?name=big").name == specs.parse("http://h/v1?name=big#x").name == "big"
    assert specs.parse("google/x?name=big&adapter=outputs/r/07/adapter").name == "big+r.07.adapter"
    assert specs.adapted("google/x?name=big", "out").startswith("google/x?name=big&adapter=")
    with pytest.raises(AuditError, match="name is made of letters, digits"):
        specs.parse("google/x?name=a/b")
