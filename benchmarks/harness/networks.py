"""Networks by name or from a file of weights: KBNet, spandrel's networks and plain convolution stacks."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import math
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
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
from kbnet_plugin.inference.tiled import run_tiled

# gpu_check.sh builds networks where there is only torch, so what requires more is imported in functions.

Call = Callable[[Tensor, float | None], Tensor]
"""From (1, C, H, W) in 0..1 and the noise level (of 255) or None to the restored image."""

ADNET_DILATIONS = 1, 2, 1, 1, 2, 1, 1, 1, 2, 1, 1, 2, 1, 1, 1, 1

PEERS = {  # what papers call by this name, where spandrel's defaults differ
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
    """3x3 convolutions with ReLU between them: DnCNN (Zhang et al. 2017) and FFDNet (Zhang et al. 2018).

    DnCNN subtracts the output of the stack. FFDNet works on the four half-size phases of the image and a map
    of the noise level. Batch normalization is folded into the weights.
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


class ADNet(nn.Module):
    """The attention-guided denoising network of Tian et al. (2020), with batch normalization folded in.

    A stack of 3x3 convolutions, some of them dilated, with ReLU between; what it finds, seen with the
    image, weights the noise that is subtracted.
    """

    def __init__(
        self, channels: int = 3, features: int = 64, dilations: Sequence[int] = ADNET_DILATIONS
    ) -> None:
        super().__init__()
        widths = [channels, *[features] * (len(dilations) - 1), channels]
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=d, dilation=d)
            for (a, b), d in zip(itertools.pairwise(widths), dilations, strict=True)
        )
        self.attention = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        found = image
        for layer in self.layers[:-1]:
            found = F.relu(layer(found))
        found = self.layers[-1](found)
        return image - self.attention(torch.tanh(torch.cat([image, found], 1))) * found


@dataclass(frozen=True)
class Network:
    """A network with weights, ready to restore; `channels` is -1 for any number and 0 for `untouched`."""

    name: str
    module: nn.Module
    channels: int
    call: Call
    device: str = "cpu"

    def restore(
        self, image: NDArray[np.float32], sigma: float | None = None, tile: int = 0, halo: int = 0
    ) -> NDArray[np.float32]:
        """Restore an image.

        Parameters
        ----------
        image : (H, W, C) array
            In 0..1.
        sigma : float, optional
            Noise level, of 255, for networks that require it.
        tile, halo : int
            As for `kbnet_plugin.inference.tiled.run_tiled`.

        Raises
        ------
        BadInput
            If the image has another number of channels, or the network requires an unknown noise level.
        """
        if self.channels not in (-1, image.shape[2]):
            raise BadInput(f"{self.name} requires {self.channels} channels; the image has {image.shape[2]}")
        tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None].to(self.device)
        with torch.inference_mode():
            result = run_tiled(lambda part: self.call(part, sigma), tensor, tile, halo)
        return result[0].float().cpu().numpy().transpose(1, 2, 0)


def build(name: str, arguments: Mapping[str, Any]) -> tuple[nn.Module, int]:
    """Build a network with untrained weights, to count its cost; return it with its input channels.

    Raises
    ------
    ModuleNotFoundError
        If the package that provides it is not installed; the message is the package's name.
    BadInput
        If there is no such network, or it does not accept these arguments.
    """
    try:
        if name in ("DnCNN", "FFDNet"):
            module: nn.Module = ConvStack(name, **arguments)  # type: ignore[arg-type]
            return module.eval(), arguments["channels"]
        if name == "ADNet":
            module = ADNet(**arguments)
            return module.eval(), arguments.get("channels", 3)
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
    """Return the class of one of spandrel's networks; raises the errors of `build`."""
    missing = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about their use of torch
        for package in ("spandrel", "spandrel_extra_arches"):
            if importlib.util.find_spec(package) is None:
                missing = missing or package
            elif importlib.util.find_spec(f"{package}.architectures.{name}") is not None:
                return getattr(importlib.import_module(f"{package}.architectures.{name}"), name)
    if missing:
        raise ModuleNotFoundError(missing)
    raise BadInput(f"no network {name!r}: not KBNet_s, KBNet_l, DnCNN, FFDNet, ADNet or one of spandrel's")


def automatic(device: str = "cpu") -> Network:
    """Return what users get who name no model: model, range and treatment follow each image's noise."""
    from kbnet_plugin.inference.automatic import make_chooser

    choose = make_chooser(device=device)

    def call(image: Tensor, _sigma: float | None) -> Tensor:
        picture = image[0].permute(1, 2, 0).numpy()
        restored = choose(picture, "YXS").restorer(picture, "YXS")
        return torch.from_numpy(restored).permute(2, 0, 1)[None]

    return Network("automatic", nn.Identity(), -1, call)


def untouched() -> Network:
    """Return a network that leaves its input as it is."""
    return Network("input", nn.Identity(), 0, lambda image, _: image)


def load(path: Path, device: str = "cpu") -> Network:
    """Load the network in a file: a KBNet, a peer's plain arrays (.npz), or one that spandrel recognizes.

    Raises
    ------
    BadInput
        If the file contains no known network; one line that names the file.
    """
    try:
        if path.suffix == ".npz":
            return _stack(path, device)
        from kbnet_plugin.zoo.architectures import identify
        from kbnet_plugin.zoo.weights import build_network, read_state_dict

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
        raise BadInput(f"{path}: truncated or not an .npz file; download it again") from error
    dilations = arrays.pop("dilation", None)
    count = len(arrays) // 2
    names = [f"{kind}{i}" for i in range(count) for kind in "wb"]
    if not count or sorted(names) != sorted(arrays) or arrays["w0"].ndim != 4:
        raise BadInput(f"{path}: not a convolution stack, whose arrays are w0, b0, w1, b1, ...")
    features, first = arrays["w0"].shape[:2]
    last = arrays[f"w{count - 1}"].shape[0]
    layers = [f"layers.{i}" for i in range(count)]
    if dilations is not None:
        kind, channels = "ADNet", first
        layers[-1] = "attention"
        module: nn.Module = ADNet(channels, features, [int(d) for d in dilations.ravel()])
    else:
        kind = "DnCNN" if first == last else "FFDNet"
        channels = last if kind == "DnCNN" else last // 4
        module = ConvStack(kind, channels, features, count)
    state = {
        f"{layers[i]}.{long}": torch.from_numpy(arrays[f"{short}{i}"])
        for i in range(count)
        for short, long in (("w", "weight"), ("b", "bias"))
    }
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise BadInput(f"{path}: not a {kind}: {one_line(error)[:200]}") from error
    module = module.eval().to(device)

    def call(image: Tensor, sigma: float | None) -> Tensor:
        if kind == "FFDNet":
            return module(image, _known(sigma, kind))
        return module(image)

    return Network(kind, module, channels, call, device)


def _spandrel(path: Path, tensors: dict[str, Tensor], device: str) -> Network:
    if importlib.util.find_spec("spandrel") is None:
        raise BadInput(f"{path} contains no KBNet; for other networks, pip install spandrel")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its use of torch
        import spandrel

        if importlib.util.find_spec("spandrel_extra_arches") is not None:
            import spandrel_extra_arches

            spandrel_extra_arches.install(ignore_duplicates=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = spandrel.ModelLoader().load_from_state_dict(tensors)
    except Exception as error:  # its detectors raise anything
        few = ", ".join(list(tensors)[:3])
        raise BadInput(f"{path}: weights of no known network (keys: {few}, ...)") from error
    if not isinstance(found, spandrel.ImageModelDescriptor) or found.scale != 1:
        raise BadInput(
            f"{path}: a {found.architecture.name}, whose output is not an image of the input's size"
        )
    found.to(device).eval()

    def call(image: Tensor, _: float | None) -> Tensor:
        return found(image)

    def conditioned(image: Tensor, sigma: float | None) -> Tensor:
        # spandrel itself always passes a sigma of 15 to DRUNet.
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
        raise BadInput(f"{name} requires the noise level, but this protocol has none")
    return sigma
