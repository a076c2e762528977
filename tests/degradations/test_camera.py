"""The camera against its formulas: raw conversion, mosaic, demosaicing, sensor noise, and what follows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kbnet_plugin.degradations import Draws, Pipeline, raw
from kbnet_plugin.degradations.camera import LUMA, Camera, gain, read_noise
from kbnet_plugin.degradations.jpeg import compress
from kbnet_plugin.errors import BadInput

PHASES = torch.arange(4)
PLAIN = {"jpeg": None, "phones": 0, "processed": 0, "reduced": 0, "dark": 0, "flat": 0}
"""Nothing but sensor and development."""


def keys(count, seed=4):
    return [(seed, i) for i in range(count)]


def scenes(count, size=96, seed=0):
    """Smooth pictures in colour, between 0.15 and 0.75."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return 0.15 + 0.6 * F.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)


def shoot(images, seed=4, **arguments):
    return Camera(**arguments)(images, images, Draws(keys(len(images), seed)))


def correlation(noise, lag):
    """Mean over rows and columns, and over the samples; (B, H, W)."""
    noise = noise - noise.mean((1, 2), keepdim=True)
    across, down = noise[..., lag:] * noise[..., :-lag], noise[:, lag:] * noise[:, :-lag]
    return float(((across.mean((1, 2)) + down.mean((1, 2))) / 2 / noise.square().mean((1, 2))).mean())


def luma(images):
    return (images * torch.tensor(LUMA).view(3, 1, 1)).sum(1)


# Raw conversion


def test_gamma_and_tone_curve_are_undone():
    levels = torch.linspace(0, 1, 256).view(1, 1, 16, 16)
    assert torch.allclose(raw.from_linear(raw.to_linear(levels)), levels, atol=2e-6)
    # In the middle the tone curve is neutral: gamma alone.
    assert float(raw.to_linear(torch.tensor(0.5))) == pytest.approx(0.5**2.2, abs=1e-6)


def test_camera_matrices_keep_gray_gray():
    weights = np.random.default_rng(0).dirichlet(np.ones(4), size=20)
    matrices = raw.camera_matrix(weights)
    assert np.allclose(matrices.sum(2), 1)
    assert np.allclose(np.linalg.inv(matrices).sum(2), 1)
    assert np.ptp(matrices, axis=0).max() > 0.1


def test_white_stays_white_and_the_rest_is_divided_by_the_gains():
    gains = torch.tensor([2.0, 1.2, 1.2, 0.8]).view(1, 4, 1, 1)
    for brightness, expected in ((1.0, torch.ones(4)), (0.5, 1 / gains.flatten())):
        planes = torch.ones(1, 4, 2, 2)
        light = raw.take_light(planes, torch.full_like(planes, brightness), gains)[0, :, 0, 0]
        assert torch.allclose(light, torch.maximum(expected, 1 / gains.flatten()))


@pytest.mark.parametrize(("phase", "pattern"), list(enumerate(["RGGB", "GRBG", "GBRG", "BGGR"])))
def test_a_mosaic_has_the_colours_of_its_phase(phase, pattern):
    image = torch.arange(3.0).view(1, 3, 1, 1) + torch.zeros(1, 3, 4, 6)
    planes = raw.mosaic(image, torch.tensor([phase]))
    assert planes.shape == (1, 4, 2, 3)
    assert "".join("RGB"[int(p.unique())] for p in planes[0]) == pattern


def test_a_mosaic_takes_each_pixel_from_its_place():
    image = torch.arange(48.0).view(1, 1, 6, 8).expand(4, 3, 6, 8)
    expected = F.pixel_unshuffle(image[:, :1], 2)
    assert torch.equal(raw.mosaic(image.contiguous(), PHASES), expected)


@pytest.mark.parametrize("method", raw.METHODS)
def test_demosaicing_is_exact_on_constants_and_gray_ramps(method):
    constant = torch.tensor([0.2, 0.5, 0.9]).view(1, 3, 1, 1).expand(4, 3, 12, 16).contiguous()
    assert torch.allclose(raw.demosaic(raw.mosaic(constant, PHASES), PHASES, method), constant, atol=1e-6)
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(20.0), indexing="ij")
    ramp = ((2 * y + 3 * x) / 100).expand(4, 3, 24, 20).contiguous()
    made = raw.demosaic(raw.mosaic(ramp, PHASES), PHASES, method)
    assert torch.allclose(made[..., 4:-4, 4:-4], ramp[..., 4:-4, 4:-4], atol=1e-5)


@pytest.mark.parametrize("method", raw.METHODS)
def test_demosaicing_keeps_what_was_measured(method):
    planes = torch.rand(4, 4, 8, 8)
    assert torch.allclose(raw.mosaic(raw.demosaic(planes, PHASES, method), PHASES), planes, atol=1e-6)


@pytest.mark.parametrize("side", [2, 3])
def test_hamilton_and_adams_follow_edges(side):
    edge = torch.zeros(4, 3, 16, 16)
    edge.narrow(side, 8, 8).fill_(1)
    errors = {m: (raw.demosaic(raw.mosaic(edge, PHASES), PHASES, m) - edge).abs().mean() for m in raw.METHODS}
    assert errors["hamilton"] < 0.5 * min(errors["malvar"], errors["bilinear"])


# Sensor noise


@pytest.mark.parametrize(
    ("shot", "read"), [(1e-4, 1e-8), (4e-3, 1e-4), (0.02, 1e-3)], ids=["bright", "mixed", "few"]
)
def test_the_variance_of_sensor_noise_follows_brightness(shot, read):
    levels = torch.tensor([0.0, 0.005, 0.05, 0.2, 0.8])
    planes = levels.view(5, 1, 1, 1).expand(5, 4, 160, 160).contiguous()
    a, b = torch.full((5, 1, 1, 1), shot), torch.full((5, 1, 1, 1), read)
    noisy = raw.add_sensor_noise(planes, a, b, Draws(keys(5)))
    expected = shot * levels + read
    count = 4 * 160 * 160
    assert ((noisy.mean((1, 2, 3)) - levels).abs() < 4.5 * (expected / count).sqrt()).all()
    assert torch.allclose(noisy.var((1, 2, 3)), expected, rtol=0.03)
    assert noisy[0].min() < 0


def test_few_photons_come_in_whole_numbers():
    planes = torch.full((1, 4, 32, 32), 0.03)
    noisy = raw.add_sensor_noise(planes, torch.tensor(0.01), torch.tensor(0.0), Draws(keys(1)))
    photons = noisy / 0.01
    assert torch.allclose(photons, photons.round(), atol=1e-3)
    assert float((photons.round() == 0).float().mean()) == pytest.approx(np.exp(-3), abs=0.015)


def test_noise_grows_with_the_iso_as_measured():
    iso = np.array([200, 800, 1600, 3200, 6400, 25600.0])
    none = np.zeros_like(iso)
    for phone in (none > 0, none == 0):
        shot = gain(iso, none, phone)
        assert (np.diff(shot) > 0).all()
        assert (np.diff(read_noise(shot, none, phone)) > 0).all()
    assert np.allclose(gain(iso, none, none > 0)[1:], [3e-4, 6e-4, 1.2e-3, 2.2e-3, 7e-3], rtol=0.15)
    phone = gain(np.array([100, 400, 3200.0]), np.zeros(3), np.ones(3, bool))
    assert (phone > [2e-4, 0.0018, 0.015]).all()
    assert (phone < [7e-4, 0.0035, 0.025]).all()


# The whole camera


@pytest.mark.parametrize("channels", [3, 1])
def test_a_smooth_picture_comes_back(channels):
    images = scenes(8)[:, :channels]
    _, target = shoot(images, **PLAIN)
    assert (target - images).abs().mean() < 0.002
    assert (target - images)[..., 4:-4, 4:-4].abs().max() < 0.03


def test_a_reduced_picture_keeps_its_scene_and_loses_noise():
    images = scenes(8)
    kept, reduced = (shoot(images, **PLAIN | {"iso": 1600, "reduced": p}) for p in (0, 1))
    assert (reduced[1] - images).abs().mean() < 0.003
    assert (reduced[0] - reduced[1]).std() < 0.85 * (kept[0] - kept[1]).std()


def test_noise_grows_with_the_iso_and_leaves_the_target_alone():
    images = scenes(6)
    made = [shoot(images, **PLAIN | {"iso": iso}) for iso in (1, 400, 3200, 25600)]
    deviations = [float((noisy - target).std()) * 255 for noisy, target in made]
    assert deviations == sorted(deviations)
    assert deviations[0] < 0.6  # 8 bits
    assert 4 < deviations[2] < 16
    assert all(torch.equal(target, made[0][1]) for _, target in made)


def test_smoothing_and_jpeg_leave_the_target_alone():
    images = torch.rand(6, 3, 48, 48)
    plain = shoot(images, **PLAIN)
    worked = shoot(images, **PLAIN | {"processed": 1, "jpeg": 80})
    assert torch.equal(plain[1], worked[1])
    assert not torch.allclose(plain[0], worked[0], atol=0.05)


def test_smoothing_acts_on_the_noise_alone():
    images = torch.rand(6, 3, 48, 48)
    noisy, target = shoot(images, **PLAIN | {"processed": 1, "iso": 1})
    assert (noisy - target).std() * 255 < 2  # the content's own is 50


def test_the_last_stage_is_jpeg():
    images = scenes(6)
    stored, _ = shoot(images, **PLAIN)
    assert torch.allclose(stored * 255, (stored * 255).round(), atol=1e-3)
    packed, _ = shoot(images, **PLAIN | {"jpeg": 40})
    quality = np.full(6, 40.0)
    either = [compress(stored, quality, np.full(6, half)) for half in (False, True)]
    matches = torch.stack([(packed - e).abs().amax((1, 2, 3)) < 1.5 / 255 for e in either])
    assert matches.any(0).all()
    assert matches.any(1).all()  # both chroma resolutions occur


def test_dark_and_flat_scenes_change_the_target_too():
    images = scenes(16)
    _, dark = shoot(images, **PLAIN | {"dark": 1})
    assert (dark.mean((1, 2, 3)) < images.mean((1, 2, 3))).all()
    assert dark.mean((1, 2, 3)).min() < 0.6 * images.mean((1, 2, 3)).min()
    _, flat = shoot(images, **PLAIN | {"flat": 1})
    assert (flat.std((2, 3)) < 0.5 * images.std((2, 3))).all()


@pytest.mark.parametrize("channels", [3, 1])
def test_a_sample_does_not_depend_on_its_batch(channels):
    images = scenes(10, size=40)[:, :channels]
    camera = Camera(reduced=0.5)
    together = camera(images, images, Draws(keys(10)))
    for i in range(10):
        alone = camera(images[i : i + 1], images[i : i + 1], Draws(keys(10)[i : i + 1]))
        for one, all_ in zip(alone, together, strict=True):
            # Sums may be taken in another order, and a value then be rounded the other way.
            assert (one[0] - all_[i]).abs().max() < 12 / 255
            assert (one[0] - all_[i]).abs().mean() < 0.05 / 255


@pytest.mark.parametrize("size", [(33, 47), (8, 8)])
@pytest.mark.parametrize("channels", [3, 1])
def test_any_input_gives_numbers_from_0_to_1(size, channels):
    images = torch.zeros(12, channels, *size)
    images[1] = 1
    images[2:5, 0] = 1
    images[5:8, -1] = 1
    images[8:10] = torch.rand(2, channels, *size)
    images[10:] = torch.randint(0, 2, (2, channels, *size)).float()
    for part in shoot(images, reduced=0.5):
        assert part.shape == images.shape
        assert part.isfinite().all()
        assert part.min() >= 0
        assert part.max() <= 1


def test_pictures_that_are_degraded_already_are_taken_as_they_are():
    images = scenes(6)
    dimmed = images * 0.5
    noisy, target = Camera(**PLAIN | {"iso": 1})(dimmed, images, Draws(keys(6)))
    assert (noisy - dimmed).abs().mean() < 0.005
    assert torch.equal(target, shoot(images, **PLAIN | {"iso": 1})[1])


def test_demosaicing_alone_correlates_the_noise():
    images = scenes(24)
    noisy, target = shoot(images, **PLAIN | {"iso": 3200})
    noise = noisy - target
    assert correlation(luma(noise), 1) == pytest.approx(0.33, abs=0.06)
    assert correlation(luma(noise), 2) == pytest.approx(-0.02, abs=0.05)
    assert correlation(noise[:, 0] - luma(noise), 1) == pytest.approx(0.66, abs=0.05)


def test_the_default_camera_correlates_noise_as_cameras_do():
    images = scenes(64)
    noisy, target = shoot(images, iso=[1600, 6400], dark=0, flat=0)
    noise = noisy - target
    red, blue = noise[:, 0] - luma(noise), noise[:, 2] - luma(noise)
    # CC15: 0.57 and 0.11 of luma, 0.87 and 0.67 of chroma.
    for lag, of_luma, of_chroma in ((1, 0.57, 0.87), (2, 0.11, 0.67)):
        assert correlation(luma(noise), lag) == pytest.approx(of_luma, abs=0.07)
        assert (correlation(red, lag) + correlation(blue, lag)) / 2 == pytest.approx(of_chroma, abs=0.07)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("iso", 0), ("iso", [800, 200]), ("jpeg", [75, 101]), ("lens", 2), ("phones", 1.5), ("reduced", "all")],
)
def test_a_wrong_argument_is_named(argument, value):
    with pytest.raises(BadInput, match=f"{argument} must be"):
        Camera(**{argument: value})


def test_an_option_file_needs_only_the_name():
    degraded, clean = Pipeline([{"type": "Camera"}])(scenes(2, size=32), Draws(keys(2)))
    assert degraded.shape == clean.shape == (2, 3, 32, 32)
