"""Continue optimizers and schedules: the option file rules, the training state only says where they were."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from basicsr.models.lr_scheduler import CosineAnnealingRestartLR
from torch import nn
from torch.optim import Optimizer

from kbnet_plugin.errors import BadInput, one_line

from .schedulers import CosineAnnealingRestartCyclicLR

CLOSED = (CosineAnnealingRestartCyclicLR, CosineAnnealingRestartLR)
"""Schedulers whose rate depends on the step alone."""


def load_moments(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Give an optimizer its moments back; its rate, betas and weight decay stay those of the option file.

    Raises
    ------
    BadInput
        If they are those of another optimizer, or of another network.
    """
    found = {key for moments in saved["state"].values() for key in moments}
    if found and (missing := _moments(optimizer) - found):
        raise BadInput(
            f"train.optim_g.type: the training state is of another optimizer: {type(optimizer).__name__} "
            f"needs {', '.join(sorted(missing))}, it has {', '.join(sorted(found))}; keep the type, or start "
            "a new experiment from its weights (path.pretrain_network_g)"
        )
    try:
        groups = zip(optimizer.param_groups, saved["param_groups"], strict=True)
        merged = [{**own, "params": other["params"]} for own, other in groups]
        optimizer.load_state_dict({"state": saved["state"], "param_groups": merged})
    except (ValueError, KeyError) as error:
        raise BadInput(f"the training state does not fit these options: {one_line(error)}") from error


def _moments(optimizer: Optimizer) -> set[str]:
    """Find what such an optimizer remembers of each weight, from a step of a small one."""
    weight = nn.Parameter(torch.zeros(1, 1))
    weight.grad = torch.zeros(1, 1)
    known = inspect.signature(type(optimizer)).parameters
    settings = {k: v for k, v in optimizer.defaults.items() if k in known and k != "fused"}
    # Whatever it raises on so small a weight, it may accept the real ones.
    with suppress(Exception):
        small = type(optimizer)([weight], **settings)
        small.step()
        return set(small.state[weight])
    return set()


def replay(model: Any, iteration: int, warmup: int) -> None:
    """Bring the schedulers of a model to a step, as if all before it had been made with these options."""
    first = 1
    if all(isinstance(scheduler, CLOSED) for scheduler in model.schedulers):
        first = max(iteration, 1)
        for scheduler in model.schedulers:
            scheduler.last_epoch = max(iteration - 2, 0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")  # no step of the optimizer
        for step in range(first, iteration + 1):
            model.update_learning_rate(step, warmup_iter=warmup)
