"""The shipped editor and generator do as they are told, counted by a reader of pixels that is no model."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from auditkit.counterfactual.make import edit_images, load_pipeline, regenerate_images
from auditkit.miniature import draw, edits, painted, painters, reading
from auditkit.miniature.boards import Boards, scene_of
from auditkit.miniature.world import random_scene, render


@pytest.fixture(scope="module")
def editor():
    return load_pipeline("miniature:editor", "cpu")


@pytest.fixture(scope="module")
def generator():
    return load_pipeline("miniature:generator", "cpu")


def test_they_are_real_pipelines(editor, generator):
    assert type(editor.pipe).__name__ == "FluxKontextPipeline" and type(generator.pipe).__name__ == "FluxPipeline"
    for pipe in (editor.pipe, generator.pipe):
        weights = sum(p.numel() for part in pipe.components.values() if isinstance(part, torch.nn.Module)
                      for p in part.parameters())  # fmt: skip
        assert 1e6 < weights < 5e6


def test_a_saved_pipeline_does_not_say_where_its_parts_were(generator, tmp_path):
    painters.save(generator.pipe, tmp_path / "again")
    configs = list((tmp_path / "again").rglob("*.json"))
    assert tmp_path / "again" / "vae" / "config.json" in configs
    assert not [path for path in configs if "_name_or_path" in path.read_text(encoding="utf-8")]
    load_pipeline(str(tmp_path / "again"), "cpu")


def test_the_editor_does_every_kind_of_command_and_leaves_the_rest(editor):
    found = painted.edited(editor, 24, editor.call["num_inference_steps"], seed=7)
    for kind, rate in found["applied"].items():
        assert rate["value"] >= 0.8, kind
    assert found["applied"]["all"]["value"] >= 0.93 and found["rest"]["value"] >= 0.985
    control = painted.edited(editor, 12, editor.call["num_inference_steps"], seed=7, shuffled=True)
    assert control["applied"]["all"]["value"] < 0.3, "a command of another board must not do"


def test_the_generator_shows_what_a_caption_names(generator):
    found = painted.generated(generator, 100, generator.call["num_inference_steps"], seed=7)
    assert found["there"]["all"]["value"] >= 0.93 and found["empty"]["value"] >= 0.97


def test_a_picture_depends_on_its_seed_and_words_and_not_on_its_batch(editor, generator):
    board = Image.fromarray(render(random_scene(random.Random(5), 3)))
    commands = ["remove what is at a1", "put a E at a1", "remove what is at a1"]
    one, other, again = edit_images(editor, [board] * 3, commands, [1, 1, 1])
    (alone,) = edit_images(editor, [board], ["remove what is at a1"], [1])
    gap = [np.abs(np.asarray(one.image, int) - np.asarray(x.image, int)).max() for x in (again, alone, other)]
    assert gap[0] <= 1 and gap[1] <= 1 and gap[2] > 60
    captions = ["night board with a E at b2"] * 2
    first, second = regenerate_images(generator, captions, [1, 2])
    assert np.asarray(first.image).shape == (64, 64, 3) and first.image.tobytes() != second.image.tobytes()


def test_a_longer_text_is_cut_and_said_so(generator):
    things = ", ".join(f"a small dotted red star at {place}" for place in edits.POSITIONS)
    (painting,) = regenerate_images(generator, [f"fog board with {things}"], [0])
    assert painting.image is not None and painting.cut.endswith("red star at d4") and "a1" not in painting.cut


def test_the_reader_reads_every_thing_on_every_ground_also_through_noise():
    rng, numbers = random.Random(0), np.random.default_rng(0)
    for _ in range(60):
        scene = random_scene(rng)
        rough = render(scene).astype(float) + numbers.normal(0, 6, (64, 64, 3))
        assert reading.read(render(scene)) == scene == reading.read(rough.clip(0, 255).astype(np.uint8))
        assert scene_of(Boards().read(Image.fromarray(render(scene)))) == scene
    large = Image.fromarray(render(scene)).resize((256, 256), Image.Resampling.NEAREST)
    assert reading.read(large) == scene


def test_latents_are_packed_cell_by_cell_and_back():
    for n in (8, 16):
        latents = torch.randn(2, painters.CHANNELS, n, n)
        tokens = painters.pack(latents)
        assert torch.equal(painters.unpack(tokens), latents)
        assert set(tokens[0, 0].tolist()) == set(latents[0, :, : n // 4, : n // 4].flatten().tolist())


def test_an_autoencoder_grows_around_what_it_knew():
    small = painters.autoencoder(halvings=2)
    grown = painters.deeper(small)
    assert torch.equal(grown.encoder.conv_in.weight, small.encoder.conv_in.weight)
    assert torch.equal(
        grown.decoder.up_blocks[3].resnets[0].conv1.weight, small.decoder.up_blocks[2].resnets[0].conv1.weight
    )
    boards = draw.boards(np.zeros(2, int), np.zeros((2, 16), int))
    assert grown.decode(grown.encode(boards).latent_dist.mean).sample.shape == boards.shape
