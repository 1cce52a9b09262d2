"""All of notebook 00: what is checked before anything runs."""

import importlib.util
import shutil
import types

import pytest
import torch

from auditkit.errors import AuditError
from auditkit.miniature import shipped
from auditkit.params import load_params
from auditkit.planning import setup


@pytest.fixture
def p(project):
    return load_params("params/smoke.yaml")


def test_all_that_a_run_needs_is_looked_at_in_one_order(p, tmp_path):
    found = setup.check_setup(p, tmp_path)
    roles = ["auditor", "target", "peer", *(f"reference {n}" for n in range(1, len(p.references) + 1))]
    keys = [check["key"] for check in found.checks]
    assert keys == ["versions", "device", "dtype", "disk", *roles, "generator", "editor", "images"]
    assert all(check["ok"] and set(check) == {"key", "found", "ok", "advice"} for check in found.checks)
    assert found.gflops > 0 and found.free_gb > 0 and len(found.pictures) == 6
    found.complain()


def test_a_reference_alone_is_said_to_be_its_own_consensus(p, tmp_path):
    alone = types.SimpleNamespace(**{**vars(p), "references": p.references[:1]})
    (told,) = [check for check in setup.check_setup(alone, tmp_path).checks if check["key"] == "references"]
    assert told["ok"] and told["found"].startswith("one alone, whose answer is the consensus")


def test_a_reference_with_the_targets_weights_is_refused(p, tmp_path):
    copied = shutil.copytree(shipped.WEIGHTS / "target", tmp_path / "copied")
    twice = types.SimpleNamespace(**{**vars(p), "references": [str(copied), *p.references]})
    with pytest.raises(AuditError, match="copied has the target's weights.: it would vote for its own answer"):
        setup.check_setup(twice, tmp_path).complain()
    weights = next(copied.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    setup.check_setup(twice, tmp_path).complain()


def test_every_trouble_is_told_at_once_with_what_to_do(p, tmp_path):
    p = types.SimpleNamespace(**{**vars(p), "target": "./no/such/folder", "device": "cuda:77"})
    with pytest.raises(AuditError, match=r"device \(cuda:77.*set device: auto; target \(missing\): .*no/such/folder"):
        setup.check_setup(p, tmp_path).complain()


@pytest.mark.parametrize("native", [True, False])
def test_the_number_format_is_told_with_its_reason(p, native, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": native})
    own = types.SimpleNamespace(**{**vars(p), "device": "cpu"})
    (found,) = setup.check_dtype(own)
    built = "bfloat16: this processor computes with it" if native else "float32: this processor only emulates bfloat16"
    assert found["key"] == "dtype" and found["ok"]
    trains = f"; `auditkit miniature` trains in {built}"
    assert found["found"] == "float32: what is fast and exact on cpu" + trains
    (asked,) = setup.check_dtype(types.SimpleNamespace(**{**vars(own), "dtype": "bfloat16", "images": "data/photos"}))
    slow = "" if native else ", but this processor only emulates it: float32 is faster"
    assert asked["found"] == "bfloat16: asked for" + slow + trains


def test_a_full_disk_says_where_to_make_room(p, tmp_path, monkeypatch):
    monkeypatch.setattr(setup.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=5e8))
    with pytest.raises(AuditError, match="disk .* less than 1 GB is free where outputs/ lies; make room"):
        setup.check_setup(p, tmp_path).complain()


def test_a_torchvision_for_another_torch_is_named(monkeypatch):
    monkeypatch.setattr(setup.importlib.util, "find_spec", lambda name: object())

    def refuse(name):
        raise RuntimeError("operator torchvision::nms does not exist\nmore")

    monkeypatch.setattr(setup.importlib, "import_module", refuse)
    check = setup.check_torchvision()
    assert not check["ok"] and "(operator torchvision::nms does not exist)" in check["advice"]
    assert check["found"] == f"torch {torch.__version__}"


def test_an_empty_folder_is_no_model_and_a_missing_package_is_told(p, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    away = setup.check_model("target", "nobody/nothing")
    assert not away["ok"] and away["found"] == "missing" and "nobody/nothing" in away["advice"]
    check = setup.check_model("target", str(tmp_path / "empty"))
    assert not check["ok"] and "has no config.json, so it is no model" in check["advice"]
    assert setup.check_packages(p) == []
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else real(name))
    changed = types.SimpleNamespace(**{**vars(p), "engine": "ray"})
    (packages,) = setup.check_packages(changed)
    assert not packages["ok"] and packages["advice"].startswith("engine: ray needs the extra `ray`")
