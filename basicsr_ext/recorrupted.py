"""Training on noisy images alone that uses every pixel: first denoised images, then Recorrupted2Recorrupted.

References
----------
T. Pang, H. Zheng, Y. Quan, H. Ji, "Recorrupted-to-Recorrupted: unsupervised deep learning for image
denoising", CVPR 2021. B. Monroy, J. Bacca, J. Tachella, "Generalized Recorrupted-to-Recorrupted:
self-supervised learning beyond Gaussian noise", CVPR 2025, arXiv 2412.04648.
Y. Zhang, D. Li, K. L. Law, X. Wang, H. Qin, H. Li, "IDR: self-supervised image denoising via iterative data
refinement", CVPR 2022.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from kbnet_plugin.selfsup.masking import fill_missing
from kbnet_plugin.selfsup.noise import NoiseCurve

from .base_model import unwrap
from .image_dataset import Sample, sample_generator
from .model import ImageCleanModel
from .options import Options
from .selfsup_datasets import NoisyDataset, sample

SHARE = 0.7
"""Variance of the noise that is added to the input, relative to the noise that it has."""

RECORRUPTED = 0.3, 0.8
"""Places in the schedule, 0..1, from which on some crops, and then all, are recorrupted."""


class Dataset_NoisyPlanes(NoisyDataset):
    """Noisy planes that are input and target, for `RecorruptedModel`.

    Parameters
    ----------
    opt : dict
        Keys of `NoisyDataset`, and
        noise : levels, variances and steps, as of `kbnet_plugin.selfsup.noise.NoiseCurve`, for every kind of
            plane (see `Planes.kind`), or once for all.
        denoiser : weights of a network like the one that is trained, which is to start from them.
    """

    def __init__(self, opt: Options) -> None:
        super().__init__(opt)
        self.noise = torch.tensor(opt["noise"])

    def __len__(self) -> int:
        return len(self.planes)

    def __getitem__(self, index: int) -> Sample:
        (noisy,) = self._augmented(self.planes.read(index, self._window(index)))
        filled = fill_missing(noisy, sample_generator())
        kind = self.planes.kind(index) if len(self.noise) > 1 else 0
        return sample(filled, noisy, self.planes.name(index)) | {"noise": self.noise[kind]}


class RecorruptedModel(ImageCleanModel):
    """Adds noise of the images' own kind to the input, and takes it, enlarged, off the target.

    The two are then independent for Gaussian and for Poisson noise, so that the network that predicts the
    target best predicts the signal. The averaged weights show the brightness that noise depends on.

    If there is a denoiser, the network first learns with what that makes of the images as targets, and with
    new noise added to it as inputs. It comes to know the noise and the structures, at a high learning rate
    because the targets contain no noise. What is wrong in them, recorruption mends at a low one. Its crops
    come one by one, as the steps of Adam are too large where gradients suddenly contain more noise.
    """

    _done = 0.0  # of the schedule

    def init_training_settings(self) -> None:
        """Also load the denoiser."""
        self._first: nn.Module | None = None
        # Not path.pretrain_network_g, which names the last checkpoint when a run is resumed.
        if weights := self.opt["datasets"]["train"].get("denoiser"):
            self._first = deepcopy(self.net_g).eval().requires_grad_(False)
            self.load_network(self._first, weights)
        super().init_training_settings()

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """Also note the place in the schedule."""
        reached = current_iter if self.position is None else self.position
        self._done = reached / self.opt["train"]["total_iter"]
        super().update_learning_rate(current_iter, warmup_iter)

    def feed_data(self, data: dict[str, Any]) -> None:
        """Move a batch to the device, and recorrupt it in training."""
        super().feed_data(data)
        if not self.is_train or self.gt is None:
            return
        network = unwrap(self.net_g) if self.net_g_ema is None else self.net_g_ema
        count = len(self.lq)
        if self._first is not None:
            begin, end = RECORRUPTED
            share = (self._done - begin) / (end - begin)
            count = min(max(int(share * count + torch.rand(()).item()), 0), count)
        with torch.no_grad(), self.autocast():
            parts = (network, self.lq[:count]), (self._first, self.lq[count:])
            levels = torch.cat([net(part).float() for net, part in parts if net is not None and len(part)])
        curves = [NoiseCurve(*map(tuple, rows)) for rows in data["noise"].tolist()]
        added = _drawn(curves[:count], levels[:count], SHARE)
        denoised = levels[count:].where(self.gt[count:].isfinite(), self.gt[count:])
        again = levels[count:] + _drawn(curves[count:], levels[count:], 1.0)
        self.lq = torch.cat([self.lq[:count] + added, again])
        self.gt = torch.cat([self.gt[:count] - added / SHARE, denoised])


def _drawn(curves: list[NoiseCurve], levels: Tensor, share: float) -> Tensor:
    each = zip(curves, levels, strict=True)
    return torch.stack([curve.draw(level, share) for curve, level in each]) if curves else levels
