"""What running a network costs, by the two ways of counting; `kbnet_plugin.nn.cost` counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cost:
    """Parameters and multiply-accumulates (MACs) of one image, by the kind of operator that does them.

    Attributes
    ----------
    parameters : int
    convolution : int
        MACs of convolutions.
    kba : int
        MACs of kernel basis attention: mixing the bases at every pixel, and applying the result.
    attention : int
        MACs of products between queries, keys and values.
    linear : int
        MACs of dense layers.
    """

    parameters: int
    convolution: int
    kba: int
    attention: int
    linear: int = 0

    @property
    def macs_published(self) -> int:
        """MACs of convolutions and dense layers: what hook-based counters see, and so what papers print."""
        return self.convolution + self.linear

    @property
    def macs_total(self) -> int:
        """MACs in full: kernel basis attention and attention products included."""
        return self.convolution + self.linear + self.kba + self.attention
