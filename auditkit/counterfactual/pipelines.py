"""A diffusers pipeline loaded from its text: what its call takes, what it may skip, and where its weights wait."""

import contextlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import torch

from auditkit import specs
from auditkit.errors import AuditError
from auditkit.models import downloads, weights
from auditkit.models.base import quiet
from auditkit.models.trainer_internals import empty_cache
from auditkit.text import nearest, short_error

INDEX = "model_index.json"  # what makes a folder a pipeline
DEFAULTS = "painter.json"  # beside it, if its weights were trained for one size, length or number of steps: options
OURS = {  # arguments of a call that options cannot set
    "prompt", "image", "generator", "output_type", "return_dict", "num_images_per_prompt", "latents", "prompt_embeds",
    "callback_on_step_end", "callback_on_step_end_tensor_inputs", "height", "width", "max_area", "_auto_resize",
}  # fmt: skip


@contextlib.contextmanager
def quiet_diffusers() -> Iterator[None]:
    """No progress bars and no advice from transformers and diffusers; what matters is raised or in a GeneratedImage."""
    from diffusers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with quiet():
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def defaults(place: str) -> dict:
    """The options in a pipeline's own painter.json."""
    path = Path(place) / DEFAULTS
    if not path.is_file():
        return {}
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        return specs.parse_pipeline(f"{path}?{urlencode(given)}").options
    except (ValueError, TypeError) as error:
        if isinstance(error, AuditError):
            raise
        raise AuditError(f'{path}: this is no JSON object of options, such as {{"size": 64}} ({error}).') from error


def class_of(place: str, spec: str | Path, how: dict) -> type:
    """The class of a pipeline, before any of its weights are fetched. Raises AuditError when diffusers has none."""
    import diffusers

    if Path(place).is_dir() and not (Path(place) / INDEX).is_file():
        raise AuditError(f'"{spec}": {place} has no {INDEX}; name a folder that pipe.save_pretrained wrote.')
    try:
        name = diffusers.DiffusionPipeline.load_config(place, **how)["_class_name"]
    except (OSError, ValueError, KeyError) as error:
        raise AuditError(f'"{spec}": no {INDEX} that names a pipeline at {place} ({short_error(error)}).') from error
    if not isinstance(name, str):
        raise AuditError(f'"{spec}": this pipeline brings code of its own, which is not run; name one of diffusers.')
    kind = getattr(diffusers, name, None)
    if not isinstance(kind, type):
        raise AuditError(f'"{spec}": diffusers {diffusers.__version__} does not know a {name}; a newer one may.')
    return kind


def arguments(kind: type) -> dict[str, inspect.Parameter]:
    """The named arguments of a pipeline's call."""
    found = inspect.signature(kind.__call__).parameters
    return {k: p for k, p in found.items() if k != "self" and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def call_of(kind: type, spec: str | Path, own: dict, device: str = "cpu") -> dict:
    """The arguments of a pipeline's call that its options ask for, on a device.

    Raises AuditError for an option that the call does not take, naming it and the nearest one that there is.
    """
    takes = arguments(kind)
    guidance = next(
        (n for n in ("guidance_scale", "true_cfg_scale") if n in takes and takes[n].default is not None), None
    )
    names = {"steps": "num_inference_steps", "guidance": guidance, "max_length": "max_sequence_length"}
    call = {}
    for option, value in own.items():
        name = names.get(option, option)
        if option in specs.PIPELINE_OPTIONS and option not in names:
            continue
        if name in takes and name not in OURS:
            call[name] = value
            continue
        if option in ("height", "width"):
            raise AuditError(f'"{spec}": write {option} as ?size=WIDTHxHEIGHT.')
        if name in takes:
            raise AuditError(f'"{spec}": {option} is no option: the audit sets it for every picture.')
        known = sorted(_advisable(kind, device) - {k for k, n in names.items() if n not in takes})
        near = nearest(option, known, cutoff=0.0)
        raise AuditError(f'"{spec}": the call of {kind.__name__} takes no {option}; the nearest is {near}.')
    return call


def _advisable(kind: type, device: str) -> set[str]:
    """The options that a pipeline on a device would not refuse, and that can be written down."""
    takes = {
        name
        for name, about in arguments(kind).items()
        if not re.search("Tensor|Image|Callable|Dict|dict", str(about.annotation)) and not name.endswith("_embeds")
    }
    refused = {"offload"} if device == "cpu" else set()
    apart = "cache_context" in inspect.unwrap(kind.__call__).__code__.co_names
    if not apart or "transformer" not in inspect.signature(kind).parameters:
        refused.add("cache")
    return (takes | set(specs.PIPELINE_OPTIONS)) - OURS - refused


def unread_end(pipe: Any, text: str, call: dict) -> str:
    """The end of a text beyond the tokens that a pipeline's text encoder reads; "" where it reads all of it.

    The length is the call's max_sequence_length, or else the tokenizer's own. A template that a pipeline puts around
    the text is not counted. Where CLIP stands beside another encoder it only sets the tone, and does not count either.

    Args:
        call: the named arguments that the pipeline's call gets.
    """
    found = [
        (getattr(part, "tokenizer", part), getattr(pipe, name.replace("tokenizer", "text_encoder"), None))
        for name, part in pipe.components.items()
        if hasattr(getattr(part, "tokenizer", part), "model_max_length")
    ]
    others = [tokenizer for tokenizer, encoder in found if not type(encoder).__name__.startswith("CLIP")]
    by_default = arguments(type(pipe)).get("max_sequence_length")
    length = call.get("max_sequence_length", by_default and by_default.default)
    ends = []
    for tokenizer in others or [tokenizer for tokenizer, _ in found]:
        most = length if isinstance(length, int) else tokenizer.model_max_length
        most = min(most, 10**6)  # one without a limit has 10^30
        if tokenizer.is_fast:  # a slow one does not say which characters a token stands for
            tokens = tokenizer(text, truncation=True, max_length=most, return_offsets_mapping=True)
            ends.append(text[max(end for _, end in tokens["offset_mapping"]) :].strip())
    return min(ends, key=len, default="")


def unknown_words(pipe: Any, text: str) -> list[str]:
    """The words of a text that none of a pipeline's text encoders knows; [] where they spell out what they do not."""
    found: list[set[str]] = []
    for part in pipe.components.values():
        tokenizer = getattr(part, "tokenizer", part)
        if getattr(tokenizer, "is_fast", False) and tokenizer.unk_token_id is not None:
            tokens = tokenizer(text, return_offsets_mapping=True)
            places = zip(tokens["input_ids"], tokens["offset_mapping"], strict=True)
            found.append({text[a:b].strip() for token, (a, b) in places if token == tokenizer.unk_token_id and b > a})
    unknown = set.intersection(*found) if found else set()
    return [word for word in dict.fromkeys(text.split()) if word in unknown]


def read_pipeline(place: str, spec: str | Path, dtype: torch.dtype, how: dict) -> Any:
    """The pipeline with its weights, on the CPU. Raises AuditError for what of it is missing."""
    from diffusers import DiffusionPipeline

    if Path(place).is_dir():
        weights.refuse_unsafe(Path(place), spec)
    try:
        with weights.no_pickles():
            return DiffusionPipeline.from_pretrained(place, use_safetensors=True, dtype=dtype, **how)
    except ImportError as error:
        raise AuditError(f'"{spec}": it needs a package that is missing: {short_error(error)}.') from error
    except Exception as error:  # its files can be wrong in any way: tokenizers raises bare Exceptions
        downloads.refuse_weights(error, place, spec, how)


def denoiser(pipe: Any) -> Any:
    """The part that is run at every step."""
    return getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)


def cache(pipe: Any, spec: str | Path, which: str, call: dict) -> None:
    """Let the denoiser skip what changes little from one step to the next, as diffusers' hooks do it.

    first_block decides for the whole batch at once, so that a picture then depends a little on its batch. What else
    diffusers has wants two passes a step (faster) or figures of the one model (mag).
    """
    if which == "none":
        return
    from diffusers import hooks

    its = denoiser(pipe)
    configs = {
        "first_block": lambda: hooks.FirstBlockCacheConfig(),
        "taylorseer": lambda: hooks.TaylorSeerCacheConfig(),
        "pyramid": lambda: hooks.PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2, current_timestep_callback=lambda: pipe.current_timestep
        ),
    }
    if not hasattr(its, "enable_cache"):
        raise AuditError(f'"{spec}": a {type(its).__name__} has no cache; leave ?cache={which} out.')
    apart = "cache_context" in inspect.unwrap(type(pipe).__call__).__code__.co_names
    if not apart and not (its.config.get("guidance_embeds") and call.get("true_cfg_scale", 1) <= 1):
        raise AuditError(
            f'"{spec}": a {type(pipe).__name__} may go through its denoiser twice a step, with and without the text, '
            f"and does not keep the two apart; leave ?cache={which} out."
        )
    try:
        its.enable_cache(configs[which]())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise AuditError(f'"{spec}": ?cache={which} does not fit this pipeline ({short_error(error)}).') from error


@contextlib.contextmanager
def caching(pipe: Any) -> Iterator[None]:
    """While it lasts, a denoiser's cache has a place, which some pipelines forget; it is empty afterwards."""
    its = denoiser(pipe)
    if not getattr(its, "is_cache_enabled", False):
        yield
        return
    try:
        with its.cache_context("image"):
            yield
    finally:
        empty_cache(its)


def settle(pipe: Any, device: str, offload: str) -> None:
    """Bring the weights to the device, or arrange that they come when they are needed."""
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    elif offload == "group":
        pipe.enable_group_offload(torch.device(device), offload_type="leaf_level", use_stream=device.startswith("cuda"))
    else:
        pipe.to(device)
