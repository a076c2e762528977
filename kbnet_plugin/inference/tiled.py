"""Any network on a picture larger than memory, tensors in and out: for validation and for peers.

`Restorer` does more: it also keeps the means of local pooling the same from tile to tile.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..arrays.tiling import plan


def run_tiled(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    tile: int | None,
    halo: int = 32,
    multiple: int = 16,
    scale: int = 1,
) -> Tensor:
    """Run a network on overlapping tiles.

    Parameters
    ----------
    network : callable
        From (B, C, h, w) to (B, C', h * scale, w * scale).
    image : Tensor
        (B, C, H, W).
    tile : int or None
        Largest side of a tile, halo included; None or 0 for the whole image at once.
    halo, multiple
        As for `kbnet_plugin.arrays.tiling.plan`.
    scale : int
        How much larger the output is.

    Returns
    -------
    Tensor
        (B, C', H * scale, W * scale).

    Raises
    ------
    ValueError
        If a tile leaves nothing between its halos.
    """
    height, width = image.shape[-2:]
    if not tile or max(height, width) <= tile:
        return network(image)
    result = None
    for part in plan((height, width), tile, halo, multiple):
        output = network(image[(..., *part.source)])
        if result is None:
            result = output.new_zeros(*output.shape[:-2], height * scale, width * scale)
        crop, target = (
            tuple(slice(s.start * scale, s.stop * scale) for s in place) for place in (part.crop, part.target)
        )
        result[(..., *target)] = output[(..., *crop)]
    assert result is not None
    return result
