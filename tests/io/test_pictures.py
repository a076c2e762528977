"""Pictures keep pixels, dtype, profile and resolution when written and read."""

from __future__ import annotations

import io
import logging

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps

from kbnet_plugin.io.pictures import Metadata, check_format, open_tiff, read_image, write_image

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
    given = Metadata(icc=PROFILE, exif=exif.tobytes(), dpi=(300.0, 150.0), description="a text")
    write_image(tmp_path / f"x{suffix}", pixels((5, 7, 3), dtype), given)
    _, found = read_image(tmp_path / f"x{suffix}")
    assert found.icc == PROFILE
    assert found.dpi == pytest.approx(given.dpi, rel=1e-3)
    if suffix == ".tif":
        assert found.description == "a text"
    else:
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


def test_sixteen_bit_png_with_orientation_keeps_its_depth(tmp_path):
    array, exif = pixels((4, 6, 3), "u2"), Image.Exif()
    exif[0x0112] = 6
    write_image(tmp_path / "x.png", array, Metadata(exif=exif.tobytes()))
    assert same(read_image(tmp_path / "x.png")[0], np.rot90(array, -1))


def test_palettes_become_colour(tmp_path):
    colour = np.zeros((4, 4, 3), np.uint8)
    colour[:2, :2], colour[2:, 1:] = (250, 10, 20), (5, 100, 200)
    image = Image.fromarray(colour).quantize(4)
    image.save(tmp_path / "x.png")
    image.save(tmp_path / "x.tif")
    assert same(read_image(tmp_path / "x.png")[0], colour)
    assert same(read_image(tmp_path / "x.tif")[0], colour)
    image.save(tmp_path / "y.png", transparency=0)
    assert read_image(tmp_path / "y.png")[0].shape == (4, 4, 4)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_one_bit_becomes_black_and_white(tmp_path, suffix):
    array = pixels((5, 9), "u1") > 127
    Image.fromarray(array).save(tmp_path / f"x{suffix}")
    assert same(read_image(tmp_path / f"x{suffix}")[0], array.astype(np.uint8) * 255)


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_inverted_and_planar_tiffs_are_read_as_they_look(tmp_path, dtype):
    array = pixels((5, 7), dtype)
    tifffile.imwrite(tmp_path / "x.tif", ~array, photometric="miniswhite")
    assert same(read_image(tmp_path / "x.tif")[0], array)
    colour = pixels((3, 5, 7), dtype)
    tifffile.imwrite(tmp_path / "y.tif", colour, photometric="rgb", planarconfig="separate")
    assert same(read_image(tmp_path / "y.tif")[0], np.moveaxis(colour, 0, -1))


@pytest.mark.parametrize("alpha", [1, 2])
def test_the_kind_of_alpha_is_kept(tmp_path, alpha):
    array = pixels((5, 7, 4), "u1")
    tifffile.imwrite(tmp_path / "x.tif", array, photometric="rgb", extrasamples=[alpha])
    write_image(tmp_path / "y.tif", *read_image(tmp_path / "x.tif"))
    with tifffile.TiffFile(tmp_path / "y.tif") as tiff:
        assert tiff.pages.first.extrasamples == (alpha,)


def test_centimetres_are_understood(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", pixels((5, 7), "u1"), resolution=(100, 50), resolutionunit=3)
    assert read_image(tmp_path / "x.tif")[1].dpi == pytest.approx((254, 127))


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


def test_an_uncompressed_truncated_tiff_is_named(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", pixels((64, 96, 3), "u2"), photometric="rgb")
    content = (tmp_path / "x.tif").read_bytes()
    (tmp_path / "x.tif").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"x\.tif: damaged or incomplete TIFF"):
        read_image(tmp_path / "x.tif")


def test_files_that_are_open_leave_the_log_as_it_was(tmp_path, caplog):
    logger = logging.getLogger("tifffile")
    for name in "ab":
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels((3, 20, 30), "u1"), photometric="minisblack")
    with open_tiff(tmp_path / "a.tif"), open_tiff(tmp_path / "b.tif"):
        logger.error("while both are open")
    logger.error("afterwards")
    assert caplog.messages == ["while both are open", "afterwards"]


def test_a_stack_that_was_cut_short_is_named_while_another_is_open(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", pixels((3, 20, 30), "u1"), photometric="minisblack")
    with tifffile.TiffWriter(tmp_path / "b.tif") as writer:
        for plane in pixels((9, 20, 30), "u1"):
            writer.write(plane, photometric="minisblack", metadata=None)
    whole = (tmp_path / "b.tif").read_bytes()
    (tmp_path / "b.tif").write_bytes(whole[: len(whole) // 2])
    with open_tiff(tmp_path / "a.tif"), pytest.raises(ValueError, match="pages are missing"):
        open_tiff(tmp_path / "b.tif").__enter__()


def test_a_wrong_suffix_is_named_with_the_right_one(tmp_path):
    write_image(tmp_path / "x.jpg", pixels((8, 8), "u1"))
    (tmp_path / "x.jpg").rename(tmp_path / "x.tif")
    with pytest.raises(
        ValueError, match=r"x\.tif: a JPEG by its content but a TIFF by its name; .* end in \.jpg"
    ):
        read_image(tmp_path / "x.tif")


def test_other_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"x\.png: no such image file"):
        read_image(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"x\.bmp: unknown image type '\.bmp'; use PNG, JPEG or TIFF"):
        read_image(tmp_path / "x.bmp")
    (tmp_path / "x.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"x\.png: damaged, or not a PNG"):
        read_image(tmp_path / "x.png")


def test_anything_but_a_single_gray_or_colour_picture_is_named(tmp_path):
    Image.fromarray(pixels((8, 8, 4), "u1"), "CMYK").save(tmp_path / "x.jpg")
    with pytest.raises(ValueError, match=r"x\.jpg: pixels are CMYK; convert"):
        read_image(tmp_path / "x.jpg")
    tifffile.imwrite(tmp_path / "x.tif", pixels((3, 8, 8), "u1"), photometric="minisblack")
    with pytest.raises(ValueError, match=r"x\.tif: a stack"):
        read_image(tmp_path / "x.tif")
    with tifffile.TiffWriter(tmp_path / "y.tif") as tiff:
        for size in (8, 9):
            tiff.write(pixels((size, size), "u1"), photometric="minisblack")
    with pytest.raises(ValueError, match=r"y\.tif: contains 2 pictures"):
        read_image(tmp_path / "y.tif")
    frames = [Image.fromarray(pixels((8, 8), "u1")), Image.fromarray(255 - pixels((8, 8), "u1"))]
    frames[0].save(tmp_path / "z.png", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=r"z\.png: an animation of 2 frames"):
        read_image(tmp_path / "z.png")


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "named"),
    [
        ("x.jpg", "u2", (4, 4), "JPEG cannot store uint16; write .png or .tif"),
        ("x.png", "f4", (4, 4), "PNG cannot store float32; write .tif"),
        ("x.jpg", "u1", (4, 4, 4), "JPEG has no alpha channel"),
        ("x.png", "u1", (4, 4, 5), "a picture is"),
        ("x.png", "u1", (4,), "a picture is"),
        ("x.gif", "u1", (4, 4), "unknown image type '.gif'"),
    ],
)
def test_what_a_format_cannot_store_is_named_and_nothing_written(tmp_path, name, dtype, shape, named):
    with pytest.raises(ValueError, match=f"{name}: {named}"):
        check_format(tmp_path / name, np.dtype(dtype), shape)
    with pytest.raises(ValueError, match=f"{name}: {named}"):
        write_image(tmp_path / name, np.zeros(shape, dtype))
    assert not any(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_picture(tmp_path, monkeypatch):
    write_image(tmp_path / "x.png", pixels((8, 8), "u1"))
    before = (tmp_path / "x.png").read_bytes()

    def fail(_self, file, *_args, **_options):
        file.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match=r"x\.png: cannot be written \(no space left\)"):
        write_image(tmp_path / "x.png", pixels((8, 8), "u1"))
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]
    assert (tmp_path / "x.png").read_bytes() == before


def test_16_bit_png_chunks_are_valid(tmp_path):
    write_image(tmp_path / "x.png", pixels((8, 8, 3), "u2"), Metadata(icc=PROFILE, dpi=(96, 96)))
    content = (tmp_path / "x.png").read_bytes()
    with Image.open(io.BytesIO(content)) as image:
        image.verify()  # checks every chunk's CRC
    assert imagecodecs.png_decode(content).dtype == np.uint16
