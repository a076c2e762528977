"""Inputs of kernel basis attention, and a backend's results against the equation in float64."""

from __future__ import annotations

import torch

from benchmarks.accuracy import tensors
from kbnet_plugin.ops import reference
from kbnet_plugin.ops.backend import Arguments

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
ALL = (True, True, True, True)


def case(batch, channels, per_group, kernel, bases, height, width, dtype=torch.float32, device="cpu"):
    """Make x, coefficients, weight, bias and the output's gradient; and groups and kernel size."""
    shape = (batch, channels, per_group, kernel, bases, height, width)
    return tensors(shape, dtype, device), (channels // per_group, kernel)


def run(backend, given, sizes, needs=ALL):
    """Compute the output and the gradients, in the order of the inputs."""
    *inputs, grad = given
    args = Arguments(*inputs, *sizes)
    return [backend.forward(args), *backend.backward(grad, args, needs)]


def exact(given, sizes):
    """Compute the same by the equation."""
    return run(reference, [t.double() for t in given], sizes)


def assert_near(found, wanted, tolerance=TOLERANCE):
    """Check that every result is within its dtype's tolerance, relative to its largest value."""
    for name, f, w in zip(("out", "dx", "da", "dw", "db"), found, wanted, strict=True):
        assert f.dtype == found[0].dtype
        assert f.shape == w.shape
        assert torch.isfinite(f).all(), name
        error = ((f.double() - w).abs().max() / w.abs().max()).item()
        assert error <= tolerance[f.dtype], f"{name}: {error:.1e}"
