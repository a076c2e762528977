"""Arrays on disk, and the levels of pyramids."""

from __future__ import annotations

import numpy as np
import pytest

from kbnet_plugin.io.disk_arrays import RawArray
from kbnet_plugin.io.pyramid import half_shape, halve


def halved(array, axes):
    level = np.zeros(half_shape(array.shape, axes), array.dtype)
    halve(array, level, axes)
    return level


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.int8, np.float16, np.float64])
def test_a_mean_of_equal_values_is_that_value(dtype):
    limits = np.finfo(dtype) if np.dtype(dtype).kind == "f" else np.iinfo(dtype)
    for value in (limits.min, limits.max // 2 + 1, limits.max - (np.dtype(dtype).kind != "f")):
        level = halved(np.full((5, 3), value, dtype), "YX")
        if dtype != np.float64:  # whose sums are infinite
            np.testing.assert_array_equal(level, np.full((3, 2), value, dtype))


@pytest.mark.parametrize("dtype", [np.int64, np.int32])
def test_means_of_whole_numbers_are_rounded(dtype):
    array = np.array([[1, 2, -1, -2], [2, 2, -2, -2]], dtype)
    np.testing.assert_array_equal(halved(array, "YX"), np.array([[2, -2]], dtype))


def test_infinite_values_stay_without_a_warning():
    array = np.array([[np.inf, 0, np.inf, -np.inf], [1, 2, np.nan, 3]], np.float32)
    np.testing.assert_array_equal(halved(array, "YX"), np.array([[np.inf, np.nan]], np.float32))


@pytest.mark.parametrize("axes", ["YXS", "SYX"])
def test_odd_sides_repeat_their_last_pixels(axes):
    array = np.arange(5 * 3, dtype=np.uint8).reshape(5, 3) * 4
    colours = np.stack([array, array + 1], axis=axes.index("S") if axes[0] == "S" else 2)
    level = halved(colours, axes)
    first = level[0] if axes[0] == "S" else level[..., 0]
    np.testing.assert_array_equal(first, [[8, 14], [32, 38], [50, 56]])


def test_a_write_that_is_cut_short_raises(tmp_path):
    resource = pytest.importorskip("resource")
    raw = RawArray(tmp_path / "raw", (100, 1000), np.dtype(np.uint8))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))  # writes beyond it fail as on a full disk
    try:
        with pytest.raises(OSError, match="too large"):
            raw[0:100, 0:1000] = np.ones((100, 1000), np.uint8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
