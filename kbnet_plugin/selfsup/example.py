"""Show what a run has learned so far: a crop of the source, restored by its checkpoints."""

from __future__ import annotations

import time

import numpy as np
import torch
from numpy.typing import NDArray

from ..arrays.intensity import Range
from ..zoo.weights import load_network
from .planes import Planes
from .training import RunFiles

_SIDE = 192  # of the crop, in pixels
_PAUSE = 2.0  # seconds between two pictures; restoring takes time from training


class Example:
    """The middle of the middle plane, restored by each new checkpoint.

    Parameters
    ----------
    files : RunFiles
    planes : Planes
    scale : (float, float)
        Values that become 0 and 1.
    device : torch.device
    """

    def __init__(
        self, files: RunFiles, planes: Planes, scale: tuple[float, float], device: torch.device
    ) -> None:
        self._files, self._device = files, device
        self._last, self._next = 0, 0.0
        number = len(planes) // 2
        sides = [(n, min(n, _SIDE)) for n in planes.size(number)]
        rows, columns = (slice((n - side) // 2, (n - side) // 2 + side) for n, side in sides)
        noisy = Range(scale[0], scale[1] - scale[0]).apply(planes.read(number, (rows, columns)))
        self._noisy = np.nan_to_num(noisy, posinf=1.0, neginf=0.0)

    def check(self, *, last: bool = False) -> NDArray[np.float32] | None:
        """Return the crop before and after, (2, H, W, C) in 0..1, if there is a new checkpoint.

        `last` is true once training has ended; otherwise the last picture may be too recent for another.
        """
        iteration = self._files.iteration
        if iteration <= self._last or (time.monotonic() < self._next and not last):
            return None
        try:
            network = load_network(self._files.weights(iteration)).to(self._device)
        except FileNotFoundError:  # a newer one has replaced it
            return None
        with torch.inference_mode():
            x = torch.from_numpy(self._noisy).permute(2, 0, 1)[None].to(self._device)
            after = network(x)[0].permute(1, 2, 0).cpu().numpy()
        self._last, self._next = iteration, time.monotonic() + _PAUSE
        return np.stack([self._noisy, after])
