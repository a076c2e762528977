"""From a file of weights to a network, and back."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..files import atomic_path
from ..nn import KBNet_l, KBNet_s
from .architectures import Name, few, identify
from .locations import PICKLED

KEYS = ("params_ema", "params", "model", "net", "state_dict")
"""Where checkpoints keep their tensors, in the order in which they are looked for."""

_NETWORKS: dict[Name, type[KBNet_s] | type[KBNet_l]] = {"KBNet_s": KBNet_s, "KBNet_l": KBNet_l}
_REFUSED = re.compile(r"GLOBAL (\S+)|(?:class|type|object of type) ([\w.]+)")


def load_network(path: str | PathLike[str], *, key: str | None = None) -> KBNet_s | KBNet_l:
    """Build the network that a checkpoint holds.

    Variant and arguments are found from names and shapes alone, so released checkpoints, BasicSR's and
    those of `save_network` all load.

    Parameters
    ----------
    path : str or path
        .pth, .pt, .ckpt or .safetensors.
    key : str, optional
        Where in the file the tensors lie; by default the first of `KEYS` that is there, or the file itself.

    Returns
    -------
    KBNet_s or KBNet_l
        On the CPU, in float32, in evaluation mode.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, holds anything but tensors and plain containers, or holds other weights than
        those of a KBNet; one line that names the file.
    """
    tensors = read_state_dict(path, key=key)
    try:
        network = build_network(tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return network


def read_state_dict(path: str | PathLike[str], *, key: str | None = None) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint by name, on the CPU, without a leading ``module.``.

    Nothing in the file is ever run. Parameters and errors as in `load_network`.
    """
    path = Path(path)
    if not path.is_file():
        kind = "a folder, not a file" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"{path}: {kind}; name a checkpoint (.pth or .safetensors)")
    content: Any
    if path.suffix.lower() == ".safetensors":
        content = _read_safetensors(path)
    elif path.suffix.lower() in PICKLED:
        content = _read_pickled(path)
    else:
        raise ValueError(
            f"{path}: unknown kind of checkpoint {path.suffix!r}; rename it to what it is: "
            f"{', '.join((*PICKLED, '.safetensors'))}"
        )
    tensors = _select(path, content, key)
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def save_network(
    network: KBNet_s | KBNet_l, path: str | PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a network's weights, as `load_network`, BasicSR and spandrel read them.

    Parameters
    ----------
    network : KBNet_s or KBNet_l
        Any device and dtype.
    path : str or path
        .pth (tensors under ``params``) or .safetensors. Replaced only once the new file is complete.
    metadata : mapping, optional
        What a .safetensors file says of itself, for `kbnet_plugin.zoo`; .pth has no place for it.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    ValueError
        If the name ends in neither.
    """
    path = Path(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    if path.suffix.lower() not in (".pth", ".safetensors"):
        raise ValueError(f"{path}: weights are written as .pth or .safetensors; end the name in one of them")
    with atomic_path(path) as temporary:
        if path.suffix.lower() == ".safetensors":
            save_file(tensors, temporary, dict(metadata) if metadata else None)
        else:
            torch.save({"params": tensors}, temporary)


def build_network(tensors: Mapping[str, Tensor]) -> KBNet_s | KBNet_l:
    """Build the network whose state dict this is, in float32 and evaluation mode.

    Raises
    ------
    ValueError
        If it is no KBNet's, or not completely one's; the first few keys are named.
    """
    name, arguments = identify(tensors)
    variant = _NETWORKS[name]
    try:
        with torch.device("meta"):  # no memory and no random numbers for weights that are replaced at once
            network = variant(**arguments)
    except ValueError as error:
        raise ValueError(f"not a {name} that can be built: {error}") from None
    _compare(name, network.state_dict(), tensors)
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return network.eval()


def _compare(name: str, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    problems = []
    if missing := [n for n in expected if n not in found]:
        problems.append(f"{len(missing)} missing ({few(missing)})")
    if surplus := [n for n in found if n not in expected]:
        problems.append(f"{len(surplus)} surplus ({few(surplus)})")
    if wrong := [n for n in expected if n in found and expected[n].shape != found[n].shape]:
        shapes = [f"{n} {tuple(found[n].shape)} instead of {tuple(expected[n].shape)}" for n in wrong[:3]]
        problems.append(f"{len(wrong)} of another shape ({few(shapes, len(wrong))})")
    if problems:
        raise ValueError(f"not a complete {name}: of its keys {'; '.join(problems)}")
    if odd := [n for n, tensor in found.items() if not tensor.is_floating_point()]:
        raise ValueError(f"{name} needs floating-point weights; {few(odd)} are {found[odd[0]].dtype}")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path, device="cpu"))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: truncated or not a safetensors file; fetch it again") from error


def _read_pickled(path: Path) -> object:
    try:
        with warnings.catch_warnings():  # about old pickles: the reader of one cannot mend it
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its readers do
        if isinstance(error, MemoryError):
            raise
        text = str(error)
        if "TorchScript" in text:
            what = "a TorchScript program; save the state dict alone"
        elif isinstance(error, pickle.UnpicklingError) and (found := _REFUSED.search(text)):
            held = found[1] or found[2]
            what = f"holds {held} besides tensors, refused as it could run code; save the state dict alone"
        else:
            what = "truncated or not a PyTorch checkpoint; fetch it again"
        raise ValueError(f"{path}: {what}") from error


def _select(path: Path, content: Any, key: str | None) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not weights by name; save a state dict")
    if key is None:
        key = next((k for k in KEYS if isinstance(content.get(k), Mapping)), None)
    elif not isinstance(content.get(key), Mapping):
        raise ValueError(f"{path}: no weights under {key!r}; choose one of: {few(map(str, content))}")
    if key is not None:
        content = content[key]
    tensors = {str(name): tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
    if not tensors or len(tensors) < len(content):
        others = [str(name) for name in content if not isinstance(content[name], Tensor)]
        raise ValueError(f"{path}: no weights by name (it holds {few(others)}); save a state dict")
    return tensors
