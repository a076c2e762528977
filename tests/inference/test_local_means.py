"""Means over patches: each patch goes through the network once, whatever the tiles."""

from __future__ import annotations

import numpy as np
import pytest

from kbnet_plugin import Restorer


def seen_pixels(network, work):
    """Count the pixels that the network sees in `work`; return them with its result."""
    shapes = []
    hook = network.register_forward_pre_hook(lambda _module, args: shapes.append(args[0].shape))
    result = work()
    hook.remove()
    return sum(n * height * width for n, _, height, width in shapes), result


@pytest.mark.parametrize("decorrelate", [None, (2, 5)])
def test_tiles_share_patches_and_the_estimate_counts_each_once(lively, decorrelate):
    restorer = Restorer(lively(), device="cpu", tile=96, halo=16, window=16, decorrelate=decorrelate)
    engine = restorer.engine
    image = np.random.default_rng(0).random((208, 304, 3), np.float32)
    arranged = restorer._arrange(image, "YXS")
    tiles = engine.tiles(arranged)
    alone = sum(engine.pixels(arranged, [tile]) for tile in tiles)
    expected = engine.pixels(arranged, tiles)
    assert len(tiles) > 4
    assert expected < 0.9 * alone
    found, first = seen_pixels(engine.network, lambda: restorer(image, "YXS"))
    assert found == expected
    again, second = seen_pixels(engine.network, lambda: restorer(image, "YXS"))
    assert again < found  # the patches are known
    np.testing.assert_array_equal(second, first)
    other, _ = seen_pixels(engine.network, lambda: restorer(image[::-1].copy(), "YXS"))
    assert other == expected
