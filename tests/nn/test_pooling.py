"""Local pooling: means over patches on a grid that starts at the picture's origin, whatever the tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kbnet_plugin import Restorer
from kbnet_plugin.nn.pooling import (
    Grid,
    _ReplaceableMean,
    record_means,
    replace_means,
    with_replaceable_means,
)


@pytest.mark.parametrize("build", ["tiny_s", "tiny_l"])
def test_the_copy_computes_what_the_network_does_and_shares_its_weights(build, request):
    network = request.getfixturevalue(build)()
    copied = with_replaceable_means(network)
    x = torch.rand(1, 3, 40, 56)
    with torch.inference_mode():
        assert torch.equal(copied(x), network(x))
        with record_means() as means:
            recorded = copied(x)
    assert torch.equal(recorded, network(x))
    pools = [module for module in copied.modules() if isinstance(module, _ReplaceableMean)]
    assert sorted(means) == sorted(pool.number for pool in pools) == list(range(len(pools)))
    blocks = [module for module in copied.modules() if hasattr(module, "sca")]
    assert len(blocks) == len(pools) > 0
    pairs = zip(network.named_parameters(), copied.named_parameters(), strict=True)
    assert all(a == b and p is q for (a, p), (b, q) in pairs)
    assert copied.state_dict().keys() == network.state_dict().keys()


@pytest.mark.parametrize("width", [8, 16])  # on a CPU, blocks of 16 channels run in C
@pytest.mark.parametrize("size", [(40, 56), (37, 51)])
def test_replacing_means_by_themselves_changes_nothing(lively, size, width):
    copied = with_replaceable_means(lively(width=width, lightweight=True))
    x = torch.rand(2, 3, *size)
    with torch.inference_mode():
        with record_means() as means:
            own = copied(x)
        spread = [means[number].expand(-1, -1, 10, 14) for number in range(len(means))]
        with replace_means(spread):
            torch.testing.assert_close(copied(x), own)
        with replace_means([mean + 1 for mean in spread]):
            assert not torch.allclose(copied(x), own, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow(tiny_s, dtype):
    modules = with_replaceable_means(tiny_s()).modules()
    pool = next(m for m in modules if isinstance(m, _ReplaceableMean)).to(dtype)
    torch.nn.init.dirac_(pool[1].weight)
    torch.nn.init.zeros_(pool[1].bias)
    x = torch.full((1, pool[1].in_channels, 64, 64), 30000.0, dtype=dtype)
    torch.testing.assert_close(pool(x), x[..., :1, :1], rtol=0.01, atol=0)
    with record_means() as means:
        pool(x)
    assert means[pool.number].dtype == torch.float32


def test_the_grid_begins_with_the_picture_and_needs_no_more_than_its_margin():
    grid = Grid(64)
    everything = grid.patches(0, 1000, (0, 1000))
    assert everything == [(at, at + 64) for at in range(32, 937, 128)]
    for start in range(0, 1000, 16):
        for stop in range(start + 1, 1001, 37):
            known = max(0, start - grid.margin), min(1000, stop + grid.margin)
            patches = grid.patches(*known, (start, stop))
            assert set(patches) <= set(everything)
            at = np.arange(start, stop)
            centres = [sum(p) / 2 for p in everything]
            for values in (np.array(centres), np.cos(centres)):
                chosen = [values[everything.index(p)] for p in patches]
                near = np.interp(at + 0.5, [sum(p) / 2 for p in patches], chosen)
                np.testing.assert_allclose(near, np.interp(at + 0.5, centres, values))


def test_a_picture_too_small_for_a_patch_is_one():
    assert Grid(64).patches(0, 95, (0, 95)) == [(0, 95)]
    assert Grid(64).patches(0, 96, (0, 96)) == [(32, 96)]


def test_weights_interpolate_between_the_centres_of_patches():
    grid = Grid(4)
    weights = grid.weights([(2, 6), (10, 14), (18, 22)], start=0, count=12, cell=2)
    torch.testing.assert_close(weights.sum(1), torch.ones(12))
    centres = torch.tensor([4.0, 12.0, 20.0])
    expected = (torch.arange(12) + 0.5) * 2
    torch.testing.assert_close(weights @ centres, expected.clip(4, 20))


def test_a_pixel_does_not_depend_on_what_is_far_from_it(lively):
    image = np.random.default_rng(0).random((64, 512, 3)).astype(np.float32)
    other = image.copy()
    other[:, 256:] = 1
    for pooling, same in (("global", False), ("local", True)):
        restorer = Restorer(lively(), device="cpu", pooling=pooling, window=32, range=(0, 1), tile=512)
        near = np.allclose(restorer(image)[:, :128], restorer(other)[:, :128], atol=1e-6)
        assert near is same


def test_a_picture_smaller_than_a_window_is_restored_as_with_global_means(lively):
    image = np.random.default_rng(0).random((60, 90, 3)).astype(np.float32)
    local, whole = (Restorer(lively(), device="cpu", pooling=pooling) for pooling in ("local", "global"))
    assert np.array_equal(local(image), whole(image))


@pytest.mark.parametrize("ensemble", [False, True])
def test_gray_networks_keep_the_means_of_every_colour_apart(lively, ensemble):
    image = np.random.default_rng(0).random((90, 130, 3)).astype(np.float32)
    image[..., 1] *= 0.1
    settings = {"device": "cpu", "window": 16, "range": (0, 1), "self_ensemble": ensemble}
    restorer = Restorer(lively(img_channel=1), **settings)
    together = restorer(image, "YXS")
    for colour in range(3):
        np.testing.assert_allclose(
            together[..., colour], restorer(image[..., colour].copy(), "YX"), atol=1e-5
        )


def test_a_window_below_the_network_s_multiple_is_named(tiny_s):
    with pytest.raises(ValueError, match="window must be at least 4 pixels"):
        Restorer(tiny_s(), device="cpu", window=3)
