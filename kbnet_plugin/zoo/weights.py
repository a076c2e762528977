"""Load networks from files of weights, and save them."""

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
from .locations import KINDS, PICKLED, TRUNCATED_SAFETENSORS

KEYS = ("params_ema", "params", "model", "net", "state_dict")
"""Keys under which checkpoints store their tensors, in the order of preference."""

_NETWORKS: dict[Name, type[KBNet_s] | type[KBNet_l]] = {"KBNet_s": KBNet_s, "KBNet_l": KBNet_l}
_REFUSED = re.compile(r"GLOBAL (\S+)|(?:class|type|object of type) ([\w.]+)")


def load_network(path: str | PathLike[str], *, key: str | None = None) -> KBNet_s | KBNet_l:
    """Load the network of a checkpoint.

    Variant and arguments are inferred from the names and shapes of its tensors, so the released checkpoints,
    BasicSR's and those of `save_network` all load. No code in the file is run.

    Parameters
    ----------
    path : str or path
        .pth, .pt, .ckpt or .safetensors.
    key : str, optional
        Key of the tensors in the file; by default the first of `KEYS` that exists, or else the top level.

    Returns
    -------
    KBNet_s or KBNet_l
        On the CPU, in float32, in evaluation mode.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, contains anything but tensors and plain containers, or is not the weights of a
        KBNet; one line that names the file.
    """
    tensors = read_state_dict(path, key=key)
    try:
        return build_network(tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_state_dict(path: str | PathLike[str], *, key: str | None = None) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint on the CPU, by name without a leading ``module.``.

    Parameters and errors are those of `load_network`. No code in the file is run.
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
        raise ValueError(f"{path}: unknown kind of checkpoint {path.suffix!r}; use one of {', '.join(KINDS)}")
    tensors = _select(path, content, key)
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def save_network(
    network: KBNet_s | KBNet_l, path: str | PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Save the weights of a network, for `load_network`, BasicSR and spandrel.

    Parameters
    ----------
    network : KBNet_s or KBNet_l
        Any device and dtype.
    path : str or path
        .pth (tensors under ``params``) or .safetensors; replaced only once the new file is complete.
    metadata : mapping, optional
        For a .safetensors file, as `kbnet_plugin.zoo.registry.header` builds it; .pth cannot store it.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    ValueError
        If the suffix is neither.
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
    """Build the network of a state dict, in float32 and evaluation mode.

    Parameters
    ----------
    tensors : mapping
        From names to floating-point tensors.

    Raises
    ------
    ValueError
        If it is not the complete state dict of a KBNet; the message names the first few wrong keys.
    """
    name, arguments = identify(tensors)
    variant = _NETWORKS[name]
    try:
        with torch.device("meta"):  # weights that are replaced at once need no memory and no random numbers
            network = variant(**arguments)
    except ValueError as error:
        raise ValueError(f"not a valid {name}: {error}") from None
    _check_complete(name, network.state_dict(), tensors)
    # Copies: a safetensors file's own memory is not aligned, and on some processors that changes last bits.
    own = {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}
    network.load_state_dict(own, assign=True)
    return network.eval()


def _check_complete(name: str, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    problems = []
    if missing := [n for n in expected if n not in found]:
        problems.append(f"{len(missing)} missing ({few(missing)})")
    if unexpected := [n for n in found if n not in expected]:
        problems.append(f"{len(unexpected)} unexpected ({few(unexpected)})")
    if wrong := [n for n in expected if n in found and expected[n].shape != found[n].shape]:
        shapes = [f"{n} {tuple(found[n].shape)} instead of {tuple(expected[n].shape)}" for n in wrong[:3]]
        problems.append(f"{len(wrong)} of another shape ({few(shapes, len(wrong))})")
    if problems:
        raise ValueError(f"not a complete {name}; keys: {', '.join(problems)}")
    if integer := [n for n, tensor in found.items() if not tensor.is_floating_point()]:
        raise ValueError(f"{name} needs floating-point weights; {few(integer)} are {found[integer[0]].dtype}")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path, device="cpu"))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: {TRUNCATED_SAFETENSORS}") from error


def _read_pickled(path: Path) -> object:
    try:
        with warnings.catch_warnings():  # about old pickles, which the user cannot change
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of all kinds
        if isinstance(error, MemoryError):
            raise
        text = str(error)
        if "TorchScript" in text:
            what = "a TorchScript program; save only the state dict"
        elif isinstance(error, pickle.UnpicklingError) and (found := _REFUSED.search(text)):
            refused = found[1] or found[2]
            what = f"contains {refused}, refused because it could run code; save only the state dict"
        else:
            what = "truncated or not a PyTorch checkpoint; download it again"
        raise ValueError(f"{path}: {what}") from error


def _select(path: Path, content: Any, key: str | None) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{path}: contains a {type(content).__name__}, not named weights; save the state dict"
        )
    if key is None:
        key = next((k for k in KEYS if isinstance(content.get(k), Mapping)), None)
    elif not isinstance(content.get(key), Mapping):
        raise ValueError(f"{path}: no weights under {key!r}; use one of its keys: {few(map(str, content))}")
    if key is not None:
        content = content[key]
    tensors = {str(name): tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
    if not tensors:
        raise ValueError(f"{path}: contains no weights (keys: {few(map(str, content))}); save the state dict")
    if others := [str(name) for name in content if str(name) not in tensors]:
        raise ValueError(f"{path}: contains {few(others)} besides weights; save only the state dict")
    return tensors
