"""Kernel basis attention (KBA): one function, several backends."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import native, reference, tiled, triton
from .backend import Arguments, Backend, memory_format

_PREFERRED: tuple[Backend, ...] = (triton, native, tiled, reference)
_BY_NAME = {backend.NAME: backend for backend in _PREFERRED}

BACKENDS = tuple(_BY_NAME)
"""Values of ``backend`` besides ``"auto"``, in the order in which ``"auto"`` tries them."""

BACKEND_VARIABLE = "KBNET_KBA_BACKEND"
"""Environment variable that replaces ``"auto"``."""

__all__ = ["BACKENDS", "BACKEND_VARIABLE", "available_backends", "kernel_basis_attention", "select_backend"]


def kernel_basis_attention(
    x: Tensor,
    coefficients: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    kernel_size: int = 3,
    backend: str = "auto",
) -> Tensor:
    """Convolve every pixel with its own mixture of learned kernels.

    For output channel ``o`` at pixel ``p``::

        out[o](p) = sum_n a[n](p) * (b[n, o] + sum_{i in group of o} sum_q w[n, o, i, q] * x[i](p + q))

    where ``a`` are the coefficients, and ``x`` is zero beyond its border.

    Parameters
    ----------
    x : Tensor
        Features, (B, C, H, W), floating point. Any strides; channels-last is the fastest on a GPU.
    coefficients : Tensor
        Weight of each basis at each pixel, (B, N, H, W), any strides. Any sign; no softmax is applied.
    weight : Tensor
        Kernel bases, (1, N, C * C/groups * k * k). The last axis runs over output channel, input channel
        within the group, kernel row and kernel column, the last of these fastest.
    bias : Tensor
        Bias bases, (1, N, C).
    groups : int
        Number of channel groups; divides C. Group g consists of channels g * C/groups to
        (g + 1) * C/groups - 1, both of the input and of the output.
    kernel_size : int
        k, odd.
    backend : str
        ``"auto"`` (the fastest that can run), or one of `BACKENDS`. The environment variable
        ``KBNET_KBA_BACKEND`` replaces ``"auto"``.

    Returns
    -------
    Tensor
        (B, C, H, W), in the dtype and memory format of `x`. Under autocast all four tensors are cast to
        its dtype first, unless `x` is float64.

    Raises
    ------
    ValueError
        If shapes, dtypes, devices or names do not fit, or the named backend cannot run these tensors.

    References
    ----------
    Zhang et al., "KBNet: Kernel Basis Network for Image Restoration", arXiv 2303.02881.

    Examples
    --------
    >>> import torch
    >>> x, a = torch.rand(1, 8, 5, 7), torch.rand(1, 32, 5, 7)
    >>> w, b = torch.rand(1, 32, 8 * 4 * 9), torch.rand(1, 32, 8)
    >>> kernel_basis_attention(x, a, w, b, groups=2).shape
    torch.Size([1, 8, 5, 7])
    """
    args = Arguments(x, coefficients, weight, bias, groups, kernel_size)
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        args = args.to(torch.get_autocast_dtype(x.device.type))
    _check(args, backend)
    if backend == "reference":  # plain torch operators: differentiable twice, and exportable to ONNX
        return reference.forward(args)
    if not torch.compiler.is_compiling():
        tell_flop_counter()
    out: Tensor = _kba(*args, backend)
    return out


def select_backend(
    x: Tensor, coefficients: Tensor, weight: Tensor, bias: Tensor, groups: int, kernel_size: int = 3
) -> str:
    """Return the name of the backend that ``"auto"`` means for these arguments.

    Raises
    ------
    ValueError
        If ``KBNET_KBA_BACKEND`` is set to an unknown name.
    """
    return _select(Arguments(x, coefficients, weight, bias, groups, kernel_size))


def available_backends(device: str | torch.device = "cpu") -> dict[str, str | None]:
    """Ask each backend whether it runs a typical float32 call on `device`: None if so, else the reason."""
    x, a = torch.empty(1, 8, 2, 2, device=device), torch.empty(1, 32, 2, 2, device=device)
    w, b = torch.empty(1, 32, 8 * 4 * 9, device=device), torch.empty(1, 32, 8, device=device)
    args = Arguments(x, a, w, b, groups=2, kernel_size=3)
    return {name: backend.unsupported(args) for name, backend in _BY_NAME.items()}


def _check(args: Arguments, backend: str) -> None:
    x, coefficients, weight, bias, groups, kernel_size = args
    if x.ndim != 4 or coefficients.ndim != 4:
        raise ValueError(
            f"x and coefficients must be (batch, channels, height, width), not {tuple(x.shape)} and "
            f"{tuple(coefficients.shape)}"
        )
    channels, bases = x.shape[1], coefficients.shape[1]
    if groups < 1 or channels % groups:
        raise ValueError(f"groups must divide the {channels} channels of x, not {groups}")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd and positive, not {kernel_size}")
    if coefficients.shape[0] != x.shape[0] or coefficients.shape[2:] != x.shape[2:]:
        raise ValueError(
            f"coefficients {tuple(coefficients.shape)} must share batch, height and width "
            f"with x {tuple(x.shape)}"
        )
    taps = channels // groups * kernel_size * kernel_size
    if tuple(weight.shape) != (1, bases, channels * taps):
        raise ValueError(f"weight must be (1, {bases}, {channels * taps}), not {tuple(weight.shape)}")
    if tuple(bias.shape) != (1, bases, channels):
        raise ValueError(f"bias must be (1, {bases}, {channels}), not {tuple(bias.shape)}")
    others = (coefficients, weight, bias)
    if not x.is_floating_point() or any(t.dtype != x.dtype for t in others):
        raise ValueError(
            "x, coefficients, weight and bias must share one floating dtype, not "
            + ", ".join(str(t.dtype).removeprefix("torch.") for t in (x, *others))
        )
    if any(t.device != x.device for t in others):
        raise ValueError(
            "x, coefficients, weight and bias must be on one device, not "
            + ", ".join(str(t.device) for t in (x, *others))
        )
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is not known: choose auto, {', '.join(BACKENDS)}")


def _select(args: Arguments) -> str:
    name = os.environ.get(BACKEND_VARIABLE, "auto")
    if name == "auto":
        return next(backend.NAME for backend in _PREFERRED if backend.unsupported(args) is None)
    if name not in BACKENDS:
        raise ValueError(f"{BACKEND_VARIABLE}={name!r}: choose auto, {', '.join(BACKENDS)}")
    return name


def _resolve(name: str, args: Arguments) -> Backend:
    backend = _BY_NAME[_select(args) if name == "auto" else name]
    reason = backend.unsupported(args)
    if reason is not None:
        raise ValueError(f"KBA backend {backend.NAME!r} cannot run here: {reason}; use backend='auto'")
    return backend


# The backend is resolved inside the operator, so that torch.compile and torch.export see one opaque call.
@torch.library.custom_op("kbnet::kernel_basis_attention", mutates_args=())
def _kba(
    x: Tensor, coefficients: Tensor, weight: Tensor, bias: Tensor, groups: int, kernel_size: int, backend: str
) -> Tensor:
    args = Arguments(x, coefficients, weight, bias, groups, kernel_size)
    out = _resolve(backend, args).forward(args)
    return out.contiguous(memory_format=memory_format(x))


@_kba.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=memory_format(x))


@torch.library.custom_op("kbnet::kernel_basis_attention_backward", mutates_args=())
def _kba_backward(
    grad: Tensor,
    x: Tensor,
    coefficients: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    kernel_size: int,
    backend: str,
    needs: Sequence[bool],
) -> list[Tensor]:
    args = Arguments(x, coefficients, weight, bias, groups, kernel_size)
    need_x, need_coefficients, need_weight, need_bias = needs
    found = _resolve(backend, args).backward(grad, args, (need_x, need_coefficients, need_weight, need_bias))
    return [
        x.new_empty(0) if g is None else g.contiguous(memory_format=memory_format(t))
        for g, t in zip(found, args[:4], strict=True)
    ]


@_kba_backward.register_fake
def _(grad: Tensor, x: Tensor, *arguments: Any) -> list[Tensor]:
    tensors, needs = (x, *arguments[:3]), arguments[-1]
    return [
        torch.empty_like(t, memory_format=memory_format(t)) if needed else x.new_empty(0)
        for t, needed in zip(tensors, needs, strict=True)
    ]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.groups, ctx.kernel_size, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:4])
    found = _kba_backward(grad, *ctx.saved_tensors, ctx.groups, ctx.kernel_size, ctx.backend, needs)
    return (*(g if n else None for g, n in zip(found, needs, strict=True)), None, None, None)


_kba.register_autograd(_autograd, setup_context=_setup_context)


def tell_flop_counter() -> None:
    """Register the operators' formulas with torch's counter, if that is loaded.

    A counter knows only what was registered before it was made, so networks call this when they are built,
    and whoever imports the counter calls it again. It is not imported here: that would import triton, which
    must not be loaded beside some software OpenGL, as in napari's console.
    """
    counter = sys.modules.get("torch.utils.flop_counter")
    forward = torch.ops.kbnet.kernel_basis_attention
    if counter is None or forward in counter.flop_registry:
        return
    counter.register_flop_formula(forward)(_forward_flops)
    counter.register_flop_formula(torch.ops.kbnet.kernel_basis_attention_backward)(_backward_flops)


# The flop counter passes shapes in place of tensors.
def _forward_flops(*arguments: Any, **_: Any) -> int:
    return _flops(1, *arguments[:6])


def _backward_flops(grad: Sequence[int], *arguments: Any, **_: Any) -> int:
    needs = arguments[-1]
    # dx needs the mixed kernels once more; da and the pair (dw, db) are one product each.
    return _flops(needs[0] + needs[1] + (needs[2] or needs[3]), *arguments[:6])


def _flops(
    products: int,
    x: Sequence[int],
    coefficients: Sequence[int],
    weight: Sequence[int],
    bias: Sequence[int],
    groups: int,
    kernel_size: int,
) -> int:
    batch, channels, height, width = x
    bases, taps = coefficients[1], channels // groups * kernel_size * kernel_size
    # `products` passes over every basis (bias included), and one application of the mixed kernel.
    return 2 * batch * height * width * channels * (products * bases * (taps + 1) + taps)
