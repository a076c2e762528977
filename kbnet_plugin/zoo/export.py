"""Export models for other programs and sites."""

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
from ..ops.backend import Arguments
from .hub import write_repository
from .locations import EXPORT_FORMATS
from .registry import Model, header
from .weights import save_network

LIMIT = 1e-4
"""Largest accepted difference between ONNX Runtime and torch, for pictures in 0..1."""

INPUT, OUTPUT = "image", "restored"
"""Names of the tensors in ONNX."""

OPSET = 18
"""Version of the operators in ONNX."""

_SIZES = ((2, 37, 50), (1, 64, 96), (1, 3, 1))  # batch, height, width
_REQUIRED = ("onnx", "onnxscript", "onnxruntime")


def export(model: Model, path: str | PathLike[str], format: str | None = None) -> dict[str, float]:
    """Write a model in float32, completely or not at all.

    Parameters
    ----------
    model : Model
        As `kbnet_plugin.zoo.get_model` returns it.
    path : str or path
        File to write; for ``"hf"`` a folder.
    format : {"safetensors", "pth", "onnx", "bioimageio", "hf"}, optional
        By default the suffix of `path` decides.

        ``"pth"`` (.pth): as BasicSR, the released code and spandrel read it, tensors under ``params``.
        ``"onnx"`` (.onnx): for any batch size, height and width. The network pools over the whole input and
        computes the kernels of all pixels at once, so large pictures should be cut into tiles of about the
        pooling window. ``"bioimageio"`` (.zip): a package for bioimage.io, with ONNX. ``"hf"``: the files of
        a repository on Hugging Face; other files in the folder stay.

    Returns
    -------
    dict
        For ONNX and bioimage.io: from the size of each test image, such as ``"2x3x37x50"``, to the largest
        difference between ONNX Runtime and torch; otherwise empty.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    ValueError
        If the name has another suffix, a package is missing, or ONNX Runtime and torch disagree.
    """
    path = Path(path)
    format = find_format(path, format)
    if format == "pth":  # which stores no metadata; counting the cost takes seconds
        save_network(model.load(), path)
        return {}
    keys = ("title", "task", "version", "license", "window", "range")
    metadata = header(**{key: getattr(model, key) for key in keys}, cost=model.cost())
    if format == "safetensors":
        save_network(model.load(), path, metadata)
        return {}
    if format == "hf":
        write_repository(model, path, metadata)
        return {}
    required = (*_REQUIRED, "bioimageio") if format == "bioimageio" else _REQUIRED
    if missing := [name for name in required if importlib.util.find_spec(name) is None]:
        raise ValueError(f"{format} needs {', '.join(missing)}: pip install 'kbnet[export]'")
    metadata = {"name": model.name, "architecture": model.variant, "scale": "1"} | metadata
    if format == "bioimageio":
        from .bioimageio import write_package

        return write_package(model, path, metadata)
    return export_onnx(model.load(), path, metadata)


def find_format(path: Path, format: str | None) -> str:
    """Return the format to write, which is `format` if that is given.

    Raises
    ------
    ValueError
        If the suffix of the path names none, or another one.
    """
    suffix = path.suffix.lower()
    if format is None:
        if found := next((f for f, known in EXPORT_FORMATS.items() if known and known == suffix), None):
            return found
        suffixes = ", ".join(filter(None, EXPORT_FORMATS.values()))
        raise ValueError(f"{path}: end the name in one of {suffixes}, or choose the format hf for a folder")
    if format not in EXPORT_FORMATS:
        raise ValueError(f"no format {format!r}; choose one of {', '.join(EXPORT_FORMATS)}")
    if EXPORT_FORMATS[format] not in ("", suffix):
        raise ValueError(f"{path}: the format {format} requires a name that ends in {EXPORT_FORMATS[format]}")
    return format


def export_onnx(network: KBNet_s | KBNet_l, path: Path, metadata: dict[str, str]) -> dict[str, float]:
    """Write a network as ONNX, and compare it with torch; see `export`."""
    channels = network.img_channel if isinstance(network, KBNet_s) else network.inp_channels
    free = torch.export.Dim.DYNAMIC
    # Torch would specialize on a size of 1, and on multiples.
    example = torch.zeros(2, channels, *(3 * network.size_multiple + d for d in (1, 3)))
    with atomic_path(path) as temporary, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        program = torch.export.export(
            _AnySize(network), (example,), dynamic_shapes=({0: free, 2: free, 3: free},)
        )
        program = program.run_decompositions({torch.ops.kbnet.kernel_basis_attention.default: _plain})
        exported: Any = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),  # names for the free ones
            output_names=[OUTPUT],
            verbose=False,
        )
        exported.model.metadata_props.update(
            metadata
            | {"image": "float32, (batch, channels, height, width), 0..1", "pooling": "over the whole input"}
        )
        exported.save(temporary, external_data=False)
        differences = _compare(network, temporary, channels)
        if not max(differences.values()) <= LIMIT:  # also if it is NaN
            raise ValueError(
                f"{path}: not written: the results of ONNX Runtime and torch differ by "
                f"{max(differences.values()):.1e} (of 0..1); export to pth or safetensors instead"
            )
    return differences


class _AnySize(nn.Module):
    """The network with its padding in the graph for every size."""

    def __init__(self, network: KBNet_s | KBNet_l) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[2:]
        multiple = self.network.size_multiple
        # Spelled out, so that torch knows these to be multiples for every height and width.
        rows, columns = ((n + multiple - 1) // multiple * multiple for n in (height, width))
        if isinstance(self.network, KBNet_s):
            padded = F.pad(image, (0, columns - width, 0, rows - height))
        else:
            padded = _reflected(image, rows, columns)
        restored: Tensor = self.network(padded)
        return restored[..., :height, :width]


def _reflected(image: Tensor, rows: int, columns: int) -> Tensor:
    """Pad like `pad_to_multiple` in mode "reflect", without branches that depend on the size."""
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
    return reference.forward(Arguments(x, coefficients, weight, bias, groups, kernel_size))


def _compare(network: nn.Module, path: Path, channels: int) -> dict[str, float]:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        differences = {}
        for batch, height, width in _SIZES:
            image = np.random.default_rng(0).random((batch, channels, height, width), np.float32)
            (found,) = session.run(None, {INPUT: image})
            expected = network(torch.from_numpy(image)).numpy()
            differences[f"{batch}x{channels}x{height}x{width}"] = float(np.abs(found - expected).max())
    except Exception as error:  # ONNX Runtime raises its own exceptions
        raise ValueError(
            f"ONNX Runtime cannot run the network ({one_line(error)}); export to pth or safetensors instead"
        ) from error
    return differences
