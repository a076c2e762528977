"""TIFFs of all kinds are read upright, whole, with dark as small values, and with their metadata."""

from __future__ import annotations

import io
import itertools
import json
import logging
import re
import struct
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from kbnet_plugin.io.embedded import upright
from kbnet_plugin.io.exif import read_exif
from kbnet_plugin.io.metadata import Tag
from kbnet_plugin.io.tiff import reader as tiff_reader
from kbnet_plugin.io.tiff.reader import open_tiff

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SHORT, LONG, RATIONAL = 3, 4, 5


def pixels(shape, dtype="u1", seed=0):
    random = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return random.normal(size=shape).astype(dtype)
    return random.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def ramp(height=12, width=17):
    return np.linspace(0, 255, height * width).reshape(height, width).astype(np.uint8)


def build(path, tags, data, order="<"):
    """Write a TIFF of one strip: `tags` from number to value, list of values, or bytes."""
    tags = {258: 8, 277: 1, 262: 1, 259: 1, 273: 8, 278: tags[257], 279: len(data)} | tags
    place = 8 + len(data) + len(data) % 2
    values, entries = b"", b""
    end = place + 2 + 12 * len(tags) + 4
    for number, value in sorted(tags.items()):
        kind, count = LONG, 1
        if isinstance(value, bytes):
            kind, count, content = 7, len(value), value
        elif isinstance(value, str):
            content = value.encode() + b"\0"
            kind, count = 2, len(content)
        elif isinstance(value, tuple):  # fractions
            kind, count, content = RATIONAL, len(value) // 2, struct.pack(f"{order}{len(value)}I", *value)
        else:
            listed = np.atleast_1d(value).tolist()
            kind = SHORT if max(listed) < 1 << 16 and number not in (273, 279, 330, 513, 514) else LONG
            count, content = len(listed), struct.pack(f"{order}{len(listed)}{'HI'[kind == LONG]}", *listed)
        if len(content) > 4:
            position, content = end + len(values), content + b"\0" * (len(content) % 2)
            values, content = values + content, struct.pack(f"{order}I", position)
        entries += struct.pack(f"{order}HHI", number, kind, count) + content.ljust(4, b"\0")
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", place)
    directory = struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + values
    path.write_bytes(head + data + b"\0" * (len(data) % 2) + directory)


def read(path):
    """Return the only image, in memory."""
    with open_tiff(path) as images:
        assert len(images) == 1
        image = images[0]
        array = np.asarray(image.array[()])
    assert array.shape == image.array.shape
    assert array.dtype == image.array.dtype
    assert len(str(image.metadata.axes)) == array.ndim
    return array, image


def same(found, expected):
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


# Point 2: all images of a file


def test_every_image_of_a_file_is_read_in_its_order(tmp_path):
    arrays = [pixels(shape, seed=n) for n, shape in enumerate([(8, 9), (9, 8), (8, 9), (8, 9), (7, 6, 3)])]
    with tifffile.TiffWriter(tmp_path / "x.tif") as writer:
        for array in arrays:
            writer.write(array, photometric="rgb" if array.ndim == 3 else "minisblack", metadata=None)
    with open_tiff(tmp_path / "x.tif") as images:
        assert [image.metadata.path for image in images] == ["1", "2", "3", "4"]
        assert [image.metadata.axes for image in images] == ["YX", "YX", "TYX", "YXS"]
        for image, expected in zip(images, [*arrays[:2], np.stack(arrays[2:4]), arrays[4]], strict=True):
            same(np.asarray(image.array[()]), expected)


def test_thumbnails_masks_and_levels_are_no_images(tmp_path):
    full = pixels((64, 48))
    with tifffile.TiffWriter(tmp_path / "x.tif") as writer:
        writer.write(full, subifds=2, photometric="minisblack", metadata=None)
        for size in (32, 16):
            writer.write(pixels((size, size * 3 // 4)), subfiletype=1, metadata=None)
        writer.write(pixels((20, 20)), subfiletype=1, metadata=None)
        writer.write(full > 127, subfiletype=4, photometric="mask", metadata=None)
    array, image = read(tmp_path / "x.tif")
    same(array, full)
    assert image.metadata.path == ""
    assert image.metadata.levels == 3
    assert image.notes == ("transparency mask left out", "1 reduced image left out")


def test_images_of_ome_tiff_keep_their_names(tmp_path):
    with tifffile.TiffWriter(tmp_path / "x.ome.tif") as writer:
        for number, name in enumerate(("cell", "cell", "well A/1")):
            writer.write(pixels((2, 8 + number, 9)), metadata={"axes": "ZYX", "Name": name})
    with open_tiff(tmp_path / "x.ome.tif") as images:
        assert [image.metadata.path for image in images] == ["cell 1", "cell 2", "well A_1"]
        assert [image.metadata.ome_image for image in images] == [0, 1, 2]
        assert {image.metadata.form for image in images} == {"ome"}


def test_axes_without_a_letter_become_images(tmp_path):
    array = pixels((2, 3, 4, 12, 9), "u2")
    tifffile.imwrite(tmp_path / "x.tif", array, photometric="minisblack", metadata={"axes": "RTZYX"})
    with open_tiff(tmp_path / "x.tif") as images:
        assert [image.metadata.path for image in images] == ["1 R0", "1 R1"]
        for image, expected in zip(images, array, strict=True):
            assert image.metadata.axes == "TZYX"
            same(np.asarray(image.array[()]), expected)
            assert image.notes == ("one image for each index of R",)


# Point 4: photometric interpretation, palettes, bits; in pictures and stacks alike


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i1", "i2", "i4"])
@pytest.mark.parametrize("shape", [(12, 17), (3, 12, 17)])
def test_white_as_zero_is_inverted(tmp_path, dtype, shape):
    stored = pixels(shape, dtype)
    tifffile.imwrite(tmp_path / "x.tif", stored, photometric="miniswhite")
    array, image = read(tmp_path / "x.tif")
    same(array, ~stored)
    assert "inverted: white was 0" in image.notes


def test_floating_point_white_as_zero_stays(tmp_path):
    stored = pixels((12, 17), "f4")
    tifffile.imwrite(tmp_path / "x.tif", stored, photometric="miniswhite")
    array, image = read(tmp_path / "x.tif")
    same(array, stored)
    assert image.notes == ("white is 0, but floating-point values are not inverted",)


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14, 24])
def test_few_bits_fill_their_dtype(tmp_path, bits, photometric):
    height, width, largest = 4, 40, (1 << bits) - 1
    stored = np.linspace(0, largest, height * width).round().astype(np.uint32).reshape(height, width)
    packed = b"".join(
        np.packbits((row[:, None] >> np.arange(bits)[::-1] & 1).astype(np.uint8)).tobytes() for row in stored
    )
    build(tmp_path / "x.tif", {256: width, 257: height, 258: bits, 262: photometric}, packed, order=">")
    array, image = read(tmp_path / "x.tif")
    full = int(np.iinfo(array.dtype).max)
    assert array.dtype == (np.uint8 if bits < 8 else np.uint16 if bits < 16 else np.uint32)
    expected = np.rint(stored * (full / largest)).astype(array.dtype)
    np.testing.assert_array_equal(array, full - expected if photometric == 0 else expected)
    assert f"{bits} bit{'s' * (bits > 1)} scaled to {8 * array.itemsize}" in image.notes


@pytest.mark.parametrize("levels", ["257", "256", "8 bit", "16 bit"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_palettes_become_colour(tmp_path, bits, levels):
    count, width = 1 << bits, 16
    colours = pixels((3, count), "u1", seed=bits).astype(np.uint16)
    colours[:, 0] = 255
    table = {"257": colours * 257, "256": colours << 8, "8 bit": colours, "16 bit": colours * 256 + 3}[levels]
    stored = (np.arange(8 * width).reshape(8, width) * 7 % count).astype(np.uint32)
    if bits == 16:
        data = stored.astype("<u2").tobytes()
    else:
        data = np.packbits((stored[..., None] >> np.arange(bits)[::-1] & 1).astype(np.uint8)).tobytes()
    build(tmp_path / "x.tif", {256: width, 257: 8, 258: bits, 262: 3, 320: table.ravel()}, data)
    array, image = read(tmp_path / "x.tif")
    expected = np.moveaxis(table if levels == "16 bit" else colours.astype(np.uint8), 0, -1)[stored]
    same(array, expected)
    assert image.metadata.axes == "YXS"
    assert image.notes == ("palette converted to RGB",)


def test_pages_with_a_palette_are_a_stack_of_colour(tmp_path):
    table, stored = pixels((3, 256), "u2"), pixels((3, 12, 17))
    tifffile.imwrite(tmp_path / "x.tif", stored, photometric="palette", colormap=table, metadata=None)
    array, image = read(tmp_path / "x.tif")
    same(array, np.moveaxis(table, 0, -1)[stored])
    assert image.metadata.axes == "TYXS"


@pytest.mark.parametrize("smooth", [True, False])
def test_a_palette_of_imagej_that_shows_values_is_kept_beside_them(tmp_path, smooth):
    table, stored = np.zeros((3, 256), np.uint16), pixels((12, 17))
    table[0], table[1] = np.arange(256) * 257, 65535 - np.arange(256) * 257
    table = table if smooth else table[:, np.random.default_rng(0).permutation(256)]
    described = {"description": "ImageJ=1.54f\nimages=1\n", "metadata": None}
    tifffile.imwrite(tmp_path / "x.tif", stored, photometric="palette", colormap=table, **described)
    array, image = read(tmp_path / "x.tif")
    if smooth:
        same(array, stored)
        same(np.asarray(image.metadata.imagej["LUTs"][0]), (table >> 8).astype(np.uint8))
    else:
        same(array, (np.moveaxis(table, 0, -1)[stored] >> 8).astype(np.uint8))


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("count", [1, 2])
def test_cmyk_without_a_profile_becomes_rgb(tmp_path, dtype, count):
    full = np.iinfo(dtype).max
    inks = np.stack([ramp(), ramp()[::-1], ramp()[:, ::-1], ramp() // 2], axis=-1).astype(dtype) * (
        full // 255
    )
    with tifffile.TiffWriter(tmp_path / "x.tif") as writer:
        for _ in range(count):
            writer.write(inks, photometric="separated", metadata=None)
    array, image = read(tmp_path / "x.tif")
    paper = 1 - inks / full
    expected = paper[..., :3] * paper[..., 3:] * full
    np.testing.assert_allclose(array.reshape(count, *expected.shape)[-1], expected, atol=0.51)
    assert image.metadata.axes == "TYXS"[2 - count :] if count == 2 else image.metadata.axes == "YXS"
    assert "CMYK converted to RGB without a profile" in image.notes


def cmyk_profile():
    """Make a profile in which cyan darkens to lightness 40, black to 0, and nothing has colour."""
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0])
    lut += b"".join(struct.pack(">i", 65536 * (n % 4 == 0)) for n in range(9))
    lut += bytes(range(256)) * 4
    for cyan, _, _, black in itertools.product((0, 1), repeat=4):
        lut += bytes([0 if black else 255 - 153 * cyan, 128, 128])
    lut += bytes(range(256)) * 3
    white = b"XYZ " + bytes(4) + struct.pack(">3i", *(round(n * 65536) for n in (0.9642, 1.0, 0.8249)))
    parts, table, place = [(b"A2B0", lut), (b"wtpt", white)], b"", 128 + 4 + 24
    for name, part in parts:
        table += struct.pack(">4sII", name, place, len(part))
        place += len(part)
    head = struct.pack(
        ">I4xI4s4s4s12x4s28x3i",
        place,
        0x02400000,
        b"prtr",
        b"CMYK",
        b"Lab ",
        b"acsp",
        *(round(n * 65536) for n in (0.9642, 1.0, 0.8249)),
    )
    return head.ljust(128, b"\0") + struct.pack(">I", len(parts)) + table + b"".join(p for _, p in parts)


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_cmyk_is_converted_by_its_profile(tmp_path, dtype):
    inks = np.zeros((8, 9, 4), dtype)
    inks[4:, :, 0] = np.iinfo(dtype).max
    tifffile.imwrite(tmp_path / "x.tif", inks, photometric="separated", iccprofile=cmyk_profile())
    array, image = read(tmp_path / "x.tif")
    np.testing.assert_allclose(array[0, 0] / np.iinfo(dtype).max, 1, atol=0.01)
    np.testing.assert_allclose(array[-1, 0] / np.iinfo(dtype).max, 94 / 255, atol=0.01)  # lightness 40
    assert image.metadata.icc is None
    assert image.notes == ("CMYK converted to RGB (sRGB) by its profile",)


@pytest.mark.parametrize(("photometric", "bits"), [(8, 8), (8, 16), (9, 8), (9, 16)])
def test_lab_becomes_rgb(tmp_path, photometric, bits):
    lab = np.array([[[100, 0, 0], [50, 0, 0], [0, 0, 0]], [[50, 60, 40], [80, -60, 60], [40, 10, -50]]])
    scale = 1 if bits == 8 else 256
    light = lab[..., :1] * ((255 * scale if photometric == 9 or bits == 8 else 65535) / 100)
    chroma = (lab[..., 1:] + (128 if photometric == 9 else 0)) * scale
    stored = np.concatenate([light.round(), chroma], axis=-1).astype(int).astype(f"u{bits // 8}")
    tags = {256: 3, 257: 2, 258: [bits] * 3, 277: 3, 262: photometric}
    build(tmp_path / "x.tif", tags, stored.astype(f"<u{bits // 8}").tobytes())
    array, image = read(tmp_path / "x.tif")
    fy = (lab[..., :1] + 16) / 116
    f = np.concatenate([fy + lab[..., 1:2] / 500, fy, fy - lab[..., 2:] / 200], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, (f - 4 / 29) * 3 * (6 / 29) ** 2) * (0.9642, 1.0, 0.8249)
    # From D50 to sRGB by Bradford's method: http://www.brucelindbloom.com/Eqn_RGB_XYZ_Matrix.html
    matrix = [[3.1339, -1.6169, -0.4906], [-0.9788, 1.9161, 0.0335], [0.0719, -0.2290, 1.4052]]
    linear = (xyz @ np.transpose(matrix)).clip(0, 1)
    expected = 255 * np.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(array * (255 / np.iinfo(array.dtype).max), expected, atol=2)
    assert image.notes == ("Lab converted to RGB (sRGB)",)


@pytest.mark.parametrize("units", [(1, 1), (2, 1), (1, 2), (2, 2), (4, 2)])
@pytest.mark.parametrize("size", [(8, 16), (7, 13)])
def test_uncompressed_ycbcr_becomes_rgb(tmp_path, units, size):
    across, down = units
    high, wide = -(-size[0] // down), -(-size[1] // across)
    luma = pixels((high * down, wide * across))
    chroma = np.stack([ramp(high, wide), ramp(high, wide)[::-1]], axis=-1)
    parts = luma.reshape(high, down, wide, across).transpose(0, 2, 1, 3).reshape(high, wide, -1)
    tags = {256: size[1], 257: size[0], 258: [8] * 3, 277: 3, 262: 6, 530: list(units)}
    if units == (1, 1):
        parts = luma[..., None]
        parts, chroma = parts[: size[0], : size[1]], chroma[: size[0], : size[1]]
    build(tmp_path / "x.tif", tags, np.concatenate([parts, chroma], axis=-1).tobytes())
    array, image = read(tmp_path / "x.tif")
    full = chroma.repeat(down, axis=0).repeat(across, axis=1)
    stored = np.dstack([luma[: full.shape[0], : full.shape[1]], full])[: size[0], : size[1]]
    expected = np.asarray(Image.fromarray(np.ascontiguousarray(stored), "YCbCr").convert("RGB"))
    np.testing.assert_allclose(array.astype(int), expected, atol=2)
    assert image.notes == ("YCbCr converted to RGB",)


def test_jpeg_is_decoded_to_rgb(tmp_path):
    colour = np.dstack([ramp(32, 48), ramp(32, 48)[::-1], ramp(32, 48)])
    Image.fromarray(colour).save(tmp_path / "x.tif", compression="jpeg", quality=95)
    array, image = read(tmp_path / "x.tif")
    assert np.abs(array.astype(int) - colour).mean() < 3
    assert image.notes == ()


def test_jpeg_of_the_old_style_is_decoded(tmp_path):
    colour = np.dstack([ramp(32, 48), ramp(32, 48)[::-1], ramp(32, 48)])
    encoded = io.BytesIO()
    Image.fromarray(colour).save(encoded, "JPEG", quality=95, subsampling=0)
    data = encoded.getvalue()
    scan = data.index(b"\xff\xda")
    tags = {256: 48, 257: 32, 258: [8] * 3, 277: 3, 262: 6, 259: 6, 530: [1, 1], 512: 1}
    tags |= {513: 8, 514: len(data), 273: 8 + scan, 279: len(data) - scan}
    build(tmp_path / "x.tif", tags, data)
    array, _ = read(tmp_path / "x.tif")
    assert np.abs(array.astype(int) - colour).mean() < 3


@pytest.mark.parametrize("compression", ["group3", "group4"])
@pytest.mark.parametrize(("height", "rows"), [(40, 40), (300, 7), (513, 1), (3, 256)])
def test_fax_pages_are_decoded_as_libtiff_does(tmp_path, compression, height, rows):
    black = np.kron(pixels((height, 20)) > 128, np.ones((1, 9), bool))
    Image.fromarray(~black).save(tmp_path / "x.tif", compression=compression, tiffinfo={278: rows})
    array, _ = read(tmp_path / "x.tif")
    same(array, np.where(black, 0, 255).astype(np.uint8))


# Points 7 and 4: extra samples


@pytest.mark.parametrize("kind", [1, 2])
@pytest.mark.parametrize("samples", [2, 4])
def test_opacity_is_known_by_its_tag(tmp_path, kind, samples):
    stored = pixels((12, 17, samples))
    options = {"photometric": "rgb" if samples == 4 else "minisblack", "extrasamples": [kind]}
    tifffile.imwrite(tmp_path / "x.tif", stored, planarconfig="contig", **options)
    array, image = read(tmp_path / "x.tif")
    same(array, stored)
    assert (image.metadata.axes, image.metadata.alpha) == ("YXS", kind)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize(("samples", "colours"), [(2, 1), (4, 3), (5, 3), (3, 1)])
def test_an_unspecified_sample_is_a_channel(tmp_path, samples, colours, planar):
    stored = pixels((12, 17, samples))
    tifffile.imwrite(
        tmp_path / "x.tif",
        stored if planar == "contig" else np.moveaxis(stored, -1, 0),
        photometric="rgb" if colours == 3 else "minisblack",
        planarconfig=planar,
        extrasamples=[0] * (samples - colours),
        metadata=None,
    )
    array, image = read(tmp_path / "x.tif")
    same(array, stored)
    assert image.metadata.axes == "YXC"
    assert image.notes[0].endswith(f"not opacity: {samples} channels")


@pytest.mark.parametrize("samples", [2, 4])
def test_an_unspecified_sample_that_looks_like_opacity_is_one(tmp_path, samples):
    stored = pixels((12, 17, samples))
    stored[..., -1] = 255
    stored[:3, :, -1] = 0
    options = {"photometric": "rgb" if samples == 4 else "minisblack", "extrasamples": [0]}
    tifffile.imwrite(tmp_path / "x.tif", stored, planarconfig="contig", metadata=None, **options)
    array, image = read(tmp_path / "x.tif")
    same(array, stored)
    assert (image.metadata.axes, image.metadata.alpha) == ("YXS", 2)
    assert image.notes == ("extra sample of unknown meaning taken for opacity",)


def test_a_dark_unspecified_sample_is_no_opacity(tmp_path):
    stored = pixels((12, 17, 2))
    stored[3:, :, 1] = 0
    tifffile.imwrite(
        tmp_path / "x.tif", stored, planarconfig="contig", photometric="minisblack", extrasamples=[0]
    )
    assert read(tmp_path / "x.tif")[1].metadata.axes == "YXC"


def test_inversion_leaves_opacity_alone(tmp_path):
    stored = pixels((12, 17, 2))
    tifffile.imwrite(
        tmp_path / "x.tif", stored, photometric="miniswhite", planarconfig="contig", extrasamples=[2]
    )
    array, _ = read(tmp_path / "x.tif")
    same(array, np.dstack([255 - stored[..., 0], stored[..., 1]]))


# Point 5: one reader, however large


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_upright_and_keeps_its_metadata_however_large(tmp_path, monkeypatch, orientation, large):
    if large:
        monkeypatch.setattr(tiff_reader, "LARGE", 1)
    stored = pixels((40, 70, 3), "u2")
    tifffile.imwrite(
        tmp_path / "x.tif",
        stored,
        photometric="rgb",
        tile=(16, 32),
        compression="zlib",
        resolution=(300, 150),
        resolutionunit="INCH",
        description="a caption",
        metadata=None,
        extratags=[(274, SHORT, 1, orientation, True)],
    )
    with open_tiff(tmp_path / "x.tif") as (image,):
        assert isinstance(image.array, np.ndarray) != large
        expected = upright(stored, orientation)
        assert image.array.shape == expected.shape
        for key in [
            (),
            (slice(3, 9), slice(5, 33)),
            (slice(None), 4),
            (2, slice(60, None), 1),
            (slice(30, 2, -3),),
        ]:
            same(np.asarray(image.array[key]), expected[key])
        metadata = image.metadata
        assert (metadata.form, metadata.axes) == ("picture", "YXS")
        assert metadata.resolution == ((150, 300) if orientation >= 5 else (300, 150))
        assert (metadata.resolution_unit, metadata.description) == ("inch", "a caption")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rowsperstrip": 7},
        {"rowsperstrip": 5, "compression": "lzw", "predictor": True},
        {"tile": (16, 32)},
        {"tile": (16, 16), "compression": "zlib", "byteorder": ">"},
        {"planarconfig": "separate"},
        {"planarconfig": "separate", "tile": (32, 16), "compression": "zlib"},
        {"bigtiff": True, "compression": "zstd"},
        {"volumetric": True, "tile": (2, 16, 16), "compression": "zlib"},
    ],
)
def test_windows_of_any_storage_are_those_of_the_whole(tmp_path, monkeypatch, options):
    monkeypatch.setitem(sys.modules, "zarr", None)  # an extra that reading TIFF does not need
    array = pixels((3, 41, 55, 3), "u2")
    separate = options.get("planarconfig") == "separate"
    stored = np.moveaxis(array, -1, 1) if separate else array
    tifffile.imwrite(
        tmp_path / "x.tif",
        stored,
        photometric="rgb",
        metadata={"axes": "ZSYX" if separate else "ZYXS"},
        **options,
    )
    with open_tiff(tmp_path / "x.tif") as (image,):
        assert image.metadata.axes == "ZYXS"
        assert not isinstance(image.array, np.ndarray)
        for key in [
            (),
            (0,),
            (slice(1, 3), slice(6, 8), slice(50, 55), slice(1, 2)),
            (2, slice(10, 37), slice(15, 17), 2),
            (..., slice(0, 2)),
            (-1, -2, slice(None, None, 7)),
            (slice(2, None, -1), slice(0, 0)),
        ]:
            same(np.asarray(image.array[key]), array[key])


# Point 7: axes named in a file outrank guesses


@pytest.mark.parametrize(
    ("given", "shape", "expected", "guessed"),
    [
        ("CZTYX", (2, 3, 4, 9, 8), "CZTYX", False),
        ("ZYX", (3, 9, 8), "ZYX", False),
        ("TCYX", (4, 3, 9, 8), "TCYX", False),
        (None, (4, 9, 8), "TYX", True),
        (None, (4, 3, 9, 8), "TZYX", True),
    ],
)
def test_named_axes_outrank_guesses(tmp_path, given, shape, expected, guessed):
    array = pixels(shape)
    tifffile.imwrite(
        tmp_path / "x.tif", array, photometric="minisblack", metadata={"axes": given} if given else {}
    )
    found, image = read(tmp_path / "x.tif")
    same(found, array)
    assert image.metadata.axes == expected
    assert image.notes == ((f"axes not named in the file, read as {expected}",) if guessed else ())


def test_imagej_hyperstacks(tmp_path):
    array = pixels((3, 4, 2, 12, 17), "u2")
    metadata = {
        "axes": "TZCYX",
        "unit": "micron",
        "spacing": 2.5,
        "finterval": 0.5,
        "xorigin": 10,
        "Info": "a\nb",
    }
    metadata |= {"Ranges": [0.0, 9.0, 1.0, 8.0], "LUTs": [np.arange(768, dtype=np.uint8).reshape(3, 256)] * 2}
    tifffile.imwrite(tmp_path / "x.tif", array, imagej=True, metadata=metadata, resolution=(4, 2))
    found, image = read(tmp_path / "x.tif")
    same(found, array)
    kept = image.metadata
    assert (kept.axes, kept.form, kept.description) == ("TZCYX", "imagej", None)
    sizes = {
        "X": (0.25, "micrometer"),
        "Y": (0.5, "micrometer"),
        "Z": (2.5, "micrometer"),
        "T": (0.5, "second"),
    }
    assert kept.sizes == sizes
    assert kept.offsets == {"X": -2.5}
    assert (kept.imagej["Info"], tuple(kept.imagej["Ranges"])) == ("a\nb", (0, 9, 1, 8))
    assert len(kept.imagej["LUTs"]) == 2


@pytest.mark.parametrize(
    ("unit", "name"),
    [
        ("um", "micrometer"),
        ("\\u00B5m", "micrometer"),
        ("inch", "inch"),
        ("nm", "nanometer"),
        ("furlong", None),
    ],
)
def test_units_of_imagej_become_names(tmp_path, unit, name):
    metadata = {"axes": "YX", "unit": unit}
    tifffile.imwrite(tmp_path / "x.tif", ramp(), imagej=True, metadata=metadata, resolution=(4, 2))
    image = read(tmp_path / "x.tif")[1]
    assert image.metadata.sizes == {"X": (0.25, name), "Y": (0.5, name)}
    assert image.notes == (() if name else ("unit 'furlong' is unknown and dropped",))


def test_pixels_are_no_unit(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", ramp(), imagej=True, metadata={"unit": "pixel"}, resolution=(1, 1))
    assert read(tmp_path / "x.tif")[1].metadata.sizes == {}


@pytest.mark.parametrize("options", [{}, {"tile": (16, 16), "compression": "zlib"}])
def test_ome_tiff(tmp_path, options):
    array = pixels((3, 2, 4, 33, 47), "u2")
    metadata = {
        "axes": "TCZYX",
        "PhysicalSizeX": 0.5,
        "PhysicalSizeXUnit": "nm",
        "Channel": {"Name": ["a", "b"]},
    }
    tifffile.imwrite(tmp_path / "x.ome.tif", array, metadata=metadata, **options)
    found, image = read(tmp_path / "x.ome.tif")
    same(found, array)
    kept = image.metadata
    assert (kept.axes, kept.form, kept.ome_image) == ("TCZYX", "ome", 0)
    assert (kept.sizes, kept.channels) == ({"X": (0.5, "nanometer")}, ("a", "b"))
    assert "<OME" in str(kept.ome)


def test_ome_modulo_keeps_the_axes_of_the_file(tmp_path):
    array = pixels((6, 12, 17))
    tifffile.imwrite(tmp_path / "a.ome.tif", array, metadata={"axes": "TYX"})
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as tiff:
        xml = str(tiff.ome_metadata)
    note = (
        '<StructuredAnnotations><XMLAnnotation ID="Annotation:0" '
        'Namespace="openmicroscopy.org/omero/dimension/modulo">'
        '<Value><Modulo namespace="http://www.openmicroscopy.org/Schemas/Additions/2011-09">'
        '<ModuloAlongT Type="lifetime" Start="0" End="2"/></Modulo></Value>'
        "</XMLAnnotation></StructuredAnnotations>"
    )
    xml = xml.replace("</Pixels>", '</Pixels><AnnotationRef ID="Annotation:0"/>').replace(
        "</OME>", f"{note}</OME>"
    )
    tifffile.imwrite(
        tmp_path / "x.ome.tif", array, description=xml.encode(), metadata=None, photometric="minisblack"
    )
    with tifffile.TiffFile(tmp_path / "x.ome.tif") as tiff:
        assert tiff.series[0].axes == "THYX"
    found, image = read(tmp_path / "x.ome.tif")
    same(found, array)
    assert image.metadata.axes == "TYX"


def test_a_missing_file_of_an_ome_tiff_is_named(tmp_path):
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" '
        'DimensionOrder="XYZCT" Type="uint8" SizeX="17" SizeY="12" SizeZ="2" SizeC="1" SizeT="1">'
        '<TiffData FirstZ="0" IFD="0" PlaneCount="1"><UUID FileName="x.ome.tif">urn:uuid:1</UUID></TiffData>'
        '<TiffData FirstZ="1" IFD="0" PlaneCount="1"><UUID FileName="y.ome.tif">urn:uuid:2</UUID></TiffData>'
        "</Pixels></Image></OME>"
    )
    for name in "xy":
        tifffile.imwrite(tmp_path / f"{name}.ome.tif", ramp(), description=xml.encode(), metadata=None)
    array, image = read(tmp_path / "x.ome.tif")
    same(array, np.stack([ramp(), ramp()]))
    assert image.metadata.axes == "ZYX"
    (tmp_path / "y.ome.tif").unlink()
    with pytest.raises(ValueError, match=r"x\.ome\.tif: parts are in y\.ome\.tif, which is missing"):
        read(tmp_path / "x.ome.tif")


@pytest.mark.parametrize(("scan", "axes"), [(0, "ZYXC"), (3, "TYXC"), (6, "TZYXC"), (1, "YXC")])
def test_lsm(tmp_path, scan, axes):
    lengths = {"T": 4, "Z": 2, "Y": 12, "X": 17, "C": 3}
    if scan == 1:  # a scan of lines, whose rows are depths
        lengths |= {"Z": 12, "Y": 1}
    array = pixels([12 if scan == 1 and axis == "Y" else lengths[axis] for axis in axes])
    info = np.zeros(1, tifffile.TIFF.CZ_LSMINFO)
    info["MagicNumber"], info["StructureSize"], info["ScanType"] = 67127628, info.nbytes, scan
    for axis, name in zip("XYZCT", ("X", "Y", "Z", "Channels", "Time"), strict=True):
        info[f"Dimension{name}"] = lengths[axis]
    info["VoxelSizeX"] = info["VoxelSizeY"] = 2.5e-7
    with tifffile.TiffWriter(tmp_path / "x.lsm") as writer:
        for number, plane in enumerate(array.reshape(-1, *array.shape[-3:])):
            tags = [(34412, 1, info.nbytes, info.tobytes(), True)] if number == 0 else []
            options = {"planarconfig": "separate", "metadata": None, "photometric": "rgb"}
            writer.write(np.moveaxis(plane, -1, 0), extratags=tags, **options)
            writer.write(np.zeros((6, 8, 3), np.uint8), subfiletype=1, photometric="rgb", metadata=None)
    found, image = read(tmp_path / "x.lsm")
    same(found, array)
    assert (image.metadata.axes, image.metadata.form) == (axes, "ome")
    size = (pytest.approx(0.25), "micrometer")
    assert image.metadata.sizes == ({"X": size} if scan == 1 else {"X": size, "Y": size})
    assert image.notes == (("rows are axis Z, read as Y",) if scan == 1 else ())


# Point 9: what files say about themselves


@pytest.mark.parametrize(
    ("tags", "resolution", "unit"),
    [
        ({282: (300, 1), 283: (150, 1), 296: 2}, (300, 150), "inch"),
        ({282: (300, 1), 283: (150, 1)}, (300, 150), "inch"),  # as the standard says
        ({282: (100, 1), 283: (50, 1), 296: 3}, (100, 50), "centimeter"),
        ({282: (1000, 65), 283: (1000, 65), 296: 1}, (1000 / 65, 1000 / 65), None),
        ({282: (0, 0), 283: (72, 1), 296: 2}, None, None),
        ({282: (1, 1), 283: (1, 1), 296: 1}, None, None),
        ({}, None, None),
    ],
)
@pytest.mark.parametrize("order", "<>")
def test_resolution_has_the_unit_that_the_file_says(tmp_path, tags, resolution, unit, order):
    build(tmp_path / "x.tif", {256: 17, 257: 12} | tags, ramp().tobytes(), order)
    metadata = read(tmp_path / "x.tif")[1].metadata
    assert metadata.resolution == (pytest.approx(resolution) if resolution else None)
    assert metadata.resolution_unit == unit


def test_profile_packets_texts_and_tags_are_kept(tmp_path):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"/>'
    iptc = b"\x1c\x02\x05\x00\x03cat"
    place = tuple(float(n) for n in range(6))
    texts = {
        269: "a title",
        271: "Maker",
        305: "Scan 1",
        306: "2020:01:02 03:04:05",
        315: "Zoë",
        33432: "(c)",
    }
    tifffile.imwrite(
        tmp_path / "x.tif",
        pixels((12, 17, 3)),
        photometric="rgb",
        iccprofile=SRGB,
        description="Größe: 1 µm".encode(),
        software=False,
        metadata=None,
        extratags=[
            (700, 1, len(xmp), xmp, True),
            (33723, 7, len(iptc), iptc, True),
            (33922, 12, 6, place, True),
            (42112, 2, 0, b"<GDALMetadata/>", True),
            (42113, 2, 0, b"7", True),
            *((code, 2, 0, text.encode(), True) for code, text in texts.items()),
        ],
    )
    metadata = read(tmp_path / "x.tif")[1].metadata
    assert metadata.icc == SRGB
    assert metadata.description == "Größe: 1 µm"
    assert metadata.xmp == xmp.replace(b"6", b"1")
    assert metadata.iptc == iptc
    assert metadata.tags[33922] == Tag(12, 6, place)
    assert metadata.tags[42112].value.rstrip(b"\0") == b"<GDALMetadata/>"
    assert 42113 in metadata.tags
    expected = {
        "Title": "a title",
        "Make": "Maker",
        "Software": "Scan 1",
        "Creation Time": "2020:01:02 03:04:05",
    }
    assert metadata.text == expected | {"Author": "Zoë", "Copyright": "(c)"}


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_captions_of_any_encoding_are_read(tmp_path, encoding):
    build(tmp_path / "x.tif", {256: 17, 257: 12, 270: b"Gr\0"}, ramp().tobytes())
    tifffile.imwrite(tmp_path / "x.tif", ramp(), description="Größe".encode(encoding), metadata=None)
    assert read(tmp_path / "x.tif")[1].metadata.description == "Größe"


def test_a_value_for_missing_data_is_dropped_where_values_change(tmp_path):
    tags = [(42113, 2, 0, b"7", True)]
    tifffile.imwrite(tmp_path / "x.tif", ramp(), photometric="miniswhite", extratags=tags)
    assert read(tmp_path / "x.tif")[1].metadata.tags == {}


@pytest.mark.parametrize("order", "<>")
def test_exif_is_collected_into_a_block(tmp_path, order):
    build(tmp_path / "x.tif", {256: 17, 257: 12, 271: "Maker", 274: 1, 34665: 0}, ramp().tobytes(), order)
    content = bytearray((tmp_path / "x.tif").read_bytes())
    below = struct.pack(f"{order}HHHIIHHIII", 2, 0x829A, 5, 1, len(content) + 30, 0x8827, 3, 1, 0, 0)
    speed = struct.pack(f"{order}H", 400)
    below = below[:22] + speed + below[24:] + bytes(30 - len(below)) + struct.pack(f"{order}II", 1, 250)
    at = content.index(struct.pack(f"{order}H", 34665)) + 8
    content[at : at + 4] = struct.pack(f"{order}I", len(content))
    content[at - 6 : at - 4] = struct.pack(f"{order}H", LONG)
    (tmp_path / "x.tif").write_bytes(bytes(content) + below)
    block = read(tmp_path / "x.tif")[1].metadata.exif
    assert block is not None
    found = read_exif(block)
    assert found[271] == (2, b"Maker\0")
    assert found[34665] == {0x829A: (5, struct.pack("<II", 1, 250)), 0x8827: (3, struct.pack("<H", 400))}
    exif = Image.Exif()
    exif.load(block)
    assert exif.get_ifd(34665)[0x8827] == 400
    assert 274 not in exif


def test_a_georeference_is_dropped_when_the_image_is_turned(tmp_path):
    tags = [(33550, 12, 3, (1.0, 2.0, 0.0), True), (274, SHORT, 1, 6, True)]
    tifffile.imwrite(tmp_path / "x.tif", ramp(), extratags=tags, metadata=None)
    image = read(tmp_path / "x.tif")[1]
    assert image.metadata.tags == {}
    assert image.notes == ("place on earth dropped, as the image was turned upright",)


def test_the_axes_and_caption_of_a_stack_survive_its_json(tmp_path):
    array = pixels((2, 3, 12, 17))
    described = json.dumps({"shape": array.shape, "axes": "CZYX", "description": "a caption"})
    tifffile.imwrite(
        tmp_path / "x.tif", array, description=described.encode(), metadata=None, photometric="minisblack"
    )
    metadata = read(tmp_path / "x.tif")[1].metadata
    assert (metadata.axes, metadata.description) == ("CZYX", "a caption")


# Point 12: what is refused, and in which words


@pytest.mark.parametrize(
    ("tags", "named"),
    [
        ({262: 32844}, "logarithmic .*: tiff2rgba in.tif out.tif"),
        ({262: 32845, 277: 3, 258: [8] * 3}, "LogLuv; .*: vips colourspace in.tif out.tif srgb"),
        ({262: 32803}, "raw photograph's sensor; .* rename it to end in .dng"),
        ({262: 5, 277: 4, 258: [8] * 4, 332: 2}, "inks are not CMYK; convert it to RGB"),
        ({262: 1234}, "photometric interpretation 1234 is unknown; save it as gray or RGB"),
        ({259: 32809, 258: 4}, "compression THUNDERSCAN is not read; .*: tiff2rgba in.tif out.tif"),
        ({259: 34712 + 7}, "compression MDI_PROGRESSIVE is not read; save it with another compression"),
        ({258: 32, 339: 5}, "complex numbers; save their magnitude"),
        ({258: 64, 339: 6}, "complex numbers; save their magnitude"),
        ({258: 48}, "samples of 48 bits in format 1 are not read; save it with 8 or 16 bits"),
        ({262: 6, 277: 3, 258: [8] * 3, 284: 2, 530: [2, 2]}, "YCbCr with colours at a lower resolution"),
    ],
)
def test_what_is_not_read_is_named_with_the_fix(tmp_path, tags, named):
    build(tmp_path / "x.tif", {256: 17, 257: 12} | tags, bytes(17 * 12 * 8))
    with pytest.raises(ValueError, match=rf"x\.tif: .*{named}") as caught:
        read(tmp_path / "x.tif")
    assert "\n" not in str(caught.value)
    assert "damaged" not in str(caught.value)


def test_another_format_is_named(tmp_path):
    Image.fromarray(ramp()).save(tmp_path / "x.tif", "JPEG")
    with pytest.raises(ValueError, match=r"x\.tif: a JPEG by its content but a TIFF by its name"):
        read(tmp_path / "x.tif")


def test_a_photometric_interpretation_that_is_missing_is_guessed(tmp_path):
    for samples, axes in ((1, "YX"), (3, "YXS")):
        tags = {256: 17, 257: 12, 277: samples, 258: [8] * samples}
        build(tmp_path / "x.tif", tags, bytes(17 * 12 * samples))
        content = (tmp_path / "x.tif").read_bytes()
        (tmp_path / "x.tif").write_bytes(
            content.replace(struct.pack("<HH", 262, 3), struct.pack("<HH", 264, 3))
        )
        image = read(tmp_path / "x.tif")[1]
        assert image.metadata.axes == axes
        assert image.notes[0].startswith("photometric interpretation missing, taken for ")


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i8", "u8"])
def test_rarer_dtypes_are_read(tmp_path, dtype):
    stored = pixels((12, 17), dtype)
    tifffile.imwrite(tmp_path / "x.tif", stored, photometric="minisblack")
    same(read(tmp_path / "x.tif")[0], stored)


# Damaged files


def _written(path, kind):
    array = pixels((5, 40, 50), "u2")
    if kind == "pages":
        with tifffile.TiffWriter(path) as writer:
            for plane in array:
                writer.write(plane, photometric="minisblack", metadata=None)
    elif kind == "compressed":
        tifffile.imwrite(path, array[0], compression="zlib", rowsperstrip=8)
    elif kind == "pillow":
        Image.fromarray(array[0].astype(np.uint8)).save(path)
    else:
        options = {"imagej": {"imagej": True}, "ome": {"ome": True}, "shaped": {"photometric": "minisblack"}}
        tifffile.imwrite(path, array, **options[kind])


@pytest.mark.parametrize("kept", [9, 40, 0.4, 0.8, -3])
@pytest.mark.parametrize("kind", ["pages", "compressed", "pillow", "imagej", "ome", "shaped"])
def test_a_truncated_file_is_named_in_one_line(tmp_path, kind, kept):
    path = tmp_path / "x.tif"
    _written(path, kind)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    if kept == -3:  # of the directory of a page that nothing needs, if the pixels are there
        try:
            array, _ = read(path)
        except ValueError:
            return
        same(array, pixels((5, 40, 50), "u2"))
        return
    with pytest.raises(ValueError, match=r"x\.tif: damaged") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_damage_inside_a_stack_is_named_where_it_is_read(tmp_path):
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, pixels((3, 40, 50)), photometric="minisblack", compression="zlib", metadata=None)
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        start = tiff.pages[2].dataoffsets[0]
    content[start + 2 : start + 40] = bytes(38)
    path.write_bytes(content)
    with open_tiff(path) as (image,):
        assert image.array[:2].shape == (2, 40, 50)
        with pytest.raises(ValueError, match=r"x\.tif: damaged or incomplete TIFF \(.*\); export it again"):
            image.array[2]


def test_a_damaged_tag_that_pixels_do_not_need_is_dropped_with_a_word(tmp_path):
    build(tmp_path / "x.tif", {256: 17, 257: 12, 305: "a program"}, ramp().tobytes())
    content = (tmp_path / "x.tif").read_bytes()
    at = content.index(struct.pack("<HH", 305, 2)) + 8
    (tmp_path / "x.tif").write_bytes(content[:at] + struct.pack("<I", 1 << 30) + content[at + 4 :])
    array, image = read(tmp_path / "x.tif")
    same(array, ramp())
    assert image.notes == ("damaged tags dropped: 305",)


def test_planes_that_were_never_acquired_are_zero_with_a_word(tmp_path):
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels((2, 12, 17)), metadata={"axes": "TYX"})
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as tiff:
        xml = re.sub('SizeT="2"', 'SizeT="3"', str(tiff.ome_metadata))
    tifffile.imwrite(tmp_path / "x.ome.tif", pixels((2, 12, 17)), description=xml.encode(), metadata=None)
    array, image = read(tmp_path / "x.ome.tif")
    assert array.shape == (3, 12, 17)
    assert not array[2].any()
    assert image.notes == ("1 of 3 planes are not in the file, and are 0",)


def test_files_that_are_open_leave_the_log_as_it_was(tmp_path, caplog, monkeypatch):
    logger = logging.getLogger("tifffile")
    caplog.set_level(logging.ERROR, "tifffile")  # whatever other tests did to it
    monkeypatch.setattr(logger, "disabled", False)
    monkeypatch.setattr(logger, "propagate", True)
    for name in "ab":
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels((3, 20, 30)), photometric="minisblack")
    with open_tiff(tmp_path / "a.tif"), open_tiff(tmp_path / "b.tif"):
        logger.error("while both are open")
    logger.error("afterwards")
    assert caplog.messages == ["while both are open", "afterwards"]


@pytest.mark.parametrize("silence", ["level", "disabled", "everything"])
def test_a_file_cut_short_is_named_though_the_application_silenced_the_log(tmp_path, silence):
    tifffile.imwrite(tmp_path / "x.ome.tif", pixels((4, 60, 70)), metadata={"axes": "TYX"})
    whole = (tmp_path / "x.ome.tif").read_bytes()
    (tmp_path / "x.ome.tif").write_bytes(whole[: len(whole) // 2])
    logger = logging.getLogger("tifffile")
    before = logger.level
    try:
        if silence == "level":
            logger.setLevel(logging.CRITICAL + 1)
        logger.disabled = silence == "disabled"
        logging.disable(logging.CRITICAL if silence == "everything" else logging.NOTSET)
        with pytest.raises(ValueError, match=r"x\.ome\.tif: .*(damaged|incomplete|missing)"):
            read(tmp_path / "x.ome.tif")
    finally:
        logger.setLevel(before)
        logger.disabled = False
        logging.disable(logging.NOTSET)
