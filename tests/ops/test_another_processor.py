"""The native library on other systems against the equation and the layers; its sources under all compilers.

ARM (aarch64, NEON) runs under qemu, Windows under Wine. Left to real machines: speed.
"""

from __future__ import annotations

import ctypes
import runpy
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
import torch

from kbnet_plugin.ops import block, native
from tests.ops.equation import assert_near, case, exact, run
from tests.ops.test_block import errors, made, maps, results, unfused
from tests.ops.test_block import exact as exact_block

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "kbnet_plugin/ops/csrc"
DRIVER = Path(__file__).with_name("another_processor.c")
COMMON = ["-std=gnu11", "-ffp-contract=fast", "-fno-math-errno", "-Wall", "-Wextra", "-Werror"]
DTYPES = [torch.float32, torch.bfloat16]
SYSTEMS = {  # compiler, what to link, emulator, Debian's packages
    "ARM": (
        "aarch64-linux-gnu-gcc",
        ["-static", "-lpthread", "-ldl"],
        "qemu-aarch64",
        "gcc-aarch64-linux-gnu, libc6-dev-arm64-cross, qemu-user",
    ),
    "Windows": ("x86_64-w64-mingw32-gcc", [], "wine", "gcc-mingw-w64-x86-64, wine64, wine"),
}
COMPILERS = {
    "gcc": ["gcc"],
    "clang": ["clang"],
    "gcc for ARM": ["aarch64-linux-gnu-gcc"],
    "gcc for Windows": ["x86_64-w64-mingw32-gcc"],
    "clang for Windows": ["clang", "--target=x86_64-w64-windows-gnu"],
}


@pytest.mark.parametrize("name", COMPILERS)
def test_the_sources_compile_without_warnings(name, monkeypatch):
    compiler, *target = COMPILERS[name]
    needed = [compiler, "x86_64-w64-mingw32-gcc"] if target else [compiler]  # for its headers
    if missing := [tool for tool in needed if shutil.which(tool) is None]:
        pytest.skip(f"needs {' and '.join(missing)}")
    machine = subprocess.run([compiler, *target, "-dumpmachine"], capture_output=True, text=True).stdout
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    flags = runpy.run_path(str(ROOT / "setup.py"))["FLAGS"] if machine.startswith("x86_64") else {}
    for source in CSRC.glob("*.c"):
        command = [compiler, *target, *COMMON, *flags.get(source.stem, []), "-fsyntax-only", source]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module", params=SYSTEMS)
def program(request, tmp_path_factory):
    """Return the command that runs the driver."""
    compiler, linked, emulator, packages = SYSTEMS[request.param]
    for tool in (compiler, emulator):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool} (Debian: {packages})")
    folder = tmp_path_factory.mktemp("emulated")
    path = folder / "program.exe"
    command = [compiler, "-O1", *COMMON, DRIVER, *sorted(CSRC.glob("*.c")), "-o", path, *linked]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WINEPREFIX", str(folder))
        patch.setenv("WINEDEBUG", "-all")
        yield [emulator, path]


class Emulated:
    """Stands for the library: lends the call and every tensor that it may use to the emulated process."""

    def __init__(self, program, folder):
        self.program, self.file = program, folder / "call"
        self.pieces, self.calls = {}, 0

    def lend(self, tensor):
        storage = tensor.untyped_storage()
        self.pieces[storage.data_ptr()] = storage.nbytes()

    def kba_choose(self, name):
        return b"plain"

    def kba_run(self, call, what, name):
        return self._run(0, call, what)

    def block_run_part(self, call, what, name):
        return self._run(1, call._obj, what)

    def _run(self, function, call, what):
        address = ctypes.addressof(call)
        pieces = {**self.pieces, address: ctypes.sizeof(call)}
        with self.file.open("wb") as file:
            file.write(struct.pack("4q", function, what, address, len(pieces)))
            for start, size in pieces.items():
                file.write(struct.pack("2q", start, size) + ctypes.string_at(start, size))
        subprocess.run([*self.program, self.file], check=True)
        with self.file.open("rb") as file:
            (failed,) = struct.unpack("q", file.read(8))
            for start, size in pieces.items():
                ctypes.memmove(start, file.read(size), size)
        self.pieces.clear()
        self.calls += 1
        return failed


@pytest.fixture
def emulated(program, tmp_path, monkeypatch):
    library, pointer = Emulated(program, tmp_path), torch.Tensor.data_ptr

    def lent(tensor):
        library.lend(tensor)
        return pointer(tensor)

    monkeypatch.setattr(torch.Tensor, "data_ptr", lent)
    monkeypatch.setattr(native, "_library", lambda: library)
    monkeypatch.setattr(native, "isa", lambda: "plain")
    return library


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [(1, 16, 4, 3, 32, 23, 29), (2, 20, 4, 5, 33, 7, 31), (1, 64, 2, 3, 8, 24, 24), (3, 6, 2, 1, 5, 3, 1)],
    ids=str,
)
def test_agrees_with_the_equation(emulated, shape, dtype):
    tensors, sizes = case(*shape, dtype=dtype)
    wanted = exact(tensors, sizes)
    assert_near(run(native, tensors, sizes), wanted)
    assert emulated.calls == 4


@pytest.mark.parametrize("shape", [(2, 16, 21, 35, 2, 16), (1, 48, 13, 19, 1.5, 8)], ids=str)
def test_the_block_is_as_exact_as_the_layers(emulated, shape):
    *size, ffn_scale, bases = shape
    module, (x, grad) = made(size[1], ffn_scale, bases), maps(*size)
    wanted = exact_block(module, x, grad)
    with torch.no_grad():
        whole = module(x)
    assert emulated.calls == 2
    fused = errors({**results(module, x, grad), "whole": whole}, {**wanted, "whole": wanted["out"]})
    plain = errors(unfused(module, x, grad), wanted)
    for name, error in fused.items():
        assert error <= max(3 * plain.get(name, plain["out"]), 2e-6), name


def test_threads_change_no_bit(emulated, threads):
    module, (x, _) = made(32, bases=8), maps(1, 32, 33, 70)
    found = []
    for count in (1, 3):
        threads(count)
        with torch.no_grad():
            found.append(module(x))
    assert torch.equal(*found)
    assert block.serves(x, [])
