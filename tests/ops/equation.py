"""Inputs of kernel basis attention, and what a backend makes of them against the equation in float64."""

from __future__ import annotations

import torch

from benchmarks.accuracy import tensors
from kbnet_plugin.ops import reference

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
ALL = (True, True, True, True)


def case(batch, channels, per_group, kernel, bases, height, width, dtype=torch.float32, device="cpu"):
    """x, coefficients, weight, bias, the output's gradient; groups and kernel size."""
    shape = (batch, channels, per_group, kernel, bases, height, width)
    return tensors(shape, dtype, device), (channels // per_group, kernel)


def run(backend, given, sizes, needs=ALL):
    """The output and the gradients, in the order of the inputs."""
    *inputs, grad = given
    return [backend.forward(*inputs, *sizes), *backend.backward(grad, *inputs, *sizes, needs)]


def exact(given, sizes):
    """The same by the equation."""
    return run(reference, [t.double() for t in given], sizes)


def assert_near(found, wanted, tolerance=TOLERANCE):
    """Every result within its dtype's share of its largest value."""
    for name, f, w in zip(("out", "dx", "da", "dw", "db"), found, wanted, strict=True):
        assert f.dtype == found[0].dtype
        assert f.shape == w.shape
        assert torch.isfinite(f).all(), name
        error = ((f.double() - w).abs().max() / w.abs().max()).item()
        assert error <= tolerance[f.dtype], f"{name}: {error:.1e}"
