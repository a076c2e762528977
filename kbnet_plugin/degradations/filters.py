"""Filters with a kernel of its own for each sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def grid(radius: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the vertical and the horizontal distance from the centre, (1, 2r + 1, 1) and (1, 1, 2r + 1)."""
    line = torch.arange(-radius, radius + 1, device=device, dtype=torch.float32)
    return line[None, :, None], line[None, None, :]


def gaussian_kernels(major: Tensor, minor: Tensor, angle: Tensor, radius: int) -> Tensor:
    """Sample Gaussians that may be longer than wide.

    Parameters
    ----------
    major, minor : Tensor
        (B, 1, 1, 1), standard deviations along the two axes, in pixels; 0 passes all.
    angle : Tensor
        (B, 1, 1, 1), radians from the horizontal to the first axis, clockwise in the picture.
    radius : int
        Of the kernels, in pixels.

    Returns
    -------
    Tensor
        (B, 2r + 1, 2r + 1), each summing to 1.
    """
    y, x = grid(radius, major.device)
    major, minor, angle = (t[:, 0] for t in (major, minor, angle))
    along, across = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    squares = (along / major.clamp(min=1e-2)) ** 2 + (across / minor.clamp(min=1e-2)) ** 2
    # Denormal weights would make convolution on a CPU fifty times slower.
    return normalized(torch.exp(squares.clamp(max=80) / -2))


def normalized(kernels: Tensor) -> Tensor:
    """Scale kernels, (B, k, k), to a sum of 1."""
    return kernels / kernels.sum((1, 2), keepdim=True)


def filter_each(image: Tensor, kernels: Tensor) -> Tensor:
    """Correlate each sample, (B, C, H, W), with its kernel, (B, k, k), where that lies inside the picture."""
    # One group a sample: no kernel is copied, as it would be with one group a channel.
    return F.conv2d(image.transpose(0, 1), kernels[:, None], groups=len(image)).transpose(0, 1)


def filter_same(image: Tensor, kernels: Tensor) -> Tensor:
    """As `filter_each`, with the borders repeated outwards so that the size stays."""
    radius = kernels.shape[-1] // 2
    padded = F.pad(image.transpose(0, 1), (radius,) * 4, mode="replicate")
    return filter_each(padded.transpose(0, 1), kernels)
