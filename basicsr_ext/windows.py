"""Where training samples are cut from images, and how."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np


class Window(NamedTuple):
    """Where a training sample is cut, in pixels of the smallest role, of the reduced image."""

    factor: int
    top: int
    left: int
    turns: int
    flip: bool


def turned(image: np.ndarray, turns: int, flip: bool) -> np.ndarray:
    """Mirror an image, (H, W, ...), left to right if asked, then rotate it by quarter turns."""
    return np.rot90(image[:, ::-1] if flip else image, turns)


def padded(image: np.ndarray, side: int) -> np.ndarray:
    """Pad an image by reflection, below and at the right, to at least this height and width."""
    height, width = image.shape[:2]
    margins = ((0, max(side - height, 0)), (0, max(side - width, 0)), (0, 0))
    return image if min(height, width) >= side else np.pad(image, margins, "symmetric")


def reduced(image: np.ndarray, factor: int) -> np.ndarray:
    """Reduce an image by a whole factor, each pixel being the mean of a block; a partial block is dropped."""
    if factor == 1:
        return image
    height, width = image.shape[0] // factor, image.shape[1] // factor
    blocks = image[: height * factor, : width * factor]
    # cv2 drops a single channel.
    return cv2.resize(blocks, (width, height), interpolation=cv2.INTER_AREA).reshape(height, width, -1)
