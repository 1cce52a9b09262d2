"""A CLIP model of the board world, trained from seeds: does a picture show what was wished for?  (counterfactual/clip_direction.py)

It learns the very thing it is asked later. A pair of boards is a change, a check question with its answer is a wish,
and the change is to point where the wish does if, and only if, the wish came true by it. So a batch holds boards
changed as was wished, and the same boards changed in another way: another thing at the same place, or something
elsewhere; and every change is held against every wish. First the tower learns to name what each cell holds, by a head
that is thrown away, as those of the other miniatures do.

auditkit miniature build likeness
auditkit miniature likeness   how well it tells what was done from what was not (likened.py)
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, replace
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers as hf
from torch import nn
from torch.nn import functional as F

from auditkit.miniature import draw, edits, lessons, painters, teach
from auditkit.miniature.grammar import SKILLS, read
from auditkit.miniature.world import BACKGROUNDS, Scene, random_scene
from auditkit.runs.probe import Wish, parse_wish


@dataclass(frozen=True)
class Recipe:
    """How one model is made: from which seed, for how many batches, from which other model."""

    seed: int
    steps: int
    learning_rate: float = 1.5e-3
    start: str = ""


# What only starts the other is not shipped. It learns from boards as they are drawn; the other then from pictures after
# as the shipped editor's autoencoder paints them: what is off a little everywhere is a change, too, but not a wish.
RECIPES = {"likeness_drawn": Recipe(41, 2200), "likeness": Recipe(42, 400, 1e-3, "likeness_drawn")}
LENGTH = 24  # tokens of a check with its answer, at most
GROUPS = 32  # wishes a batch
BOUND, SHARP = 0.2, 20.0  # the cosine that parts changes that were wished for from others, and how sharply
LOOK = 0.08  # share of the training in which the tower only names what cells hold


def build() -> tuple[hf.CLIPModel, hf.CLIPProcessor]:
    """The untrained model, of 1.4 million parameters, and its processor."""
    words = painters.tokenizer(LENGTH, "<s> $A </s>", [*lessons.words(), "?", "."])
    ids = {"pad_token_id": words.pad_token_id, "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    square = {"height": painters.SIDE, "width": painters.SIDE}
    images = hf.CLIPImageProcessorPil(size={"shortest_edge": painters.SIDE}, crop_size=square)
    text = dict(hidden_size=96, intermediate_size=288, num_hidden_layers=2, num_attention_heads=4, **ids)
    vision = dict(hidden_size=160, intermediate_size=480, num_hidden_layers=4, num_attention_heads=5)
    config = hf.CLIPConfig(
        text_config=text | {"vocab_size": len(words), "max_position_embeddings": LENGTH, "hidden_act": "gelu"},
        vision_config=vision | {"image_size": painters.SIDE, "patch_size": 16, "hidden_act": "gelu"},
        projection_dim=256,
    )
    return hf.CLIPModel(config), hf.CLIPProcessor(images, words)


def build_one(name: str, out: Path, steps: int | None = None) -> Path:
    """Train one model of RECIPES from its seed and save it under `out`, after what it starts from, if that is not there
    yet; its log is written beside it.
    """
    from auditkit.miniature import build as builder

    torch.set_num_threads(1)  # two threads spin against each other on models this small
    recipe = RECIPES[name]
    if recipe.start and not (Path(out) / recipe.start).is_dir():
        build_one(recipe.start, out, steps)
    log = builder._log(Path(out), name)
    torch.manual_seed(recipe.seed)
    model, processor = build()
    so_far = lambda: builder.save(copy.deepcopy(model), processor, Path(out) / f"{name}-so-far")  # noqa: E731
    if recipe.start:
        model = hf.CLIPModel.from_pretrained(Path(out) / recipe.start, dtype=torch.float32)
    tiles = painted_tiles(recipe.seed) if recipe.start else None
    learn(model, processor, steps or recipe.steps, recipe.seed, log, recipe.learning_rate, tiles, so_far)
    return builder.save(model.eval(), processor, Path(out) / name)


def learn(
    model, processor, steps: int, seed: int, log: Path, learning_rate: float, tiles=None, on_part=lambda: None
) -> None:
    """Train `model` in place for `steps` batches; weak kinds of wishes are practised more.

    tiles: of `painted_tiles`, for the pictures after; None: they are drawn, and somewhat blurred.
    """
    rng, noise = random.Random(seed), torch.Generator().manual_seed(seed)
    named = nn.Linear(model.config.vision_config.hidden_size, sum(lessons.CELL_CLASSES))  # thrown away
    mean, spread = (
        torch.tensor(x)[:, None, None]
        for x in (processor.image_processor.image_mean, processor.image_processor.image_std)
    )
    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")  # a third of the time of the fused kernel's way back
    scores = dict.fromkeys(KINDS, 0.0)

    def loss(step: int):
        drawn = [wished(rng, kind) for kind in rng.choices(KINDS, [1.1 - scores[k] for k in KINDS], k=GROUPS)]
        scenes = [scene for one in drawn for scene in (one.before, one.after, one.other)]
        pixels = draw.boards(*draw.numbered(scenes))
        pixels = (blurred(pixels, noise) if tiles is None else repainted(pixels, scenes, tiles, noise)) / 2 + 0.5
        cells = torch.from_numpy(np.stack([lessons.cell_labels(scene) for scene in scenes[::3]]))
        with torch.autocast("cpu", torch.bfloat16):
            seen = model.vision_model(pixel_values=(pixels - mean) / spread)
            seeing = seen.last_hidden_state[::3, 1:].float()
            pictures = model.visual_projection(seen.pooler_output).float()
        see = teach._see(named, seeing, cells, lessons.CELL_CLASSES)
        if tiles is None and step < LOOK * steps:
            return see, {"see": see.item()}
        wishes = [one.wish for one in drawn]
        ids = processor.tokenizer(texts(wishes), padding="max_length", return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16):
            said = model.text_projection(model.text_model(**ids).pooler_output).float()
        before, after, other = F.normalize(pictures, dim=-1).reshape(GROUPS, 3, -1).unbind(1)
        change = F.normalize(torch.cat([after - before, other - before]), dim=-1)  # [2 n, d]
        answered, bare = F.normalize(said, dim=-1).chunk(2)
        cosine = change @ F.normalize(answered - bare, dim=-1).T  # [2 n, n]
        changes = [(one.before, one.after) for one in drawn] + [(one.before, one.other) for one in drawn]
        came, known = came_true(changes, wishes)
        right = torch.where(came, 1.0, 0.0)
        each = F.binary_cross_entropy_with_logits(SHARP * (cosine - BOUND), right, reduction="none")
        here = torch.eye(GROUPS, dtype=torch.bool).repeat(2, 1)
        weight = known * torch.where(here, 8.0, torch.where(came, 2.0, 1.0))  # its own wish counts most
        lost = (each * weight).sum() / weight.sum()
        scaled = (SHARP * cosine[:GROUPS]).masked_fill((came | ~known)[:GROUPS] & ~here[:GROUPS], -1e4)
        lost = lost + 0.2 * F.cross_entropy(scaled, torch.arange(GROUPS))
        passed = (cosine.detach() >= BOUND) == came
        mine = torch.stack([passed[:GROUPS].diagonal(), passed[GROUPS:].diagonal()]).all(0)
        draw.keep_score(scores, [one.kind for one in drawn], mine)
        return lost + 0.1 * see, scores | {"see": see.item(), "done": passed[:GROUPS].diagonal().float().mean().item()}

    draw.train([*model.parameters(), *named.parameters()], loss, steps, learning_rate, log, on_part)
    model.set_attn_implementation(attention)


KINDS = [*edits.COMMANDS, "caption"]


@dataclass(frozen=True)
class Drawn:
    """A wish by a command or a caption, a board, the board on which it came true, and one on which it did not."""

    kind: str
    wish: Wish
    before: Scene
    after: Scene
    other: Scene


def wished(rng: random.Random, kind: str) -> Drawn:
    """A wish of this kind, about any board."""
    while True:
        before = random_scene(rng)
        if kind == "caption":
            wish = parse_wish(lessons.caption_and_check(before, rng))
            after = edits.read_caption(wish.text)
        else:
            text = edits.draw(before, rng, kind)
            check, after = edits.check(before, text), edits.apply(before, text)
            if edits.kind(text) != kind or check is None:
                continue
            wish = Wish(text, *check)
        other = otherwise(before, after, wish, rng)
        if other is not None and not holds(before, wish):
            return Drawn(kind, wish, before, after, other)


def otherwise(before: Scene, after: Scene, wish: Wish, rng: random.Random) -> Scene | None:
    """A board changed as much, but not as was wished: at the same place, elsewhere, or without what was to be added."""
    for _ in range(20):
        if rng.random() < 0.5:  # as wished but for one place
            differ = [i for i, (a, b) in enumerate(zip(before.cells, after.cells, strict=True)) if a != b]
            at = [i for i in differ if not holds(_with(after, i, before.cells[i]), wish)] or differ
            if at:
                i = rng.choice(at)
                other = _with(after, i, rng.choice([before.cells[i], edits.any_thing(rng), _near(after.cells[i], rng)]))
            else:
                other = replace(before, background=rng.choice(tuple(BACKGROUNDS)))
        elif len(set(before.cells) ^ set(after.cells)) > 3:  # a caption: that of another board
            other = edits.fewer(random_scene(rng), rng, 3)
        else:
            other = edits.apply(before, edits.draw(before, rng))
        if other is not None and other != before and not holds(other, wish):
            return other
    return None


def _near(cell, rng: random.Random):
    """The cell with one property changed."""
    if cell.kind != "object":
        return edits.any_thing(rng)
    other = edits.any_thing(rng)
    while other.kind != "object":
        other = edits.any_thing(rng)
    name = rng.choice(("shape", "colour", "size", "pattern"))
    return replace(cell, **{name: getattr(other, name)})


def _with(scene: Scene, i: int, cell) -> Scene:
    return Scene((*scene.cells[:i], cell, *scene.cells[i + 1 :]), scene.background)


def holds(scene: Scene, wish: Wish) -> bool:
    skill, words = read(wish.check)
    return SKILLS[skill].solve(scene, *words) == wish.expected


def came_true(changes: list[tuple[Scene, Scene]], wishes: list[Wish]) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether each wish came true by each change, and whether that can be said (not where it was true before and
    after): [P, N] each.
    """
    then, now = np.zeros((2, len(changes), len(wishes)), dtype=bool)
    for j, wish in enumerate(wishes):
        skill, words = read(wish.check)
        solve = SKILLS[skill].solve
        for i, (before, after) in enumerate(changes):
            then[i, j], now[i, j] = (solve(scene, *words) == wish.expected for scene in (before, after))
    return torch.from_numpy(now & ~then), torch.from_numpy(~(now & then))


def texts(wishes: list[Wish]) -> list[str]:
    """Every wish's check with its answer, and then every check without."""
    return [f"{wish.check} {wish.expected}" for wish in wishes] + [wish.check for wish in wishes]


def blurred(pixels: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    """Boards [B, 3, 64, 64] as a pipeline might paint them: half of them a little blurred, all a little grainy."""
    soft = (pixels + pixels.roll(1, -1) + pixels.roll(1, -2)) / 3
    share, grain = torch.rand(2, len(pixels), 1, 1, 1, generator=noise)
    blur = torch.where(share > 0.5, share - 0.5, 0.0)
    return torch.lerp(pixels, soft, blur) + 0.03 * grain * torch.randn(pixels.shape, generator=noise)


def painted_tiles(seed: int, variants: int = 6) -> torch.Tensor:
    """Every content on every background as the shipped editor's autoencoder paints it, from latents a little off, among
    random neighbours: [4, 255, variants, 768] from -1 to 1.
    """
    from auditkit.miniature.shipped import WEIGHTS

    vae = diffusers.AutoencoderKL.from_pretrained(WEIGHTS / "editor" / "vae", torch_dtype=torch.float32)
    numbers, noise = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    found = []
    for ground in range(len(BACKGROUNDS)):
        contents = np.stack([numbers.permutation(draw.N_CONTENTS) for _ in range(variants)]).ravel()
        boards = np.append(contents, contents[: -len(contents) % 16]).reshape(-1, 16)
        tokens = draw.encode(vae, np.full(len(boards), ground), boards)
        tokens = tokens + 0.1 * tokens.std() * torch.randn(tokens.shape, generator=noise)
        latents = painters.unpack(tokens) / vae.config.scaling_factor + vae.config.shift_factor
        with torch.no_grad():
            pixels = torch.cat([vae.decode(some).sample for some in latents.split(64)]).clamp(-1, 1)
        cells = draw.cells_of(pixels).flatten(0, 1)[: len(contents)] / 127.5 - 1
        found.append(cells[np.argsort(contents, kind="stable")].reshape(draw.N_CONTENTS, variants, -1))
    return torch.stack(found)


def repainted(pixels: torch.Tensor, scenes: list[Scene], tiles: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    """Boards [B, 3, 64, 64] with six of seven pictures after, the second and third of every three, put together from
    painted tiles.
    """
    backgrounds, contents = (torch.from_numpy(x) for x in draw.numbered(scenes))
    which = torch.randint(tiles.shape[2], contents.shape, generator=noise)
    cells = tiles[backgrounds[:, None], contents, which].reshape(-1, 4, 4, 16, 16, 3)
    made = cells.permute(0, 5, 1, 3, 2, 4).reshape(pixels.shape)
    after = (torch.arange(len(pixels)) % 3 > 0) & (torch.rand(len(pixels), generator=noise) > 1 / 7)
    return torch.where(after[:, None, None, None], made, pixels)
