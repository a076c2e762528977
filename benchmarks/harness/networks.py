"""Networks by name, or from a file of weights: ours, spandrel's and plain convolution stacks."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import math
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from kbnet_plugin import KBNet_l, KBNet_s
from kbnet_plugin.errors import BadInput, one_line
from kbnet_plugin.inference.batch import choice
from kbnet_plugin.zoo.architectures import identify
from kbnet_plugin.zoo.weights import build_network, read_state_dict

Call = Callable[[Tensor, float | None], Tensor]
"""(1, C, H, W) in 0..1 and the noise level of 255, where it is known, to the restored image."""

PEERS = {  # what papers call the network, where spandrel's defaults are another one
    "Restormer": {
        "inp_channels": 3,
        "out_channels": 3,
        "dim": 48,
        "num_blocks": [4, 6, 6, 8],
        "num_refinement_blocks": 4,
        "heads": [1, 2, 4, 8],
        "ffn_expansion_factor": 2.66,
        "bias": False,
        "LayerNorm_type": "WithBias",
        "dual_pixel_task": False,
    },
    "NAFNet": {
        "img_channel": 3,
        "width": 64,
        "middle_blk_num": 12,
        "enc_blk_nums": [2, 2, 4, 8],
        "dec_blk_nums": [2, 2, 2, 2],
    },
    "MIRNet2": {"inp_channels": 3, "out_channels": 3, "bias": False, "task": None},
}


class ConvStack(nn.Module):
    """3x3 convolutions with ReLU between: DnCNN (Zhang et al. 2017) and FFDNet (Zhang et al. 2018).

    DnCNN subtracts what the stack gives. FFDNet works on the four half-size phases of the image beside a map
    of the noise level; batch normalisation is folded into the weights.
    """

    def __init__(
        self, kind: Literal["DnCNN", "FFDNet"], channels: int, features: int = 64, layers: int = 17
    ) -> None:
        super().__init__()
        self.kind = kind
        first, last = (channels, channels) if kind == "DnCNN" else (4 * channels + 1, 4 * channels)
        widths = [first, *[features] * (layers - 1), last]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths))

    def forward(self, image: Tensor, sigma: float = 25.0) -> Tensor:
        if self.kind == "DnCNN":
            return image - self._stack(image)
        height, width = image.shape[2:]
        even = F.pad(image, (0, width % 2, 0, height % 2), mode="replicate")
        phases = F.pixel_unshuffle(even, 2)
        level = torch.full_like(phases[:, :1], sigma / 255)
        result = F.pixel_shuffle(self._stack(torch.cat([phases, level], 1)), 2)
        return result[..., :height, :width]

    def _stack(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


@dataclass(frozen=True)
class Network:
    """A network with weights, ready to restore."""

    name: str
    module: nn.Module
    channels: int
    call: Call
    device: str = "cpu"

    def restore(
        self, image: NDArray[np.float32], sigma: float | None = None, tile: int = 0, margin: int = 0
    ) -> NDArray[np.float32]:
        """Restore an (H, W, C) image, whole or in tiles whose margins are reflected at the edges."""
        if self.channels not in (-1, image.shape[2]):  # -1 for any
            raise BadInput(f"{self.name} takes {self.channels} channels, the image has {image.shape[2]}")
        if not tile or max(image.shape[:2]) <= tile:
            return self._restore(image, sigma)
        result = np.empty_like(image)
        padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), "reflect")
        for top in range(0, image.shape[0], tile):
            for left in range(0, image.shape[1], tile):
                part = padded[top : top + tile + 2 * margin, left : left + tile + 2 * margin]
                inner = self._restore(part, sigma)[margin:-margin, margin:-margin]
                result[top : top + tile, left : left + tile] = inner
        return result

    def _restore(self, image: NDArray[np.float32], sigma: float | None) -> NDArray[np.float32]:
        tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None].to(self.device)
        with torch.inference_mode():
            result = self.call(tensor, sigma)
        return result[0].float().cpu().numpy().transpose(1, 2, 0)


def build(name: str, arguments: Mapping[str, Any]) -> tuple[nn.Module, int]:
    """A network with untrained weights, to be counted, and the channels that it takes.

    Raises
    ------
    ModuleNotFoundError
        If the package that has it is not installed; the message names the package.
    BadInput
        If there is no such network, or it does not take these arguments.
    """
    try:
        if name in ("DnCNN", "FFDNet"):
            module: nn.Module = ConvStack(name, **arguments)  # type: ignore[arg-type]
            return module.eval(), arguments["channels"]
        if name in ("KBNet_s", "KBNet_l"):
            with torch.device("meta"):
                module = {"KBNet_s": KBNet_s, "KBNet_l": KBNet_l}[name](**arguments)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module = architecture(name)(**PEERS.get(name, {}) | dict(arguments))
    except (TypeError, ValueError) as error:
        raise BadInput(f"{name} cannot be built: {one_line(error)}") from error
    return module.eval(), next(m.in_channels for m in module.modules() if isinstance(m, nn.Conv2d))


def architecture(name: str) -> Callable[..., nn.Module]:
    """The class of a network of spandrel's; errors as of `build`."""
    missing = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what they use of torch
        for package in ("spandrel", "spandrel_extra_arches"):
            if importlib.util.find_spec(package) is None:
                missing = missing or package
            elif importlib.util.find_spec(f"{package}.architectures.{name}") is not None:
                return getattr(importlib.import_module(f"{package}.architectures.{name}"), name)
    if missing:
        raise ModuleNotFoundError(missing)
    raise BadInput(f"no network {name!r}: neither KBNet_s, KBNet_l, DnCNN, FFDNet nor one of spandrel's")


def automatic(device: str = "cpu") -> Network:
    """What a user gets who names nothing: model, range and treatment by the noise of each image."""
    choose = choice(device=device)

    def call(image: Tensor, _sigma: float | None) -> Tensor:
        picture = image[0].permute(1, 2, 0).numpy()
        restored = choose(picture, "YXS").restorer(picture, "YXS")
        return torch.from_numpy(restored).permute(2, 0, 1)[None]

    return Network("automatic", nn.Identity(), -1, call)


def untouched() -> Network:
    """What gives back its input."""
    return Network("input", nn.Identity(), 0, lambda image, _: image)


def load(path: Path, device: str = "cpu") -> Network:
    """The network of a file: a KBNet, a convolution stack (.npz), or what spandrel knows.

    Raises
    ------
    BadInput
        If the file holds no network that is known; one line that names the file.
    """
    try:
        if path.suffix == ".npz":
            return _stack(path, device)
        tensors = read_state_dict(path)
        try:
            identify(tensors)
        except ValueError:
            return _spandrel(path, tensors, device)
        module = build_network(tensors).to(device)
    except ValueError as error:
        named = "" if str(path) in str(error) else f"{path}: "
        raise BadInput(f"{named}{one_line(error)}") from error
    channels = module.img_channel if isinstance(module, KBNet_s) else module.inp_channels
    return Network(type(module).__name__, module, channels, lambda image, _: module(image), device)


def _stack(path: Path, device: str) -> Network:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, pickle.UnpicklingError) as error:
        raise BadInput(f"{path}: truncated or not an .npz file; fetch it again") from error
    count = len(arrays) // 2
    names = [f"{kind}{i}" for i in range(count) for kind in "wb"]
    if not count or sorted(names) != sorted(arrays) or arrays["w0"].ndim != 4:
        raise BadInput(f"{path}: no convolution stack; its arrays must be w0, b0, w1, b1, ...")
    first, last = arrays["w0"].shape[1], arrays[f"w{count - 1}"].shape[0]
    kind: Literal["DnCNN", "FFDNet"] = "DnCNN" if first == last else "FFDNet"
    channels = last if kind == "DnCNN" else last // 4
    module = ConvStack(kind, channels, arrays["w0"].shape[0], count)
    state = {
        f"layers.{i}.{long}": torch.from_numpy(arrays[f"{short}{i}"])
        for i in range(count)
        for short, long in (("w", "weight"), ("b", "bias"))
    }
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise BadInput(f"{path}: no {kind}: {one_line(error)[:200]}") from error
    module = module.eval().to(device)

    def call(image: Tensor, sigma: float | None) -> Tensor:
        if kind == "DnCNN":
            return module(image)
        return module(image, _known(sigma, kind))

    return Network(kind, module, channels, call, device)


def _spandrel(path: Path, tensors: dict[str, Tensor], device: str) -> Network:
    if importlib.util.find_spec("spandrel") is None:
        raise BadInput(f"{path} holds no KBNet; pip install spandrel, which knows other networks")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it uses of torch
        import spandrel

        if importlib.util.find_spec("spandrel_extra_arches") is not None:
            import spandrel_extra_arches

            spandrel_extra_arches.install(ignore_duplicates=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = spandrel.ModelLoader().load_from_state_dict(tensors)
    except Exception as error:  # its detectors raise whatever they like
        few = ", ".join(list(tensors)[:3])
        raise BadInput(f"{path}: weights of no known network (its keys: {few})") from error
    if not isinstance(found, spandrel.ImageModelDescriptor) or found.scale != 1:
        raise BadInput(
            f"{path}: a {found.architecture.name}, whose output is not one image of the input's size"
        )
    found.to(device).eval()

    def call(image: Tensor, _: float | None) -> Tensor:
        return found(image)

    def conditioned(image: Tensor, sigma: float | None) -> Tensor:
        # spandrel always tells DRUNet that sigma is 15.
        height, width = image.shape[2:]
        padding = (0, -width % 8, 0, -height % 8)
        whole = F.pad(image, padding, mode="replicate")
        level = torch.full_like(whole[:, :1], _known(sigma, "DRUNet") / 255)
        return found.model(torch.cat([whole, level], 1))[..., :height, :width]

    name = type(found.model).__name__
    return Network(
        name,
        found.model,
        found.input_channels,
        conditioned if found.architecture.id == "DRUNet" else call,
        device,
    )


def _known(sigma: float | None, name: str) -> float:
    if sigma is None or math.isnan(sigma):
        raise BadInput(f"{name} must be told the noise level, and this protocol has none")
    return sigma
