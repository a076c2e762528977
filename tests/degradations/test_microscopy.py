"""Fluorescence, and frames as inference scales them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kbnet_plugin.arrays.intensity import find_range
from kbnet_plugin.arrays.noise import Noise
from kbnet_plugin.degradations import Draws
from kbnet_plugin.degradations.microscopy import Fluorescence, Stretch

KEYS = [(8, i) for i in range(32)]


@pytest.fixture(scope="module")
def pictures():
    small = torch.rand(32, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(small, size=(64, 64), mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize("drawn", [0, 1])
def test_structures_reach_the_peak_above_their_background(pictures, drawn):
    step = Fluorescence(drawn=drawn, peak=0.6, background=0.1)
    degraded, clean = step(pictures, pictures, Draws(KEYS))
    assert degraded is clean
    brightest = clean.amax((1, 2, 3))
    assert brightest.max() < 0.6 + 1e-4
    assert (brightest > 0.6 - 1e-4).float().mean() > 0.8  # others show no cell
    assert clean.min() >= 0.1 - 1e-6


def test_drawn_structures_are_smooth_sparse_and_do_not_depend_on_the_picture(pictures):
    step = Fluorescence(drawn=1, blur=1.5, haze=0, peak=1, background=0)
    _, clean = step(pictures, pictures, Draws(KEYS))
    _, other = step(1 - pictures, 1 - pictures, Draws(KEYS))
    torch.testing.assert_close(clean, other)
    assert clean.diff(dim=3).abs().max() < 0.35  # the blur leaves no edge of a pixel
    assert clean.flatten(1).median(1).values.median() < 0.3


def test_haze_lies_over_what_it_surrounds(pictures):
    clear, hazy = (
        Fluorescence(drawn=1, blur=1, haze=haze, peak=1, background=0)(pictures, pictures, Draws(KEYS))[1]
        for haze in (0, 0.8)
    )
    assert hazy.mean() > 1.3 * clear.mean()


def test_a_stretched_frame_is_what_inference_shows_a_network(pictures):
    noise = 0.05 * torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1))
    stretched, target = Stretch()(pictures + noise, pictures, Draws(KEYS))
    frame = (pictures + noise)[3, 0].numpy()
    low, high = np.percentile(frame, (0.1, 99.9))
    scale = find_range("percentile", frame.dtype, Noise(low=low, high=high))
    expected = torch.from_numpy(scale.apply(frame)).clamp(-1, 2)
    assert (stretched[3, 0] - expected).abs().max() < 0.05
    torch.testing.assert_close((stretched - target)[3, 0], noise[3, 0] / (high - low), atol=0.02, rtol=0.05)


def test_flat_frames_and_outliers_stay_finite():
    flat = torch.full((1, 1, 64, 64), 0.3)
    stretched, target = Stretch()(flat, flat, Draws(KEYS[:1]))
    assert torch.equal(stretched, torch.zeros_like(flat))
    assert torch.equal(target, stretched)
    spiky = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)) / 100
    spiky[..., 5, 5] = 1
    assert Stretch()(spiky, spiky, Draws(KEYS[:1]))[0].max() == 2
