"""Which weights of a vision-language model are trained: the text part's, never the vision tower's."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

PROJECTIONS = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|gate_up_proj|down_proj"
# peft's "all-linear" and bare names would match the vision tower too, whose projections have the same names
TEXT_PART = rf".*(?:language_model|text_model)\.(?!.*vision).*\.(?:{PROJECTIONS})"
WHOLE_TEXT_PART = r".*(?:language_model|text_model)\.(?!.*vision).*|lm_head\..*"


def adapts(module: str) -> bool:
    """Whether a module of this name gets an adapter: the text part's projections do, the vision tower's do not.

    >>> [adapts(f"model.{part}.layers.0.self_attn.q_proj") for part in ("language_model", "vision_tower")]
    [True, False]
    """
    return re.fullmatch(TEXT_PART, module) is not None


@contextlib.contextmanager
def whole_text_part(model: Any) -> Iterator[None]:
    """While it lasts, the text part's weights are what is trained, all in 32 bits; then all weights are as they were.

    In 16 bits most steps of a fine-tuning are too small to change a weight at all.
    """
    before = {name: weight.detach().to("cpu", copy=True) for name, weight in model.named_parameters()}
    for name, weight in model.named_parameters():
        weight.data = weight.data.float()
        weight.requires_grad_(re.fullmatch(WHOLE_TEXT_PART, name) is not None)
    try:
        yield
    finally:
        for name, weight in model.named_parameters():
            weight.data = before[name].to(weight.device)
