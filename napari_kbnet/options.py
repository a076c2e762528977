"""How to restore: the defaults of the widgets, the settings page and the scripts."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from kbnet_plugin.arrays.intensity import RangeRule

from .loading import load_torch

if TYPE_CHECKING:
    from kbnet_plugin.inference.automatic import Chooser

PLUGIN = "kbnet"
AUTOMATIC = "automatic"
"""What the settings page calls the choice by noise."""

PRECISIONS = ("auto", "float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a restoration.

    Attributes
    ----------
    model : str
        Name or file; empty for the shipped model that fits the image.
    device, precision : str
        As for `Restorer`.
    strength : float
        From 0 (the input) to 1.
    tile, halo : int or None
        In pixels; None for the default of `Restorer`.
    range : RangeRule or None
        Intensities that the network sees as 0 and 1; None for the model's own rule.
    self_ensemble : bool
        Average over eight flips and rotations.
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
        """Return what differs from the defaults, as keywords of `Restorer`."""
        return {
            field.name: value
            for field in fields(self)
            if field.name != "model" and (value := getattr(self, field.name)) != field.default
        }

    def chooser(self) -> Chooser:
        """Build what chooses a restorer for an array; imports torch."""
        load_torch()
        from kbnet_plugin.inference.automatic import make_chooser

        return make_chooser(self.model or None, **self.settings())


def saved() -> Options:
    """Return the options from the settings page."""
    from napari.settings import get_plugin_settings

    try:
        page = get_plugin_settings(PLUGIN).restoration
    except (KeyError, AttributeError):  # the plugin is disabled or not installed
        return Options()
    model = "" if page.model == AUTOMATIC else page.model
    return Options(model=model, device=page.device, precision=page.precision, tile=page.tile or None)
