"""Networks and models in public option files whose classes BasicSR lacks."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from typing import Any

import torch
from basicsr.models.realesrgan_model import RealESRGANModel
from basicsr.models.realesrnet_model import RealESRNetModel
from basicsr.models.sr_model import SRModel
from torch import Tensor

from kbnet_plugin.errors import BadInput, one_line
from kbnet_plugin.inference.tiled import run_tiled
from kbnet_plugin.nn.layers import pad_to_multiple

from .base_model import unwrap

NETWORKS = {
    "NAFNet": "spandrel",
    "HAT": "spandrel",
    "SAFMN": "spandrel",
    "Restormer": "spandrel_extra_arches",
}
"""Networks that spandrel has with the arguments of their public option files, and the package of each."""


def network(name: str) -> Any:
    """Return spandrel's class of a network, or None for a name that is not in `NETWORKS`.

    Raises
    ------
    BadInput
        If the package is not installed.
    """
    if (package := NETWORKS.get(name)) is None:
        return None
    if importlib.util.find_spec(package) is None:
        raise BadInput(f"{name} is a network of the Python package {package}: pip install {package}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about their use of torch
        try:
            return getattr(importlib.import_module(f"{package}.architectures.{name}"), name)
        except (ImportError, AttributeError) as error:
            raise BadInput(f"{name} cannot be imported from {package}: {one_line(error)}") from error


class _Windows:
    """Restores whole windows of the network, and large images in tiles, as HAT's own models do."""

    def test(self: Any) -> None:
        window = int(self.opt["network_g"].get("window_size") or 1)
        scale, tiles = int(self.opt.get("scale") or 1), self.opt.get("tile") or {}
        overlap = int(tiles.get("tile_pad") or 0)
        tile = tiles["tile_size"] + 2 * overlap if tiles.get("tile_size") else None
        network = self.net_g_ema if hasattr(self, "net_g_ema") else unwrap(self.net_g)

        def run(part: Tensor) -> Tensor:
            rows, columns = part.shape[-2:]
            return network(pad_to_multiple(part, window, "reflect"))[..., : rows * scale, : columns * scale]

        network.eval()
        with torch.no_grad():
            self.output = run_tiled(run, self.lq, tile, overlap, scale=scale)
        self.net_g.train()


MODELS: dict[str, Any] = {
    name: type(name, (_Windows, base), {"__module__": __name__})
    for name, base in (
        ("HATModel", SRModel),
        ("RealHATMSEModel", RealESRNetModel),
        ("RealHATGANModel", RealESRGANModel),
    )
}
"""HAT's models: BasicSR's, but for validation."""
