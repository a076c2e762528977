"""Raw photographs are developed plainly, upright, in sRGB, or refused by name."""

from __future__ import annotations

import importlib.util
import io

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from kbnet_plugin.io.embedded import exif_text, read_tag
from kbnet_plugin.io.pictures.raw import read_raw

NOTE = "raw photograph developed with LibRaw: camera white balance, sRGB, 16 bits"
BLACK, WHITE = 256, 16383
NEUTRAL = np.array([0.5, 1.0, 0.6])  # what the camera sees of white
XYZ_TO_SRGB = np.linalg.inv(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
RAMP = np.linspace(0, 1, 64) * np.ones((48, 1))


def write_dng(path, linear, orientation=1):
    """Write the mosaic of a camera that sees sRGB's primaries, of a gray picture with values from 0 to 1."""

    def fractions(values):
        return tuple(int(n) for value in np.ravel(values) for n in (np.rint(value * 10000), 10000))

    colours = np.tile([[0, 1], [1, 2]], (linear.shape[0] // 2, linear.shape[1] // 2))
    mosaic = np.rint(BLACK + linear * NEUTRAL[colours] * (WHITE - BLACK)).astype(np.uint16)
    tags = [
        (274, 3, 1, orientation),
        (271, 2, 0, "Maker"),
        (272, 2, 0, "Camera"),
        (306, 2, 0, "2020:01:02 03:04:05"),
        (33421, 3, 2, (2, 2)),  # CFARepeatPatternDim
        (33422, 1, 4, bytes([0, 1, 1, 2])),  # CFAPattern
        (50706, 1, 4, bytes([1, 4, 0, 0])),  # DNGVersion
        (50708, 2, 0, "Maker Camera"),  # UniqueCameraModel
        (50714, 4, 1, BLACK),
        (50717, 4, 1, WHITE),
        (50721, 10, 9, fractions(np.diag(NEUTRAL) @ XYZ_TO_SRGB)),  # ColorMatrix1
        (50728, 5, 3, fractions(NEUTRAL)),  # AsShotNeutral
        (50778, 3, 1, 21),  # CalibrationIlluminant1: D65
    ]
    extra = [(*tag, True) for tag in tags]
    tifffile.imwrite(path, mosaic, photometric=32803, metadata=None, software=False, extratags=extra)


@pytest.fixture(autouse=True)
def _rawpy():
    pytest.importorskip("rawpy")


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_raw_photograph_is_developed_plainly(tmp_path, orientation):
    write_dng(tmp_path / "x.dng", RAMP, orientation)
    found = read_raw(tmp_path / "x.dng")
    assert (found.array.dtype, found.metadata.axes, found.notes) == (np.uint16, "YXS", (NOTE,))
    array = np.rot90(found.array, {1: 0, 3: 2, 6: 1, 8: -1}[orientation])
    encoded = np.where(RAMP <= 0.0031308, 12.92 * RAMP, 1.055 * RAMP ** (1 / 2.4) - 0.055)
    middle = (slice(4, -4), slice(4, -4))
    for channel in range(3):
        np.testing.assert_allclose(array[middle][..., channel] / 65535, encoded[middle], atol=2e-3)


def test_camera_and_profile_are_kept(tmp_path):
    write_dng(tmp_path / "x.dng", RAMP, 6)
    found = read_raw(tmp_path / "x.dng").metadata
    said = [exif_text(found.exif, tag) for tag in (271, 272, 306)]
    assert said == ["Maker", "Camera", "2020:01:02 03:04:05"]
    assert read_tag(found.exif, 274) is None
    profile = ImageCms.ImageCmsProfile(io.BytesIO(found.icc))
    assert "sRGB" in ImageCms.getProfileDescription(profile)
    assert read_raw(tmp_path / "x.dng").metadata == found  # the profile does not name the time


@pytest.mark.parametrize("kept", [0, 3, 100, 0.5, 0.99])
def test_a_truncated_raw_photograph_is_named(tmp_path, capfd, kept):
    path = tmp_path / "x.dng"
    write_dng(path, RAMP)
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(ValueError, match=r"x\.dng: (damaged or incomplete|not a) raw photograph") as caught:
        read_raw(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_photograph_without_a_picture_is_named(tmp_path):
    write_dng(tmp_path / "x.dng", np.zeros((48, 64)))
    with pytest.raises(ValueError, match=r"x\.dng: damaged .*contains no picture"):
        read_raw(tmp_path / "x.dng")


def test_other_files_are_named(tmp_path, monkeypatch):
    Image.new("L", (8, 8)).save(tmp_path / "x.jpg")
    (tmp_path / "x.jpg").rename(tmp_path / "x.nef")
    with pytest.raises(ValueError, match=r"x\.nef: a JPEG by its content .* rename it to end in \.jpg"):
        read_raw(tmp_path / "x.nef")
    tifffile.imwrite(tmp_path / "x.dng", np.zeros((8, 8), np.uint8), photometric="minisblack")
    with pytest.raises(ValueError, match=r"x\.dng: not a raw photograph that LibRaw knows; convert"):
        read_raw(tmp_path / "x.dng")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"x\.dng: reading raw photograph files needs .*kbnet\[photos\]"):
        read_raw(tmp_path / "x.dng")
