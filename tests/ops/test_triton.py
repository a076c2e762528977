"""The Triton backend against the equation in float64: on a GPU, or in Triton's interpreter.

Triton reads TRITON_INTERPRET on import, so without a GPU this module runs itself in another process.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from kbnet_plugin.ops import kernel_basis_attention
from kbnet_plugin.ops import triton as backend
from kbnet_plugin.ops.backend import Arguments
from tests.ops import equation
from tests.ops.equation import TOLERANCE, assert_near, exact, run

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
case = partial(equation.case, device=DEVICE)
SHAPES = [  # batch, channels, channels per group, kernel, bases, height, width
    (1, 4, 1, 1, 1, 1, 1),
    (2, 8, 4, 3, 32, 3, 7),
    (1, 72, 2, 3, 32, 4, 3),  # more channels than a block, and no multiple of it
    (1, 24, 8, 3, 5, 1, 6),
    (3, 4, 2, 5, 64, 2, 1),
]

have_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
runs = pytest.mark.skipif(
    not INTERPRETED and DEVICE == "cpu", reason="no GPU here: test_under_the_interpreter runs this"
)
compiles = pytest.mark.skipif(INTERPRETED, reason="the interpreter does not compile")


@have_triton
@pytest.mark.skipif(INTERPRETED or DEVICE == "cuda", reason="runs directly")
def test_under_the_interpreter():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert " passed" in done.stdout


@runs
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_the_equation(shape, dtype):
    tensors, sizes = case(*shape, dtype=dtype)
    assert backend.unsupported(Arguments(*tensors[:4], *sizes)) is None
    assert_near(run(backend, tensors, sizes), exact(tensors, sizes))


@runs
def test_takes_any_strides():
    (x, a, w, b, grad), sizes = case(2, 8, 4, 3, 16, 3, 4)
    tensors = [
        x.contiguous(memory_format=torch.channels_last),
        torch.cat([a, a], 1)[:, 16:],
        w.expand(2, -1, -1)[1:],
        torch.stack([b, b], -1)[..., 0],
        grad.mT.contiguous().mT,
    ]
    assert_near(run(backend, tensors, sizes), exact(tensors, sizes))


@runs
def test_computes_only_what_is_needed():
    tensors, sizes = case(1, 8, 4, 3, 5, 3, 4)
    full = run(backend, tensors, sizes)[1:]
    for needs in itertools.product((False, True), repeat=4):
        for gradient, one, needed in zip(run(backend, tensors, sizes, needs)[1:], full, needs, strict=True):
            assert (gradient is None) is not needed
            assert gradient is None or (gradient - one).abs().max() <= 1e-5 * one.abs().max()


@runs
def test_gradients_flow_through_the_public_operator():
    (*inputs, grad), sizes = case(1, 8, 2, 3, 16, 4, 3)
    inputs = [t.requires_grad_() for t in inputs]
    found = kernel_basis_attention(*inputs, *sizes, backend="triton")
    gradients = torch.autograd.grad(found, inputs, grad)
    assert_near([found.detach(), *gradients], exact([t.detach() for t in (*inputs, grad)], sizes))


@runs
def test_blocks_chosen_by_time_change_only_rounding(monkeypatch):
    from kbnet_plugin.ops import _triton_kernels as kernels

    monkeypatch.setattr(kernels, "_WORTH_TUNING", 0)
    tensors, sizes = case(1, 8, 4, 3, 5, 3, 4)
    assert_near(run(backend, tensors, sizes), exact(tensors, sizes))


@runs
def test_runs_twice_to_the_same_bits():
    tensors, sizes = case(2, 16, 4, 3, 32, 5, 5, dtype=torch.bfloat16)
    run(backend, tensors, sizes)  # on a GPU the first call chooses block sizes
    for f, s in zip(run(backend, tensors, sizes), run(backend, tensors, sizes), strict=True):
        assert torch.equal(f, s)


@runs
@pytest.mark.parametrize(("batch", "height", "width"), [(0, 4, 4), (2, 0, 4), (2, 4, 0)])
def test_nothing_in_nothing_out(batch, height, width):
    tensors, sizes = case(batch, 8, 4, 3, 5, height, width)
    out, dx, da, dw, db = run(backend, tensors, sizes)
    assert (out.shape, dx.shape, da.shape) == (tensors[0].shape, tensors[0].shape, tensors[1].shape)
    assert not dw.any()
    assert not db.any()


@runs
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_finite_inputs_stay_finite(dtype):
    tensors, sizes = case(1, 8, 4, 3, 32, 3, 4, dtype=dtype)
    for huge in (0, 1, 2, 4):
        small = [t * 1e-4 for t in tensors]
        small[huge] = tensors[huge] / tensors[huge].abs().max() * torch.finfo(dtype).max
        found = run(backend, small, sizes)
        assert all(t.isfinite().all() for t in found)
        assert_near(found, exact(small, sizes))


@runs
def test_products_beyond_float16_do_not_overflow():
    tensors, sizes = case(1, 8, 4, 3, 32, 3, 4, dtype=torch.float16)
    scaled = [t * s for t, s in zip(tensors, (300, 1e-3, 1e-3, 1e-3, 300), strict=True)]
    assert (scaled[0].double() * scaled[4].double()).max() > torch.finfo(torch.float16).max
    assert_near(run(backend, scaled, sizes), exact(scaled, sizes))


@runs
def test_tf32_follows_torch(monkeypatch):
    tensors, _ = case(1, 8, 4, 3, 5, 3, 4)
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        assert backend._precision(tensors[0]) == "tf32"
        matmul.fp32_precision = "ieee"
        assert backend._precision(tensors[0]) == "tf32x3"
    finally:
        matmul.fp32_precision = before


@have_triton
@compiles
@pytest.mark.parametrize(("dtype", "per_group"), [("bf16", 4), ("fp32", 2), ("fp16", 4)])
@pytest.mark.parametrize("kernel", ["forward", "input", "mix", "basis"])
@pytest.mark.parametrize(("architecture", "shared"), [(80, 163 * 1024), (90, 227 * 1024)])
def test_compiles_to_tensor_core_code_without_a_gpu(
    architecture, shared, kernel, dtype, per_group, monkeypatch, tmp_path
):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from kbnet_plugin.ops import _triton_kernels as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    tuned = {"mix": kernels.mix_gradient, "basis": kernels.basis_gradient}.get(kernel, kernels.convolve)
    config = tuned.configs[0]
    constants = {
        "GROUPS": 36,
        "PER_GROUP": per_group,
        "BASES": 32,
        "BLOCK_N": 32,
        "KERNEL": 3,
        "BACKWARD": kernel == "input",
        "PRECISION": "tf32x3" if dtype == "fp32" else "tf32",
        **config.kwargs,
    }
    names = tuned.fn.arg_names
    pointers = {"x", "grad", "mix", "layers", "bias", "out"}

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        return "*fp32" if name == "partial" else f"*{dtype}" if name in pointers else "i32"

    source = ASTSource(
        tuned.fn,
        {name: kind(name) for name in names},
        {name: constants[name] for name in names if name in constants},
        {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if kind(name).startswith("*")},
    )
    done = triton.compile(
        source,
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": config.num_warps, "num_stages": config.num_stages},
    )
    assert done.metadata.shared <= shared
    assert "mma.sync" in done.asm["ptx"] or "wgmma.mma_async" in done.asm["ptx"]


@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes CPU tensors")
@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((1, 8, 4, 3, 8, 4, 4), torch.float64, "no kernels for float64"),
        ((1, 6, 3, 3, 8, 4, 4), torch.float32, "channels per group"),
        ((1, 8, 4, 3, 65, 4, 4), torch.float32, "more than 64 bases"),
    ],
)
@have_triton
def test_says_what_it_cannot_do(shape, dtype, reason):
    tensors, sizes = case(*shape, dtype=dtype)
    assert reason in backend.unsupported(Arguments(*tensors[:4], *sizes))


@have_triton
@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes CPU tensors")
def test_needs_a_gpu_unless_interpreted():
    tensors, sizes = case(1, 8, 4, 3, 8, 4, 4)
    assert "NVIDIA GPU" in backend.unsupported(Arguments(*(t.cpu() for t in tensors[:4]), *sizes))


def test_says_when_triton_is_missing(monkeypatch):
    tensors, sizes = case(1, 8, 4, 3, 8, 4, 4)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert backend.unsupported(Arguments(*tensors[:4], *sizes)) == "Triton is not installed"
