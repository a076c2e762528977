"""Kernel basis attention as the equation reads, in plain torch; every other backend is tested against it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import Arguments, Gradients, Needs

NAME = "reference"


def unsupported(args: Arguments) -> str | None:
    """Return None: it runs everywhere."""
    return None


def forward(args: Arguments) -> Tensor:
    """Return the output; autograd can differentiate it any number of times."""
    dtype = args.x.dtype
    x, coefficients, weight, bias, groups, kernel_size = args.to(_wide(dtype))
    batch, channels, height, width = x.shape
    mix = coefficients.flatten(2).transpose(1, 2)  # (B, HW, N)
    kernels = _kernels(mix, weight, groups, channels)
    patches = _patches(x, groups, kernel_size)
    out = (kernels @ patches[..., None]).reshape(batch, height * width, channels) + mix @ bias
    return out.transpose(1, 2).reshape(batch, channels, height, width).to(dtype)


def backward(grad: Tensor, args: Arguments, needs: Needs) -> Gradients:
    """Return the gradients that are needed."""
    dtype = args.x.dtype
    x, coefficients, weight, bias, groups, kernel_size = args.to(_wide(dtype))
    batch, channels, height, width = x.shape
    mix = coefficients.flatten(2).transpose(1, 2)
    flat = grad.to(x.dtype).flatten(2).transpose(1, 2)  # (B, HW, C)
    per_output = flat.reshape(batch, height * width, groups, channels // groups, 1)
    dx = da = dw = db = None
    if needs[1] or needs[2]:
        products = (per_output * _patches(x, groups, kernel_size)[..., None, :]).flatten(2)
        if needs[1]:
            da = products @ weight.mT + flat @ bias.mT
            da = da.transpose(1, 2).reshape(coefficients.shape).to(dtype)
        if needs[2]:
            dw = (mix.mT @ products).sum(0, keepdim=True).to(dtype)
    if needs[3]:
        db = (mix.mT @ flat).sum(0, keepdim=True).to(dtype)
    if needs[0]:
        spread = (_kernels(mix, weight, groups, channels).mT @ per_output).flatten(2).transpose(1, 2)
        dx = F.fold(spread, (height, width), kernel_size, padding=kernel_size // 2).to(dtype)
    return dx, da, dw, db


def _wide(dtype: torch.dtype) -> torch.dtype:
    """At least float32: sums over many taps and pixels lose too much in half precision."""
    return torch.promote_types(dtype, torch.float32)


def _kernels(mix: Tensor, weight: Tensor, groups: int, channels: int) -> Tensor:
    """One kernel per pixel, (B, HW, G, C/G, C/G*k*k): the memory that the other backends avoid."""
    return (mix @ weight).unflatten(2, (groups, channels // groups, -1))


def _patches(x: Tensor, groups: int, kernel_size: int) -> Tensor:
    """Neighbourhood of every pixel, (B, HW, G, C/G*k*k)."""
    return F.unfold(x, kernel_size, padding=kernel_size // 2).transpose(1, 2).unflatten(2, (groups, -1))
