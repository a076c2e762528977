"""Say what was done to an image, for the file of the result."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from .._version import __version__
from ..arrays.intensity import find_range
from ..arrays.noise import Noise
from .restorer import Restorer

_CHANGES = "strength", "chroma", "decorrelate", "limit", "keep_mean", "self_ensemble", "pooling", "window"


def history(
    restorer: Restorer, dtype: np.dtype[Any], noises: Sequence[Noise] | None
) -> dict[str, str | float]:
    """Describe what a restorer does to an image.

    Parameters
    ----------
    restorer : Restorer
    dtype : dtype
        Of the image.
    noises : sequence of Noise or None
        As `Restorer.measure` returns it.

    Returns
    -------
    dict
        The software and its version, the model and the hash of its weights, the values that the network saw
        as 0 and 1 (of every channel), and the settings that differ from their defaults. It is the same for
        every run.
    """
    found: dict[str, str | float] = {"software": f"kbnet {__version__}"}
    if restorer.name:
        found["model"] = restorer.name
    found["weights"] = restorer.fingerprint
    rule = restorer.settings.range
    ranges = [find_range(rule, dtype, noise) for noise in noises or [Noise()]]
    found["range"] = "; ".join(f"{scale.low:.6g} to {scale.low + scale.span:.6g}" for scale in ranges)
    defaults = inspect.signature(Restorer).parameters
    for name, value in asdict(restorer.settings).items():
        if name in _CHANGES and value != defaults[name].default:
            found[name] = ", ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else value
    return found
