"""Teach a tiny vision-language model: one loop for every model, whatever its class and whatever it is to learn.

Three things make it quick (measured): captions that name every place and what it holds come before questions; several
questions about one image ride in one sequence, where the family allows it so that none sees another, else like the
turns of a chat until the last part of the training, which uses the one-question prompts of real use; and the vision
tower also learns to name what each cell holds, by a head that is thrown away.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from auditkit.miniature import families
from auditkit.models.device import cpu_autocast, keep_freed_memory
from auditkit.models.trainer_internals import attention_of

Chat = list[tuple[str, str]]  # (question, answer) turns about one image


@dataclass
class Lesson:
    """One batch: images uint8 [B, 64, 64, 3], a chat for each, the skill of every turn, and optionally what each cell
    holds, as class numbers [B, 16, heads].
    """

    images: np.ndarray
    chats: list[Chat]
    skills: list[list[str]]
    cells: np.ndarray | None = None


def teach(
    model: Any,
    processor: Any,
    draw: Callable[[random.Random, float], Lesson],
    steps: int,
    seed: int,
    log: Path,
    learning_rate: float = 1.5e-3,
    look: int = 0,
    cell_classes: tuple[int, ...] = (),
    fuse: bool = False,
    on_score: Callable[[dict[str, float]], None] = lambda scores: None,
    on_part: Callable[[int], object] = lambda step: None,
) -> None:
    """Train `model` in place for `steps` batches of `draw(rng, progress)`, progress from 0 to 1; the log goes to
    `log`, one JSON object a line.

    The first `look` steps train the vision tower alone, on the cells' labels (`cell_classes` classes a head).
    `fuse` compiles the text layers, which needs a C++ compiler and pays after some hundred steps (1.6 to 2 times
    as fast).
    `on_score` is told the running accuracy of every skill, so that `draw` can practise the weak ones more; `on_part` is
    called every 500 steps, to look at or save what there is so far.
    """
    torch.manual_seed(seed)
    keep_freed_memory()
    rng = random.Random(seed)
    model.train()
    if fuse and shutil.which("g++"):
        for layer in families.text_model(model).layers:
            layer.compile(dynamic=True)
    attention = attention_of(families.text_model(model).config)
    model.set_attn_implementation("eager")  # compiled: 0.27 s a step of Gemma3, the fused kernel 0.42 s
    width = model.config.vision_config.hidden_size
    heads = nn.Linear(width, sum(cell_classes)) if cell_classes else None
    thrown_away = list(heads.parameters()) if heads else []
    parameters = [p for p in model.parameters() if p.requires_grad] + thrown_away
    optimiser = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    scores: dict[str, float] = {}
    started = time.time()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * min(
                (step + 1) / (0.03 * steps), 0.5 + 0.5 * math.cos(math.pi * step / steps) + 0.01, 1
            )
        lesson = draw(rng, step / steps)
        batch = families.encode(processor, lesson.chats, lesson.images, families.can_isolate(processor))
        looking = see = torch.zeros(())
        if heads is not None and lesson.cells is not None:
            see = _see(
                heads,
                families.vision_features(model, batch["pixel_values"]),
                torch.from_numpy(lesson.cells),
                cell_classes,
            )
        if step >= look:
            with cpu_autocast():
                found = families.states(model, batch)
            found = found.float()
            looking, right = families.loss(model, batch, found)
            _keep_score(scores, [s for skills in lesson.skills for s in skills], right, batch["labels"])
            if step % 20 == 0:
                on_score(scores)
        (looking + see).backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if step and step % 500 == 0:
            on_part(step)
        if step % 50 == 0 or step == steps - 1:
            row = {
                "step": step,
                "steps": steps,
                "seconds": round(time.time() - started),
                "loss": round(looking.detach().item(), 4),
                "see": round(see.detach().item(), 4),
                "norm": round(float(norm), 2),
            }
            with log.open("a") as lines:
                lines.write(json.dumps(row | {k: round(v, 3) for k, v in sorted(scores.items())}) + "\n")
            print(
                f"{log.name.split('.')[0]}: step {step + 1}/{steps}, {row['seconds']} s, loss {row['loss']}", flush=True
            )
    model.set_attn_implementation(attention)
    model.eval()


def _see(heads: nn.Linear, features: torch.Tensor, cells: torch.Tensor, classes: tuple[int, ...]) -> torch.Tensor:
    """Cross-entropy of naming each cell's attributes from its feature; features [B, 16, C], cells [B, 16, heads]."""
    logits = heads(features).flatten(0, 1).split(classes, dim=-1)
    losses = [nn.functional.cross_entropy(one, cells[..., i].flatten()) for i, one in enumerate(logits)]
    return sum(losses, torch.tensor(0.0)) / len(classes)


def _keep_score(scores: dict[str, float], skills: list[str], right: torch.Tensor, labels: torch.Tensor) -> None:
    """Running share of answers right in every token, by skill."""
    which = families.answer_index(labels)  # the answer each learnt token belongs to
    answers = torch.ones(len(skills)).scatter_reduce(0, which, right.float(), "amin")
    by_skill: dict[str, list[float]] = {}
    for skill, one in zip(skills, answers.tolist(), strict=True):
        by_skill.setdefault(skill, []).append(one)
    for skill, ones in by_skill.items():
        scores[skill] = 0.9 * scores.get(skill, 0.0) + 0.1 * sum(ones) / len(ones)
