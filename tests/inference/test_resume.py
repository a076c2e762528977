"""An interrupted result continues only from the pixels that it began with, and only once at a time."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile

from kbnet_plugin import Restorer
from kbnet_plugin.inference.automatic import make_chooser
from kbnet_plugin.inference.files import restore_file, restore_files
from kbnet_plugin.inference.pairing import Job
from kbnet_plugin.io.images import open_image, working_folder

zarr = pytest.importorskip("zarr")
SHAPE = (4, 60, 70)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def restorer(lively):
    return Restorer(lively(), device="cpu", tile=48, halo=8, window=16)


def values(seed):
    return np.random.default_rng(seed).integers(0, 255, SHAPE, np.uint8)


def write(path, array):
    if path.suffix == ".tif":
        tifffile.imwrite(path, array, metadata={"axes": "ZYX"}, photometric="minisblack")
        return
    zarr_format = 2 if "2" in path.name else 3
    shutil.rmtree(path, ignore_errors=True)
    store = zarr.create_array(path, shape=SHAPE, dtype="u1", chunks=(1, 32, 32), zarr_format=zarr_format)
    store[:] = array


def interrupted(restorer, source, target, steps=5):
    begun = restore_file(restorer, source, target, axes="ZYX")
    for _ in range(steps):
        next(begun)
    begun.close()
    assert working_folder(target).exists()


@pytest.mark.parametrize("name", ["a.tif", "a2.zarr", "a3.zarr"])
@pytest.mark.parametrize("target", [Path("b.tif"), Path("b.zarr")], ids=lambda p: p.suffix)
def test_a_source_that_changed_is_never_mixed_with_what_it_was(restorer, name, target):
    source, old = Path(name), values(0)
    write(source, old)
    interrupted(restorer, source, target)
    new = old.copy()
    new[0, 5, 5] ^= 1  # one bit of a finished tile
    write(source, new)
    with pytest.raises(ValueError, match="has changed since the interruption; start over"):
        list(restore_file(restorer, source, target, axes="ZYX", resume=True))
    assert not target.exists()
    (*_, last) = restore_files(restorer, [Job(source, target)], axes="ZYX", overwrite=True)
    assert last.state == "restored"
    with open_image(target) as image:
        np.testing.assert_array_equal(image.array[:], restorer(new, "ZYX"))


@pytest.mark.parametrize("name", ["a.tif", "a2.zarr", "a3.zarr"])
def test_a_source_that_was_only_copied_or_touched_resumes(restorer, name):
    source, target, array = Path(name), Path("b.zarr"), values(0)
    write(source, array)
    interrupted(restorer, source, target)
    moved = Path(f"moved-{name}")
    if source.is_dir():
        shutil.copytree(source, moved)
    else:
        shutil.copy(source, moved)
    for path in [moved, *moved.rglob("*")]:
        os.utime(path, (1, 1))
    (*_, last) = restore_file(restorer, moved, target, axes="ZYX", resume=True)
    assert last.done == last.total
    with open_image(target) as image:
        np.testing.assert_array_equal(image.array[:], restorer(array, "ZYX"))


def test_two_at_once_are_refused_in_one_line_and_the_first_goes_on(restorer):
    source, target, array = Path("a.tif"), Path("b.zarr"), values(0)
    write(source, array)
    first = restore_file(restorer, source, target, axes="ZYX")
    next(first)
    for options in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(ValueError, match=r"b\.zarr: another process is writing this file"):
            list(restore_file(restorer, source, target, axes="ZYX", **options))
    assert len(list(first)) > 1
    with open_image(target) as image:
        np.testing.assert_array_equal(image.array[:], restorer(array, "ZYX"))
    assert not working_folder(target).exists()


def test_a_folder_in_the_place_of_an_unfinished_result_is_not_deleted(restorer):
    write(Path("a.tif"), values(0))
    mine = Path("b.zarr.partial/thesis.txt")
    mine.parent.mkdir()
    mine.write_text("years of work")
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(ValueError, match="in the way, and not an unfinished result"):
            list(restore_file(restorer, Path("a.tif"), Path("b.zarr"), axes="ZYX", **options))
    assert mine.read_text() == "years of work"


def test_the_noise_that_was_measured_for_the_choice_is_not_measured_again(monkeypatch):
    from kbnet_plugin.arrays.noise import measure_noise
    from kbnet_plugin.inference import reading

    measured = []
    monkeypatch.setattr(reading, "measure_noise", lambda *a: measured.append(1) or measure_noise(*a))
    noisy = (values(0).astype(np.uint16) + 1000)[:2]
    tifffile.imwrite("a.tif", noisy, metadata={"axes": "CYX"}, photometric="minisblack")
    (*_, last) = restore_file(make_chooser(device="cpu", strength=0.5), Path("a.tif"), Path("b.tif"))
    assert last.done == last.total
    assert len(measured) == 2  # once per channel


def test_a_run_stops_within_a_tile_and_is_resumed(restorer):
    source, target = values(0), np.zeros(SHAPE, np.uint8)

    def run(target, stopped, **options):
        return [done for done, _ in restorer.restore_into(source, target, "ZYX", stopped=stopped, **options)]

    asked = []
    tiles = len(run(np.zeros_like(target), lambda: bool(asked.append(1))))
    middle = len(asked) // 2 + 1
    asked.clear()
    done = run(target, lambda: asked.append(1) or len(asked) >= middle, journal="journal")
    assert len(asked) <= middle + 1  # hardly anything was computed after that
    assert 0 < len(done) < tiles
    assert not target[-1].any()
    run(target, None, journal="journal")
    np.testing.assert_array_equal(target, restorer(source, "ZYX"))
