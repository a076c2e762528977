"""Growing results: what is displayed of them, and how much is read for it."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import zarr

from kbnet_plugin.arrays.axes import layout
from napari_kbnet.growing import Growing, View


class Counting:
    """A virtual stack that counts the pixels that are read of it."""

    def __init__(self, shape, value):
        self.shape, self.dtype, self.ndim = shape, np.dtype(np.uint16), len(shape)
        self.value, self.read = np.uint16(value), 0

    def __getitem__(self, key):
        key = key if isinstance(key, tuple) else (key,)
        kept = [len(range(n)[k]) for n, k in zip(self.shape, key, strict=True) if isinstance(k, slice)]
        self.read += int(np.prod(kept))
        return np.broadcast_to(self.value, kept)

    def __setitem__(self, key, value):
        pass


def test_little_more_than_a_plane_is_read_to_display_one(qtbot, viewer):
    shape = 200, 7000, 7000
    source, target = Counting(shape, 7), Counting(shape, 1)
    growing = Growing(target, layout(shape, "ZYX", 1), source)
    growing[50, slice(0, 3000), slice(0, 7000)] = np.ones((3000, 7000), np.uint16)
    source.read = target.read = 0
    layer = viewer.add_image(growing.shown, contrast_limits=(0, 10), multiscale=True)
    viewer.dims.set_current_step(0, 50)
    qtbot.wait(200)
    assert layer.get_value((50, 5000, 100)) == (1, 7)  # unfinished, in the overview
    assert layer.get_value((50, 100, 100)) == (1, 1)
    viewer.scene.camera.zoom *= 20
    qtbot.wait(200)
    assert 0 < source.read + target.read < 7000 * 7000  # two planes were displayed, of 200


def test_a_plane_that_was_prepared_is_not_read_to_display_it():
    source, target = Counting((3, 5000, 5000), 7), Counting((3, 5000, 5000), 1)
    growing = Growing(target, layout(source.shape, "ZYX", 1), source)
    growing.prepare((1,))
    before = source.read
    assert before > 0
    assert (np.asarray(growing.shown[1][:, :100, :100][1]) == 7).all()
    assert source.read == before


@pytest.mark.parametrize("axes", ["ZYX", "YXS", "CZYX", "XYZ"])
def test_unfinished_parts_show_the_source(noise, axes):
    sizes = {"Z": 3, "C": 2, "S": 3, "Y": 50, "X": 70}
    shape = tuple(sizes[a] for a in axes)
    arranged = layout(shape, axes, 3 if "S" in axes else 1)
    source = noise(*shape)
    growing = Growing(zarr.create_array({}, shape=shape, dtype=np.uint8), arranged, da.from_array(source))
    expected = source.copy()
    windows = [(slice(0, 20), slice(0, 70)), (slice(20, 50), slice(30, 70)), (slice(20, 50), slice(0, 30))]
    for number, plane in enumerate(arranged.planes()):
        for window in windows[: 3 - number % 3]:
            key = arranged.key(plane, window)
            expected[key] = 255 - source[key]
            growing[key] = expected[key]
    view = View(growing)
    np.testing.assert_array_equal(np.asarray(view), expected)
    y, x = axes.index("Y"), axes.index("X")
    cut = [slice(None)] * len(axes)
    cut[y], cut[x] = slice(7, 45, 3), slice(11, 66, 2)
    np.testing.assert_array_equal(np.asarray(view[tuple(cut)]), expected[tuple(cut)])
    np.testing.assert_array_equal(np.asarray(view[tuple(cut)][1]), expected[tuple(cut)][1])
    cut[y] = 30
    np.testing.assert_array_equal(np.asarray(view[tuple(cut)]), expected[tuple(cut)])


def test_wide_planes_have_an_overview(noise):
    shape = 2, 5000, 300
    array = zarr.create_array({}, shape=shape, chunks=(1, 512, 300), dtype=np.uint8)
    source, values = noise(*shape), noise(*shape)[::-1]
    growing = Growing(array, layout(shape, "ZYX", 1), source)
    full, small = growing.shown
    for y in range(0, 5000, 777):
        if y == 2 * 777:
            np.testing.assert_array_equal(small[0, :518], values[0, :1554:3, ::3])
            np.testing.assert_array_equal(small[0, 518:], source[0, 1554::3, ::3])
        growing[0, slice(y, y + 777), slice(0, 300)] = values[0, y : y + 777]
    np.testing.assert_array_equal(np.asarray(full[0]), values[0])
    np.testing.assert_array_equal(small[0], values[0, ::3, ::3])
    np.testing.assert_array_equal(small[1], source[1, ::3, ::3])
