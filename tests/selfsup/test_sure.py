"""The error is estimated without clean pictures, as far as it goes between models right."""

import numpy as np
import pytest
import torch

from kbnet_plugin.selfsup.noise import NoiseCurve
from kbnet_plugin.selfsup.sure import BOUNDS, PairRisk, Risk, SingleRisk, scale_correction


def constant(variance, step=0.0):
    return NoiseCurve((0.0, 1.0), (variance,) * 2, (step,) * 2)


def ring(x):
    """Return the mean of the eight pixels around each, without the pixel itself."""
    kernel = torch.ones(1, 1, 3, 3)
    kernel[0, 0, 1, 1] = 0
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), "reflect")
    return torch.nn.functional.conv2d(padded, kernel / 8)


@pytest.fixture
def ramp():
    clean = torch.linspace(0, 1, 64).repeat(16, 1, 64, 1)
    return clean, clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))


def test_the_estimate_is_the_error_and_the_shrinkage_minimizes_it(ramp):
    clean, noisy = ramp
    risk = SingleRisk(noisy, [constant(0.01)] * 16)(ring)
    truth = (ring(noisy) - clean).square().mean()
    assert risk.error() == pytest.approx(float(truth), rel=0.1)
    assert risk.shrinkage == pytest.approx(8 / 9, abs=0.02)
    assert risk.error(risk.shrinkage) < risk.error()


def test_another_recording_gives_the_same_without_knowing_the_noise(ramp):
    clean, noisy = ramp
    again = clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    risk = PairRisk(noisy, again)(ring)
    assert risk.error() == pytest.approx(float((ring(noisy) - clean).square().mean()), rel=0.1)
    assert risk.shrinkage == pytest.approx(8 / 9, abs=0.03)


def test_a_model_that_exploits_the_skewness_of_few_photons_is_found_out():
    counts = torch.poisson(torch.ones(8, 1, 128, 128), torch.Generator().manual_seed(0))

    def darkens(x):
        """Take counts of three and more for noise, and less than nothing for 1."""
        return torch.where(x > 1.6, 1.0 + 0 * x, 1.0 - 0.5 * (x - 1))

    def flat(x):
        return torch.ones_like(x)

    truth = {f: float((f(counts) - 1).square().mean()) for f in (darkens, flat)}
    level = [flat(counts)]
    poisson = SingleRisk(counts, [constant(1.0, 1.0)] * 8, level)
    gaussian = SingleRisk(counts, [constant(1.0)] * 8, level)
    assert truth[darkens] > truth[flat]
    assert poisson(darkens).error() > poisson(flat).error()
    assert gaussian(darkens).errors().mean() < gaussian(flat).errors().mean()  # why skewness is measured


def test_the_shrinkage_is_bounded_and_1_without_a_correction():
    one = np.ones(1)
    assert Risk(0 * one, 0 * one, one).shrinkage == 1
    assert Risk(one, one, one).shrinkage == BOUNDS[0]
    assert Risk(one, -9 * one, one).shrinkage == BOUNDS[1]
    assert Risk(one, -9 * one, one).error() > 0  # in dB it must be a number


@pytest.mark.parametrize("variant", ["tiny_s", "tiny_l"])
def test_the_last_layer_is_scaled(request, variant):
    network = request.getfixturevalue(variant)()
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        before = network(x) - x
        scale_correction(network, 0.5)
        assert torch.allclose(network(x) - x, before / 2, atol=1e-6)
