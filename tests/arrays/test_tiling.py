"""A plan of tiles covers the plane exactly once, with full halos, on the network's grid."""

from __future__ import annotations

import doctest
import random

import numpy as np
import pytest

from kbnet_plugin.arrays import tiling
from kbnet_plugin.arrays.tiling import plan


def test_plans_keep_their_promises_for_all_sizes():
    numbers = random.Random(0)
    for _ in range(3000):
        multiple, halo = numbers.choice([1, 2, 8, 16]), numbers.randint(0, 40)
        tile = 2 * halo + multiple + numbers.randint(0, 300)
        shape = numbers.randint(1, 1200), numbers.randint(1, 300)
        tiles = plan(shape, tile, halo, multiple)
        covered = np.zeros(shape, np.uint8)
        for t in tiles:
            covered[t.target] += 1
            for source, crop, target, length in zip(t.source, t.crop, t.target, shape, strict=True):
                assert 0 <= source.start < source.stop <= length
                assert source.stop - source.start <= tile
                assert source.start % multiple == 0
                assert (source.start + crop.start, source.start + crop.stop) == (target.start, target.stop)
                assert crop.start >= halo or source.start == 0
                assert source.stop - target.stop >= halo or source.stop == length
        assert (covered == 1).all()
        for axis in range(2):
            sizes = {t.source[axis].stop - t.source[axis].start for t in tiles}
            assert max(sizes) - min(sizes) < multiple


def test_a_plane_that_fits_is_one_tile():
    (tile,) = plan((512, 3))
    assert tile.source == tile.crop == tile.target == (slice(0, 512), slice(0, 3))


def test_no_more_tiles_than_needed_and_none_larger():
    tiles = plan((520, 520), tile=512, halo=32, multiple=16)
    assert len(tiles) == 4
    assert max(t.source[0].stop - t.source[0].start for t in tiles) < 320


@pytest.mark.parametrize(("tile", "halo"), [(64, 32), (79, 32), (128, -1), (0, 0)])
def test_an_impossible_tile_is_named(tile, halo):
    with pytest.raises(ValueError, match="halo"):
        plan((1000, 1000), tile, halo, 16)


def test_the_example_runs():
    assert doctest.testmod(tiling).failed == 0
