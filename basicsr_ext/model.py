"""The model that the released option files name: one network, a pixel loss, mixup, clipping and EMA."""

from __future__ import annotations

import logging
import random
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import torch
from basicsr.archs import build_network
from basicsr.losses import build_loss
from basicsr.models.base_model import BaseModel
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from kbnet_plugin.errors import BadInput, one_line
from kbnet_plugin.nn.kbnet_l import KBBlock_l
from kbnet_plugin.nn.kbnet_s import KBBlock_s
from kbnet_plugin.ops import native

from .base_model import BaseModelFixes, read_weights
from .options import Options
from .validation import Validation
from .watch import NotFiniteError

logger = logging.getLogger("basicsr")

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

FUSED = ("Adam", "AdamW", "SGD", "Adagrad")
"""Optimizers that torch has in one kernel, on CPU and CUDA."""

MANY_SKIPPED = 20
"""Batches in a row without a finite loss after which training stops in spite of ``on_nan: skip``."""

GRAD_CLIP = 0.01
"""Norm that ``use_grad_clip: true`` clips to, unless ``grad_clip`` is set."""


class ImageCleanModel(Validation, BaseModelFixes, BaseModel):  # type: ignore[misc] # BasicSR is untyped
    """Supervised restoration; `basicsr_ext.schema` describes the keys."""

    net_g_ema: nn.Module | None = None

    def __init__(self, opt: Options) -> None:
        super().__init__(opt)
        try:
            net = build_network(opt["network_g"])
        except (TypeError, ValueError) as error:
            raise BadInput(f"network_g ({opt['network_g']['type']}): {one_line(error)}") from error
        self.layout = torch.preserve_format
        if self.is_train and opt["train"].get("channels_last"):
            self.layout = torch.channels_last
        self.net_g = net.to(self.device, memory_format=self.layout)
        self._load(self.net_g, opt["path"].get("param_key_g"))
        if self.is_train:
            self.init_training_settings()

    def _load(self, net: nn.Module, key: str | None) -> None:
        path = self.opt["path"]
        if weights := path.get("pretrain_network_g"):
            self.load_network(net, weights, path.get("strict_load_g", True), key)

    def init_training_settings(self) -> None:
        """Set up loss, EMA, optimizer and schedulers."""
        train = self.opt["train"]
        self.net_g.train()
        self.ema_decay = float(train.get("ema_decay") or 0)
        if self.ema_decay > 0:
            self.net_g_ema = deepcopy(self.net_g).eval().requires_grad_(False)
            weights = self.opt["path"].get("pretrain_network_g")
            if weights and _has_ema(weights):
                self._load(self.net_g_ema, "params_ema")
        if train.get("activation_checkpointing"):
            _checkpoint_blocks(self.net_g)
        fused = self.device.type == "cpu" and any(getattr(m, "is_fused", False) for m in self.net_g.modules())
        if train.get("compile") and fused:
            logger.warning("train.compile: on this CPU the kernels of KBNet_s are faster: not compiled")
        elif train.get("compile"):
            # There are few crop sizes, those of the stages; one graph for any size is slower. On a GPU,
            # launching kernels one by one takes longer than they run: a recorded step took 20 ms, not 46.
            recorded = "reduce-overhead" if self.device.type == "cuda" else None
            self.net_g.compile(dynamic=False, mode=recorded)
        self.net_g = self.model_to_device(self.net_g)
        if not train.get("pixel_opt"):
            raise BadInput("train.pixel_opt is missing: ImageCleanModel needs a loss, e.g. {type: L1Loss}")
        self.losses: dict[str, nn.Module] = {}
        for key, label in (("pixel_opt", "l_pix"), ("frequency_opt", "l_freq")):
            if not train.get(key):
                continue
            try:
                self.losses[label] = build_loss(train[key]).to(self.device)
            except (TypeError, ValueError) as error:
                raise BadInput(f"train.{key}: {one_line(error)}") from error
        self.accumulate = int(train.get("accumulate") or 1)
        self.dtype = self._precision(train.get("precision") or "fp32")
        # Small gradients vanish in fp16 unless the loss is scaled up; bf16 has the range of fp32.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)
        self.skip = train.get("on_nan") == "skip"
        self.skipped = 0
        clip = train.get("grad_clip") or (GRAD_CLIP if train.get("use_grad_clip") else None)
        self.grad_clip = None if train.get("use_grad_clip") is False else clip
        self.mixup = train.get("mixing_augs") or {}
        self.parameters = [p for p in self.net_g.parameters() if p.requires_grad]
        if not train.get("optim_g"):
            raise BadInput("train.optim_g is missing, e.g. {type: AdamW, lr: 3e-4}")
        options = dict(train["optim_g"])
        try:
            kind, rate = options.pop("type"), float(options.pop("lr"))
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"train.optim_g needs type and lr: {one_line(error)}") from error
        # One pass over the weights instead of a dozen, and a flag on the device that skips a step.
        self.fused = kind in FUSED and not {"fused", "foreach", "differentiable"} & options.keys()
        if self.fused:
            options["fused"] = True
        self.optimizer_g = self.get_optimizer(kind, self.parameters, rate, **options)
        self.optimizers.append(self.optimizer_g)
        self._unread: list[tuple[int, Tensor, list[str]]] = []
        self.setup_schedulers()

    def feed_data(self, data: dict[str, Any]) -> None:
        """Move a batch to the device; in training, apply mixup."""
        self.images = data.get("lq_path") or data.get("gt_path") or []
        self.lq = data["lq"].to(self.device, non_blocking=True, memory_format=self.layout)
        self.gt = data["gt"].to(self.device, non_blocking=True) if "gt" in data else None
        if self.is_train and self.gt is not None and self.net_g.training and self.mixup.get("mixup"):
            self._mix(float(self.mixup.get("mixup_beta", 1.2)), bool(self.mixup.get("use_identity")))

    def _mix(self, beta: float, identity: bool) -> None:
        """Blend each image with another (Zhang et al., arXiv 1710.09412); with `identity`, half the time."""
        assert self.gt is not None
        if identity and random.random() < 0.5:
            return
        weight = float(np.random.beta(beta, beta))
        other = torch.randperm(len(self.lq)).to(self.device)
        self.lq = weight * self.lq + (1 - weight) * self.lq[other]
        self.gt = weight * self.gt + (1 - weight) * self.gt[other]

    def optimize_parameters(self, current_iter: int) -> None:
        """Make one step; if the network returns several images, as multi-stage ones do, train on all.

        Nothing here waits for the device: whether the gradient is finite is decided there, and `check` reads
        it later. If it is not, the weights do not change.
        """
        assert self.gt is not None
        self.optimizer_g.zero_grad(set_to_none=True)
        parts = list(zip(self.lq.chunk(self.accumulate), self.gt.chunk(self.accumulate), strict=True))
        log: dict[str, Tensor] = {}
        finite = torch.ones((), dtype=torch.bool, device=self.device)
        for number, (lq, gt) in enumerate(parts, 1):
            # DDP need not exchange gradients before the last part.
            local = number < len(parts) and isinstance(self.net_g, DistributedDataParallel)
            with self.net_g.no_sync() if local else nullcontext():
                with self.autocast():
                    output = self.net_g(lq)
                outputs = [o.float() for o in (output if isinstance(output, (list, tuple)) else [output])]
                values = {k: sum(loss(o, gt) for o in outputs) for k, loss in self.losses.items()}
                weight = len(lq) / len(self.lq)
                loss = sum(values.values()) * weight
                finite = finite & loss.detach().isfinite()
                # If the loss is not finite, no gradient may be, so that every process skips the step.
                self.scaler.scale(loss * (1 + 0 * loss.detach())).backward()
            for key, value in values.items():
                log[key] = log.get(key, 0) + value.detach() * weight
        self.log_dict = self.reduce_loss_dict(log)
        self.scaler.unscale_(self.optimizer_g)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.grad_clip is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.grad_clip, norm)
        # In fp16 the gradient overflows now and then, which the scaler handles; the loss must be finite.
        usable = finite if self.scaler.is_enabled() else finite & norm.isfinite()
        self._unread.append((current_iter, torch.stack([usable, finite]), self.images))
        self._update(usable)
        if self.net_g_ema is not None:
            # A shorter average at first: with 0.999 alone, the start would count a sixth after 1,800 steps.
            self.model_ema(min(self.ema_decay, current_iter / (10 + current_iter)))

    def _update(self, usable: Tensor) -> None:
        """Change the weights, unless the gradient is not finite, as it then is in every process."""
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer_g)
            self.scaler.update()
        elif self.fused:
            self.optimizer_g.found_inf = 1 - usable.float()  # type: ignore[attr-defined]
            self.optimizer_g.step()
        elif bool(usable):
            self.optimizer_g.step()

    def check(self) -> None:
        """Read whether the steps since the last call were usable; on a GPU, this waits for them.

        Raises
        ------
        NotFiniteError
            If the loss or the gradient of one was not finite; the weights have not changed since then.
        """
        if not self._unread:
            return
        unread, self._unread = self._unread, []
        flags = torch.stack([flag for _, flag, _ in unread]).tolist()
        for (iteration, _, images), (usable, finite) in zip(unread, flags, strict=True):
            if usable:
                self.skipped = 0
            else:
                here = not finite or self.opt["world_size"] == 1
                self._not_finite(
                    iteration, f"images {', '.join(images)}" if here else "images of another process"
                )

    def autocast(self) -> Any:
        """Return the autocast context of ``train.precision``."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32)

    def _precision(self, name: str) -> torch.dtype:
        dtype = PRECISIONS[name]
        if dtype is torch.bfloat16 and self.device.type == "cuda" and not torch.cuda.is_bf16_supported():
            raise BadInput("train.precision: this GPU does not support bf16; use fp16 or fp32")
        if dtype is torch.bfloat16 and self.device.type == "cpu" and not has_bf16_products():
            logger.warning("train.precision: bf16 is slower than fp32 on this processor: computing in fp32")
            return torch.float32
        return dtype

    def _not_finite(self, iteration: int, batch: str) -> None:
        self.skipped += 1
        if self.skip and self.skipped < MANY_SKIPPED:
            logger.warning("iter %d: the loss is not finite; batch skipped (%s)", iteration, batch)
            return
        raise NotFiniteError(f"the loss is not finite at iter {iteration} ({batch})")

    def save(self, epoch: int, current_iter: int) -> None:
        """Save the weights, then the state, so that every state on disk has its weights."""
        if self.net_g_ema is None:
            self.save_network(self.net_g, "net_g", current_iter)
        else:
            self.save_network([self.net_g, self.net_g_ema], "net_g", current_iter, ["params", "params_ema"])
        self.save_training_state(epoch, current_iter)


def has_bf16_products() -> bool:
    """Return whether the processor multiplies matrices of bf16 in hardware (AMX).

    Elsewhere, bf16 was slower than fp32 in training, with AVX-512's bf16 instructions too.
    """
    return "amx" in native.available_isas()


def _checkpoint_blocks(net: nn.Module) -> None:
    """Keep only the blocks' inputs for the backward pass, and recompute the rest."""
    blocks = [m for m in net.modules() if isinstance(m, (KBBlock_s, KBBlock_l))]
    if not blocks:
        raise BadInput(f"train.activation_checkpointing: {type(net).__name__} has no KBNet blocks")
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]


def _has_ema(path: str) -> bool:
    try:
        read_weights(path, "params_ema")
    except BadInput:
        return False
    return True
