"""Array in, restored array of the same kind out."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .nn import KBNet_l, KBNet_s
from .tiling import plan
from .weights import load_network

TILE = 512
HALO = 32


class Restorer:
    """A network that restores pictures of any size and dtype, tile by tile where they are large.

    Parameters
    ----------
    network : KBNet_s or KBNet_l
        Moved to `device` and put into evaluation mode.
    device : str
        ``"auto"`` (CUDA, then MPS, then CPU) or anything that names a torch device.
    tile, halo : int
        Largest side of a tile, and the overlap's width at its inner edges, in pixels. A picture that fits
        in one tile is restored whole. The networks pool over what they see, so a tile's answer differs a
        little from the whole picture's.

    Raises
    ------
    ValueError
        If the device is not there, or a tile leaves nothing between its halos.

    Examples
    --------
    >>> import numpy as np
    >>> network = KBNet_s(width=8, middle_blk_num=1, enc_blk_nums=[1], dec_blk_nums=[1])
    >>> noisy = np.full((40, 50, 3), 128, np.uint8)
    >>> clean = Restorer(network, device="cpu")(noisy)
    >>> clean.shape, clean.dtype
    ((40, 50, 3), dtype('uint8'))
    """

    def __init__(
        self, network: KBNet_s | KBNet_l, *, device: str = "auto", tile: int = TILE, halo: int = HALO
    ) -> None:
        self.device = find_device(device)
        self.network = network.to(self.device).eval()
        self.tile = tile
        self.halo = halo
        self._plan((tile + 1, tile + 1))  # an impossible tile is told at once

    @classmethod
    def from_pretrained(
        cls, path: str | PathLike[str], *, device: str = "auto", tile: int = TILE, halo: int = HALO
    ) -> Restorer:
        """Build a restorer from a checkpoint; see `load_network` for the files it takes and its errors."""
        return cls(load_network(path), device=device, tile=tile, halo=halo)

    @property
    def channels(self) -> tuple[int, int]:
        """Channels that the network takes and gives."""
        if isinstance(self.network, KBNet_s):
            return self.network.img_channel, self.network.img_channel
        return self.network.inp_channels, self.network.out_channels

    def __call__(
        self, image: NDArray[Any], progress: Callable[[int, int], object] | None = None
    ) -> NDArray[Any]:
        """Restore one picture.

        Parameters
        ----------
        image : ndarray
            (H, W) or (H, W, C), C being what the network takes, or one more for alpha, which is copied. A
            gray picture may be given to a colour network: it is restored as three equal channels, and their
            mean returned. Integers and bool span 0 to the largest value of their dtype. Floats between
            -0.5 and 1.5 are taken to span 0 to 1, and any others from their own least to their largest
            value.
        progress : callable, optional
            Called as ``progress(done, total)`` after every tile.

        Returns
        -------
        ndarray
            Of the shape and dtype of `image`, in its range: integers rounded and clipped to their dtype,
            floats left as they come out. Where a network gives fewer channels than it takes, that many.

        Raises
        ------
        ValueError
            If shape, channels or dtype are not as above, or floats hold NaN or infinity.
        """
        colour, alpha = self._split(image)
        low, span = _range(colour)
        takes, gives = self.channels
        height, width, given = colour.shape
        broadcast = given < takes
        out = np.empty((height, width, 1 if broadcast else gives), image.dtype)
        tiles = self._plan((height, width))
        for done, tile in enumerate(tiles, start=1):
            part = (colour[tile.source].astype(np.float64) - low) / span
            batch = torch.from_numpy(part.astype(np.float32)).permute(2, 0, 1)[None].to(self.device)
            with torch.inference_mode():
                result = self.network(batch.expand(-1, takes, -1, -1) if broadcast else batch)[0]
            result = result.mean(0, keepdim=True) if broadcast else result
            restored = result.permute(1, 2, 0).cpu().numpy()[tile.crop].astype(np.float64) * span + low
            out[tile.target] = _cast(restored, image.dtype)
            if progress is not None:
                progress(done, len(tiles))
        if alpha is not None:
            out = np.concatenate([out, alpha], axis=2)
        return out[..., 0] if image.ndim == 2 else out

    def _plan(self, shape: tuple[int, int]) -> list[Any]:
        return plan(shape, self.tile, self.halo, self.network.size_multiple)

    def _split(self, image: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Colour (H, W, C) and alpha (H, W, 1) of a picture that the network can take."""
        if image.dtype.kind not in "buif":
            raise ValueError(f"pixels must be bool, integer or float, not {image.dtype}")
        if image.ndim not in (2, 3) or image.size == 0:
            raise ValueError(f"a picture must be (H, W) or (H, W, C) and not empty, not {image.shape}")
        if image.dtype.kind == "f" and not np.isfinite(image).all():
            raise ValueError("pixels are NaN or infinite; replace them first")
        if image.ndim == 2:
            image = image[..., None]
        takes, count = self.channels[0], image.shape[2]
        allowed = {takes, 1} if takes == 3 else {takes}
        if count in allowed:
            return image, None
        if takes in (1, 3) and count - 1 in allowed:
            return image[..., :-1], image[..., -1:]
        kinds = {1: "gray pictures", 3: "RGB or gray pictures"}.get(takes, f"pictures of {takes} channels")
        raise ValueError(
            f"the model takes {kinds}, not {count} channels; convert the picture or use another model"
        )


def find_device(name: str = "auto") -> torch.device:
    """Turn a device's name into a device that is there; ``"auto"`` is CUDA, then MPS, then the CPU.

    Raises
    ------
    ValueError
        If there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError):  # one for every way of not being there
        raise ValueError(f"device {name!r} is not available on this machine; use auto or cpu") from None


def _range(image: NDArray[Any]) -> tuple[float, float]:
    """Value that becomes 0, and how much makes 1."""
    if image.dtype.kind == "b":
        return 0.0, 1.0
    if image.dtype.kind in "ui":
        return 0.0, float(np.iinfo(image.dtype).max)
    low, high = float(image.min()), float(image.max())
    if low >= -0.5 and high <= 1.5:
        return 0.0, 1.0
    return low, high - low or 1.0


def _cast(values: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind == "b":
        return values >= 0.5
    if dtype.kind == "f":
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    # 64-bit limits are not float64 numbers: the largest float below them is the largest that casts back.
    top = float(limits.max)
    top = top if int(top) <= limits.max else np.nextafter(top, 0)
    return np.clip(np.rint(values), limits.min, top).astype(dtype)
