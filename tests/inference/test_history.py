"""A result says what made it: model, weights, range, version, and settings that are not the defaults."""

from __future__ import annotations

import numpy as np
import pytest

from kbnet_plugin import Restorer, __version__
from kbnet_plugin.inference.history import history


def test_the_history_names_model_weights_range_and_changed_settings(checkpoint):
    restorer = Restorer.from_pretrained(checkpoint, device="cpu", strength=0.5, decorrelate=(2, 8))
    said = history(restorer, np.dtype(np.uint8), None)
    assert said == {
        "software": f"kbnet {__version__}",
        "model": "tiny",
        "weights": restorer.fingerprint,
        "range": "0 to 255",
        "strength": 0.5,
        "decorrelate": "2, 8",
    }


def test_every_channel_has_its_range(checkpoint):
    restorer = Restorer.from_pretrained(checkpoint, device="cpu")
    ramp = np.linspace(100, 600, 64 * 64).reshape(64, 64)
    array = np.stack([ramp, 10 * ramp]).astype(np.uint16)
    first, second = history(restorer, array.dtype, restorer.measure(array, "CYX"))["range"].split("; ")
    assert [float(v) for v in first.split(" to ")] == pytest.approx([100, 600], abs=2)
    assert [float(v) for v in second.split(" to ")] == pytest.approx([1000, 6000], abs=20)
