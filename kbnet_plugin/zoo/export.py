"""A model in other programs' formats."""

from __future__ import annotations

import importlib.util
import warnings
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import one_line
from ..files import atomic_path
from ..nn import KBNet_l, KBNet_s
from ..ops import reference
from .locations import EXPORT_FORMATS
from .registry import Model, header
from .weights import save_network

LIMIT = 1e-4
"""Largest difference between ONNX Runtime and torch, of 0..1, with which a file is kept."""

_SIZES = ((2, 37, 50), (1, 64, 96), (1, 3, 1))  # batch, height, width
_OPSET = 18
_NEEDED = ("onnx", "onnxscript", "onnxruntime")


def export(model: Model, path: str | PathLike[str]) -> dict[str, float]:
    """Write a model in float32, in the format that the name ends in; whole or not at all.

    Parameters
    ----------
    model : Model
        As `kbnet_plugin.zoo.get_model` gives it.
    path : str or path
        ``.safetensors``; ``.pth`` as BasicSR, the released code and spandrel read it (tensors under
        ``params``); or ``.onnx`` with free batch, height and width, any size from one pixel. In ONNX the
        network's means are those of the whole input, and kernels are made for every pixel at once: large
        pictures should be cut into tiles of about the pooling window.

    Returns
    -------
    dict
        Of ONNX: size of each image that was tried to the largest difference from torch.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    ValueError
        If the name ends in none of these, a package for ONNX is missing, or ONNX Runtime and torch disagree.
    """
    path = Path(path)
    if path.suffix.lower().removeprefix(".") not in EXPORT_FORMATS:
        raise ValueError(f"{path}: end the name in one of {', '.join('.' + f for f in EXPORT_FORMATS)}")
    facts = ("title", "task", "version", "license", "window", "range")
    said = header(**{key: getattr(model, key) for key in facts}, cost=model.cost())
    if path.suffix.lower() != ".onnx":
        save_network(model.load(), path, said)
        return {}
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise ValueError(f"ONNX needs {', '.join(missing)}: pip install 'kbnet[export]'")
    return _export_onnx(model.load(), path, said)


def _export_onnx(network: KBNet_s | KBNet_l, path: Path, said: dict[str, str]) -> dict[str, float]:
    channels = network.img_channel if isinstance(network, KBNet_s) else network.inp_channels
    free = torch.export.Dim.DYNAMIC
    # Neither 1 nor a multiple, from which torch would draw conclusions.
    example = torch.zeros(2, channels, *(3 * network.size_multiple + d for d in (1, 3)))
    with atomic_path(path) as temporary, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, of its own doing
        program = torch.export.export(
            _AnySize(network), (example,), dynamic_shapes=({0: free, 2: free, 3: free},)
        )
        program = program.run_decompositions({torch.ops.kbnet.kernel_basis_attention.default: _plain})
        made: Any = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=_OPSET,
            input_names=["image"],
            output_names=["restored"],
            verbose=False,
        )
        made.model.metadata_props.update(
            said
            | {"image": "float32, (batch, channels, height, width), 0..1", "pooling": "over the whole input"}
        )
        made.save(temporary, external_data=False)
        differences = _compare(network, temporary, channels)
        if not max(differences.values()) <= LIMIT:  # NaN is no agreement
            raise ValueError(
                f"{path}: not written: ONNX Runtime's answer differs from torch's by "
                f"{max(differences.values()):.1e} of 0..1; export to pth or safetensors instead"
            )
    return differences


class _AnySize(nn.Module):
    """The network, with its padding always in the graph."""

    def __init__(self, network: KBNet_s | KBNet_l) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[2:]
        multiple = self.network.size_multiple
        # Written so that torch sees a multiple for every height and width.
        rows, columns = ((n + multiple - 1) // multiple * multiple for n in (height, width))
        if isinstance(self.network, KBNet_s):
            padded = F.pad(image, (0, columns - width, 0, rows - height))
        else:
            padded = _reflected(image, rows, columns)
        restored: Tensor = self.network(padded)
        return restored[..., :height, :width]


def _reflected(image: Tensor, rows: int, columns: int) -> Tensor:
    """What `pad_to_multiple` does in its mode "reflect", without a branch that depends on the size."""
    padded = image
    sides = [(2, rows, image.shape[2]), (3, columns, image.shape[3])]
    few = torch.minimum(*(torch.scalar_tensor(2 * side - new) for _, new, side in sides)) < 1
    for axis, new, side in sides:
        index = torch.arange(new)
        last = torch.scalar_tensor(side - 1, dtype=torch.int64)
        mirrored = torch.minimum(index, 2 * last - index).clamp(min=0)
        padded = padded.index_select(axis, torch.where(few, torch.minimum(index, last), mirrored))
    return padded


def _plain(
    x: Tensor, coefficients: Tensor, weight: Tensor, bias: Tensor, groups: int, kernel_size: int, backend: str
) -> Tensor:
    return reference.forward(x, coefficients, weight, bias, groups, kernel_size)


def _compare(network: nn.Module, path: Path, channels: int) -> dict[str, float]:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        differences = {}
        for batch, height, width in _SIZES:
            image = np.random.default_rng(0).random((batch, channels, height, width), np.float32)
            (found,) = session.run(None, {"image": image})
            expected = network(torch.from_numpy(image)).numpy()
            differences[f"{batch}x{channels}x{height}x{width}"] = float(np.abs(found - expected).max())
    except Exception as error:  # ONNX Runtime has exceptions of its own for everything
        raise ValueError(f"ONNX Runtime cannot run the network: {one_line(error)}") from error
    return differences
