"""Noise of known strength: it has the moments that it is asked for, and is the same in every run."""

from __future__ import annotations

import numpy as np
import pytest

from kbnet_plugin.arrays.degradations import (
    add_gaussian,
    add_poisson_gaussian,
    seeded_by_index,
    to_linear,
    to_srgb,
)

SHAPE = (300, 300)


def test_gaussian_noise_has_its_deviation_and_is_not_clipped():
    noisy = add_gaussian(np.zeros(SHAPE), 0.1, np.random.default_rng(0))
    assert noisy.std() == pytest.approx(0.1, rel=0.02)
    assert noisy.mean() == pytest.approx(0, abs=0.002)
    assert noisy.min() < -0.3


@pytest.mark.parametrize(("gain", "read_noise"), [(0.01, 0.0), (0.01, 0.05), (0.0, 0.05)])
def test_the_variance_of_a_sensor_grows_with_the_signal(gain, read_noise):
    generator = np.random.default_rng(0)
    for signal in (0.0, 0.2, 0.8):
        noisy = add_poisson_gaussian(np.full(SHAPE, signal), gain, read_noise, generator)
        assert noisy.mean() == pytest.approx(signal, abs=2e-3)
        assert noisy.var() == pytest.approx(gain * signal + read_noise**2, rel=0.03, abs=1e-12)


def test_signal_below_black_counts_as_black():
    noisy = add_poisson_gaussian(np.full(SHAPE, -0.5), 0.1, 0.0, np.random.default_rng(0))
    assert not noisy.any()


def test_every_picture_of_a_test_set_has_noise_of_its_own_that_repeats():
    first, again, second = (seeded_by_index(i).standard_normal(SHAPE) for i in (0, 0, 1))
    assert np.array_equal(first, again)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.02


def test_srgb_and_linear_light_undo_each_other():
    values = np.linspace(0, 1, 1001)
    assert np.allclose(to_srgb(to_linear(values)), values, atol=1e-6)
    assert to_linear(np.array(0.5)) == pytest.approx(0.21404, abs=1e-5)  # IEC 61966-2-1
