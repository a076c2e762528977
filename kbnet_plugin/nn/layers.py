"""Small layers that both networks share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..ops import tell_flop_counter


class LayerNorm2d(nn.Module):
    """Normalise the channels of each pixel of (B, C, H, W)."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # In channels-last memory the permutations are views and torch's fused kernel does the rest.
        y = F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), self.weight, self.bias, self.eps)
        return y.permute(0, 3, 1, 2)


class SimpleGate(nn.Module):
    """Multiply the two halves of the channels: (B, 2C, H, W) to (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return a * b


class GlobalMean(nn.Module):
    """Average over height and width, to (B, C, 1, 1); sums are float32 at least, as halves overflow."""

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        return x.mean(dim=(2, 3), keepdim=True, dtype=dtype).to(x.dtype)


class ChannelScale(nn.Sequential):
    """A scale of each channel from the means of all: (B, inputs, H, W) to (B, channels, 1, 1)."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__(GlobalMean(), nn.Conv2d(inputs, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.grid(lambda: self[0](x))

    def grid(self, mean: Callable[[], Tensor]) -> Tensor:
        """Return the scale, (B, channels, h, w), to be interpolated to the size of `x`.

        Parameters
        ----------
        mean : callable
            Computes the means of `x`, (B, inputs, 1, 1).
        """
        scale: Tensor = self[1](mean())
        return scale


class KBAMixin(nn.Module):
    """Parameters of the pixel-adaptive branch, and its coefficients.

    The parameters are attributes of the block itself (`w`, `b`, `ga1`, `attgamma`, `conv2`, `conv211`),
    because released checkpoints name them so.
    """

    def _build_kba(self, inputs: int, channels: int, per_group: int, gate_channels: int, bases: int) -> None:
        tell_flop_counter()
        self.groups = channels // per_group
        self.w = nn.Parameter(torch.empty(1, bases, channels * per_group * 9))
        self.b = nn.Parameter(torch.empty(1, bases, channels))
        nn.init.kaiming_uniform_(self.w, a=math.sqrt(5))
        bound = 1 / math.sqrt(nn.init._calculate_fan_in_and_fan_out(self.w)[0])
        nn.init.uniform_(self.b, -bound, bound)
        self.ga1 = layer_scale(channels)
        self.attgamma = layer_scale(bases)
        self.conv2 = nn.Sequential(
            nn.Conv2d(inputs, gate_channels, 3, padding=1, groups=gate_channels),
            SimpleGate(),
            nn.Conv2d(gate_channels // 2, bases, 1),
        )
        self.conv211 = nn.Conv2d(inputs, bases, 1)

    def _coefficients(self, t: Tensor) -> Tensor:
        # addcmul needs one pass over memory, a product and a sum need two.
        return torch.addcmul(self.conv211(t), self.conv2(t), self.attgamma)


def layer_scale(channels: int) -> nn.Parameter:
    """Make a learned scale, (1, C, 1, 1), that starts at 0.01."""
    return nn.Parameter(torch.full((1, channels, 1, 1), 1e-2))


def recompute(function: Callable[..., Any], *maps: Tensor) -> Any:
    """Call a function so that training stores only its arguments and calls it again in the backward pass.

    For parts that are cheap next to kernel basis attention but produce most of what a block would have to
    store. With fewer pixels than channels, weights rather than maps fill the memory, so everything is
    stored.

    Parameters
    ----------
    function : callable
    *maps : Tensor
        Its arguments, (B, C, H, W).
    """
    # First, because looking at sizes would tie a compiler's graph to them.
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return function(*maps)
    if maps[0].numel() < maps[0].shape[1] ** 2:
        return function(*maps)
    return checkpoint(function, *maps, use_reentrant=False, preserve_rng_state=False)


STRIP = 1 << 18
"""Elements of one operand per strip: 1 MiB in float32, so that several fit in the cache."""


def by_strips(pixelwise: Callable[..., Tensor], *maps: Tensor) -> Tensor:
    """Apply a function that treats each pixel by itself, on the CPU strip by strip.

    Intermediate results then stay in cache; on whole maps, every step would write them to memory and read
    them back. In training, on accelerators and under compilers, there is one call on whole maps.

    Parameters
    ----------
    pixelwise : callable
    *maps : Tensor
        Its arguments, (B, C, H, W), or (B, C, 1, 1) for values that all pixels share.

    Returns
    -------
    Tensor
        Of the shape of the first map.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return recompute(pixelwise, *maps)
    first = maps[0]
    batch, channels, height, width = first.shape
    rows = max(1, STRIP // (channels * width))
    if first.numel() <= 2 * STRIP or first.device.type != "cpu":
        return pixelwise(*maps)
    out = torch.empty_like(first)
    for image in range(batch):
        one = [m[image : image + 1] for m in maps]
        for top in range(0, height, rows):
            strip = slice(top, top + rows)
            out[image : image + 1, :, strip] = pixelwise(
                *(m[:, :, strip] if m.shape[2] == height else m for m in one)
            )
    return out


def pad_to_multiple(x: Tensor, multiple: int, mode: str = "constant") -> Tensor:
    """Pad (..., H, W) at the bottom and right, up to a multiple.

    `mode` is that of `torch.nn.functional.pad`; where an image is too small to reflect, edges are repeated.
    """
    bottom, right = -x.shape[-2] % multiple, -x.shape[-1] % multiple
    if not bottom and not right:
        return x
    if mode == "reflect" and (bottom >= x.shape[-2] or right >= x.shape[-1]):
        mode = "replicate"  # reflection needs more pixels than it adds
    return F.pad(x, (0, right, 0, bottom), mode=mode)


def check_image(x: Tensor, channels: int) -> None:
    """Raise ValueError unless `x` is a non-empty floating-point batch, (B, channels, H, W)."""
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(f"the network expects (batch, {channels}, height, width), not {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"the network expects floating-point values in 0..1, not {x.dtype}")
    if x.shape[2] == 0 or x.shape[3] == 0:
        raise ValueError(f"the image is empty: {tuple(x.shape)}")


def check_counts(**arguments: Sequence[int]) -> None:
    """Raise ValueError naming the first argument that is not a sequence of whole numbers from 0."""
    for name, counts in arguments.items():
        if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in counts):
            raise ValueError(f"{name} must be whole numbers from 0, not {list(counts)}")


def check_positive(**arguments: int | float) -> None:
    """Raise ValueError naming the first argument that is not a positive number."""
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ValueError(f"{name} must be a positive number, not {value!r}")
