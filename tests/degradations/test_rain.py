"""Rain: what the layer of streaks is made of, and how it meets the picture."""

from __future__ import annotations

import math

import pytest
import torch

from kbnet_plugin.degradations import DEGRADATIONS, Draws

ONE = {"layers": 1, "spread": 0, "brightness": 0.8}


def streaks(count=4, size=256, **arguments):
    draws = Draws([(3, i) for i in range(count)])
    return DEGRADATIONS["Rain"](**(ONE | arguments)).streaks(draws, size, size)


def correlation(layer):
    """Autocorrelation of a layer, 1 at the origin."""
    spectrum = torch.fft.rfft2(layer - layer.mean((2, 3), keepdim=True))
    correlated = torch.fft.irfft2(spectrum.abs() ** 2, s=layer.shape[2:]).mean((0, 1))
    return correlated / correlated[0, 0]


def moments(layer):
    """Angle from the vertical in degrees, and the lengths of the two axes of the streaks' mean shape."""
    c = correlation(layer)
    size = c.shape[0]
    line = torch.fft.fftfreq(size, 1 / size)
    near = (line[:, None] ** 2 + line**2 < 45**2) & (c > 0.1)
    y, x = line[:, None].expand_as(c)[near], line.expand_as(c)[near]
    weights = c[near] / c[near].sum()
    spread = torch.stack([(weights * a * b).sum() for a, b in ((x, x), (x, y), (y, y))])
    values, vectors = torch.linalg.eigh(torch.stack([spread[:2], spread[1:]]))
    dx, dy = vectors[:, 1] * (-vectors[1, 1]).sign()  # upwards
    return math.degrees(math.atan2(dx, -dy)), values.sqrt().tolist()


@pytest.mark.parametrize("angle", [-30, 0, 20, 60])
def test_streaks_lean_by_the_angle(angle):
    found, _ = moments(streaks(density=0.1, length=30, thickness=2, angle=angle))
    assert abs(found - angle) < 3


def test_longer_streaks_are_longer_and_thicker_ones_thicker():
    _, (thin, short) = moments(streaks(density=0.1, length=12, thickness=2, angle=0))
    _, (thin_too, long) = moments(streaks(density=0.1, length=36, thickness=2, angle=0))
    _, (thick, _) = moments(streaks(density=0.1, length=36, thickness=6, angle=0))
    assert abs(long / short - 3) < 0.5
    assert abs(thin_too / thin - 1) < 0.15
    assert abs(thick / thin - 3) < 0.5


@pytest.mark.parametrize("length", [8, 40])
def test_density_is_the_share_that_streaks_cover(length):
    layer = streaks(16, density=0.1, length=length, thickness=2, angle=0, brightness=0.3)
    # Means: 2/3 along a streak, a Gaussian of this width across, 1/3 for the square of a uniform number.
    across = math.sqrt(math.pi / math.log(2)) / 2
    expected = 0.1 * 2 / 3 * across * 0.3 / 3
    assert abs(layer.mean() / expected - 1) < 0.1
    double = streaks(16, density=0.2, length=length, thickness=2, angle=0, brightness=0.3)
    assert abs(double.mean() / layer.mean() - 2) < 0.25


def test_brightness_is_that_of_the_brightest_streaks():
    layer = streaks(8, density=0.05, length=20, thickness=2, brightness=0.5)
    assert 0.4 < layer.max() < 1
    assert torch.quantile(layer[layer > 0.02], 0.99) < 0.55
    assert streaks(brightness=0).max() < 1e-6


def test_several_layers_have_several_directions():
    alone = correlation(streaks(8, density=0.2, length=30, thickness=2, angle=0))
    several = correlation(streaks(8, density=0.2, length=30, thickness=2, angle=0, layers=4, spread=20))
    assert several[15, 0] < 0.6 * alone[15, 0]


@pytest.mark.parametrize("blend", ["screen", "add"])
def test_rain_never_darkens_and_is_gray(blend):
    images = torch.rand(3, 3, 48, 64, generator=torch.Generator().manual_seed(0)) * 1.3
    draws = Draws([(0, i) for i in range(3)])
    rainy, clean = DEGRADATIONS["Rain"](blend=blend)(images, images, draws)
    assert clean is images
    inside = images < 1
    assert (rainy >= images - 1e-6)[inside].all()
    assert (rainy <= 1 + 1e-6)[inside].all()
    if blend == "add":
        assert (rainy >= images).all()


def test_both_blends_follow_their_formulas():
    images = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    keys = [(0, 0), (0, 1)]
    layer = DEGRADATIONS["Rain"]().streaks(Draws(keys), 48, 64)
    for blend, expected in (
        ("screen", 1 - (1 - images) * (1 - layer)),
        ("add", (images + layer).clamp(max=1)),
    ):
        made, _ = DEGRADATIONS["Rain"](blend=blend)(images, images, Draws(keys))
        torch.testing.assert_close(made, expected)


def test_a_veil_brightens_all():
    images = torch.full((2, 3, 32, 32), 0.4)
    made, _ = DEGRADATIONS["Rain"](density=0, veil=0.25)(images, images, Draws([(0, 0), (0, 1)]))
    torch.testing.assert_close(made, torch.full_like(made, 1 - 0.6 * 0.75))
