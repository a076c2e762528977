"""SURE shrinkage finds the factor with the smallest error, without clean pictures."""

import numpy as np
import pytest
import torch

from kbnet_plugin.selfsup.sure import (
    BOUNDS,
    DOUBTFUL,
    independence,
    noise_variance,
    scale_correction,
    sure_shrinkage,
    variance_by_brightness,
)


def generator():
    return np.random.default_rng(0)


def test_noise_is_measured_despite_structure_and_missing_values():
    clean = np.add.outer(np.sin(np.arange(200) / 9), np.arange(160) / 160)[..., None]
    noisy = (clean + generator().normal(0, 0.1, clean.shape)).astype(np.float32)
    noisy[50:60, 20:90] = np.nan
    assert noise_variance([noisy]) == pytest.approx(0.01, rel=0.05)


def test_noise_that_grows_with_the_signal_has_its_mean_variance():
    bright = np.repeat(np.linspace(2, 60, 256), 256).reshape(256, 256, 1)
    noisy = generator().poisson(bright).astype(np.float32)
    assert noise_variance([noisy]) == pytest.approx(bright.mean(), rel=0.1)


def test_correlated_noise_is_told_from_white_noise():
    ramp = np.add.outer(np.arange(160), np.arange(120)) / 280
    noise = generator().normal(0, 0.1, (161, 121))
    white = (ramp + noise[1:, 1:])[..., None].astype(np.float32)
    moved = (noise[1:, 1:] + noise[:-1, 1:] + noise[1:, :-1] + noise[:-1, :-1]) / 4  # by half a pixel
    assert independence([white]) == pytest.approx(1, abs=0.1)
    assert independence([(ramp + moved)[..., None].astype(np.float32)]) < DOUBTFUL
    assert independence([np.zeros((8, 8, 1), np.float32)]) == 1


def test_an_empty_picture_has_no_noise():
    assert noise_variance([np.full((4, 4, 1), np.nan, np.float32)]) == 0


def ring(x):
    """Return the mean of the eight pixels around each, without the pixel itself."""
    kernel = torch.ones(1, 1, 3, 3)
    kernel[0, 0, 1, 1] = 0
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), "reflect")
    return torch.nn.functional.conv2d(padded, kernel / 8)


def test_the_shrinkage_minimizes_the_error():
    ramp = torch.linspace(0, 1, 64).repeat(16, 1, 64, 1)
    noisy = ramp + 0.1 * torch.randn(ramp.shape, generator=torch.Generator().manual_seed(0))
    shrinkage = sure_shrinkage(ring, noisy, 0.01)
    assert shrinkage == pytest.approx(8 / 9, abs=0.02)
    errors = {s: (noisy + s * (ring(noisy) - noisy) - ramp).square().mean() for s in (shrinkage, 0.8, 1.0)}
    assert min(errors, key=errors.__getitem__) == shrinkage


def shot(size=256, photons=100):
    """Return a ramp from dark to bright, (H, W, 1), and the same with shot noise."""
    clean = np.repeat(np.linspace(0.04, 1, size), size).reshape(size, size, 1)
    noise = generator().normal(0, 1, clean.shape) * np.sqrt(clean / photons)
    return clean, (clean + noise).astype(np.float32)


def test_the_variance_follows_the_brightness():
    _, noisy = shot()
    variance = variance_by_brightness([noisy])
    levels = torch.linspace(0.1, 0.95, 20)
    assert variance(levels).numpy() == pytest.approx(levels.numpy() / 100, rel=0.15)
    assert variance(torch.tensor([[-9.0]])) == variance(torch.zeros(1, 1)) > 0
    assert variance(levels).mean() == pytest.approx(noise_variance([noisy]), rel=0.1)


def test_empty_and_flat_pictures_have_a_variance():
    empty = variance_by_brightness([np.full((4, 4, 1), np.nan, np.float32)])
    assert not empty(torch.rand(2, 3)).any()
    checks = np.indices((40, 40)).sum(0)[..., None] % 2  # all squares of four have one brightness
    flat = variance_by_brightness([checks.astype(np.float32)])
    assert flat(torch.rand(5)).numpy() == pytest.approx(noise_variance([checks.astype(np.float32)]))


@pytest.mark.parametrize("where", ["dark", "bright"])
def test_the_shrinkage_weights_pixels_by_their_noise(where):
    clean, noisy = shot()
    brightness, x = (torch.from_numpy(p).float().permute(2, 0, 1)[None] for p in (clean, noisy))
    follows = 1.5 * (1 - brightness) if where == "dark" else brightness  # fixed, so it is linear in x

    def network(x):
        return x + follows * (ring(x) - x)

    correction = network(x) - x
    least = float(((brightness - x) * correction).sum() / correction.square().sum())
    shrinkage = sure_shrinkage(network, x, variance_by_brightness([noisy]))
    alone = sure_shrinkage(network, x, noise_variance([noisy]))
    assert shrinkage == pytest.approx(least, rel=0.03)
    assert alone != pytest.approx(least, rel=0.15)


def test_the_shrinkage_is_bounded_and_1_without_a_correction():
    noisy = torch.rand(2, 1, 16, 16)
    assert sure_shrinkage(lambda x: x, noisy, 0.01) == 1
    assert sure_shrinkage(ring, noisy, 1e-9) == BOUNDS[0]
    assert sure_shrinkage(ring, noisy, 1e9) == BOUNDS[1]


@pytest.mark.parametrize("variant", ["tiny_s", "tiny_l"])
def test_the_last_layer_is_scaled(request, variant):
    network = request.getfixturevalue(variant)()
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        before = network(x) - x
        scale_correction(network, 0.5)
        assert torch.allclose(network(x) - x, before / 2, atol=1e-6)
