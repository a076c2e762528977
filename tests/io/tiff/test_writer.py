"""TIFFs are read alike by tifffile, Pillow and libvips, and as ImageJ expects; they keep what they can."""

from __future__ import annotations

import json
import sys

import numpy as np
import ome_types
import pytest
import pyvips
import tifffile
from PIL import Image, ImageCms, IptcImagePlugin

from kbnet_plugin.io.disk_arrays import RawArray
from kbnet_plugin.io.metadata import Frame, Metadata, Tag
from kbnet_plugin.io.tiff import strips as tiff_strips
from kbnet_plugin.io.tiff import writer as tiff_writer
from kbnet_plugin.io.tiff.writer import FORMS, check_tiff, choose_form, write_tiff

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
HISTORY = {"software": "kbnet 0.9", "model": "denoise-gray", "sha256": "0a1b", "range": "0 to 255"}
DTYPES = ("uint8", "uint16", "uint32", "int8", "int16", "int32", "float32", "float64", "float16", "uint64")
VIPS = DTYPES[:7]
PILLOW = [*(("uint8", n) for n in (1, 2, 3, 4)), ("uint16", 1), ("float32", 1)]
LARGE = 8193


def ramp(shape, dtype="uint16"):
    values = np.arange(np.prod(shape)).reshape(shape)
    if np.dtype(dtype).kind == "f":
        return (values / 7 - 3).astype(dtype)
    return (values % 3 == 0) if dtype == "bool" else values.astype(dtype)


def pillow(path, page=0):
    with Image.open(path) as image:
        image.seek(page)
        return np.asarray(image)


def vips(path, **options):
    return np.atleast_2d(pyvips.Image.new_from_file(str(path), revalidate=True, **options).numpy())


def write(path, array, kind="tiff", axes=None, **fields):
    axes = axes or {2: "YX", 3: "YXS"}[array.ndim]
    return write_tiff(path, [(array, Metadata(axes=axes, history=HISTORY, **fields))], kind)


@pytest.fixture
def small(monkeypatch):
    """Let planes of 8193 pixels count as large."""
    monkeypatch.setattr(tiff_writer, "_LARGE", LARGE - 1)


# Point 11: what is written is readable elsewhere.


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("dtype", "samples"), [*((d, n) for d in DTYPES for n in (1, 3)), *(("uint8", n) for n in (2, 4, 5))]
)
def test_pixels_are_the_same_everywhere(tmp_path, form, dtype, samples):
    shape = (70, 90) if samples == 1 else (70, 90, samples)
    array, path = ramp(shape, dtype), tmp_path / "x.tif"
    axes = "YX" if samples == 1 else "YXS"
    try:
        check_tiff(form, [Frame(shape, dtype, Metadata(axes=axes))], path)
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017
        assert not path.exists()
        return
    write(path, array, form)
    with tifffile.TiffFile(path) as tiff:
        (series,) = tiff.series
        assert series.axes == axes
        assert series.dtype == dtype
        assert np.array_equal(series.asarray(), array)
        assert tiff.pages.first.is_tiled == (form == "pyramid")
        assert tiff.pages.first.predictor == (2 if form == "pyramid" and dtype[0] in "ui" else 1)
    if dtype in VIPS:
        assert np.array_equal(vips(path), array)
    if (dtype, samples) in PILLOW:
        assert np.array_equal(pillow(path), array)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (256, 256), (257, 300), (16, 17, 3)])
@pytest.mark.parametrize("form", FORMS)
def test_any_size_is_readable(tmp_path, form, shape):
    array = ramp(shape, "uint8")
    write(tmp_path / "x.tif", array, form)
    assert np.array_equal(np.squeeze(vips(tmp_path / "x.tif")), np.squeeze(array))
    assert np.array_equal(pillow(tmp_path / "x.tif"), array)


def test_strips_are_of_the_size_that_imagej_reads(tmp_path):
    write(tmp_path / "x.tif", ramp((1000, 400)))
    with tifffile.TiffFile(tmp_path / "x.tif") as tiff:
        page = tiff.pages.first
        assert not page.is_tiled
        assert len(page.dataoffsets) > 2
        assert 1 << 16 <= page.rowsperstrip * 800 <= 1 << 18
        assert page.predictor == 1
        # ImageJ takes two lengths for an offset if they are of 16 bits and so fit into the tag.
        assert page.tags["StripByteCounts"].dtype == tifffile.DATATYPE.LONG


@pytest.mark.parametrize("axes", ["TZCYX", "ZTCYX", "CYXZT", "YXCZT", "XYCZT"])
@pytest.mark.parametrize("form", FORMS)
def test_stacks_of_any_order_are_stored_as_the_form_needs(tmp_path, form, axes):
    length = {"T": 2, "Z": 3, "C": 4, "Y": 20, "X": 30}
    array = ramp([length[a] for a in axes])
    write(tmp_path / "x.tif", array, form, axes)
    with tifffile.TiffFile(tmp_path / "x.tif") as tiff:
        (series,) = tiff.series
        assert series.kind == {"tiff": "shaped", "imagej": "imagej"}.get(form, "ome")
        assert set(series.axes) == set(axes)
        assert series.axes.endswith("YX")
        expected = array.transpose([axes.index(a) for a in series.axes])
        assert np.array_equal(series.asarray(), expected)
        if form == "imagej":
            assert series.axes == "TZCYX"
            assert tiff.is_imagej
            assert tiff.pages.first.is_contiguous
    planes = expected.reshape(-1, 20, 30)
    assert np.array_equal(pillow(tmp_path / "x.tif", 5), planes[5])
    assert np.array_equal(vips(tmp_path / "x.tif", page=5), planes[5])


@pytest.mark.parametrize("kind", ["numpy", "memmap", "raw"])
def test_arrays_may_be_on_disk(tmp_path, kind):
    array = ramp((2, 40, 50))
    source = array
    if kind != "numpy":
        source = RawArray(tmp_path / "raw", array.shape, array.dtype)
        source[:, :, :] = array
    if kind == "memmap":
        source = np.memmap(tmp_path / "raw", array.dtype, "r", shape=array.shape)
    for form in FORMS:
        write(tmp_path / "x.tif", source, form, "ZYX")
        assert np.array_equal(tifffile.imread(tmp_path / "x.tif"), array)


@pytest.mark.parametrize("form", ["tiff", "ome", "imagej"])
def test_large_arrays_are_read_piece_by_piece(tmp_path, monkeypatch, form):
    monkeypatch.setattr(tiff_strips, "_BAND", 1 << 12)
    monkeypatch.setattr(tiff_strips, "_STRIP", 1 << 11)
    sizes = []

    class Watched(np.ndarray):
        def __getitem__(self, key):
            part = super().__getitem__(key)
            sizes.append(part.nbytes)
            return part.view(np.ndarray)

    array = ramp((2, 200, 50))
    write(tmp_path / "x.tif", array.view(Watched), form, "ZYX")
    assert np.array_equal(tifffile.imread(tmp_path / "x.tif"), array)
    assert max(sizes) <= 1 << 12


@pytest.mark.parametrize("shape", [(100, 90), (100, 90, 3), (300, 520)])
def test_large_pictures_stay_plain_but_in_tiles(tmp_path, small, shape):
    array = ramp(shape)
    write(tmp_path / "x.tif", array, resolution=(300, 300), resolution_unit="inch", description="Grün")
    with tifffile.TiffFile(tmp_path / "x.tif") as tiff:
        assert tiff.pages.first.is_tiled
        assert not tiff.is_ome
        assert tiff.pages.first.description == "Grün"
        assert len(tiff.pages) == 1
    assert np.array_equal(vips(tmp_path / "x.tif"), array)


def test_pyramids_hold_the_means_of_the_level_below(tmp_path):
    array = ramp((2, 700, 600), "uint8")
    write(tmp_path / "x.tif", array, "pyramid", "ZYX")
    with tifffile.TiffFile(tmp_path / "x.tif") as tiff:
        (series,) = tiff.series
        assert [level.shape for level in series.levels] == [(2, 700, 600), (2, 350, 300), (2, 175, 150)]
        means = array.reshape(2, 350, 2, 300, 2).mean((2, 4))
        assert np.abs(series.levels[1].asarray() - means).max() <= 0.5
        ome_types.validate_xml(tiff.ome_metadata)
    assert np.array_equal(vips(tmp_path / "x.tif", page=1), array[1])
    assert vips(tmp_path / "x.tif", subifd=1).shape == (175, 150)
    assert [p.name for p in tmp_path.iterdir()] == ["x.tif"]


def test_levels_may_grow_elsewhere(tmp_path):
    (tmp_path / "work").mkdir()
    write_tiff(
        tmp_path / "x.tif", [(ramp((300, 300)), Metadata(axes="YX"))], "pyramid", workspace=tmp_path / "work"
    )
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.parametrize("form", ["tiff", "ome", "pyramid"])
def test_several_images_of_different_sizes(tmp_path, form):
    arrays = [ramp((60, 50), "uint8"), ramp((30, 20, 3), "uint8"), ramp((2, 10, 12), "uint16")]
    images = [
        (array, Metadata(axes=axes, form="ome", path=f"image {n}", history=HISTORY))
        for n, (array, axes) in enumerate(zip(arrays, ("YX", "YXS", "ZYX"), strict=True))
    ]
    write_tiff(tmp_path / "x.tif", images, form)
    with tifffile.TiffFile(tmp_path / "x.tif") as tiff:
        assert [s.shape for s in tiff.series] == [a.shape for a in arrays]
        assert all(np.array_equal(s.asarray(), a) for s, a in zip(tiff.series, arrays, strict=True))
        if form != "tiff":
            assert [s.name for s in tiff.series] == ["image 0", "image 1", "image 2"]
            ome_types.validate_xml(tiff.ome_metadata)
    assert np.array_equal(vips(tmp_path / "x.tif", page=2), arrays[2][0])


@pytest.mark.parametrize("form", ["tiff", "ome", "pyramid"])
def test_files_that_grow_large_are_bigtiff(tmp_path, monkeypatch, form):
    monkeypatch.setattr(tiff_writer, "_CLASSIC", 1000)
    exif = Image.Exif()
    exif[271] = "A maker of cameras"
    exif.get_ifd(34665)[33434] = 0.01
    write(tmp_path / "x.tif", ramp((60, 50)), form, exif=exif.tobytes())
    with tifffile.TiffFile(tmp_path / "x.tif") as tiff:
        assert tiff.is_bigtiff
        assert tiff.pages.first.tags["ExifTag"].value["ExposureTime"] == 0.01
        assert tiff.pages.first.tags["Make"].value == "A maker of cameras"
    assert np.array_equal(vips(tmp_path / "x.tif"), ramp((60, 50)))
    assert np.array_equal(pillow(tmp_path / "x.tif"), ramp((60, 50)))


# Point 9: what the source says is kept.


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("unit", "code"), [(None, 1), ("inch", 2), ("centimeter", 3)])
def test_resolution_keeps_its_unit(tmp_path, form, unit, code):
    write(tmp_path / "x.tif", ramp((20, 30)), form, resolution=(15.384615, 7.5), resolution_unit=unit)
    with tifffile.TiffFile(tmp_path / "x.tif") as tiff:
        tags = tiff.pages.first.tags
        assert tags["ResolutionUnit"].value == code
        x, y = (tags[f"{axis}Resolution"].value for axis in "XY")
        assert x[0] / x[1] == pytest.approx(15.384615)
        assert y[0] / y[1] == 7.5
    with Image.open(tmp_path / "x.tif") as image:
        assert ("dpi" in image.info) == (unit is not None)


def test_sizes_become_a_resolution(tmp_path):
    write(tmp_path / "x.tif", ramp((20, 30)), sizes={"X": (0.5, "micrometer"), "Y": (1.0, "micrometer")})
    image = pyvips.Image.new_from_file(str(tmp_path / "x.tif"))
    assert image.xres == pytest.approx(2000)  # pixels per millimeter
    assert image.yres == pytest.approx(1000)


def camera_exif(order):
    exif = Image.Exif()
    exif[271], exif[272], exif[306], exif[315] = "Camera", "Model 1", "2024:05:06 07:08:09", "Someone"
    exif[282], exif[296], exif[274] = 72, 2, 1
    inner = exif.get_ifd(34665)
    inner[33434], inner[34855], inner[36867] = 0.004, 200, "2024:05:06 07:08:09"
    inner[37500], inner[40962] = b"notes of the maker\0", 4000
    inner[40965] = {1: "R98"}
    exif.endian = "<" if order == "little" else ">"
    exif.get_ifd(34853)[1], exif.get_ifd(34853)[2] = "N", (48.0, 12.0, 30.5)
    return exif.tobytes().removeprefix(b"Exif\0\0")


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("form", FORMS)
def test_exif_is_kept(tmp_path, form, order):
    block = camera_exif(order)
    assert block[:2] == {"little": b"II", "big": b"MM"}[order]
    write(tmp_path / "x.tif", ramp((20, 30, 3), "uint8"), form, exif=block)
    with Image.open(tmp_path / "x.tif") as image:
        exif = image.getexif()
        assert (exif[271], exif[272], exif[306], exif[315]) == (
            "Camera",
            "Model 1",
            "2024:05:06 07:08:09",
            "Someone",
        )
        inner = exif.get_ifd(34665)
        assert (float(inner[33434]), inner[34855], inner[36867]) == (0.004, 200, "2024:05:06 07:08:09")
        assert inner[37500] == b"notes of the maker\0"
        assert inner[40962] == 30
        assert exif.get_ifd(40965)[1] == "R98"
        assert [float(v) for v in exif.get_ifd(34853)[2]] == [48.0, 12.0, 30.5]
        assert 274 not in exif
        assert exif[296] == 1
    assert np.array_equal(vips(tmp_path / "x.tif"), ramp((20, 30, 3), "uint8"))


def test_tags_of_raw_photographs_do_not_make_one_of_the_result(tmp_path):
    exif = Image.Exif()
    exif[271], exif[50706] = "Camera", b"\1\4\0\0"
    write(tmp_path / "x.tif", ramp((20, 30, 3), "uint8"), exif=exif.tobytes())
    with tifffile.TiffFile(tmp_path / "x.tif") as tiff:
        assert 271 in tiff.pages.first.tags
        assert 50706 not in tiff.pages.first.tags


def test_texts_of_any_characters_are_written(tmp_path):
    text = "a\0b\ud800c😀µ\n"
    fields = {"description": text, "text": {"Author": text}, "channels": (text, "b")}
    fields |= {"imagej": {"unit": "\u00b5m😀", "Info": text}}
    for kind in FORMS:
        write(tmp_path / "x.tif", ramp((2, 20, 30)), kind, "CYX", **fields)
        with tifffile.TiffFile(tmp_path / "x.tif") as tiff:
            assert tiff.pages.first.tags["Artist"].value == "ab?c😀µ"
            assert np.array_equal(tiff.asarray(), ramp((2, 20, 30)))
            if kind == "imagej":
                assert tiff.imagej_metadata["unit"] == "\\u00B5m\\uD83D\\uDE00"


@pytest.mark.parametrize("block", [b"junk", camera_exif("little")[:60], b"II*\0\x08\0\0\0\xff\xff"])
def test_damaged_exif_does_no_harm(tmp_path, block):
    write(tmp_path / "x.tif", ramp((20, 30)), exif=block)
    assert np.array_equal(tifffile.imread(tmp_path / "x.tif"), ramp((20, 30)))


def test_profile_xmp_iptc_texts_and_tags_are_kept(tmp_path):
    iptc = b"\x1c\x02\x05\x00\x05title"
    text = {"Author": "Ångström", "Copyright": "© me", "Creation Time": "Tue, 07 May 2024 10:11:12 +0000"}
    text |= {"Software": "Camera 1.0", "Title": "Bäume", "Disclaimer": "none"}
    geo = {
        33550: Tag(12, 3, (1.0, 1.0, 0.0)),
        34735: Tag(3, 4, (1, 1, 0, 0)),
        34737: Tag(2, 7, "WGS 84|"),
        274: Tag(3, 1, 6),
        330: Tag(4, 1, 8),
    }
    fields = {"icc": PROFILE, "xmp": b"<x:xmpmeta/>", "iptc": iptc, "text": text, "tags": geo}
    notes = write(tmp_path / "x.tif", ramp((20, 30, 3), "uint8"), description="Grüße aus 東京", **fields)
    assert notes == ("text 'Disclaimer' dropped",)
    with tifffile.TiffFile(tmp_path / "x.tif") as tiff:
        tags = tiff.pages.first.tags
        assert tags["ImageDescription"].value == "Grüße aus 東京"
        assert tags["Artist"].value == "Ångström"
        assert tags["Copyright"].value == "© me"
        assert tags["DateTime"].value == "2024:05:07 10:11:12"
        assert tags["DocumentName"].value == "Bäume"
        assert tags["ModelPixelScaleTag"].value == (1.0, 1.0, 0.0)
        assert tags["GeoKeyDirectoryTag"].value == (1, 1, 0, 0)
        assert tags["GeoAsciiParamsTag"].value == "WGS 84|"
        assert 274 not in tags
        assert 330 not in tags
    with Image.open(tmp_path / "x.tif") as image:
        assert image.info["icc_profile"] == PROFILE
        assert image.info["xmp"] == b"<x:xmpmeta/>"
        assert IptcImagePlugin.getiptcinfo(image) == {(2, 5): b"title"}
    found = pyvips.Image.new_from_file(str(tmp_path / "x.tif"))
    assert found.get("icc-profile-data") == PROFILE
    assert found.get("xmp-data") == b"<x:xmpmeta/>"
    assert found.get("iptc-data").startswith(iptc)


@pytest.mark.parametrize("text", ["2024-05-07T10:11:12+02:00", "2024-05-07 10:11:12", "2024:05:07 10:11:12"])
def test_times_are_written_as_tiff_has_them(tmp_path, text):
    write(tmp_path / "x.tif", ramp((20, 30)), text={"Creation Time": text})
    with tifffile.TiffFile(tmp_path / "x.tif") as tiff:
        assert tiff.pages.first.tags["DateTime"].value == "2024:05:07 10:11:12"
    assert write(tmp_path / "x.tif", ramp((20, 30)), text={"Creation Time": "long ago"}) == (
        "text 'Creation Time' dropped",
    )


@pytest.mark.parametrize("alpha", [0, 1, 2])
@pytest.mark.parametrize("samples", [2, 4, 5])
def test_extra_samples_mean_what_they_meant(tmp_path, samples, alpha):
    write(tmp_path / "x.tif", ramp((20, 30, samples), "uint8"), alpha=alpha)
    with tifffile.TiffFile(tmp_path / "x.tif") as tiff:
        expected = (alpha,) if samples != 5 else (0, 0, 0, 0)
        assert tiff.pages.first.extrasamples == expected
        assert tiff.pages.first.photometric == (2 if samples == 4 else 1)


def imagej_source(path):
    array = ramp((2, 3, 2, 20, 30))
    luts = [np.stack([np.arange(256, dtype=np.uint8) * (c == i) for i in range(3)]) for c in (1, 2)]
    extra = {"LUTs": luts, "Ranges": (0.0, 100.0, 5.0, 900.0), "Labels": [f"µ{n}" for n in range(12)]}
    extra |= {"Info": "Grüße\nline two", "Overlays": [b"Iout1", b"Iout2"], "ROI": b"Iout3"}
    plain = {"unit": "\\u00B5m", "spacing": 2.5, "finterval": 1.5, "min": 3.0, "max": 800.0}
    plain |= {"mode": "composite", "loop": True, "vunit": "OD", "cf": 0, "c0": -1.5, "c1": 0.25}
    tifffile.imwrite(
        path, array, imagej=True, resolution=(4, 2), metadata={"axes": "TZCYX", **extra, **plain}
    )
    with tifffile.TiffFile(path) as tiff:
        return array, tiff.imagej_metadata


def test_imagej_keeps_all_that_it_stores(tmp_path):
    array, before = imagej_source(tmp_path / "a.tif")
    sizes = {
        "X": (0.25, "micrometer"),
        "Y": (0.5, "micrometer"),
        "Z": (2.5, "micrometer"),
        "T": (1.5, "second"),
    }
    write(tmp_path / "b.tif", array, "imagej", "TZCYX", imagej=before, sizes=sizes)
    with tifffile.TiffFile(tmp_path / "b.tif") as tiff:
        after = dict(tiff.imagej_metadata)
        assert tiff.pages.first.tags["XResolution"].value == (4, 1)
        assert tiff.pages.first.tags["YResolution"].value == (2, 1)
        assert tiff.pages.first.tags["ResolutionUnit"].value == 1
        assert "kbnet 0.9" in tiff.pages.first.tags["Software"].value
    luts, old = after.pop("LUTs"), dict(before)
    assert np.array_equal(luts, old.pop("LUTs"))
    assert after == old


def test_hyperstacks_are_calibrated_from_sources_of_other_kinds(tmp_path):
    omero = {"channels": [{"color": "00FF00"}, {"color": "FF00FF"}]}
    sizes = {
        "X": (0.5, "micrometer"),
        "Y": (0.5, "micrometer"),
        "Z": (0.002, "millimeter"),
        "T": (2, "minute"),
    }
    fields = {"sizes": sizes, "offsets": {"X": 10.0}, "attributes": {"ome": {"omero": omero}}}
    fields |= {"form": "zarr", "description": "Grüße", "channels": ("GFP", "RFP")}
    write(tmp_path / "x.tif", ramp((2, 3, 20, 30)), "imagej", "CZYX", **fields)
    with tifffile.TiffFile(tmp_path / "x.tif") as tiff:
        found = tiff.imagej_metadata
    assert (found["unit"], found["finterval"], found["xorigin"]) == ("micron", 120, -20)
    assert found["spacing"] == pytest.approx(2)
    assert (found["mode"], found["Info"]) == ("composite", "Grüße")
    assert found["Labels"] == ["GFP", "RFP"] * 3
    assert [list(table[:, 255]) for table in found["LUTs"]] == [[0, 255, 0], [255, 0, 255]]


@pytest.mark.parametrize("kind", ["ome", "pyramid"])
@pytest.mark.parametrize("form", ["imagej", "zarr"])
def test_ome_knows_what_sources_of_other_kinds_say(tmp_path, kind, form):
    array, before = imagej_source(tmp_path / "a.tif")
    sizes = {"X": (0.25, "micrometer"), "Y": (0.5, "inch"), "Z": (2.5, "micrometer"), "T": (1.5, "minute")}
    colors = {"omero": {"channels": [{"color": "00FF00"}, {"color": "0000FF"}]}}
    fields = (
        {"imagej": before} if form == "imagej" else {"attributes": colors, "offsets": {"X": 7.0, "Z": 1.5}}
    )
    fields |= {"sizes": sizes, "channels": ("GFP", "µ"), "form": form, "description": "Grüße"}
    write(tmp_path / "b.ome.tif", array, kind, "TZCYX", **fields)
    with tifffile.TiffFile(tmp_path / "b.ome.tif") as tiff:
        assert tiff.series[0].axes == "TZCYX"
        assert "model denoise-gray" in tiff.pages.first.tags["Software"].value
        ome_types.validate_xml(tiff.ome_metadata)
        (image,) = ome_types.from_xml(tiff.ome_metadata).images
    pixels = image.pixels
    assert image.description == "Grüße"
    assert [c.name for c in pixels.channels] == ["GFP", "µ"]
    assert [c.color.as_hex() for c in pixels.channels] == ["#0f0", "#00f"]
    assert (pixels.physical_size_y, pixels.physical_size_y_unit.value) == (0.5, "in")
    assert (pixels.time_increment, pixels.time_increment_unit.value) == (1.5, "min")
    if form == "zarr":
        assert (pixels.planes[0].position_x, pixels.planes[0].position_z) == (7.0, 1.5)


# Points 10 and 12: what was done is recorded; captions of any letters.


@pytest.mark.parametrize("kind", FORMS)
def test_what_was_done_is_recorded_with_what_made_the_input(tmp_path, kind):
    done = "kbnet 0.9; model denoise-gray; sha256 0a1b; range 0 to 255"
    write(tmp_path / "x.tif", ramp((20, 30)), kind)
    write(tmp_path / "y.tif", ramp((20, 30)), kind, text={"Software": "Kamera für Bäume"})
    for name, expected in (("x.tif", done), ("y.tif", f"{done}; input by Kamera für Bäume")):
        with tifffile.TiffFile(tmp_path / name) as tiff:
            assert tiff.pages.first.tags["Software"].value == expected


def test_without_history_no_software_is_named(tmp_path):
    write_tiff(tmp_path / "x.tif", [(ramp((20, 30)), Metadata(axes="YX"))], "tiff")
    with tifffile.TiffFile(tmp_path / "x.tif") as tiff:
        assert 305 not in tiff.pages.first.tags


@pytest.mark.parametrize(
    ("shape", "axes", "caption", "kept"),
    [
        ((2, 20, 30), "TYX", None, True),
        ((2, 20, 30), "TYX", "Grüße", False),
        ((1, 20, 30), "TYX", "Grüße", False),
        ((2, 3, 20, 30), "TCYX", "Grüße", True),
        ((2, 20, 30, 3), "ZYXS", None, True),
    ],
)
def test_axes_of_plain_stacks_are_kept_unless_the_caption_takes_their_place(
    tmp_path, shape, axes, caption, kept
):
    write(tmp_path / "x.tif", ramp(shape, "uint8"), "tiff", axes, description=caption)
    with tifffile.TiffFile(tmp_path / "x.tif") as tiff:
        assert np.array_equal(tiff.asarray(), np.squeeze(ramp(shape, "uint8")))
        if kept:
            assert (tiff.series[0].kind, tiff.series[0].axes) == ("shaped", axes)
            assert json.loads(tiff.pages.first.description).get("description") == caption
        else:
            assert tiff.pages.first.description == caption


# What is chosen, and what is refused before any work.


def frames(shape, axes, dtype="uint16", **fields):
    return [Frame(shape, np.dtype(dtype), Metadata(axes=axes, **fields))]


@pytest.mark.parametrize(
    ("given", "name", "form"),
    [
        (frames((9, 9, 3), "YXS"), "x.tif", "tiff"),
        (frames((4, 9, 9), "ZYX"), "x.tif", "tiff"),
        (frames((4, 9, 9), "CYX", channels=("a", "b", "c", "d")), "x.tif", "ome"),
        (frames((30000, 30000, 3), "YXS"), "x.tif", "tiff"),
        (frames((30000, 30000, 3), "YXS", levels=5), "x.tif", "pyramid"),
        (frames((9, 9), "YX"), "x.OME.tiff", "ome"),
        (frames((4, 9, 9), "ZYX", form="imagej"), "x.tif", "imagej"),
        (frames((4, 9, 9), "ZYX", form="imagej"), "x.ome.tif", "ome"),
        (frames((4, 9, 9), "ZYX", "float64", form="imagej"), "x.tif", "ome"),
        (frames((9, 9, 3), "YXS", "uint16", form="imagej"), "x.tif", "ome"),
        (frames((5000, 9999, 99), "ZYX", form="imagej"), "x.tif", "ome"),
        (frames((4, 9, 9), "ZYX", form="ome"), "x.tif", "ome"),
        (frames((4, 9, 9), "ZYX", form="zarr", levels=3), "x.tif", "ome"),
        (frames((3000, 3000), "YX", form="zarr", levels=3), "x.tif", "pyramid"),
        (frames((9000, 9000), "YX", form="ome"), "x.ome.tif", "pyramid"),
        (frames((4, 9, 9), "ZYX", "int64", form="zarr"), "x.tif", "tiff"),
        (frames((9, 9), "YX") + frames((8, 8, 3), "YXS"), "x.tif", "tiff"),
        (frames((9, 9), "YX", form="imagej") + frames((8, 8), "YX", form="ome"), "x.tif", "ome"),
    ],
)
def test_the_form_follows_the_source(given, name, form):
    assert choose_form(given, name) == form
    check_tiff(form, given, name)


@pytest.mark.parametrize(
    ("form", "given", "fix"),
    [
        ("imagej", frames((9, 9), "YX", dtype), "--format ome")
        for dtype in ("int64", "float64", "bool", "int32", "uint32", "int8")
    ]
    + [
        ("imagej", frames((9, 9, 3), "YXS", "float32"), "--format ome"),
        ("imagej", frames((9, 9, 2), "YXS", "uint8"), "--format ome"),
        ("imagej", frames((9, 9), "YX") * 2, "--format ome"),
        ("imagej", frames((50000, 50000), "YX"), "--format ome"),
        ("ome", frames((9, 9), "YX", "int64"), "--format tiff"),
        ("pyramid", frames((9, 9), "YX", "uint64"), "--format tiff"),
        ("ome", frames((9, 9), "YX", "complex64"), "--format tiff"),
        ("tiff", frames((9, 9), "YX", "complex64"), ".zarr"),
        ("tiff", frames((9, 9, 3), "YXS", "bool"), ".zarr"),
        ("jpeg", frames((9, 9), "YX"), "use tiff, imagej, ome, pyramid"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_any_work(form, given, fix):
    with pytest.raises(ValueError, match=r"^result\.tif: ") as error:
        check_tiff(form, given, "result.tif")
    assert fix in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_plain_tiff_stores_long_integers(tmp_path, dtype):
    array = ramp((20, 30), dtype) - 5
    write(tmp_path / "x.tif", array)
    assert np.array_equal(tifffile.imread(tmp_path / "x.tif"), array)


@pytest.mark.parametrize("kind", ["tiff", "ome", "pyramid"])
def test_single_bits_are_stored(tmp_path, kind):
    array = ramp((20, 30), "bool")
    write(tmp_path / "x.tif", array, kind)
    assert np.array_equal(tifffile.imread(tmp_path / "x.tif"), array)
    assert np.array_equal(pillow(tmp_path / "x.tif"), array)


def test_plain_tiff_needs_no_optional_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ome_types", None)
    write(tmp_path / "x.tif", ramp((20, 30)))
    write(tmp_path / "y.tif", ramp((20, 30)), "imagej")
    assert choose_form(frames((9, 9), "YX", form="ome"), "x.tif") == "ome"
    with pytest.raises(ValueError, match=r"pip install 'kbnet\[arrays\]'"):
        check_tiff("ome", frames((9, 9), "YX"), "x.tif")


@pytest.mark.parametrize(
    ("kind", "lost"),
    [
        (
            "tiff",
            ["OME-XML", "names of channels", "steps in depth and time", "positions", "what ImageJ stores"],
        ),
        ("imagej", ["OME-XML"]),
        ("ome", []),
    ],
)
def test_what_a_form_cannot_store_is_said(tmp_path, kind, lost):
    fields = {"ome": "<OME/>"} if kind != "ome" else {}
    fields |= {"channels": ("a", "b"), "sizes": {"Z": (1.0, "micrometer")}, "offsets": {"Z": 1.0}}
    notes = write(tmp_path / "x.tif", ramp((2, 3, 20, 30)), kind, "CZYX", imagej={"unit": "um"}, **fields)
    assert notes == tuple(f"{what} dropped" for what in lost)
