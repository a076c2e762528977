"""The noise that is measured in a picture is the noise that was added."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from kbnet_plugin.arrays.axes import layout
from kbnet_plugin.arrays.noise import measure_noise, sample
from kbnet_plugin.inference.choose import choose_treatment, measure_channels

SIDE = 256


def scene(side=SIDE, channels=1):
    """Draw smooth ramps and some blobs with edges, in 0..1."""
    y, x = np.mgrid[:side, :side] / side
    blobs = ndimage.gaussian_filter((np.random.default_rng(5).random((side, side)) > 0.999) * 100.0, 3)
    base = 0.15 + 0.5 * x + 0.2 * y + 0.1 * (blobs > 1)
    return np.stack([base * (1 - 0.15 * c) for c in range(channels)], axis=2)


def rng():
    return np.random.default_rng(1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("sigma", [3, 15, 40])
def test_white_noise_is_measured_and_recognized(sigma, channels):
    noisy = 255 * scene(channels=channels) + rng().normal(0, sigma, (SIDE, SIDE, channels))
    noise = measure_noise([noisy])
    assert noise.deviation == pytest.approx(sigma, rel=0.1)
    assert noise.whiteness > 0.8
    assert (noise.chroma_whiteness is None) == (channels == 1)
    assert np.abs(noise.correlation).max() < 0.25
    assert noise.dependence < 0.5


@pytest.mark.parametrize(("gain", "read", "offset"), [(2.0, 10.0, 0), (8.0, 5.0, 500), (0.5, 20.0, 100)])
@pytest.mark.parametrize("dtype", ["<u2", ">u2", "f4", "i4"])
def test_gain_and_read_noise_of_a_camera_are_found(gain, read, offset, dtype):
    clean = 3500 * scene()
    frame = rng().poisson(clean / gain) * gain + rng().normal(0, read, clean.shape) + offset
    noise = measure_noise([np.rint(frame).astype(dtype)])
    assert noise.gain == pytest.approx(gain, rel=0.2)
    middle = float(np.median(clean))
    expected = (gain * middle + read**2) ** 0.5
    assert noise.deviation_at(np.array(middle + offset)) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("stretch", [1.0, 2.0])
def test_correlated_noise_is_recognized(stretch):
    white = rng().normal(0, 1, (SIDE, SIDE))
    shared = ndimage.gaussian_filter(white, (0.8, 0.8 * stretch))
    noisy = 255 * scene()[..., 0] + 5 * shared / shared.std()
    noise = measure_noise([noisy[..., None]])
    assert noise.whiteness < 0.4
    (right, _), (down, _) = noise.correlation
    measured = [float((shared[a] * shared[b]).mean() / shared.var()) for a, b in _NEXT]
    assert (right, down) == pytest.approx(measured, abs=0.15)
    assert noise.deviation == pytest.approx(5, rel=0.35)


_NEXT = (
    ((slice(None), slice(1, None)), (slice(None), slice(None, -1))),
    ((slice(1, None), slice(None)), (slice(None, -1), slice(None))),
)


def test_hot_and_dead_pixels_are_counted_and_do_not_widen_the_range():
    clean = 3000 * scene() + 400
    frame = clean + rng().normal(0, 20, clean.shape)
    whole = measure_noise([frame])
    places = rng().choice(SIDE * SIDE, 120, replace=False)
    spoilt = frame.copy()
    spoilt.reshape(-1)[places[:100]] = 65535
    spoilt.reshape(-1)[places[100:]] = 0
    noise = measure_noise([spoilt])
    assert noise.hot * SIDE * SIDE == pytest.approx(100, abs=5)
    assert noise.dead * SIDE * SIDE == pytest.approx(20, abs=2)
    assert noise.high == pytest.approx(whole.high, rel=0.02)
    assert noise.largest == 65535


def test_a_bright_point_imaged_by_a_lens_is_not_hot():
    frame = np.full((SIDE, SIDE), 100.0)
    for y, x in rng().integers(8, SIDE - 8, (60, 2)):
        frame[y, x] += 50000
    drawn = ndimage.gaussian_filter(frame, 0.7) + rng().normal(0, 5, frame.shape)
    assert measure_noise([drawn[..., None]]).hot == 0


def test_the_grid_of_jpeg_is_detected_and_only_there():
    picture = (255 * scene(channels=3) + rng().normal(0, 12, (SIDE, SIDE, 3))).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=30)
    assert measure_noise([np.asarray(Image.open(file))]).grid
    assert not measure_noise([picture]).grid


def test_unused_bits_and_limits_are_detected():
    frame = (4000 * scene() + rng().normal(0, 300, (SIDE, SIDE, 1))).clip(0, 2500).astype(np.uint16) * 16
    noise = measure_noise([frame])
    assert noise.step == 16
    assert noise.saturated == pytest.approx((frame == frame.max()).mean())


@pytest.mark.parametrize("value", [0.0, 7.0, np.nan, np.inf])
def test_pictures_without_measurable_noise_are_reported(value):
    assert not measure_noise([np.full((9, 9, 1), value)]).known
    assert measure_noise([np.full((64, 64, 1), value)]).deviation == 0
    spoilt = rng().normal(100, 10, (SIDE, SIDE, 1))
    spoilt[:20, :20] = value
    assert measure_noise([spoilt]).deviation == pytest.approx(10, rel=0.1)


def test_a_million_pixels_per_channel_of_a_large_stack_are_read():
    arranged = layout((40, 2, 3000, 5000), "TCYX", 3)
    for channel in range(2):
        places = sample(arranged, channel)
        assert {arranged.channel(plane) for plane, _ in places} == {channel}
        assert {plane[0] for plane, _ in places} >= {0, 39}
        area = sum((y.stop - y.start) * (x.stop - x.start) for _, (y, x) in places)
        assert 1 << 19 < area <= 1 << 20
        assert all(y.start % 8 == x.start % 8 == 0 for _, (y, x) in places)


# The automatic choice


def chosen(picture):
    array = picture[..., 0] if picture.shape[2] == 1 else picture
    return choose_treatment(measure_channels(array), array.dtype, picture.shape[2])


def eight(picture):
    return np.rint(picture).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(("channels", "model"), [(1, "denoise-gray"), (3, "denoise-color")])
@pytest.mark.parametrize("kind", ["u1", "f4"])
def test_white_noise_selects_the_model_for_white_noise(channels, model, kind):
    noisy = 255 * scene(channels=channels) + rng().normal(0, 20, (SIDE, SIDE, channels))
    found = chosen(eight(noisy) if kind == "u1" else (noisy / 255).astype(np.float32))
    assert (found.model, found.kind) == (model, "white")
    assert "white noise of about" in str(found)


@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "f4", "f8"])
def test_noise_that_grows_with_brightness_selects_the_microscope_model(dtype):
    top = 220 if dtype == "u1" else 4000
    gain = top / 60
    frame = rng().poisson(top * scene() ** 2 / gain) * gain
    found = chosen(np.rint(frame).clip(0, 255 if dtype == "u1" else None).astype(dtype))
    assert (found.model, found.kind) == ("denoise-micro", "dependent")


def camera(channels=3, sigma=5):
    shared = ndimage.gaussian_filter(rng().normal(0, 1, (SIDE, SIDE, channels)), (1, 1, 0))
    return eight(255 * scene(channels=channels) + sigma * shared / shared.std())


@pytest.mark.parametrize("channels", [1, 3])
def test_correlated_noise_is_for_its_model_or_decorrelated(channels):
    found = chosen(camera(channels))
    assert found.kind == "correlated"
    assert ("decorrelate" in found.settings) == (channels == 1)
    assert found.model == {1: "denoise-gray", 3: "denoise-photo"}[channels]
    assert "neighbouring pixels share" in str(found)


@pytest.mark.parametrize("channels", [1, 3])
def test_texture_in_parts_of_a_picture_is_not_noise(channels):
    shared = ndimage.gaussian_filter(rng().normal(0, 1, (SIDE, SIDE, channels)), (1, 1, 0))
    grass = np.geomspace(0.3, 60, SIDE)[:, None, None] * shared / shared.std()
    assert chosen(eight(255 * scene(channels=channels) + grass)).kind == "clean"


def jpeg(picture, quality, subsampling):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality, subsampling=subsampling)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize(
    ("bright", "sigma", "quality"),
    [(1, 15, 95), (1, 10, 85), (0.3, 25, 80), (1, 50, 75)],
)
def test_colour_at_half_resolution_selects_the_model_for_cameras(bright, sigma, quality, subsampling):
    noisy = eight(bright * 255 * scene(channels=3) + rng().normal(0, sigma, (SIDE, SIDE, 3)))
    found = chosen(jpeg(noisy, quality, subsampling))
    full = subsampling == "4:4:4"
    assert (found.model, found.kind) == (("denoise-color", "white") if full else ("denoise-photo", "halved"))


@pytest.mark.parametrize("sigma", [3, 10])
def test_faint_colours_in_texture_do_not_hide_white_noise(sigma):
    grain = ndimage.gaussian_filter(rng().normal(0, 1, (SIDE, SIDE, 1)), (1, 1, 0))
    texture = 255 * scene(channels=3) + 12 * grain / grain.std()
    assert chosen(eight(texture + rng().normal(0, sigma, (SIDE, SIDE, 3)))).kind == "white"


@pytest.mark.parametrize("channels", [1, 3])
def test_a_clean_picture_is_left_alone(channels):
    found = chosen(eight(255 * scene(channels=channels)))
    assert (found.kind, found.settings["strength"]) == ("clean", 0)
    assert str(found).startswith("left alone: already clean")


DATA = Path(os.environ.get("KBNET_DATA", "nothing"))


@pytest.mark.parametrize(
    ("pattern", "kind"),
    [
        ("test/CC15/*_real.png", {"correlated"}),
        ("micro/W2S/avg1/*.png", {"dependent"}),
        ("micro/FMD_samples/raw/*.png", {"dependent", "correlated"}),
    ],
)
def test_real_pictures_are_recognized(pattern, kind):
    files = sorted(DATA.glob(pattern))
    if not files:
        pytest.skip(f"no {pattern} in KBNET_DATA")
    found = [chosen(np.atleast_3d(Image.open(file))).kind for file in files]
    assert sum(k in kind for k in found) >= 0.95 * len(files)


@pytest.mark.parametrize("sigma", [5, 15, 25, 50])
@pytest.mark.parametrize(("name", "kind"), [("CBSD68", "denoise-color"), ("BSD68", "denoise-gray")])
def test_real_photographs_with_white_noise_select_its_model(name, kind, sigma):
    files = sorted((DATA / "test" / name).glob("*.png"))[::4]
    if not files:
        pytest.skip(f"no {name} in KBNET_DATA")
    right = 0
    for number, file in enumerate(files):
        image = np.atleast_3d(Image.open(file)).astype(float)
        noisy = image + np.random.default_rng([0, number]).normal(0, sigma, image.shape)
        right += chosen(eight(noisy)).model == kind and chosen((noisy / 255).astype("f4")).model == kind
    # 16 of 17: if everything bright is texture, it passes for photon noise.
    assert right >= 0.94 * len(files)


@pytest.mark.parametrize(("sigma", "quality"), [(0, 80), (0, 95), (15, 95), (25, 80)])
def test_real_photographs_with_colour_at_half_resolution_are_recognized(sigma, quality):
    files = sorted((DATA / "test" / "CBSD68").glob("*.png"))[::6]
    if not files:
        pytest.skip("no CBSD68 in KBNET_DATA")
    halved = 0
    for number, file in enumerate(files):
        image = np.asarray(Image.open(file)).astype(float)
        noisy = image + np.random.default_rng([0, number]).normal(0, sigma, image.shape)
        halved += chosen(jpeg(eight(noisy), quality, "4:2:0")).kind == "halved"
    # Two of 12 are texture all over, which hides the noise.
    assert halved >= len(files) - 2 if sigma else not halved
