"""A checkpoint as a trainer leaves it, tiny."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file


def whole_checkpoint(folder: Path, step: int) -> Path:
    """Write folder/checkpoint-STEP with weights, optimizer, scheduler, random state and the trainer's own state."""
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    save_file({"a": torch.arange(300.0)}, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text("{}")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"state": torch.arange(300.0)}, path / name)
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return path
