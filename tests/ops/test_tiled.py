"""The tiled backend against the equation in float64, also with tiles so small that inputs need several."""

from __future__ import annotations

import itertools

import pytest
import torch

from kbnet_plugin.ops import kernel_basis_attention, tiled
from tests.ops import equation
from tests.ops.equation import assert_near, case, exact, run

TOLERANCE = equation.TOLERANCE | {torch.float64: 1e-12}
SHAPES = [  # batch, channels, channels per group, kernel, bases, height, width
    (1, 4, 1, 1, 1, 1, 1),
    (2, 64, 4, 3, 32, 9, 11),
    (1, 32, 4, 3, 32, 3, 150),
    (1, 16, 8, 5, 48, 70, 5),
    (3, 12, 2, 5, 64, 1, 6),
    (4, 6, 1, 3, 7, 6, 1),
    (5, 1024, 4, 3, 32, 4, 4),
]


@pytest.fixture(autouse=True, params=[1 << 9, 1 << 19], ids=["many tiles", "few tiles"])
def tile(request, monkeypatch):
    monkeypatch.setattr(tiled, "_CPU_TILE", request.param)
    return request.param


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_the_equation(shape, dtype):
    tensors, sizes = case(*shape, dtype=dtype)
    assert_near(run(tiled, tensors, sizes), exact(tensors, sizes), TOLERANCE)


@pytest.mark.parametrize("last", [False, True])
def test_takes_any_strides_and_keeps_the_memory_format(last):
    (x, a, w, b, grad), sizes = case(2, 16, 4, 3, 32, 7, 9)
    memory_format = torch.channels_last if last else torch.contiguous_format
    tensors = [
        x.contiguous(memory_format=memory_format),
        torch.cat([a, a], 1)[:, 32:],
        w.expand(2, -1, -1)[1:],
        torch.stack([b, b], -1)[..., 0],
        grad.mT.contiguous().mT,
    ]
    found = run(tiled, tensors, sizes)
    assert_near(found, exact(tensors, sizes))
    assert all(t.is_contiguous(memory_format=memory_format) for t in found[:2])


def test_gradients_are_the_derivative():
    tensors, sizes = case(2, 4, 2, 3, 3, 4, 3, torch.float64)
    inputs = [t.requires_grad_() for t in tensors[:4]]
    assert torch.autograd.gradcheck(
        lambda *t: kernel_basis_attention(*t, *sizes, backend="tiled"), inputs, fast_mode=False
    )


def test_computes_only_what_is_needed():
    tensors, sizes = case(2, 8, 4, 3, 5, 6, 5)
    full = run(tiled, tensors, sizes)[1:]
    for needs in itertools.product((False, True), repeat=4):
        for gradient, one, needed in zip(run(tiled, tensors, sizes, needs)[1:], full, needs, strict=True):
            assert (gradient is None) is not needed
            assert gradient is None or torch.equal(gradient, one)


@pytest.mark.parametrize(("batch", "height", "width"), [(0, 4, 4), (2, 0, 4), (2, 4, 0)])
def test_nothing_in_nothing_out(batch, height, width):
    tensors, sizes = case(batch, 8, 4, 3, 5, height, width)
    out, dx, da, dw, db = run(tiled, tensors, sizes)
    assert (out.shape, dx.shape, da.shape) == (tensors[0].shape, tensors[0].shape, tensors[1].shape)
    assert not dw.any()
    assert not db.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("huge", [0, 1, 2, 4], ids=["x", "coefficients", "weight", "gradient"])
def test_large_finite_inputs_stay_finite(huge, dtype):
    tensors, sizes = case(1, 16, 4, 3, 32, 6, 6, dtype=dtype)
    small = [t * 1e-4 for t in tensors]
    small[huge] = tensors[huge] / tensors[huge].abs().max() * torch.finfo(dtype).max
    found = run(tiled, small, sizes)
    assert all(t.isfinite().all() for t in found)
    assert_near(found, exact(small, sizes))


def test_runs_twice_to_the_same_bits_and_threads_change_only_rounding():
    tensors, sizes = case(1, 64, 4, 3, 32, 33, 40)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        first, second = run(tiled, tensors, sizes), run(tiled, tensors, sizes)
        torch.set_num_threads(1)
        alone = run(tiled, tensors, sizes)
    finally:
        torch.set_num_threads(before)
    for f, s, a in zip(first, second, alone, strict=True):
        assert torch.equal(f, s)
        assert (f - a).abs().max() <= 1e-5 * a.abs().max()


def test_no_tile_outgrows_its_budget(tile):
    for shape in [(1, 64, 256, 256), (8, 512, 16, 16), (1, 64, 4, 9000), (1, 3, 2000, 3)]:
        for t in tiled._tiles(torch.empty(1).expand(shape), 3):
            pixels = torch.Size([s.stop - s.start for s in (t.images, t.rows, t.columns)]).numel()
            assert pixels <= max(tile // shape[1], 1)


def test_autocast_does_not_reach_inside():
    tensors, sizes = case(1, 16, 4, 3, 32, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(tiled, tensors, sizes)
    assert_near(found, exact(tensors, sizes))
