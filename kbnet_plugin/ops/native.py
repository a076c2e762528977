"""Kernel basis attention on the CPU in C: fused, threaded, the instruction set chosen at run time.

The library is built when the package is installed and takes plain pointers and strides, so it works with any
version of torch. The environment variable ``KBNET_KBA_ISA`` (``amx``, ``avx512``, ``avx2``, ``plain``)
forces an instruction set; by default the fastest available one is used.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import sys
from pathlib import Path

import torch
from torch import Tensor

from ..errors import one_line
from .backend import Arguments, Gradients, Needs, memory_format

NAME = "native"

LIBRARY = Path(__file__).with_name(
    "_kba_native" + {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
)
ISAS = ("amx", "avx512", "avx2", "plain")
"""Instruction sets, fastest first."""

_FORWARD, _GRAD_INPUT, _GRAD_COEFFICIENTS, _GRAD_WEIGHT = range(4)
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 0}  # float16 is computed in float32
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
    """Load the library, or return the reason why there is none."""
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
            library.block_run_part.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p]
            return library
    _log.warning("KBA on the CPU falls back to the slower 'tiled' backend: for 'native', %s", reason)
    return reason


def _complaint() -> str:
    again = "with a C compiler, reinstall or run python setup.py build_ext --inplace"
    try:
        compiler_error = LIBRARY.with_suffix(".txt").read_text(encoding="utf-8").strip()  # from setup.py
    except OSError:
        return again
    return f"{compiler_error}; {again}"


def available_isas() -> tuple[str, ...]:
    """List the instruction sets that build and processor support, fastest first; none without the library."""
    return _available(_library())


@functools.cache
def _available(library: ctypes.CDLL | str) -> tuple[str, ...]:
    if isinstance(library, str):
        return ()
    return tuple(name for name in ISAS if library.kba_choose(name.encode()))


def isa() -> str:
    """Return the instruction set in use: ``KBNET_KBA_ISA``, or else the fastest.

    Raises
    ------
    ValueError
        If build or processor do not support what ``KBNET_KBA_ISA`` names.
    """
    there = available_isas()
    wanted = os.environ.get("KBNET_KBA_ISA", "")
    if wanted and there and wanted not in there:
        raise ValueError(f"KBNET_KBA_ISA={wanted!r} is not available here; choose from {', '.join(there)}")
    return wanted or there[0]


def unsupported(args: Arguments) -> str | None:
    """Return what this backend lacks for such a call, or None."""
    dtype = args.x.dtype
    if any(t.device.type != "cpu" for t in args[:4]):
        return "needs CPU tensors"
    if dtype not in _DTYPES or any(t.dtype != dtype for t in args[:4]):
        return "needs float32, bfloat16 or float16, the same everywhere"
    if args.per_group not in (1, 2, 4, 8, 16):
        return "needs 1, 2, 4, 8 or 16 channels per group"
    if args.kernel_size not in (1, 3, 5):
        return "needs a kernel size of 1, 3 or 5"
    library = _library()
    return library if isinstance(library, str) else None


def forward(args: Arguments) -> Tensor:
    """Return the output, in the memory format of `x`."""
    dtype = args.x.dtype
    args = _prepared(args)
    out = _like(args.x)
    if out.numel():
        _run(_FORWARD, args, out=out)
    return out.to(dtype)


def backward(grad: Tensor, args: Arguments, needs: Needs) -> Gradients:
    """Return the gradients that are needed; the mixed kernels are computed again."""
    dtype = args.x.dtype
    args = _prepared(args)
    x, coefficients, weight, bias, *_ = args
    grad = grad.to(x.dtype)
    dx = _like(x) if needs[0] else None
    da = _like(coefficients) if needs[1] else None
    both = needs[2] or needs[3]
    fresh = torch.empty if x.numel() else torch.zeros
    dw = fresh(weight.shape, dtype=torch.float32) if both else None
    db = fresh(bias.shape, dtype=torch.float32) if both else None
    if x.numel():
        if dx is not None:
            _run(_GRAD_INPUT, args, grad, out=dx)
        if da is not None:
            _run(_GRAD_COEFFICIENTS, args, grad, out=da)
        if both:
            _run(_GRAD_WEIGHT, args, grad, dweight=dw, dbias=db)
    dx, da, dw, db = (
        g.to(dtype) if g is not None and needed else None
        for g, needed in zip((dx, da, dw, db), needs, strict=True)
    )
    return dx, da, dw, db


def _prepared(args: Arguments) -> Arguments:
    if args.x.dtype == torch.float16:
        args = args.to(torch.float32)
    return args._replace(weight=args.weight.contiguous(), bias=args.bias.contiguous())


def _run(
    what: int,
    args: Arguments,
    grad: Tensor | None = None,
    *,
    out: Tensor | None = None,
    dweight: Tensor | None = None,
    dbias: Tensor | None = None,
) -> None:
    x, coefficients, weight, bias, _, kernel_size = args
    call = _Call(
        *(*x.shape, args.bases, args.per_group, kernel_size),
        *(_DTYPES[x.dtype], torch.get_num_threads()),
        *(_map(t) for t in (x, coefficients, grad, out)),
        *(None if t is None else t.data_ptr() for t in (weight, bias, dweight, dbias)),
    )
    library = _library()
    assert not isinstance(library, str), library
    if library.kba_run(call, what, isa().encode()):
        raise MemoryError("not enough memory for the scratch buffers of the native KBA backend")


def _map(t: Tensor | None) -> _Map:
    return _Map() if t is None else _Map(t.data_ptr(), *t.stride())


def _like(t: Tensor) -> Tensor:
    return torch.empty_like(t, memory_format=memory_format(t))
