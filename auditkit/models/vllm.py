"""Models that vLLM runs in this process: many answers at once, by its own batching and paged memory.

    vllm:google/gemma-3-12b-it
    vllm:google/gemma-3-27b-it?gpus=2&memory=0.6&max_length=4096

vLLM wraps each question in the model's own chat template, as `vlm.chat` does. A PaliGemma has none; vLLM puts its
picture, its first token and its line's end around the task prefix and the question.

The GPU's memory is taken at once and kept: `memory` is the share of it, so that other models find room.
What was run: vLLM 0.30.0 in its build for the CPU, with a Gemma3 (tests/test_vllm_engine.py). Not run: any GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from PIL import Image

from auditkit import specs
from auditkit.errors import AuditError
from auditkit.models import downloads, processors
from auditkit.models.base import WrittenText, quiet
from auditkit.models.offload import shrunk

if TYPE_CHECKING:
    import vllm

MISSING = "needs vLLM, in an environment of its own with CUDA: pip install auditkit[vllm]"


@dataclass
class VLLMModel:
    """A model inside vLLM, with the three things that every model here has: `name`, `batch_size` and `write`."""

    name: str
    batch_size: int
    max_pixels: int | None
    templated: bool  # whether the model has a chat template
    llm: vllm.LLM = field(repr=False)

    def write(
        self,
        images: Sequence[Image.Image | None],
        prompts: Sequence[str],
        max_new_tokens: int,
        temperature: float = 0.0,
    ) -> list[str]:
        """What the model writes to (image, prompt) pairs, stripped; an image of None is no image, 0 is greedy."""
        from vllm import SamplingParams

        how = SamplingParams(temperature=temperature, max_tokens=max_new_tokens)
        pairs = [
            (None if image is None else shrunk(image, self.max_pixels).convert("RGB"), prompt)
            for image, prompt in zip(images, prompts, strict=True)
        ]
        if self.templated:
            outputs = self.llm.chat([_messages(*pair) for pair in pairs], how, use_tqdm=False)
        else:
            outputs = self.llm.generate([_plain(*pair) for pair in pairs], how, use_tqdm=False)
        said = [output.outputs[0] for output in outputs]
        return [
            WrittenText(one.text.strip(), {"cut": True}) if one.finish_reason == "length" else one.text.strip()
            for one in said
        ]


def load_vllm(spec: specs.Spec, batch_size: int) -> VLLMModel:
    """Start vLLM with a model, a folder's or a hub id's.

    Args:
        spec: its options max_pixels, dtype, revision, gpus (over how many it is split), memory (share of the GPU's) and
            max_length (longest prompt and answer, in tokens) count.
        batch_size: prompts handed over at once, unless the spec has its own; vLLM makes its own batches of them.

    Raises AuditError when vLLM is not installed, when it cannot run the model, and as `load_model` for its processor.
    """
    try:
        from vllm import LLM
    except ImportError:
        raise AuditError(f'"vllm:{spec.place}" {MISSING}') from None
    own, place = spec.options, downloads.resolve(spec.place)
    place, source = downloads.source(place, spec.place, own)
    with quiet():
        processor = downloads.processor_of(place, spec.place, source)  # refuses a model that cannot be asked
    named = {"gpus": "tensor_parallel_size", "memory": "gpu_memory_utilization", "max_length": "max_model_len"}
    how = {named.get(name, name): own[name] for name in (*named, "dtype", "revision") if name in own}
    try:
        llm = LLM(model=place, limit_mm_per_prompt={"image": 1}, **how)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        why = " ".join(str(error).split())[:300]
        raise AuditError(f'"vllm:{spec.place}": vLLM cannot run it here ({type(error).__name__}: {why}).') from error
    templated = not processors.is_paligemma(processor)  # the template of ours is not in its folder
    return VLLMModel(spec.name, own.get("batch_size", batch_size), own.get("max_pixels"), templated, llm)


def _messages(image: Image.Image | None, prompt: str) -> list[dict]:
    content = [] if image is None else [{"type": "image_pil", "image_pil": image}]
    return [{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}]


def _plain(image: Image.Image | None, prompt: str) -> dict:
    text = {"prompt": f"answer en {prompt}"}
    return text if image is None else text | {"multi_modal_data": {"image": image}}
