"""KBNet_l: the transformer-style network for deraining and defocus deblurring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import kernel_basis_attention
from .layers import (
    ChannelScale,
    KBAMixin,
    LayerNorm2d,
    by_strips,
    check_counts,
    check_image,
    check_positive,
    pad_to_multiple,
    recompute,
)

GROUP = 2  # channels per group in the pixel-adaptive branch
BASES = 32
LEVELS = 4


class MFF(KBAMixin):
    """Multi-axis feature fusion: channel-wise, spatially fixed and pixel-adaptive features, multiplied."""

    def __init__(self, dim: int, ffn_expansion_factor: float, bias: bool) -> None:
        super().__init__()
        hidden = int(dim * ffn_expansion_factor)

        def pointwise_depthwise() -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(dim, hidden, 1, bias=bias),
                nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=bias),
            )

        self.dwconv = pointwise_depthwise()
        self.conv1 = pointwise_depthwise()
        self.sca = ChannelScale(dim, hidden)
        self._build_kba(dim, hidden, GROUP, gate_channels=min(dim, 24), bases=BASES)
        self.project_out = nn.Conv2d(hidden, dim, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        features, coefficients, spatial = recompute(self._branches, x)
        mixed = kernel_basis_attention(features, coefficients, self.w, self.b, self.groups)
        return by_strips(self._combine, x, mixed, features, spatial, self.sca(x))

    def _branches(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.conv1(x), self._coefficients(x), self.dwconv(x)

    def _combine(
        self, x: Tensor, mixed: Tensor, features: Tensor, spatial: Tensor, channel: Tensor
    ) -> Tensor:
        adaptive = torch.addcmul(features, mixed, self.ga1)
        return self.project_out(F.gelu(spatial) * adaptive * channel)


class TransposedAttention(nn.Module):
    """Self-attention between channels rather than pixels, so that its cost is linear in the pixels."""

    def __init__(self, dim: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=bias)
        self.qkv_dwconv = nn.Conv2d(3 * dim, 3 * dim, 3, padding=1, groups=3 * dim, bias=bias)
        self.project_out = nn.Conv2d(dim, dim, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        # Channels last: (B, H*W, 3, heads, C/heads) is a view, and every product below reads it in place.
        qkv = (
            self.qkv_dwconv(self.qkv(x)).permute(0, 2, 3, 1).reshape(b, h * w, 3, self.heads, c // self.heads)
        )
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, H*W, C/heads)
        # Norm and product are sums over all pixels, which would overflow in half precision.
        with torch.autocast(x.device.type, enabled=False):
            dtype = torch.promote_types(q.dtype, torch.float32)
            q, k = q.to(dtype), k.to(dtype)
            scale = _inverse_norm(q).mT * _inverse_norm(k) * self.temperature.to(dtype)
            attention = ((q.mT @ k) * scale).softmax(dim=-1)
        out = v @ attention.to(v.dtype).mT  # (B, heads, H*W, C/heads)
        out = out.transpose(1, 2).reshape(b, h, w, c).permute(0, 3, 1, 2)
        return self.project_out(out)


def _inverse_norm(pixels: Tensor) -> Tensor:
    """Compute 1 / L2 norm of each channel over all pixels, (..., H*W, C) to (..., 1, C)."""
    # Over strided pixels, vector_norm is ten times slower than these two passes.
    return pixels.square().sum(dim=-2, keepdim=True).clamp_min(1e-24).rsqrt()


class KBBlock_l(nn.Module):
    """Multi-axis feature fusion, then transposed attention; both residual, on (B, C, H, W)."""

    def __init__(self, dim: int, heads: int, ffn_expansion_factor: float, bias: bool) -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(dim)
        self.attn = MFF(dim, ffn_expansion_factor, bias)
        self.norm2 = LayerNorm2d(dim)
        self.ffn = TransposedAttention(dim, heads, bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        x = x + self.ffn(self.norm2(x))
        return x


class _PatchEmbed(nn.Module):
    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        return x


class _Resample(nn.Module):
    """A 3x3 convolution, then a pixel (un)shuffle; checkpoints call the convolution `body.0`."""

    def __init__(self, inputs: int, outputs: int, shuffle: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), shuffle)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return x


def _down(dim: int) -> _Resample:
    return _Resample(dim, dim // 2, nn.PixelUnshuffle(2))


def _up(dim: int) -> _Resample:
    return _Resample(dim, 2 * dim, nn.PixelShuffle(2))


class KBNet_l(nn.Module):
    """Four-level KBNet for deraining and defocus deblurring.

    Parameters
    ----------
    inp_channels, out_channels : int
        Channels of the image; 6 and 3 for dual-pixel defocus. The first `out_channels` of the input are added
        to the output.
    dim : int
        Channels at full resolution; doubled at every level.
    num_blocks : sequence of 4 int
        Blocks per level.
    num_refinement_blocks : int
        Blocks after the last decoder, at 2 * dim channels.
    heads : sequence of 4 int
        Attention heads per level.
    ffn_expansion_factor : float
        Hidden width of the fusion block relative to its input.
    bias : bool
        Give a bias to those convolutions where it is optional.
    blockname : str
        Name of the block, which is always ``"KBBlock_l"``; released option files set it.

    Raises
    ------
    ValueError
        If an argument breaks a rule of the architecture; the message names the argument and the rule.

    References
    ----------
    Zhang et al., "KBNet: Kernel Basis Network for Image Restoration", arXiv 2303.02881.
    """

    def __init__(
        self,
        inp_channels: int = 3,
        out_channels: int = 3,
        dim: int = 48,
        num_blocks: Sequence[int] = (4, 6, 6, 8),
        num_refinement_blocks: int = 4,
        heads: Sequence[int] = (1, 2, 4, 8),
        ffn_expansion_factor: float = 1.5,
        bias: bool = False,
        blockname: str = "KBBlock_l",
    ) -> None:
        super().__init__()
        check_positive(
            inp_channels=inp_channels,
            out_channels=out_channels,
            dim=dim,
            ffn_expansion_factor=ffn_expansion_factor,
        )
        _check_arguments(
            inp_channels,
            out_channels,
            dim,
            num_blocks,
            num_refinement_blocks,
            heads,
            ffn_expansion_factor,
            blockname,
        )

        def blocks(level: int, channels: int, count: int) -> nn.Sequential:
            return nn.Sequential(
                *(KBBlock_l(channels, heads[level], ffn_expansion_factor, bias) for _ in range(count))
            )

        self.inp_channels = inp_channels
        self.out_channels = out_channels
        self.patch_embed = _PatchEmbed(inp_channels, dim)
        self.encoder_level1 = blocks(0, dim, num_blocks[0])
        self.down1_2 = _down(dim)
        self.encoder_level2 = blocks(1, 2 * dim, num_blocks[1])
        self.down2_3 = _down(2 * dim)
        self.encoder_level3 = blocks(2, 4 * dim, num_blocks[2])
        self.down3_4 = _down(4 * dim)
        self.latent = blocks(3, 8 * dim, num_blocks[3])
        self.up4_3 = _up(8 * dim)
        self.reduce_chan_level3 = nn.Conv2d(8 * dim, 4 * dim, 1, bias=bias)
        self.decoder_level3 = blocks(2, 4 * dim, num_blocks[2])
        self.up3_2 = _up(4 * dim)
        self.reduce_chan_level2 = nn.Conv2d(4 * dim, 2 * dim, 1, bias=bias)
        self.decoder_level2 = blocks(1, 2 * dim, num_blocks[1])
        self.up2_1 = _up(2 * dim)
        self.decoder_level1 = blocks(0, 2 * dim, num_blocks[0])
        self.refinement = blocks(0, 2 * dim, num_refinement_blocks)
        self.output = nn.Conv2d(2 * dim, out_channels, 3, padding=1, bias=bias)

    @property
    def size_multiple(self) -> int:
        """`forward` pads height and width to a multiple of this."""
        return int(2 ** (LEVELS - 1))

    def stages(self) -> Iterator[tuple[int, nn.Module]]:
        """Yield each sequence of blocks with its level: how many times its input has been halved."""
        yield from enumerate((self.encoder_level1, self.encoder_level2, self.encoder_level3, self.latent))
        yield from enumerate((self.decoder_level1, self.decoder_level2, self.decoder_level3))
        yield 0, self.refinement

    def forward(self, image: Tensor) -> Tensor:
        """Restore images.

        Parameters
        ----------
        image : Tensor
            (B, inp_channels, H, W), floating point, nominally in 0..1; any height and width from 1.

        Returns
        -------
        Tensor
            (B, out_channels, H, W), not clamped.

        Raises
        ------
        ValueError
            If the image has another shape or dtype, or is empty.
        """
        check_image(image, self.inp_channels)
        padded = pad_to_multiple(image, self.size_multiple, "reflect")
        padded = padded.contiguous(memory_format=torch.channels_last)
        one = self.encoder_level1(self.patch_embed(padded))
        two = self.encoder_level2(self.down1_2(one))
        three = self.encoder_level3(self.down2_3(two))
        x = self.latent(self.down3_4(three))
        x = self.decoder_level3(self.reduce_chan_level3(torch.cat([self.up4_3(x), three], 1)))
        x = self.decoder_level2(self.reduce_chan_level2(torch.cat([self.up3_2(x), two], 1)))
        x = self.decoder_level1(torch.cat([self.up2_1(x), one], 1))
        x = self.output(self.refinement(x))
        x = x + padded[:, : self.out_channels]
        return x[..., : image.shape[2], : image.shape[3]]


def _check_arguments(
    inp_channels: int,
    out_channels: int,
    dim: int,
    num_blocks: Sequence[int],
    num_refinement_blocks: int,
    heads: Sequence[int],
    ffn_expansion_factor: float,
    blockname: str,
) -> None:
    if dim % 2:
        raise ValueError(f"dim must be even (it is halved between levels and gated), not {dim}")
    if out_channels > inp_channels:
        raise ValueError(f"out_channels must not exceed inp_channels: {out_channels} > {inp_channels}")
    for name, values in (("num_blocks", num_blocks), ("heads", heads)):
        if len(values) != LEVELS:
            raise ValueError(f"{name} must be {LEVELS} numbers, one per level, not {list(values)}")
    check_counts(num_blocks=num_blocks, num_refinement_blocks=[num_refinement_blocks])
    for level in range(LEVELS):
        c = dim * 2**level
        if c % min(c, 24):
            raise ValueError(
                f"dim {dim} gives {c} channels at level {level + 1}, not a multiple of 24 (groups of conv2)"
            )
        if heads[level] < 1 or c % heads[level]:
            raise ValueError(f"heads[{level}] must divide the {c} channels of its level, not {heads[level]}")
        if int(c * ffn_expansion_factor) < GROUP or int(c * ffn_expansion_factor) % GROUP:
            raise ValueError(
                f"ffn_expansion_factor * channels must be a multiple of {GROUP} at every level: "
                f"{ffn_expansion_factor} * {c} gives {int(c * ffn_expansion_factor)}"
            )
    if blockname != "KBBlock_l":
        raise ValueError(f"blockname must be 'KBBlock_l', not {blockname!r}")
