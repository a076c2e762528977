"""The model of the released option files: one network, one pixel loss, mixup, clipping, EMA."""

from __future__ import annotations

import logging
import os
import random
from copy import deepcopy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from basicsr.archs import build_network
from basicsr.losses import build_loss
from basicsr.metrics import calculate_metric
from basicsr.models.base_model import BaseModel
from basicsr.utils import imwrite
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from . import dist
from .base import Mended, bare, read_weights
from .errors import BadInput, one_line
from .metrics import to_image
from .options import Options

logger = logging.getLogger("basicsr")

GRAD_CLIP = 0.01
"""Norm that ``use_grad_clip: true`` clips to, unless ``grad_clip`` says otherwise."""


class ImageCleanModel(Mended, BaseModel):
    """Supervised restoration.

    Reads from the options: network_g; path.pretrain_network_g, param_key_g, strict_load_g; train.pixel_opt,
    optim_g, scheduler, ema_decay, mixing_augs {mixup, mixup_beta, use_identity}, use_grad_clip, grad_clip;
    val.metrics, save_img, suffix, use_image (metrics on rounded 8-bit images, the default, or on floats;
    clamped in either case), window_size (reflect to a multiple of it).
    """

    def __init__(self, opt: Options) -> None:
        super().__init__(opt)
        try:
            net = build_network(opt["network_g"])
        except (TypeError, ValueError) as error:
            raise BadInput(f"network_g ({opt['network_g']['type']}): {one_line(error)}") from error
        self.net_g = self.model_to_device(net)
        self._load(self.net_g, opt["path"].get("param_key_g"))
        self.net_g_ema: nn.Module | None = None
        if self.is_train:
            self.init_training_settings()

    def _load(self, net: nn.Module, key: str | None) -> None:
        path = self.opt["path"]
        if weights := path.get("pretrain_network_g"):
            self.load_network(net, weights, path.get("strict_load_g", True), key)

    def init_training_settings(self) -> None:
        """Loss, EMA, optimizer and schedulers."""
        train = self.opt["train"]
        self.net_g.train()
        self.ema_decay = float(train.get("ema_decay") or 0)
        if self.ema_decay > 0:
            self.net_g_ema = deepcopy(bare(self.net_g)).eval().requires_grad_(False)
            weights = self.opt["path"].get("pretrain_network_g")
            if weights and _has_ema(weights):
                self._load(self.net_g_ema, "params_ema")
        if not train.get("pixel_opt"):
            raise BadInput("train.pixel_opt is missing: ImageCleanModel needs a loss, e.g. {type: L1Loss}")
        try:
            self.cri_pix = build_loss(train["pixel_opt"]).to(self.device)
        except (TypeError, ValueError) as error:
            raise BadInput(f"train.pixel_opt: {one_line(error)}") from error
        clip = train.get("grad_clip", GRAD_CLIP if train.get("use_grad_clip") else None)
        self.grad_clip = None if clip is None or train.get("use_grad_clip") is False else float(clip)
        self.mixup = train.get("mixing_augs") or {}
        self.parameters = [p for p in self.net_g.parameters() if p.requires_grad]
        if not train.get("optim_g"):
            raise BadInput("train.optim_g is missing, e.g. {type: AdamW, lr: 3e-4}")
        options = dict(train["optim_g"])
        try:
            kind, rate = options.pop("type"), float(options.pop("lr"))
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"train.optim_g needs type and lr: {one_line(error)}") from error
        self.optimizer_g = self.get_optimizer(kind, self.parameters, rate, **options)
        self.optimizers.append(self.optimizer_g)
        self.setup_schedulers()

    def feed_data(self, data: dict[str, Any]) -> None:
        """Take a batch; in training, mix it."""
        self.lq = data["lq"].to(self.device, non_blocking=True)
        self.gt = data["gt"].to(self.device, non_blocking=True) if "gt" in data else None
        if self.is_train and self.gt is not None and self.net_g.training and self.mixup.get("mixup"):
            self._mix(float(self.mixup.get("mixup_beta", 1.2)), bool(self.mixup.get("use_identity")))

    def _mix(self, beta: float, identity: bool) -> None:
        """Blend each image with another (Zhang et al., arXiv 1710.09412), with `identity` half the time."""
        assert self.gt is not None
        if identity and random.random() < 0.5:
            return
        share = float(np.random.beta(beta, beta))
        other = torch.randperm(len(self.lq)).to(self.device)
        self.lq = share * self.lq + (1 - share) * self.lq[other]
        self.gt = share * self.gt + (1 - share) * self.gt[other]

    def optimize_parameters(self, current_iter: int) -> None:
        """One step. A network that returns several images, as multi-stage ones do, is trained on all."""
        self.optimizer_g.zero_grad(set_to_none=True)
        output = self.net_g(self.lq)
        outputs = output if isinstance(output, (list, tuple)) else [output]
        self.output = outputs[-1]
        loss = sum(self.cri_pix(o, self.gt) for o in outputs)
        loss.backward()
        if self.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.grad_clip)
        self.optimizer_g.step()
        self.log_dict = self.reduce_loss_dict({"l_pix": loss})
        if self.ema_decay > 0:
            self.model_ema(self.ema_decay)

    @torch.no_grad()
    def test(self) -> None:
        """Restore `lq` with the averaged weights if there are any."""
        net = bare(self.net_g) if self.net_g_ema is None else self.net_g_ema
        training = net.training
        net.eval()
        size = self.lq.shape[-2:]
        output = net(_pad(self.lq, int(self.opt["val"].get("window_size") or 1)))
        output = output[-1] if isinstance(output, (list, tuple)) else output
        scale = int(self.opt.get("scale") or 1)
        self.output = output[..., : size[0] * scale, : size[1] * scale]
        net.train(training)

    def validation(
        self, dataloader: DataLoader[Any], current_iter: int | str, tb_logger: Any, save_img: bool = False
    ) -> dict[str, float]:
        """Mean of every metric over a dataset, whose images the processes share out."""
        dataset = dataloader.dataset
        name = dataset.opt["name"]  # type: ignore[attr-defined]
        metrics = self.opt["val"].get("metrics") or {}
        rank, world = self.opt["rank"], self.opt["world_size"]
        mine = DataLoader(dataset, sampler=range(rank, len(dataset), world))  # type: ignore[arg-type]
        sums = torch.zeros(len(metrics) + 1, dtype=torch.float64)
        for data in tqdm(mine, name, leave=False, delay=1, disable=None if rank == 0 else True):
            self.feed_data(data)
            try:
                self.test()
            except (RuntimeError, ValueError) as error:
                raise BadInput(f"datasets {name}: {data['lq_path'][0]}: {one_line(error)}") from error
            rounded = bool(self.opt["val"].get("use_image", True))
            images = {"img": to_image(self.output, rounded=rounded)}
            if save_img:
                imwrite(
                    to_image(self.output, rounded=True), self._picture(name, data["lq_path"][0], current_iter)
                )
            if self.gt is not None:
                images["img2"] = to_image(self.gt, rounded=rounded)
                values = [float(calculate_metric(images, options)) for options in metrics.values()]
                sums += torch.tensor([*values, 1.0], dtype=torch.float64)
        *sums_list, images_done = dist.total(sums).tolist()
        results = {m: s / max(images_done, 1) for m, s in zip(metrics, sums_list, strict=True)}
        self._report(name, results, int(images_done), current_iter, tb_logger)
        return results

    def _picture(self, name: str, path: str, current_iter: int | str) -> str:
        stem = os.path.splitext(os.path.basename(path))[0]
        if self.is_train:
            parts = [stem, f"{stem}_{current_iter}.png"]
        else:
            parts = [name, f"{stem}_{self.opt['val'].get('suffix') or self.opt['name']}.png"]
        return os.path.join(self.opt["path"]["visualization"], *parts)

    def _report(
        self, name: str, results: dict[str, float], images: int, current_iter: int | str, tb_logger: Any
    ) -> None:
        text = []
        if self.is_train and results:
            known = getattr(self, "best_metric_results", {})
            if name in known and known[name].keys() != results.keys():
                del known[name]  # resumed with other metrics
            self._initialize_best_metric_results(name)
        for metric, value in results.items():
            entry = f"{metric} {value:.4f}"
            if self.is_train:
                self._update_best_metric_result(name, metric, value, current_iter)
                best = self.best_metric_results[name][metric]
                entry += f" (best {best['val']:.4f} at iter {best['iter']:,})"
            text.append(entry)
            if tb_logger:
                tb_logger.add_scalar(f"metrics/{name}/{metric}", value, current_iter)
        logger.info("%s, %d image(s): %s", name, images, ", ".join(text) or "no metrics asked for")

    def save(self, epoch: int, current_iter: int) -> None:
        """Weights first, then the state: a state on the disk has its weights beside it."""
        if self.net_g_ema is None:
            self.save_network(self.net_g, "net_g", current_iter)
        else:
            self.save_network([self.net_g, self.net_g_ema], "net_g", current_iter, ["params", "params_ema"])
        self.save_training_state(epoch, current_iter)


def _has_ema(path: str) -> bool:
    try:
        read_weights(path, "params_ema")
    except BadInput:
        return False
    return True


def _pad(image: Tensor, window: int) -> Tensor:
    """Reflect at the bottom and the right to a multiple of `window`; repeat the edge of tiny images."""
    rows, columns = (-side % window for side in image.shape[-2:])
    if not rows and not columns:
        return image
    mode = "reflect" if rows < image.shape[-2] and columns < image.shape[-1] else "replicate"
    return F.pad(image, (0, columns, 0, rows), mode=mode)
