"""TODO."""

import functools
from collections.abc import Callable
from pathlib import Path

from auditkit import specs
from auditkit.errors import AuditError
from auditkit.models import downloads
from auditkit.models.base import Writer, quiet
from auditkit.models.offload import Parked
from auditkit.models.transformers import VLM, _adapted, _base_of, _device, _dtype, _folder, _model


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
    own, name = parsed.options, parsed.name
    batch_size = own.get("batch_size", batch_size)
    if parsed.engine != "transformers" and adapter is not None:
        raise AuditError(f'"{spec}": an adapter needs the model\'s weights here; name a folder or a hub id.')
    if parsed.engine == "endpoint":
        from auditkit.models.openai import Endpoint

        return Endpoint.of(parsed)
    if parsed.engine == "vllm":
        from auditkit.models.vllm import load_vllm

        return load_vllm(parsed, batch_size)
    place = downloads.resolve(spec)
    adapters = [_folder(folder) for folder in (*parsed.adapters, *([] if adapter is None else [adapter]))]
    if adapter is not None:
        name = f"{name}+{Path(adapter).name}"
    if (Path(place) / "adapter_config.json").is_file():
        place, adapters = _base_of(Path(place)), [Path(place), *adapters]
    device = _device(own.get("device", device))
    kind = _dtype(own.get("dtype", dtype), device)
    bits = own.get("bits")
    if bits and adapters:
        raise AuditError(f'"{spec}": an adapter cannot be merged into weights of {bits} bits; leave ?bits out.')
    turns = turns and device != "cpu" and not bits
    with quiet():
        place, how = downloads.source(place, spec, own)
        downloads.config_of(place, spec, how)
        processor = downloads.processor_of(place, spec, how)
        whole = [i for i, folder in enumerate(adapters) if (folder / "config.json").is_file()]
        weights, adapters = (str(adapters[whole[-1]]), adapters[whole[-1] + 1 :]) if whole else (place, adapters)
        model = _model(weights, spec, kind, "cpu" if turns else device, own, how)
        for folder in adapters:
            model = _adapted(model, folder)
    parked = Parked(model, device) if turns else None
    return VLM(name, model.eval(), processor, batch_size, own.get("max_pixels"), parked)


def model_loader(p) -> Callable[..., Writer]:
    """`load_model` as a parameter file wants it: with its device, dtype, batch_size and memory."""
    return functools.partial(
        load_model, device=p.device, dtype=p.dtype, batch_size=p.batch_size, turns=p.memory == "turns"
    )
