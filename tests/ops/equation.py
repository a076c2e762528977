"""Inputs of kernel basis attention, and what a backend makes of them against the equation in float64."""

from __future__ import annotations

import torch

from kbnet_plugin.ops import reference

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
ALL = (True, True, True, True)


def case(
    batch, channels, per_group, kernel, bases, height, width, dtype=torch.float32, *, device="cpu", seed=0
):
    """x, coefficients, weight, bias, the output's gradient; groups and kernel size."""
    g = torch.Generator().manual_seed(seed)
    shapes = (
        (batch, channels, height, width),
        (batch, bases, height, width),
        (1, bases, channels * per_group * kernel**2),
        (1, bases, channels),
        (batch, channels, height, width),
    )
    tensors = [torch.randn(s, generator=g, dtype=torch.float64).to(device, dtype) for s in shapes]
    return tensors, (channels // per_group, kernel)


def run(backend, tensors, sizes, needs=ALL):
    """The output and the gradients, in the order of the inputs."""
    *inputs, grad = tensors
    return [backend.forward(*inputs, *sizes), *backend.backward(grad, *inputs, *sizes, needs)]


def exact(tensors, sizes):
    """The same by the equation."""
    return run(reference, [t.double() for t in tensors], sizes)


def assert_near(found, wanted, tolerance=TOLERANCE):
    """Every result within its dtype's share of its largest value."""
    for name, f, w in zip(("out", "dx", "da", "dw", "db"), found, wanted, strict=True):
        assert f.dtype == found[0].dtype
        assert f.shape == w.shape
        assert torch.isfinite(f).all(), name
        error = ((f.double() - w).abs().max() / w.abs().max()).item()
        assert error <= tolerance[f.dtype], f"{name}: {error:.1e}"
