"""A whole block of KBNet_s on the CPU: kernel basis attention and, fused in C, all the rest.

Convolutions of one pixel, depthwise convolutions, layer norms and gates do little arithmetic per byte. Torch
runs each over whole maps, so that memory bounds them; here they run one after the other on tiles that stay in
cache.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import _get_current_dispatch_mode

from . import native
from .backend import Arguments

_BRANCHES, _BRANCHES_BACKWARD, _COMBINE, _COMBINE_BACKWARD, _MEAN, _WHOLE = range(6)
_CONV2, _CONV211, _CONV4 = 10, 15, 23  # indices of weights among the parameters
_PARAMETERS = 28  # those that C knows; behind them w, b, and weight and bias of sca
_MAPS = ("x", "features", "coefficients", "spatial", "mixed", "out")
_GRADIENTS = ("dout", "dx", "dfeatures", "more_dfeatures", "dcoefficients", "dspatial", "dmixed")
_VECTORS = ("mean", "channel", "dmean", "dchannel")
_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
_MANY = 256  # channels, whose weights do not stay in a core's cache beside a tile: torch's layers are faster


class _Call(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "height", "width", "channels", "bases")),
        *((name, ctypes.c_int64) for name in ("gate", "hidden", "dtype", "xtype", "threads")),
        *((name, ctypes.c_float) for name in ("eps1", "eps2")),
        *((name, ctypes.c_void_p) for name in (*_MAPS, *_GRADIENTS, *_VECTORS)),
        *((name, ctypes.c_int64) for name in ("grid_height", "grid_width", "group")),
        *((name, ctypes.c_void_p) for name in ("kernels", "biases")),
        ("parameter", ctypes.c_void_p * _PARAMETERS),
        ("gradient", ctypes.c_void_p * _PARAMETERS),
    ]


def wanted(x: Tensor) -> bool:
    """Say whether `x` is computed on the CPU, by the native backend, and nothing watches operators."""
    return (
        type(x) is Tensor
        and x.is_cpu
        and not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
        and not torch._C._are_functorch_transforms_active()
        and _get_current_dispatch_mode() is None
        and forward_ad._current_level < 0
        and os.environ.get("KBNET_KBA_BACKEND", "auto") in ("auto", native.NAME)
    )


def is_watched(module: nn.Module) -> bool:
    """Say whether something hangs on calls of the layers, which `block` does not make."""
    layers = [*module._modules.values()]
    for layer in layers:  # nn.Module.modules takes several times as long
        if layer is None:
            continue
        if layer._forward_hooks or layer._forward_pre_hooks:
            return True
        if layer._backward_hooks or layer._backward_pre_hooks:
            return True
        layers += layer._modules.values()
    return bool(_has_any_global_hook())


def fits(channels: int) -> bool:
    """Say whether `block` computes so many channels, and faster than torch's layers."""
    return channels % 16 == 0 and channels < _MANY


def serves(x: Tensor, parameters: Sequence[Tensor]) -> bool:
    """Say whether sizes and types are what `block` computes."""
    return (
        x.dtype in _DTYPES
        and _dtype(x) in _DTYPES
        and fits(x.shape[1])
        and x.numel() > 0
        and all(p.dtype is torch.float32 and p.is_cpu for p in parameters)
        and not isinstance(native._library(), str)
    )


def block(x: Tensor, parameters: Sequence[Tensor], eps: tuple[float, float], groups: int) -> Tensor:
    """Run the block.

    Parameters
    ----------
    x : Tensor
        (B, C, H, W), float32; or, under autocast to it, bfloat16. C is a multiple of 16.
    parameters : sequence of Tensor
        Float32: the weights and biases of norm1, conv1, conv21, both layers of conv11, both of conv2;
        attgamma; those of conv211; ga1; those of conv3; beta; those of norm2, conv4 and conv5; gamma; w; b;
        those of sca.
    eps : tuple
        Of norm1 and of norm2.
    groups : int
        Of kernel basis attention.

    Returns
    -------
    Tensor
        (B, C, H, W), float32, channels-last.
    """
    out: Tensor = _Block.apply(x, eps, groups, _dtype(x), *parameters)
    return out


def infer(
    x: Tensor,
    parameters: Sequence[Tensor],
    eps: tuple[float, float],
    groups: int,
    scale: Callable[[Callable[[], Tensor]], Tensor],
) -> Tensor:
    """Run the block without gradients.

    Parameters
    ----------
    x, parameters, eps, groups
        As for `block`.
    scale : callable
        From a function without arguments, which computes the mean of norm1's output, (B, C, 1, 1), to the
        scale of each channel, (B, C, h, w), which is interpolated to the size of `x`. Called instead of sca.

    Returns
    -------
    Tensor
        (B, C, H, W), float32, channels-last.
    """
    dtype = _dtype(x)
    x = x.contiguous(memory_format=torch.channels_last)
    fused, (w, b, *_) = _split(parameters)
    mean = torch.empty(x.shape[:2])

    def measure() -> Tensor:
        _run(_MEAN, fused, eps, dtype, {"x": x, "mean": mean})
        return mean[..., None, None]

    with torch.autocast("cpu", enabled=False):
        channel = scale(measure).float().contiguous(memory_format=torch.channels_last)
    out = _map(x, x.shape[1], torch.float32)
    maps = {"x": x, "out": out, "channel": channel, "kernels": w.contiguous(), "biases": b.contiguous()}
    _run(_WHOLE, fused, eps, dtype, maps, group=x.shape[1] // groups)
    return out


def _branches(
    x: Tensor, fused: Sequence[Tensor], eps: tuple[float, float], dtype: torch.dtype, bases: int
) -> tuple[dict[str, Tensor], Tensor]:
    batch, channels = x.shape[:2]
    call = {"x": x, "features": _map(x, channels, dtype), "coefficients": _map(x, bases, dtype)}
    call["spatial"], mean = _map(x, channels, dtype), torch.empty(batch, channels)
    _run(_BRANCHES, fused, eps, dtype, call | {"mean": mean})
    return call, mean


def _combined(
    call: dict[str, Tensor],
    fused: Sequence[Tensor],
    eps: tuple[float, float],
    dtype: torch.dtype,
    channel: Tensor,
    w: Tensor,
    b: Tensor,
    groups: int,
) -> tuple[Tensor, Tensor]:
    x = call["x"]
    args = Arguments(call["features"], call["coefficients"], w, b, groups, 3)
    mixed = native.forward(args.to(dtype))
    out = _map(x, x.shape[1], torch.float32)
    _run(_COMBINE, fused, eps, dtype, call | {"mixed": mixed, "channel": channel.contiguous(), "out": out})
    return mixed, out


def _dtype(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


class _Block(torch.autograd.Function):
    """Stores the input, the output of the branches and of the attention; the rest is computed again."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, eps: tuple[float, float], groups: int, dtype: torch.dtype, *parameters: Tensor
    ) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        fused, (w, b, sca, sca_bias) = _split(parameters)
        call, mean = _branches(x, fused, eps, dtype, w.shape[1])
        with torch.autocast("cpu", enabled=False):
            channel = torch.addmm(sca_bias, mean, sca.flatten(1).t())
        mixed, out = _combined(call, fused, eps, dtype, channel, w, b, groups)
        maps = (call[name] for name in ("x", "features", "coefficients", "spatial"))
        ctx.save_for_backward(*maps, mixed, mean, channel, *parameters)
        ctx.eps, ctx.groups, ctx.dtype = eps, groups, dtype
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        # torch's once_differentiable lets a constant `dout` pass, without the gradient of the gradient.
        if torch.is_grad_enabled():
            raise RuntimeError("KBNet_s on the CPU has no second derivatives (create_graph=True)")
        x, features, coefficients, spatial, mixed, mean, channel, *parameters = ctx.saved_tensors
        eps, dtype, channels = ctx.eps, ctx.dtype, x.shape[1]
        fused, (w, b, sca, _) = _split(parameters)
        found = [torch.empty_like(p) for p in fused]
        dx, dchannel = torch.empty_like(x), torch.empty_like(channel)
        dfeatures, dspatial, dmixed = (_map(x, channels, dtype) for _ in range(3))
        call = {"x": x, "features": features, "spatial": spatial, "dx": dx}
        call |= {"dfeatures": dfeatures, "dspatial": dspatial}
        more = {"mixed": mixed, "channel": channel, "dmixed": dmixed, "dchannel": dchannel}
        more["dout"] = dout.float().contiguous(memory_format=torch.channels_last)
        _run(_COMBINE_BACKWARD, fused, eps, dtype, call | more, found)
        with torch.autocast("cpu", enabled=False):
            dsca, dsca_bias = (dchannel.t() @ mean).view_as(sca), dchannel.sum(0)
            dmean = dchannel @ sca.flatten(1)
        args = Arguments(features, coefficients, w, b, ctx.groups, 3).to(dtype)
        needs = (ctx.needs_input_grad[0], *ctx.needs_input_grad[4:])
        wanted = (True, True, *needs[-4:-2])
        more_dfeatures, dcoefficients, dw, db = native.backward(dmixed, args, wanted)
        assert more_dfeatures is not None
        assert dcoefficients is not None
        more = {"more_dfeatures": more_dfeatures, "dcoefficients": dcoefficients, "dmean": dmean}
        _run(_BRANCHES_BACKWARD, fused, eps, dtype, call | more, found)
        last = (g if g is None else g.to(w.dtype) for g in (dw, db))
        gradients = (dx, *found, *last, dsca, dsca_bias)
        first, *others = (g if needed else None for g, needed in zip(gradients, needs, strict=True))
        return first, None, None, None, *others


def _split(parameters: Sequence[Tensor]) -> tuple[list[Tensor], Sequence[Tensor]]:
    return [p.contiguous() for p in parameters[:_PARAMETERS]], parameters[_PARAMETERS:]


def _map(x: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    shape = (x.shape[0], channels, *x.shape[2:])
    return torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)


def _run(
    what: int,
    parameters: Sequence[Tensor],
    eps: tuple[float, float],
    dtype: torch.dtype,
    tensors: dict[str, Tensor],
    gradients: Sequence[Tensor] = (),
    group: int = 0,
) -> None:
    x = tensors["x"]
    batch, channels, height, width = x.shape
    call = _Call(batch, height, width, channels)
    call.bases, call.gate, call.hidden = (len(parameters[i]) for i in (_CONV211, _CONV2, _CONV4))
    call.dtype, call.xtype, call.threads = _DTYPES[dtype], _DTYPES[x.dtype], torch.get_num_threads()
    call.eps1, call.eps2 = eps
    call.group = group
    if what == _WHOLE:
        call.grid_height, call.grid_width = tensors["channel"].shape[2:]
    for name, tensor in tensors.items():
        setattr(call, name, tensor.data_ptr())
    call.parameter[:] = [p.data_ptr() for p in parameters]
    if gradients:
        call.gradient[:] = [g.data_ptr() for g in gradients]
    library = native._library()
    assert not isinstance(library, str), library
    isa = os.environ.get("KBNET_KBA_ISA", "")
    if library.block_run_part(ctypes.byref(call), what, isa.encode()):
        native.isa()  # raises if there is no such one
        raise MemoryError("not enough memory for the scratch buffers of a block")
