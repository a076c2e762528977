"""Run any network on images larger than memory, for validation and for comparisons.

`Restorer` also makes the results of KBNet independent of the tiling, by local pooling.
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
    """Run a network on overlapping tiles of a batch of images.

    Parameters
    ----------
    network : callable
        Maps (B, C, h, w) to (B, C', h * scale, w * scale).
    image : Tensor
        (B, C, H, W).
    tile : int or None
        Largest side of a tile in pixels, halo included; None or 0 runs the whole image at once.
    halo, multiple : int
        As for `kbnet_plugin.arrays.tiling.plan`.
    scale : int
        Factor by which the network enlarges images.

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
        (rows, columns), (to_rows, to_columns) = (
            [slice(s.start * scale, s.stop * scale) for s in place] for place in (part.crop, part.target)
        )
        result[..., to_rows, to_columns] = output[..., rows, columns]
    assert result is not None
    return result
