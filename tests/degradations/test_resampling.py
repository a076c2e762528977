"""Shrinking, enlarging and blurring against their frequency responses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from kbnet_plugin.degradations import DEGRADATIONS, Draws
from kbnet_plugin.degradations.filters import gaussian_kernels

DRAWS = [(0, i) for i in range(3)]


def waves(size, period, count=1):
    x = torch.arange(size, dtype=torch.float32)
    return (0.5 + 0.4 * torch.cos(2 * math.pi * x / period)).expand(count, 1, size, size)


def amplitude(images):
    inner = images[..., 16:-16, 16:-16]
    return (inner.amax((1, 2, 3)) - inner.amin((1, 2, 3))) / 2 / 0.4


def apply(name, images, **arguments):
    return DEGRADATIONS[name](**arguments)(images, images, Draws(DRAWS[: len(images)]))[0]


@pytest.mark.parametrize("sigma", [0.8, 2.0])
@pytest.mark.parametrize("period", [6, 16])
def test_blur_damps_waves_as_a_gaussian_does(sigma, period):
    made = apply("Blur", waves(96, period), sigma=sigma, anisotropic=0)
    assert abs(amplitude(made)[0] - math.exp(-2 * (math.pi * sigma / period) ** 2)) < 0.01


def test_an_anisotropic_gaussian_has_its_moments():
    major, minor, angle = (torch.full((1, 1, 1, 1), v) for v in (3.0, 1.0, 0.6))
    kernel = gaussian_kernels(major, minor, angle, 12)[0].double()
    assert abs(kernel.sum() - 1) < 1e-6
    line = torch.arange(-12.0, 13).double()
    y, x = torch.meshgrid(line, line, indexing="ij")
    axis = np.array([math.cos(0.6), math.sin(0.6)])
    found = np.array([[(kernel * a * b).sum() for b in (x, y)] for a in (x, y)])
    np.testing.assert_allclose(found, 8 * np.outer(axis, axis) + np.eye(2), atol=0.05)


@pytest.mark.parametrize(("anisotropic", "same"), [(0, True), (1, False)])
def test_isotropic_kernels_look_alike_in_both_directions(anisotropic, same):
    point = torch.zeros(3, 1, 41, 41)
    point[..., 20, 20] = 1
    made = apply("Blur", point, sigma=[1, 3], anisotropic=anisotropic)
    turned = made.transpose(2, 3)
    assert torch.allclose(made, turned, atol=1e-6) == same
    torch.testing.assert_close(made.sum((1, 2, 3)), torch.ones(3))


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
@pytest.mark.parametrize("factor", [0.5, 0.37])
def test_resizing_is_pillows(kernel, factor):
    images = torch.rand(1, 1, 40, 60, generator=torch.Generator().manual_seed(0))
    filter_ = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[kernel]
    picture = Image.fromarray(images[0, 0].numpy())
    small = picture.resize((round(60 * factor), round(40 * factor)), filter_)
    expected = torch.from_numpy(np.array(small.resize((60, 40), filter_)))
    made = apply("Resize", images, factor=factor, kernels=[kernel])[0, 0]
    torch.testing.assert_close(made, expected, atol=2e-5, rtol=0)


def test_area_takes_means():
    images = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(F.avg_pool2d(images, 4), scale_factor=4, mode="bilinear")
    torch.testing.assert_close(apply("Resize", images, factor=0.25, kernels=["area"]), expected)


def test_factor_one_changes_nothing_and_constants_stay():
    images = torch.rand(3, 3, 21, 34, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(apply("Resize", images, factor=1), images)
    constant = torch.full((3, 1, 30, 30), 0.3)
    torch.testing.assert_close(apply("Resize", constant), constant)


@pytest.mark.parametrize(("period", "passed"), [(24, True), (3, False)])
def test_waves_too_short_for_the_small_image_are_lost(period, passed):
    made = amplitude(apply("Resize", waves(96, period, 3), factor=0.5))
    assert (made > 0.85).all() if passed else (made < 0.5).all()


def test_noise_between_is_enlarged():
    images = torch.full((1, 1, 128, 128), 0.5)
    between = [{"type": "Gaussian", "sigma": 20}]
    made = apply("Resize", images, factor=0.25, kernels=["bilinear"], between=between) - 0.5
    correlation = (made[..., 1:] * made[..., :-1]).mean() / made.var()
    # Between two samples in a row, of a triangle four pixels long to either side.
    assert correlation > 0.85
    assert 8 < made.std() * 255 < 20
