"""Pictures made by pipelines of ten classes: by their own seeds, of the right size, and dropped with a reason."""

import functools
import json
import random
import shutil
import sys

import numpy as np
import painters
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from auditkit import specs
from auditkit.counterfactual import make, pipelines
from auditkit.counterfactual.image_sizes import working_size
from auditkit.counterfactual.make import GeneratedImage, edit_images, load_pipeline, regenerate_images
from auditkit.counterfactual.quality import Change, incoherence, measure_change
from auditkit.data.pictures import upright
from auditkit.errors import AuditError
from auditkit.miniature import edits, world

EDITORS = [name for name in painters.PAINTERS if "Kontext" in name or "Klein" in name or "Pix2Pix" in name]
GENERATORS = [name for name in painters.PAINTERS if "Pix2Pix" not in name]
WAYS = [(name, "regenerate") for name in GENERATORS] + [(name, "edit") for name in EDITORS]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """name of a class -> the folder of its tiny pipeline."""
    folder = tmp_path_factory.mktemp("painters")
    return lambda name: folder / name if (folder / name).is_dir() else painters.save(name, folder / name)


@pytest.fixture(scope="module")
def loaded(saved):
    """name of a class -> its tiny pipeline, loaded once."""
    known = {}
    return lambda name: known.get(name) or known.setdefault(name, load_pipeline(painters.spec(name, saved(name))))


@pytest.fixture
def own(saved):
    """name of a class -> its tiny pipeline for this test alone, which may break it."""
    return lambda name, more="": load_pipeline(painters.spec(name, saved(name)) + more)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def apart(one: GeneratedImage, other: GeneratedImage) -> float:
    """Mean absolute difference of two pictures, in grey levels of 256."""
    assert one.image is not None and other.image is not None, (one.why, other.why)
    return float(np.abs(np.asarray(one.image, dtype=float) - np.asarray(other.image, dtype=float)).mean())


def counted(monkeypatch, thing, method: str) -> list:
    """The arguments of every call of a method from now on; pipelines look at its signature."""
    calls, usual = [], getattr(thing, method)

    @functools.wraps(usual)
    def noted(*more, **named):
        calls.append((more, named))
        return usual(*more, **named)

    monkeypatch.setattr(thing, method, noted)
    return calls


def refused(spec, *words):
    with pytest.raises(AuditError) as error:
        load_pipeline(spec)
    assert all(str(word) in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------- every class, both ways


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_a_picture_depends_on_its_own_seed_text_and_image_and_not_on_its_batch(loaded, monkeypatch, name, way):
    painter = loaded(name)
    steps = counted(monkeypatch, painter.pipe.scheduler, "step")
    first, second, wide = picture(96, 96), picture(96, 96, 1), picture(60, 37)
    rows = [
        (first, "a red box", 1),
        (first, "a red box", 2),
        (first, "where are the many small boats in this picture of a lake?", 1),
        (wide, "a red box", 1),
        (second, "a red box", 1),
    ]

    def make(rows):
        images, texts, seeds = zip(*rows, strict=True)
        return edit_images(painter, images, texts, seeds) if way == "edit" else regenerate_images(painter, texts, seeds)

    together = make(rows)
    assert [painting.why for painting in together] == [""] * 5
    assert [p.image.size for p in together] == [i.size if way == "edit" else (96, 96) for i, _, _ in rows]
    assert all(painting.image.mode == "RGB" and painting.seconds > 0 for painting in together)
    for i in (2, 3):
        steps.clear()
        assert apart(make([rows[i]])[0], together[i]) < 0.5
        assert len(steps) == 2  # ?steps=2
    assert apart(together[0], together[1]) > 2, "the seed does not matter"
    assert apart(together[0], together[2]) > 0.5, "the text does not matter"
    if way == "edit":
        assert apart(together[0], together[4]) > 0.5, "the image does not matter"
    else:
        assert apart(together[0], together[3]) < 0.5, "one seed and one text, two pictures"


@pytest.mark.parametrize("name", painters.PAINTERS)
def test_an_option_that_the_call_does_not_take_is_refused_by_name_before_weights_are_read(saved, tmp_path, name):
    folder = tmp_path / "pipeline"
    folder.mkdir()
    shutil.copy(saved(name) / "model_index.json", folder)
    refused(f"{folder}?step=3", name, "takes no step;", "the nearest is steps")
    refused(f"{folder}?num_inference_stepz=3", "takes no num_inference_stepz", "the nearest is num_inference_steps")
    refused(f"{folder}?generator=3", "generator is no option")
    refused(f"{folder}?height=3", "?size=WIDTHxHEIGHT")
    if "max_length" not in painters.PAINTERS[name][1]:  # CLIP reads 77 tokens
        refused(f"{folder}?max_length=3", "takes no max_length")


@pytest.mark.parametrize("name", painters.PAINTERS)
def test_no_option_is_recommended_that_the_pipeline_would_then_refuse(loaded, name):
    pipe = loaded(name).pipe
    for device in ("cpu", "cuda"):
        for option in pipelines._advisable(type(pipe), device) - set(specs.PIPELINE_OPTIONS):
            assert pipelines.call_of(type(pipe), name, {option: 1}) == {option: 1}
    assert "offload" not in pipelines._advisable(type(pipe), "cpu"), "there are no weights to bring to a GPU"
    if "cache" in pipelines._advisable(type(pipe), "cpu"):
        pipelines.cache(pipe, name, "first_block", {})
        pipelines.denoiser(pipe).disable_cache()
    with pytest.raises(AuditError) as error:
        pipelines.call_of(type(pipe), name, {"negative_prompt_embed": 1})
    assert not str(error.value).endswith("_embeds."), "which no text can be"


@pytest.mark.parametrize(
    "name", ["FluxPipeline", "Flux2KleinPipeline", "ZImagePipeline", "SanaSprintPipeline", "StableDiffusionPipeline"]
)
def test_what_the_text_encoder_could_not_read_is_said(loaded, name):
    painter = loaded(name)
    text = "A harbour. " + " ".join(f"boat {i}," for i in range(60)) + " and the SEA"
    short, long = regenerate_images(painter, ["A harbour", text], [1, 1])
    assert short.cut == "" and long.cut and text.endswith(long.cut) and long.cut != text
    unseen = text.removesuffix(long.cut)
    other = regenerate_images(painter, [unseen + long.cut.replace("boat", "tree"), "!" + text[1:]], [1, 1])
    if name == "FluxPipeline":  # whose CLIP reads on, for the tone
        assert len(long.cut) > len(text) - 100
    else:
        assert apart(other[0], long) < 0.5
    assert apart(other[1], long) > 0.01


# ------------------------------------------------------------------------------------------------------------- options


def test_an_option_goes_to_the_call_under_the_name_that_this_pipeline_has(saved, own):
    assert own("FluxPipeline", "&guidance=0").call == {
        "num_inference_steps": 2, "max_sequence_length": 48, "guidance_scale": 0.0,
    }  # fmt: skip
    painter = own("StableDiffusionInstructPix2PixPipeline", "&eta=0.5&batch_size=3")
    assert painter.call["image_guidance_scale"] == 1.5 and painter.call["eta"] == 0.5 and painter.batch_size == 3
    from diffusers import QwenImagePipeline

    call = pipelines.call_of(QwenImagePipeline, "qwen", {"guidance": 4.0, "negative_prompt": ""})
    assert call == {"true_cfg_scale": 4.0, "negative_prompt": ""}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("size=big", "size is written 512 or 768x512"),
        ("size=0x4", "size is written 512 or 768x512"),
        ("steps=0", "steps wants a number above 0"),
        ("guidance=-1", "guidance wants a number"),
        ("offload=disk", "offload is one of"),
        ("cache=deep", "cache is one of"),
        ("steps", "write options as ?name=value"),
    ],
)
def test_a_value_that_an_option_cannot_take_is_refused(options, words):
    with pytest.raises(AuditError) as error:
        specs.parse_pipeline(f"org/pipeline?{options}")
    assert words in str(error.value)


def test_a_folder_may_say_what_its_weights_were_trained_for_and_the_spec_goes_before_it(saved, tmp_path):
    folder = shutil.copytree(saved("FluxKontextPipeline"), tmp_path / "mine")
    (folder / "painter.json").write_text(json.dumps({"size": 64, "steps": 1, "max_length": 16}))
    painter = load_pipeline(f"{folder}?steps=3")
    assert painter.size == (64, 64) and painter.call == {"num_inference_steps": 3, "max_sequence_length": 16}
    assert painter.name == "mine"
    assert regenerate_images(painter, ["a box"], [0])[0].image.size == (64, 64)
    (folder / "painter.json").write_text("[64]")
    refused(folder, "painter.json", "no JSON object of options")
    (folder / "painter.json").write_text('{"sice": 64}')
    refused(folder, "takes no sice", "the nearest is size")


def test_a_picture_has_the_size_asked_for_brought_to_what_the_pipeline_can_make(own, saved, monkeypatch):
    painter = own("FluxKontextPipeline", "&size=66x41")
    assert regenerate_images(painter, ["a box"], [0])[0].image.size == (64, 40)  # multiples of 4
    calls = counted(monkeypatch, painter.pipe, "prepare_latents")
    assert edit_images(painter, [picture(300, 100)], ["a box"], [0])[0].image.size == (300, 100)
    ((reference, _, _, height, width, *_), _), = calls  # fmt: skip
    assert (width, height) == (92, 32)  # the pixels of 66 x 41, three times as wide as high
    assert reference.shape[2:] == (32, 92)
    plain = load_pipeline(painters.spec("FluxKontextPipeline", saved("FluxKontextPipeline")).replace("&size=96", ""))
    assert working_size(plain, picture(64, 64)) == (256, 256)  # 128 latents of 2 pixels a side


# ----------------------------------------------------------------------------------------------------- images to edit


def turned(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.getexif()[0x0112] = 6  # to be turned by 90 degrees
    return image


def test_an_image_of_any_mode_and_orientation_stands_upright_in_rgb():
    base = picture(8, 5)
    for mode in ("L", "P", "CMYK", "1", "RGBA", "LA", "YCbCr", "HSV", "I", "F"):
        found = upright(base.convert("RGBA").convert(mode) if mode == "LA" else base.convert(mode))
        assert found.mode == "RGB" and found.size == (8, 5)
        assert (
            mode in ("1", "P")
            or np.abs(np.asarray(found.convert("L"), float) - np.asarray(base.convert("L"))).max() < 12
        )
    deep = Image.fromarray(np.asarray(base.convert("L"), dtype=np.uint16) * 257)
    grey = np.asarray(base.convert("L"), float)  # sixteen bits are scaled by the picture's own range
    grey = (grey - grey.min()) * 255 / (grey.max() - grey.min())
    assert deep.mode == "I;16" and np.abs(np.asarray(upright(deep))[..., 0] - grey).max() <= 0.5
    glass = base.convert("P")
    glass.info["transparency"] = glass.getpixel((0, 0))
    assert upright(glass).getpixel((0, 0)) == (255, 255, 255)
    assert upright(turned(base)).size == (5, 8)


def test_images_of_odd_sizes_modes_and_orientations_are_edited_in_one_call_each_at_its_size(loaded):
    odd = [
        picture(1, 1),
        picture(3, 170),
        picture(33, 57).convert("RGBA"),
        turned(picture(40, 20)),
        picture(9, 9).convert("P"),
    ]
    paintings = edit_images(loaded("FluxKontextPipeline"), odd, ["paint it red"] * 5, range(5))
    assert [p.image.size if p.image else p.why for p in paintings] == [
        (1, 1),
        (3, 170),
        (33, 57),
        (20, 40),
        (9, 9),
    ] or (
        paintings[0].why == "black" and [p.image.size for p in paintings[1:]] == [(3, 170), (33, 57), (20, 40), (9, 9)]
    )


# ------------------------------------------------------------------------------------------------- what can go wrong


def test_a_blocked_picture_is_dropped_and_said_to_be(own):
    painter = own("StableDiffusionPipeline")
    painter.pipe.run_safety_checker = lambda image, *_: (image, [True, False])
    blocked, good = regenerate_images(painter, ["one box", "a box"], [0, 1])
    assert (blocked.image, blocked.why) == (None, "blocked") and good.why == "" and good.image


def test_a_picture_of_nothing_is_dropped(own):
    painter = own("FluxPipeline")
    torch.nn.init.zeros_(painter.pipe.vae.decoder.conv_out.weight)
    assert [(p.image, p.why) for p in regenerate_images(painter, ["a box"], [0])] == [(None, "black")]


def failing(painter, error, when):
    """Let the pipeline raise where `when(prompts)`."""
    encode = painter.pipe.encode_prompt

    def encoded(prompt=None, *more, **named):
        if when([prompt] if isinstance(prompt, str) else prompt):
            raise error
        return encode(prompt, *more, **named)

    painter.pipe.encode_prompt = encoded


def test_one_picture_that_fails_is_dropped_with_the_reason_and_the_others_are_as_without_it(own, loaded):
    painter = own("FluxPipeline")
    failing(painter, ValueError("no boats here\nat all"), lambda prompts: "a boat" in prompts)
    paintings = regenerate_images(painter, ["a box", "a boat", "a tree"], [1, 2, 3])
    assert paintings[1] == GeneratedImage(None, "failed: no boats here")
    usual = regenerate_images(loaded("FluxPipeline"), ["a box", "a tree"], [1, 3])
    assert apart(paintings[0], usual[0]) < 0.5 and apart(paintings[2], usual[1]) < 0.5
    with pytest.raises(AuditError, match="not one of 2 pictures could be made.*no boats here"):
        regenerate_images(painter, ["a boat", "a boat"], [0, 1])


def test_an_error_of_ours_is_not_taken_for_a_picture_that_failed(own):
    painter = own("FluxPipeline")
    failing(painter, AuditError("stop"), lambda prompts: "a boat" in prompts)
    with pytest.raises(AuditError, match="^stop$"):
        regenerate_images(painter, ["a box", "a boat"], [0, 1])


def test_a_batch_that_does_not_fit_is_halved_and_a_single_picture_that_does_not_is_an_error(own, loaded, capsys):
    painter = own("FluxPipeline", "&batch_size=5")
    failing(painter, torch.OutOfMemoryError("CUDA out of memory."), lambda prompts: len(prompts) > 2)
    texts = ["a box", "a boat", "a tree", "a lake", "a red box"]
    paintings = regenerate_images(painter, texts, range(5))
    assert painter.batch_size == 2 and "out of memory" in capsys.readouterr().out
    for one, other in zip(paintings, regenerate_images(loaded("FluxPipeline"), texts, range(5)), strict=True):
        assert apart(one, other) < 0.5
    failing(painter, torch.OutOfMemoryError("CUDA out of memory."), lambda prompts: True)
    with pytest.raises(AuditError, match="out of memory with a single picture; .*size"):
        regenerate_images(painter, texts, range(5))


def test_who_takes_no_image_cannot_edit_and_who_needs_one_cannot_generate(loaded):
    with pytest.raises(AuditError, match='"ZImagePipeline": a ZImagePipeline takes no image'):
        edit_images(loaded("ZImagePipeline"), [picture(8, 8)], ["a box"], [0])
    with pytest.raises(AuditError, match="a StableDiffusionInstructPix2PixPipeline may be one that only edits"):
        regenerate_images(loaded("StableDiffusionInstructPix2PixPipeline"), ["a box"], [0])


def test_nothing_asked_is_nothing_made(loaded):
    painter = loaded("FluxKontextPipeline")
    assert regenerate_images(painter, [], []) == edit_images(painter, [], [], []) == []
    with pytest.raises(ValueError, match="belongs together"):
        regenerate_images(painter, ["a box"], [])


# ------------------------------------------------------------------------------------------------- memory and speed


@pytest.mark.parametrize(
    ("offload", "method"),
    [
        ("model", "enable_model_cpu_offload"),
        ("sequential", "enable_sequential_cpu_offload"),
        ("group", "enable_group_offload"),
        ("none", "to"),
    ],
)
def test_weights_wait_as_asked_where_there_is_a_gpu_and_without_one_it_is_refused(saved, monkeypatch, offload, method):
    spec = painters.spec("FluxPipeline", saved("FluxPipeline")) + f"&offload={offload}"
    if offload != "none":
        refused(f"{spec}&device=cpu", f"offload={offload}", "leave it out")
    called = []
    for name in ("enable_model_cpu_offload", "enable_sequential_cpu_offload", "enable_group_offload", "to"):
        monkeypatch.setattr(DiffusionPipeline, name, lambda self, *a, its=name, **k: called.append((its, a, k)) or self)
    monkeypatch.setattr(make, "choose_device", lambda device: "cuda:1")
    monkeypatch.setattr(make, "choose_dtype", lambda dtype, device: torch.float32)
    load_pipeline(spec)
    there = [name for name, more, named in called if "cuda:1" in map(str, (*more, *named.values()))]
    assert there == [method]


@pytest.mark.parametrize("cache", ["first_block", "taylorseer", "pyramid"])
@pytest.mark.parametrize("name", ["FluxPipeline", "FluxKontextPipeline"])
def test_a_cache_skips_work_and_is_empty_before_the_next_call(own, name, cache):
    painter = own(name, f"&cache={cache}")
    painter.call["num_inference_steps"] = 12
    if cache == "first_block":  # with random weights no two steps are alike
        painter.pipe.transformer.disable_cache()
        from diffusers import FirstBlockCacheConfig

        painter.pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=100.0))
    work = []
    painter.pipe.transformer.single_transformer_blocks[0].attn.to_q.register_forward_hook(lambda *_: work.append(1))
    three = regenerate_images(painter, ["a box", "a boat", "a tree"], [0, 1, 2])
    assert 0 < len(work) < 12
    again = regenerate_images(painter, ["a box", "a boat", "a tree"], [0, 1, 2])
    assert max(map(apart, three, again)) == 0
    regenerate_images(painter, ["a box"], [0])


def test_a_cache_that_a_pipeline_cannot_have_is_refused_or_said_to_be_the_reason(saved, own):
    refused(
        painters.spec("ZImagePipeline", saved("ZImagePipeline")) + "&cache=pyramid", "has no cache", "?cache=pyramid"
    )
    twice = "&cache=pyramid&true_cfg_scale=2&negative_prompt=dull"
    refused(
        painters.spec("FluxKontextPipeline", saved("FluxKontextPipeline")) + twice, "twice a step", "?cache=pyramid"
    )
    with pytest.raises(AuditError, match=r"leave \?cache out"):
        regenerate_images(own("Flux2KleinPipeline", "&cache=first_block"), ["a box"], [0])


# --------------------------------------------------------------------------------------------- pipelines not to be had


def test_what_is_no_pipeline_is_refused_in_a_sentence(saved, tmp_path):
    refused(tmp_path / "none", "no such model", "FLUX.2-klein")
    refused("miniature:nobody", "no such miniature")
    refused(tmp_path, "has no model_index.json")
    (tmp_path / "model_index.json").write_text('{"_class_name": "PipelineOfTomorrow"}')
    refused(tmp_path, "does not know a PipelineOfTomorrow")
    (tmp_path / "model_index.json").write_text('{"_class_name": ["pipeline", "Mine"]}')
    refused(tmp_path, "code of its own")
    (tmp_path / "model_index.json").write_text("{")
    refused(tmp_path, "no model_index.json that names a pipeline")


def test_pickled_and_missing_weights_are_refused(saved, tmp_path):
    folder = shutil.copytree(saved("FluxPipeline"), tmp_path / "mine")
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    torch.save({}, weights.with_suffix(".bin"))
    load_pipeline(folder)  # beside safetensors it is not looked at
    weights.unlink()
    refused(folder, "transformer/diffusion_pytorch_model.bin", "never read")
    weights.with_suffix(".bin").unlink()
    refused(folder, "weights could not be loaded")


def test_no_code_that_comes_with_a_pipeline_is_run(saved, tmp_path):
    folder = shutil.copytree(saved("FluxPipeline"), tmp_path / "mine")
    (folder / "pipeline.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    (folder / "transformer" / "own.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    index = json.loads((folder / "model_index.json").read_text())
    index["transformer"] = ["own", "Mine"]
    (folder / "model_index.json").write_text(json.dumps(index))
    refused(folder, "mine")
    assert not (tmp_path / "run").exists() and "own" not in sys.modules


# ------------------------------------------------------------------------------------------------------ what changed


def boards(command: str, seed: int = 0) -> tuple[Image.Image, Image.Image]:
    rng = random.Random(seed)
    while (after := edits.apply(before := world.random_scene(rng), command)) is None or after == before:
        pass
    return tuple(Image.fromarray(world.render(scene)) for scene in (before, after))


def test_the_box_is_around_the_cell_that_a_command_changed():
    before, after = boards("remove what is at b3")
    change = measure_change(before, after)
    x0, y0, x1, y1 = change.box
    exact = np.argwhere((np.asarray(before) != np.asarray(after)).any(2))
    (top, left), (bottom, right) = exact.min(0), exact.max(0) + 1
    assert abs(x0 - left) <= 3 and abs(y0 - top) <= 3 and abs(x1 - right) <= 3 and abs(y1 - bottom) <= 3
    assert change.share == (x1 - x0) * (y1 - y0) / 64**2 and change.rest > 0.97
    assert incoherence(change) == ""


@pytest.mark.parametrize("noise", ["a wide faint patch", "a few bright pixels"])
def test_the_box_is_around_a_small_change_and_not_around_noise_in_another_cell(noise):
    before = np.full((64, 64, 3), 90, np.uint8)
    after = before.copy()
    after[34:40, 50:56] = 210  # what was asked for
    if noise == "a wide faint patch":
        after[1:15, 1:15] += 25
    else:
        after[2:14:6, 2:14:6] = 255
    x0, y0, x1, y1 = measure_change(Image.fromarray(before), Image.fromarray(after)).box
    assert 46 <= x0 <= 50 and 30 <= y0 <= 34 and 56 <= x1 <= 60 and 40 <= y1 <= 44


def test_nothing_everything_and_elsewhere_changed():
    before, after = boards("remove what is at b3")
    noise = np.random.default_rng(0).normal(0, 4, (64, 64, 3))
    noisy = Image.fromarray(np.clip(np.asarray(before) + noise, 0, 255).astype(np.uint8))
    assert measure_change(before, before) == Change(None, 0.0, 1.0)
    assert incoherence(measure_change(before, noisy)) == "unchanged"
    night = measure_change(*boards("change the background to night"))
    assert night.share > 0.9 and incoherence(night) == "not targeted" and incoherence(night, most=1.0) != "unchanged"
    blurred = before.resize((16, 16)).resize((64, 64))
    spoilt = np.asarray(blurred).copy()
    spoilt[:16, :16] = 255 - spoilt[:16, :16]
    assert incoherence(measure_change(blurred, Image.fromarray(spoilt))) == ""
    assert measure_change(before, Image.fromarray(spoilt)).rest < 0.8
    with pytest.raises(ValueError, match="cannot be compared"):
        measure_change(before, before.resize((32, 32)))
    assert measure_change(picture(2, 2), picture(2, 2)).rest is None  # too small for a window
