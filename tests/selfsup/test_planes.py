"""Planes of noisy stacks and folders are read window by window."""

import numpy as np
import pytest

from kbnet_plugin.io import write_image
from kbnet_plugin.selfsup.planes import Planes

WHOLE = slice(None), slice(None)


@pytest.fixture
def stack():
    return np.random.default_rng(0).integers(100, 4000, (3, 2, 20, 24)).astype(np.uint16)


def test_a_stack_reads_the_same_from_npy_tiff_and_zarr(tmp_path, stack):
    tifffile, zarr = pytest.importorskip("tifffile"), pytest.importorskip("zarr")
    np.save(tmp_path / "a.npy", stack)
    tifffile.imwrite(tmp_path / "a.ome.tif", stack, metadata={"axes": "TZYX"})
    zarr.save_array(tmp_path / "a.zarr", stack)
    window = slice(3, 9), slice(5, 20)
    for name in ("a.npy", "a.ome.tif", "a.zarr"):
        for keep in (False, True):
            planes = Planes(tmp_path / name, "TZYX", keep=keep)
            assert (len(planes), planes.channels, planes.size(0)) == (6, 1, (20, 24))
            assert np.array_equal(planes.read(3, window)[..., 0], stack[1, 1, 3:9, 5:20])


def test_a_folder_is_read_by_name_and_without_opacity(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (3, 18, 16, 4)).astype(np.uint8)
    for number, picture in enumerate(pictures):
        write_image(tmp_path / f"{number}.png", picture)
    planes = Planes(tmp_path)
    assert (len(planes), planes.channels) == (3, 3)
    assert np.array_equal(planes.read(2, WHOLE), pictures[2, ..., :3])
    assert planes.pairs() == [(0, 1), (1, 2)]


def test_pictures_that_do_not_match_are_named(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((18, 18), np.uint8))
    np.save(tmp_path / "b.npy", np.zeros((18, 18), np.uint16))
    with pytest.raises(ValueError, match=r"several dtypes \(uint16, uint8\)"):
        Planes(tmp_path)
    np.save(tmp_path / "b.npy", np.zeros((18, 18, 3), np.uint8))
    with pytest.raises(ValueError, match=r"b\.npy: .*3 channel"):
        Planes(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Planes(tmp_path / "nowhere")


def test_pickled_objects_are_not_loaded(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"a\.npy: damaged, or not a \.npy array"):
        Planes(tmp_path / "a.npy")


def test_pairs_are_successive_planes_along_the_axis(tmp_path, stack):
    alone = tmp_path / "one.npy"
    np.save(alone, np.zeros((1, 20, 20), np.uint8))
    np.save(tmp_path / "a.npy", stack)
    planes = Planes(tmp_path / "a.npy", "TZYX")
    assert planes.pairs() == [(0, 2), (1, 3), (2, 4), (3, 5)]
    assert planes.pairs("Z") == [(0, 1), (2, 3), (4, 5)]
    with pytest.raises(ValueError, match="no axis 'C'"):
        planes.pairs("C")
    with pytest.raises(ValueError, match="only one plane"):
        Planes(alone, "TYX").pairs("T")


def test_one_range_applies_to_all_planes(tmp_path, stack):
    np.save(tmp_path / "a.npy", stack)
    planes = Planes(tmp_path / "a.npy", "TZYX")
    low, high = planes.range()
    assert (low, high) == tuple(np.percentile(stack, (0.1, 99.9)))
    assert planes.range("dtype") == (0, 65535)
    assert planes.range((3.0, 7.0)) == (3, 7)
    np.save(tmp_path / "b.npy", stack.astype(np.uint8))
    assert Planes(tmp_path / "b.npy", "TZYX").range() == (0, 255)
