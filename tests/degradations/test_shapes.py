"""Drawn pictures: plain colours, edges, writing."""

from __future__ import annotations

import pytest
import torch

from kbnet_plugin.degradations import Draws, Pipeline
from kbnet_plugin.degradations.shapes import Shapes

KEYS = [(5, i) for i in range(64)]


@pytest.fixture(scope="module")
def pictures():
    return torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_noise_that_was_there_stays_where_shapes_are_drawn(pictures):
    noise = 0.1 * torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1))
    degraded, clean = Shapes()(pictures + noise, pictures, Draws(KEYS))
    torch.testing.assert_close(degraded - clean, noise, atol=1e-6, rtol=0)
    assert (clean != pictures).float().mean() > 0.4


def test_plain_grounds_are_often_of_one_colour_and_as_often_as_asked(pictures):
    _, clean = Shapes(count=0, plain=1, text=0)(pictures, pictures, Draws(KEYS))
    spread = clean.flatten(2).amax(2) - clean.flatten(2).amin(2)
    plain = spread.amax(1) < 1e-6
    assert 0.5 < plain.float().mean() < 0.9  # the others are gradients
    colours = clean[plain][:, :, 0, 0]
    assert (colours == 0).all(1).any()  # black, white and saturated ones among them
    assert ((colours.amax(1) == 1) & (colours.amin(1) == 0)).any()
    _, clean = Shapes(count=0, plain=0.25, text=0)(pictures, pictures, Draws(KEYS))
    assert 0.1 < (clean != pictures).flatten(1).any(1).float().mean() < 0.4


def test_nothing_asked_is_nothing_done(pictures):
    _, clean = Pipeline([{"type": "Shapes", "count": 0, "plain": 0, "text": 0}])(pictures, Draws(KEYS))
    assert torch.equal(clean, pictures)


def test_edges_of_most_shapes_are_sharp_and_writing_has_gaps():
    gray = torch.full((64, 1, 64, 64), 0.5)
    _, clean = Shapes(count=1, plain=0, text=0)(gray, gray, Draws(KEYS))
    changed = (clean != gray).flatten(1).float().mean(1)
    assert 0.01 < changed.mean() < 0.6
    _, written = Shapes(count=0, plain=0, text=1)(gray, gray, Draws(KEYS))
    assert 0.02 < (written != gray).float().mean() < 0.5
