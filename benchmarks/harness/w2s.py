"""W2S: single frames of a fluorescence microscope, and the mean of 400 frames of the same field.

Zhou et al., "W2S: Microscopy Data with Joint Denoising and Super-Resolution for Widefield to SIM Mapping",
ECCV workshops 2020.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FOLDER = Path("micro") / "W2S"
TITLE = "W2S, one frame against the mean of 400"


def frames(data: Path, channel: int | None = None) -> list[Path]:
    """List the single frames below the data folder, of one channel or of all.

    Raises
    ------
    FileNotFoundError
        If there are none.
    """
    pattern = "*.png" if channel is None else f"*_{channel}.png"
    found = sorted((data / FOLDER / "avg1").glob(pattern))
    if not found:
        raise FileNotFoundError(
            f"{data / FOLDER / 'avg1'}: no pictures {pattern}; --data must name a folder with {FOLDER}"
        )
    return found


def read(frame: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read a frame and the mean that belongs to it, both (H, W)."""
    mean = frame.parent.parent / "avg400" / frame.name.replace("input_avg1", "target_avg400")
    noisy, clean = (np.asarray(Image.open(path).convert("L")) for path in (frame, mean))
    return noisy, clean


def fitted(mean: NDArray[Any], noisy: NDArray[Any]) -> NDArray[np.float32]:
    """Return ``s * mean + o``, with the s and o that come closest to `noisy` in least squares.

    Every file was stretched to 8 bits on its own, so a frame and its mean differ in scale and offset.
    """
    s, o = np.polyfit(mean.ravel().astype(np.float64), noisy.ravel().astype(np.float64), 1)
    return (s * mean + o).astype(np.float32)
