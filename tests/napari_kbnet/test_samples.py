"""The samples: made locally, with known noise, beside their clean originals."""

from __future__ import annotations

import socket

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio

from napari_kbnet import samples

KEYS = {"photograph": (300, 451, 3), "cells": (512, 512), "stack": (3, 7, 256, 256)}


@pytest.mark.parametrize("key", KEYS)
def test_a_sample_opens_on_top_of_its_hidden_original(viewer, key):
    viewer.open_sample("kbnet", key)
    truth, noisy = viewer.layers
    assert (noisy.name, truth.name) == (f"Noisy {key}", f"Clean {key}")
    assert (noisy.visible, truth.visible) == (True, False)
    assert viewer.layers.selection.active is noisy
    assert noisy.data.shape == truth.data.shape == KEYS[key]
    assert noisy.data.dtype == truth.data.dtype
    assert (noisy.rgb, tuple(noisy.scale)) == (truth.rgb, tuple(truth.scale))
    assert noisy.contrast_limits == truth.contrast_limits
    assert noisy.units == truth.units
    assert np.array_equal(noisy.extent.world, truth.extent.world)
    assert 10 < peak_signal_noise_ratio(truth.data, noisy.data) < 25


def test_the_stack_names_its_axes_and_their_units(viewer):
    viewer.open_sample("kbnet", "stack")
    layer = viewer.layers["Noisy stack"]
    assert layer.axis_labels == ("t", "z", "y", "x")
    assert [str(unit) for unit in layer.units] == ["second", *["micrometer"] * 3]
    assert tuple(layer.scale) == (30, 1, 0.25, 0.25)


@pytest.mark.parametrize("key", KEYS)
def test_a_sample_is_reproducible_and_downloads_nothing(monkeypatch, key):
    def refuse(*_arguments):
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    first, second = (getattr(samples, key)() for _ in range(2))
    for (one, settings, kind), (other, again, _) in zip(first, second, strict=True):
        assert np.array_equal(one, other)
        assert (settings, kind) == (again, "image")


def test_the_noise_of_the_stack_is_photon_noise_without_bias():
    (clean, _, _), (noisy, _, _) = samples.stack()
    values = clean.astype(float), noisy.astype(float)
    dark, bright = (values[0] < 8_000), (values[0] > 25_000)
    error = values[1] - values[0]
    assert error[bright].std() > 2 * error[dark].std()
    assert abs(error.mean()) < 0.01 * values[0].mean()
