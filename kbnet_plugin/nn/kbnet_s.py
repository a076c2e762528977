"""KBNet_s: the U-Net for denoising (Gaussian, SIDD, SenseNoise)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import block, kernel_basis_attention, native
from .layers import (
    ChannelScale,
    KBAMixin,
    LayerNorm2d,
    SimpleGate,
    by_strips,
    check_counts,
    check_image,
    check_positive,
    layer_scale,
    pad_to_multiple,
    recompute,
)

GROUP = 4  # channels per group in the pixel-adaptive branch and in the 5x5 convolution
BASES = 32
GATE = 32  # the most channels of conv2's gate


class KBBlock_s(KBAMixin):
    """Multi-axis feature fusion, then a gated feed-forward layer; both residual, on (B, C, H, W)."""

    def __init__(
        self,
        channels: int,
        lightweight: bool = False,
        ffn_scale: float = 2,
        bases: int = BASES,
        per_group: int = GROUP,
    ) -> None:
        super().__init__()
        c, hidden = channels, int(ffn_scale * channels)
        self.norm1 = LayerNorm2d(c)
        self.norm2 = LayerNorm2d(c)
        self.sca = ChannelScale(c, c)
        spatial = (
            nn.Conv2d(c, c, 3, padding=1, groups=c)
            if lightweight
            else nn.Conv2d(c, c, 5, padding=2, groups=c // GROUP)
        )
        self.conv11 = nn.Sequential(nn.Conv2d(c, c, 1), spatial)
        self.conv1 = nn.Conv2d(c, c, 1)
        self.conv21 = nn.Conv2d(c, c, 3, padding=1, groups=c)
        gate = c if c <= GATE else math.gcd(c, GATE)
        self._build_kba(c, c, per_group, gate_channels=gate, bases=bases)
        self.conv3 = nn.Conv2d(c, c, 1)
        self.conv4 = nn.Conv2d(c, hidden, 1)
        self.gate = SimpleGate()
        self.conv5 = nn.Conv2d(hidden // 2, c, 1)
        self.beta = layer_scale(c)
        self.gamma = layer_scale(c)

    def forward(self, x: Tensor) -> Tensor:
        fused = self._fused(x)
        if fused is not None:
            return fused
        features, coefficients, spatial, channel = recompute(self._branches, x)
        mixed = kernel_basis_attention(features, coefficients, self.w, self.b, self.groups)
        return by_strips(self._combine, x, mixed, features, spatial, channel)

    @property
    def is_fused(self) -> bool:
        """Whether a CPU runs the block as one operator; see `kbnet_plugin.ops.block`."""
        fits = self.conv11[1].kernel_size == (3, 3) and block.fits(self.conv1.out_channels)
        return fits and bool(native.available_isas())

    def _fused(self, x: Tensor) -> Tensor | None:
        """Run the block in C, or return None where that does not serve."""
        if not block.wanted(x):
            return None
        first = (self.conv1, self.conv21, *self.conv11, self.conv2[0], self.conv2[2])
        last = (self.conv211, self.conv3, self.conv4, self.conv5, self.sca[1])
        if any(type(layer) is not nn.Conv2d for layer in (*first, *last)) or block.is_watched(self):
            return None
        if self.conv11[1].kernel_size != (3, 3):
            return None

        def pairs(*layers: nn.Module) -> list[Any]:
            return [p for layer in layers for p in layer._parameters.values()]  # weight and bias

        parameters = [
            *pairs(self.norm1, *first),
            *(self.attgamma, *pairs(self.conv211), self.ga1, *pairs(self.conv3), self.beta),
            *pairs(self.norm2, self.conv4, self.conv5),
            *(self.gamma, self.w, self.b, *pairs(self.sca[1])),
        ]
        if not block.serves(x, parameters):
            return None
        eps = (self.norm1.eps, self.norm2.eps)
        if not torch.is_grad_enabled():
            return block.infer(x, parameters, eps, self.groups, self.sca.grid)
        return block.block(x, parameters, eps, self.groups) if type(self.sca) is ChannelScale else None

    def _branches(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        t = self.norm1(x)
        return self.conv21(self.conv1(t)), self._coefficients(t), self.conv11(t), self.sca(t)

    def _combine(
        self, x: Tensor, mixed: Tensor, features: Tensor, spatial: Tensor, channel: Tensor
    ) -> Tensor:
        adaptive = torch.addcmul(features, mixed, self.ga1)
        y = torch.addcmul(x, self.conv3(spatial * adaptive * channel), self.beta)
        return torch.addcmul(y, self.conv5(self.gate(self.conv4(self.norm2(y)))), self.gamma)


class KBNet_s(nn.Module):
    """U-shaped KBNet for denoising.

    Parameters
    ----------
    img_channel : int
        Channels of the image, in and out.
    width : int
        Channels at full resolution; doubled at every level.
    middle_blk_num : int
        Blocks at the lowest resolution.
    enc_blk_nums, dec_blk_nums : sequence of int
        Blocks per level on the way down and on the way up; equally long.
    basicblock : str
        Name of the block, which is always ``"KBBlock_s"``; released option files set it.
    lightweight : bool
        Use 3x3 depthwise instead of 5x5 grouped convolutions in the spatially invariant branch.
    ffn_scale : float
        Width of the feed-forward block relative to its input.
    bases : int
        Learned kernels that kernel basis attention mixes at each pixel.
    per_group : int
        Channels in a group of kernel basis attention, whose kernels map each group to itself.
    fold : int
        Stride of the first convolution, whose kernel grows with it; the last one makes `fold` x `fold`
        pixels of each of its own (pixel shuffle, Shi et al., CVPR 2016, arXiv 1609.05158). The blocks then
        work at a lower resolution, which costs less.

    Raises
    ------
    ValueError
        If an argument breaks a rule of the architecture; the message names the argument and the rule.

    References
    ----------
    Zhang et al., "KBNet: Kernel Basis Network for Image Restoration", arXiv 2303.02881.

    Examples
    --------
    >>> import torch
    >>> network = KBNet_s(width=8, middle_blk_num=1, enc_blk_nums=[1], dec_blk_nums=[1])
    >>> network(torch.rand(1, 3, 17, 5)).shape
    torch.Size([1, 3, 17, 5])
    """

    def __init__(
        self,
        img_channel: int = 3,
        width: int = 64,
        middle_blk_num: int = 12,
        enc_blk_nums: Sequence[int] = (2, 2, 4, 8),
        dec_blk_nums: Sequence[int] = (2, 2, 2, 2),
        basicblock: str = "KBBlock_s",
        lightweight: bool = False,
        ffn_scale: float = 2,
        bases: int = BASES,
        per_group: int = GROUP,
        fold: int = 1,
    ) -> None:
        super().__init__()
        check_positive(img_channel=img_channel, width=width, ffn_scale=ffn_scale, bases=bases)
        check_positive(per_group=per_group, fold=fold)
        _check_arguments(width, middle_blk_num, enc_blk_nums, dec_blk_nums, basicblock, ffn_scale)
        if isinstance(per_group, bool) or not isinstance(per_group, int) or width % per_group:
            raise ValueError(f"per_group must be whole and divide width ({width}), not {per_group!r}")

        def blocks(channels: int, count: int) -> nn.Sequential:
            made = (KBBlock_s(channels, lightweight, ffn_scale, bases, per_group) for _ in range(count))
            return nn.Sequential(*made)

        self.img_channel, self.fold = img_channel, fold
        self.intro = nn.Conv2d(img_channel, width, 3 * fold, stride=fold, padding=fold)
        self.encoders = nn.ModuleList()
        self.downs = nn.ModuleList()
        self.ups = nn.ModuleList()
        self.decoders = nn.ModuleList()
        c = width
        for count in enc_blk_nums:
            self.encoders.append(blocks(c, count))
            self.downs.append(nn.Conv2d(c, 2 * c, 2, 2))
            c *= 2
        self.middle_blks = blocks(c, middle_blk_num)
        for count in dec_blk_nums:
            self.ups.append(nn.Sequential(nn.Conv2d(c, 2 * c, 1, bias=False), nn.PixelShuffle(2)))
            c //= 2
            self.decoders.append(blocks(c, count))
        self.ending = nn.Conv2d(width, img_channel * fold**2, 3, padding=1)

    @property
    def size_multiple(self) -> int:
        """`forward` pads height and width to a multiple of this."""
        return self.fold * int(2 ** len(self.encoders))

    def stages(self) -> Iterator[tuple[int, nn.Module]]:
        """Yield each sequence of blocks with its level: how many times its input has been halved."""
        depth = len(self.encoders)
        yield from enumerate(self.encoders)
        yield depth, self.middle_blks
        yield from ((depth - 1 - i, decoder) for i, decoder in enumerate(self.decoders))

    def forward(self, image: Tensor) -> Tensor:
        """Restore images.

        Parameters
        ----------
        image : Tensor
            (B, img_channel, H, W), floating point, nominally in 0..1; any height and width from 1.

        Returns
        -------
        Tensor
            Of the same shape, not clamped.

        Raises
        ------
        ValueError
            If the image has another shape or dtype, or is empty.
        """
        check_image(image, self.img_channel)
        padded = pad_to_multiple(image, self.size_multiple).contiguous(memory_format=torch.channels_last)
        x = self.intro(padded)
        skips = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            x = encoder(x)
            skips.append(x)
            x = down(x)
        x = self.middle_blks(x)
        for up, decoder in zip(self.ups, self.decoders, strict=True):
            x = decoder(up(x) + skips.pop())
        x = self.ending(x)
        x = padded + (F.pixel_shuffle(x, self.fold) if self.fold > 1 else x)
        return x[..., : image.shape[2], : image.shape[3]]


def _check_arguments(
    width: int,
    middle_blk_num: int,
    enc_blk_nums: Sequence[int],
    dec_blk_nums: Sequence[int],
    basicblock: str,
    ffn_scale: float,
) -> None:
    if width % GROUP:
        raise ValueError(f"width must be a multiple of {GROUP} (the channels of a group), not {width}")
    for level in range(len(enc_blk_nums) + 1):
        c = width * 2**level
        if int(ffn_scale * c) % 2 or int(ffn_scale * c) < 2:
            raise ValueError(
                f"ffn_scale * channels must be even at every level: "
                f"{ffn_scale} * {c} gives {int(ffn_scale * c)}"
            )
    if len(enc_blk_nums) != len(dec_blk_nums):
        raise ValueError(
            "enc_blk_nums and dec_blk_nums must be equally long, "
            f"not {len(enc_blk_nums)} and {len(dec_blk_nums)}"
        )
    check_counts(enc_blk_nums=enc_blk_nums, dec_blk_nums=dec_blk_nums, middle_blk_num=[middle_blk_num])
    if basicblock != "KBBlock_s":
        raise ValueError(f"basicblock must be 'KBBlock_s', not {basicblock!r}")
