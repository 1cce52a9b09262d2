"""What a stage would refuse is refused before the first, by key."""

import dataclasses
import importlib.util
import re
import shutil
import subprocess
import sys

import pytest

from auditkit.cli import main
from auditkit.errors import AuditError
from auditkit.miniature import shipped
from auditkit.params import FIELDS, load_params
from auditkit.planning.start import refuse_missing

pytestmark = pytest.mark.skipif(
    not (shipped.WEIGHTS / "target").is_dir(), reason="the miniature models are not built yet"
)


@pytest.fixture
def p(project):
    return load_params("params/smoke.yaml")


def test_what_is_there_passes_without_torch(p, project):
    refuse_missing(p)
    said = "import sys; from auditkit.params import load_params; from auditkit.planning.start import refuse_missing; "
    said += "refuse_missing(load_params('params/demo.yaml')); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", said]).returncode == 0


@pytest.mark.parametrize(
    ("change", "package", "said"),
    [
        ({"engine": "ray"}, "ray", 'engine: ray needs the extra `ray`: pip install "auditkit[ray]"'),
        ({"same": "embedding"}, "sentence_transformers", "same: embedding needs the extra `embed`"),
        ({"types_by": "embedding"}, "sentence_transformers", "types_by: embedding needs the extra `embed`"),
        ({"grpo_rollouts": "vllm_server"}, "vllm", "grpo_rollouts: vllm_server needs the extra `vllm`"),
        ({"target": "http://h/v1#x"}, "openai", "target: http://h/v1 needs the extra `endpoint`"),
        ({"peer": "vllm:a/b"}, "vllm", "peer: vllm:a/b needs the extra `vllm`"),
        ({"references": ["a/b?bits=4"]}, "bitsandbytes", "references: a/b?bits=4 needs the extra `quantize`"),
    ],
)
def test_a_package_that_a_setting_needs_is_asked_for_at_the_start(p, monkeypatch, change, package, said):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else real(name))
    with pytest.raises(AuditError, match=re.escape(said)):
        refuse_missing(dataclasses.replace(p, **change))


def test_a_folder_of_images_that_is_not_there_is_told_at_the_start(p):
    with pytest.raises(AuditError, match='images: "data/nothing" is neither .* nor an existing folder'):
        refuse_missing(dataclasses.replace(p, images="data/nothing"))


def test_run_and_plan_refuse_models_that_are_not_there(project, capsys, monkeypatch):
    from auditkit import cli

    monkeypatch.setattr(cli, "stage_notebooks", lambda stages: {})
    monkeypatch.setattr(cli, "run_notebooks", lambda *_: pytest.fail("something was run"))
    (project / "empty").mkdir()
    pickled = shutil.copytree(shipped.WEIGHTS / "target", project / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    for change, said in [
        ("target=empty", 'target: "empty": empty has no config.json, so it is no model'),
        ("generator=empty", 'generator: "empty": empty has no model_index.json, so it is no pipeline'),
        ("target=my model/x y", 'target: "my model/x y": no such model; write miniature:NAME, a folder or a hub id'),
        ("peer=a--b/c", 'peer: "a--b/c": no such model'),
        ("target=miniature:target?adapter=outputs/gone", "target: there is no adapter outputs/gone"),
        (
            "references=[pickled, miniature:llava]",
            'references: "pickled": its weights are only there as pytorch_model.bin',
        ),
    ]:
        for command in ("run", "plan"):
            assert main([command, "params/smoke.yaml", "--set", change]) == 2
            told = capsys.readouterr()
            assert said in told.err and told.err.count("\n") == 1, told.err


def test_every_number_has_both_bounds():
    """Numbers without an end are slips of the keyboard, or die hours later: seed 4294967296 is none of numpy's."""
    for name, field in FIELDS.items():
        if field.annotation in (int, float):
            signs = {type(mark).__name__ for mark in field.metadata}
            assert signs & {"Ge", "Gt"} and signs & {"Le", "Lt"}, name
    with pytest.raises(AuditError, match="seed: 4294967296 is too large, the most is 4294967295"):
        load_params("params/demo.yaml", seed=2**32)


def test_an_error_about_a_model_names_its_key(p):
    from auditkit.models.load import model_loader

    load = model_loader(dataclasses.replace(p, target="./gone", references=["./away", "miniature:llava"]))
    for text, key in (("./gone", "target"), ("./away", "references")):
        with pytest.raises(AuditError, match=f'^{key}: "{text}": no such model'):
            load(text)
