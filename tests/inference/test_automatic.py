"""By default each picture gets the model and settings that suit it, and intensities are kept."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import skimage.data
from PIL import Image
from scipy import ndimage

from kbnet_plugin import Restorer, cli
from kbnet_plugin.arrays.tiling import HALO
from kbnet_plugin.inference.settings import check_decorrelate

SIDE = 160


def rng():
    return np.random.default_rng(2)


def cells(top=3500.0):
    """Make a field of soft blobs, as in fluorescence."""
    field = ndimage.gaussian_filter((rng().random((SIDE, SIDE)) > 0.995) * 1.0, 5, mode="wrap")
    return 50 + top * field / field.max()


def frame(offset=0.0):
    clean = cells()
    noise = np.random.default_rng(3)
    return clean, noise.poisson(clean / 30) * 30.0 + noise.normal(0, 40, clean.shape) + offset


def psnr(a, b):
    return 10 * np.log10(4095**2 / np.square(a - b).mean())


def test_a_frame_of_a_microscope_is_restored_equally_well_however_it_is_stored():
    clean, noisy = frame()
    counts = np.rint(noisy).clip(0, 65535).astype(np.uint16)
    named = Restorer.from_pretrained("denoise-micro", device="cpu", range="percentile")
    best = psnr(named(counts), clean)
    assert best > psnr(counts, clean) + 8
    hot = counts.copy()
    hot[80, 90] = 65535
    ways = {
        "uint16": (counts, 1, 0),
        "big-endian": (counts.astype(">u2"), 1, 0),
        "int32": (counts.astype(np.int32), 1, 0),
        "int64": (counts.astype(np.int64), 1, 0),
        "one hot pixel": (hot, 1, 0),
        "float with a hot pixel": (hot.astype(np.float32), 1, 0),
        "of 0..1": ((counts / 65535).astype(np.float32), 65535, 0),
        "tiny floats": (counts.astype(np.float64) * 1e-9, 1e9, 0),
        "offset": (np.rint(frame(500)[1]).astype(np.uint16), 1, 500),
        "negative": ((noisy - 2000).astype(np.float32), 1, -2000),
    }
    for name, (given, scale, offset) in ways.items():
        restorer = Restorer.for_image(given, device="cpu")
        assert restorer.reason.startswith("denoise-micro"), name
        assert psnr(restorer(given) * float(scale) - offset, clean) > best - 0.3, name


@pytest.mark.parametrize("name", ["grass", "gravel", "text", "microaneurysms", "hubble_deep_field", "clock"])
@pytest.mark.parametrize("peak", [20_000, 60_000])
def test_structure_in_bright_counts_is_not_removed_as_noise(name, peak):
    picture = getattr(skimage.data, name)().astype(float)
    picture = ndimage.uniform_filter(picture if picture.ndim == 2 else picture.mean(2), 2)[:256, :256]
    clean = 100 + 0.9 * peak * picture / picture.max()
    given = np.rint(rng().poisson(clean) + rng().normal(0, 5, clean.shape)).clip(0, 65535).astype(np.uint16)
    out = Restorer.for_image(given, device="cpu")(given)
    before, after = (np.square(a - clean).mean() ** 0.5 for a in (given, out))
    assert after < 1.02 * before


@pytest.mark.parametrize(
    ("dtype", "low", "high", "step"),
    [
        ("u2", 100, 600, 1),
        ("u2", 0, 1023, 1),
        ("u2", 0, 1023, 64),  # 10 bits, in the upper bits of 16
        ("u4", 0, 60000, 1),
        ("i4", -40000, 20000, 1),
        ("i8", 0, 60000, 1),
        ("i8", -(2**60), 2**50 - 2**60, 1),
        ("u8", 2**63, 2**63 + 2**50, 1),
        ("f2", 0, 100, 1),
        ("f4", 0, 1e-6, 1),
        ("f4", -1e30, 1e30, 1),
        ("f8", 1e6, 1e6 + 100, 1),
    ],
)
@pytest.mark.parametrize("colours", [1, 3])
def test_any_range_of_values_is_denoised_and_keeps_its_mean(dtype, low, high, step, colours):
    clean = (cells(0.7) - 50)[:96, :96, None] * np.array([1, 0.8, 0.6])[:colours] + 0.15
    noisy = clean + np.random.default_rng(4).normal(0, 0.05, clean.shape)

    def stored(values):
        values = values * (high - low)
        if np.dtype(dtype).kind == "f":
            return (values + low).astype(dtype)
        # Python's integers, as no float resolves the largest.
        whole = np.rint(values).astype(np.int64).astype(object) * step + low
        return whole.clip(np.iinfo(dtype).min, np.iinfo(dtype).max).astype(dtype)

    given, expected = (stored(v) if colours == 3 else stored(v)[..., 0] for v in (noisy, clean))
    out = Restorer.for_image(given, device="cpu")(given)
    assert out.dtype == given.dtype
    span = (high - low) * step
    before, after, true = (np.asarray(a, np.longdouble) - low for a in (given, out, expected))
    assert np.square((after - true) / span).mean() < np.square((before - true) / span).mean() / 4
    assert abs(after.mean() - before.mean()) < 0.01 * before.mean()


@pytest.mark.parametrize(("sigma", "quality"), [(15, 95), (25, 80)])
@pytest.mark.parametrize("subsampling", ["4:2:2", "4:2:0"])
def test_noise_is_removed_from_a_jpeg_with_colour_at_half_resolution(sigma, quality, subsampling):
    clean = (cells(200.0) * 0.9)[..., None] * np.array([1, 0.8, 0.6])
    noisy = np.rint(clean + rng().normal(0, sigma, clean.shape)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=quality, subsampling=subsampling)
    given = np.asarray(Image.open(file))
    out = Restorer.for_image(given, device="cpu")(given)
    before, after = (np.square(a - clean).mean() for a in (given, out))
    assert after < before / 10  # denoise-color alone leaves a third or more


@pytest.mark.parametrize(
    "dtype", ["?", "i1", "u1", "<i2", ">u2", "i4", "u4", "i8", "u8", "f2", "f4", ">f4", "f8"]
)
@pytest.mark.parametrize("model", [None, "denoise-color"])
def test_strength_0_returns_every_bit(dtype, model):
    bits = rng().bytes(64 * 64 * np.dtype(dtype).itemsize)  # NaN, infinity, the largest integers
    image = np.frombuffer(bits, "u1") > 127 if dtype == "?" else np.frombuffer(bits, dtype)
    image = image.reshape(64, 64)
    settings = {"device": "cpu", "strength": 0}
    restorer = Restorer.from_pretrained(model, **settings) if model else Restorer.for_image(image, **settings)
    assert restorer(image).tobytes() == image.tobytes()


@pytest.mark.parametrize("side", [9, 48, 80])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i8", "f4"])
@pytest.mark.parametrize("value", [0, 100])
def test_a_picture_of_one_value_is_left_alone(side, dtype, value):
    image = np.full((side, side), value, dtype)
    restorer = Restorer.for_image(image, device="cpu")
    assert restorer.reason == "left alone: already clean (all measured values are equal)"
    assert np.array_equal(restorer(image), image)


def test_a_constant_area_of_the_largest_integers_keeps_every_digit():
    image = 2**60 + 3 + np.rint(rng().normal(0, 2**40, (SIDE, SIDE))).astype(np.int64)
    image[:32] = 2**60 + 3
    out = Restorer.for_image(image, device="cpu")(image)
    assert np.array_equal(out[:28], image[:28])
    assert out[80:].std() < image[80:].std() / 2


def test_values_too_far_apart_to_be_measured_are_left_alone():
    image = np.full((SIDE, SIDE), -1.7e308)  # such as GDAL's mark of no data
    image[40:] = rng().normal(100, 5, image[40:].shape)
    restorer = Restorer.for_image(image, device="cpu")
    assert restorer.reason.startswith("left alone: values from -1.7e+308 to ")
    assert np.array_equal(restorer(image), image)


def test_hot_pixels_are_replaced_in_any_unit():
    noisy = frame()[1]
    noisy[80, 90] = 65000
    for unit in (1, 1e-18):
        image = noisy * unit
        out = Restorer.for_image(image, device="cpu")(image) / unit
        assert out[80, 90] < 5000


def test_dim_counts_do_not_get_worse():
    clean = 100 + 50 * (cells() - 50) / 3500
    noisy = np.rint(rng().normal(clean, 5.5)).astype(np.uint16)
    out = Restorer.for_image(noisy, device="cpu")(noisy)
    before, after = (np.square(x - clean).mean() ** 0.5 for x in (noisy.astype(float), out))
    assert after < before / 2
    assert out.mean() == pytest.approx(noisy.mean(), rel=2e-3)


def test_a_range_is_the_same_for_all_planes_of_a_channel_and_one_for_each(lively):
    planes = np.stack([frame()[1] * f for f in (1, 0.5, 0.25)]).astype(np.float32)
    stack = np.stack([planes, planes * 100 + 7])
    restorer = Restorer(lively(img_channel=1), device="cpu", range="percentile")
    out = restorer(stack, "CTYX")
    np.testing.assert_allclose(out[1], out[0] * 100 + 7, rtol=1e-3, atol=1)
    low, span = restorer.intensity_range(stack, "CTYX", (0, 2))
    assert (low, span) == restorer.intensity_range(stack, "CTYX", (0, 0))
    assert low + span > 2000  # though the last plane ends far below
    assert restorer.intensity_range(stack, "CTYX", (1, 0)).span == pytest.approx(100 * span, rel=1e-4)


def test_a_hot_pixel_neither_widens_the_range_nor_spreads():
    _, noisy = frame()
    counts = np.rint(noisy).clip(0, 65535).astype(np.uint16)
    hot = counts.copy()
    hot[80, 90] = 65535
    restorer = Restorer.for_image(counts, device="cpu")
    change = np.abs(restorer(hot).astype(int) - restorer(counts).astype(int))
    assert change.max() < 300  # of 3500; the hot pixel itself is replaced


def test_flat_saturated_and_black_areas_stay_as_they_are():
    image = np.full((SIDE, SIDE, 3), (255, 0, 128), np.float64)
    image[60:, :] = 90
    noisy = np.rint(image + (np.arange(SIDE) >= 60)[:, None, None] * rng().normal(0, 20, image.shape))
    noisy = noisy.clip(0, 255).astype(np.uint8)
    restorer = Restorer.for_image(noisy, device="cpu")
    assert "white noise" in restorer.reason
    out = restorer(noisy)
    assert np.array_equal(out[:50], noisy[:50])
    assert out[70:].astype(float).std() < 6


def test_the_correction_is_nowhere_stronger_than_the_noise(lively):
    image = (128 + rng().normal(0, 4, (SIDE, SIDE))).astype(np.float32)
    wild = Restorer(lively(img_channel=1), device="cpu", range=(0, 255))
    limited = wild.with_settings(limit=1.5)
    before, after = ((restorer(image) - image) for restorer in (wild, limited))
    assert before.std() > 12
    local = np.sqrt(ndimage.uniform_filter(np.square(after), 17))
    assert 3 < local.mean() < 1.1 * 1.5 * 4


def test_the_mean_of_every_neighbourhood_is_kept(lively):
    image = rng().random((SIDE, SIDE)).astype(np.float32)
    free = Restorer(lively(img_channel=1), device="cpu", range=(0, 1))
    change, kept = (restorer(image) - image for restorer in (free, free.with_settings(keep_mean=True)))
    np.testing.assert_allclose(kept, change - ndimage.uniform_filter(change, 65), atol=1e-5)
    assert abs(kept.mean()) < abs(change.mean()) / 20


def test_intensities_of_a_microscope_s_planes_are_kept_within_a_fifth_of_a_percent():
    stack = np.stack([frame()[1] * f for f in (1, 0.6, 0.3)]).clip(0).astype(np.uint16)
    out = Restorer.for_image(stack, "TYX", device="cpu")(stack, "TYX")
    for before, after in zip(stack, out, strict=True):
        assert after.mean() == pytest.approx(before.mean(), rel=2e-3)
        assert after.std() < before.std()


def test_values_far_outside_the_range_are_clipped_for_the_network_alone(lively):
    restorer = Restorer(lively(img_channel=1), device="cpu", range=(0, 1))
    image = rng().random((40, 40)).astype(np.float32)
    image[5, 5] = 50
    near = image.copy()
    near[5, 5] = 2
    np.testing.assert_allclose(restorer(image) - image, restorer(near) - near, atol=1e-5)


def test_brightness_and_colours_have_a_strength_each(lively):
    image = rng().random((40, 40, 3)).astype(np.float32)
    change = [
        Restorer(lively(), device="cpu", range=(0, 1), strength=s, chroma=c)(image) - image
        for s, c in ((1, None), (1, 0), (0, 1), (0.5, 0.5))
    ]
    luma = np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(change[1] + change[2], change[0], atol=1e-5)
    np.testing.assert_allclose(change[1], (change[0] @ luma)[..., None] * np.ones(3), atol=1e-5)
    np.testing.assert_allclose(change[2] @ luma, 0, atol=1e-5)
    np.testing.assert_allclose(change[3], change[0] / 2, atol=1e-5)


@pytest.mark.parametrize("setting", [(2, 8), (3, 0), (1, 5)])
def test_tiles_agree_where_pixels_are_decorrelated(lively, setting):
    image = (rng().random((301, 263, 3)) * 255).astype(np.uint8)
    settings = {"device": "cpu", "window": 16, "decorrelate": setting}
    whole = Restorer(lively(), tile=1024, **settings)(image)
    tiled = Restorer(lively(), tile=144, halo=48, **settings)(image)
    assert not np.array_equal(whole, image)
    assert np.abs(whole.astype(int) - tiled).max() <= 1


def test_decorrelated_pixels_are_each_restored_once_in_their_place(tiny_s):
    class Shift(type(tiny_s())):
        def forward(self, x):
            return x + 0.1

    network = tiny_s()
    network.__class__ = Shift
    image = rng().random((33, 47, 3)).astype(np.float32)
    out = Restorer(network, device="cpu", pooling="global", decorrelate=(3, 0), range=(0, 1))(image)
    np.testing.assert_allclose(out, image + 0.1, atol=1e-6)


@pytest.mark.parametrize("setting", ["2", 3, (0, 1), (1.5, 2), (2, -1), (2, 3, 4)])
def test_an_invalid_decorrelation_is_named(setting):
    with pytest.raises(ValueError, match="decorrelate must be a stride of 1 to 4 and a standard deviation"):
        check_decorrelate(setting)


@pytest.mark.parametrize("model", ["denoise-color", "denoise-photo", "denoise-gray", "denoise-micro"])
def test_tiles_of_the_shipped_models_agree(model):
    image = ndimage.zoom(cells(200.0), 3, order=1)[:430, :330]
    noisy = image + rng().normal(0, 25, image.shape)
    restorer = Restorer.from_pretrained(model, device="cpu", range=(0, 255))
    whole, tiled = (restorer.with_settings(tile=tile)(noisy) for tile in (1024, 256))
    assert restorer.with_settings(tile=256).engine.halo == restorer.engine.halo == HALO
    assert np.abs(whole - tiled).max() < 1
    assert np.square(whole - tiled).mean() ** 0.5 < 0.1


def test_the_command_says_what_it_chose_and_leaves_clean_pictures_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    clean = np.linspace(20, 230, SIDE)[None, :, None] * np.ones((SIDE, 1, 3))
    noisy = (clean + rng().normal(0, 20, clean.shape)).clip(0, 255)
    for name, picture in (("clean", clean), ("noisy", noisy)):
        Image.fromarray(picture.astype(np.uint8)).save(f"{name}.png")
    for name in ("clean", "noisy"):
        assert cli.main(["restore", f"{name}.png", "-o", f"{name}-out.png", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "\n  left alone: already clean" in out
    assert "\n  denoise-color: white noise of about" in out
    pixels = {path.stem: np.asarray(Image.open(path)) for path in tmp_path.glob("*.png")}
    assert np.array_equal(pixels["clean-out"], pixels["clean"])

    assert cli.main(["inspect", "noisy.png"]) == 0
    said = capsys.readouterr().out
    assert "needs     denoise-color: white noise of about" in said
    assert cli.main(["inspect", "noisy.png", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["treatment"]["model"] == "denoise-color"
    assert facts["channels"][0]["whiteness"] == pytest.approx(1, abs=0.2)
    assert cli.main(["inspect", "nothing.png"]) == 2
    assert "nothing.png: no such" in capsys.readouterr().err
    arguments = ["restore", "clean.png", "-o", "again.png", "--strength", "1", "--decorrelate", "2,8"]
    assert cli.main([*arguments, "--device", "cpu"]) == 0  # applies to clean pictures too
    assert not np.array_equal(np.asarray(Image.open("again.png")), pixels["clean"])
    assert cli.main(["restore", "a.png", "-o", "b.png", "--decorrelate", "x"]) == 2
    assert "--decorrelate: 'x' is not N,SIGMA or no" in capsys.readouterr().err
