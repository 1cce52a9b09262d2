"""Sizes of models before a download: the paper's configurations have the published numbers of parameters."""

import types

import pytest
import tiny
import torch
import transformers as hf
from PIL import Image

from auditkit.errors import AuditError
from auditkit.models import processors
from auditkit.models.load import load_model
from auditkit.planning import memory, sizes

PUBLISHED = {
    # of the safetensors on the hub
    "google/gemma-3-4b-it": 4_300_079_472,
    "google/gemma-3-12b-it": 12_187_325_040,
    "google/gemma-3-27b-it": 27_432_406_640,
    # of keras-hub's presets, which leave out the 64 rows that transformers' vocabulary is padded with
    "google/paligemma2-3b-mix-224": 3_032_094_960 + 64 * 2304,
    "google/paligemma2-3b-mix-448": 3_032_979_696 + 64 * 2304,
    "google/paligemma2-3b-pt-896": 3_036_518_640 + 64 * 2304,
    "google/paligemma2-10b-mix-224": 9_662_409_456 + 64 * 3584,
    "google/paligemma2-10b-mix-448": 9_663_294_192 + 64 * 3584,
    "google/paligemma2-28b-mix-224": 27_650_192_112 + 64 * 4608,
}


@pytest.fixture(autouse=True)
def forget():
    yield
    sizes.look_up.cache_clear()


@pytest.fixture
def no_network(monkeypatch):
    def down(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", down)


def test_the_papers_models_have_their_published_parameters():
    for place, parameters in PUBLISHED.items():
        assert sizes.count(sizes.known(place)).parameters == parameters, place


def test_a_picture_becomes_as_many_tokens_as_published():
    gemma, pali = (sizes.count(sizes.known(f"google/{name}")) for name in ("gemma-3-4b-it", "paligemma2-3b-mix-448"))
    assert (gemma.image_tokens, gemma.patches, gemma.pixels) == (256, 4096, 3 * 896 * 896)
    assert (pali.image_tokens, pali.patches, pali.pixels) == (1024, 1024, 3 * 448 * 448)
    assert pali.scores and not gemma.scores  # Gemma 2 has no fused attention in this transformers
    assert (gemma.window, gemma.local_layers) == (1024, 29)


def test_what_is_not_known_here_is_not_guessed():
    for place in ("google/gemma-3-1b-it", "google/gemma-3-9b-it", "google/paligemma2-3b-mix-896", "org/gemma-3-4b-it"):
        assert sizes.known(place) is None, place


@pytest.mark.parametrize("name", ["target", "gemma3", "idefics3", "llava"])
def test_a_folder_is_counted_from_its_files(name):
    size = sizes.look_up(f"miniature:{name}")
    model = load_model(f"miniature:{name}", "cpu")
    assert size.parameters == model.model.num_parameters()
    assert size.at_hand and size.on_disk == 0
    assert size.image_tokens == 16 and size.pixels == 3 * 64 * 64
    linear = [m for n, m in model.model.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in n]
    assert size.linear == sum(m.weight.numel() for m in linear) == size.text + size.vision


def test_an_adapter_of_rank_one_is_as_large_as_peft_makes_it():
    from peft import LoraConfig, get_peft_model

    from auditkit.models.lora import TEXT_PART

    model = get_peft_model(load_model("miniature:auditor", "cpu").model, LoraConfig(r=3, target_modules=TEXT_PART))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == 3 * sizes.look_up("miniature:auditor").lora


def test_without_a_network_the_papers_models_are_known_and_others_are_not(no_network, monkeypatch):
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *_, **__: (_ for _ in ()).throw(OSError()))
    size = sizes.look_up("google/gemma-3-4b-it")
    assert size.parameters == PUBLISHED["google/gemma-3-4b-it"]
    assert size.on_disk == 2 * size.parameters and "published configuration" in size.note
    assert sizes.look_up("org/unheard-of") is None
    assert sizes.look_up("http://localhost:8000/v1#org/unheard-of") is None


def test_with_a_network_the_hub_is_believed(monkeypatch):
    def info(self, place, **_):
        files = [
            types.SimpleNamespace(rfilename="model.safetensors", size=123),
            types.SimpleNamespace(rfilename="a.md", size=9),
        ]
        total = types.SimpleNamespace(total=PUBLISHED["google/paligemma2-3b-mix-448"])
        return types.SimpleNamespace(siblings=files, safetensors=total, gated="manual")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", info)
    size = sizes.look_up("google/paligemma2-3b-mix-448?bits=4")
    assert size.on_disk == 123
    assert "accept its licence" in size.note


def test_a_model_the_hub_does_not_have_is_one_sentence(monkeypatch):
    from huggingface_hub.errors import RepositoryNotFoundError

    def info(*_, **__):
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", info)
    with pytest.raises(AuditError, match='"org/typo": the hub has no such model'):
        sizes.look_up("org/typo")


def test_what_is_no_model_is_one_sentence(tmp_path):
    with pytest.raises(AuditError, match="is no folder of a model"):
        sizes.look_up(str(tmp_path))
    with pytest.raises(AuditError, match="a llama model does not read images"):
        sizes.empty(hf.LlamaConfig())


FAMILIES = ["t5gemma2", "aya_vision", "mllama", "ovis2", *tiny.FAMILIES]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_planned_for_a_familys_folder_is_what_is_loaded(name, tmp_path):
    """By the kit's own loader, which needs no torchvision: weights, byte for byte, and the tokens of a picture."""
    if name == "smolvlm":
        pytest.importorskip("num2words")
    folder = tiny.save(name, tmp_path / name)
    size, model = sizes.look_up(f"{folder}?max_pixels=3000"), load_model(folder, "cpu")
    loaded = sum(p.numel() * p.element_size() for p in model.model.parameters())
    assert memory.weights(size, model.model.dtype.itemsize) == loaded
    assert size.parameters == model.model.num_parameters() and size.at_hand
    text = processors.chat(model, "?")
    inputs = processors.batch(model, [Image.new("RGB", (54, 54))], [text])
    assert size.pixels == inputs["pixel_values"].numel()
    if name not in ("mllama",):  # whose text sees the picture from beside, not as tokens
        assert size.image_tokens == (inputs["input_ids"] == model.model.config.image_token_id).sum() > 0
