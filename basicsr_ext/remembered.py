"""What BasicSR's models remember from step to step besides weights and moments, and do not save."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger("basicsr")

POOL = ("queue_lr", "queue_gt")
"""Attributes of Real-ESRGAN's models: degraded and clean crops of earlier steps, to draw batches from."""

MEAN = "mean_path_length"
"""Attribute of StyleGAN2's models: a running mean in a loss."""


def remembered(model: Any) -> dict[str, Any]:
    """Return what a training state must also contain, for a run that resumes as if it had not stopped."""
    found: dict[str, Any] = {}
    if hasattr(model, MEAN):
        found[MEAN] = getattr(model, MEAN)
    # Each process has a pool, and only the first one saves.
    if model.opt.get("world_size", 1) == 1 and all(hasattr(model, name) for name in POOL):
        pool = {name: _packed(getattr(model, name)[: model.queue_ptr]) for name in POOL}
        if not getattr(model, "_pool_told", False):
            model._pool_told = True
            size = sum(p[0].nbytes for p in pool.values()) * model.queue_size / 2**20
            text = "each training state contains the pool of %d training pairs: %.3g MB when it is full"
            logger.info(text, model.queue_size, size)
        found["pool"] = pool
    return found


def recall(model: Any, saved: Mapping[str, Any]) -> None:
    """Give a model back what `remembered` returned; one line in the log says if its pool starts empty."""
    if hasattr(model, MEAN) and MEAN in saved:
        mean = saved[MEAN]
        model.mean_path_length = mean.to(model.device) if isinstance(mean, Tensor) else mean
    if not hasattr(model, "queue_size") or not model.opt.get("high_order_degradation", True):
        return
    if reason := _refill(model, saved.get("pool")):
        logger.warning("the pool of training pairs starts empty: %s", reason)


def _refill(model: Any, pool: Mapping[str, Tensor] | None) -> str | None:
    """Fill the pool, by the sizes of the option file; return why that is impossible."""
    if model.opt.get("world_size", 1) > 1:
        return "several processes do not save theirs"
    if not pool:
        return "the training state has none"
    batch = model.opt["datasets"]["train"]["batch_size_per_gpu"]
    if pool["queue_gt"].shape[-1] != model.opt["gt_size"] or model.queue_size % batch:
        return "gt_size, queue_size or the batch has changed"
    kept = min(len(pool["queue_gt"]), model.queue_size) // batch * batch
    for name, crops in pool.items():
        values = crops / 255 if crops.dtype is torch.uint8 else crops
        whole = torch.zeros(model.queue_size, *values.shape[1:])
        whole[:kept] = values[:kept]
        setattr(model, name, whole.to(model.device))
    model.queue_ptr = kept
    return None


def _packed(crops: Tensor) -> Tensor:
    """Return 8 bits a value where that loses nothing, as it does for crops of 8-bit images."""
    crops = crops.cpu()
    packed = torch.empty_like(crops, dtype=torch.uint8)
    for levels, crop in zip(packed, crops, strict=True):  # one by one, which stays in the processor's cache
        levels.copy_((crop * 255).round_().clamp_(0, 255))
        if not torch.equal(levels / 255, crop):
            return crops
    return packed
