# mypy: ignore-errors
# ruff: noqa: N803
# (Triton's types mean nothing to a type checker, and its constants are capitals.)
"""Device code of the Triton backend.

All arrays are contiguous: x and grad (pixels, C), mix (pixels, N), layers (taps, inputs of a group, N, C) and
bias (N, C). Pixels run over images, rows and columns; C over groups, then over a group's outputs. Sums are
float32.
"""

from __future__ import annotations

import os
from typing import Any

import triton
import triton.language as tl

cdiv = triton.cdiv

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")

_WORTH_TUNING = 1 << 20
"""With fewer elements in x, compiling every row of a table takes longer than the best row saves."""


def launch(kernel: Any, grid: Any, elements: int, *args: Any, **constants: Any) -> None:
    """Run `kernel` with the fastest block sizes for these shapes, or for small inputs with the first ones."""
    if elements < _WORTH_TUNING:
        config = kernel.configs[0]
        kernel.fn[grid](*args, **constants, **config.all_kwargs())
    else:
        kernel[grid](*args, **constants)


def _autotuned(table, names):
    """Time the rows of `table` (block of pixels, block of channels, warps, stages) and use the fastest."""
    if INTERPRETED.value:
        table = [(16, 64, 4, 1)]  # no timing, as the inputs of tests are tiny
    configs = [
        triton.Config(dict(zip(names, (pixels, channels), strict=True)), num_warps=warps, num_stages=stages)
        for pixels, channels, warps, stages in table
    ]
    return triton.autotune(configs, key=["GROUPS", "PER_GROUP", "BASES", "KERNEL", "PRECISION"])


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr):
    if INTERPRETED:  # the interpreter stores bfloat16 as integers
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _place(p, pixels, height, width):
    """Row and column of flat pixels, and whether each exists."""
    return p // width % height, p % width, p < pixels


@triton.jit
def _neighbour(q, row, column, exists, height, width, KERNEL: tl.constexpr):
    """Offset, in flat pixels, to the neighbour under tap q, and whether the image contains it."""
    dy, dx = q // KERNEL - KERNEL // 2, q % KERNEL - KERNEL // 2
    inside = (row + dy >= 0) & (row + dy < height) & (column + dx >= 0) & (column + dx < width)
    return dy * width + dx, inside & exists


@_autotuned(
    [(64, 32, 4, 3), (128, 64, 8, 2), (128, 32, 4, 2), (64, 64, 4, 2), (64, 128, 8, 2), (32, 64, 4, 2)],
    ("BLOCK_P", "BLOCK_C"),
)
@triton.jit(do_not_specialize=["pixels", "height", "width"])
def convolve(
    x,
    mix,
    layers,
    bias,
    out,
    pixels,
    height,
    width,
    GROUPS: tl.constexpr,
    PER_GROUP: tl.constexpr,
    BASES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    KERNEL: tl.constexpr,
    BACKWARD: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out (pixels, C) = sum over taps of (mix @ layers) * x; BACKWARD reads the neighbour's mix, no bias."""
    CHANNELS: tl.constexpr = GROUPS * PER_GROUP
    BLOCK_G: tl.constexpr = BLOCK_C // PER_GROUP
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    row, column, exists = _place(p, pixels, height, width)
    g = tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    n = tl.arange(0, BLOCK_N)
    of_pixel = p.to(tl.int64)[:, None]
    x_at = x + of_pixel * CHANNELS + (g * PER_GROUP)[None, :]
    mix_at = mix + of_pixel * BASES + n[None, :]
    layer_at = layers + n[:, None] * CHANNELS + c[None, :]
    a_base, a_channel = n < BASES, c < CHANNELS
    in_layer = a_base[:, None] & a_channel[None, :]

    if BACKWARD:
        total = tl.zeros((BLOCK_P, BLOCK_G, PER_GROUP), tl.float32)
    else:
        a = tl.load(mix_at, mask=exists[:, None] & a_base[None, :], other=0.0)
        b = tl.load(bias + n[:, None] * CHANNELS + c[None, :], mask=in_layer, other=0.0)
        total = tl.reshape(_dot(a, b, PRECISION), (BLOCK_P, BLOCK_G, PER_GROUP))
    for q in range(KERNEL * KERNEL):
        shift, inside = _neighbour(q, row, column, exists, height, width, KERNEL)
        if BACKWARD:
            a = tl.load(mix_at + shift * BASES, mask=inside[:, None] & a_base[None, :], other=0.0)
        for i in tl.static_range(PER_GROUP):
            layer = tl.load(layer_at + (q * PER_GROUP + i) * (BASES * CHANNELS), mask=in_layer, other=0.0)
            kernel = tl.reshape(_dot(a, layer, PRECISION), (BLOCK_P, BLOCK_G, PER_GROUP))
            feature = tl.load(
                x_at + (shift * CHANNELS + i), mask=inside[:, None] & (g < GROUPS)[None, :], other=0.0
            )
            total += kernel * feature.to(tl.float32)[:, :, None]
    tl.store(
        out + of_pixel * CHANNELS + c[None, :],
        tl.reshape(total, (BLOCK_P, BLOCK_C)).to(out.dtype.element_ty),
        mask=exists[:, None] & a_channel[None, :],
    )


@_autotuned(
    [(64, 32, 4, 3), (128, 64, 8, 2), (128, 32, 4, 2), (64, 64, 4, 2), (64, 64, 8, 2), (32, 64, 4, 2)],
    ("BLOCK_P", "BLOCK_C"),
)
@triton.jit(do_not_specialize=["pixels", "height", "width"])
def mix_gradient(
    grad,
    x,
    layers,
    bias,
    partial,
    pixels,
    height,
    width,
    GROUPS: tl.constexpr,
    PER_GROUP: tl.constexpr,
    BASES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    KERNEL: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """partial[s] (pixels, N) = sum over taps of (grad * x) @ layers^T, over every s-th block of channels."""
    CHANNELS: tl.constexpr = GROUPS * PER_GROUP
    BLOCK_G: tl.constexpr = BLOCK_C // PER_GROUP
    # Products of gradients and features overflow float16.
    PRODUCT: tl.constexpr = tl.float32 if x.dtype.element_ty == tl.float16 else x.dtype.element_ty
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    row, column, exists = _place(p, pixels, height, width)
    n = tl.arange(0, BLOCK_N)
    of_pixel = p.to(tl.int64)[:, None]
    a_base = n < BASES

    total = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
    for block in range(tl.program_id(1), tl.cdiv(CHANNELS, BLOCK_C), tl.num_programs(1)):
        g = block * BLOCK_G + tl.arange(0, BLOCK_G)
        c = block * BLOCK_C + tl.arange(0, BLOCK_C)
        a_channel = c < CHANNELS
        in_layer = a_base[:, None] & a_channel[None, :]
        layer_at = layers + n[:, None] * CHANNELS + c[None, :]
        x_at = x + of_pixel * CHANNELS + (g * PER_GROUP)[None, :]
        d = tl.load(
            grad + of_pixel * CHANNELS + c[None, :], mask=exists[:, None] & a_channel[None, :], other=0.0
        )
        b = tl.load(bias + n[:, None] * CHANNELS + c[None, :], mask=in_layer, other=0.0)
        total += _dot(d.to(PRODUCT), tl.trans(b.to(PRODUCT)), PRECISION)
        d = tl.reshape(d.to(tl.float32), (BLOCK_P, BLOCK_G, PER_GROUP))
        for q in range(KERNEL * KERNEL):
            shift, inside = _neighbour(q, row, column, exists, height, width, KERNEL)
            for i in tl.static_range(PER_GROUP):
                layer = tl.load(layer_at + (q * PER_GROUP + i) * (BASES * CHANNELS), mask=in_layer, other=0.0)
                feature = tl.load(
                    x_at + (shift * CHANNELS + i), mask=inside[:, None] & (g < GROUPS)[None, :], other=0.0
                )
                product = tl.reshape(d * feature.to(tl.float32)[:, :, None], (BLOCK_P, BLOCK_C))
                total += _dot(product.to(PRODUCT), tl.trans(layer.to(PRODUCT)), PRECISION)
    tl.store(
        partial + tl.program_id(1).to(tl.int64) * pixels * BASES + of_pixel * BASES + n[None, :],
        total,
        mask=exists[:, None] & a_base[None, :],
    )


@_autotuned(
    [(32, 256, 4, 2), (128, 128, 8, 2), (64, 256, 8, 2), (64, 128, 4, 2), (32, 256, 8, 3), (64, 64, 4, 2)],
    ("BLOCK_P", "BLOCK_Z"),
)
@triton.jit(do_not_specialize=["pixels", "height", "width", "first"])
def basis_gradient(
    grad,
    x,
    mix,
    partial,
    pixels,
    height,
    width,
    first,
    GROUPS: tl.constexpr,
    PER_GROUP: tl.constexpr,
    BASES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    KERNEL: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_Z: tl.constexpr,
):
    """partial[s, tap - first, i, c] (N) = sum of grad[c] * x[i] * mix over every s-th block of pixels.

    The tap after the last reads 1 for x: the gradient of the bias, equal for every i.
    """
    CHANNELS: tl.constexpr = GROUPS * PER_GROUP
    BLOCK_C: tl.constexpr = BLOCK_Z // PER_GROUP
    BLOCK_G: tl.constexpr = BLOCK_C // PER_GROUP
    # Products of gradients and features overflow float16.
    PRODUCT: tl.constexpr = tl.float32 if x.dtype.element_ty == tl.float16 else x.dtype.element_ty
    q = first + tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    n = tl.arange(0, BLOCK_N)
    a_channel, a_base = c < CHANNELS, n < BASES

    total = tl.zeros((BLOCK_Z, BLOCK_N), tl.float32)
    for block in range(tl.program_id(2), tl.cdiv(pixels, BLOCK_P), tl.num_programs(2)):
        p = block * BLOCK_P + tl.arange(0, BLOCK_P)
        row, column, exists = _place(p, pixels, height, width)
        shift, inside = _neighbour(q, row, column, exists, height, width, KERNEL)
        of_pixel = p.to(tl.int64)[:, None]
        a = tl.load(mix + of_pixel * BASES + n[None, :], mask=exists[:, None] & a_base[None, :], other=0.0)
        at = of_pixel * CHANNELS + c[None, :]
        d = tl.load(grad + at, mask=exists[:, None] & a_channel[None, :], other=0.0).to(tl.float32)
        inside = inside & (q < KERNEL * KERNEL)
        feature = tl.load(x + (at + shift * CHANNELS), mask=inside[:, None] & a_channel[None, :], other=0.0)
        feature = tl.where(q < KERNEL * KERNEL, feature.to(tl.float32), 1.0)
        feature = tl.permute(tl.reshape(feature, (BLOCK_P, BLOCK_G, PER_GROUP)), (0, 2, 1))
        product = feature[:, :, :, None] * tl.reshape(d, (BLOCK_P, 1, BLOCK_G, PER_GROUP))
        product = tl.reshape(product, (BLOCK_P, BLOCK_Z)).to(PRODUCT)
        total += _dot(tl.trans(product), a.to(PRODUCT), PRECISION)
    z = tl.arange(0, BLOCK_Z)
    i, c = z // BLOCK_C, tl.program_id(1) * BLOCK_C + z % BLOCK_C
    slab = (tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)) * PER_GROUP
    tl.store(
        partial + ((slab + i) * CHANNELS + c).to(tl.int64)[:, None] * BASES + n[None, :],
        total,
        mask=(c < CHANNELS)[:, None] & a_base[None, :],
    )
