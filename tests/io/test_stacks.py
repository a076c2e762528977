"""Stacks keep axes, sizes and names from file to file, and resume where they were interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

import kbnet_plugin
from kbnet_plugin import Restorer
from kbnet_plugin.cli import main
from kbnet_plugin.inference import files
from kbnet_plugin.inference.engine import Engine
from kbnet_plugin.inference.files import restore_file
from kbnet_plugin.io import open_image
from kbnet_plugin.io.disk_arrays import RawArray
from kbnet_plugin.io.images import grow, working_folder
from kbnet_plugin.io.metadata import Frame, Metadata
from kbnet_plugin.io.ome_zarr import open_levels

zarr = pytest.importorskip("zarr")

SIZES = {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 2.0, "TimeIncrement": 3.0}
UNITS = {f"{name}Unit": "s" if name == "TimeIncrement" else "µm" for name in SIZES}
NAMES = ["DAPI", "GFP"]
EXPECTED = {"T": (3.0, "second"), "Z": (2.0, "micrometer")}
EXPECTED |= {"Y": (0.5, "micrometer"), "X": (0.25, "micrometer")}
ZARR_EXPECTED = {"t": (3.0, "second"), "c": (1.0, None), "z": (2.0, "micrometer")}
ZARR_EXPECTED |= {"y": (0.5, "micrometer"), "x": (0.25, "micrometer")}


@pytest.fixture
def restorer(lively):
    return Restorer(lively(), device="cpu", tile=48, halo=8, window=16)


def values(shape, dtype=np.uint16, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype)


def ome_tiff(path, array, axes="TZCYX", names=NAMES, **options):
    metadata = {"axes": axes, **SIZES, **UNITS}
    tifffile.imwrite(path, array, ome=True, metadata=metadata | {"Channel": {"Name": names}}, **options)


def ome_zarr(path, array, zarr_format=3, axes="tczyx", levels=2):
    group = zarr.create_group(path, zarr_format=zarr_format)
    separator = {} if zarr_format == 3 else {"chunk_key_encoding": {"name": "v2", "separator": "/"}}
    datasets = []
    for n in range(levels):
        level = array[..., :: 2**n, :: 2**n]
        chunks = (1,) * (level.ndim - 2) + (32, 32)
        group.create_array(f"s{n}", data=level, chunks=chunks, **separator)
        scale = [ZARR_EXPECTED[a][0] * (2**n if a in "yx" else 1) for a in axes]
        datasets.append({"path": f"s{n}", "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    kinds = {"t": "time", "c": "channel"}
    entries = [
        {"name": a, "type": kinds.get(a, "space")} | ({"unit": u} if (u := ZARR_EXPECTED[a][1]) else {})
        for a in axes
    ]
    image = {"name": "cells", "axes": entries, "datasets": datasets}
    window = {"min": 0, "max": 65535, "start": 0, "end": 4095}
    omero = {"channels": [{"label": n, "color": "00FF00", "window": window} for n in NAMES]}
    if zarr_format == 3:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [image], "omero": omero}
    else:
        group.attrs["multiscales"] = [image | {"version": "0.4"}]
        group.attrs["omero"] = omero
    group.attrs["experiment"] = "seven"


def run(restorer, source, target, **options):
    steps = restore_file(restorer, Path(source), Path(target), **options)
    return [(step.done, step.total) for step in steps]


@contextmanager
def opened(path):
    with open_image(path) as image:
        yield image.array, image.metadata


@contextmanager
def grown(target, axes, shape, dtype, **metadata):
    with grow(target, [Frame(shape, dtype, Metadata(axes, **metadata))]) as (growing,):
        yield growing


def content(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def test_ome_tiff_keeps_axes_sizes_and_names(restorer, tmp_path):
    array = values((2, 3, 2, 60, 70))
    ome_tiff(tmp_path / "a.ome.tif", array)
    run(restorer, tmp_path / "a.ome.tif", tmp_path / "b.ome.tif")
    with tifffile.TiffFile(tmp_path / "b.ome.tif") as tiff:
        assert tiff.series[0].axes == "TZCYX"
        assert not tiff.pages.first.is_tiled  # so that stock ImageJ opens it
        assert np.array_equal(tiff.asarray(), restorer(array, "TZCYX"))
    with opened(tmp_path / "b.ome.tif") as (_, info):
        assert (dict(info.sizes), list(info.channels)) == (EXPECTED, NAMES)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ome.tif", "b.ome.tif"]


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_ome_zarr_keeps_format_axes_sizes_names_and_the_rest(restorer, tmp_path, zarr_format):
    array = values((1, 2, 2, 60, 70))
    ome_zarr(tmp_path / "a.zarr", array, zarr_format)
    run(restorer, tmp_path / "a.zarr", tmp_path / "b.zarr")
    group = zarr.open_group(tmp_path / "b.zarr", mode="r")
    assert group["0"].metadata.zarr_format == zarr_format
    assert group["0"].chunks == (1, 1, 1, 32, 32)
    expected = restorer(array, "TCZYX")
    assert np.array_equal(group["0"][:], expected)
    below = expected.astype(float).reshape(1, 2, 2, 30, 2, 35, 2).mean((4, 6))
    assert np.abs(group["1"][:] - below).max() <= 0.5
    old, new = (dict(zarr.open_group(tmp_path / n, mode="r").attrs) for n in ("a.zarr", "b.zarr"))
    assert new["experiment"] == "seven"
    old, new = old.get("ome", old), new.get("ome", new)
    assert new["omero"] == old["omero"]
    image = new["multiscales"][0]
    assert image["name"] == "cells"
    assert image["axes"] == old["multiscales"][0]["axes"]
    for found, before in zip(image["datasets"], old["multiscales"][0]["datasets"], strict=True):
        assert found["coordinateTransformations"][0] == before["coordinateTransformations"][0]


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_every_level_has_the_position_of_its_pixels(restorer, tmp_path, zarr_format):
    pytest.importorskip("ome_zarr")
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    ome_zarr(tmp_path / "a.zarr", values((1, 2, 2, 60, 70)), zarr_format, levels=3)
    group = zarr.open_group(tmp_path / "a.zarr")
    attributes = dict(group.attrs)
    image = attributes.get("ome", attributes)["multiscales"][0]
    image["datasets"][0]["coordinateTransformations"].append(
        {"type": "translation", "translation": [6.0, 0.0, 10.0, 100.0, -40.0]}
    )
    image["coordinateTransformations"] = [  # of the group, after those of its datasets
        {"type": "scale", "scale": [1.0, 1.0, 1.0, 2.0, 2.0]},
        {"type": "translation", "translation": [0.0, 0.0, 1.0, 0.0, 7.0]},
    ]
    group.attrs.put(attributes)
    run(restorer, tmp_path / "a.zarr", tmp_path / "b.zarr")
    (node,) = list(Reader(parse_url(tmp_path / "b.zarr"))())
    assert node.metadata["coordinateTransformations"] == [
        [
            {"type": "scale", "scale": [3.0, 1.0, 2.0, 1.0 * f, 0.5 * f]},
            # A mean of f x f pixels lies between them: (f - 1) / 2 of the pixels below the first one.
            {"type": "translation", "translation": [6.0, 0.0, 11.0, 200 + (f - 1) / 2, -73 + (f - 1) / 4]},
        ]
        for f in (1, 2, 4)
    ]
    with opened(tmp_path / "b.zarr") as (_, info):
        assert dict(info.offsets) == {"T": 6, "C": 0, "Z": 11, "Y": 200, "X": -73}
    group = zarr.open_group(tmp_path / "b.zarr", mode="r")
    assert "coordinateTransformations" not in dict(group.attrs).get("ome", group.attrs)["multiscales"][0]


def test_a_stack_without_offsets_gets_none_but_those_of_its_levels(tmp_path):
    with grown(tmp_path / "a.zarr", "TYX", (2, 300, 200), np.dtype(np.uint8), sizes=EXPECTED):
        pass
    (image,) = zarr.open_group(tmp_path / "a.zarr", mode="r").attrs["ome"]["multiscales"]
    full, half = (dataset["coordinateTransformations"] for dataset in image["datasets"])
    assert full == [{"type": "scale", "scale": [3.0, 0.5, 0.25]}]
    assert half[1] == {"type": "translation", "translation": [0.0, 0.25, 0.125]}


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_other_readers_open_what_is_written(restorer, tmp_path, zarr_format):
    pytest.importorskip("ome_zarr")
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    ome_zarr(tmp_path / "a.zarr", values((1, 2, 2, 40, 50)), zarr_format)
    run(restorer, tmp_path / "a.zarr", tmp_path / "b.zarr")
    (node,) = list(Reader(parse_url(tmp_path / "b.zarr"))())
    assert [a["name"] for a in node.metadata["axes"]] == list("tczyx")
    assert node.metadata["channel_names"] == NAMES
    assert node.metadata["coordinateTransformations"][0][0]["scale"] == [3.0, 1.0, 2.0, 0.5, 0.25]
    assert [level.shape for level in node.data] == [(1, 2, 2, 40, 50), (1, 2, 2, 20, 25)]
    assert np.array_equal(node.data[0].compute(), zarr.open_group(tmp_path / "b.zarr", mode="r")["0"][:])


def test_tiff_and_zarr_convert_into_each_other_with_shared_metadata(restorer, tmp_path):
    array = values((2, 3, 2, 40, 50))
    ome_tiff(tmp_path / "a.ome.tif", array)
    run(restorer, tmp_path / "a.ome.tif", tmp_path / "b.zarr")
    expected = restorer(array, "TZCYX")
    with opened(tmp_path / "b.zarr") as (stored, info):
        assert info.axes == "TCZYX"
        assert list(info.channels) == NAMES
        assert {a: s for a, (s, _) in info.sizes.items()} == {"C": 1.0} | {
            a: s for a, (s, _) in EXPECTED.items()
        }
        assert np.array_equal(stored[:], expected.transpose(0, 2, 1, 3, 4))
    still = Restorer(restorer.engine.network, device="cpu", pooling="global", strength=0)
    run(still, tmp_path / "b.zarr", tmp_path / "c.ome.tif")
    with opened(tmp_path / "c.ome.tif") as (stored, info):
        assert (dict(info.sizes), list(info.channels)) == (EXPECTED, NAMES)
        assert np.array_equal(stored[:], expected.transpose(0, 2, 1, 3, 4))


def test_colours_go_into_zarr_as_channels(restorer, tmp_path):
    array = values((3, 40, 50, 3), np.uint8)
    ome_tiff(tmp_path / "a.ome.tif", array, "ZYXS", photometric="rgb", names=None)
    run(restorer, tmp_path / "a.ome.tif", tmp_path / "b.zarr")
    with opened(tmp_path / "b.zarr") as (stored, info):
        assert info.axes == "CZYX"
        assert np.array_equal(stored[:], restorer(array, "ZYXS").transpose(3, 0, 1, 2))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64, bool])
def test_every_dtype_goes_through_tiff(restorer, tmp_path, dtype):
    array = (
        (values((2, 40, 50), np.uint8) / 255 * 100).astype(dtype)
        if dtype is not bool
        else values((2, 40, 50)) > 9999
    )
    tifffile.imwrite(tmp_path / "a.tif", array, metadata={"axes": "ZYX"}, photometric="minisblack")
    run(restorer, tmp_path / "a.tif", tmp_path / "b.tif")
    found = tifffile.imread(tmp_path / "b.tif")
    if dtype is bool:  # as in pictures: gray of 0 and 255
        array, dtype = array * np.uint8(255), np.uint8
    assert found.dtype == dtype
    assert np.array_equal(found, restorer(array, "ZYX"))


def test_imagej_sizes_are_kept(restorer, tmp_path):
    metadata = {"axes": "TZYX", "spacing": 2.0, "unit": "um", "finterval": 3.0}
    array = values((2, 3, 40, 50))
    tifffile.imwrite(tmp_path / "a.tif", array, imagej=True, metadata=metadata, resolution=(4, 2))
    run(restorer, tmp_path / "a.tif", tmp_path / "b.tif")
    with opened(tmp_path / "b.tif") as (stored, info):
        assert info.axes == "TZYX"
        assert dict(info.sizes) == EXPECTED
        assert np.array_equal(stored[:], restorer(array, "TZYX"))


def test_a_pyramid_in_tiff_is_built_again(restorer, tmp_path):
    array = values((60, 70), np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
        writer.write(array, subifds=1, tile=(32, 32), metadata={"axes": "YX"})
        writer.write(array[::2, ::2], subfiletype=1, tile=(32, 32))
    run(restorer, tmp_path / "a.ome.tif", tmp_path / "b.ome.tif", form="pyramid")
    with tifffile.TiffFile(tmp_path / "b.ome.tif") as tiff:
        full, half = (level.asarray() for level in tiff.series[0].levels)
    assert np.array_equal(full, restorer(array, "YX"))
    assert np.abs(half - full.astype(float).reshape(30, 2, 35, 2).mean((1, 3))).max() <= 0.5


def test_a_large_plain_picture_is_read_piece_by_piece(restorer, tmp_path, monkeypatch):
    array = values((100, 120, 3), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", rowsperstrip=10)
    monkeypatch.setattr(files, "LARGE", 1000)
    steps = restore_file(restorer, tmp_path / "a.tif", tmp_path / "b.tif")
    next(steps)
    assert working_folder(tmp_path / "b.tif").exists()
    assert list(steps)
    assert np.array_equal(tifffile.imread(tmp_path / "b.tif"), restorer(array))


@pytest.mark.parametrize("key", [(1, slice(3, 9), slice(2, 5)), (slice(0, 2), 4, slice(0, 10))])
def test_raw_arrays_are_written_by_slices(tmp_path, key):
    expected = np.zeros((3, 9, 10), np.int16)
    raw = RawArray(tmp_path / "raw", expected.shape, expected.dtype)
    part = values(expected[key].shape, np.int16)
    expected[key] = part
    raw[key] = part
    assert np.array_equal(raw[:], expected)
    assert np.array_equal(raw[key], part)


@pytest.mark.parametrize("name", ["b.zarr", "b.ome.tif"])
def test_an_interrupted_run_resumes_and_ends_the_same(restorer, tmp_path, monkeypatch, name):
    ome_zarr(tmp_path / "a.zarr", values((1, 2, 1, 100, 90)))
    expected = tmp_path / f"whole-{name}"
    total = len(run(restorer, tmp_path / "a.zarr", expected))
    target = tmp_path / name
    steps = restore_file(restorer, tmp_path / "a.zarr", target)
    for _ in range(4):
        next(steps)
    steps.close()
    assert not target.exists()
    with pytest.raises(FileExistsError, match="an unfinished result; add --resume"):
        run(restorer, tmp_path / "a.zarr", target)
    if target.suffix == ".zarr":  # as a chunk that was being written when the process was killed
        (working_folder(target) / "data" / "0" / "c.0123.partial").write_bytes(b"half")
    computed, solve = [], restorer.engine.solve
    monkeypatch.setattr(restorer.engine, "solve", lambda *step: computed.append(1) or solve(*step))
    seen = run(restorer, tmp_path / "a.zarr", target, resume=True)
    assert seen == [(n, total) for n in range(1, total + 1)]
    assert len(computed) == total - 4
    if target.suffix == ".zarr":
        assert content(target) == content(expected)
    else:
        assert np.array_equal(tifffile.imread(target), tifffile.imread(expected))
    assert not working_folder(target).exists()


def test_a_killed_run_resumes_and_ends_byte_for_byte_the_same(tmp_path, checkpoint, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ome_zarr(Path("big.zarr"), values((1, 2, 4, 160, 160)))
    options = ["--model", "tiny.pth", "--device", "cpu", "--tile", "64", "--halo", "16", "--window", "16"]
    root = str(Path(kbnet_plugin.__file__).parents[1])
    ended = subprocess.Popen(
        [sys.executable, "-m", "kbnet_plugin", "restore", "big.zarr", "-o", "b.zarr", *options],
        env=os.environ | {"PYTHONPATH": root},
        stderr=subprocess.DEVNULL,
    )
    journal = Path("b.zarr.partial/journal")
    deadline = time.monotonic() + 60
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 10):
        assert ended.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    ended.send_signal(signal.SIGKILL)
    ended.wait()
    finished = journal.read_bytes().count(b"\n") - 1
    assert not Path("b.zarr").exists()
    calls = []
    solve = Engine.solve
    monkeypatch.setattr(Engine, "solve", lambda *a: calls.append(1) or solve(*a))
    assert main(["restore", "big.zarr", "-o", "b.zarr", "--resume", *options]) == 0
    resumed = len(calls)
    assert main(["restore", "big.zarr", "-o", "whole.zarr", *options]) == 0
    total = len(calls) - resumed
    assert resumed == total - finished
    assert content(Path("b.zarr")) == content(Path("whole.zarr"))
    assert f"whole.zarr  {total:,} tiles" in capsys.readouterr().out


def test_a_full_disk_is_reported_and_finished_tiles_stay(restorer, tmp_path, monkeypatch):
    ome_tiff(tmp_path / "a.ome.tif", values((1, 2, 2, 60, 70)))
    write, count = RawArray.__setitem__, iter(range(100))

    def full(self, key, value):
        if next(count) == 3:
            raise OSError(28, "No space left on device")
        write(self, key, value)

    with monkeypatch.context() as patched:
        patched.setattr(RawArray, "__setitem__", full)
        with pytest.raises(OSError, match="No space left"):
            run(restorer, tmp_path / "a.ome.tif", tmp_path / "b.tif")
    assert not (tmp_path / "b.tif").exists()
    run(restorer, tmp_path / "a.ome.tif", tmp_path / "b.tif", resume=True)
    assert (tmp_path / "b.tif").exists()


@pytest.fixture
def bad(tmp_path, checkpoint, monkeypatch, capsys):
    """Run the command on bad input, check that it leaves no files, and return its status and error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        before = sorted(tmp_path.iterdir())
        options = ["--model", str(checkpoint), "--device", "cpu", "--tile", "48", "--halo", "8"]
        status = main(["restore", *arguments, *options])
        assert sorted(tmp_path.iterdir()) == before
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return status, error

    return call


def test_a_truncated_tiff_is_named(bad):
    ome_tiff("a.ome.tif", values((2, 3, 2, 60, 70)))
    whole = Path("a.ome.tif").read_bytes()
    for length in (len(whole) // 2, len(whole) - 5000, 100):
        Path("half.ome.tif").write_bytes(whole[:length])
        status, error = bad("half.ome.tif", "-o", "b.ome.tif")
        assert status == 2
        assert "half.ome.tif: damaged or incomplete TIFF" in error


def test_a_damaged_chunk_is_named_and_a_missing_one_is_the_fill_value(bad, restorer, tmp_path):
    array = values((1, 1, 1, 60, 70))
    ome_zarr(Path("a.zarr"), array)
    Path("a.zarr/s0/c/0/0/0/0/1").unlink()
    run(restorer, "a.zarr", "b.zarr")
    array[..., :32, 32:64] = 0  # the fill value
    assert np.array_equal(zarr.open_group("b.zarr", mode="r")["0"][:], restorer(array, "TCZYX"))
    Path("a.zarr/s0/c/0/0/0/0/0").write_bytes(b"garbage")
    status, error = bad("a.zarr", "-o", "c.zarr")
    assert status == 2
    assert "cannot read [0, 0, 0, 0:" in error
    assert "damaged data" in error


def test_invalid_metadata_is_named(bad):
    ome_zarr(Path("a.zarr"), values((1, 2, 1, 40, 40)))
    head = Path("a.zarr/zarr.json")
    good = json.loads(head.read_text())
    good["attributes"]["ome"]["multiscales"][0]["axes"].pop()
    head.write_text(json.dumps(good))
    assert "a.zarr: invalid OME-Zarr metadata" in bad("a.zarr", "-o", "b.zarr")[1]
    head.write_text("{")
    assert "a.zarr: damaged, or not a zarr" in bad("a.zarr", "-o", "b.zarr")[1]
    group = zarr.create_group("c.zarr")
    for name in ("inner", "other"):
        group.create_array(name, shape=(4, 4), dtype="u1")
    assert (
        "c.zarr: no OME-Zarr image in this group; open one of its arrays instead (inner, other)"
        in bad("c.zarr", "-o", "b.zarr")[1]
    )


def test_what_does_not_fit_is_named(bad):
    ome_tiff("a.ome.tif", values((2, 3, 2, 40, 50)))
    ome_tiff("rgb.ome.tif", values((2, 40, 50, 3), np.uint8), "CYXS", photometric="rgb", names=None)
    tifffile.imwrite("complex.tif", np.zeros((5, 40, 50), np.complex64), metadata={"axes": "ZYX"})
    for arguments, named in (
        ("a.ome.tif -o b.tif --axes YX", "a.ome.tif: axes 'YX' name 2 dimensions, but the array has 5"),
        ("a.ome.tif -o b.png", "b.png: a stack is written as TIFF or OME-Zarr"),
        ("a.ome.tif -o nowhere/b.tif", "nowhere: no such folder"),
        ("a.ome.tif -o a.ome.tif --overwrite", "would be replaced by a result"),
        ("rgb.ome.tif -o b.zarr", "b.zarr: OME-Zarr has only one axis for channels and colours"),
        ("complex.tif -o b.tif", "complex.tif: values are complex numbers; save their magnitude"),
        ("nothing.zarr -o b.zarr", "nothing.zarr: no such file or folder"),
    ):
        status, error = bad(*arguments.split())
        assert (status, named in error) == (2, True), error


@pytest.mark.parametrize("axes", ["ZCTYX", "ZYXS", "YX"])
def test_a_growing_stack_is_read_along_its_own_axes(tmp_path, axes):
    array = values([2, 3, 4, 300, 310][-len(axes) :] if "S" not in axes else [2, 300, 310, 3])
    target = tmp_path / "grown.zarr"
    with grown(target, axes, array.shape, array.dtype) as growing:
        assert not target.exists()
        growing.array[tuple(slice(0, n) for n in array.shape)] = array
        np.testing.assert_array_equal(growing.array, array)
        for key in (
            0,
            (..., slice(3, 9)),
            (1 if len(axes) > 2 else 5, ..., 2),
            (slice(1, 2), slice(None, 1)),
        ):
            np.testing.assert_array_equal(growing.array[key], array[key])
    full, half = open_levels(target, axes)
    np.testing.assert_array_equal(full, array)
    assert (full.ndim, full.size, len(full)) == (array.ndim, array.size, len(array))
    assert half.shape == tuple(
        (n + 1) // 2 if a in "YX" else n for a, n in zip(axes, array.shape, strict=True)
    )
    assert not working_folder(target).exists()


@pytest.mark.parametrize("name", ["b.tif", "b.zarr", "b2.zarr"])
def test_sync_flushes_only_what_was_written_since_the_last(tmp_path, monkeypatch, name):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    zarr_format = 2 if "2" in name else 3
    with grown(
        tmp_path / name, "YXC", (600, 700, 2), np.dtype(np.uint16), zarr_format=zarr_format
    ) as growing:
        data = working_folder(tmp_path / name) / "data"

        def files():  # chunks, or the one file of all values
            found = [p for p in data.rglob("*") if p.is_file() and p.name.isdigit()]
            return {p.stat().st_ino for p in found}

        growing.array[100:400, 500:600, 0] = np.ones((300, 100), np.uint16)
        growing.array.sync()
        first = files()
        assert len(first) == (2 if name.endswith("zarr") else 1)
        assert first <= set(synced)
        synced.clear()
        growing.array[590:600, 690:700, 1] = np.ones((10, 10), np.uint16)
        growing.array.sync()
        if name.endswith("zarr"):
            assert len(files()) == 3
            assert files() & set(synced) == files() - first
        else:
            assert set(synced) == files()


def test_a_result_without_progress_leaves_nothing(tmp_path):
    target = tmp_path / "grown.zarr"

    def broken():
        with grown(target, "YX", (30, 40), np.dtype(np.uint8)):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert list(tmp_path.iterdir()) == []


def test_without_zarr_stacks_say_what_to_install(bad, monkeypatch):
    ome_zarr(Path("a.zarr"), values((1, 2, 1, 40, 40)))
    monkeypatch.setitem(sys.modules, "zarr", None)
    status, error = bad("a.zarr", "-o", "b.tif")
    assert (status, error.endswith("zarr, which is not installed: pip install 'kbnet[arrays]'\n")) == (
        2,
        True,
    )


def test_zarr_arrays_go_in_and_out_of_a_restorer(restorer, tmp_path):
    array = values((3, 50, 60))
    source = zarr.create_array(tmp_path / "a", data=array, chunks=(1, 32, 32))
    expected = restorer(array, "ZYX")
    assert np.array_equal(restorer(source, "ZYX"), expected)
    target = zarr.create_array(tmp_path / "b", shape=array.shape, dtype=array.dtype, chunks=(1, 32, 32))
    list(restorer.restore_into(source, target, "ZYX"))
    assert np.array_equal(target[:], expected)
    with pytest.raises(ValueError, match="the target is the source"):
        restorer.restore_into(source, zarr.open_array(tmp_path / "a"), "ZYX")
    with pytest.raises(ValueError, match="the target is read-only"):
        restorer.restore_into(source, zarr.open_array(tmp_path / "b", mode="r"), "ZYX")


def test_memory_maps_go_in_and_out(restorer, tmp_path):
    array = values((3, 50, 60))
    np.save(tmp_path / "a.npy", array)
    source = np.load(tmp_path / "a.npy", mmap_mode="r")
    target = np.lib.format.open_memmap(tmp_path / "b.npy", "w+", array.dtype, array.shape)
    list(restorer.restore_into(source, target, "ZYX"))
    assert np.array_equal(np.load(tmp_path / "b.npy"), restorer(array, "ZYX"))
    with pytest.raises(ValueError, match="the target is read-only"):
        restorer.restore_into(array, source, "ZYX")
    assert torch.is_grad_enabled()
