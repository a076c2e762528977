"""Kernel basis attention fused for CUDA devices: mixed kernels exist only in registers.

The kernels read pixel-major matrices, (pixels, channels), so channels-last inputs are used without a copy.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from .backend import Arguments, Gradients, Needs

NAME = "triton"

_MAX_BASES = 64

_PROGRAMS = 512
"""Programs that keep a large device busy; a constant, so that sums are split the same way everywhere."""


def unsupported(args: Arguments) -> str | None:
    """Return what this backend lacks for such a call, or None."""
    x = args.x
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"no kernels for {str(x.dtype).removeprefix('torch.')}"
    if args.per_group not in (1, 2, 4, 8):
        return "channels per group must be 1, 2, 4 or 8"
    if args.bases > _MAX_BASES:
        return f"more than {_MAX_BASES} bases"
    if x.device.type == "cpu" and _interpreted():
        return None
    if x.device.type != "cuda" or torch.version.cuda is None:
        return "needs an NVIDIA GPU"
    if torch.cuda.get_device_capability(x.device) < (8, 0):
        return "needs compute capability 8.0 or newer"
    return None


@torch.no_grad()
def forward(args: Arguments) -> Tensor:
    """Return the output, channels-last."""
    layers = _layers(args).permute(4, 3, 0, 1, 2).contiguous()
    return _convolve(args.x, layers, args.bias, args)


@torch.no_grad()
def backward(grad: Tensor, args: Arguments, needs: Needs) -> Gradients:
    """Return the gradients that are needed; the mixed kernels are computed again."""
    dx = da = dw = db = None
    layers = _layers(args)
    if needs[0]:
        # The same convolution in reverse: outputs and inputs of a group change places, the taps are reversed,
        # and the mixture is the neighbour's.
        transposed = layers.flip(4).permute(4, 2, 0, 1, 3).contiguous()
        dx = _convolve(grad, transposed, None, args)
    if needs[1]:
        da = _mix_gradient(grad, layers.permute(4, 3, 0, 1, 2).contiguous(), args)
    if needs[2] or needs[3]:
        dw, db = _basis_gradient(grad, args, needs[2], needs[3])
    return dx, da, dw, db


def _convolve(source: Tensor, layers: Tensor, bias: Tensor | None, args: Arguments) -> Tensor:
    """Apply the mixtures of (tap, input within group, N, C) to features or to a gradient, (B, C, H, W)."""
    from ._triton_kernels import cdiv, convolve

    pixels, channels = _pixel_major(source), source.shape[1]
    out = torch.empty_like(pixels)
    if out.numel():
        _launch(
            convolve,
            lambda meta: (cdiv(len(pixels), meta["BLOCK_P"]), cdiv(channels, meta["BLOCK_C"])),
            args,
            pixels,
            _pixel_major(args.coefficients),
            layers,
            layers if bias is None else bias.contiguous(),
            out,
            len(pixels),
            *source.shape[2:],
            BACKWARD=bias is None,
        )
    return _image(out, source)


def _mix_gradient(grad: Tensor, layers: Tensor, args: Arguments) -> Tensor:
    from ._triton_kernels import cdiv, mix_gradient

    upstream, source, coefficients = _pixel_major(grad), _pixel_major(args.x), args.coefficients
    pixels, channels = source.shape
    if not coefficients.numel():
        return torch.empty_like(coefficients)
    # Few pixels and many channels (the deep levels of a U-Net): divide the channels, then add up.
    splits = min(cdiv(channels, 64), cdiv(_PROGRAMS, cdiv(pixels, 64)))
    partial = source.new_empty(splits, pixels, args.bases, dtype=torch.float32)
    _launch(
        mix_gradient,
        lambda meta: (cdiv(pixels, meta["BLOCK_P"]), splits),
        args,
        upstream,
        source,
        layers,
        args.bias.contiguous(),
        partial,
        pixels,
        *args.x.shape[2:],
    )
    return _image((partial[0] if splits == 1 else partial.sum(0)).to(coefficients.dtype), coefficients)


def _basis_gradient(
    grad: Tensor, args: Arguments, need_weight: bool, need_bias: bool
) -> tuple[Tensor | None, Tensor | None]:
    from ._triton_kernels import basis_gradient, cdiv

    upstream, source, mix = _pixel_major(grad), _pixel_major(args.x), _pixel_major(args.coefficients)
    (pixels, channels), bases, per_group, taps = source.shape, args.bases, args.per_group, args.taps
    # Tap number `taps` stands for the bias: its neighbour is the constant one.
    first, last = 0 if need_weight else taps, taps + int(need_bias)
    splits = min(cdiv(_PROGRAMS, (last - first) * cdiv(channels * per_group, 128)), cdiv(pixels, 64))
    partial = source.new_empty(splits, last - first, per_group, channels, bases, dtype=torch.float32)
    if partial.numel():
        _launch(
            basis_gradient,
            lambda meta: (last - first, cdiv(channels * per_group, meta["BLOCK_Z"]), splits),
            args,
            upstream,
            source,
            mix,
            partial,
            pixels,
            *args.x.shape[2:],
            first,
        )
    total = partial.sum(0)
    dw = db = None
    if need_weight:
        dw = total[:taps].view(taps, per_group, args.groups, per_group, bases).permute(4, 2, 3, 1, 0)
        dw = dw.reshape(args.weight.shape).to(args.weight.dtype)
    if need_bias:
        db = total[-1, 0].t().reshape(args.bias.shape).to(args.bias.dtype)
    return dw, db


def _launch(kernel: Any, grid: Any, args: Arguments, *positional: Any, **constants: Any) -> None:
    """Run a kernel on the device of `args`, with the constants that all kernels share."""
    from ._triton_kernels import launch

    with _on(args.x.device):
        launch(
            kernel,
            grid,
            args.x.numel(),
            *positional,
            GROUPS=args.groups,
            PER_GROUP=args.per_group,
            BASES=args.bases,
            BLOCK_N=_padded(args.bases),
            KERNEL=args.kernel_size,
            PRECISION=_precision(args.x),
            **constants,
        )


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _precision(x: Tensor) -> str:
    """Choose how to multiply float32: as TF32 where torch allows it, else as three products, in full."""
    matmul = torch.backends.cuda.matmul
    # torch 2.9 replaced allow_tf32, and refuses to read it once the new name has been set.
    new = getattr(matmul, "fp32_precision", None)
    allowed = matmul.allow_tf32 if new is None else new == "tf32"
    return "tf32" if x.dtype != torch.float32 or allowed else "tf32x3"


def _padded(bases: int) -> int:
    """Round up to a power of two, at least 16: the least depth that tensor cores multiply."""
    return max(16, 1 << (bases - 1).bit_length())


def _layers(args: Arguments) -> Tensor:
    """View the weight as (N, G, output within group, input within group, tap)."""
    return args.weight.view(args.bases, args.groups, args.per_group, args.per_group, args.taps)


def _pixel_major(tensor: Tensor) -> Tensor:
    """(B, C, H, W) to (B * H * W, C)."""
    return tensor.permute(0, 2, 3, 1).contiguous().view(-1, tensor.shape[1])


def _image(matrix: Tensor, like: Tensor) -> Tensor:
    """Undo `_pixel_major`, for the shape of `like`."""
    batch, channels, height, width = like.shape
    return matrix.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
