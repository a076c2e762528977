"""PSNR and SSIM that clamp first, LPIPS, and the check of all metrics before the start.

A network's output may leave the image range. BasicSR's metrics do not clamp it, and those that Restormer
and KBNet ship infer the range from the largest value, so that one pixel above 1 adds 48 dB.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from basicsr.metrics import calculate_metric
from basicsr.metrics.psnr_ssim import calculate_psnr, calculate_ssim
from basicsr.utils.registry import METRIC_REGISTRY
from torch import Tensor, nn

from kbnet_plugin.errors import BadInput, one_line
from kbnet_plugin.zoo.weights import read_state_dict

Image = np.ndarray | Tensor


def calculate_psnr_clamped(
    img: Image, img2: Image, crop_border: int = 0, test_y_channel: bool = False, **_: Any
) -> float:
    """Compute the peak signal-to-noise ratio in dB after clamping to the range.

    Parameters
    ----------
    img, img2 : ndarray or Tensor
        Arrays (H, W, C) or (H, W), BGR, in 0..255, rounded or not; tensors (1, C, H, W), RGB, in 0..1.
    crop_border : int
        Pixels to leave out at each edge.
    test_y_channel : bool
        Compare luma (ITU-R BT.601) only.
    """
    images = (_clamped(img), _clamped(img2))
    return float(calculate_psnr(*images, crop_border=crop_border, test_y_channel=test_y_channel))


def calculate_ssim_clamped(
    img: Image, img2: Image, crop_border: int = 0, test_y_channel: bool = False, **_: Any
) -> float:
    """Compute SSIM after clamping, mean over channels; parameters as for `calculate_psnr_clamped`."""
    images = (_clamped(img), _clamped(img2))
    return float(calculate_ssim(*images, crop_border=crop_border, test_y_channel=test_y_channel))


def calculate_lpips(
    img: Image, img2: Image, crop_border: int = 0, net: str = "alex", weights: str | None = None, **_: Any
) -> float:
    """Compute the learned perceptual distance LPIPS, version 0.1; lower is better.

    Parameters
    ----------
    img, img2 : ndarray or Tensor
        As for `calculate_psnr_clamped`, three channels.
    crop_border : int
        Pixels to leave out at each edge.
    net : str
        'alex', 'vgg' or 'squeeze', the network whose features are compared.
    weights : str, optional
        File of that network's ImageNet weights; by default the one in torch hub's folder. Nothing is
        downloaded.

    Raises
    ------
    BadInput
        If the weights are missing, or the images do not have three channels.

    References
    ----------
    Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", arXiv 1801.03924.
    """
    pair = []
    for image in (_clamped(img), _clamped(img2)):
        if image.ndim != 3 or image.shape[2] != 3:
            raise BadInput("calculate_lpips needs images with three channels")
        inner = image[crop_border : image.shape[0] - crop_border, crop_border : image.shape[1] - crop_border]
        rgb = np.ascontiguousarray(inner[..., ::-1].transpose(2, 0, 1), np.float32)
        pair.append(torch.from_numpy(rgb)[None] / 127.5 - 1)
    with torch.no_grad():
        return float(lpips_network(net, weights)(*pair))


@cache
def lpips_network(net: str, weights: str | None) -> nn.Module:
    """Build LPIPS with trained weights; raises `BadInput` if they are missing."""
    try:
        import lpips
    except ImportError as error:
        raise BadInput("the metric calculate_lpips needs the package lpips: pip install lpips") from error
    if weights:
        path = Path(weights).expanduser()
    else:
        found = sorted(Path(torch.hub.get_dir(), "checkpoints").glob(f"{_LPIPS_FILES[net]}-*.pth"))
        path = found[0] if found else Path(torch.hub.get_dir(), "checkpoints", f"{_LPIPS_FILES[net]}-*.pth")
    if not path.is_file():
        raise BadInput(
            f"the metric calculate_lpips needs the trained weights of {net}, but there is no {path}; "
            "download them with torchvision, set weights: to their file, or remove the metric"
        )
    try:
        tensors = read_state_dict(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lpips uses a deprecated argument of torchvision
            network = lpips.LPIPS(net=net, pnet_rand=True, verbose=False).eval()
        # lpips cuts torchvision's `features` into slices, whose layers keep their numbers.
        own = network.net.state_dict()
        network.net.load_state_dict({k: tensors[f"features.{k.split('.', 1)[1]}"] for k in own})
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise BadInput(f"{path} contains no weights of {net}: {one_line(error)}") from error
    return network


_LPIPS_FILES = {"alex": "alexnet-owt", "vgg": "vgg16", "squeeze": "squeezenet1_1"}
"""Beginnings of torchvision's file names; a hash follows."""


def needs_truth(metric: Mapping[str, Any]) -> bool:
    """Return whether a metric of the options requires the ground truth, its argument ``img2``."""
    parameters = inspect.signature(METRIC_REGISTRY.get(metric["type"])).parameters
    return "img2" in parameters and parameters["img2"].default is inspect.Parameter.empty


def try_metric(name: str, metric: Mapping[str, Any], size: tuple[int, int], channels: int) -> None:
    """Compute a metric of made pictures, to find invalid arguments.

    Parameters
    ----------
    name : str
        Its key under ``val.metrics``.
    metric : mapping
        Its type and arguments.
    size : tuple of int
        Height and width of the pictures.
    channels : int

    Raises
    ------
    BadInput
        If that fails.
    """
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, 256, (2, *size, channels)).astype(np.uint8)
    pictures = {"img": first, "img2": second} if needs_truth(metric) else {"img": first}
    border = metric.get("crop_border")
    if isinstance(border, int) and 2 * border >= min(size):
        raise BadInput(
            f"val.metrics.{name}.crop_border: {border} leaves nothing of {size[1]}x{size[0]} pixels"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the value does not matter here
            calculate_metric(pictures, dict(metric))
    except Exception as error:  # of any package's function
        raise BadInput(
            f"val.metrics.{name} ({metric['type']}), tried on {size[1]}x{size[0]} pixels with {channels} "
            f"channel(s): {one_line(error)}"
        ) from error


def _clamped(image: Image) -> np.ndarray:
    if isinstance(image, Tensor):
        return to_image(image, rounded=False)
    return image if image.dtype == np.uint8 else image.clip(0, 255)


def to_image(tensor: Tensor, *, rounded: bool) -> np.ndarray:
    """Convert a (1, C, H, W) tensor in 0..1 to BasicSR's image: clamped, 0..255, (H, W, C), BGR.

    The result is float32, or uint8 if `rounded`, as in a saved picture.
    """
    image = tensor.detach()[0].float().clamp(0, 1).mul(255).cpu().numpy().transpose(1, 2, 0)
    if image.shape[2] == 3:
        image = image[..., ::-1]
    return np.ascontiguousarray(image.round().astype(np.uint8) if rounded else image)
