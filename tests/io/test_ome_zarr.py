"""OME-Zarr: every image of a hierarchy is read, and written where it was with what surrounds it."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kbnet_plugin.io.disk_arrays import Reordered
from kbnet_plugin.io.metadata import Frame, Metadata
from kbnet_plugin.io.ome_zarr import (
    create_groups,
    finish_zarr,
    open_levels,
    open_zarr_images,
    zarr_order,
)
from kbnet_plugin.io.zarr_axes import name_axes
from kbnet_plugin.io.zarr_layout import replace_folder

zarr = pytest.importorskip("zarr")
models = pytest.importorskip("ome_zarr_models")

HISTORY = {"software": "kbnet 1", "model": "denoise-gray"}
OMERO = {
    "channels": [
        {"label": n, "color": c, "window": {"min": 0, "max": 255, "start": 3, "end": 99}, "active": True}
        for n, c in (("DAPI", "0000FF"), ("GFP", "00FF00"))
    ]
}


def ramp(shape, dtype=np.uint16):
    return np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)


def put(group, ome, **others):
    """Set attributes as the group's version of OME-Zarr does."""
    group.attrs.put(others | (ome if group.metadata.zarr_format == 2 else {"ome": {"version": "0.5"} | ome}))


def attributes(path, place=""):
    group = zarr.open_group(path / place, mode="r", use_consolidated=False)
    return dict(group.attrs)


def values(path):
    return zarr.open_array(path, mode="r")[:]


def ome_of(path, place=""):
    found = attributes(path, place)
    return found.get("ome", found)


def group_at(path, zarr_format=3, ome=None, **others):
    group = zarr.open_group(path, mode="a", zarr_format=zarr_format)
    put(group, ome or {}, **others)
    return group


def image_at(path, array, axes="yx", zarr_format=3, *, dataset=(), image=None, **others):
    """Write an OME-Zarr image with one level, named s0."""
    group = zarr.open_group(path, mode="a", zarr_format=zarr_format)
    options = {"chunk_key_encoding": {"name": "v2", "separator": "/"}}
    if zarr_format == 3:
        options = {"dimension_names": list(axes) if len(axes) == array.ndim else None}
    group.create_array("s0", data=array, chunks=tuple(min(n, 16) for n in array.shape), **options)
    kinds = {"t": "time", "c": "channel"}
    image = {
        "name": "cells",
        "axes": [{"name": a, "type": kinds.get(a, "space")} for a in axes],
        "datasets": [
            {
                "path": "s0",
                "coordinateTransformations": list(dataset)
                or [{"type": "scale", "scale": [0.5] * array.ndim}],
            }
        ],
    } | (image or {})
    if zarr_format == 2:
        image["version"] = "0.4"
    put(group, {"multiscales": [image]} | others.pop("ome", {}), **others)
    return group


def frames_of(images, axes=None, **fields):
    return [
        Frame(
            image.array.shape,
            image.array.dtype,
            replace(image.metadata, axes=axes or image.metadata.axes, history=HISTORY, **fields),
        )
        for image in images
    ]


def write(arrays, frames, target, source=None):
    """Write images as `grow` does."""
    data = target.with_name("data")
    for array, frame, grown in zip(arrays, frames, create_groups(data, frames), strict=True):
        axes = frame.metadata.axes
        assert grown.dtype == frame.dtype
        Reordered(grown, zarr_order(axes, target), axes)[tuple(slice(0, n) for n in array.shape)] = array
    finish_zarr(data, frames, source)
    replace_folder(data, target)


def copy(source, target, axes=None):
    """Write the images of a zarr without a change, as a network that changes nothing."""
    images = open_zarr_images(source)
    write([np.asarray(image.array[:]) for image in images], frames_of(images, axes), target, source)
    return images


def check(path, zarr_format=3):
    return models.open_ome_zarr(path, version={2: "0.4", 3: "0.5"}[zarr_format])


def consolidate(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of zarr, that this is no part of the format
        zarr.consolidate_metadata(path)


def make_plate(root, zarr_format):
    version = {2: "0.4", 3: "0.5"}[zarr_format]
    wells = [{"path": f"A/{n}", "rowIndex": 0, "columnIndex": n - 1} for n in (10, 2)]
    plate = {
        "rows": [{"name": "A"}],
        "columns": [{"name": "2"}, {"name": "10"}],
        "wells": wells,
        "version": version,
        "name": "screen",
    }
    group_at(root, zarr_format, {"plate": plate}, operator="someone")
    group_at(root / "A", zarr_format)
    for number, well in enumerate(wells):
        fields = {"images": [{"path": "0"}, {"path": "1"}], "version": version}
        group_at(root / well["path"], zarr_format, {"well": fields})
        for field in range(2):
            array = ramp((2, 40, 30)) + 10 * number + field
            image_at(root / well["path"] / str(field), array, "cyx", zarr_format, ome={"omero": OMERO})
    labels = group_at(root / "A/2/1/labels", zarr_format, {"labels": ["nuclei"]})
    image_at(labels.store_path.store.root / "nuclei", ramp((40, 30), np.int32), "yx", zarr_format)
    nuclei = zarr.open_group(root / "A/2/1/labels/nuclei")
    put(nuclei, ome_of(root, "A/2/1/labels/nuclei") | {"image-label": {"version": version}})


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_every_image_of_a_plate_is_restored_in_its_place(tmp_path, zarr_format):
    source, target = tmp_path / "a.zarr", tmp_path / "b.zarr"
    make_plate(source, zarr_format)
    consolidate(source)
    images = copy(source, target)
    assert [image.metadata.path for image in images] == ["A/10/0", "A/10/1", "A/2/0", "A/2/1"]
    assert attributes(target) == attributes(source)
    assert attributes(target, "A/2") == attributes(source, "A/2")
    assert not list(target.rglob(".zmetadata"))
    assert b"consolidated" not in b"".join(p.read_bytes() for p in target.rglob("zarr.json"))
    plate = check(target, zarr_format)
    assert type(plate).__name__ == "HCS"
    assert plate.n_wells == 2
    for place in (image.metadata.path for image in images):
        assert np.array_equal(
            zarr.open_array(target / place / "0")[:], zarr.open_array(source / place / "s0")[:]
        )
        assert attributes(target, place)["kbnet"] == HISTORY
        assert ome_of(target, place)["omero"] == OMERO
        assert ome_of(target, place)["multiscales"][0]["name"] == "cells"
        check(target / place, zarr_format)
    assert not (target / "A/2/0/s0").exists()
    nuclei = "A/2/1/labels/nuclei"
    assert attributes(target, nuclei) == attributes(source, nuclei)
    assert np.array_equal(
        zarr.open_array(target / nuclei / "s0")[:], zarr.open_array(source / nuclei / "s0")[:]
    )
    assert check(target / "A/2/1", zarr_format).labels is not None


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_every_series_of_bioformats2raw_is_restored_in_its_place(tmp_path, zarr_format):
    source, target = tmp_path / "a.zarr", tmp_path / "b.zarr"
    group_at(source, zarr_format, {"bioformats2raw.layout": 3})
    group_at(source / "OME", zarr_format, {"series": ["1", "0"]})
    (source / "OME/METADATA.ome.xml").write_text("<OME/>")
    for number in range(2):
        image_at(source / str(number), ramp((20 + number, 30)), "yx", zarr_format)
    images = copy(source, target)
    assert [(image.metadata.path, image.array.shape) for image in images] == [
        ("1", (21, 30)),
        ("0", (20, 30)),
    ]
    version = {2: models.v04, 3: models.v05}[zarr_format]
    group = zarr.open_group(target, mode="r")
    assert version.bioformats2raw.BioFormats2Raw.from_zarr(group).image_paths == ["0", "1"]
    assert attributes(target, "OME") == attributes(source, "OME")
    assert (target / "OME/METADATA.ome.xml").read_text() == "<OME/>"
    assert np.array_equal(group["1/0"][:], ramp((21, 30)))


def test_images_at_any_depth_are_restored_and_the_rest_is_copied(tmp_path):
    source, target = tmp_path / "a.zarr", tmp_path / "b.zarr"
    group_at(source, kind="collection")
    image_at(source / "images/raw", ramp((20, 30)))
    image_at(source / "images/image 10", ramp((20, 30)))
    image_at(source / "images/image 9", ramp((20, 30)))
    group_at(source / "images", note="three")
    group_at(source / "tables").create_array("areas", data=ramp((5, 6)))
    consolidate(source)
    images = copy(source, target)
    assert [image.metadata.path for image in images] == ["images/image 9", "images/image 10", "images/raw"]
    assert attributes(target) == {"kind": "collection", "ome": {"version": "0.5"}}
    assert "consolidated_metadata" not in json.loads((target / "zarr.json").read_text())
    assert attributes(target, "images")["note"] == "three"
    assert np.array_equal(zarr.open_array(target / "tables/areas")[:], ramp((5, 6)))


def test_listed_images_that_are_missing_are_noted(tmp_path):
    make_plate(tmp_path / "a.zarr", 3)
    (tmp_path / "a.zarr/A/2/0/zarr.json").unlink()
    first, *others = open_zarr_images(tmp_path / "a.zarr")
    assert first.notes == ("1 of the 4 images that are listed are missing (A/2/0)",)
    assert not any(image.notes for image in others)
    assert len(others) == 2


def test_images_of_other_files_become_series(tmp_path):
    target = tmp_path / "b.zarr"
    arrays = [ramp((20, 30)), ramp((3, 25, 35))]
    frames = [
        Frame(a.shape, a.dtype, Metadata(axes=axes, path=name))
        for a, axes, name in zip(arrays, ("YX", "ZYX"), ("Scene 1", "Scene 2"), strict=True)
    ]
    write(arrays, frames, target)
    group = zarr.open_group(target, mode="r")
    assert models.v05.bioformats2raw.BioFormats2Raw.from_zarr(group).image_paths == ["0", "1"]
    assert ome_of(target, "OME")["series"] == ["0", "1"]
    assert ome_of(target, "1")["multiscales"][0]["name"] == "Scene 2"
    images = open_zarr_images(target)
    assert [np.array_equal(i.array[:], a) for i, a in zip(images, arrays, strict=True)] == [True, True]


@pytest.mark.parametrize(
    ("names", "axes", "notes"),
    [
        (("z", "y", "x"), "ZYX", ()),
        (("Time", "Channel", "Depth", "Row", "Column"), "TCZYX", ()),
        (("y", "x", "rgb"), "YXS", ()),
        (("y", "x", "c"), "YXC", ()),
        (("position", "y", "x"), "ZYX", ("axis position taken for Z",)),
        (("lambda", "c", "y", "x"), "CZYX", ("axis lambda taken for C", "axis c taken for Z")),
        (("band", "lat", "lon"), "CYX", tuple(f"axis {a}" for a in ("band taken for C", "lat taken for Y"))),
        ((None, "y", "x"), "ZYX", ("axis None taken for Z",)),
        (("dim_0", "dim_1"), None, ("axes dim_0, dim_1 are not known",)),
        (("a", "b", "d", "y", "x", "z", "t"), None, ("axes a, b, d, y, x, z, t are not known",)),
    ],
)
def test_axes_are_known_by_their_names(names, axes, notes):
    found, noted = name_axes(names)
    assert found == axes
    assert noted[: len(notes)] == notes


def test_types_of_axes_help_where_names_do_not():
    assert name_axes(("frame_no", "dye", "u", "v"), ("time", "channel", "space", "space"))[0] == "TCYX"
    assert name_axes(("u", "v"), ("space", "space"))[0] == "YX"


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_an_array_without_ome_is_read_by_the_names_of_its_axes(tmp_path, zarr_format):
    names = ("y", "x", "z")
    options = {"dimension_names": names} if zarr_format == 3 else {"attributes": {"_ARRAY_DIMENSIONS": names}}
    zarr.create_array(tmp_path / "a.zarr", data=ramp((20, 30, 3)), zarr_format=zarr_format, **options)
    (image,) = copy(tmp_path / "a.zarr", tmp_path / "b.zarr")
    assert image.metadata.axes == "YXZ"  # not planes of RGB
    assert [a["name"] for a in ome_of(tmp_path / "b.zarr")["multiscales"][0]["axes"]] == ["z", "y", "x"]
    check(tmp_path / "b.zarr", zarr_format)
    written = zarr.open_array(tmp_path / "b.zarr/0")
    assert np.array_equal(written[:], ramp((20, 30, 3)).transpose(2, 0, 1))
    assert "_ARRAY_DIMENSIONS" not in attributes(tmp_path / "b.zarr")
    if zarr_format == 3:
        assert written.metadata.dimension_names == ("z", "y", "x")


def test_a_group_with_one_array_of_pixels_is_an_image(tmp_path):
    group = group_at(tmp_path / "a.zarr", title="field")
    group.create_array("x", data=ramp((30,)))  # xarray keeps coordinates like this
    group.create_array("inner", data=ramp((20, 30)), attributes={"long_name": "counts"})
    (image,) = copy(tmp_path / "a.zarr", tmp_path / "b.zarr", "YX")
    assert image.metadata.axes is None
    assert np.array_equal(values(tmp_path / "b.zarr/0"), ramp((20, 30)))
    assert np.array_equal(values(tmp_path / "b.zarr/x"), ramp((30,)))
    assert not (tmp_path / "b.zarr/inner").exists()
    found = attributes(tmp_path / "b.zarr")
    assert (found["title"], found["long_name"]) == ("field", "counts")
    check(tmp_path / "b.zarr")


def test_a_group_with_several_arrays_names_them(tmp_path):
    group = group_at(tmp_path / "a.zarr")
    for name in ("one", "two"):
        group.create_array(name, data=ramp((20, 30)))
    with pytest.raises(
        ValueError, match=r"a\.zarr: no OME-Zarr image .* open one of its arrays instead \(one, two\)"
    ):
        open_zarr_images(tmp_path / "a.zarr")


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_size_and_position_come_from_all_transformations(tmp_path, zarr_format):
    steps = [{"type": "scale", "scale": [0.5, 0.25]}, {"type": "translation", "translation": [10.0, -4.0]}]
    image = {
        "axes": [
            {"name": "y", "type": "space", "unit": "um"},
            {"name": "x", "type": "space", "unit": "pixel"},
        ],
        "coordinateTransformations": [
            {"type": "identity"},
            {"type": "scale", "scale": [2.0, 2.0]},
            {"type": "translation", "translation": [1.0, 0.0]},
        ],
        "type": "gaussian",
        "metadata": {"method": "skimage"},
    }
    image_at(tmp_path / "a.zarr", ramp((300, 300)), "yx", zarr_format, dataset=steps, image=image)
    (read,) = copy(tmp_path / "a.zarr", tmp_path / "b.zarr")
    assert read.metadata.sizes == {"Y": (1.0, "micrometer"), "X": (0.5, None)}
    assert read.metadata.offsets == {"Y": 21.0, "X": -8.0}
    assert read.notes == ("unit pixel of X is not known",)
    (written,) = ome_of(tmp_path / "b.zarr")["multiscales"]
    assert [level["coordinateTransformations"] for level in written["datasets"]] == [
        [{"type": "scale", "scale": [1.0, 0.5]}, {"type": "translation", "translation": [21.0, -8.0]}],
        # a mean of 2 x 2 pixels lies between them
        [{"type": "scale", "scale": [2.0, 1.0]}, {"type": "translation", "translation": [21.5, -7.75]}],
    ]
    assert [axis["unit"] for axis in written["axes"]] == ["micrometer", "pixel"]
    assert "coordinateTransformations" not in written
    assert (written["type"], written.get("metadata")) == ("mean", None)
    check(tmp_path / "b.zarr", zarr_format)


def test_transformations_into_other_systems_are_kept_and_not_applied(tmp_path):
    systems = [
        {"type": "affine", "affine": [[2, 0, 0], [0, 2, 0]], "input": {"name": "yx"}, "output": {"name": "a"}}
    ]
    image_at(tmp_path / "a.zarr", ramp((20, 30)), image={"coordinateTransformations": systems})
    (read,) = copy(tmp_path / "a.zarr", tmp_path / "b.zarr")
    assert read.metadata.sizes["Y"] == (0.5, None)
    assert ome_of(tmp_path / "b.zarr")["multiscales"][0]["coordinateTransformations"] == systems


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (
            {"datasets": [{"path": "s0", "coordinateTransformations": [{"type": "affine"}]}]},
            "'affine' is not",
        ),
        (
            {"datasets": [{"path": "s0", "coordinateTransformations": [{"type": "scale", "path": "p"}]}]},
            "the scale is in an array of its own",
        ),
        ({"datasets": [{"path": "s1"}]}, "s1: missing, though the metadata name it"),
        ({"datasets": []}, "invalid OME-Zarr metadata"),
        ({"axes": [{"name": "y"}]}, "1 axes for 2 dimensions"),
        ({"axes": [{"type": "space"}, {"type": "space"}]}, "invalid OME-Zarr metadata"),
        ({"coordinateSystems": []}, "version 0.6 are not supported; export it as version 0.5"),
    ],
)
def test_what_is_not_understood_is_refused_in_one_line(tmp_path, broken, why):
    image_at(tmp_path / "a.zarr", ramp((20, 30)), image=broken)
    with pytest.raises(ValueError, match=rf"a\.zarr.*{why}") as raised:
        open_zarr_images(tmp_path / "a.zarr")
    assert "\n" not in str(raised.value)


def test_what_is_no_image_is_refused_in_one_line(tmp_path):
    make_plate(tmp_path / "a.zarr", 3)
    with pytest.raises(ValueError, match="labels, not an image"):
        open_zarr_images(tmp_path / "a.zarr/A/2/1/labels/nuclei")
    zarr.create_array(tmp_path / "b.zarr", data=np.zeros((4, 4), np.complex64))
    with pytest.raises(ValueError, match=r"b\.zarr: pixels must be bool, integer or float, not complex64"):
        open_zarr_images(tmp_path / "b.zarr")
    group_at(tmp_path / "c.zarr")
    with pytest.raises(ValueError, match=r"c\.zarr: no image in this zarr"):
        open_zarr_images(tmp_path / "c.zarr")
    (tmp_path / "c.zarr/zarr.json").write_text("{")
    with pytest.raises(ValueError, match=r"c\.zarr: damaged, or not a zarr"):
        open_zarr_images(tmp_path / "c.zarr")
    (tmp_path / "d.zarr").mkdir()
    with pytest.raises(ValueError, match=r"d\.zarr: damaged, or not a zarr"):
        open_zarr_images(tmp_path / "d.zarr")


def test_a_source_in_another_order_keeps_its_meaning_and_chunks(tmp_path):
    array = ramp((30, 20, 3, 2))
    image_at(tmp_path / "a.zarr", array, "xyzc", ome={"omero": OMERO})
    (read,) = copy(tmp_path / "a.zarr", tmp_path / "b.zarr")
    assert read.metadata.axes == "XYZC"
    written = zarr.open_array(tmp_path / "b.zarr/0")
    assert np.array_equal(written[:], array.transpose(3, 2, 1, 0))
    assert written.chunks == (2, 3, 16, 16)
    assert written.metadata.dimension_names == ("c", "z", "y", "x")
    check(tmp_path / "b.zarr")


def test_names_of_axes_and_unknown_types_are_kept(tmp_path):
    axes = [{"name": "pos"}, {"name": "lambda", "type": "channel"}, {"name": "Y", "type": "space"}]
    image_at(
        tmp_path / "a.zarr", ramp((4, 2, 20, 30)), image={"axes": [*axes, {"name": "X", "type": "space"}]}
    )
    (read,) = copy(tmp_path / "a.zarr", tmp_path / "b.zarr")
    assert read.metadata.axes == "ZCYX"
    written = ome_of(tmp_path / "b.zarr")["multiscales"][0]["axes"]
    assert [a["name"] for a in written] == ["lambda", "pos", "Y", "X"]
    assert written[1] == {"name": "pos"}
    check(tmp_path / "b.zarr")


def test_only_the_first_of_several_multiscales_is_read_and_said_so(tmp_path):
    group = image_at(tmp_path / "a.zarr", ramp((20, 30)))
    group.create_array("other", data=ramp((20, 30)))
    (image,) = ome_of(tmp_path / "a.zarr")["multiscales"]
    put(group, {"multiscales": [image, image | {"datasets": [image["datasets"][0] | {"path": "other"}]}]})
    (read,) = copy(tmp_path / "a.zarr", tmp_path / "b.zarr")
    assert read.notes == ("only the first of 2 multiscale images read",)
    assert not (tmp_path / "b.zarr/other").exists()


def test_old_attributes_at_the_top_of_zarr_3_move_and_do_not_stay(tmp_path):
    group = image_at(tmp_path / "a.zarr", ramp((20, 30)))
    group.attrs.put(
        {"mine": 1, "kbnet": {"model": "older"}}
        | {k: v for k, v in ome_of(tmp_path / "a.zarr").items() if k != "version"}
    )
    copy(tmp_path / "a.zarr", tmp_path / "b.zarr")
    found = attributes(tmp_path / "b.zarr")
    assert set(found) == {"mine", "kbnet", "ome"}
    assert found["kbnet"] == HISTORY | {"before": {"model": "older"}}
    check(tmp_path / "b.zarr")


@pytest.mark.parametrize(
    ("dtype", "samples", "labels"),
    [
        (np.uint8, 3, ["Red", "Green", "Blue"]),
        (np.uint16, 4, ["Red", "Green", "Blue", "Alpha"]),
        (np.float32, 3, ["Red", "Green", "Blue"]),
        (np.uint8, 2, ["Gray", "Alpha"]),
    ],
)
def test_a_picture_is_shown_in_colour(tmp_path, dtype, samples, labels):
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    array = np.zeros((20, 30, samples), dtype)
    array[5:, :, 0] = 2
    write([array], [Frame(array.shape, array.dtype, Metadata(axes="YXS"))], tmp_path / "b.zarr")
    check(tmp_path / "b.zarr")
    (node,) = list(Reader(parse_url(tmp_path / "b.zarr"))())
    assert node.metadata["channel_names"] == labels
    assert node.metadata["visible"] == [label != "Alpha" for label in labels]
    top = 2.0 if dtype == np.float32 else float(np.iinfo(dtype).max)
    assert node.metadata["contrast_limits"] == [[0.0, top]] * samples
    if samples > 2:
        assert [colours[1] for colours in node.metadata["colormap"][:3]] == np.eye(3).tolist()
    assert np.array_equal(node.data[0].compute(), array.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("dtype", "window"),
    [
        (np.uint16, {"min": 0.0, "max": 65535.0, "start": 100.0, "end": 699.0}),
        (np.int32, {"min": 100.0, "max": 699.0, "start": 100.0, "end": 699.0}),
        (np.float32, {"min": 100.0, "max": 699.0, "start": 100.0, "end": 699.0}),
        (np.bool_, {"min": 1.0, "max": 2.0, "start": 1.0, "end": 2.0}),
    ],
)
def test_channels_are_shown_in_the_range_of_their_values(tmp_path, dtype, window):
    array = np.stack([ramp((20, 30)) + 100, np.full((20, 30), 7)]).astype(dtype)
    if dtype == np.float32:
        array[1] = np.nan
    names = ("DAPI", "GFP")
    write(
        [array], [Frame(array.shape, array.dtype, Metadata(axes="CYX", channels=names))], tmp_path / "b.zarr"
    )
    check(tmp_path / "b.zarr")
    channels = ome_of(tmp_path / "b.zarr")["omero"]["channels"]
    assert [channel["label"] for channel in channels] == list(names)
    assert channels[0]["window"] == window
    assert channels[1]["window"]["start"] < channels[1]["window"]["end"]


def test_an_interrupted_hierarchy_is_continued(tmp_path):
    array = ramp((20, 30), ">u2")
    frames = [Frame(array.shape, array.dtype, Metadata(axes="YX"))] * 2
    create_groups(tmp_path / "data", frames)[1][0:20, 0:30] = array
    (tmp_path / "data/1/0/0.123.partial").write_bytes(b"half")
    again = create_groups(tmp_path / "data", frames)
    assert np.array_equal(again[1][:], array)
    assert again[1].dtype == array.dtype
    assert not list(tmp_path.rglob("*.partial"))
    with pytest.raises(ValueError, match="an unfinished result of another image"):
        create_groups(tmp_path / "data", [Frame((20, 31), array.dtype, Metadata(axes="YX"))] * 2)


def test_images_in_place_of_levels_are_refused(tmp_path):
    image_at(tmp_path / "a.zarr", ramp((20, 30)))
    image_at(tmp_path / "a.zarr/1", ramp((20, 30)))
    with pytest.raises(ValueError, match=r"image .1. is where image .. keeps its levels"):
        copy(tmp_path / "a.zarr", tmp_path / "b.zarr")


def test_chunks_that_are_too_large_for_tiles_are_not_kept(tmp_path):
    frame = Frame((8, 3000, 3000), np.dtype(np.uint16), Metadata(axes="ZYX", chunks=(8, 3000, 3000)))
    create_groups(tmp_path / "data", [frame])
    assert zarr.open_array(tmp_path / "data/0").chunks == (1, 512, 512)


def test_levels_are_found_by_the_metadata(tmp_path):
    image_at(tmp_path / "a.zarr", ramp((300, 280)))
    zarr.open_group(tmp_path / "a.zarr").create_array("extra", data=ramp((3, 4)))
    copy(tmp_path / "a.zarr", tmp_path / "b.zarr")
    assert [level.shape for level in open_levels(tmp_path / "b.zarr", "YX")] == [(300, 280), (150, 140)]
    assert (tmp_path / "b.zarr/extra").exists()


def content(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.fixture
def finished(tmp_path):
    """A finished store, the name it goes to, and a zarr of that name."""
    data, target = tmp_path / "data", tmp_path / "b.zarr"
    image_at(target, ramp((20, 30)))
    image_at(data, ramp((20, 30)) + 1)
    return data, target


def test_a_replaced_zarr_is_deleted_last(finished, tmp_path):
    data, target = finished
    new = content(data)
    replace_folder(data, target)
    assert content(target) == new
    assert [p.name for p in tmp_path.iterdir()] == ["b.zarr"]


def test_a_zarr_that_cannot_be_replaced_stays(finished, tmp_path, monkeypatch):
    data, target = finished
    old, new, rename = content(target), content(data), Path.rename

    def full(self, other):
        if self == data:
            raise OSError(28, "No space left on device")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="No space left"):
        replace_folder(data, target)
    assert (content(target), content(data)) == (old, new)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.zarr", "data"]


def test_a_replacement_that_was_killed_is_finished_by_the_next(finished, tmp_path):
    data, target = finished
    new = content(data)
    target.rename(tmp_path / "b.zarr.kbnet-old")  # killed between the two moves
    replace_folder(data, target)
    assert content(target) == new
    assert [p.name for p in tmp_path.iterdir()] == ["b.zarr"]


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_of_a_link_only_the_link_is_replaced(finished, tmp_path):
    data, target = finished
    target.rename(tmp_path / "elsewhere.zarr")
    target.symlink_to(tmp_path / "elsewhere.zarr")
    old, new = content(tmp_path / "elsewhere.zarr"), content(data)
    replace_folder(data, target)
    assert not target.is_symlink()
    assert (content(target), content(tmp_path / "elsewhere.zarr")) == (new, old)


def test_files_are_replaced_and_folders_of_other_things_are_not(finished, tmp_path):
    data, _ = finished
    (tmp_path / "c.zarr").write_text("a file")
    replace_folder(data, tmp_path / "c.zarr")
    other = tmp_path / "d.zarr"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    with pytest.raises(
        ValueError, match=r"d\.zarr: a folder of other things, not a zarr, so it is not replaced"
    ):
        replace_folder(tmp_path / "c.zarr", other)
    assert (other / "thesis.txt").exists()
    assert (tmp_path / "c.zarr").is_dir()
