"""What a backend of kernel basis attention is given, and what it must offer."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Needs = tuple[bool, bool, bool, bool]
"""Which gradients to compute: of x, coefficients, weight and bias."""

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""Gradients of x, coefficients, weight and bias; None where they are not needed."""


class Arguments(NamedTuple):
    """The arguments of one call, as `kernel_basis_attention` has checked them.

    Attributes
    ----------
    x : Tensor
        (B, C, H, W).
    coefficients : Tensor
        (B, N, H, W).
    weight : Tensor
        (1, N, C * C/groups * k * k).
    bias : Tensor
        (1, N, C).
    groups : int
        Divides C.
    kernel_size : int
        k, odd.
    """

    x: Tensor
    coefficients: Tensor
    weight: Tensor
    bias: Tensor
    groups: int
    kernel_size: int

    @property
    def channels(self) -> int:
        """C."""
        return self.x.shape[1]

    @property
    def per_group(self) -> int:
        """C/groups."""
        return self.x.shape[1] // self.groups

    @property
    def bases(self) -> int:
        """N."""
        return self.coefficients.shape[1]

    @property
    def taps(self) -> int:
        """Positions in a kernel, k * k."""
        return self.kernel_size * self.kernel_size

    def to(self, dtype: torch.dtype) -> Arguments:
        """Return the same arguments with all four tensors in `dtype`."""
        x, coefficients, weight, bias = (t.to(dtype) for t in self[:4])
        return Arguments(x, coefficients, weight, bias, self.groups, self.kernel_size)


class Backend(Protocol):
    """One implementation; each is a module of this package."""

    NAME: str
    """The value of `backend` that chooses it."""

    def unsupported(self, args: Arguments) -> str | None:
        """Return why this backend cannot run such a call here, or None if it can."""

    def forward(self, args: Arguments) -> Tensor:
        """Return the output, (B, C, H, W), in the dtype of `x`; strides are free."""

    def backward(self, grad: Tensor, args: Arguments, needs: Needs) -> Gradients:
        """Return the gradients for that of the output, `grad`, in the shapes and dtypes of the inputs."""


def memory_format(like: Tensor) -> torch.memory_format:
    """Choose the format for a result shaped like `like`: channels-last where that is unambiguous."""
    if like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format
