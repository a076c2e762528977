"""Training on noisy images alone that uses every pixel: Recorrupted2Recorrupted.

References
----------
T. Pang, H. Zheng, Y. Quan, H. Ji, "Recorrupted-to-Recorrupted: unsupervised deep learning for image
denoising", CVPR 2021. B. Monroy, J. Bacca, J. Tachella, "Generalized Recorrupted-to-Recorrupted:
self-supervised learning beyond Gaussian noise", CVPR 2025, arXiv 2412.04648.
"""

from __future__ import annotations

from typing import Any

import torch

from kbnet_plugin.selfsup.masking import fill_missing
from kbnet_plugin.selfsup.noise import NoiseCurve

from .base_model import unwrap
from .image_dataset import Sample, sample_generator
from .model import ImageCleanModel
from .options import Options
from .selfsup_datasets import NoisyDataset, sample

SHARE = 0.25
"""Variance of the noise that is added to the input, relative to the noise that it has."""


class Dataset_NoisyPlanes(NoisyDataset):
    """Noisy planes that are input and target, for `RecorruptedModel`.

    Parameters
    ----------
    opt : dict
        Keys of `NoisyDataset`, and
        noise : levels, variances and steps, as of `kbnet_plugin.selfsup.noise.NoiseCurve`, for every kind of
            plane (see `Planes.kind`), or once for all.
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
    """

    def feed_data(self, data: dict[str, Any]) -> None:
        """Move a batch to the device, and recorrupt it in training."""
        super().feed_data(data)
        if not self.is_train or self.gt is None:
            return
        network = unwrap(self.net_g) if self.net_g_ema is None else self.net_g_ema
        with torch.no_grad(), self.autocast():
            levels = network(self.lq).float()
        curves = [NoiseCurve(*map(tuple, rows)) for rows in data["noise"].tolist()]
        each = zip(curves, levels, strict=True)
        added = torch.stack([curve.draw(level, SHARE) for curve, level in each])
        self.lq, self.gt = self.lq + added, self.gt - added / SHARE
