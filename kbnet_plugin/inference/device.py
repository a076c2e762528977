"""Devices, how much memory they have, and how much of it a network takes."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from ..nn import KBNet_l, KBNet_s

_CGROUP = Path("/sys/fs/cgroup")


def find_device(name: str = "auto") -> torch.device:
    """Turn a device's name into a device that is there; ``"auto"`` is CUDA, then MPS, then the CPU.

    Raises
    ------
    ValueError
        If there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError):  # one for every way of not being there
        raise ValueError(f"device {name!r} is not available on this machine; use auto or cpu") from None


def free_memory(device: torch.device) -> int:
    """Bytes that a new job may take on a device; of a container its own limit counts."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    free = int(psutil.virtual_memory().available)
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        return free if limit == "max" else min(free, max(0, int(limit) - used))
    except (OSError, ValueError):
        return free


def bytes_per_pixel(network: KBNet_s | KBNet_l, itemsize: int = 4) -> int:
    """Working memory of a forward pass for each pixel of its input: as measured, and a fifth.

    Nearly all of it is spent at full resolution: a block of KBNet_s holds about 7 feature maps at its peak
    besides the coefficients of its bases, one of KBNet_l about 12 of the refinement's doubled width.
    """
    if isinstance(network, KBNet_s):
        return itemsize * (8 * network.intro.out_channels + 80)
    return itemsize * 14 * 2 * network.patch_embed.proj.out_channels


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory did not suffice, of the CPU or of a device."""
    # The CPU's and MPS's allocators have no exception of their own.
    said = str(error)
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or "can't allocate memory" in said
        or "out of memory" in said
    )
