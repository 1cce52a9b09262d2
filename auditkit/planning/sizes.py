"""How large a model is, before any of it is downloaded: the paper's models as configurations, and any other's counts.

`known` holds the published configurations of Gemma 3 (4B, 12B, 27B) and PaliGemma 2 (3B, 10B, 28B; 224, 448, 896 px),
so that a plan needs no network and a benchmark no weights. They are the values that transformers' own conversion
scripts give the checkpoints (convert_gemma3_weights.py, convert_paligemma2_weights_to_hf.py). Built on torch's meta
device, which takes no memory, they have the published numbers of parameters (tests/test_sizes.py). Those of Qwen3-VL,
InternVL3.5 and SmolVLM2 are in published.py.
Of any other model the hub is asked, or the folder's files are read.
"""

import functools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers as hf
from PIL import Image

from auditkit import specs
from auditkit.errors import AuditError
from auditkit.models import by_image, downloads, image_features, processors
from auditkit.models.base import quiet
from auditkit.models.lora import TEXT_PART
from auditkit.models.trainer_internals import attention_of, reads_images
from auditkit.models.transformers import VLM
from auditkit.planning import published
from auditkit.text import short_error

SIGLIP = dict(  # So400m/14, the vision tower of both families
    hidden_size=1152,
    intermediate_size=4304,
    num_hidden_layers=27,
    num_attention_heads=16,
    patch_size=14,
    vision_use_head=False,
)
GEMMA3 = {  # hidden, intermediate, layers, heads, heads of keys and values, width of a head, scale of the queries
    "4b": (2560, 10240, 34, 8, 4, 256, 256),
    "12b": (3840, 15360, 48, 16, 8, 256, 256),
    "27b": (5376, 21504, 62, 32, 16, 128, 168),
}
GEMMA2 = {  # the text part of PaliGemma 2
    "3b": (2304, 9216, 26, 8, 4, 256, 256),
    "10b": (3584, 14336, 42, 16, 8, 256, 256),
    "28b": (4608, 36864, 46, 32, 16, 128, 144),
}
FIELDS = (
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
    "query_pre_attn_scalar"
).split()
NONE: Mapping = {}
TILES = 17  # of a square picture in SmolVLM and Idefics3: 4 x 4, and the whole of it; what is smaller is enlarged
UNKNOWN_PIXELS = 1_000_000  # of a picture, where a model takes any size and its spec does not say ?max_pixels


@dataclass(frozen=True)
class Size:
    """What memory and time depend on. Widths are in numbers, not bytes."""

    parameters: int
    linear: int  # of these, weights that bitsandbytes can quantize
    text: int  # weights of the text part's layers, without embeddings and head
    vision: int  # weights of the vision tower's layers
    lora: int  # weights of an adapter of rank 1 on the text part's projections
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    window: int | None  # tokens that the local layers look back; None: all layers see everything
    local_layers: int
    scores: bool  # its attention keeps every score (eager): this transformers has no fused kernel for the model
    vision_hidden: int
    vision_intermediate: int
    vision_layers: int
    patches: int  # of one picture
    tile: int  # patches that look at each other: all, or those of one of the tiles a picture is cut into
    pixels: int  # numbers that enter for one picture, its colours included
    image_tokens: int  # into which they are joined for the text part
    unshared: str  # why rows about one image are each read whole (by_image.py), "" where they share it
    features: bool  # then at least the image is encoded once (image_features.py)
    assumed: str = ""  # what had to be assumed
    on_disk: int | None = None  # bytes to download, where that is known
    at_hand: bool = False  # the weights are on this machine
    note: str = ""  # where this is from, and what stands in the way of a download


def known(place: str) -> hf.PreTrainedConfig | None:
    """The published configuration of a hub id, or None if it is not among those held here.

    >>> known("google/gemma-3-27b-it").text_config.num_hidden_layers, known("org/other")
    (62, None)
    """
    if match := re.fullmatch(r"google/gemma-3-(\d+b)-(?:it|pt)", place):
        return _gemma3(GEMMA3[match[1]]) if match[1] in GEMMA3 else None
    if match := re.fullmatch(r"google/paligemma2-(\d+b)-(?:(?:pt|mix)-(224|448)|pt-(896))", place):
        return _paligemma2(GEMMA2[match[1]], int(match[2] or match[3])) if match[1] in GEMMA2 else None
    return published.configuration(place)


def _gemma3(widths: tuple) -> hf.Gemma3Config:
    text = hf.Gemma3TextConfig(
        vocab_size=262208,
        sliding_window=1024,
        max_position_embeddings=131072,
        bos_token_id=2,
        eos_token_id=[1, 106],
        **dict(zip(FIELDS, widths, strict=True)),
    )
    return hf.Gemma3Config(
        text_config=text,
        vision_config=hf.SiglipVisionConfig(image_size=896, **SIGLIP),
        mm_tokens_per_image=256,
        image_token_index=262144,
        boi_token_index=255999,
        eoi_token_index=256000,
    )


def _paligemma2(widths: tuple, pixels: int) -> hf.PaliGemmaConfig:
    text = hf.Gemma2Config(vocab_size=257216, **dict(zip(FIELDS, widths, strict=True)))
    return hf.PaliGemmaConfig(
        text_config=text,
        vision_config=hf.SiglipVisionConfig(image_size=pixels, **SIGLIP),
        projection_dim=text.hidden_size,
        hidden_size=text.hidden_size,
        image_token_index=257152,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
    )


def empty(config: hf.PreTrainedConfig) -> "hf.PreTrainedModel":
    """The model of a configuration without its weights (torch's meta device): shapes, but no memory.

    Raises AuditError for a configuration of a model that does not read images, or of none that can be.
    """
    if not reads_images(config):
        raise AuditError(f"a {config.model_type} model does not read images; name a vision-language model.")
    try:
        with torch.device("meta"):
            return hf.AutoModelForImageTextToText.from_config(config)
    except Exception as error:  # whatever stands in it
        raise AuditError(f"its configuration makes no model ({short_error(error)}).") from error


def count(config: hf.PreTrainedConfig, options: Mapping = NONE, processor: "hf.ProcessorMixin | None" = None) -> Size:
    """What a model of this configuration has and takes in; `options` are those of its spec.

    With its processor the image tokens of a picture are counted, without it they follow from the configuration.
    """
    model = empty(config)
    max_pixels, attention = options.get("max_pixels"), options.get("attention")
    kept = set(hf.quantizers.base.get_keys_to_not_convert(model))
    layers = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    text, vision = config.get_text_config(decoder=True), _vision(config)
    heads = text.num_attention_heads
    seeing = {name for name in layers if re.search("vision|visual", name)}
    kinds = getattr(text, "layer_types", None) or []
    local = sum(kind == "sliding_attention" for kind in kinds)
    patches, tokens, pixels, assumed = _picture(config, max_pixels, processor)
    hidden = _first(vision, "hidden_size", "embed_dim", "d_model")
    side, patch = (_square(_first(vision, name, default=None)) for name in ("image_size", "patch_size"))
    return Size(
        parameters=sum(p.numel() for p in model.parameters()),
        linear=sum(m.weight.numel() for name, m in layers.items() if name not in kept),
        text=sum(m.weight.numel() for name, m in layers.items() if name not in seeing and not name.endswith("lm_head")),
        vision=sum(layers[name].weight.numel() for name in seeing),
        lora=sum(m.in_features + m.out_features for name, m in layers.items() if re.fullmatch(TEXT_PART, name)),
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        layers=text.num_hidden_layers,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        vocabulary=text.vocab_size,
        window=text.sliding_window if local else None,
        local_layers=local,
        scores=(attention or attention_of(model.config.get_text_config())) == "eager",
        vision_hidden=hidden,
        vision_intermediate=_first(vision, "intermediate_size", default=4 * hidden),
        vision_layers=_first(vision, "num_hidden_layers", "depth", "num_layers"),
        patches=patches,
        tile=min(patches, (side // patch) ** 2) if side and patch else patches,
        pixels=pixels,
        image_tokens=tokens,
        unshared=by_image.why_model_unshared(model, config.model_type == "paligemma", 0),
        features=image_features.takes_features(VLM("", model, None)),
        assumed=assumed,
    )


def _picture(config, max_pixels: int | None, processor) -> tuple[int, int, int, str]:
    """(patches, image tokens, numbers in, what was assumed) of one picture."""
    vision, area = _vision(config), max_pixels or UNKNOWN_PIXELS
    patch, side = (_square(_first(vision, name, default=None)) for name in ("patch_size", "image_size"))
    assumed = ""
    if processor is not None:
        picture = Image.new("RGB", (math.isqrt(area), math.isqrt(area)))
        reader = VLM("", None, processor)
        asked = processors.chat(reader, "?")
        try:
            inputs = processor(text=[asked], images=[[picture]], return_tensors="pt")
        except Exception as error:  # a tokenizer without what its processor takes for granted, say
            raise AuditError(
                f"its processor takes no question on one image ({short_error(error)}); its tokenizer_config.json and "
                "preprocessor_config.json belong beside the weights."
            ) from error
        pixels = inputs["pixel_values"].numel()
        patches = math.ceil(pixels / 3 / patch**2 / _first(vision, "temporal_patch_size", default=1))
        return patches, int((inputs["input_ids"] == config.image_token_id).sum()), pixels, assumed
    if config.model_type in ("gemma3", "paligemma", "llava"):
        area = side**2  # always resized to this
    elif tiles := _tiles(config, area):
        assumed, area = (
            f"pictures of {area:,} pixels, cut into {tiles} tile{'s' * (tiles > 1)}",
            tiles * (side - side % patch) ** 2,
        )
    else:  # takes pictures of any size
        assumed = f"pictures of {area:,} pixels"
    patches = math.ceil(area / patch**2)
    joined = _first(config, "scale_factor", default=None) or _first(vision, "spatial_merge_size", default=1)
    if ratio := _first(config, "downsample_ratio", default=None):
        joined = round(1 / ratio)
    return patches, _first(config, "mm_tokens_per_image") or math.ceil(patches / joined**2), 3 * area, assumed


def _tiles(config, area: int) -> int:
    """How many tiles of its own size a family's processor makes of a square picture; 0 where it makes none."""
    if config.model_type in ("smolvlm", "idefics3"):
        return TILES
    if config.model_type == "internvl":
        side = math.isqrt(area)
        height, width = _vision(config).image_size
        processor = hf.GotOcr2ImageProcessorPil(size={"height": height, "width": width})
        how = {"crop_to_patches": True, "min_patches": 1, "max_patches": 12}
        return processor.get_number_of_image_patches(side, side, how)
    return 0


def _vision(config):
    """The configuration of the part that sees; an encoder-decoder has it in its encoder."""
    return (config.encoder if config.is_encoder_decoder else config).vision_config


def _square(side):
    """One side of what is square, which some configurations give as (height, width)."""
    return side[0] if isinstance(side, (list, tuple)) else side


def _first(config, *names: str, default=0):
    return next((value for name in names if (value := getattr(config, name, None)) is not None), default)


def kind(text: str) -> str:
    """The name under which a model's speed is filed: checkpoints of one configuration are equally fast, and so is a
    model under another `name`.

    >>> kind("google/paligemma2-3b-mix-448"), kind("google/gemma-3-4b-it?bits=4"), kind("miniature:target")
    ('paligemma2-3b-448', 'gemma3-4b?bits=4', 'miniature:target')
    """
    place, _, query = text.partition("?")
    options = "&".join(option for option in query.split("&") if option and not option.startswith("name="))
    if match := re.fullmatch(r"google/gemma-3-(\d+b)-(?:it|pt)", place):
        place = f"gemma3-{match[1]}"
    elif match := re.fullmatch(r"google/paligemma2-(\d+b)-(?:pt|mix)-(\d+)", place):
        place = f"paligemma2-{match[1]}-{match[2]}"
    return f"{place}?{options}" if options else place


@functools.cache
def look_up(text: str) -> Size | None:
    """The size of the model a spec names, from its folder, from the hub's answer, or from what is known here.

    None if nobody knows: the network is down and it is none of the paper's models; or its weights are elsewhere, behind
    an address. Nothing but a few kilobytes of metadata is fetched.

    Raises AuditError for a folder without weights, a model that does not exist, or one that reads no images.
    """
    spec = specs.parse(text)
    if spec.engine == "endpoint":
        return None
    place = downloads.resolve(spec.place)
    try:
        if Path(place).is_dir():
            return _in_folder(Path(place), text)
        return _on_hub(place, spec.options)
    except AuditError as error:
        if str(error).startswith(f'"{text}": '):
            raise
        raise AuditError(f'"{text}": {error}') from error


def _in_folder(folder: Path, text: str) -> Size:
    from huggingface_hub import get_local_safetensors_metadata

    if (folder / "adapter_config.json").is_file():
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
        size = look_up(base)
        if size is None:
            raise AuditError(f"nothing is known of {base}, on which this adapter stands.")
        return size
    spec = specs.parse(text)
    if not (folder / "config.json").is_file():
        raise AuditError(f"{spec.place} is no folder of a model (it has no config.json).")
    with quiet():  # read as whoever loads the model reads it
        place, how = downloads.source(str(folder), text, spec.options)
        config, processor = downloads.config_of(place, text, how), downloads.processor_of(place, text, how)
        size = count(config, spec.options, processor)
    try:
        headers = get_local_safetensors_metadata(folder)
    except (OSError, ValueError) as error:
        raise AuditError(f"{spec.place} is no folder of a model ({str(error).splitlines()[0][:120]}).") from error
    # a tied matrix may be in the file twice or once: the model counts it once, and a file lacks none of its weights
    stored = sum(headers.parameter_count.values())
    return replace(size, parameters=min(size.parameters, stored), on_disk=0, at_hand=True, note="its files")


def _on_hub(place: str, options: Mapping) -> Size | None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError

    config, revision = known(place), options.get("revision")
    try:
        info = HfApi().model_info(place, revision=revision, files_metadata=True, timeout=10)
    except (RepositoryNotFoundError, GatedRepoError) as error:
        raise AuditError("the hub has no such model, or shows it only to those who are logged in.") from error
    except (HTTPError, OSError):  # no network
        config = config or _configuration(place, revision, local_files_only=True)
        if config is None:
            return None
        size, model = count(config, options), published.catalogued(place)
        return replace(
            size,
            note="its published configuration, for the hub does not answer",
            **_still_to_come(place, revision, model.number * size.parameters if model else 2 * size.parameters),
        )
    config = config or _configuration(place, revision)
    if config is None:
        raise AuditError("the hub shows no configuration of it; is it a gated model, or one that needs a login?")
    size = count(config, options)
    files = sum(file.size or 0 for file in info.siblings or [] if file.rfilename.endswith(".safetensors"))
    stored = info.safetensors.total if info.safetensors else size.parameters
    note = "the hub" + (" (gated: accept its licence there, then hf auth login)" if info.gated else "")
    return replace(size, parameters=stored, note=note, **_still_to_come(place, revision, files))


def _configuration(place: str, revision: str | None, **how) -> hf.PreTrainedConfig | None:
    try:
        return hf.AutoConfig.from_pretrained(place, revision=revision or "main", **how)
    except (OSError, ValueError):
        return None


def _still_to_come(place: str, revision: str | None, files: int) -> dict:
    """Bytes to download, none where the hub's cache on this machine has the weights already."""
    from huggingface_hub import try_to_load_from_cache

    names = ("model.safetensors", "model.safetensors.index.json")
    cached = any(isinstance(try_to_load_from_cache(place, name, revision=revision), str) for name in names)
    return {"on_disk": 0 if cached else files, "at_hand": cached}
