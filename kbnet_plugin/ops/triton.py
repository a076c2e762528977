"""Kernel basis attention fused for CUDA devices: mixed kernels live in registers only.

The kernels see pixel-major matrices, (pixels, channels): channels-last inputs are taken as they are.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os

import torch
from torch import Tensor

_MAX_BASES = 64

_PROGRAMS = 512
"""Programs that keep a large device busy; a constant, so that sums are cut the same way everywhere."""


def unsupported(
    x: Tensor, coefficients: Tensor, weight: Tensor, bias: Tensor, groups: int, kernel_size: int
) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"no kernels for {str(x.dtype).removeprefix('torch.')}"
    if x.shape[1] // groups not in (1, 2, 4, 8):
        return "channels per group must be 1, 2, 4 or 8"
    if coefficients.shape[1] > _MAX_BASES:
        return f"more than {_MAX_BASES} bases"
    if x.device.type == "cpu" and _interpreted():
        return None
    if x.device.type != "cuda" or torch.version.cuda is None:
        return "needs an NVIDIA GPU"
    if torch.cuda.get_device_capability(x.device) < (8, 0):
        return "needs compute capability 8.0 or newer"
    return None


@torch.no_grad()
def forward(
    x: Tensor, coefficients: Tensor, weight: Tensor, bias: Tensor, groups: int, kernel_size: int
) -> Tensor:
    layers = _layers(weight, x.shape[1], groups, kernel_size).permute(4, 3, 0, 1, 2).contiguous()
    return _convolve(x, coefficients, layers, bias, groups, kernel_size)


@torch.no_grad()
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
    dx = da = dw = db = None
    layers = _layers(weight, x.shape[1], groups, kernel_size)
    if needs[0]:
        # The same convolution back to front: outputs and inputs of a group change places, taps are reversed,
        # and the mixture is the neighbour's.
        transposed = layers.flip(4).permute(4, 2, 0, 1, 3).contiguous()
        dx = _convolve(grad, coefficients, transposed, None, groups, kernel_size)
    if needs[1]:
        forward_layers = layers.permute(4, 3, 0, 1, 2).contiguous()
        da = _mix_gradient(grad, x, coefficients, forward_layers, bias, groups, kernel_size)
    if needs[2] or needs[3]:
        dw, db = _basis_gradient(grad, x, coefficients, weight, bias, groups, kernel_size, needs[2], needs[3])
    return dx, da, dw, db


def _convolve(
    x: Tensor, coefficients: Tensor, layers: Tensor, bias: Tensor | None, groups: int, kernel_size: int
) -> Tensor:
    from ._triton_kernels import cdiv, convolve, launch

    source, mix = _pixel_major(x), _pixel_major(coefficients)
    pixels, channels = source.shape
    out = torch.empty_like(source)
    if out.numel():
        with _on(x.device):
            launch(
                convolve,
                lambda meta: (cdiv(pixels, meta["BLOCK_P"]), cdiv(channels, meta["BLOCK_C"])),
                source.numel(),
                source,
                mix,
                layers,
                layers if bias is None else bias.contiguous(),
                out,
                pixels,
                *x.shape[2:],
                GROUPS=groups,
                PER_GROUP=channels // groups,
                BASES=mix.shape[1],
                BLOCK_N=_padded(mix.shape[1]),
                KERNEL=kernel_size,
                BACKWARD=bias is None,
                PRECISION=_precision(x),
            )
    return _image(out, x)


def _mix_gradient(
    grad: Tensor,
    x: Tensor,
    coefficients: Tensor,
    layers: Tensor,
    bias: Tensor,
    groups: int,
    kernel_size: int,
) -> Tensor:
    from ._triton_kernels import cdiv, launch, mix_gradient

    upstream, source = _pixel_major(grad), _pixel_major(x)
    (pixels, channels), bases = source.shape, coefficients.shape[1]
    if not coefficients.numel():
        return torch.empty_like(coefficients)
    # Few pixels and many channels (the deep levels of a U-Net): share the channels out, then add up.
    splits = min(cdiv(channels, 64), cdiv(_PROGRAMS, cdiv(pixels, 64)))
    partial = source.new_empty(splits, pixels, bases, dtype=torch.float32)
    with _on(x.device):
        launch(
            mix_gradient,
            lambda meta: (cdiv(pixels, meta["BLOCK_P"]), splits),
            source.numel(),
            upstream,
            source,
            layers,
            bias.contiguous(),
            partial,
            pixels,
            *x.shape[2:],
            GROUPS=groups,
            PER_GROUP=channels // groups,
            BASES=bases,
            BLOCK_N=_padded(bases),
            KERNEL=kernel_size,
            PRECISION=_precision(x),
        )
    return _image((partial[0] if splits == 1 else partial.sum(0)).to(coefficients.dtype), coefficients)


def _basis_gradient(
    grad: Tensor,
    x: Tensor,
    coefficients: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    kernel_size: int,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor | None, Tensor | None]:
    from ._triton_kernels import basis_gradient, cdiv, launch

    upstream, source, mix = _pixel_major(grad), _pixel_major(x), _pixel_major(coefficients)
    (pixels, channels), bases = source.shape, mix.shape[1]
    per_group, taps = channels // groups, kernel_size * kernel_size
    # Tap number `taps` stands for the bias: its neighbour is the constant one.
    first, last = 0 if need_weight else taps, taps + int(need_bias)
    splits = min(cdiv(_PROGRAMS, (last - first) * cdiv(channels * per_group, 128)), cdiv(pixels, 64))
    partial = source.new_empty(splits, last - first, per_group, channels, bases, dtype=torch.float32)
    if partial.numel():
        with _on(x.device):
            launch(
                basis_gradient,
                lambda meta: (last - first, cdiv(channels * per_group, meta["BLOCK_Z"]), splits),
                source.numel(),
                upstream,
                source,
                mix,
                partial,
                pixels,
                *x.shape[2:],
                first,
                GROUPS=groups,
                PER_GROUP=per_group,
                BASES=bases,
                BLOCK_N=_padded(bases),
                KERNEL=kernel_size,
                PRECISION=_precision(x),
            )
    total = partial.sum(0)
    dw = db = None
    if need_weight:
        dw = total[:taps].view(taps, per_group, groups, per_group, bases).permute(4, 2, 3, 1, 0)
        dw = dw.reshape(weight.shape).to(weight.dtype)
    if need_bias:
        db = total[-1, 0].t().reshape(bias.shape).to(bias.dtype)
    return dw, db


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _precision(x: Tensor) -> str:
    """How float32 is multiplied: as TF32 where torch allows it, else as three products, to all digits."""
    matmul = torch.backends.cuda.matmul
    # torch 2.9 replaced allow_tf32, and refuses to read it once the new name was written.
    new = getattr(matmul, "fp32_precision", None)
    allowed = matmul.allow_tf32 if new is None else new == "tf32"
    return "tf32" if x.dtype != torch.float32 or allowed else "tf32x3"


def _padded(bases: int) -> int:
    """Tensor cores multiply at least 16 deep."""
    return max(16, 1 << (bases - 1).bit_length())


def _layers(weight: Tensor, channels: int, groups: int, kernel_size: int) -> Tensor:
    """(N, G, output within group, input within group, tap)."""
    per_group = channels // groups
    return weight.view(weight.shape[1], groups, per_group, per_group, kernel_size * kernel_size)


def _pixel_major(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 2, 3, 1).contiguous().view(-1, tensor.shape[1])


def _image(matrix: Tensor, like: Tensor) -> Tensor:
    batch, channels, height, width = like.shape
    return matrix.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
