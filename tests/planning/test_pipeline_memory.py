"""What pipelines and the picture check weigh is known before they are loaded, and the plan counts it."""

from dataclasses import replace
from types import SimpleNamespace

import diffusers as df
import pytest
import torch
import transformers as hf
from picture_checks import clip, save

from auditkit.cli import main
from auditkit.counterfactual.clip_direction import load_picture_check
from auditkit.counterfactual.make import load_pipeline
from auditkit.errors import AuditError
from auditkit.params import load_params
from auditkit.planning import sizes
from auditkit.planning.pipeline_memory import picture_models, pipeline_parts
from auditkit.planning.placement import memory_needs, placed_models
from auditkit.planning.plan import Machine, refuse_misfit

PIPELINES = ("miniature:generator", "miniature:editor")


@pytest.fixture(autouse=True)
def no_network(monkeypatch, repository):
    def down(*_, **__):
        raise ConnectionError("no network")

    for question in ("model_info", "parse_safetensors_file_metadata"):
        monkeypatch.setattr(f"huggingface_hub.HfApi.{question}", down)
    monkeypatch.chdir(repository)
    pipeline_parts.cache_clear()
    sizes.look_up.cache_clear()
    yield
    pipeline_parts.cache_clear()


def modules(pipe) -> dict[str, torch.nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


@pytest.mark.parametrize("text", PIPELINES)
def test_a_pipeline_weighs_what_it_takes_when_it_is_loaded(text):
    p = load_params("params/demo.yaml", generator=text, editor=text)
    (weight,) = picture_models(p, on_gpu=False)
    loaded = modules(load_pipeline(text, "cpu").pipe)
    size = {name: sum(t.nbytes for t in part.parameters()) for name, part in loaded.items()}
    assert {name: weight.e * numbers for name, (numbers, _) in weight.parts.items()} == size
    assert weight.weights == sum(size.values()) == weight.at_work and weight.on_disk == 0
    largest = max(max(t.numel() for t in part.parameters()) for part in loaded.values())
    assert max(most for _, most in weight.parts.values()) == largest
    half = replace(p, generator=f"{text}?dtype=float16&offload=model", editor="", ways=["regenerate"])
    (weight,) = picture_models(half, on_gpu=True)
    assert 2 * weight.weights == sum(size.values()) and 2 * weight.at_work == max(size.values())
    assert weight.stays(False) == weight.stays(True) == 0


def test_the_papers_pipelines_are_their_published_configurations():
    levels = (128, 256, 512, 512)
    with torch.device("meta"):
        parts = {
            "transformer": df.FluxTransformer2DModel(guidance_embeds=True),
            "text_encoder_2": hf.T5EncoderModel(
                hf.T5Config(
                    vocab_size=32128, d_model=4096, d_ff=10240, num_layers=24, num_heads=64,
                    feed_forward_proj="gated-gelu",
                )
            ),
            "text_encoder": hf.CLIPTextModel(
                hf.CLIPTextConfig(
                    hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
                )
            ),
            "vae": df.AutoencoderKL(
                block_out_channels=levels, down_block_types=("DownEncoderBlock2D",) * 4, latent_channels=16,
                up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, use_quant_conv=False,
                use_post_quant_conv=False,
            ),
        }  # fmt: skip
    found = {
        name: (sum(p.numel() for p in part.parameters()), max(p.numel() for p in part.parameters()))
        for name, part in parts.items()
    }
    assert pipeline_parts("black-forest-labs/FLUX.1-dev?steps=28") == (found, 2 * sum(n for n, _ in found.values()))


def test_a_cached_hub_folder_is_counted_without_its_variants(tmp_path, monkeypatch):
    folder = tmp_path / "snapshots/abc"
    pipe = load_pipeline("miniature:generator", "cpu").pipe
    pipe.save_pretrained(folder, max_shard_size="300KB")
    pipe.transformer.save_pretrained(folder / "transformer", variant="fp16")
    (folder / "flux1-dev.safetensors").write_bytes(b"the same, in another format")
    assert len(list(folder.glob("transformer/*-of-*.safetensors"))) > 2
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda place, name, **_: str(folder / name))
    parts, on_disk = pipeline_parts("org/pipeline?offload=model")
    assert on_disk == 0
    assert {name: n for name, (n, _) in parts.items()} == {
        name: sum(t.numel() for t in part.parameters()) for name, part in modules(pipe).items()
    }


def test_the_hub_is_asked_for_headers_alone(monkeypatch):
    files = {"unet/diffusion_pytorch_model.safetensors": 80, "unet/diffusion_pytorch_model.fp16.safetensors": 40}
    files |= {"vae/diffusion_pytorch_model.safetensors": 16, "model_index.json": 1, "whole.safetensors": 96}

    def info(self, place, **_):
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=n, size=s) for n, s in files.items()])

    def head(self, place, file, **_):
        shapes = {"unet": [(3, 5), (5,)], "vae": [(2, 2)]}[file.split("/")[0]]
        return SimpleNamespace(tensors={str(i): SimpleNamespace(shape=shape) for i, shape in enumerate(shapes)})

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", info)
    monkeypatch.setattr("huggingface_hub.HfApi.parse_safetensors_file_metadata", head)
    assert pipeline_parts("org/pipeline") == ({"unet": (20, 15), "vae": (4, 4)}, 96)


def test_what_cannot_be_weighed_is_said(tmp_path, capsys):
    assert pipeline_parts("org/unheard-of") == (None, 0)
    with pytest.raises(AuditError, match="has no model_index.json, so it is no pipeline"):
        pipeline_parts(str(tmp_path))
    (tmp_path / "model_index.json").write_text("{}")
    pipeline_parts.cache_clear()
    with pytest.raises(AuditError, match="holds no weights as safetensors"):
        pipeline_parts(str(tmp_path))
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae/diffusion_pytorch_model.safetensors").write_bytes(b"torn")
    pipeline_parts.cache_clear()
    with pytest.raises(AuditError, match="cannot be read"):
        pipeline_parts(str(tmp_path))
    assert main(["plan", "params/demo.yaml", "--gpu", "8", "--set", "editor=org/unheard-of"]) == 0
    assert "Nothing is known here of org/unheard-of" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["together", "turns"])
def test_pipelines_are_counted_in_the_stages_that_paint_and_only_there(how):
    p = load_params("params/gemma3_4b.yaml")
    p = replace(p, generator="black-forest-labs/FLUX.1-dev", editor="", ways=["question", "regenerate"])
    (weight,) = beside = picture_models(p, on_gpu=True)
    cast = placed_models(p, True)
    bare = {need.stage: need for need in memory_needs(p, cast)}
    full = {need.stage: need for need in memory_needs(p, cast, beside=beside)}
    more = {stage: getattr(full[stage], how) - getattr(bare[stage], how) for stage in bare}
    painted = {"03_counterfactual", "04_auditor", "05_audit"}
    assert {stage for stage, bytes_ in more.items() if bytes_} == painted
    assert all(more[stage] == pytest.approx(weight.weights) for stage in painted)  # none of it ever leaves
    only_tried = replace(p, ways=["question"])
    assert picture_models(only_tried, True)[0].stages == ("03_counterfactual",)


def test_an_offloaded_pipeline_is_a_piece_of_work():
    p = load_params("params/gemma3_4b.yaml")
    beside, cast = picture_models(p, on_gpu=True), placed_models(p, True)
    assert [w.offload for w in beside] == ["model", "model"]
    full = {need.stage: need for need in memory_needs(p, cast, beside=beside)}["05_audit"]
    bare = {need.stage: need for need in memory_needs(p, cast)}["05_audit"]
    assert full.turns == max(bare.turns, beside[0].at_work) and full.parked - bare.parked == 2 * beside[0].weights
    assert beside[0].at_work == 2 * 11_901_408_320
    group = replace(beside[0], spec=replace(beside[0].spec, options={"offload": "group"}))
    assert 0 < group.at_work < 1e9


def test_a_pipeline_too_large_is_refused_with_what_to_change():
    small = {"batch_size": 4, "grpo_images": 1, "group_size": 2, "grpo_micro_batch": 1, "rectify_micro_batch": 1}
    cast = {"references": ["google/gemma-3-12b-it"], "peer": "", "editor": "", "ways": ["regenerate"]}
    p = load_params("params/gemma3_4b.yaml", generator="black-forest-labs/FLUX.1-dev", **small, **cast)
    here = Machine("GPU", 48e9, 1, True)
    with pytest.raises(AuditError, match=r"it fits with generator: black-forest-labs/FLUX.1-dev\?offload=model"):
        refuse_misfit(p, here)
    refuse_misfit(replace(p, generator="black-forest-labs/FLUX.1-dev?offload=model"), here)


def test_the_picture_check_is_counted_and_takes_turns(tmp_path):
    p = load_params("params/demo.yaml", picture_check=str(save(clip, tmp_path)), device="cpu")
    judge = picture_models(p, on_gpu=False)[-1]
    loaded = load_picture_check(p).model
    assert judge.weights == sum(t.nbytes for t in loaded.parameters())
    assert set(judge.stages) == {"03_counterfactual", "04_auditor", "05_audit"}
    assert judge.stays(False) == judge.weights and judge.stays(True) == 0
