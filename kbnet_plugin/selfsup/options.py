"""The options of the experiment that `basicsr train` runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from .. import zoo
from ..errors import BadInput
from ..zoo.architectures import identify
from ..zoo.weights import read_state_dict
from .config import NETWORK, SCRATCH, FitConfig
from .planes import KEPT, Planes

_PASSES = 20  # over all pixels, from a model
_STEPS = 300, 2000  # from a model, for the smallest and the largest sources
_LONGER = 3  # times, from scratch
_RATES = {"r2r": 1e-3, "n2v": 3e-4, "n2n": 3e-4}  # from a model; r2r begins with targets without noise
_CHECKS = 40  # checkpoints in a run, which can be measured and shown

RESUMABLE = (
    "train.total_iter",
    "train.scheduler",
    "train.warmup_iter",
    "train.ema_decay",
    "train.precision",
    "train.compile",
    "datasets.train.noise",
    "datasets.train.num_worker_per_gpu",
    "num_gpu",
    "logger",
)
"""Options that may differ between a run and its continuation."""

_TYPES = {
    "r2r": ("RecorruptedModel", "Dataset_NoisyPlanes"),
    "n2v": ("ImageCleanModel", "Dataset_BlindSpot"),
    "n2n": ("ImageCleanModel", "Dataset_PlanePairs"),
}


def experiment(
    config: FitConfig,
    planes: Planes,
    *,
    source: Path,
    second: Path | None,
    folder: Path,
    device: torch.device,
    scale: tuple[float, float],
    patch: int,
) -> dict[str, Any]:
    """Build the options.

    Parameters
    ----------
    config : FitConfig
    planes : Planes
        What is trained on.
    source, second : Path
        Files of the planes, and of the second recording if there is one.
    folder : Path
        That of the experiment.
    device : torch.device
    scale : (float, float)
        Values that become 0 and 1.
    patch : int
        Side of the training crops, in pixels.

    Raises
    ------
    ValueError
        If the model to start from does not exist or takes another number of channels.
    """
    cuda = device.type == "cuda"
    network, weights = _network(config, planes)
    batch = config.batch or (64 if cuda else 8)
    total = config.iterations or _length(planes, batch * patch**2, from_model=weights is not None)
    model_type, dataset = _TYPES[config.method]
    train: dict[str, Any] = {
        "type": dataset,
        "dataroot_lq": str(source),
        "in_ch": planes.channels,
        "range": list(scale),
        "gt_size": patch,
        "batch_size_per_gpu": batch,
        "num_worker_per_gpu": (min(8, os.cpu_count() or 1) if cuda else 0)
        if config.workers is None
        else config.workers,
        "geometric_augs": True,
        "cache_images": planes.nbytes <= KEPT,
    }
    if config.axes:
        train["axes"] = config.axes
    if config.method == "r2r" and weights is not None:
        train["denoiser"] = weights
    if config.method == "n2v":
        train |= {
            "masked_pixel_percentage": config.masked_pixel_percentage,
            "strategy": config.strategy,
        }
        if config.correlated:
            train["correlated"] = config.correlated
    elif config.method == "n2n":
        if second is not None:
            train["dataroot_gt"] = str(second)
        if config.pair_axis:
            train["pair_axis"] = config.pair_axis
    bf16 = cuda and torch.cuda.is_bf16_supported()
    rate = config.learning_rate or (3e-3 if weights is None else _RATES[config.method])
    return {
        "name": config.name,
        "model_type": model_type,
        "num_gpu": "auto" if cuda else 0,
        "manual_seed": config.seed,
        "datasets": {"train": train},
        "network_g": network,
        "path": {"experiments_root": str(folder.parent), "pretrain_network_g": weights},
        "train": {
            "total_iter": total,
            "precision": config.precision or ("bf16" if bf16 else "fp32"),
            "compile": config.compile,
            "optim_g": {"type": "AdamW", "lr": rate, "weight_decay": 1e-4, "betas": [0.9, 0.99]},
            "scheduler": {
                "type": "CosineAnnealingRestartCyclicLR",
                "periods": [total],
                "restart_weights": [1],
                "eta_mins": [1e-6],
            },
            "warmup_iter": min(50, max(1, total // 10)),
            "ema_decay": 0.99 if total < 3000 else 0.999,
            "pixel_opt": {"type": "BlindSpotLoss", "norm": config.norm},
            "grad_clip": 0.1,
        },
        "logger": {
            "print_freq": max(1, min(20, total // 50)),
            "save_checkpoint_freq": max(1, min(500, total // _CHECKS)),
            "keep_checkpoints": 2,
        },
    }


def _network(config: FitConfig, planes: Planes) -> tuple[dict[str, Any], str | None]:
    """Return the network and the file of the weights to start from, if there is one."""
    init = config.init or shipped(planes)
    if init == SCRATCH:
        return {**NETWORK, **(config.network or {}), "img_channel": planes.channels}, None
    model = zoo.get_model(init)
    if model.in_channels != planes.channels:
        raise BadInput(
            f"{model.name} takes {model.in_channels} channel(s), but {planes.path.name} has "
            f"{planes.channels}; start from another model or from {SCRATCH}"
        )
    variant, arguments = identify(read_state_dict(model.path))
    return {"type": variant, **arguments}, str(model.path.absolute())


def shipped(planes: Planes) -> str:
    """Return the shipped model that suits the channels of planes."""
    return "denoise-micro" if planes.channels == 1 else zoo.DEFAULT


def _length(planes: Planes, pixels_per_step: int, *, from_model: bool) -> int:
    pixels = sum(height * width for height, width in map(planes.size, range(len(planes))))
    steps = min(max(_PASSES * pixels // pixels_per_step, _STEPS[0]), _STEPS[1])
    return steps if from_model else _LONGER * steps


def changed(before: Any, now: Any, where: str = "") -> list[str]:
    """List the keys that differ, except those that may change when a run is resumed."""
    if where in RESUMABLE:
        return []
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [] if before == now else [where]
    keys = dict.fromkeys([*now, *before])
    inner = (changed(before.get(key), now.get(key), f"{where}.{key}" if where else str(key)) for key in keys)
    return [place for places in inner for place in places]
