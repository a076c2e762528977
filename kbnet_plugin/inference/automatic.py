"""Choose a restorer for each array: the caller's model, or a shipped one that suits the noise."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from ..arrays.axes import layout
from ..arrays.noise import Noise
from .choose import choose_treatment, measure_channels
from .restorer import Restorer


class Chosen(NamedTuple):
    """The restorer for an array.

    Attributes
    ----------
    restorer : Restorer
    model : str
        Name of the model that was chosen; empty if the caller named one.
    settings : mapping
        Settings of the caller, and those that were chosen.
    reason : str
        Why, in one line; empty if the caller named a model.
    noises : sequence of Noise or None
        As `Restorer.measure` returns it; None if it was not measured.
    """

    restorer: Restorer
    model: str = ""
    settings: Mapping[str, Any] = MappingProxyType({})
    reason: str = ""
    noises: Sequence[Noise] | None = None


Chooser = Callable[[Any, str | None], Chosen]
"""Function of an array and its axes, or None for axes inferred from its shape, that returns its restorer."""


def make_chooser(model: str | PathLike[str] | None = None, **settings: Any) -> Chooser:
    """Make the function that chooses a restorer for each picture.

    Parameters
    ----------
    model : str or path, optional
        As for `Restorer.from_pretrained`. By default the noise of each picture is measured, and a shipped
        model and settings are chosen for it; see `kbnet_plugin.inference.choose`.
    **settings
        As for `Restorer`; they override those that are chosen. None means not set.

    Raises
    ------
    FileNotFoundError, ValueError
        As for `Restorer.from_pretrained`.
    """
    settings = {name: value for name, value in settings.items() if value is not None}
    build = functools.cache(lambda name: Restorer.from_pretrained(name, **settings))
    if model is not None:
        named = Chosen(Restorer.from_pretrained(model, **settings), settings=settings)
        return lambda array, axes: named

    def choose(array: Any, axes: str | None) -> Chosen:
        arranged = layout(tuple(int(n) for n in array.shape), axes, 3)
        noises = measure_channels(array, arranged.axes)
        found = choose_treatment(noises, np.dtype(array.dtype), arranged.colours)
        own = {name: value for name, value in found.settings.items() if name not in settings}
        # A strength set by the caller also applies to a picture that is clean.
        adapted = build(found.model).with_settings(**own) if own else build(found.model)
        return Chosen(adapted, found.model, settings | own, str(found), noises)

    return choose
