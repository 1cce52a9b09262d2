"""Teach a miniature autoencoder, editor and generator the board world, from seeds.

What makes so little training enough (measured): the autoencoder's latents of one cell say nothing of its neighbours,
because it also learns to decode boards put together from cells of several; so the latents of any board can be looked up
in a table of the 1,020 tiles, and only the boards to be edited need the encoder. They are close to a sum of what the
cell shows, so that a command is little more than an addition. And the editor starts as the trained
generator: which word means which place is learnt in 400 batches from captions of six things, but was not in 1,500 from
commands, which name one place each.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from torch import nn

from auditkit.miniature import edits, painters, reading
from auditkit.miniature.world import BACKGROUNDS, CELL, Scene, random_scene
from auditkit.models.device import cpu_autocast, keep_freed_memory

N_CONTENTS, N_BACKGROUNDS = len(reading.CONTENTS), len(BACKGROUNDS)
BATCH = 32
POOL = 8_192  # boards to be edited
LEARNING = ("transformer", "text_encoder", "text_encoder_2")  # the parts of a pipeline that are trained together
INDEX = {cell: i for i, cell in enumerate(reading.CONTENTS)}


@dataclass(frozen=True)
class Recipe:
    """How one network is trained: from which seed, for how many batches."""

    seed: int
    steps: int


RECIPES = {"autoencoder": Recipe(31, 4000), "generator": Recipe(33, 2000), "editor": Recipe(32, 1500)}


def build_one(name: str, out: Path, steps: int | None = None) -> Path:
    """Train one network of RECIPES from its seed and save it under `out`, after those it needs, if they are not there
    yet; its log is written beside it.
    """
    from auditkit.miniature import build

    keep_freed_memory()
    torch.set_num_threads(1)  # two threads spin against each other on models this small
    folder, recipe, log = Path(out) / name, RECIPES[name], build._log(Path(out), name)
    wanted = steps or recipe.steps
    if name == "autoencoder":
        autoencoder(wanted, recipe.seed, log).save_pretrained(folder)
        return folder
    before = Path(out) / {"generator": "autoencoder", "editor": "generator"}[name]
    if not before.is_dir():
        build_one(before.name, out, steps)
    vae = diffusers.AutoencoderKL.from_pretrained(Path(out) / "autoencoder")
    so_far = lambda pipe: painters.save(pipe, Path(out) / f"{name}-so-far")  # noqa: E731
    if name == "generator":
        return painters.save(generator(vae, wanted, recipe.seed, log, so_far), folder)
    start = diffusers.DiffusionPipeline.from_pretrained(before, torch_dtype=torch.float32)
    return painters.save(editor(start, vae, wanted, recipe.seed, log, so_far), folder)


def boards(backgrounds: np.ndarray, contents: np.ndarray) -> torch.Tensor:
    """Boards by numbers, [B] and [B, 16], drawn as pixels from -1 to 1: [B, 3, 64, 64]."""
    cells = reading.tiles()[backgrounds[:, None], contents].reshape(-1, 4, 4, CELL, CELL, 3)
    pixels = cells.transpose(0, 5, 1, 3, 2, 4).reshape(-1, 3, 64, 64)
    return torch.from_numpy(np.ascontiguousarray(pixels) / np.float32(127.5) - 1)


def autoencoder(
    steps: int, seed: int, log: Path, learning_rate: float = 2e-3, on_part: Callable = lambda vae: None
) -> diffusers.AutoencoderKL:
    """Train the autoencoder for `steps` batches of 16 boards, a quarter real ones, the others full of any things.

    Three things make it learn, and what it learns easy to paint with:

    1) It grows: two halvings first, then a third inside of them. With three from the start it had hardly begun to tell
       things apart when the other knew half of them.
    2) An absolute loss draws dots away, since eight in nine pixels of a dotted thing are those of a plain one. So after
       a while a squared one takes its place, and small, dotted and written things come more often.
    3) With three halvings, a cell's latents are drawn towards a sum of learnt parts, one a property: red + star +
       small + dotted + night. Then to paint a thing green is to take one part away and to add another one.

    Half of each batch is decoded from latents exchanged cell by cell between boards of one background, and in the end a
    third from the sums of parts.
    """
    torch.manual_seed(seed)
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    small, places = painters.autoencoder(halvings=2), np.arange(16)[None]
    hard = [i for i, c in enumerate(reading.CONTENTS) if c.pattern == "dotted" or c.size == "small" or c.kind == "text"]
    made_of = properties()
    parts = nn.Parameter(0.1 * torch.randn(made_of.shape[-1], 4 * painters.CHANNELS))

    def loss(vae, absolute: float, squared: float, hard_ones: float, noise: float, sums: float):
        backgrounds = numbers.integers(N_BACKGROUNDS, size=4).repeat(4)
        contents = numbers.integers(N_CONTENTS, size=(16, 16))
        often = numbers.random(contents.shape) < hard_ones
        contents = np.where(often, numbers.choice(hard, contents.shape), contents)
        contents[::4] = numbered([random_scene(rng) for _ in range(4)])[1]
        exchange = np.arange(16)[:, None].repeat(16, 1)
        exchange[8:] = exchange[8:] // 4 * 4 + numbers.integers(4, size=(8, 16))
        with cpu_autocast():
            mean = vae.encode(boards(backgrounds, contents)).latent_dist.mean
        tokens = painters.pack(mean.float())
        spread, off = tokens.detach().std(), torch.zeros(())
        rough = tokens
        if sums:
            ideal = made_of[backgrounds[:, None], contents] @ parts
            off = (tokens - ideal).square().mean() / spread**2
            rough = torch.where((torch.arange(16) % 3 == 0)[:, None, None], ideal, tokens)
        # decoding must stand what an editor gets slightly wrong
        rough = rough + noise * spread * torch.randn_like(tokens)
        with cpu_autocast():
            drawn = vae.decode(painters.unpack(rough[exchange, places])).sample
        wanted = contents[exchange, places]
        miss = drawn.float() - boards(backgrounds, wanted)
        read = nearest(cells_of(drawn.detach().float()), torch.from_numpy(reading.tiles()), backgrounds)
        right = read == torch.from_numpy(wanted)
        figures = {"miss": 127.5 * miss.detach().abs().mean().item(), "right": right.float().mean().item()}
        weight = 1 + 4 * (~right).float().reshape(-1, 1, 4, 4).repeat_interleave(CELL, 2).repeat_interleave(CELL, 3)
        narrow = 1e-3 * (mean.float().square().mean() - 1).clamp(min=0)
        lost = absolute * (weight * miss.abs()).mean() + squared * (weight * miss.square()).mean()
        return lost + sums * off + narrow, figures | {"off": off.item()}

    first, second = round(0.3 * steps), round(0.15 * steps)
    train(small.parameters(), lambda step: loss(small, 1, 1, 0, 0.1, 0), first, learning_rate, log)
    train(small.parameters(), lambda step: loss(small, 0.1, 8, 0.4, 0.05, 0), second, learning_rate, log)
    vae = painters.deeper(small)
    last = lambda step: loss(vae, 0.1, 8, 0.4, 0.1, 0.1)  # noqa: E731
    train([*vae.parameters(), parts], last, steps - first - second, learning_rate, log, lambda: on_part(vae))
    return settled(vae.eval(), rng)


def properties() -> torch.Tensor:
    """Which properties every content on every background has, as zeros and ones: [4, 255, 60]."""
    of = [
        {c.shape, c.colour, c.size, c.pattern} if c.kind == "object" else {(c.kind, c.value)} for c in reading.CONTENTS
    ]
    names = [*dict.fromkeys(name for some in of for name in sorted(some, key=str)), *BACKGROUNDS]
    return torch.tensor(
        [[[float(name in some or name == ground) for name in names] for some in of] for ground in BACKGROUNDS]
    )


def settled(vae: diffusers.AutoencoderKL, rng: random.Random) -> diffusers.AutoencoderKL:
    """With the mean and the spread of its latents written down, by which the pipelines scale them."""
    backgrounds, contents = numbered([random_scene(rng) for _ in range(512)])
    with torch.no_grad():
        means = [vae.encode(boards(b, c)).latent_dist.mean for b, c in in_parts(backgrounds, contents)]
    mean = torch.cat(means)
    vae.register_to_config(shift_factor=mean.mean().item(), scaling_factor=1 / mean.std().item())
    return vae


def cells_of(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels [B, 3, 64, 64] from -1 to 1 as the reader's cells: [B, 16, 768] grey levels."""
    cells = (127.5 * (pixels + 1)).reshape(-1, 3, 4, CELL, 4, CELL).permute(0, 2, 4, 3, 5, 1)
    return cells.reshape(len(pixels), 16, -1)


def numbered(scenes: Sequence[Scene]) -> tuple[np.ndarray, np.ndarray]:
    """Scenes by numbers: backgrounds [B] and contents [B, 16]."""
    names = tuple(BACKGROUNDS)
    contents = np.array([[INDEX[cell] for cell in scene.cells] for scene in scenes])
    return np.array([names.index(scene.background) for scene in scenes]), contents


def in_parts(*arrays: Any, size: int = 64) -> Iterator[tuple]:
    return zip(*([a[i : i + size] for i in range(0, len(a), size)] for a in arrays), strict=True)


def train(
    parameters: Iterable, loss: Callable, steps: int, learning_rate: float, log: Path, on_part: Callable = lambda: None
) -> None:
    """Minimise `loss(step) -> (loss, {name: figure})`; every 50th step goes to `log`, one JSON object a line.

    parameters: tensors, or groups {"params": tensors, "times": factor of the learning rate}.
    """
    parameters = list(parameters)
    optimiser = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    started, running = time.time(), None
    for step in range(steps):
        for group in optimiser.param_groups:
            rate = learning_rate * min((step + 1) / 100, 0.5 + 0.5 * math.cos(math.pi * step / steps) + 0.005)
            group["lr"] = rate * group.get("times", 1)
        lost, figures = loss(step)
        lost.backward()
        nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        running = lost.item() if running is None else 0.95 * running + 0.05 * lost.item()
        if step and step % 500 == 0:
            on_part()
        if step % 50 == 0 or step == steps - 1:
            row = {"step": step, "steps": steps, "seconds": round(time.time() - started), "loss": round(running, 5)}
            with log.open("a") as lines:
                lines.write(json.dumps(row | {k: round(v, 3) for k, v in figures.items()}) + "\n")
            print(
                f"{log.name.split('.')[0]}: step {step + 1}/{steps}, {row['seconds']} s, loss {running:.4f}", flush=True
            )


def encode(vae: diffusers.AutoencoderKL, backgrounds: np.ndarray, contents: np.ndarray) -> torch.Tensor:
    """Boards by numbers, [B] and [B, 16], as the transformer's tokens: [B, 16, 32]."""
    found = []
    with torch.no_grad():
        for b, c in in_parts(backgrounds, contents):
            mean = vae.encode(boards(b, c)).latent_dist.mean
            found.append(painters.pack((mean - vae.config.shift_factor) * vae.config.scaling_factor))
    return torch.cat(found)


def table_of_tokens(vae: diffusers.AutoencoderKL, numbers: np.random.Generator, n: int = 512) -> torch.Tensor:
    """The mean token of every content on every background, over 4 x n boards half full of any things: [4, 255, 32]."""
    table = []
    for background in range(N_BACKGROUNDS):
        # every content equally often; index 0 is emptiness
        contents = numbers.permuted(np.arange(n * 16) % N_CONTENTS).reshape(n, 16)
        contents[numbers.random(contents.shape) < 0.5] = 0
        tokens = encode(vae, np.full(n, background), contents).flatten(0, 1)
        which = torch.from_numpy(contents).flatten()
        sums = torch.zeros(N_CONTENTS, tokens.shape[1]).index_add_(0, which, tokens)
        table.append(sums / torch.bincount(which, minlength=N_CONTENTS)[:, None])
    return torch.stack(table)


def generator(
    vae: diffusers.AutoencoderKL, steps: int, seed: int, log: Path, on_part: Callable = lambda pipe: None
) -> diffusers.DiffusionPipeline:
    """Train a generator on captions of up to six things and boards that show these and nothing else."""
    torch.manual_seed(seed)
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    table = table_of_tokens(vae, numbers)
    pipe = painters.pipeline("generator", vae)
    kinds = ("empty", "object", "text", "clock", "sign")
    scores = dict.fromkeys(kinds, 0.0)

    def loss(step: int):
        scenes = [edits.fewer(random_scene(rng), rng, most=rng.randint(1, edits.MOST)) for _ in range(BATCH)]
        backgrounds, contents = numbered(scenes)
        wanted = table[backgrounds[:, None], contents]
        there = torch.from_numpy(contents) > 0
        lost, drawn = velocity_loss(
            pipe, [edits.caption(scene, rng) for scene in scenes], wanted, torch.where(there, 4.0, 1.0), rng
        )
        right = nearest(drawn, table, backgrounds) == torch.from_numpy(contents)
        keep_score(scores, [cell.kind for scene in scenes for cell in scene.cells], right.flatten())
        return lost, scores

    train(groups(pipe), loss, steps, 1.5e-3, log, lambda: on_part(pipe))
    return pipe


def editor(
    start: Any,
    vae: diffusers.AutoencoderKL,
    steps: int,
    seed: int,
    log: Path,
    on_part: Callable = lambda pipe: None,
) -> diffusers.DiffusionPipeline:
    """Train an editor on batches of boards, each with a command of its own; weak kinds of command are practised more.

    The boards come from POOL encoded ones, of which a fifth had something changed already; their commands never end.
    The target is the board's own tokens, with the table's in the changed cells.

    start: the trained generator, whose transformer and text encoders it begins with.
    """
    torch.manual_seed(seed)
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    table = table_of_tokens(vae, numbers)
    scenes = [random_scene(rng) for _ in range(POOL)]
    scenes = [edits.apply(s, edits.draw(s, rng)) if rng.random() < 0.2 else s for s in scenes]
    encoded = encode(vae, *numbered(scenes))
    pipe = painters.pipeline("editor", vae)
    for part in LEARNING:
        getattr(pipe, part).load_state_dict(getattr(start, part).state_dict())
    kinds = list(edits.COMMANDS)
    scores = dict.fromkeys(kinds, 0.0)

    def loss(step: int):
        which = numbers.integers(POOL, size=BATCH)
        asked = rng.choices(kinds, [1.1 - scores[kind] for kind in kinds], k=BATCH)
        commands = [edits.draw(scenes[i], rng, kind) for i, kind in zip(which, asked, strict=True)]
        backgrounds, before = numbered([scenes[i] for i in which])
        backgrounds, after = numbered([edits.apply(scenes[i], c) for i, c in zip(which, commands, strict=True)])
        changed = torch.from_numpy(before != after)
        changed[torch.tensor([edits.kind(c) == "background" for c in commands])] = True
        reference = encoded[which]
        wanted = torch.where(changed[..., None], table[backgrounds[:, None], after], reference)
        # one cell in sixteen must not be lost among the others; a new background is less work a cell
        weight = torch.where(changed, torch.where(changed.all(-1, keepdim=True), 2.0, 8.0), 1.0)
        lost, drawn = velocity_loss(pipe, commands, wanted, weight, rng, reference)
        right = nearest(drawn, table, backgrounds) == torch.from_numpy(after)
        keep_score(scores, [edits.kind(c) for c in commands], (right | ~changed).all(-1))
        return lost, scores | {"rest": right[~changed].float().mean().item()}

    train(groups(pipe), loss, steps, 1.5e-3, log, lambda: on_part(pipe))
    return pipe


def velocity_loss(
    pipe: Any,
    texts: list[str],
    wanted: torch.Tensor,
    weight: torch.Tensor,
    rng: random.Random,
    reference: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flow matching as in FLUX: predict noise - picture from a mixture of both (https://arxiv.org/abs/2403.03206).

    wanted, reference: tokens [B, 16, 32]; weight [B, 16]. Returns the loss and the picture
    as it is guessed from noise alone, for that half of the batch, and from the mixtures: as `wanted`.
    """
    n = len(texts)
    u = torch.rand(n)
    t = 3 * u / (1 + 2 * u)  # the scheduler's shift
    t[: n // 2] = 1.0  # one step from noise alone is how pictures are made in the end
    noise = torch.randn_like(wanted)
    start = mixed = torch.lerp(wanted, noise, t[:, None, None])
    ids = pipe._prepare_latent_image_ids(n, 4, 4, "cpu", torch.float32)
    if reference is not None:  # the reference's places have a 1 in front
        mixed = torch.cat([mixed, reference], 1)
        ids = torch.cat([ids, ids + torch.tensor([1.0, 0.0, 0.0])])
    length = pipe.tokenizer_2.model_max_length
    states, pooled, text_ids = pipe.encode_prompt(
        [with_a_strange_word(text, rng) for text in texts], max_sequence_length=length
    )
    with cpu_autocast():
        said = pipe.transformer(
            hidden_states=mixed,
            timestep=t,
            pooled_projections=pooled,
            encoder_hidden_states=states,
            txt_ids=text_ids,
            img_ids=ids,
            return_dict=False,
        )[0]
    said = said[:, :16].float()
    lost = ((said - (noise - wanted)).square().mean(-1) * weight).sum() / weight.sum()
    return lost, (start - t[:, None, None] * said).detach()


def with_a_strange_word(text: str, rng: random.Random) -> str:
    """One text in ten gets a word that no tokenizer here knows, somewhere: to be skipped over."""
    if rng.random() > 0.1:
        return text
    parts = text.split()
    parts.insert(rng.randint(0, len(parts)), "unheardof")
    return " ".join(parts)


def nearest(tokens: torch.Tensor, table: torch.Tensor, backgrounds: np.ndarray) -> torch.Tensor:
    """Which content each token [B, 16, 32] is nearest to on the board's background: [B, 16]."""
    return torch.cdist(tokens, table[backgrounds]).argmin(-1)


def keep_score(scores: dict[str, float], kinds: list[str], right: torch.Tensor) -> None:
    """Running share of right ones, by kind."""
    for kind in scores:
        ones = [r for k, r in zip(kinds, right.tolist(), strict=True) if k == kind]
        if ones:
            scores[kind] = 0.95 * scores[kind] + 0.05 * sum(ones) / len(ones)


def groups(pipe: Any) -> list[dict]:
    """All that is trained of a pipeline, with its pace; the autoencoder stays as it is.

    A cell finds itself by its rotary position alone, of which one row or column more turns only one pair of numbers in
    four noticeably; and T5 tells which colour belongs to which thing by their distance alone. So attention has to
    become sharp, and what decides that learns ten times as fast: else so little training does not move it far enough.
    """
    named = [(name, p) for part in LEARNING for name, p in getattr(pipe, part).named_parameters()]
    sharp = [p for name, p in named if painters.sharpens(name)]
    others = [p for name, p in named if not painters.sharpens(name)]
    return [{"params": others}, {"params": sharp, "times": 10, "weight_decay": 0.0}]
