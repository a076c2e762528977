"""Defocus: the aperture's area and radius, and how it varies over the picture."""

from __future__ import annotations

import math

import pytest
import torch

from kbnet_plugin.degradations import DEGRADATIONS, Draws
from kbnet_plugin.degradations.defocus import aperture


def point(count, size=61):
    images = torch.zeros(count, 1, size, size)
    images[..., size // 2, size // 2] = 1
    return images


def defocus(images, **arguments):
    return DEGRADATIONS["Defocus"](**arguments)(images, images, Draws([(1, i) for i in range(len(images))]))[
        0
    ]


def radius(kernels):
    """Radius of the discs that have the same second moments."""
    size = kernels.shape[-1]
    line = torch.arange(size) - size // 2
    squares = line[:, None] ** 2 + line**2
    return ((kernels * squares).sum((-2, -1)) * 2).sqrt()


@pytest.mark.parametrize("given", [2.0, 4.5, 9.0])
def test_a_point_becomes_a_disc_of_the_radius(given):
    made = defocus(point(1), radius=given, disc=1, gamma=1)[0, 0]
    assert abs(made.sum() - 1) < 1e-5
    assert abs(radius(made) - given) < 0.2
    # Flat: as bright as the sum over the area.
    assert abs(made.max() * math.pi * given**2 - 1) < 0.06


@pytest.mark.parametrize("blades", [5, 6, 9])
def test_a_polygon_has_the_area_of_the_disc_and_its_symmetry(blades):
    kernel = aperture(12.0, torch.full((1, 1, 1, 1), blades), torch.zeros(1, 1, 1, 1), 18)[0]
    assert abs(kernel.sum() - 1) < 1e-5
    assert abs((kernel > kernel.max() / 2).sum() / (math.pi * 12**2) - 1) < 0.05
    # The angles of the outline: its distance from the centre has one maximum a blade.
    angles = torch.linspace(0, 2 * math.pi, 721)[:-1]
    steps = torch.linspace(0, 17, 341)
    x, y = 18 + steps[:, None] * angles.cos(), 18 + steps[:, None] * angles.sin()
    inside = kernel[y.round().long(), x.round().long()] > kernel.max() / 2
    spectrum = torch.fft.rfft(inside.float().sum(0)).abs()[1:13]
    assert int(spectrum.argmax()) + 1 == blades


def test_light_is_preserved_in_linear_light():
    images = point(2) * 0.9 + 0.05
    made = defocus(images, radius=4)
    light, before = made**2.2, images**2.2
    torch.testing.assert_close(light.sum((1, 2, 3)), before.sum((1, 2, 3)), rtol=1e-4, atol=0)
    assert made.sum() > images.sum()  # a bright point stays bright


def test_the_radius_varies_over_the_picture_and_stays_within_its_bounds():
    # Points so far apart that their discs do not meet.
    images = torch.zeros(4, 1, 160, 160)
    images[..., 20::40, 20::40] = 1
    made = defocus(images, radius=[1, 8], disc=1, gamma=1)
    patches = made.unfold(2, 40, 40).unfold(3, 40, 40)[:, 0, :, :, 1:-1, 1:-1]
    sizes = radius(patches[..., 1:, 1:] / patches[..., 1:, 1:].sum((-2, -1), keepdim=True))
    assert sizes.min() > 0.7
    assert sizes.max() < 8.5
    ranges = sizes.amax((1, 2)) - sizes.amin((1, 2))
    assert ranges.max() > 2
    # Smooth: neighbours differ less than the ends do.
    assert ((sizes[:, 1:] - sizes[:, :-1]).abs().mean((1, 2)) < ranges.clamp(min=0.3)).all()


def test_constants_stay_and_radius_zero_changes_nothing():
    constant = torch.full((2, 3, 24, 30), 0.3)
    torch.testing.assert_close(defocus(constant), constant)
    images = torch.rand(2, 3, 24, 30, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(defocus(images, radius=0), images, atol=1e-5, rtol=0)
