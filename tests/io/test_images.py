"""Pictures of every format keep pixels, dtype, profile and resolution when written and read."""

from __future__ import annotations

import argparse

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps

from kbnet_plugin.cli import restore
from kbnet_plugin.io import Metadata, images, open_images, read_image, write_image, write_images
from kbnet_plugin.io.tiff.writer import FORMS

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def pixels(shape, dtype):
    random = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        return random.normal(size=shape).astype(dtype)
    limits = np.iinfo(dtype)
    return random.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def same(found, expected):
    return found.dtype == expected.dtype and np.array_equal(found, expected)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 2), (5, 7, 3), (5, 7, 4), (1, 1), (1, 9, 3)])
@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [(".png", "u1"), (".png", "u2")]
    + [(".tif", d) for d in ("u1", "u2", "u4", "i2", "i4", "f2", "f4", "f8")],
)
def test_what_is_written_is_read(tmp_path, shape, suffix, dtype):
    array = pixels(shape, dtype)
    write_image(tmp_path / f"x{suffix}", array)
    assert same(read_image(tmp_path / f"x{suffix}")[0], array)


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG"])
@pytest.mark.parametrize("shape", [(32, 48), (32, 48, 3)])
def test_jpeg_is_read_and_written_nearly(tmp_path, shape, suffix):
    ramp = np.linspace(0, 255, 48, dtype=np.uint8) * np.ones((32, 1), np.uint8)
    array = ramp if len(shape) == 2 else np.stack([ramp, ramp[:, ::-1], ramp], axis=2)
    write_image(tmp_path / f"x{suffix}", array)
    found, _ = read_image(tmp_path / f"x{suffix}")
    assert found.shape == array.shape
    assert np.abs(found.astype(int) - array).max() <= 6


def test_one_channel_on_the_last_axis_is_gray(tmp_path):
    array = pixels((5, 7, 1), "u1")
    write_image(tmp_path / "x.png", array)
    assert same(read_image(tmp_path / "x.png")[0], array[..., 0])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_profile_exif_and_resolution_are_carried_over(tmp_path, suffix, dtype):
    if (suffix, dtype) == (".jpg", "u2"):
        dtype = "u1"
    exif = Image.Exif()
    exif[0x010F] = "Camera"
    given = Metadata(
        icc=PROFILE,
        exif=exif.tobytes().removeprefix(b"Exif\0\0"),
        resolution=(300.0, 150.0),
        resolution_unit="inch",
        description="a text",
    )
    write_image(tmp_path / f"x{suffix}", pixels((5, 7, 3), dtype), given)
    _, found = read_image(tmp_path / f"x{suffix}")
    assert found.icc == PROFILE
    assert found.dpi == pytest.approx(given.dpi, rel=1e-3)
    assert found.description == "a text"
    with Image.open(tmp_path / f"x{suffix}") as image:
        assert image.getexif()[0x010F] == "Camera"
    write_image(tmp_path / f"y{suffix}", pixels((5, 7, 3), dtype), found)
    assert read_image(tmp_path / f"y{suffix}")[1] == found


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_orientation_is_applied_and_removed(tmp_path, suffix, orientation):
    path, array = tmp_path / f"x{suffix}", np.kron(pixels((2, 3), "u1"), np.ones((16, 16), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "Camera"
    if suffix == ".tif":
        tifffile.imwrite(path, array, extratags=[(0x0112, 3, 1, orientation, True)], photometric="minisblack")
    else:
        Image.fromarray(array).save(path, exif=exif, **({"quality": 100} if suffix == ".jpg" else {}))
    upright = Image.fromarray(array)
    upright.getexif()[0x0112] = orientation
    found, metadata = read_image(path)
    np.testing.assert_allclose(found, ImageOps.exif_transpose(upright), atol=1)
    write_image(path, found, metadata)
    with Image.open(path) as again:
        assert again.getexif().get(0x0112, 1) == 1
        assert suffix == ".tif" or again.getexif()[0x010F] == "Camera"


@pytest.mark.parametrize("kept", [0, 3, 30, 0.5, 0.95])
@pytest.mark.parametrize(
    ("suffix", "dtype"), [(".png", "u1"), (".png", "u2"), (".jpg", "u1"), (".tif", "f4"), (".tiff", "u2")]
)
def test_a_truncated_picture_is_named_in_one_line(tmp_path, suffix, dtype, kept):
    path = tmp_path / f"x{suffix}"
    write_image(path, pixels((64, 96, 3), dtype))
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(
        ValueError, match=rf"x\{suffix}: (damaged or incomplete|damaged, or not a) (PNG|JPEG|TIFF)"
    ) as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_a_wrong_suffix_is_named_with_the_right_one(tmp_path):
    write_image(tmp_path / "x.jpg", pixels((8, 8), "u1"))
    (tmp_path / "x.jpg").rename(tmp_path / "x.tif")
    with pytest.raises(
        ValueError, match=r"x\.tif: a JPEG by its content but a TIFF by its name; .* end in \.jpg"
    ):
        read_image(tmp_path / "x.tif")


def test_other_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"x\.png: no such file"):
        read_image(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"x\.bmp: unknown image type '\.bmp'; known are \.png, \.jpg"):
        read_image(tmp_path / "x.bmp")
    (tmp_path / "x.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"x\.png: damaged, or not a PNG"):
        read_image(tmp_path / "x.png")


def test_pages_of_different_sizes_are_several_images(tmp_path):
    pages = [(pixels((n, 9, 3), "u1"), Metadata("YXS")) for n in (8, 7)]
    write_images(tmp_path / "y.tif", pages)
    with open_images(tmp_path / "y.tif") as found:
        for image, (array, _) in zip(found, pages, strict=True):
            assert same(np.asarray(image.array[()]), array)
    with pytest.raises(ValueError, match=r"y\.tif: contains 2 images"):
        read_image(tmp_path / "y.tif")
    with pytest.raises(ValueError, match=r"z\.png: 2 images are written as TIFF or OME-Zarr"):
        write_images(tmp_path / "z.png", pages)


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "named"),
    [
        ("x.jpg", "u2", (4, 4), "JPEG cannot store uint16; write .png or .tif"),
        ("x.png", "f4", (4, 4), "PNG cannot store float32; write .tif"),
        ("x.jpg", "u1", (4, 4, 4), "JPEG has no opacity; write .png or .tif"),
        ("x.png", "u1", (4, 4, 5), "a PNG is"),
        ("x.gif", "u1", (4, 4), "unknown image type '.gif'"),
        ("x.webp", "u1", (4, 4), "WebP is only read; results are written as PNG, JPEG, TIFF or OME-Zarr"),
    ],
)
def test_what_a_format_cannot_store_is_named_and_nothing_written(tmp_path, name, dtype, shape, named):
    with pytest.raises(ValueError, match=f"{name}: {named}"):
        write_image(tmp_path / name, np.zeros(shape, dtype))
    assert not any(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_picture(tmp_path, monkeypatch):
    write_image(tmp_path / "x.png", pixels((8, 8), "u1"))
    before = (tmp_path / "x.png").read_bytes()

    def fail(path, *_args):
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(images, "write_picture", fail)
    with pytest.raises(OSError, match=r"x\.png: cannot be written \(no space left\)"):
        write_image(tmp_path / "x.png", pixels((8, 8), "u1"))
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]
    assert (tmp_path / "x.png").read_bytes() == before


def test_the_command_offers_every_kind_of_tiff():
    parser = argparse.ArgumentParser()
    restore.add_arguments(parser)
    (option,) = (action for action in parser._actions if "--format" in action.option_strings)
    assert option.choices == FORMS
