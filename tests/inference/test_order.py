"""In which order tiles are restored, and how often the chunks of a lazy source are computed."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from kbnet_plugin import Restorer
from kbnet_plugin.arrays import chunks
from kbnet_plugin.arrays.axes import layout
from kbnet_plugin.arrays.chunks import keep_chunks
from kbnet_plugin.arrays.tiling import plan
from kbnet_plugin.inference import order
from kbnet_plugin.inference.choose import measure_channels

da = pytest.importorskip("dask.array")


@pytest.fixture
def restorer(lively):
    return Restorer(lively(img_channel=1), device="cpu", tile=48, halo=8, window=16)


def lazy(values, size, counts):
    """Wrap an array so that every computation of a chunk is counted."""

    def compute(block, block_info=None):
        counts[block_info[0]["chunk-location"]] += 1
        return block

    return da.from_array(values, chunks=size).map_blocks(compute, dtype=values.dtype, meta=values[:0])


@pytest.mark.parametrize("size", [(1, 100, 90), (2, 100, 90), (4, 25, 30), (1, 30, 90)])
def test_every_chunk_is_computed_once(restorer, monkeypatch, size):
    values = np.random.default_rng(0).integers(0, 255, (4, 100, 90), np.uint8)
    counts = Counter()
    monkeypatch.setattr(chunks, "KEPT", values.nbytes if size[0] == 4 else 2 * 100 * 90)
    target = np.zeros_like(values)
    for _ in restorer.restore_into(lazy(values, size, counts), target, "ZYX"):
        pass
    np.testing.assert_array_equal(target, restorer(values, "ZYX"))
    assert set(counts.values()) == {1}


def test_planes_of_chunks_too_large_to_keep_go_together(monkeypatch):
    monkeypatch.setattr(order, "KEPT", 2 * 100 * 90)
    tiles = plan((100, 90), 48, 8, 8)
    source = SimpleNamespace(shape=(8, 100, 90), dtype=np.uint8, chunks=((4, 4), (25,) * 4, (90,)))
    found = list(order.ordered(source, layout(source.shape, "ZYX", 1), tiles, 1))
    assert [step[0][0] for _, step in found[:4]] == [(0,), (1,), (2,), (3,)]
    assert all(step[0][1] == tiles[0] for _, step in found[:4])
    numbered = dict(enumerate(order.steps(layout(source.shape, "ZYX", 1), tiles, 1)))
    assert dict(found) == numbered  # a journal of another order fits


def test_the_plane_that_is_asked_for_comes_first(restorer):
    values = np.random.default_rng(0).integers(0, 255, (4, 100, 90), np.uint8)
    wanted, written = [(2,)], []

    class Target:
        shape, dtype = values.shape, values.dtype

        def __setitem__(self, key, value):
            written.append(key[0])

    for done, total in restorer.restore_into(values, Target(), "ZYX", first=lambda: wanted[0]):
        tiles = total // 4
        if done == tiles // 2:
            wanted[0] = (3,)
    assert written[0] == 2
    assert sorted(written) == sorted([*range(4)] * tiles)
    assert written.index(3) < written.index(0) < written.index(1)


def test_windows_of_kept_chunks_are_those_of_the_array():
    values = np.arange(3 * 20 * 30).reshape(3, 20, 30)
    kept = keep_chunks(da.from_array(values, chunks=((2, 1), (7, 13), (30,))))
    for key in (
        (1, slice(3, 15), slice(0, 30)),
        (slice(0, 3), slice(19, 20), 5),
        (2, slice(4, 4), slice(None)),
        (1, slice(3, 15, 2), slice(None, None, 7)),
    ):
        np.testing.assert_array_equal(kept[key], values[key])
    assert keep_chunks(values) is values
    assert keep_chunks(kept) is kept


def test_of_chunks_in_which_noise_is_measured_each_is_read_once(monkeypatch):
    read = []

    def plane(block_info):
        read.append(block_info[None]["chunk-location"][0])
        return np.random.default_rng(0).normal(500, 30, (1, 600, 600)).astype(np.uint16)

    stack = da.map_blocks(plane, chunks=((1,) * 40, (600,), (600,)), dtype=np.uint16, meta=np.empty((0,) * 3))
    monkeypatch.setattr(chunks, "KEPT", 2 * 600 * 600 * 2)
    assert measure_channels(stack, "ZYX")[0].known
    assert 1 < len(read) == len(set(read)) <= 16
