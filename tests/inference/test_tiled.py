"""Any network in tiles gives what it gives at once, where its context suffices."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kbnet_plugin.inference.tiled import run_tiled


def blur(image):
    return F.avg_pool2d(image, 5, stride=1, padding=2, count_include_pad=False)


@pytest.mark.parametrize("tile", [None, 0, 200, 64, 48])
def test_tiles_do_not_change_the_result(tile):
    image = torch.rand(2, 3, 100, 130, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(run_tiled(blur, image, tile, halo=8, multiple=4), blur(image), atol=1e-6)


def test_the_output_may_be_larger_and_have_other_channels():
    image = torch.rand(1, 3, 50, 70, generator=torch.Generator().manual_seed(0))

    def enlarge(x):
        return F.interpolate(x[:, :1], scale_factor=2, mode="nearest")

    assert torch.equal(run_tiled(enlarge, image, 32, halo=4, multiple=2, scale=2), enlarge(image))


def test_a_tile_without_an_inside_is_refused():
    with pytest.raises(ValueError, match="tile must exceed twice the halo"):
        run_tiled(blur, torch.zeros(1, 1, 100, 100), 16, halo=8)
