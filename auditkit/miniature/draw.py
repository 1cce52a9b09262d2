"""Teach a miniature autoencoder, editor and generator the board world, from seeds.

What makes so little training enough (measured): the autoencoder's latents of one cell say nothing of its neighbours,
because it also learns to decode boards put together from cells of several; so the latents of any board can be looked up
in a table of the 1,020 tiles, and only the boards to be edited need the encoder.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import torch
from torch import nn

from auditkit.miniature import painters, reading
from auditkit.miniature.world import BACKGROUNDS, CELL, random_scene

N_CONTENTS, N_BACKGROUNDS = len(reading.CONTENTS), len(BACKGROUNDS)
INDEX = {cell: i for i, cell in enumerate(reading.CONTENTS)}


def boards(backgrounds: np.ndarray, contents: np.ndarray) -> torch.Tensor:
    """Boards by numbers, [B] and [B, 16], drawn as pixels from -1 to 1: [B, 3, 64, 64]."""
    cells = reading.tiles()[backgrounds[:, None], contents].reshape(-1, 4, 4, CELL, CELL, 3)
    pixels = cells.transpose(0, 5, 1, 3, 2, 4).reshape(-1, 3, 64, 64)
    return torch.from_numpy(np.ascontiguousarray(pixels) / np.float32(127.5) - 1)


def autoencoder(steps: int, seed: int, log: Path, learning_rate: float = 2e-3) -> diffusers.AutoencoderKL:
    """Train the autoencoder for `steps` batches of 32 boards, half of them real ones, half filled with any things.

    Half of each batch is decoded from latents exchanged cell by cell between boards of one background.
    """
    torch.manual_seed(seed)
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    vae = painters.autoencoder()

    def loss(step: int):
        backgrounds = numbers.integers(N_BACKGROUNDS, size=8).repeat(4)
        contents = numbers.integers(N_CONTENTS, size=(32, 16))
        for i in range(0, 32, 2):
            contents[i] = [INDEX[cell] for cell in random_scene(rng).cells]
        if step % 4 == 0:  # all of the same kind: stripes or hands are a small part of a mixed board's loss
            contents[1::2] = numbers.permuted(np.tile(contents[1::2, :4], (1, 4)), axis=1)
        found = vae.encode(boards(backgrounds, contents)).latent_dist
        # decoding must stand what an editor will get slightly wrong
        mean = found.mean
        latents = mean + 0.15 * mean.detach().std() * torch.randn_like(mean)
        tokens = painters.pack(latents)  # [32, 16, 32]
        exchange = np.arange(32)[:, None].repeat(16, 1)
        exchange[16:] = exchange[16:] // 4 * 4 + numbers.integers(4, size=(16, 16))
        places = np.arange(16)[None]
        decoded = vae.decode(painters.unpack(tokens[exchange, places])).sample
        wanted = boards(backgrounds, contents[exchange, places])
        miss = decoded - wanted
        return miss.abs().mean() + miss.square().mean() + 1e-3 * (mean.square().mean() - 1).clamp(min=0), {}

    train(vae.parameters(), loss, steps, learning_rate, log)
    with torch.no_grad():
        scenes = [random_scene(rng) for _ in range(512)]
        backgrounds, contents = numbered(scenes)
        mean = torch.cat([vae.encode(boards(b, c)).latent_dist.mean for b, c in in_parts(backgrounds, contents)])
    vae.register_to_config(shift_factor=mean.mean().item(), scaling_factor=1 / mean.std().item())
    return vae.eval()


def numbered(scenes) -> tuple[np.ndarray, np.ndarray]:
    """Scenes by numbers: backgrounds [B] and contents [B, 16]."""
    names = tuple(BACKGROUNDS)
    contents = np.array([[INDEX[cell] for cell in scene.cells] for scene in scenes])
    return np.array([names.index(scene.background) for scene in scenes]), contents


def in_parts(*arrays, size: int = 64):
    return zip(*([a[i : i + size] for i in range(0, len(a), size)] for a in arrays), strict=True)


def train(
    parameters, loss: Callable, steps: int, learning_rate: float, log: Path, on_part: Callable = lambda step: None
) -> None:
    """Minimise `loss(step) -> (loss, {name: figure})`; every 50th step goes to `log`, one JSON object a line."""
    parameters = list(parameters)
    optimiser = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    started, running = time.time(), None
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * min((step + 1) / 100, 0.5 + 0.5 * math.cos(math.pi * step / steps) + 0.005)
        lost, figures = loss(step)
        lost.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        running = lost.item() if running is None else 0.95 * running + 0.05 * lost.item()
        if step and step % 500 == 0:
            on_part(step)
        if step % 50 == 0 or step == steps - 1:
            row = {"step": step, "steps": steps, "seconds": round(time.time() - started), "loss": round(running, 5)}
            with log.open("a") as lines:
                lines.write(json.dumps(row | {k: round(v, 3) for k, v in figures.items()}) + "\n")
            print(f"{log.name.split('.')[0]}: step {step + 1}/{steps}, {row['seconds']} s, loss {running:.4f}", flush=True)
