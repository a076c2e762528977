"""What a run will cost, logged before its first step."""

from __future__ import annotations

import logging
import sys
from typing import Any

import psutil
import torch

from kbnet_plugin.nn.cost import count

from .base_model import unwrap
from .sampler import Stages

logger = logging.getLogger("basicsr")


def log_network(model: Any, stages: Stages, activations: float | None) -> None:
    """Log parameters, multiply-accumulate operations and an estimate of a step's memory.

    Parameters
    ----------
    model : BaseModelFixes
    stages : Stages
    activations : float or None
        Bytes that a step keeps per input pixel.
    """
    if not hasattr(model, "net_g"):
        return
    net = unwrap(model.net_g)
    weights = sum(p.numel() for p in net.parameters())
    size = stages.crops[0] or 256
    text = f"{type(net).__name__}: {weights:,} parameters"
    try:
        cost = count(net, (size, size))
    except Exception as error:  # a third-party network that the counter cannot handle
        logger.debug("multiply-accumulates cannot be counted: %s", error)
    else:
        text += (
            f", {cost.macs_total / 1e9:.3g} GMACs at {size} x {size} with kernel basis attention "
            f"({cost.macs_published / 1e9:.3g} as counted in papers, convolutions only)"
        )
    logger.info(text)
    if activations is None or None in stages.crops:
        return
    parts = getattr(model, "accumulate", 1)
    pixels = max(b // parts * c * c for b, c in zip(stages.batches, stages.crops, strict=True) if c)
    scale = int(model.opt.get("scale") or 1)
    moments = 4 + (getattr(model, "net_g_ema", None) is not None)  # weights, gradients, AdamW's two, EMA
    needed = activations * pixels / scale**2 + 4 * moments * weights
    logger.info("a step of the largest stage needs about %s (estimate)", _bytes(needed))


def log_batch(model: Any, stages: Stages, world: int, accumulate: int) -> None:
    """Log the effective batch and the learning rate."""
    rate = model.get_current_learning_rate()[0]
    batches = " then ".join(str(b * world) for b in stages.batches)
    parts = [f"{world} process(es)", f"{accumulate} accumulated"] if world * accumulate > 1 else []
    how = f" = {' x '.join([str(stages.batches[0] // accumulate), *parts])}" if parts else ""
    logger.info("effective batch %s%s, learning rate %.3e", batches, how, rate)


def peak_memory(device: torch.device) -> str:
    """Return the peak memory so far, as '1.2 GB'."""
    if device.type == "cuda":
        return _bytes(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return _bytes(psutil.Process().memory_info().peak_wset)
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _bytes(used * (1 if sys.platform == "darwin" else 1024))


def _bytes(number: float) -> str:
    return f"{number / 2**30:.2g} GB" if number >= 2**29 else f"{number / 2**20:.3g} MB"
