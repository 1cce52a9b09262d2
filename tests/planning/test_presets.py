"""The parameter files for a card and for a laptop: they fit it, by models whose configurations are published."""

import diffusers as df
import pytest
import torch
import transformers as hf
from PIL import Image

from auditkit import specs
from auditkit.cli import main
from auditkit.params import load_params
from auditkit.planning import published, sizes
from auditkit.planning.pipeline_memory import KNOWN
from auditkit.planning.placement import placed_models
from auditkit.planning.plan import Machine, plan_text, refuse_misfit

CARDS = {"gpu_8gb": 8, "gpu_24gb": 24, "gpu_80gb": 80}


@pytest.fixture(autouse=True)
def no_network(monkeypatch, repository, tmp_path):
    def down(*_, **__):
        raise ConnectionError("no network")

    for question in ("model_info", "dataset_info"):
        monkeypatch.setattr(f"huggingface_hub.HfApi.{question}", down)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", down)
    monkeypatch.chdir(repository)
    sizes.look_up.cache_clear()
    yield
    sizes.look_up.cache_clear()


@pytest.mark.parametrize(("name", "gb"), CARDS.items())
def test_a_preset_fits_its_card_and_no_smaller_one(name, gb, capsys):
    assert main(["plan", f"params/{name}.yaml", "--gpu", str(gb)]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "Nothing is known here" not in out and "by " not in out.splitlines()[0]
    assert main(["plan", f"params/{name}.yaml", "--gpu", str(gb / 3)]) == 2
    capsys.readouterr()


def test_the_laptops_preset_fits_16_gb_without_a_gpu():
    p, laptop = load_params("params/laptop.yaml"), Machine("a laptop", 16e9, 1, False)
    assert "Nothing is known here" not in plan_text(p, laptop)
    refuse_misfit(p, laptop)
    assert p.ways == ["question"] and p.device == "cpu" and p.audit_probes <= 200


@pytest.mark.parametrize("name", [*CARDS, "laptop"])
def test_a_preset_names_published_models_of_two_makers_and_their_licences(name, repository):
    p = load_params(f"params/{name}.yaml")
    text = (repository / f"params/{name}.yaml").read_text(encoding="utf-8")
    models = [published.catalogued(m.spec.place) for m in placed_models(p, True)]
    assert all(models) and all(model.licence in text for model in models)
    own = published.catalogued(specs.parse(p.target).place)
    known = [published.catalogued(specs.parse(place).place) for place in p.references]
    assert len({model.place.split("/")[0] for model in known}) == 2
    assert own.lineage not in {model.lineage for model in known}


@pytest.mark.parametrize("model", published.CATALOGUE, ids=lambda model: model.place)
def test_a_published_configuration_has_the_published_number_of_parameters(model):
    size = sizes.look_up(model.place)
    assert size.parameters == model.parameters
    assert size.on_disk == model.number * model.parameters and not size.at_hand


def test_other_sizes_of_the_families_are_not_guessed():
    for place in ("Qwen/Qwen3-VL-3B-Instruct", "OpenGVLab/InternVL3_5-2B", "HuggingFaceTB/SmolVLM2-1B-Instruct"):
        assert sizes.known(place) is None


def test_pictures_are_cut_as_the_families_processors_cut_them():
    """By the real image processors, set as the checkpoints' preprocessor_config.json are."""
    smol = hf.SmolVLMImageProcessorPil(size={"longest_edge": 2048}, max_image_size={"longest_edge": 512})
    intern = hf.GotOcr2ImageProcessorPil(size={"height": 448, "width": 448}, crop_to_patches=True, max_patches=12)
    for side in (448, 1000):
        picture, asked = Image.new("RGB", (side, side)), {"max_pixels": side * side}
        size = sizes.count(sizes.known("HuggingFaceTB/SmolVLM2-500M-Video-Instruct"), asked)
        assert size.pixels == smol(images=[[picture]], return_tensors="pt")["pixel_values"].numel()
        assert size.image_tokens == 17 * 64
        size = sizes.count(sizes.known("OpenGVLab/InternVL3_5-2B-HF"), asked)
        assert size.pixels == intern(images=[picture], return_tensors="pt")["pixel_values"].numel()
        assert size.image_tokens == (1 if side == 448 else 10) * 256


def test_the_painter_of_four_steps_is_its_published_configuration():
    with torch.device("meta"):
        parts = {
            "transformer": df.Flux2Transformer2DModel(
                num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680,
                in_channels=128, guidance_embeds=False,
            ),
            "text_encoder": hf.Qwen3ForCausalLM(
                hf.Qwen3Config(
                    vocab_size=151936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36,
                    num_attention_heads=32, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
                )
            ),
            "vae": df.AutoencoderKLFlux2(),
        }  # fmt: skip
    found = {
        name: (
            sum(t.numel() for t in part.state_dict(keep_vars=True).values()),
            max(map(torch.numel, part.parameters())),
        )
        for name, part in parts.items()
    }
    found["text_encoder"] = (parts["text_encoder"].num_parameters(), found["text_encoder"][1])  # its head is tied
    assert KNOWN["black-forest-labs/FLUX.2-klein-4B"] == found
