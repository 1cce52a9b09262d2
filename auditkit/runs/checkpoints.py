"""The checkpoints of a trainer, GRPO's and the repair's alike: which of them is the last whole one."""

import json
import zipfile
from pathlib import Path

from auditkit.errors import AuditError
from auditkit.runs.files import set_aside

PARTS = {  # without which a trainer would go on all the same, to other weights
    "weights": ("*.safetensors",),
    "optimizer": ("optimizer*", "global_step*"),  # the second is DeepSpeed's
    "scheduler": ("scheduler.pt",),
    "random state": ("rng_state*",),
}
ENOUGH_HEADER = 100_000_000  # bytes: what safetensors allows a header


def last_checkpoint(folder: Path) -> str | None:
    """The last of a trainer's checkpoints that is whole; None without one.

    A torn one, as a kill or a full disk leaves it, is named, and set aside in the folder `damaged` beside it.
    """
    whole: list[Path] = []
    for path in sorted(folder.glob("checkpoint-*"), key=_step):
        if why := _why_torn(path):
            aside = set_aside(path)
            print(f"{path.name} is torn ({why}): set aside as {aside.relative_to(folder.parent)}.", flush=True)
        else:
            whole.append(path)
    return str(whole[-1]) if whole else None


def auditor_checkpoints(out: Path) -> dict[str, Path]:
    """The kept checkpoints of the auditor's training, first to last: "step 60" -> folder.

    Raises AuditError when there is none.
    """
    folders = sorted(out.glob("checkpoint-*"), key=lambda folder: int(folder.name.rsplit("-", 1)[1]))
    if not folders:
        raise AuditError(f"{out}: no checkpoint of a trained auditor; run notebook 04 first")
    return {f"step {folder.name.rsplit('-', 1)[1]}": folder for folder in folders}


def _step(path: Path) -> int:
    number = path.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def _why_torn(folder: Path) -> str:
    """What of a checkpoint is missing or ends early; "" for a whole one."""
    if not folder.is_dir() or _step(folder) < 0:
        return "no checkpoint's folder"
    if not (folder / "trainer_state.json").is_file():  # what the trainer writes last
        return "no trainer_state.json"
    for path in sorted(folder.rglob("*")):
        check = {".json": _is_json, ".safetensors": is_safetensors, ".pt": _is_zip, ".pth": _is_zip}.get(path.suffix)
        if check and path.is_file() and not check(path):
            return f"{path.name} is cut or damaged"
    for what, names in PARTS.items():
        if not any(list(folder.glob(name)) for name in names):
            return f"no {what}"
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    return "" if isinstance(state, dict) and state.get("global_step") == _step(folder) else "trainer_state.json differs"


def is_safetensors(path: Path) -> bool:
    """Whether a file of safetensors is as long as its header says."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= ENOUGH_HEADER:
            return False
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return False
    return path.stat().st_size == 8 + length + max(ends, default=0)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return False
    return True


def _is_zip(path: Path) -> bool:
    """What torch.save writes is a ZIP archive, whose table stands at its end."""
    return zipfile.is_zipfile(path)
