"""Noise against its formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kbnet_plugin.degradations import DEGRADATIONS, Draws


def noise(count=1, size=160, level=0.5, channels=3, name="Gaussian", **arguments):
    images = torch.full((count, channels, size, size), level)
    degraded, clean = DEGRADATIONS[name](**arguments)(images, images, Draws([(2, i) for i in range(count)]))
    assert clean is images
    return degraded - images


def covariance(sample):
    return np.cov(sample.flatten(1).double().numpy())


@pytest.mark.parametrize("blur", [0, 0.8, 2])
def test_sigma_is_the_standard_deviation_blurred_or_not(blur):
    made = noise(4, sigma=20, blur=blur)
    assert abs(made.std() * 255 - 20) < 1


@pytest.mark.parametrize("blur", [0.8, 1.5])
def test_blurred_noise_correlates_as_the_blur_does(blur):
    made = noise(8, sigma=20, blur=blur)
    for lag in (1, 2):
        # A Gaussian with itself is one of twice the variance.
        expected = math.exp(-(lag**2) / (4 * blur**2))
        for moved in (made[..., lag:, :] * made[..., :-lag, :], made[..., lag:] * made[..., :-lag]):
            assert abs(moved.mean() / made.var() - expected) < 0.03


def test_white_noise_is_independent():
    made = noise(2, sigma=20)
    normalized = covariance(made[0]) / (20 / 255) ** 2
    np.testing.assert_allclose(normalized, np.eye(3), atol=0.05)
    assert abs((made[..., 1:] * made[..., :-1]).mean() / made.var()) < 0.02


def test_gray_noise_is_the_same_in_all_channels():
    made = noise(1, sigma=20, gray=1)
    assert torch.allclose(made[:, 0], made[:, 1])
    assert torch.allclose(made[:, 0], made[:, 2])
    assert abs(made.std() * 255 - 20) < 1


def test_colored_noise_has_a_random_covariance_of_the_same_trace():
    made = noise(6, sigma=20, colored=1)
    several = np.stack([covariance(sample) / (20 / 255) ** 2 for sample in made])
    np.testing.assert_allclose(np.trace(several, axis1=1, axis2=2), 3, rtol=0.06)
    assert several.std(0).min() > 0.05
    assert np.abs(several[:, 0, 1]).max() > 0.2


def test_the_shares_of_gray_and_colored_noise():
    made = noise(400, size=8, sigma=20, gray=0.4, colored=0.2)
    same = torch.isclose(made[:, 0], made[:, 1]).all((1, 2)).float().mean()
    assert abs(same - 0.4) < 0.08


@pytest.mark.parametrize("level", [0.05, 0.5])
def test_sensor_noise_has_a_variance_that_rises_with_brightness(level):
    made = noise(2, level=level, name="PoissonGaussian", gain=0.01, read_noise=0.02)
    assert abs(made.var() / (0.01 * level + 0.02**2) - 1) < 0.05
    assert abs(made.mean()) < 1e-3


def test_hot_pixels_are_rare_bright_and_alone():
    made = noise(2, size=400, name="HotPixels", share=1e-3, brightness=0.8)
    hot = made[made > 0]
    assert abs(hot.numel() / made.numel() / 1e-3 - 1) < 0.15
    assert 0.79 < hot.max() <= 0.8
    assert abs(hot.mean() - 0.4) < 0.04
    assert made.min() == 0


@pytest.mark.parametrize("bits", [1, 8, 12, 16])
def test_numbers_of_so_many_bits(bits):
    images = torch.linspace(-0.2, 1.2, 120).reshape(1, 1, 10, 12)
    made, _ = DEGRADATIONS["Quantize"](bits=bits)(images, images, Draws([(0,)]))
    levels = made.double() * (2**bits - 1)
    torch.testing.assert_close(levels, levels.round(), atol=1e-2, rtol=0)
    torch.testing.assert_close(made, images.clamp(0, 1), atol=0.5001 / (2**bits - 1), rtol=0)


def test_black_level_keeps_noise_below_zero_and_saturation_cuts():
    images = torch.linspace(-0.2, 1.2, 141).reshape(1, 1, 3, 47)
    step = DEGRADATIONS["Quantize"](bits=12, black_level=0.1, saturation=0.8)
    made, _ = step(images, images, Draws([(0,)]))
    lowest = -0.1 / 0.9 * 0.8
    torch.testing.assert_close(made, images.clamp(lowest, 0.8), atol=3e-4, rtol=0)
