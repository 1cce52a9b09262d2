"""Weights as files: safetensors, whole, and nothing else.

A pickle can run code when it is read, and with fewer rights (torch's weights_only) it still reaches whatever reads it.
So a model's folder is looked at before any library reads it, and while a library does, torch.load is closed.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from safetensors import SafetensorError, safe_open

from auditkit.errors import AuditError
from auditkit.params import is_file, is_folder, project_root
from auditkit.text import short_error, shortened

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
LARGEST_JSON = 50_000_000  # bytes; the index of the largest models has a few million
CONVERT = "convert them to safetensors, as model.save_pretrained writes them."
ADAPTER = "adapter_config.json"


def read_object(file: Path, spec: str | Path) -> dict:
    """A JSON file of a model.

    Raises AuditError for one that is too large, is no regular file, or holds no object.
    """
    try:
        if not file.is_file() or file.stat().st_size > LARGEST_JSON:
            raise ValueError("it is no regular file, or too large")
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it holds {shortened(found, 40)} where an object belongs")
        return found
    except (OSError, ValueError, RecursionError) as error:
        raise AuditError(
            f'"{spec}": {file.name} in {file.parent} cannot be read ({short_error(error)}); copy the model again.'
        ) from None


def refuse_unsafe(folder: Path, spec: str | Path) -> None:
    """Raise AuditError for a model's folder, or a pipeline's, with weights that are pickles, missing or cut.

    Nothing is read but the headers of safetensors files and their indices.
    """
    files = sorted(path for path in folder.rglob("*") if len(path.relative_to(folder).parts) < 3)
    for index in (path for path in files if path.name.endswith(".index.json")):
        shards = read_object(index, spec).get("weight_map", {})
        for name in sorted({*map(str, shards.values())}) if isinstance(shards, dict) else ["no weight_map"]:
            refuse_pickle(name, spec, f"{index.name} names")
            if "/" in name or "\\" in name or not is_file(index.parent / name):
                raise AuditError(
                    f'"{spec}": {index.name} names {shortened(name)}, which is not in {index.parent}; copy the model '
                    "again."
                )
    for config in (path for path in files if path.name == "config.json"):
        if named := read_object(config, spec).get("transformers_weights"):
            refuse_pickle(str(named), spec, "config.json names")
    safe = [path for path in files if path.name.endswith(".safetensors")]
    for file in safe:
        refuse_cut(file, spec)
    if not safe:
        for path in files:
            refuse_pickle(path.name, spec, "its weights are only there as", PICKLES)
        raise AuditError(f'"{spec}": {folder} holds no weights as safetensors; copy the model again.')


def refuse_pickle(name: str, spec: str | Path, said: str, endings: tuple[str, ...] = ()) -> None:
    """Raise AuditError for weights of a name that is not that of a safetensors file; with `endings`, only for these."""
    if name.endswith(endings) if endings else not name.endswith(".safetensors"):
        raise AuditError(
            f'"{spec}": {said} {shortened(name)[1:-1]}, a pickle, which could run code and is never read; {CONVERT}'
            if name.endswith(PICKLES)
            else f'"{spec}": {said} {shortened(name)[1:-1]}, which is no safetensors file; {CONVERT}'
        )


def refuse_cut(file: Path, spec: str | Path) -> None:
    """Raise AuditError for a safetensors file that is cut or damaged; only its header is read."""
    try:
        if not file.is_file():
            raise OSError("no regular file")
        with safe_open(file, framework="numpy"):
            pass
    except (SafetensorError, OSError, ValueError) as error:
        raise AuditError(
            f'"{spec}": {file.name} in {file.parent} is cut or damaged ({short_error(error)}); copy it again.'
        ) from None


def adapter_folder(adapter: str | Path) -> Path:
    """An adapter's folder: like a model's, from the working folder or else from the project's.

    Raises AuditError for one that is not there, is no adapter, or has no whole weights as safetensors.
    """
    here = Path(adapter).expanduser()
    folder = next((path for path in (here, project_root() / adapter) if is_folder(path)), None)
    if folder is None:
        raise AuditError(f"there is no adapter {here}; name the folder that a finished training has left.")
    if not any((folder / name).is_file() for name in (ADAPTER, "config.json")):
        raise AuditError(
            f"{folder} is no adapter: it has no adapter_config.json, nor a whole model's config.json; name the folder "
            "that a finished training has left."
        )
    refuse_unsafe(folder, folder)
    if (folder / ADAPTER).is_file() and not (folder / "adapter_model.safetensors").is_file():
        raise AuditError(
            f"{folder} has no adapter_model.safetensors; name the folder that a finished training has left."
        )
    return folder


@contextlib.contextmanager
def no_pickles() -> Iterator[None]:
    """While it lasts, nothing is read by torch.load, whatever a library finds in a model's folder or on the hub."""
    with mock.patch("torch.load", _refused):
        yield


def _refused(file: Any, *_: Any, **__: Any) -> None:
    raise OSError(f"{str(file)[-100:]} is a pickle, which could run code and is never read; {CONVERT}")
