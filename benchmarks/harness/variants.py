"""KBNet_s with parts of its block changed or left out, and NAFNet, under names for option files.

They exist only for controlled comparison: no weights are shipped for them, and KBNet_s itself has no such
switches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from kbnet_plugin import KBNet_s
from kbnet_plugin.errors import BadInput, nearest
from kbnet_plugin.nn.kbnet_s import BASES, GROUP, KBBlock_s
from kbnet_plugin.nn.layers import GlobalMean, by_strips, recompute
from kbnet_plugin.ops import kernel_basis_attention

from . import costs
from .networks import architecture

Branch = Literal["channel", "invariant", "adaptive"]
Operator = Literal["kba", "depthwise", "grouped", "dynamic", "window"]
Part = Literal["conv2", "conv211"]

WINDOW = 8


class DynamicConvolution(nn.Module):
    """Kernels mixed once per image, by a softmax of global means (Chen et al., arXiv 1912.03458)."""

    def __init__(self, channels: int, bases: int = BASES) -> None:
        super().__init__()
        self.groups = channels // GROUP
        self.w = nn.Parameter(torch.empty(bases, channels * GROUP * 9))
        self.b = nn.Parameter(torch.zeros(bases, channels))
        bound = 1 / math.sqrt(GROUP * 9)
        nn.init.uniform_(self.w, -bound, bound)
        self.choose = nn.Sequential(
            GlobalMean(), nn.Conv2d(channels, bases, 1), nn.ReLU(), nn.Conv2d(bases, bases, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        share = self.choose(x).flatten(1).softmax(1)
        kernels = (share @ self.w).view(b * c, GROUP, 3, 3)
        bias = (share @ self.b).flatten()
        # The images of a batch become groups of one image.
        out = F.conv2d(x.reshape(1, b * c, h, w), kernels, bias, padding=1, groups=b * self.groups)
        return out.view(b, c, h, w)


class WindowAttention(nn.Module):
    """Attention within windows that do not overlap, with a learned bias for each offset."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.bias = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 2, heads))
        self.out = nn.Conv2d(channels, channels, 1)
        place = torch.arange(WINDOW)
        y, x = (p.flatten() for p in torch.meshgrid(place, place, indexing="ij"))
        apart = (y[:, None] - y + WINDOW - 1) * (2 * WINDOW - 1) + x[:, None] - x + WINDOW - 1
        self.register_buffer("apart", apart, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = F.pad(self.qkv(x), (0, -w % WINDOW, 0, -h % WINDOW))
        rows, columns = qkv.shape[2] // WINDOW, qkv.shape[3] // WINDOW
        qkv = qkv.view(b, 3, self.heads, c // self.heads, rows, WINDOW, columns, WINDOW)
        # (3, windows, heads, pixels, channels of a head)
        q, k, v = qkv.permute(1, 0, 4, 6, 2, 5, 7, 3).reshape(
            3, -1, self.heads, WINDOW * WINDOW, c // self.heads
        )
        near = (q * q.shape[-1] ** -0.5) @ k.mT + self.bias[self.apart].permute(2, 0, 1).to(q.dtype)
        out = near.softmax(-1) @ v
        out = out.view(b, rows, columns, self.heads, WINDOW, WINDOW, -1).permute(0, 3, 6, 1, 4, 2, 5)
        return self.out(out.reshape(b, c, rows * WINDOW, columns * WINDOW)[..., :h, :w])


class VariantBlock(KBBlock_s):
    """The block of KBNet_s with parts changed or left out; see `KBNetVariant`."""

    def __init__(
        self,
        channels: int,
        lightweight: bool,
        ffn_scale: float,
        bases: int,
        operator: Operator,
        without: Sequence[Branch],
        softmax: bool,
        parts: Sequence[Part],
    ) -> None:
        super().__init__(channels, lightweight, ffn_scale)
        self.kinds = [b for b in ("invariant", "adaptive", "channel") if b not in without]
        self.softmax, self.parts = softmax, tuple(parts)
        self.mixes = "adaptive" in self.kinds and bases > 0
        self.other: nn.Module | None = None
        if bases and bases != BASES:
            self._build_kba(channels, channels, GROUP, gate_channels=min(channels, 32), bases=bases)
        if not (self.mixes and operator == "kba"):
            self._drop("w", "b", "attgamma", "conv2", "conv211")
        elif "conv2" not in parts:
            self._drop("attgamma", "conv2")
        elif "conv211" not in parts:
            self._drop("conv211")
        if self.mixes and operator != "kba":
            self.other = {
                "depthwise": lambda: nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
                "grouped": lambda: nn.Conv2d(channels, channels, 3, padding=1, groups=channels // GROUP),
                "dynamic": lambda: DynamicConvolution(channels, bases),
                "window": lambda: WindowAttention(channels),
            }[operator]()
        if not self.mixes:
            self._drop("ga1")
        if "adaptive" not in self.kinds:
            self._drop("conv1", "conv21")
        if "invariant" not in self.kinds:
            self._drop("conv11")
        if "channel" not in self.kinds:
            self._drop("sca")

    def _drop(self, *names: str) -> None:
        for name in names:
            delattr(self, name)

    def forward(self, x: Tensor) -> Tensor:
        features, coefficients, *factors = recompute(self._branches, x)
        maps = [features] if features is not None else []
        if coefficients is not None:
            maps.append(kernel_basis_attention(features, coefficients, self.w, self.b, self.groups))
        elif self.mixes:
            maps.append(self.other(features))
        return by_strips(self._combine, x, *maps, *factors)

    def _branches(self, x: Tensor) -> tuple[Tensor | None, ...]:
        t = self.norm1(x)
        adaptive = "adaptive" in self.kinds
        features = self.conv21(self.conv1(t)) if adaptive else None
        coefficients = self._coefficients(t) if self.mixes and self.other is None else None
        others = [
            getattr(self, name)(t)
            for kind, name in (("invariant", "conv11"), ("channel", "sca"))
            if kind in self.kinds
        ]
        return features, coefficients, *others

    def _coefficients(self, t: Tensor) -> Tensor:
        if len(self.parts) == 2:
            a = super()._coefficients(t)
        else:
            a = self.conv211(t) if "conv211" in self.parts else self.conv2(t) * self.attgamma
        return a.softmax(1) if self.softmax else a

    def _combine(self, x: Tensor, *maps: Tensor) -> Tensor:
        left = list(maps)
        adaptive = left.pop(0) if "adaptive" in self.kinds else None
        if self.mixes:
            adaptive = torch.addcmul(adaptive, left.pop(0), self.ga1)
        # The order of KBBlock_s: invariant, adaptive, channel.
        factors = [left.pop(0)] if "invariant" in self.kinds else []
        factors += [adaptive] if adaptive is not None else []
        product = math.prod((factors + left)[1:], start=(factors + left)[0])
        y = torch.addcmul(x, self.conv3(product), self.beta)
        return torch.addcmul(y, self.conv5(self.gate(self.conv4(self.norm2(y)))), self.gamma)


class KBNetVariant(KBNet_s):
    """KBNet_s with changed blocks; with the default arguments it is KBNet_s and loads its weights.

    Parameters
    ----------
    bases : int
        Number of kernel bases; 0 omits kernel basis attention, but not the convolutions before it.
    operator : str
        What replaces kernel basis attention (``"kba"``): a ``"depthwise"`` or ``"grouped"`` 3x3 convolution,
        a ``"dynamic"`` one, or attention within a ``"window"``.
    without : sequence of str
        Branches omitted from the product: ``"channel"``, ``"invariant"``, ``"adaptive"``.
    softmax : bool
        Whether the coefficients of a pixel sum to 1.
    parts : sequence of str
        Paths that compute the coefficients: ``"conv2"``, ``"conv211"``.
    **arguments
        As for `KBNet_s`.

    Raises
    ------
    ValueError
        If a name is unknown, or no branch or no path is left.
    """

    def __init__(
        self,
        bases: int = BASES,
        operator: Operator = "kba",
        without: Sequence[Branch] = (),
        softmax: bool = False,
        parts: Sequence[Part] = ("conv2", "conv211"),
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        _known("operator", [operator], ("kba", "depthwise", "grouped", "dynamic", "window"))
        _known("without", without, ("channel", "invariant", "adaptive"))
        _known("parts", parts, ("conv2", "conv211"))
        if not parts or len(set(without)) == 3:
            raise ValueError("nothing is left: parts must name a path, and without must leave a branch")
        if isinstance(bases, bool) or not isinstance(bases, int) or bases < 0:
            raise ValueError(f"bases must be an integer of at least 0, not {bases!r}")
        light, scale = arguments.get("lightweight", False), arguments.get("ffn_scale", 2)
        for _, stage in self.stages():
            for i, block in enumerate(stage):
                channels = len(block.norm1.weight)
                stage[i] = VariantBlock(channels, light, scale, bases, operator, without, softmax, parts)


def NAFNet(**arguments: Any) -> nn.Module:  # noqa: N802 - the name in option files
    """Build spandrel's NAFNet (Chen et al., arXiv 2204.04676)."""
    return architecture("NAFNet")(**arguments)


def register() -> None:
    """Register both for `basicsr train`; calling it again has no effect."""
    for thing in (KBNetVariant, NAFNet):
        if thing.__name__ not in ARCH_REGISTRY:
            ARCH_REGISTRY.register(thing)


def build(network: Mapping[str, Any]) -> nn.Module:
    """Build the network of a section ``network_g``.

    Raises
    ------
    ModuleNotFoundError
        If the package that provides it is not installed; the message is the package's name.
    BadInput, TypeError, ValueError
        If there is no such network, or it does not accept these arguments.
    """
    register()
    arguments = dict(network)
    name = arguments.pop("type", None)
    if name not in ARCH_REGISTRY:
        raise BadInput(f"no network {name!r}{nearest(name, ARCH_REGISTRY.keys())}")
    return ARCH_REGISTRY.get(name)(**arguments)


def cost(network: Mapping[str, Any]) -> dict[str, float]:
    """Count parameters in millions and multiply-accumulates in G, for one image of 256 x 256."""
    return costs.count(build(network), (256, 256), 3, memory=False)


def _known(name: str, given: Sequence[str], known: Sequence[str]) -> None:
    for word in given:
        if word not in known:
            raise ValueError(f"{name}: {word!r} is not one of {', '.join(known)}")
