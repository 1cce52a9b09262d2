"""Only whole safetensors are read, wherever a model, an adapter or a pipeline comes from."""

import ast
import inspect
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import transformers

from auditkit.counterfactual.make import load_pipeline
from auditkit.errors import AuditError
from auditkit.miniature import shipped
from auditkit.models.load import load_model
from auditkit.models.weights import adapter_folder, no_pickles, refuse_unsafe

needs_weights = pytest.mark.skipif(
    not (shipped.WEIGHTS / "target").is_dir(), reason="the miniature models are not built yet"
)


class Evil:
    """A pickle that writes a file when it is read."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(shipped.WEIGHTS / "target", tmp_path / "mine")


@pytest.fixture
def evil(tmp_path) -> bytes:
    return pickle.dumps(Evil(tmp_path / "ran"))


def refused(what, *words, load=load_model):
    with pytest.raises(AuditError) as error:
        load(what)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


@needs_weights
@pytest.mark.parametrize("alone", [True, False])
def test_an_index_that_names_a_pickle_is_refused(copy, evil, tmp_path, alone):
    (copy / "evil.bin").write_bytes(evil)
    if alone:
        (copy / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"model.a": "evil.bin"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(copy, "model.safetensors.index.json names evil.bin, a pickle", "never read")
    assert not (tmp_path / "ran").exists()


@needs_weights
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "x.ckpt"])
def test_weights_that_are_a_pickle_are_refused(copy, evil, tmp_path, name):
    (copy / "model.safetensors").unlink()
    (copy / name).write_bytes(evil)
    refused(copy, f"only there as {name}, a pickle")
    assert not (tmp_path / "ran").exists()


@needs_weights
def test_a_configuration_that_names_a_pickle_is_refused(copy, evil, tmp_path):
    config = json.loads((copy / "config.json").read_text()) | {"transformers_weights": "evil.bin"}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "evil.bin").write_bytes(evil)
    refused(copy, "config.json names evil.bin, a pickle")
    assert not (tmp_path / "ran").exists()


@needs_weights
@pytest.mark.parametrize("left", [0, 7, 5000, -1])
def test_a_cut_file_is_one_sentence(copy, left):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:left])
    refused(copy, "model.safetensors", "is cut or damaged", "copy it again")


@needs_weights
def test_an_index_of_files_that_are_not_there_or_elsewhere_is_refused(copy):
    for name in ("model-00001-of-00002.safetensors", "../mine/model.safetensors", "/etc/model.safetensors"):
        (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        refused(copy, f"names '{name}', which is not in")


def test_an_adapter_that_is_a_pickle_is_refused(tmp_path, evil):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text('{"peft_type": "LORA", "target_modules": ["q_proj"]}')
    (tmp_path / "adapter/adapter_model.bin").write_bytes(evil)
    refused(tmp_path / "adapter", "only there as adapter_model.bin, a pickle", load=adapter_folder)
    refused(f"miniature:target?adapter={tmp_path}/nowhere", "there is no adapter", "nowhere")
    assert not (tmp_path / "ran").exists()


@needs_weights
def test_a_pipeline_with_a_pickle_among_its_parts_is_refused(tmp_path, evil):
    mine = shutil.copytree(shipped.WEIGHTS / "generator", tmp_path / "mine")
    index = {"weight_map": {"a": "evil.bin"}}
    (mine / "transformer/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    (mine / "transformer/evil.bin").write_bytes(evil)
    refused(mine, "names evil.bin, a pickle", load=load_pipeline)
    assert not (tmp_path / "ran").exists()


@needs_weights
def test_all_shipped_models_are_whole():
    for folder in shipped.WEIGHTS.iterdir():
        if folder.is_dir():
            refuse_unsafe(folder, folder.name)


def test_while_a_library_reads_weights_torch_load_is_closed(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.bin")
    with no_pickles(), pytest.raises(OSError, match=r"a\.bin is a pickle, which could run code and is never read"):
        torch.load(tmp_path / "a.bin", weights_only=True)
    assert torch.load(tmp_path / "a.bin", weights_only=True)["a"].tolist() == [1, 1]


def test_a_training_goes_on_from_its_own_checkpoint_without_running_what_a_pickle_says():
    """The optimizer's state is a pickle; transformers' Trainer reads it with weights_only=True in every place."""
    calls = [
        node
        for node in ast.walk(ast.parse(inspect.getsource(transformers.trainer)))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert len(calls) > 5
    for call in calls:
        assert any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in call.keywords)
