"""How to restore: each default once, for the widgets, the settings page and the scripts."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from kbnet_plugin.arrays.intensity import RangeRule

from .loading import load_torch

if TYPE_CHECKING:
    from kbnet_plugin.inference.batch import Choice

PLUGIN = "kbnet"
PRECISIONS = ("auto", "float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may choose of a restoration.

    Attributes
    ----------
    model : str
        Name or file; empty for the shipped one that fits the image.
    device, precision : str
        As `device` and `dtype` of `Restorer`.
    strength : float
        From 0, the input, to 1.
    tile, halo : int or None
        In pixels; None for the `Restorer`'s own.
    range : RangeRule or None
        What the network sees as 0 and 1; None for the model's own.
    self_ensemble : bool
        Mean over eight turns and flips.
    """

    model: str = ""
    device: str = "auto"
    precision: str = "auto"
    strength: float = 1.0
    tile: int | None = None
    halo: int | None = None
    range: RangeRule | None = None
    self_ensemble: bool = False

    def settings(self) -> dict[str, Any]:
        """What differs from the defaults, as keywords of `Restorer`."""
        names = {"precision": "dtype"}
        return {
            names.get(field.name, field.name): value
            for field in fields(self)
            if field.name != "model" and (value := getattr(self, field.name)) != field.default
        }

    def choice(self) -> Choice:
        """From an array's shape and axes to a restorer. Imports torch."""
        load_torch()
        from kbnet_plugin.inference.batch import choice

        return choice(self.model or None, **self.settings())


def saved() -> Options:
    """Options as the settings page has them."""
    from napari.settings import get_plugin_settings

    try:
        page = get_plugin_settings(PLUGIN).restoration
    except (KeyError, AttributeError):  # the plugin is disabled, or napari does not know it by its manifest
        return Options()
    return Options(model=page.model, device=page.device, precision=page.precision, tile=page.tile or None)
