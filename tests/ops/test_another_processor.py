"""The native library on ARM (aarch64, NEON), run under qemu, against the equation and the layers.

Left to real processors: speed.
"""

from __future__ import annotations

import ctypes
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

CSRC = Path(__file__).parents[2] / "kbnet_plugin/ops/csrc"
DRIVER = Path(__file__).with_name("another_processor.c")
COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
FLAGS = ["-O1", "-std=gnu11", "-ffp-contract=fast", "-fno-math-errno", "-static"]
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    for tool in (COMPILER, EMULATOR):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool} (Debian: gcc-aarch64-linux-gnu, libc6-dev-arm64-cross, qemu-user)")
    path = tmp_path_factory.mktemp("aarch64") / "program"
    command = [COMPILER, *FLAGS, DRIVER, *sorted(CSRC.glob("*.c")), "-o", path, "-lpthread", "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return path


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
        subprocess.run([EMULATOR, self.program, self.file], check=True)
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
