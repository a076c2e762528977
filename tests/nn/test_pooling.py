"""Local pooling: means over a window, on a grid that tiles share; global where the window covers all."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kbnet_plugin.nn.layers import GlobalMean
from kbnet_plugin.nn.pooling import _LocalScale, with_local_pooling


def scale(channels=3, count=5, block=1, dtype=torch.float32):
    project = nn.Conv2d(channels, channels, 1, dtype=dtype)
    nn.init.dirac_(project.weight)
    nn.init.zeros_(project.bias)
    return _LocalScale(nn.Sequential(GlobalMean(), project), count, block)


def direct(x, size):
    """Mean of the nearest whole window, by the plain sum."""
    out = torch.empty_like(x)
    height, width = x.shape[2:]
    for y in range(height):
        for z in range(width):
            top = min(max(y - size // 2, 0), height - size)
            left = min(max(z - size // 2, 0), width - size)
            out[..., y, z] = x[..., top : top + size, left : left + size].mean((2, 3))
    return out


def test_each_pixel_takes_the_mean_of_the_nearest_whole_window():
    x = torch.rand(2, 3, 13, 9, dtype=torch.float64)
    torch.testing.assert_close(scale(count=5, dtype=torch.float64)(x), direct(x, 5))


def test_between_grid_points_means_are_interpolated():
    x = torch.rand(1, 3, 32, 40)
    out = scale(count=3, block=4)(x)
    assert out.shape == x.shape
    expected = direct(F.avg_pool2d(x, 4), 3)
    # The middle of a block is the mean of the four pixels around it.
    torch.testing.assert_close(F.avg_pool2d(out, 4)[..., 1:-1, 1:-1], _smoothed(expected)[..., 1:-1, 1:-1])


def _smoothed(means):
    return F.avg_pool2d(F.interpolate(means, scale_factor=4, mode="bilinear"), 4)


def test_one_axis_may_be_shorter_than_the_window():
    x = torch.rand(1, 3, 4, 40)
    out = scale(count=5)(x)
    assert out.shape == x.shape
    torch.testing.assert_close(out[..., 2:-2], F.avg_pool2d(x, (4, 5), stride=1).expand(-1, -1, 4, -1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow(dtype):
    x = torch.full((1, 3, 64, 64), 30000.0, dtype=dtype)
    out = scale(count=5, block=4, dtype=dtype)(x)
    torch.testing.assert_close(out, x, rtol=0.01, atol=0)


@pytest.mark.parametrize("build", ["tiny_s", "tiny_l"])
def test_a_window_over_everything_is_the_global_mean(build, request):
    network = request.getfixturevalue(build)()
    x = torch.rand(1, 3, 40, 56)
    with torch.inference_mode():
        assert torch.equal(with_local_pooling(network, 128)(x), network(x))


@pytest.mark.parametrize("build", ["tiny_s", "tiny_l"])
def test_a_network_keeps_its_global_means_and_shares_its_weights(build, request):
    network = request.getfixturevalue(build)()
    x = torch.rand(1, 3, 96, 96)
    with torch.inference_mode():
        before = network(x)
        local = with_local_pooling(network, 32)
        assert not torch.allclose(local(x), before, atol=1e-7)
        assert torch.equal(network(x), before)
    pairs = zip(network.named_parameters(), local.named_parameters(), strict=True)
    assert all(a == b and p is q for (a, p), (b, q) in pairs)
    assert local.state_dict().keys() == network.state_dict().keys()


def test_a_pixel_hardly_depends_on_what_is_far_from_it(tiny_s):
    network = tiny_s()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.rsplit(".", 1)[-1] in ("beta", "gamma"):
                parameter.fill_(0.5)
    image = torch.rand(1, 3, 64, 256)
    other = image.clone()
    other[..., 128:] = 1
    with torch.inference_mode():
        for pooled, same in ((network, False), (with_local_pooling(network, 32), True)):
            near = torch.allclose(pooled(image)[..., :64], pooled(other)[..., :64], atol=1e-6)
            assert near is same


def test_every_global_mean_is_replaced(tiny_l):
    local = with_local_pooling(tiny_l(), 32)
    blocks = [module for module in local.modules() if hasattr(module, "sca")]
    assert blocks
    assert all(isinstance(block.sca, _LocalScale) for block in blocks)


def test_a_window_below_the_grid_is_named(tiny_s):
    with pytest.raises(ValueError, match="window must be at least 4 pixels"):
        with_local_pooling(tiny_s(), 3)
