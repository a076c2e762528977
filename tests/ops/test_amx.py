"""The AMX kernels against the equation in float64, on any processor with AVX-512: the tile unit is emulated.

Left to processors with AMX: speed, and that the compiler keeps the order of the real tile instructions.
"""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from kbnet_plugin.ops import native
from tests.ops.equation import assert_near, case, exact, run

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "kbnet_plugin/ops/csrc"
COMMON = ["-O2", "-std=gnu11", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast"]
HEADER = HERE / "amx_emulation.h"
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]
FLAGS = {  # without its flags, the file for AVX2 is empty
    "isa_plain": ["-O0"],  # linked, not run
    "isa_avx512": AVX512,
    "isa_amx": [*AVX512, "-fno-toplevel-reorder", "-Wno-builtin-macro-redefined", "-include", HEADER],
}
FEWEST = 512  # SHORT in kba.c: terms of a float32 sum, below which AVX-512 computes it
DTYPES = [torch.float32, torch.bfloat16]
STEPS = [  # what one run of the driver computes: the output, and which gradients
    ("out", None),
    ("dx", (True, False, False, False)),
    ("da", (False, True, False, False)),
    ("dw and db", (False, False, True, True)),
]

SHAPES = [  # batch, channels, channels per group, kernel, bases, height, width
    (1, 4, 4, 5, 32, 23, 29),
    (2, 16, 16, 3, 4, 13, 21),
    (1, 32, 8, 3, 8, 19, 33),
    (2, 48, 4, 3, 36, 16, 17),  # two blocks of bases
    (1, 64, 2, 3, 32, 37, 41),
    (1, 32, 4, 3, 32, 1, 601),  # wider than a tile
    (1, 16, 4, 3, 32, 70, 40),  # higher than a tile
    (1, 64, 1, 3, 64, 24, 31),  # one block of pixels in a row
    (2, 40, 8, 1, 64, 16, 17),
    (3, 20, 4, 5, 33, 7, 31),
    (1, 6, 2, 3, 5, 3, 1),
    (2, 12, 1, 3, 7, 1, 1),
]
LARGE = (1, 16, 4, 3, 32, 24, 24)  # computed on tiles throughout, for float32 too


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        pytest.skip("AMX is emulated on x86-64 Linux only")
    if "avx512" not in native.available_isas():
        pytest.skip("needs the native library, and a processor with AVX-512")
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    folder = tmp_path_factory.mktemp("amx")
    sources = sorted(CSRC.glob("*.c"))
    objects = [folder / f"{source.stem}.o" for source in sources]
    compiling = [
        subprocess.Popen(["gcc", *COMMON, *FLAGS.get(s.stem, []), "-c", s, "-o", o], stderr=subprocess.PIPE)
        for s, o in zip(sources, objects, strict=True)
    ]
    for process in compiling:
        _, said = process.communicate()
        assert process.returncode == 0, said.decode()
    path = folder / "emulated.so"
    subprocess.run(["gcc", "-shared", *objects, "-o", path, "-lpthread", "-ldl"], check=True)
    return path


@pytest.fixture(autouse=True)
def emulated(library, monkeypatch):
    """The library with the emulation, in the place of the real one."""
    monkeypatch.setattr(native, "LIBRARY", library)
    monkeypatch.setenv("KBNET_KBA_ISA", "amx")
    native._library.cache_clear()
    loaded = native._library()
    yield loaded
    faults = count(loaded, "amx_faults")
    native._library.cache_clear()
    assert faults == 0, "a real tile unit would raise an exception"


def count(library, name):
    return ctypes.c_longlong.in_dll(library, name).value


def products(library, given, sizes):
    """Count the tile products of each step."""
    found = {}
    args = native.Arguments(*given[:4], *sizes)
    for step, needs in STEPS:
        before = count(library, "amx_products")
        if needs is None:
            native.forward(args)
        else:
            native.backward(given[4], args, needs)
        found[step] = count(library, "amx_products") - before
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_the_equation(shape, dtype):
    tensors, sizes = case(*shape, dtype=dtype)
    wanted = exact(tensors, sizes)
    assert_near(run(native, tensors, sizes), wanted)
    last = [t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in tensors]
    assert_near(run(native, last, sizes), wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tiles_compute_all_but_short_sums_of_float32(emulated, shape, dtype):
    batch, channels, per_group, kernel, bases, height, width = shape
    taps = per_group * kernel**2
    terms = (taps * bases, taps * bases, taps * channels, batch * height * width)
    tensors, sizes = case(*shape, dtype=dtype)
    for (step, found), few in zip(products(emulated, tensors, sizes).items(), terms, strict=True):
        assert (found > 0) is (dtype == torch.bfloat16 or few >= FEWEST), step


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(2, 48, 4, 3, 32, 25, 26), (1, 64, 2, 3, 40, 24, 25), (3, 32, 8, 3, 8, 16, 24)], ids=str
)
def test_threads_change_no_bit(threads, shape, dtype):
    tensors, sizes = case(*shape, dtype=dtype)
    threads(1)
    alone = run(native, tensors, sizes)
    threads(2)
    assert all(torch.equal(f, g) for f, g in zip(run(native, tensors, sizes), alone, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("huge", [0, 1, 2, 4], ids=["x", "coefficients", "weight", "gradient"])
def test_large_finite_inputs_stay_finite(huge, dtype):
    tensors, sizes = case(*LARGE, dtype=dtype)
    small = [t * 1e-4 for t in tensors]
    small[huge] = tensors[huge] / tensors[huge].abs().max() * torch.finfo(dtype).max
    assert_near(run(native, small, sizes), exact(small, sizes))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("tensor", range(4), ids=["x", "coefficients", "weight", "bias"])
def test_infinity_and_nan_are_not_hidden(tensor, value):
    tensors, sizes = case(*LARGE)
    tensors[tensor].flatten()[5] = value
    assert not native.forward(native.Arguments(*tensors[:4], *sizes)).isfinite().all()
