"""CZI, ND2 and LIF files, which these tests write themselves."""

from __future__ import annotations

import os
import struct

import numpy as np
import pytest

from kbnet_plugin.errors import BadInput
from kbnet_plugin.io import formats
from kbnet_plugin.io.microscopes import open_microscope

RAMP = np.arange(20 * 30, dtype=np.uint16).reshape(20, 30)
COLOUR = np.dstack([np.full((20, 30), value, np.uint8) for value in (10, 100, 200)])  # red, green, blue


@pytest.fixture
def czi(tmp_path):
    """Write a CZI of tiles, each (array, indices, scene, (x, y))."""
    czi = pytest.importorskip("pylibCZIrw.czi", reason="no package that writes CZI")

    def write(*tiles, described=True):
        path = tmp_path / "made.czi"
        with czi.create_czi(str(path)) as file:
            for array, place, scene, corner in tiles:
                file.write(array, plane=place, scene=scene, location=corner)
            if described:
                file.write_metadata(
                    "made", channel_names={0: "DAPI", 1: "GFP"}, scale_x=65e-9, scale_y=65e-9, scale_z=2e-7
                )
        return path

    return write


@pytest.fixture
def lif(tmp_path):
    """Write a LIF of series, each (name, array, axes in the order of the array, channels)."""
    pytest.importorskip("liffile", reason="no package that reads LIF")

    def write(*series):
        path = tmp_path / "made.lif"
        elements, blocks = "", b""
        for number, (name, array, axes, channels) in enumerate(series):
            steps = dict(zip(axes, array.strides, strict=True))
            dimensions = "".join(
                f'<DimensionDescription DimID="{"XYZT5".index(axis) + 1}" NumberOfElements="{n}" Origin="0" '
                f'Length="{(n - 1) * (3 if axis == "T" else 2e-6)}" Unit="{"s" if axis == "T" else "m"}" '
                f'BitInc="0" BytesInc="{steps[axis]}"/>'
                for axis, n in zip(axes, array.shape, strict=True)
                if axis not in "CS"
            )
            described = "".join(
                f'<ChannelDescription DataType="0" ChannelTag="{tag}" Resolution="{8 * array.itemsize}" '
                f'NameOfMeasuredQuantity="" Min="0" Max="1" Unit="" LUTName="{channel}" IsLUTInverted="0" '
                f'BytesInc="{index * steps.get("C", steps.get("S", 0))}" BitInc="0"/>'
                for index, (channel, tag) in enumerate(channels.items())
            )
            elements += (
                f'<Element Name="{name}"><Data><Image><ImageDescription><Channels>{described}</Channels>'
                f"<Dimensions>{dimensions}</Dimensions></ImageDescription></Image></Data>"
                f'<Memory Size="{array.nbytes}" MemoryBlockID="MemBlock_{number}"/></Element>'
            )
            block = _text(f"MemBlock_{number}")
            blocks += struct.pack("<IIBQB", 0x70, 0, 0x2A, array.nbytes, 0x2A) + block + array.tobytes()
        header = (
            '<LMSDataContainerHeader Version="2"><Element Name="made"><Children>'
            f"{elements}</Children></Element></LMSDataContainerHeader>"
        )
        head = struct.pack("<IIB", 0x70, 2 * len(header) + 5, 0x2A) + _text(header)
        path.write_bytes(head + blocks)
        return path

    return write


def _text(value):
    return struct.pack("<I", len(value)) + value.encode("utf-16-le")


@pytest.fixture
def nd2(tmp_path):
    """Write an ND2 of frames (Y, X, channel or colour)."""
    pytest.importorskip("nd2", reason="no package that reads ND2")

    def write(frames, loops, channels, *, calibration=0.065, planned=0):
        path = tmp_path / "made.nd2"
        height, width, values = frames[0].shape
        size = frames[0].itemsize
        attributes = {
            "uiWidth": width,
            "uiWidthBytes": width * values * size,
            "uiHeight": height,
            "uiComp": values,
            "uiBpcInMemory": 8 * size,
            "uiBpcSignificant": 8 * size,
            "uiSequenceCount": len(frames),
        }
        planes = {
            f"a{index}": {
                "uiCompCount": values // len(channels),
                "uiSampleIndex": index,
                "sDescription": name,
                "pFluorescentProbe": {"m_sName": "dye"},
            }
            for index, name in enumerate(channels)
        }
        picture = {
            "bCalibrated": bool(calibration),
            "dCalibration": calibration,
            "sPicturePlanes": {"uiCount": len(channels), "uiCompCount": values, "sPlaneNew": planes},
        }
        content, listed = bytearray(), b""
        chunks = {
            "ImageAttributesLV!": _variant("SLxImageAttributes", attributes),
            "ImageMetadataSeqLV|0!": _variant("SLxPictureMetadata", picture),
            "ImageMetadataLV!": _variant("SLxExperiment", loops),
            "CustomData|AcqTimesCache!": np.arange(len(frames), dtype=float).tobytes(),
        } | {f"ImageDataSeq|{n}!": bytes(8) + frame.tobytes() for n, frame in enumerate(frames)}
        content += _chunk(b"ND2 FILE SIGNATURE CHUNK NAME01!", b"Ver3.0".ljust(64, b"\0"))
        for name, data in chunks.items():
            listed += name.encode() + struct.pack("<QQ", len(content), len(data))
            content += _chunk(name.encode().ljust(4072, b"\0"), data)
        end = b"ND2 CHUNK MAP SIGNATURE 0000001!" + struct.pack("<Q", len(content))
        content += _chunk(b"ND2 FILEMAP SIGNATURE NAME 0001!", listed + end)
        path.write_bytes(content)
        return path

    return write


def _chunk(name, data):
    return struct.pack("<IIQ", 0x0ABECEDA, len(name), len(data)) + name + data


def _variant(name, tree):
    def node(key, value):
        if isinstance(value, dict):
            inside = "".join(node(*item) for item in value.items())
            return f'<{key} runtype="CLxListVariant">{inside}</{key}>'
        kind = {bool: "bool", int: "lx_uint32", float: "double", str: "CLxStringW"}[type(value)]
        return f'<{key} runtype="{kind}" value="{value}"/>'

    return f'<?xml version="1.0"?><variant version="1.0">{node(name, tree)}</variant>'.encode()


def _times(count):
    parameters = {"uiCount": count, "dStart": 0.0, "dPeriod": 2000.0, "dDuration": 2000.0 * count}
    return {"eType": 1, "uLoopPars": parameters}


def _positions(names, inner):
    points = {f"i{n}": {"dPosX": 0.0, "dPosY": 0.0, "dPosName": name} for n, name in enumerate(names)}
    loops = {"eType": 2, "uLoopPars": {"uiCount": len(names), "Points": points}}
    return loops | {"ppNextLevelEx": {"i0": inner}}


def _open(path):
    with open_microscope(path) as images:
        return [(np.asarray(image.array[()]), image.metadata, image.notes) for image in images]


def test_czi_keeps_axes_sizes_and_channels(czi):
    tiles = [(RAMP + 100 * c + 7 * z, {"C": c, "Z": z}, 0, (0, 0)) for c in range(2) for z in range(3)]
    ((array, metadata, _),) = _open(czi(*tiles))
    assert metadata.axes == "CZYX"
    assert metadata.form == "ome"
    assert metadata.path == ""
    assert dict(metadata.sizes) == dict.fromkeys("YX", (0.065, "micrometer")) | {"Z": (0.2, "micrometer")}
    assert metadata.channels == ("DAPI", "GFP")
    np.testing.assert_array_equal(array[1, 2], RAMP + 114)


def test_czi_reads_every_scene_though_its_metadata_list_none(czi):
    first, second = _open(czi((RAMP, {}, 0, (0, 0)), (RAMP[:12, :16] + 5, {}, 1, (90, 90))))
    assert (first[1].path, second[1].path) == ("scene0", "scene1")
    np.testing.assert_array_equal(first[0], RAMP)
    np.testing.assert_array_equal(second[0], RAMP[:12, :16] + 5)


def test_czi_colours_are_not_swapped(czi):
    ((array, metadata, _),) = _open(czi((COLOUR[..., ::-1].copy(), {}, 0, (0, 0))))  # CZI stores blue first
    assert metadata.axes == "YXS"
    np.testing.assert_array_equal(array, COLOUR)


def test_czi_tiles_are_stitched_and_the_note_says_so(czi):
    wide = np.tile(RAMP, 2)
    ((array, _, notes),) = _open(czi((wide[:, :30], {}, 0, (0, 0)), (wide[:, 25:], {}, 0, (25, 0))))
    np.testing.assert_array_equal(array, wide)
    assert "tiles stitched" in notes


def test_czi_says_how_many_planes_are_missing(czi):
    places = [{"C": 0, "T": 0}, {"C": 0, "T": 1}, {"C": 1, "T": 0}]
    ((array, _, notes),) = _open(czi(*((RAMP + 1, place, 0, (0, 0)) for place in places)))
    assert not array[1, 1].any()
    assert "planes never recorded, which are black: 1" in notes


def test_czi_without_metadata_invents_no_size(czi):
    ((_, metadata, _),) = _open(czi((RAMP, {}, 0, (0, 0)), described=False))
    assert not metadata.sizes
    assert not metadata.channels


def test_czi_channels_of_two_types_are_two_images(czi):
    gray, small = _open(czi((RAMP, {"C": 0}, 0, (0, 0)), (RAMP.astype(np.uint8), {"C": 1}, 0, (0, 0))))
    assert (gray[0].dtype, small[0].dtype) == (np.uint16, np.uint8)
    assert (gray[1].path, small[1].path) == ("scene0_DAPI", "scene0_GFP")
    assert "channels of different types, each an image of its own" in gray[2]


def test_nd2_keeps_times_and_its_ome_xml(nd2):
    ome_types = pytest.importorskip("ome_types")
    frames = [np.dstack([RAMP, RAMP + 7]) + 100 * n for n in range(2)]
    ((array, metadata, notes),) = _open(nd2(frames, _times(2), ["DAPI", "GFP"]))
    assert metadata.axes == "TCYX"
    assert metadata.channels == ("DAPI", "GFP")
    assert not notes
    assert metadata.sizes["X"] == (0.065, "micrometer")
    assert metadata.sizes["T"] == (2.0, "second")
    np.testing.assert_array_equal(array[1, 1], RAMP + 107)
    assert ome_types.from_xml(metadata.ome).images[metadata.ome_image].pixels.size_t == 2


def test_nd2_positions_are_images_and_no_size_is_invented(nd2):
    path = nd2([RAMP[..., None] + n for n in range(4)], _positions(["a/1", "a/1"], _times(2)), ["DAPI"],
               calibration=0.0)  # fmt: skip
    first, second = _open(path)
    assert (first[1].path, second[1].path) == ("a_1", "a_1_2")
    assert second[1].ome_image == 1
    assert 'PhysicalSizeX="' not in second[1].ome
    assert set(first[1].sizes) == {"T"}
    np.testing.assert_array_equal(second[0][1], RAMP + 3)


def test_nd2_colours(nd2):
    ((array, metadata, _),) = _open(nd2([COLOUR], {"eType": 0}, ["Brightfield"]))
    assert metadata.axes == "YXS"
    np.testing.assert_array_equal(array, COLOUR)


def test_nd2_says_how_many_planes_are_missing(nd2):
    ((array, _, notes),) = _open(nd2([RAMP[..., None]], _times(3), ["DAPI"]))
    assert array.shape == (3, 20, 30)
    assert "planes never recorded, which are black: 2" in notes


def test_lif_keeps_series_sizes_and_channels(lif):
    stack = np.stack([[RAMP + 100 * z + 7 * c for c in range(2)] for z in range(3)])
    times = np.stack([RAMP.astype(np.uint8)] * 2)
    first, second = _open(
        lif(("A/1", stack, "ZCYX", {"Green": 0, "Red": 0}), ("B", times, "TYX", {"Gray": 0}))
    )
    assert first[1].axes == "ZCYX"
    assert first[1].path == "A_1"
    assert first[1].channels == ("Green", "Red")
    assert dict(first[1].sizes) == dict.fromkeys("XYZ", (2.0, "micrometer"))
    assert second[1].axes == "TYX"
    assert second[1].sizes["T"] == (3.0, "second")
    np.testing.assert_array_equal(first[0], stack)
    np.testing.assert_array_equal(second[0], times)


@pytest.mark.parametrize("order", ["red first", "blue first"])
def test_lif_colours(lif, order):
    tags = {"Red": 1, "Green": 2, "Blue": 3}
    stored = COLOUR if order == "red first" else COLOUR[..., ::-1].copy()
    tags = tags if order == "red first" else dict(reversed(tags.items()))
    ((array, metadata, _),) = _open(lif(("A", stored, "YXS", tags)))
    assert metadata.axes == "YXS"
    np.testing.assert_array_equal(array, COLOUR)


def test_lif_of_another_axis_is_one_image_per_index(lif):
    images = _open(lif(("A", np.stack([RAMP, RAMP + 1]), "5YX", {"Gray": 0})))  # wavelengths
    assert [len(images), images[0][1].axes] == [2, "YX"]
    np.testing.assert_array_equal(images[1][0], RAMP + 1)
    assert any("one image for each index" in note for note in images[0][2])


@pytest.mark.parametrize("kind", ["czi", "nd2", "lif"])
def test_slices_as_a_numpy_array_does_and_closes_the_file(kind, request):
    make = request.getfixturevalue(kind)
    data = np.stack([RAMP, RAMP + 3])
    path = {
        "czi": lambda: make(*((plane, {"T": t}, 0, (0, 0)) for t, plane in enumerate(data))),
        "nd2": lambda: make([plane[..., None] for plane in data], _times(2), ["DAPI"]),
        "lif": lambda: make(("A", data, "TYX", {"Gray": 0})),
    }[kind]()
    with open_microscope(path) as (image,):
        array = image.array
        assert array.shape == data.shape
        assert array.dtype == data.dtype
        for key in [
            (1, slice(2, 9), slice(5, 30)),
            (slice(None), 3, slice(0, 30, 4)),
            (slice(0, 0), slice(None), slice(None)),
            (-1, -1, -1),
            0,
            (Ellipsis, slice(3, 4)),
        ]:
            np.testing.assert_array_equal(array[key], data[key])
        with pytest.raises(IndexError):
            array[2]
    if os.path.isdir("/proc/self/fd"):
        opened = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
        assert str(path.resolve()) not in opened


@pytest.mark.parametrize("kind", ["czi", "nd2", "lif"])
def test_damage_is_one_line_that_names_the_file(kind, request):
    make = request.getfixturevalue(kind)
    whole = {
        "czi": lambda: make((RAMP, {}, 0, (0, 0))),
        "nd2": lambda: make([RAMP[..., None]], _times(1), ["DAPI"]),
        "lif": lambda: make(("A", RAMP, "YX", {"Gray": 0})),
    }[kind]()
    whole.write_bytes(whole.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"made\.\w+: cannot be read .*export it as OME-TIFF") as raised:
        _open(whole)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("suffix", [".czi", ".nd2", ".lif"])
def test_the_message_names_the_extra_if_the_package_is_missing(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    (tmp_path / f"a{suffix}").touch()
    with (
        pytest.raises(BadInput, match=r"pip install 'kbnet\[microscopes\]'"),
        open_microscope(tmp_path / f"a{suffix}"),
    ):
        pass
