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
