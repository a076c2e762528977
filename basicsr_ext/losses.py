"""Losses that BasicSR lacks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from kbnet_plugin.selfsup.masking import NORMS, Norm, masked_loss


class PSNRLoss(nn.Module):
    """Negative PSNR in dB of images in 0..1, mean over the batch.

    Parameters
    ----------
    loss_weight : float
        Factor of the result.
    reduction : str
        Only ``"mean"``; released option files contain the key.
    toY : bool
        Compare luma (ITU-R BT.601, 16..235 of 255) of RGB images instead of the channels.
    """

    def __init__(self, loss_weight: float = 1.0, reduction: str = "mean", toY: bool = False) -> None:  # noqa: N803
        super().__init__()
        if reduction != "mean":
            raise ValueError(f"PSNRLoss: reduction must be 'mean', not {reduction!r}")
        self.loss_weight, self.to_y = loss_weight, toY

    def forward(self, pred: Tensor, target: Tensor, weight: Tensor | None = None, **_: Any) -> Tensor:
        """Compare two (B, C, H, W) tensors; `weight` multiplies the squared errors."""
        error = pred - target
        if self.to_y:
            luma = error.new_tensor([65.481, 128.553, 24.966]).view(1, 3, 1, 1) / 255
            error = (error * luma).sum(1, keepdim=True)
        square = error.square() if weight is None else error.square() * weight
        # 1e-8 bounds the gradient of a perfect match.
        return self.loss_weight * 10 / math.log(10) * (square.mean((1, 2, 3)) + 1e-8).log().mean()


class FrequencyLoss(nn.Module):
    """Mean absolute difference of the discrete Fourier transforms, over real and imaginary parts.

    Parameters
    ----------
    loss_weight : float
        Factor of the result.
    reduction : str
        Only ``"mean"``; released option files contain the key.

    References
    ----------
    Cho et al., "Rethinking Coarse-to-Fine Approach in Single Image Deblurring", arXiv 2108.05054, equation 5.
    """

    def __init__(self, loss_weight: float = 0.1, reduction: str = "mean") -> None:
        super().__init__()
        if reduction != "mean":
            raise ValueError(f"FrequencyLoss: reduction must be 'mean', not {reduction!r}")
        self.loss_weight = loss_weight

    def forward(self, pred: Tensor, target: Tensor, weight: Tensor | None = None, **_: Any) -> Tensor:
        """Compare two (B, C, H, W) tensors; `weight` multiplies their difference before the transform."""
        difference = pred - target if weight is None else (pred - target) * weight
        spectrum = torch.view_as_real(torch.fft.rfft2(difference.float()))
        return self.loss_weight * spectrum.abs().mean()


class BlindSpotLoss(nn.Module):
    """Mean error over the pixels whose target is not NaN; see `basicsr_ext.selfsup_datasets`.

    Parameters
    ----------
    loss_weight : float
        Factor of the result.
    norm : {"l2", "l1"}
        See `kbnet_plugin.selfsup.masking.masked_loss`.
    """

    def __init__(self, loss_weight: float = 1.0, norm: Norm = "l2") -> None:
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"BlindSpotLoss: norm must be {' or '.join(NORMS)}, not {norm!r}")
        self.loss_weight, self.norm = loss_weight, norm

    def forward(self, pred: Tensor, target: Tensor, **_: Any) -> Tensor:
        """Compare two (B, C, H, W) tensors, leaving out pixels whose `target` is NaN."""
        return self.loss_weight * masked_loss(pred, target, self.norm)
