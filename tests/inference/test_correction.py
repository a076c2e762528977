"""What a correction leaves alone."""

from __future__ import annotations

import numpy as np
import pytest

from kbnet_plugin.inference.correction import flat


@pytest.mark.parametrize("shape", [(23, 24, 3), (24, 23, 1), (9, 7, 1), (5, 4, 3), (3, 30, 1)], ids=str)
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32], ids=lambda d: d.__name__)
def test_flat_are_the_pixels_amid_a_constant_square(shape, dtype):
    generator = np.random.default_rng(0)
    for corner in range(12):
        picture = generator.integers(0, 255, shape).astype(dtype)
        y, x = generator.integers(0, shape[0]), generator.integers(0, shape[1])
        picture[max(0, y - 6) : y + 3, max(0, x - 5) : x + 4] = 7
        if corner % 2:
            picture[-4:, -4:] = 3
        expected = [
            [np.ptp(picture[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4], (0, 1)).max() == 0]
            for y in range(shape[0])
            for x in range(shape[1])
        ]
        assert np.array_equal(flat(picture), np.reshape(expected, (*shape[:2], 1)))
