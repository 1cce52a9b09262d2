"""What weighs on a device beside the models that write: the pipelines that paint, and the model that compares pictures.

A pipeline is several models, its parts (text encoders, a denoiser, an autoencoder). How many numbers each holds is read
from the headers of its safetensors files, in a folder or on the hub, so that nothing is downloaded. The paper's two
pipelines and FLUX.2 [klein] 4B are known without a network: their published configurations, built on torch's meta
device, have these numbers (tests/planning/test_pipeline_memory.py); the paper's two have the same parts. Of any other
that cannot be reached nothing is known, and the plan says so.

What a picture takes while it is painted, its activations, is not counted: it depends on the pipeline and on ?size.
"""

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from auditkit import specs
from auditkit.counterfactual import pipelines
from auditkit.errors import AuditError
from auditkit.models import downloads
from auditkit.params import WAYS, Params
from auditkit.planning import memory
from auditkit.specs import HUB_SECONDS
from auditkit.text import short_error

if TYPE_CHECKING:
    from huggingface_hub.utils import SafetensorsFileMetadata

FLUX1 = {  # part -> (numbers, those of its largest tensor)
    "transformer": (11_901_408_320, 56_623_104),
    "text_encoder_2": (4_762_310_656, 131_596_288),
    "text_encoder": (123_060_480, 37_945_344),
    "vae": (83_819_683, 2_359_296),
}
KLEIN = {  # FLUX.2 [klein] 4B: 5 double and 20 single blocks of 24 heads, Qwen3-4B reads the text
    "transformer": (3_875_544_576, 84_934_656),
    "text_encoder": (4_022_468_096, 388_956_160),
    "vae": (84_046_372, 2_359_296),
}
KNOWN = {f"black-forest-labs/FLUX.1-{name}": FLUX1 for name in ("dev", "Kontext-dev")}
KNOWN |= {"black-forest-labs/FLUX.2-klein-4B": KLEIN}
# as diffusers and transformers name what they load; a file with a variant in its name (model.fp16.safetensors) is not
LOADED = re.compile(r"(?:diffusion_pytorch_model|model)(?:-\d+-of-\d+)?\.safetensors")
LEAVES = 2  # layers on the device under ?offload=group, which fetches the next one meanwhile


@dataclass(frozen=True)
class PipelineWeight:
    """One pipeline, or the picture check, and what it would take."""

    text: str  # its spec
    spec: specs.Spec
    stages: tuple[str, ...]  # that load it
    parts: Mapping[str, tuple[int, int]] | None  # part -> (numbers, those of its largest tensor); None: nobody knows
    on_disk: int  # bytes to download
    e: int  # bytes of a number
    turns: bool  # whether it leaves the device when models take turns

    @property
    def weights(self) -> float:
        """Bytes of all its weights, 0 where unknown."""
        return self.e * sum(numbers for numbers, _ in (self.parts or {}).values())

    @property
    def offload(self) -> str:
        return self.spec.options.get("offload", "none")

    @property
    def at_work(self) -> float:
        """Bytes of its weights that are on the device at once while it works: all, one part, or a layer or two."""
        if not self.parts or self.offload == "none":
            return self.weights
        if self.offload == "model":
            return self.e * max(numbers for numbers, _ in self.parts.values())
        return LEAVES * self.e * max(largest for _, largest in self.parts.values())

    def stays(self, in_turns: bool) -> float:
        """Bytes on the device also while others work."""
        return 0.0 if self.offload != "none" or (in_turns and self.turns) else self.weights

    @property
    def work(self) -> str:
        return "comparing" if self.turns else "painting"

    @property
    def device(self) -> str:
        device = self.spec.options.get("device", "")
        return "" if device in ("auto", "cuda", "cuda:0", "mps") else device


def picture_models(p: Params, on_gpu: bool) -> list[PipelineWeight]:
    """The pipelines of a parameter file, each once, and its picture check, with the stages that load them.

    Raises AuditError for one that does not exist.
    """
    stages: dict[str, set[str]] = {}
    for way, name in WAYS.items():
        if name and getattr(p, name):
            rest = {"04_auditor", "05_audit"} if way in p.ways else set()  # 03 tries whatever is named
            stages.setdefault(getattr(p, name), {"03_counterfactual"}).update(rest)
    judge = {p.picture_check: set().union(*stages.values())} if p.picture_check and stages else {}
    found = []
    for text, its in (stages | judge).items():
        spec = specs.parse(text) if text in judge else specs.parse_pipeline(text)
        parts, on_disk = pipeline_parts(text, "config.json" if text in judge else pipelines.INDEX)
        dtype = spec.options.get("dtype", p.dtype)
        e = memory.BYTES[dtype] if dtype != "auto" else 2 if on_gpu else 4
        found.append(PipelineWeight(text, spec, tuple(sorted(its)), parts, on_disk, e, turns=text in judge))
    return found


@functools.cache
def pipeline_parts(text: str, index: str = pipelines.INDEX) -> tuple[Mapping[str, tuple[int, int]] | None, int]:
    """(part -> (numbers, those of its largest tensor), bytes to download) of a pipeline, or of a model where `index` is
    config.json; (None, 0) if nobody knows.

    Raises AuditError for a folder that is none, and for a pipeline the hub does not have.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError, SafetensorsParsingError

    spec = specs.parse_pipeline(text)
    place, revision = downloads.resolve(spec.place), spec.options.get("revision")
    if Path(place).is_dir():
        return _in_folder(Path(place), text, index), 0
    cached, known = try_to_load_from_cache(place, index, revision=revision), KNOWN.get(place)
    at_hand = isinstance(cached, str)
    try:
        hub = HfApi()
        info = hub.model_info(place, revision=revision, files_metadata=True, timeout=HUB_SECONDS)
        files = {file.rfilename: file.size or 0 for file in info.siblings or [] if _is_loaded(file.rfilename)}
        heads = {} if known else {f: hub.parse_safetensors_file_metadata(place, f, revision=revision) for f in files}
    except (RepositoryNotFoundError, GatedRepoError) as error:
        if known:  # gated: the licence can still be accepted
            return known, 0 if at_hand else _download(known)
        raise AuditError(
            f'"{text}": the hub has no such model, or shows it only to those who are logged in.'
        ) from error
    except (HTTPError, OSError, SafetensorsParsingError):  # no network, or a file that says nothing
        if at_hand:
            return _in_folder(Path(cached).parent, text, index), 0
        return known, _download(known) if known else 0
    return known or _parts(heads) or None, 0 if at_hand else sum(files.values())


def _download(parts: Mapping) -> int:
    return 2 * sum(numbers for numbers, _ in parts.values())  # published in 16 bits


def _in_folder(folder: Path, text: str, index: str) -> Mapping[str, tuple[int, int]]:
    from huggingface_hub import parse_local_safetensors_file_metadata
    from huggingface_hub.errors import SafetensorsParsingError

    if not (folder / index).is_file():
        raise AuditError(
            f'"{text}": {folder} has no {index}, so it is no {"pipeline" if index == pipelines.INDEX else "model"}.'
        )
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors"))
    try:
        found = _parts({n: parse_local_safetensors_file_metadata(folder / n) for n in names if _is_loaded(n)})
    except (OSError, SafetensorsParsingError) as error:
        raise AuditError(f'"{text}": its weights in {folder} cannot be read ({short_error(error)}).') from error
    if not found:
        raise AuditError(f'"{text}": {folder} holds no weights as safetensors.')
    return found


def _is_loaded(name: str) -> bool:
    """Whether a file holds weights that are loaded: a part's own, not a variant and not a whole of another format."""
    *folders, file = name.split("/")
    return len(folders) < 2 and LOADED.fullmatch(file) is not None


def _parts(heads: Mapping[str, "SafetensorsFileMetadata"]) -> dict[str, tuple[int, int]]:
    """Part -> (numbers, those of its largest tensor), from the headers of its files."""
    parts: dict[str, tuple[int, int]] = {}
    for name, head in heads.items():
        part = name.rpartition("/")[0]
        numbers, largest = parts.get(part, (0, 0))
        counts = [math.prod(tensor.shape) for tensor in head.tensors.values()]
        parts[part] = numbers + sum(counts), max([largest, *counts])
    return parts
