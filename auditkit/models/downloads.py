"""Where a model's files come from, and what is wrong with them, in one sentence each.

The hub is asked once, without retries, before anything is loaded: a gated or missing model, a typo in a folder's name
or a machine without network is told in seconds.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from auditkit import specs
from auditkit.errors import AuditError
from auditkit.models import weights
from auditkit.params import is_folder, project_root
from auditkit.specs import HUB_SECONDS
from auditkit.text import short_error

SHIPPED = "auditkit.models"  # the entry points by which a package ships models, as our pyproject.toml the miniature's


def source(place: str, spec: str | Path, own: dict, index: str = "config.json") -> tuple[str, dict]:
    """Where `from_pretrained` finds a model, and the arguments its spec's own options ask for.

    That is the place itself, once it is known to be there, or its folder in the cache when the hub cannot be reached.

    Args:
        place: a folder or a hub id.
        spec: the text that names the model, for messages.
        own: its options (specs.py).
        index: the file that every model of this kind has: config.json, or a pipeline's model_index.json.

    Raises AuditError for a hub id that is missing, gated or out of reach.
    """
    how = {"trust_remote_code": own.get("trust_remote_code") == "yes", "revision": own.get("revision", "main")}
    if how["trust_remote_code"]:
        _say_what_is_allowed(place, how["revision"])
    if Path(place).is_dir():
        return place, how
    import huggingface_hub
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{place}"
    cached = huggingface_hub.try_to_load_from_cache(place, index, revision=how["revision"])
    try:
        address = huggingface_hub.hf_hub_url(place, index, revision=how["revision"])
        huggingface_hub.get_hf_file_metadata(address, timeout=HUB_SECONDS)
    except errors.GatedRepoError as error:
        raise AuditError(
            f'"{spec}": this model is gated; accept its terms at {page}, then log in with `hf auth login` or HF_TOKEN.'
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise AuditError(
            f'"{spec}": no folder and no public model of this name at {constants.ENDPOINT}; correct it, or log in with '
            "`hf auth login` if it is private."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise AuditError(
            f'"{spec}": {place} has no revision {how["revision"]}; name one of its branches, tags or commits.'
        ) from error
    except errors.EntryNotFoundError as error:
        library = "transformers" if index == "config.json" else "diffusers"
        raise AuditError(f'"{spec}": {page} has no {index}; name a model in the format of {library}.') from error
    except errors.OfflineModeIsEnabled as error:
        if not isinstance(cached, str):
            raise AuditError(
                f'"{spec}": no such folder, HF_HUB_OFFLINE is set, and the cache does not hold the model; unset it, or '
                "name a folder."
            ) from error
    except (errors.HTTPError, OSError) as error:
        if not isinstance(cached, str):
            raise AuditError(
                f'"{spec}": no such folder, and {constants.ENDPOINT} cannot be reached ({short_error(error)}); name a '
                "folder that is here, or come back with a network."
            ) from error
    else:
        return place, how
    return str(Path(cached).parent), how


@functools.cache
def _say_what_is_allowed(place: str, revision: str) -> None:
    """Once a process and model: what its user has permitted."""
    fixed = Path(place).is_dir() or re.fullmatch("[0-9a-f]{40}", revision)
    pinned = "" if fixed else f" {revision} may be other code tomorrow: ?revision=COMMIT, 40 digits, pins it."
    print(
        f"{place}: ?trust_remote_code=yes lets Python code that comes with this model run on this machine, now and "
        "each time it is loaded, with all that you may do: read, change and delete your files, use your network, and "
        f"read the keys in your environment. Nothing here confines it.{pinned}",
        flush=True,
    )


def config_of(place: str, spec: str | Path, how: dict) -> Any:
    """The model's configuration.

    Raises AuditError when there is none, or when it is not that of a vision-language model.
    """
    import transformers
    from transformers import AutoConfig

    from auditkit.models.trainer_internals import reads_images  # torch, which a look at a folder does not need

    try:
        found = AutoConfig.from_pretrained(place, **how)
    except Exception as error:  # a configuration can be wrong in any way
        _refuse_remote_code(error, spec)
        if "does not recognize this architecture" in str(error):
            raise AuditError(
                f'"{spec}": transformers {transformers.__version__} does not know this kind of model; a newer one may.'
            ) from error
        raise AuditError(f'"{spec}": no model configuration at {place} ({short_error(error)}).') from error
    remote = "AutoModelForImageTextToText" in getattr(found, "auto_map", {}) and how["trust_remote_code"]
    if not reads_images(found) and not remote:
        raise AuditError(f'"{spec}": a {found.model_type} model does not read images; name a vision-language model.')
    return found


def processor_of(place: str, spec: str | Path, how: dict) -> Any:
    """The model's processor, settled (models/processors.py).

    Raises AuditError when there is none for images and text, or none with a chat template.
    """
    from auditkit.models import processors

    try:
        found = processors.load_processor(place, how)
        whole = hasattr(found, "image_processor") and hasattr(found, "tokenizer")
        ignored = whole and bool(found.chat_template) and processors.leaves_pictures_out(found)
    except AuditError as error:
        raise AuditError(f'"{spec}": {error}') from error
    except Exception as error:  # its files can be wrong in any way: tokenizers raises bare Exceptions
        if package := _missing_package(error):
            raise AuditError(
                f'"{spec}": its processor needs the package {package}, which is not installed; pip install {package}'
                + (", in the build that fits your torch." if package == "torchvision" else ".")
            ) from error
        if isinstance(error, ImportError):
            raise AuditError(
                f'"{spec}": its processor needs a package that is missing: {short_error(error)}'
            ) from error
        _refuse_remote_code(error, spec)
        if isinstance(error, AttributeError):
            raise AuditError(
                f'"{spec}": the tokenizer at {place} is not that of this family ({short_error(error)}); its own '
                "tokenizer.json and tokenizer_config.json belong there."
            ) from error
        raise AuditError(
            f'"{spec}": no processor could be loaded from {place} ({short_error(error)}); its tokenizer and '
            "preprocessor_config.json belong beside the weights, as processor.save_pretrained writes them."
        ) from error
    if not whole:
        raise AuditError(f'"{spec}": {place} has no processor for images and text, only a {type(found).__name__}.')
    if not getattr(found, "chat_template", None):
        raise AuditError(
            f'"{spec}": {place} has no chat template; add the chat_template.jinja of its instruct version, or name '
            "that version (often -it, -Instruct or -chat); a family without one was not trained to answer in a chat "
            "and cannot be asked here."
        )
    if ignored:
        raise AuditError(
            f'"{spec}": its chat template leaves the picture out of the text, so it would answer without looking; put '
            f"the chat_template.jinja of the family's vision models into {place}."
        )
    if found.tokenizer.eos_token is None:
        raise AuditError(
            f'"{spec}": its tokenizer has no end token, so no answer would end; name it as eos_token in '
            f"tokenizer_config.json at {place}."
        )
    return found


def _missing_package(error: BaseException) -> str:
    """The package that an error of transformers' says is not installed, "" where it says nothing of the kind.

    >>> _missing_package(ImportError("PixtralProcessor requires the Torchvision library but it was not found"))
    'torchvision'
    >>> _missing_package(ValueError("no tokenizer"))
    ''
    """
    said = str(error)
    if match := re.search(r"[Pp]ackage `(\w+)` is required|requires the (\w+) library|No module named '(\w+)'", said):
        return next(filter(None, match.groups())).lower()
    # of a family whose pictures only torchvision prepares
    return "torchvision" if "torchvision" in said and importlib.util.find_spec("torchvision") is None else ""


def refuse_weights(error: Exception, place: str, spec: str | Path, how: dict) -> None:
    """Raise AuditError for weights that could not be loaded: what is wrong with them."""
    _refuse_remote_code(error, spec)
    if "is a pickle" in str(error):
        raise AuditError(f'"{spec}": {short_error(error)}.') from None
    files = _files(place, how)
    safe = {Path(name).parent for name in files if name.endswith(".safetensors")}
    pickles = [name for name in files if name.endswith(weights.PICKLES)]
    pickles = [name for name in pickles if Path(name).parent not in safe]  # a pipeline has a folder for each model
    if pickles:
        raise AuditError(
            f'"{spec}": its weights are only there as {pickles[0]}, a pickle, which could run code and is never read; '
            "convert them to safetensors, as model.save_pretrained writes them."
        ) from error
    raise AuditError(f'"{spec}": its weights could not be loaded from {place} ({short_error(error)}).') from error


def _files(place: str, how: dict) -> list[str]:
    if Path(place).is_dir():
        return sorted(path.relative_to(place).as_posix() for path in Path(place).rglob("*"))
    import huggingface_hub

    try:
        return huggingface_hub.list_repo_files(place, revision=how["revision"])
    except Exception:  # it only explains another error, which is told without it
        return []


def refuse_unsafe_index(place: str, spec: str | Path, how: dict) -> None:
    """Raise AuditError for weights, in a folder or on the hub, of which an index names anything but safetensors.

    Of the hub nothing is fetched but that index; a folder's weights are also to be whole.
    """
    if Path(place).is_dir():
        weights.refuse_unsafe(Path(place), spec)
        return
    from transformers.utils import cached_file

    quiet = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "gated_repo", "connection_errors")}
    found = cached_file(place, "model.safetensors.index.json", revision=how["revision"], **quiet)
    shards = weights.read_object(Path(found), spec).get("weight_map", {}) if found else {}
    for name in sorted({*map(str, shards.values())}):
        weights.refuse_pickle(name, spec, "model.safetensors.index.json names")


def _refuse_remote_code(error: Exception, spec: str | Path) -> None:
    if "trust_remote_code" in str(error):
        mark = "&" if "?" in str(spec) else "?"
        raise AuditError(
            f'"{spec}": this model brings code of its own, which is not run unasked; if you trust its authors, write '
            f"{spec}{mark}trust_remote_code=yes."
        ) from error


def resolve(spec: str | Path, like: str = "google/gemma-3-4b-it") -> str:
    """Where a model is: the folder of one's own or of one that a package ships ("miniature:NAME", by an entry point of
    SHIPPED), or a hub id or a server's address, unchanged.

    A relative folder counts from the working folder, then from the project's.
    Raises AuditError, with a hub id to write it `like`, when it can be none of these.
    """
    parsed = specs.parse(spec)
    text = parsed.place
    if parsed.engine == "endpoint":
        return text
    scheme, _, name = text.partition(":")
    for found in entry_points(group=SHIPPED, name=scheme) if name else ():
        return str(found.load()(name))
    for folder in (Path(text).expanduser(), project_root() / text):
        if is_folder(folder):
            return str(folder)
    if text.count("/") == 1 and not text.startswith((".", "/", "~", "outputs/")) and specs.is_hub_id(text):
        return text
    raise AuditError(f'"{text[:200]}": no such model; write miniature:NAME, a folder or a hub id like {like}.')


def refuse_absent(text: str | Path, index: str = "config.json") -> str:
    """Where a model is, as `resolve` says it; what is in its folder, and in its adapters', can be read.

    A hub id is only looked at, not asked for.

    Args:
        text: a model's (specs.py), or a pipeline's.
        index: the file that every model of this kind has: config.json, or a pipeline's model_index.json.

    Raises AuditError for a folder, or an adapter's, that is missing, has no such file, or no whole safetensors.
    """
    spec = specs.parse(text) if index == "config.json" else specs.parse_pipeline(text)
    if spec.engine == "endpoint":
        return spec.place
    place = resolve(text if index == "config.json" else spec.place)
    if Path(place).is_dir():
        folder = Path(place)
        if not any((folder / name).is_file() for name in (index, weights.ADAPTER)):
            kind = "model" if index == "config.json" else "pipeline"
            raise AuditError(f'"{text}": {folder} has no {index}, so it is no {kind}; name the folder that has it.')
        weights.refuse_unsafe(folder, text)
    for adapter in spec.adapters:
        weights.adapter_folder(adapter)
    return place
