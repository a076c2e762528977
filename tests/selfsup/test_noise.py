"""Noise is measured by brightness, and more of the same is drawn."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from kbnet_plugin.selfsup.noise import DOUBTFUL, NoiseCurve, independence, measure_curve, noise_variance


def generator():
    return np.random.default_rng(0)


def test_noise_is_measured_despite_structure_and_missing_values():
    clean = np.add.outer(np.sin(np.arange(200) / 9), np.arange(160) / 160)[..., None]
    noisy = (clean + generator().normal(0, 0.1, clean.shape)).astype(np.float32)
    noisy[50:60, 20:90] = np.nan
    assert noise_variance([noisy]) == pytest.approx(0.01, rel=0.05)


def test_correlated_noise_is_told_from_white_noise():
    ramp = np.add.outer(np.arange(160), np.arange(120)) / 280
    noise = generator().normal(0, 0.1, (161, 121))
    white = (ramp + noise[1:, 1:])[..., None].astype(np.float32)
    moved = (noise[1:, 1:] + noise[:-1, 1:] + noise[1:, :-1] + noise[:-1, :-1]) / 4  # by half a pixel
    assert independence([white]) == pytest.approx(1, abs=0.1)
    assert independence([(ramp + moved)[..., None].astype(np.float32)]) < DOUBTFUL
    assert independence([np.zeros((8, 8, 1), np.float32)]) == 1


def blur(x):
    return torch.from_numpy(gaussian_filter(x.numpy(), (0, 0, 2, 2)))


def test_the_variance_follows_the_brightness():
    clean = np.repeat(np.linspace(0.04, 1, 256), 256).reshape(256, 256, 1)
    noisy = (clean + generator().normal(0, 1, clean.shape) * np.sqrt(clean / 100)).astype(np.float32)
    curve = measure_curve([noisy], blur)
    levels = torch.linspace(0.1, 0.95, 20)
    assert curve.variance(levels).numpy() == pytest.approx(levels.numpy() / 100, rel=0.15)
    assert curve.variance(torch.tensor([[-9.0]])) == curve.variance(torch.zeros(1, 1)) > 0


@pytest.mark.parametrize(
    ("photons", "step"), [("poisson", 0.1), ("electrons multiplied", 0.3), ("gauss", 0.0)]
)
def test_the_skewness_of_few_photons_is_measured_and_drawn(photons, step):
    rng = generator()
    counts = rng.poisson(3, (512, 512, 1))
    noisy = {
        "poisson": 0.1 * counts,
        "electrons multiplied": 0.1 * rng.gamma(np.maximum(counts, 1e-9)),
        "gauss": rng.normal(0.3, 0.17, counts.shape),
    }[photons].astype(np.float32)
    curve = measure_curve([noisy], blur)
    assert np.mean(curve.variances) == pytest.approx(noisy.var(), rel=0.05)
    assert np.mean(curve.steps) == pytest.approx(step, abs=0.05)
    drawn = curve.draw(torch.full((1, 512, 512), 0.3), 0.25, torch.Generator().manual_seed(0))
    assert float(drawn.mean()) == pytest.approx(0, abs=2e-3)
    assert float(drawn.var()) == pytest.approx(noisy.var() / 4, rel=0.05)
    assert float((drawn**3).mean() / drawn.var()) == pytest.approx(step, abs=0.06)


def test_empty_and_flat_pictures_have_a_curve():
    empty = measure_curve([], blur)
    assert not empty.variance(torch.rand(2, 3)).any()
    flat = measure_curve([np.full((40, 40, 1), 0.5, np.float32)], blur)
    assert flat.variance(torch.rand(5)).numpy() == pytest.approx(0, abs=1e-9)
    assert len(flat.levels) == len(empty.levels)  # so that curves can be stacked


def test_a_curve_is_interpolated():
    curve = NoiseCurve((0.0, 1.0, 1.0), (1.0, 3.0, 3.0), (0.0,) * 3)
    assert curve.variance(torch.tensor([[-1.0, 0.5, 2.0]])).tolist() == [[1.0, 2.0, 3.0]]


def test_noise_added_to_the_input_and_taken_off_the_target_makes_them_independent():
    counts = torch.poisson(torch.full((1, 1000, 1000), 2.0), torch.Generator().manual_seed(0))
    level, share = torch.full_like(counts, 2.0), 0.25
    for step, tells in ((1.0, False), (0.0, True)):  # photons, and noise wrongly taken for Gaussian
        curve = NoiseCurve((0.0, 9.0), (2.0, 2.0), (step, step))
        added = curve.draw(level, share, torch.Generator().manual_seed(1))
        noisy, target = counts + added - 2, counts - added / share - 2
        assert float((noisy * target).mean()) == pytest.approx(0, abs=0.03)
        assert (abs(float((noisy**2 * target).mean())) > 1) == tells
