"""Models larger than the device: let them take turns on it, load them in few bits, show them smaller pictures.

The fourth means stands where batches are cut (models/batching.py): one that does not fit is halved.
"""

import contextlib
import logging
import math
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from PIL import Image

from auditkit.errors import AuditError


class Parked:
    """Weights that wait in CPU memory while other models have the device.

    Coming costs one copy over the bus; going costs nothing, since the weights of a model that only writes are as they
    were. So a parked model must never be trained.
    """

    def __init__(self, model, device: str):
        self.device = device
        pin = device.startswith("cuda")
        self.tensors = [
            (tensor, tensor.data.pin_memory() if pin else tensor.data)
            for tensor in (*model.parameters(), *model.buffers())
        ]

    def bring(self) -> None:
        for tensor, at_home in self.tensors:
            tensor.data = at_home.to(self.device, non_blocking=True, copy=True)

    def put_back(self) -> None:
        for tensor, at_home in self.tensors:
            tensor.data = at_home
        free_memory()


@contextlib.contextmanager
def at_work(vlm: object) -> Iterator[None]:
    """While it lasts, a parked model is on its device; for any other model nothing happens."""
    parked = getattr(vlm, "parked", None)
    if parked is None:
        yield
        return
    parked.bring()
    try:
        yield
    finally:
        parked.put_back()


@contextlib.contextmanager
def frozen_vision(model: Any) -> Iterator[None]:
    """While it lasts, a training has no way back through the vision tower: its activations are not kept.

    Gradient checkpointing has the first activations of every part of the model require gradients, the tower's too. So
    a step would keep what the tower has computed and go back through all of it, only to find nothing there to train.
    A tower that cannot be found, or in which something is trained, is left alone.

    Args:
        model: any family's, as transformers loads it, with its adapter in place and before it is wrapped for training
            in several processes.
    """
    tower = model.get_encoder(modality="image")  # the model itself where it has none
    if any(parameter.requires_grad for parameter in tower.parameters()):
        yield
        return
    with mock.patch.object(tower, "forward", torch.no_grad()(tower.forward)):
        yield


def quantization(bits: int, dtype: torch.dtype) -> Any:
    """4 bits: QLoRA's NF4 with doubly quantized scales; 8 bits: LLM.int8().

    Raises AuditError when bitsandbytes is missing.
    """
    from transformers import BitsAndBytesConfig
    from transformers.utils import is_bitsandbytes_available

    if not is_bitsandbytes_available():
        raise AuditError(f"?bits={bits} needs one more package: pip install auditkit[quantize]")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it speaks of a cast at every product
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def shrunk(image: Image.Image, max_pixels: int | None) -> Image.Image:
    """The picture itself, or a smaller one of the same shape where it has more than `max_pixels`."""
    if not max_pixels or image.width * image.height <= max_pixels:
        return image
    scale = math.sqrt(max_pixels / (image.width * image.height))
    return image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))), Image.Resampling.LANCZOS)


def free_memory() -> None:
    """Give what no tensor holds any more back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
