"""The native backend against the equation in float64, with every instruction set that this machine has."""

from __future__ import annotations

import itertools
import logging
import os
import platform
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from kbnet_plugin import cli
from kbnet_plugin.ops import native
from kbnet_plugin.ops.backend import Arguments
from tests.ops.equation import TOLERANCE, assert_near, case, exact, run

ROOT = Path(__file__).parents[2]
REQUIRED = os.environ.get("KBNET_REQUIRE_NATIVE") == "1"
REASON = "the native library is not built (python setup.py build_ext --inplace)"
built = pytest.mark.skipif(not native.available_isas() and not REQUIRED, reason=REASON)

SHAPES = [  # batch, channels, channels per group, kernel, bases, height, width
    (2, 64, 4, 3, 32, 16, 18),
    (1, 32, 4, 3, 32, 5, 300),  # wider than a tile
    (1, 16, 4, 3, 32, 70, 40),  # higher than a tile
    (1, 4, 4, 3, 32, 5, 7),
    (2, 48, 2, 3, 32, 17, 9),
    (1, 12, 1, 3, 7, 1, 1),
    (1, 40, 8, 5, 48, 9, 11),
    (1, 1024, 2, 1, 64, 3, 3),
    (1, 512, 4, 3, 32, 4, 4),
    (1, 32, 16, 3, 1, 4, 5),
    (1, 16, 1, 1, 32, 20, 20),
    (3, 20, 4, 5, 33, 2, 31),
    (2, 8, 2, 5, 32, 1, 6),
    (1, 6, 2, 3, 16, 23, 1),
    *((1, 32, 4, 3, bases, 11, 16) for bases in (1, 2, 4, 8, 16)),  # rows of whole blocks
    *((2, 24, 8, 3, bases, 9, 22) for bases in (3, 4, 8, 12)),  # rows whose last block ends in the margin
    *((1, 20, 2, 5, bases, 7, 33) for bases in (4, 8, 36)),
    (1, 32, 16, 3, 8, 6, 13),
    (1, 16, 1, 3, 4, 13, 9),
]


@built
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_the_equation(isa, shape):
    for dtype in TOLERANCE:
        tensors, sizes = case(*shape, dtype=dtype)
        wanted = exact(tensors, sizes)
        assert_near(run(native, tensors, sizes), wanted)
        last = [t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in tensors]
        assert_near(run(native, last, sizes), wanted)


@built
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_takes_any_strides(isa, dtype):
    tensors, sizes = case(2, 24, 4, 3, 32, 9, 10, dtype=dtype)
    wanted = exact(tensors, sizes)
    x, a, w, b, grad = tensors
    strided = [
        x.transpose(2, 3).contiguous().transpose(2, 3),
        torch.cat([a, a], 1)[:, 32:],
        w.expand(2, -1, -1)[1:],
        torch.stack([b, b], -1)[..., 0],
        torch.stack([grad, grad], -1)[..., 1],
    ]
    assert_near(run(native, strided, sizes), wanted)


@built
def test_takes_an_expanded_gradient(isa):
    tensors, sizes = case(1, 16, 4, 3, 32, 8, 8)
    tensors[4] = torch.ones(()).expand_as(tensors[4])
    assert_near(run(native, tensors, sizes), exact(tensors, sizes))


@built
def test_computes_only_what_is_needed(isa):
    tensors, sizes = case(1, 16, 4, 3, 32, 6, 7)
    full = run(native, tensors, sizes)[1:]
    for needs in itertools.product((False, True), repeat=4):
        for gradient, one, needed in zip(run(native, tensors, sizes, needs)[1:], full, needs, strict=True):
            assert (gradient is None) is not needed
            assert gradient is None or torch.equal(gradient, one)


@built
@pytest.mark.parametrize(
    "shape", [(2, 48, 4, 3, 32, 33, 50), (1, 64, 2, 3, 40, 20, 20), (3, 80, 4, 3, 8, 16, 24)], ids=str
)
def test_threads_and_repetition_change_no_bit(isa, threads, shape):
    for dtype in (torch.float32, torch.bfloat16):
        tensors, sizes = case(*shape, dtype=dtype)
        threads(1)
        alone = run(native, tensors, sizes)
        for count in (1, 2, 3):
            threads(count)
            assert all(torch.equal(f, g) for f, g in zip(run(native, tensors, sizes), alone, strict=True))


@built
@pytest.mark.parametrize("last", [False, True])
def test_output_has_the_memory_format_of_x(isa, last):
    (x, a, w, b, grad), sizes = case(2, 8, 4, 3, 32, 5, 6)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    out, dx, *_ = run(native, (x, a, w, b, grad), sizes)
    assert out.stride() == dx.stride() == x.stride()


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("huge", [0, 1, 2, 4], ids=["x", "coefficients", "weight", "gradient"])
def test_large_finite_inputs_stay_finite(isa, huge, dtype):
    tensors, sizes = case(1, 16, 4, 3, 32, 12, 12, dtype=dtype)
    small = [t * 1e-4 for t in tensors]
    small[huge] = tensors[huge] / tensors[huge].abs().max() * torch.finfo(dtype).max
    assert_near(run(native, small, sizes), exact(small, sizes))


@built
def test_infinity_and_nan_are_not_hidden(isa):
    (x, a, w, b, _), sizes = case(1, 16, 4, 3, 32, 12, 12)
    for value in (float("inf"), float("nan")):
        for tensor in (x, a, w, b):
            kept = tensor.flatten()[5].clone()
            tensor.flatten()[5] = value
            assert not native.forward(Arguments(x, a, w, b, *sizes)).isfinite().all()
            tensor.flatten()[5] = kept


@built
@pytest.mark.parametrize(("batch", "height", "width"), [(0, 4, 4), (2, 0, 4), (2, 4, 0)])
def test_nothing_in_nothing_out(isa, batch, height, width):
    tensors, sizes = case(batch, 8, 4, 3, 32, height, width)
    out, dx, da, dw, db = run(native, tensors, sizes)
    assert (out.shape, dx.shape, da.shape) == (tensors[0].shape, tensors[0].shape, tensors[1].shape)
    assert not dw.any()
    assert not db.any()


@built
def test_unknown_instruction_set_is_an_error(monkeypatch):
    monkeypatch.setenv("KBNET_KBA_ISA", "mmx")
    tensors, sizes = case(1, 8, 4, 3, 32, 4, 4)
    with pytest.raises(ValueError, match=r"KBNET_KBA_ISA='mmx' is not available here; choose from .*plain"):
        native.forward(Arguments(*tensors[:4], *sizes))


@built
@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((1, 6, 3, 3, 8, 4, 4), torch.float32, "channels per group"),
        ((1, 8, 4, 7, 8, 4, 4), torch.float32, "kernel size of 1, 3 or 5"),
        ((1, 8, 4, 3, 8, 4, 4), torch.float64, "float32, bfloat16 or float16"),
    ],
)
def test_says_what_it_cannot_do(shape, dtype, reason):
    tensors, sizes = case(*shape, dtype=dtype)
    assert reason in native.unsupported(Arguments(*tensors[:4], *sizes))


@built
def test_survives_a_fork():
    script = """
        import os, torch
        from kbnet_plugin.ops import native
        from kbnet_plugin.ops.backend import Arguments
        torch.set_num_threads(2)
        g = torch.Generator().manual_seed(0)
        shapes = ((1, 64, 40, 40), (1, 32, 40, 40), (1, 32, 64 * 36), (1, 32, 64))
        args = Arguments(*(torch.randn(s, generator=g) for s in shapes), 16, 3)
        before = native.forward(args)
        child = os.fork()
        if child == 0:
            same = (before.numpy() == native.forward(args).numpy()).all()  # torch itself would hang here
            os._exit(0 if same else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert torch.equal(before, native.forward(args))
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)


@built
def test_survives_a_fork_before_its_first_use():
    script = """
        import os, signal, torch
        from kbnet_plugin.ops import native
        from kbnet_plugin.ops.backend import Arguments
        torch.set_num_threads(2)
        shapes = ((1, 64, 40, 40), (1, 32, 40, 40), (1, 32, 64 * 36), (1, 32, 64))
        args = Arguments(*(torch.randn(s) for s in shapes), 16, 3)
        assert native.available_isas()
        torch.rand(1 << 22).exp()  # starts torch's team, which the child does not have
        child = os.fork()
        if child == 0:
            signal.alarm(30)
            both = native.forward(args)
            torch.set_num_threads(1)
            os._exit(0 if (both.numpy() == native.forward(args).numpy()).all() else 1)
        assert os.waitpid(child, 0)[1] == 0
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """Path where the library is expected, without a library."""
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "_kba_native.so")
    native._library.cache_clear()
    yield tmp_path / "_kba_native.so"
    native._library.cache_clear()


def test_missing_library_is_said_once(elsewhere, caplog):
    tensors, sizes = case(1, 8, 4, 3, 32, 4, 4)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert "not built" in native.unsupported(Arguments(*tensors[:4], *sizes))
    assert native.available_isas() == ()
    assert len(caplog.records) == 1
    assert "falls back to the slower 'tiled' backend" in caplog.text


def test_info_says_why_there_is_no_library(elsewhere, capsys):
    said = "kba.c:58:36: error: 'RTLD_DEFAULT' undeclared"
    elsewhere.with_suffix(".txt").write_text(f"{said}\n")
    assert cli.main(["info"]) == 0
    assert (
        f"native: its library is not built ({said}; with a C compiler, reinstall" in capsys.readouterr().out
    )


def test_info_says_why_the_library_does_not_load(elsewhere, capsys):
    elsewhere.write_bytes(b"no library")
    assert cli.main(["info"]) == 0
    assert "native: its library does not load (" in capsys.readouterr().out


@pytest.fixture
def build(tmp_path):
    """Build a copy of the source tree in place, with a compiler that works or fails."""
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    left = shutil.ignore_patterns("*.so", "*.txt", "zoo", "__pycache__")
    shutil.copytree(ROOT / "kbnet_plugin", tmp_path / "kbnet_plugin", ignore=left)
    compiler = tmp_path / "cc"

    def run(works, **environment):
        complaint = "echo 'kba.c:58:36: error: no such luck' >&2; echo 'compilation terminated.' >&2; exit 1"
        output = 'for a; do [ "$last" = -o ] && : > "$a"; last=$a; done; exit 0'
        compiler.write_text(f"#!/bin/sh\n{output if works else complaint}\n")
        compiler.chmod(0o755)
        return subprocess.run(
            [sys.executable, "-W", "ignore", "setup.py", "-q", "build_ext", "--inplace"],
            cwd=tmp_path,
            env=os.environ | {"CC": str(compiler), "KBNET_REQUIRE_NATIVE": ""} | environment,
            capture_output=True,
            text=True,
        )

    return run


def test_a_library_that_does_not_compile_leaves_the_reason_until_it_does(build, tmp_path):
    library = tmp_path / "kbnet_plugin" / "ops" / "_kba_native.so"
    failed = build(works=False)
    assert failed.returncode == 0
    assert "compilation terminated." in failed.stderr
    assert not library.exists()
    assert library.with_suffix(".txt").read_text() == "kba.c:58:36: error: no such luck\n"
    assert build(works=True).returncode == 0
    assert library.exists()
    assert not library.with_suffix(".txt").exists()


def test_a_library_that_is_required_fails_the_build(build):
    assert build(works=False, KBNET_REQUIRE_NATIVE="1").returncode != 0
    assert build(works=True, KBNET_REQUIRE_NATIVE="1").returncode == 0


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
@pytest.mark.parametrize("source", sorted((ROOT / "kbnet_plugin/ops/csrc").glob("*.c")), ids=lambda p: p.name)
def test_the_sources_ask_for_all_that_they_use(source, tmp_path):
    # Newer glibc defines RTLD_DEFAULT for everybody, older ones (2.28, of manylinux) do not.
    older = "#include_next <dlfcn.h>\n#ifndef __USE_GNU\n#undef RTLD_DEFAULT\n#undef RTLD_NEXT\n#endif\n"
    (tmp_path / "dlfcn.h").write_text(older)
    amx = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16", "-mamx-tile", "-mamx-bf16"]
    flags = [*amx, "-mfma"] if platform.machine() == "x86_64" else []
    strict = ["-std=c11", "-Werror=implicit-function-declaration", "-fsyntax-only", f"-I{tmp_path}"]
    done = subprocess.run(["gcc", *strict, *flags, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
