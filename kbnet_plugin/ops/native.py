"""Kernel basis attention on the CPU in C: fused, threaded, the instruction set chosen at run time.

The library is built when the package is installed and takes plain pointers and strides, so it depends on no
version of torch. The environment variable ``KBNET_KBA_ISA`` (``amx``, ``avx512``, ``avx2``, ``plain``) forces
an instruction set; otherwise the best one serves.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from pathlib import Path

import torch
from torch import Tensor

from ..errors import one_line
from . import memory_format

LIBRARY = Path(__file__).with_name("_kba_native.so")
ISAS = ("amx", "avx512", "avx2", "plain")

_FORWARD, _GRAD_INPUT, _GRAD_COEFFICIENTS, _GRAD_WEIGHT = range(4)
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 0}  # half precision is computed in single
_log = logging.getLogger(__name__)


class _Map(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), *((axis, ctypes.c_int64) for axis in "bcyx")]


class _Call(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "channels", "height", "width", "bases")),
        *((name, ctypes.c_int64) for name in ("group", "kernel", "dtype", "threads")),
        *((name, _Map) for name in ("x", "a", "d", "out")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "dweight", "dbias")),
    ]


@functools.cache
def _library() -> ctypes.CDLL | str:
    """The library, or the reason why there is none."""
    if not LIBRARY.exists():
        reason = f"its library is not built ({_complaint()})"
    else:
        try:
            library = ctypes.CDLL(str(LIBRARY))
        except OSError as error:
            reason = f"its library does not load ({one_line(error)})"
        else:
            library.kba_choose.argtypes = [ctypes.c_char_p]
            library.kba_choose.restype = ctypes.c_char_p
            library.kba_run.argtypes = [ctypes.POINTER(_Call), ctypes.c_int, ctypes.c_char_p]
            return library
    _log.warning("the slower 'tiled' backend serves on the CPU: of 'native', %s", reason)
    return reason


def _complaint() -> str:
    again = "with a C compiler, reinstall or run python setup.py build_ext --inplace"
    try:
        said = LIBRARY.with_suffix(".txt").read_text(encoding="utf-8").strip()  # the compiler's, by setup.py
    except OSError:
        return again
    return f"{said}; {again}"


def available_isas() -> tuple[str, ...]:
    """Instruction sets that this build and this processor have, best first; none without the library."""
    library = _library()
    if isinstance(library, str):
        return ()
    return tuple(name for name in ISAS if library.kba_choose(name.encode()))


def isa() -> str:
    """The instruction set that serves: ``KBNET_KBA_ISA``, or else the best one.

    Raises
    ------
    ValueError
        If ``KBNET_KBA_ISA`` names none that this build and this processor have.
    """
    there = available_isas()
    wanted = os.environ.get("KBNET_KBA_ISA", "")
    if wanted and there and wanted not in there:
        raise ValueError(f"KBNET_KBA_ISA={wanted!r} is not available here; choose from {', '.join(there)}")
    return wanted or there[0]


def unsupported(
    x: Tensor, coefficients: Tensor, weight: Tensor, bias: Tensor, groups: int, kernel_size: int
) -> str | None:
    """The reason why this backend cannot serve, or None."""
    tensors = (x, coefficients, weight, bias)
    if any(t.device.type != "cpu" for t in tensors):
        return "needs CPU tensors"
    if x.dtype not in _DTYPES or any(t.dtype != x.dtype for t in tensors):
        return "needs float32, bfloat16 or float16, the same everywhere"
    if x.shape[1] // groups not in (1, 2, 4, 8, 16):
        return "needs 1, 2, 4, 8 or 16 channels a group"
    if kernel_size not in (1, 3, 5):
        return "needs a kernel of 1, 3 or 5"
    library = _library()
    return library if isinstance(library, str) else None


def _map(t: Tensor | None) -> _Map:
    return _Map() if t is None else _Map(t.data_ptr(), *t.stride())


def _run(
    what: int,
    x: Tensor,
    coefficients: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    kernel_size: int,
    grad: Tensor | None = None,
    out: Tensor | None = None,
    dweight: Tensor | None = None,
    dbias: Tensor | None = None,
) -> None:
    batch, channels, height, width = x.shape
    call = _Call(
        *(batch, channels, height, width, coefficients.shape[1], channels // groups, kernel_size),
        *(_DTYPES[x.dtype], torch.get_num_threads()),
        *(_map(t) for t in (x, coefficients, grad, out)),
        *(None if t is None else t.data_ptr() for t in (weight, bias, dweight, dbias)),
    )
    library = _library()
    assert not isinstance(library, str), library
    if library.kba_run(call, what, isa().encode()):
        raise MemoryError("kernel basis attention: no memory for the scratch of the native backend")


def _like(t: Tensor) -> Tensor:
    return torch.empty_like(t, memory_format=memory_format(t))


def forward(
    x: Tensor, coefficients: Tensor, weight: Tensor, bias: Tensor, groups: int, kernel_size: int
) -> Tensor:
    """The output, in the memory format of `x`."""
    dtype = x.dtype
    if dtype == torch.float16:
        x, coefficients, weight, bias = (t.float() for t in (x, coefficients, weight, bias))
    out = _like(x)
    if out.numel():
        _run(_FORWARD, x, coefficients, weight.contiguous(), bias.contiguous(), groups, kernel_size, out=out)
    return out.to(dtype)


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
    """Gradients of x, coefficients, weight and bias, None where not needed; kernels are computed anew."""
    dtype = x.dtype
    if dtype == torch.float16:
        grad, x, coefficients, weight, bias = (t.float() for t in (grad, x, coefficients, weight, bias))
    weight, bias = weight.contiguous(), bias.contiguous()
    dx = _like(x) if needs[0] else None
    da = _like(coefficients) if needs[1] else None
    both = needs[2] or needs[3]
    fresh = torch.empty if x.numel() else torch.zeros
    dw = fresh(weight.shape, dtype=torch.float32) if both else None
    db = fresh(bias.shape, dtype=torch.float32) if both else None
    if x.numel():
        arguments = (x, coefficients, weight, bias, groups, kernel_size, grad)
        if dx is not None:
            _run(_GRAD_INPUT, *arguments, out=dx)
        if da is not None:
            _run(_GRAD_COEFFICIENTS, *arguments, out=da)
        if both:
            _run(_GRAD_WEIGHT, *arguments, dweight=dw, dbias=db)
    gradients = zip((dx, da, dw, db), needs, strict=True)
    return tuple(g.to(dtype) if g is not None and needed else None for g, needed in gradients)
