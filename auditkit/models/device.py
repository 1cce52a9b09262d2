"""Where a model runs and in which number format."""

import ctypes
import functools
import os
import sys

import torch

from auditkit.errors import AuditError


def choose_device(device: str) -> str:
    """The device meant: under `accelerate launch` each process has the GPU of its own rank."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise AuditError(f"device: {device} is not here: torch {torch.__version__} sees no GPU; write auto or cpu.")
        if device == "cuda" and "LOCAL_RANK" in os.environ:
            return f"cuda:{os.environ['LOCAL_RANK']}"
        if device.partition(":")[2] and int(device.partition(":")[2]) >= torch.cuda.device_count():
            raise AuditError(f"device: there is no {device}; this machine has {torch.cuda.device_count()} GPU(s).")
    return device


@functools.cache
def keep_freed_memory() -> None:
    """Have GNU's malloc keep what is freed, up to 1 GB, for the next tensor; elsewhere nothing is done.

    By itself it gives a tensor of some 100 KB back to the system, which then clears the pages of the next one anew: for
    models as small as the miniature's a sixth of the time they take on a CPU. Who sets MALLOC_* has decided (man
    mallopt).
    """
    if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in os.environ):
        libc = ctypes.CDLL(None)
        if hasattr(libc, "gnu_get_libc_version"):
            libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, the largest there may be
            libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


def cpu_computes_bfloat16() -> bool:
    """Whether this processor computes with bfloat16 itself; one that only emulates it is faster in float32."""
    can = torch.cpu.get_capabilities()
    return any(can.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def cpu_autocast() -> torch.autocast:
    """Training on a CPU in the number format that it is fast in: bfloat16 where it computes with it, else float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=cpu_computes_bfloat16())


def dtype_in_words(asked: str, kind: torch.dtype, device: str) -> str:
    """A number format and why it is the one, such as "float32: what is fast and exact on cpu".

    Args:
        asked: what a file or a spec says, "auto" or the name of a format.
        kind: what `choose_dtype` made of it for this `device`.
    """
    name = str(kind).removeprefix("torch.")
    if asked != "auto":
        slow = kind == torch.bfloat16 and device == "cpu" and not cpu_computes_bfloat16()
        return f"{name}: asked for" + (", but this processor only emulates it: float32 is faster" if slow else "")
    return name + {
        "float32": f": what is fast and exact on {device.partition(':')[0]}",
        "bfloat16": ": this GPU computes with it",
        "float16": ": this GPU has no bfloat16",
    }.get(name, "")


def cpu_training_in_words() -> str:
    """In which number format the miniature's builder trains on this processor, and why."""
    if cpu_computes_bfloat16():
        return "bfloat16: this processor computes with it"
    return "float32: this processor only emulates bfloat16"


def choose_dtype(dtype: str, device: str) -> torch.dtype:
    # a GPU older than Ampere only emulates bfloat16, slowly
    bfloat16 = device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)
    if dtype == "auto":
        return torch.float32 if not device.startswith("cuda") else torch.bfloat16 if bfloat16 else torch.float16
    kind = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}.get(dtype)
    if kind is None:
        raise AuditError(f'dtype: "{dtype}" is not known; write auto, float32, bfloat16 or float16.')
    if kind == torch.bfloat16 and device.startswith("cuda") and not bfloat16:
        raise AuditError(f"dtype: {torch.cuda.get_device_name(device)} has no bfloat16; write float16 or auto.")
    return kind
