"""Devices, their free memory, and how much of it a network needs."""

from __future__ import annotations

import warnings
from pathlib import Path

import psutil
import torch

from ..nn import KBNet_l, KBNet_s

_CGROUP = Path("/sys/fs/cgroup")


def find_device(name: str = "auto") -> torch.device:
    """Find a device by name.

    Parameters
    ----------
    name : str
        ``"auto"`` (the first available of CUDA, MPS and CPU) or a name that `torch.device` accepts.

    Raises
    ------
    ValueError
        If there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if not _computes(name):
        raise ValueError(
            f"device {name!r} is not available on this machine; use auto, {' or '.join(find_devices())}"
        )
    return torch.device(name)


def find_devices() -> list[str]:
    """Return the names of this machine's devices, such as ``["cpu", "cuda:0"]``."""
    names = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count())), "mps", "xpu"]
    return [name for name in names if _computes(name)]


def _computes(name: str) -> bool:
    try:
        with warnings.catch_warnings():  # about devices that torch has given up
            warnings.simplefilter("ignore")
            torch.ones(1, device=name).item()  # fails on "meta", which torch can allocate
        device = torch.device(name)
    except Exception as error:  # of many kinds, depending on why it is missing
        return is_out_of_memory(error)
    return device.type != "cpu" or not device.index  # torch ignores the number of a CPU


def free_memory(device: torch.device) -> int:
    """Return the bytes that a new job may use on a device; the limit of a container counts."""
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
    """Estimate the working memory of a forward pass per pixel of its input, in bytes.

    Nearly all of it is needed at full resolution: at its peak, a block of KBNet_s stores about 7 feature maps
    besides the coefficients of its bases, and one of KBNet_l about 12, of the refinement's doubled width. The
    estimate adds a fifth to what was measured.

    Parameters
    ----------
    network : KBNet_s or KBNet_l
    itemsize : int
        Bytes per value.
    """
    if isinstance(network, KBNet_s):
        return itemsize * (8 * network.intro.out_channels + 80)
    return itemsize * 14 * 2 * network.patch_embed.proj.out_channels


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that the CPU or a device ran out of memory."""
    # The allocators of the CPU and of MPS have no exception of their own.
    message = str(error)
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or "can't allocate memory" in message
        or "out of memory" in message
    )
