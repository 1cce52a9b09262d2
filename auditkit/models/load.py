"""One text of a parameter file becomes a model, behind whichever engine it names."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from auditkit import specs
from auditkit.errors import AuditError
from auditkit.models.base import Writer
from auditkit.models.transformers import load_transformers
from auditkit.params import Params, keys_naming
from auditkit.runs.loading import timed_loading


@timed_loading
def load_model(
    spec: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int = 128,
    adapter: str | Path | None = None,
    turns: bool = False,
) -> Writer:
    """Load a model, its processor and, when given, a LoRA adapter, merged into it.

    A folder that itself is an adapter (of a checkpoint, say) is loaded on top of the model it names. "auto" takes cuda
    with bfloat16 where there is one, else mps, else cpu, with float32. The model's name is that of its spec (specs.py),
    whose own options go before the arguments given here.

    Args:
        adapter: goes on last, after those that the spec names. Where a training changed all weights, its folder holds
            a whole model, which takes the place of what comes before it.
        turns: keep the weights in CPU memory and bring them to the device only while the model writes; a quantized
            model is small and stays there.

    Raises AuditError for a model that does not exist, reads no images, or lacks a processor, safetensors or weights.
    """
    parsed = specs.parse(spec)
    batch_size = parsed.options.get("batch_size", batch_size)
    if parsed.engine != "transformers" and adapter is not None:
        raise AuditError(f'"{spec}": an adapter needs the model\'s weights here; name a folder or a hub id.')
    if parsed.engine == "endpoint":
        from auditkit.models.openai import Endpoint

        return Endpoint.of(parsed)
    if parsed.engine == "vllm":
        from auditkit.models.vllm import load_vllm

        return load_vllm(parsed, batch_size)
    return load_transformers(parsed, spec, device, dtype, batch_size, adapter, turns)


def model_loader(p: Params) -> Callable[..., Writer]:
    """`load_model` as a parameter file wants it: with its device, dtype, batch_size and memory."""
    how = {"device": p.device, "dtype": p.dtype, "batch_size": p.batch_size, "turns": p.memory == "turns"}
    return functools.partial(_load_named, p, how)


def _load_named(p: Params, how: dict, spec: str | Path, *given: Any, **more: Any) -> Writer:
    """`load_model`, whose errors say by which key of the parameters a model is named."""
    try:
        return load_model(spec, *given, **how | more)
    except AuditError as error:
        keys = keys_naming(p, str(spec))
        raise AuditError(f"{keys}: {error}" if keys else str(error)) from error
