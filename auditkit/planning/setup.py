"""Can this machine run the audit, and is everything there that it needs?  All of notebook 00.

Everything is checked before anything is complained about, and each complaint says what to do.
"""

from __future__ import annotations

import filecmp
import importlib.util
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from auditkit import specs
from auditkit.data.load import load_images
from auditkit.data.source import Picture
from auditkit.errors import AuditError
from auditkit.models import downloads
from auditkit.models.device import choose_device, choose_dtype, cpu_training_in_words, dtype_in_words
from auditkit.models.roles import model_roles
from auditkit.param_rules import refuse_missing_packages
from auditkit.params import Params
from auditkit.text import counted

SIDE = 1024  # of the square matrices whose product is timed
MODEL, PIPELINE = "config.json", "model_index.json"  # the file that every one has
LEAST_GB = 1  # free where outputs/ lies


@dataclass(frozen=True)
class Setup:
    """What was found on this machine.

    `checks` are rows {"key", "found", "ok", "advice": what to do where it is not}.
    """

    checks: list[dict]
    gflops: float  # billions of floating-point operations a second
    free_gb: float
    pictures: list[Picture]  # the first few of the split the auditor learns from
    guide: str = ""  # how they are read, as Source.guide
    edges: tuple[str, str] = ("", "")  # names of their columns and rows, as Source.edges

    def complain(self) -> None:
        """Raise AuditError with all that must be put right; nothing where all is well."""
        failed = [f"{check['key']} ({check['found']}): {check['advice']}" for check in self.checks if not check["ok"]]
        if failed:
            raise AuditError("; ".join(failed))


def check_setup(p: Params, folder: Path, pictures: int = 6) -> Setup:
    """Look at the software, the device, the disk, the models and the images that a run needs.

    The hub is asked whether it has the models. Nothing is downloaded but what the images' source must read to show
    a few.

    Args:
        p: uses device, auditor, target, references, peer, generator, editor, images, train_images and seed.
        folder: on the disk that the run writes to.
        pictures: how many to show.

    Raises AuditError where the images cannot be opened.
    """
    gflops, device = time_device(p.device)
    formats = check_dtype(p) if device["ok"] else []
    free_gb = shutil.disk_usage(folder).free / 1e9
    disk = _check("disk", f"{free_gb:.0f} GB free", free_gb > LEAST_GB)
    disk["advice"] = f"less than {LEAST_GB} GB is free where outputs/ lies; make room"
    roles = model_roles(p.target, p.references, p.peer, p.auditor)
    roles = {"auditor": roles["auditor"], **roles}
    named = {name: getattr(p, name) for name in ("generator", "editor") if getattr(p, name)}
    roles |= named
    models = [check_model(role, spec, PIPELINE if role in named else MODEL) for role, spec in roles.items()]
    source = load_images(p.images)
    shown = source.pictures("train", min(pictures, p.train_images), p.seed)
    size = "{} x {}".format(*shown[0].image.size)
    found = [
        check_torchvision(),
        *check_packages(p),
        device,
        *formats,
        disk,
        *models,
        *check_references(p.target, p.references),
        _check("images", f"{source.name}, {size} pixels"),
    ]
    return Setup(found, gflops, free_gb, shown, source.guide, source.edges)


def check_torchvision() -> dict:
    """One clash is worth looking for: a torchvision built for another torch breaks transformers' and TRL's imports with
    a message that names neither.
    """
    trouble = ""
    try:
        if importlib.util.find_spec("torchvision"):
            importlib.import_module("torchvision")
    except (RuntimeError, ImportError, OSError) as error:
        trouble = str(error).splitlines()[0]
    advice = f"torchvision does not fit this torch ({trouble}), and is not needed: pip uninstall torchvision"
    return {"key": "versions", "found": f"torch {torch.__version__}", "ok": not trouble, "advice": advice}


def time_device(device: str) -> tuple[float, dict]:
    """Time a matrix product on a device: (GFLOP/s, 0 where nothing can be computed there; the check)."""
    there = [name for name, has in (("cuda", torch.cuda), ("mps", torch.backends.mps)) if has.is_available()]
    chosen = device if device != "auto" else [*there, "cpu"][0]
    try:
        a = torch.rand(SIDE, SIDE, device=chosen)
        (a @ a).sum().item()  # the first product pays for warming up
        began = time.perf_counter()
        (a @ a @ a @ a @ a).sum().item()
        gflops, said = 4 * 2 * SIDE**3 / (time.perf_counter() - began) / 1e9, ""
    except (RuntimeError, AssertionError) as error:
        gflops, said = 0.0, str(error).splitlines()[0]
    check = _check(
        "device", f"{chosen}, {gflops:,.0f} GFLOP/s, {counted(torch.get_num_threads(), 'thread')}", gflops > 0
    )
    return gflops, check | {"advice": f"nothing can be computed on {chosen} ({said}); set device: auto"}


def check_dtype(p: Params) -> list[dict]:
    """The number format in which models of this file answer and learn, and why; on a CPU also the builder's."""
    try:
        device = choose_device(p.device)
        found = dtype_in_words(p.dtype, choose_dtype(p.dtype, device), device)
    except AuditError as error:
        return [_check("dtype", p.dtype, False) | {"advice": str(error)}]
    if device == "cpu":
        found += f"; `auditkit miniature` trains in {cpu_training_in_words()}"
    return [_check("dtype", found)]


def check_packages(p: Params) -> list[dict]:
    """What a setting needs and is not installed; nothing where all is there."""
    try:
        refuse_missing_packages(p)
    except AuditError as error:
        return [_check("packages", "missing", False) | {"advice": str(error)}]
    return []


def check_model(role: str, spec: str, index: str = MODEL) -> dict:
    """Whether there is such a model: shipped with a package, in a folder that holds whole weights, in the hub's cache,
    on the hub, or behind a server, which is not asked.
    """
    try:
        parsed = specs.parse_pipeline(spec) if index == PIPELINE else specs.parse(spec)
        place, found = downloads.refuse_absent(spec, index), parsed.place if index == PIPELINE else spec
        if parsed.engine != "endpoint" and not Path(place).is_dir():
            revision = {key: value for key, value in parsed.options.items() if key == "revision"}
            found += ", on the hub" if downloads.source(place, spec, revision, index)[0] == place else ", in the cache"
        return _check(role, found)
    except AuditError as error:
        return _check(role, "missing", False) | {"advice": str(error)}


def check_references(target: str, references: Sequence[str]) -> list[dict]:
    """What is odd about those who vote: one alone, which may be meant, or weights that are the target's own."""
    found = []
    if len(references) == 1:
        found.append(_check("references", "one alone, whose answer is the consensus: two or more can outvote an error"))
    for spec in references:
        if _same_weights(target, spec):
            advice = "it would vote for its own answer; name another model"
            found.append(_check("references", f"{spec} has the target's weights", False) | {"advice": advice})
    return found


def _same_weights(one: str, other: str) -> bool:
    """Whether two models are folders that hold the same safetensors, byte by byte; they are read up to a difference."""
    specs_of = [specs.parse(text) for text in (one, other)]
    try:
        folders = [Path(downloads.resolve(text)) for text in (one, other)]
    except AuditError:  # one that is not there, which is told of the model
        return False
    if any(spec.adapters or spec.engine == "endpoint" for spec in specs_of) or not all(map(Path.is_dir, folders)):
        return False
    names = [sorted(path.name for path in folder.glob("*.safetensors")) for folder in folders]
    mine, theirs = folders
    return bool(names[0]) and names[0] == names[1] and all(
        filecmp.cmp(mine / name, theirs / name, shallow=False) for name in names[0]
    )  # fmt: skip


def _check(key: str, found: str, ok: bool = True) -> dict:
    return {"key": key, "found": found, "ok": ok, "advice": ""}
