"""A mixin that makes any BasicSR model class work with current torch, on CPU too, and save safely."""

from __future__ import annotations

import inspect
import logging
import os
import pickle
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from basicsr.models import lr_scheduler as basicsr_schedulers
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kbnet_plugin.errors import BadInput, nearest, one_line
from kbnet_plugin.zoo.weights import read_state_dict

from . import dist
from .options import Options
from .remembered import recall, remembered
from .resuming import CLOSED, load_moments, replay
from .saver import Snapshot
from .schedulers import CosineAnnealingRestartCyclicLR
from .watch import require_finite

logger = logging.getLogger("basicsr")

ROLLING = ".rolling"
"""Suffix of a training state that the next checkpoint replaces."""

ALIASES = {"MultiStepLR": "MultiStepRestartLR", "TrueCosineAnnealingLR": "CosineAnnealingLR"}
"""Scheduler names in BasicSR's and Restormer's option files, and the names of their classes here."""


class BaseModelFixes:
    """Adds DDP on CPU, torch's optimizers and schedulers, safe loading and atomic saving to `BaseModel`."""

    opt: Options
    device: torch.device
    optimizers: list[torch.optim.Optimizer]
    schedulers: list[Any]
    best_metric_results: dict[str, Any]

    samples = 0
    """Training samples consumed so far by all processes; saved in the training state."""
    seconds = 0.0
    """Time that the run has taken so far; saved likewise."""
    position: float | None = None
    """Iteration of the schedule, in a run with a time limit; saved likewise."""
    _snapshot: Snapshot | None = None
    _rolling = False

    def model_to_device(self, net: nn.Module) -> nn.Module:
        net = net.to(self.device)
        if not self.opt.get("dist") or not any(p.requires_grad for p in net.parameters()):
            return net
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch 2.14 renames broadcast_buffers
            return DistributedDataParallel(
                net,
                device_ids=[torch.cuda.current_device()] if self.device.type == "cuda" else None,
                find_unused_parameters=self.opt.get("find_unused_parameters", False),
                broadcast_buffers=False,  # validation on one rank must not wait for the others
            )

    def print_network(self, net: nn.Module) -> None:
        count = sum(p.numel() for p in net.parameters())
        logger.info("%s: %s parameters", type(unwrap(net)).__name__, f"{count:,}")

    def get_optimizer(
        self, optim_type: str, params: Iterable[nn.Parameter], lr: float, **kwargs: Any
    ) -> torch.optim.Optimizer:
        known = {n for n, c in vars(torch.optim).items() if isinstance(c, type) and n != "Optimizer"}
        if optim_type not in known:
            raise BadInput(f"train.optim_g.type: no optimizer {optim_type!r}{nearest(optim_type, known)}")
        cls = getattr(torch.optim, optim_type)
        chosen = {"fused", "foreach", "capturable", "differentiable"} & kwargs.keys()
        if self.device.type == "cuda" and not chosen and "fused" in inspect.signature(cls).parameters:
            kwargs["fused"] = True  # reads on the device whether to leave out a step
        try:
            return cls(params, lr=lr, **kwargs)
        except (TypeError, ValueError) as error:
            raise BadInput(f"train.optim_g ({optim_type}): {one_line(error)}") from error

    def setup_schedulers(self) -> None:
        options = dict(self.opt["train"].get("scheduler") or {"type": "ConstantLR", "factor": 1})
        name: Any = options.pop("type", None)
        known = scheduler_classes()
        if (cls := known.get(ALIASES.get(name, name))) is None:
            raise BadInput(f"train.scheduler.type: no scheduler {name!r}{nearest(name, {*known, *ALIASES})}")
        try:
            self.schedulers.extend(cls(optimizer, **options) for optimizer in self.optimizers)
        except (TypeError, ValueError, AssertionError) as error:
            raise BadInput(f"train.scheduler ({name}): {one_line(error)}") from error

    def load_network(
        self, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = None
    ) -> None:
        """Load weights in any known layout; with `param_key` None, the first layout found."""
        net = unwrap(net)
        if not os.path.exists(load_path):
            raise BadInput(
                f"pretrained weights: {load_path} does not exist; fix path.pretrain_network_*, "
                "or set it to null to start from random weights"
            )
        try:
            tensors = read_weights(load_path, param_key)
        except BadInput:
            if param_key not in ("params", "params_ema"):  # BasicSR's defaults, not the user's choice
                raise
            tensors = read_weights(load_path)
        expected = net.state_dict()
        fitting = {n: t for n, t in tensors.items() if n in expected and t.shape == expected[n].shape}
        if (strict and not len(fitting) == len(expected) == len(tensors)) or not fitting:
            raise BadInput(f"{load_path} does not fit {type(net).__name__}: {_difference(expected, tensors)}")
        if len(fitting) < len(expected):
            logger.warning("%s: only %d of %d tensors loaded", load_path, len(fitting), len(expected))
        net.load_state_dict(fitting, strict=strict)

    def save_network(
        self, net: Any, net_label: str, current_iter: int | str, param_key: str | list[str] = "params"
    ) -> None:
        if self.opt["rank"] != 0:
            return
        nets, keys = (v if isinstance(v, list) else [v] for v in (net, param_key))
        weights = {
            key: {name: tensor.detach() for name, tensor in unwrap(n).state_dict().items()}
            for key, n in zip(keys, nets, strict=True)
        }
        label = "latest" if current_iter == -1 else current_iter
        self._write(weights, self.opt["path"]["models"], f"{net_label}_{label}.pth")

    def save_training_state(self, epoch: int, current_iter: int) -> None:
        if self.opt["rank"] != 0 or current_iter == -1:
            return
        state = {
            "epoch": epoch,
            "iter": current_iter,
            "samples": self.samples,
            "seconds": self.seconds,
            "position": self.position,
            "optimizers": [o.state_dict() for o in self.optimizers],
            "schedulers": [s.state_dict() for s in self.schedulers],
            "best": _plain(getattr(self, "best_metric_results", {})),
            "scaler": scaler.state_dict() if (scaler := getattr(self, "scaler", None)) else {},
            "remembered": remembered(self),
            "networks": list(self._networks()),
            # Generators are seeded from this and the step or sample number; no more state is needed.
            "seed": self.opt["manual_seed"],
            "options": self.opt.get("as_given", {}),
        }
        self._write(state, self.opt["path"]["training_states"], f"{current_iter}.state")

    def _networks(self) -> dict[str, nn.Module]:
        named = {k.removeprefix("net_"): v for k, v in vars(self).items() if k.startswith("net_")}
        return {label: net for label, net in named.items() if isinstance(net, nn.Module)}

    def _write(self, content: Any, folder: str, name: str) -> None:
        if self._rolling and name.endswith(".state"):
            name = name.removesuffix(".state") + ROLLING
        snapshot = Snapshot() if self._snapshot is None else self._snapshot
        snapshot.add(content, Path(folder, name))
        if self._snapshot is None:
            snapshot.write()

    def checkpoint(self, epoch: int, iteration: int, *, rolling: bool = False) -> Snapshot:
        """Copy what a checkpoint contains.

        Parameters
        ----------
        epoch, iteration : int
        rolling : bool
            Whether the next checkpoint may replace this one; see `basicsr_ext.experiment`.

        Raises
        ------
        NotFiniteError
            If a weight is not finite.
        """
        require_finite(self._networks().values(), iteration)
        self._snapshot = snapshot = Snapshot()
        self._rolling = rolling
        try:
            self.save(epoch, iteration)  # type: ignore[attr-defined]
        finally:
            self._snapshot, self._rolling = None, False
        return snapshot

    def check(self) -> None:
        """Raise if a step since the last call failed; a class that reads its losses late overrides it."""

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """Set the rates of a step, counted from 1; by the clock, the schedulers follow `position`."""
        if self.position is None:
            try:
                super().update_learning_rate(current_iter, warmup_iter)  # type: ignore[misc]
            except (TypeError, ValueError, IndexError) as error:
                name = (self.opt["train"].get("scheduler") or {}).get("type")
                raise BadInput(
                    f"train.scheduler ({name}) has no rate for iter {current_iter:,} ({one_line(error)}); "
                    "make its periods or steps reach train.total_iter"
                ) from error
            return
        reached = int(self.position)
        for scheduler in self.schedulers:
            if isinstance(scheduler, CLOSED) and scheduler.last_epoch < reached:
                scheduler.last_epoch = reached - 1
            while scheduler.last_epoch < reached:
                scheduler.step()
        if current_iter < warmup_iter:
            for group in (g for optimizer in self.optimizers for g in optimizer.param_groups):
                group["lr"] = group["initial_lr"] * current_iter / warmup_iter

    def resume_training(self, resume_state: Mapping[str, Any]) -> None:
        states = resume_state["optimizers"]
        if len(states) != len(self.optimizers):
            raise BadInput(
                f"the training state has {len(states)} optimizer(s), {self.opt['model_type']} "
                f"{len(self.optimizers)}: it is of another model; keep model_type, or start a new experiment"
            )
        for optimizer, state in zip(self.optimizers, states, strict=True):
            load_moments(optimizer, state)
        if self.opt.get("minutes") is None:  # else the schedulers follow the clock from the first step on
            if resume_state.get("position") is not None:
                logger.warning("the run has followed the clock (--minutes); it goes on by iterations")
            replay(self, resume_state["iter"], int(self.opt["train"].get("warmup_iter") or -1))
        if resume_state.get("scaler") and getattr(self, "scaler", None) is not None:
            self.scaler.load_state_dict(resume_state["scaler"])  # type: ignore[attr-defined]
        recall(self, resume_state.get("remembered") or {})
        self.samples = resume_state.get("samples", 0)
        self.seconds = resume_state.get("seconds", 0.0)
        if resume_state.get("best"):
            self.best_metric_results = resume_state["best"]

    def model_ema(self, decay: float = 0.999) -> None:
        """Move the averaged weights towards the network's, and copy its buffers.

        Batch norm statistics are averages already, and counts cannot be averaged.
        """
        ema: nn.Module = self.net_g_ema  # type: ignore[attr-defined]
        current = unwrap(self.net_g)  # type: ignore[attr-defined]
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(current.parameters()), 1 - decay)
            for averaged, buffer in zip(ema.buffers(), current.buffers(), strict=True):
                averaged.copy_(buffer)

    def reduce_loss_dict(self, loss_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Keep the losses on the device; reading them every step would make the GPU wait."""
        return {name: value.detach().mean() for name, value in loss_dict.items()}

    def get_current_log(self) -> dict[str, float]:
        """Return the last step's losses, mean over the processes; every process must call it."""
        log = self.log_dict  # type: ignore[attr-defined]
        values = torch.tensor([float(v) for v in log.values()], dtype=torch.float64)
        return dict(zip(log, (dist.total(values) / self.opt["world_size"]).tolist(), strict=True))


def scheduler_classes() -> dict[str, Any]:
    """Return schedulers by name: ours, BasicSR's and torch's."""
    torchs = vars(torch.optim.lr_scheduler)
    found = {
        name: cls
        for source in (torchs, vars(basicsr_schedulers))
        for name, cls in source.items()
        if isinstance(cls, type) and name.endswith("LR") and not name.startswith("_")
    }
    return found | {CosineAnnealingRestartCyclicLR.__name__: CosineAnnealingRestartCyclicLR}


def unwrap(net: nn.Module) -> nn.Module:
    """Return the network inside DistributedDataParallel."""
    return net.module if isinstance(net, DistributedDataParallel) else net


def read_weights(path: str, key: str | None = None) -> dict[str, Tensor]:
    """Read a state dict; errors become `BadInput`."""
    try:
        return read_state_dict(path, key=key)
    except (OSError, ValueError) as error:
        raise BadInput(f"pretrained weights: {one_line(error)}") from error


def read_training_state(path: str | Path) -> dict[str, Any]:
    """Read a ``.state`` file; raises `BadInput` if it is damaged or something else."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(state, dict) and {"iter", "optimizers", "schedulers"} <= state.keys():
            return state
        problem = "it lacks iter, optimizers or schedulers"
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        problem = one_line(error)[:200]
    raise BadInput(f"{path} is not a training state: {problem}")


def _plain(best: Any) -> Any:
    """Convert NumPy numbers, which BasicSR's models store here and a safe load refuses."""
    if isinstance(best, dict):
        return {key: _plain(value) for key, value in best.items()}
    return best.item() if isinstance(best, np.generic) else best


def _difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    parts = []
    for word, names in (
        ("missing", [n for n in expected if n not in found]),
        ("unexpected", [n for n in found if n not in expected]),
        ("with another shape", [n for n in expected if n in found and expected[n].shape != found[n].shape]),
    ):
        if names:
            parts.append(f"{len(names)} {word} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})")
    return "; ".join(parts) + "; use weights of this network, or fix network_g"
