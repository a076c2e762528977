"""Kernel basis attention as the equation reads, in plain torch: the oracle of every other backend."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def unsupported(
    x: Tensor, coefficients: Tensor, weight: Tensor, bias: Tensor, groups: int, kernel_size: int
) -> str | None:
    return None


def forward(
    x: Tensor, coefficients: Tensor, weight: Tensor, bias: Tensor, groups: int, kernel_size: int
) -> Tensor:
    batch, channels, height, width = x.shape
    dtype = x.dtype
    x, coefficients, weight, bias = _wide(x, coefficients, weight, bias)
    mix = coefficients.flatten(2).transpose(1, 2)  # (B, HW, N)
    kernels = _kernels(mix, weight, groups, channels)
    patches = _patches(x, groups, kernel_size)
    out = (kernels @ patches[..., None]).reshape(batch, height * width, channels) + mix @ bias
    return out.transpose(1, 2).reshape(batch, channels, height, width).to(dtype)


def backward(
    grad: Tensor,
    x: Tensor,
    coefficients: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    kernel_size: int,
    needs: tuple[bool, bool, bool, bool],
) -> tuple[Tensor | None, ...]:
    batch, channels, height, width = x.shape
    dtype = x.dtype
    grad, x, coefficients, weight, bias = _wide(grad, x, coefficients, weight, bias)
    mix = coefficients.flatten(2).transpose(1, 2)
    flat = grad.flatten(2).transpose(1, 2)  # (B, HW, C)
    per_output = flat.reshape(batch, height * width, groups, channels // groups, 1)
    dx = da = dw = db = None
    if needs[1] or needs[2]:
        products = (per_output * _patches(x, groups, kernel_size)[..., None, :]).flatten(2)
        if needs[1]:
            da = products @ weight.mT + flat @ bias.mT
            da = da.transpose(1, 2).reshape(coefficients.shape)
        if needs[2]:
            dw = (mix.mT @ products).sum(0, keepdim=True)
    if needs[3]:
        db = (mix.mT @ flat).sum(0, keepdim=True)
    if needs[0]:
        spread = (_kernels(mix, weight, groups, channels).mT @ per_output).flatten(2).transpose(1, 2)
        dx = F.fold(spread, (height, width), kernel_size, padding=kernel_size // 2)
    return tuple(None if g is None else g.to(dtype) for g in (dx, da, dw, db))


def _wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    """At least float32: sums over many taps and pixels lose too much in the halves."""
    return tuple(t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors)


def _kernels(mix: Tensor, weight: Tensor, groups: int, channels: int) -> Tensor:
    """One kernel a pixel, (B, HW, G, C/G, C/G*k*k): the memory that the other backends avoid."""
    return (mix @ weight).unflatten(2, (groups, channels // groups, -1))


def _patches(x: Tensor, groups: int, kernel_size: int) -> Tensor:
    """Neighbourhood of every pixel, (B, HW, G, C/G*k*k)."""
    return F.unfold(x, kernel_size, padding=kernel_size // 2).transpose(1, 2).unflatten(2, (groups, -1))
