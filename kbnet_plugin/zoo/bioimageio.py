"""Write models as packages for bioimage.io: ONNX, test tensors, documentation and their description."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..arrays.intensity import PERCENTILES, Range, RangeRule, percentile_range
from ..arrays.tiling import HALO, WINDOW
from ..files import atomic_path, check_folder
from .card import AUTHORS, DOI, PAPER, read_card
from .export import INPUT, LIMIT, OPSET, OUTPUT, export_onnx

if TYPE_CHECKING:
    from .registry import Model

_CHANNELS = {1: ["gray"], 3: ["red", "green", "blue"]}
_NOTES = """
## Values and tiles

- Values: {values}
- Size: multiples of {multiple} from {side} x {side} pixels on, which is also the best size of a tile; {halo}
  pixels are cropped at each edge. The network averages over its whole input and was trained on small patches:
  in larger tiles its averages are others, and so, a little, is the result. Besides, ONNX computes the kernels
  of all pixels at once, which takes much memory. kbnet itself takes any size, and averages over patches of
  {window} pixels, whatever the tiles.

## Validation

`bioimageio test` compares the result for the test image with kbnet's; they may differ by {limit:g} of the
range that the network sees as 0 to 1. To measure quality, compare restored images with clean ones that were
not used in training.
"""


def write_package(model: Model, path: Path, metadata: dict[str, str]) -> dict[str, float]:
    """Write a package, validated by bioimageio.spec.

    Parameters
    ----------
    model : Model
    path : Path
        .zip.
    metadata : dict
        For the ONNX file.

    Returns
    -------
    dict
        As `kbnet_plugin.zoo.export.export`.

    Raises
    ------
    ValueError
        If the package would be invalid.
    """
    from bioimageio.spec import (
        InvalidDescr,
        ValidationContext,
        build_description,
        save_bioimageio_package_to_stream,
    )

    check_folder(path)
    with TemporaryDirectory(prefix="kbnet-") as name:
        folder = Path(name)
        network = model.load()
        differences = export_onnx(network, folder / "model.onnx", metadata)

        window = model.window or WINDOW
        # The step of the size of tiles, so that subsampling starts alike in all of them.
        multiple = network.size_multiple
        side = -(-(window + 2 * HALO) // multiple) * multiple
        picture = _picture(model.in_channels, side)
        scaling = _scaling(model.range, picture)
        with torch.inference_mode():
            restored = network(torch.from_numpy(scaling.scale.apply(scaling.picture))).numpy()
        _save_cover(folder / "cover.png", picture, restored)
        if scaling.after:
            restored = restored * np.float32(scaling.scale.span) + np.float32(scaling.scale.low)
        np.save(folder / "test_input.npy", scaling.picture)
        np.save(folder / "test_output.npy", restored)

        _, text = read_card(model)
        notes = _NOTES.format(
            values=scaling.words, multiple=multiple, side=side, halo=HALO, window=window, limit=LIMIT
        )
        (folder / "README.md").write_text(f"{text.rstrip()}\n{notes}", encoding="utf-8")

        content = _describe(model, scaling, side, multiple)
        tolerance = LIMIT * scaling.scale.span if scaling.after else LIMIT
        if tolerance <= 0.01 * restored.max():  # as the format requires
            content["config"]["bioimageio"]["reproducibility_tolerance"] = [
                {"relative_tolerance": 0.0, "absolute_tolerance": tolerance}
            ]
        with ValidationContext(root=folder, log_warnings=False):
            description = build_description(content)
            if isinstance(description, InvalidDescr):
                raise ValueError(f"{path}: not written: {description.get_reason()}")
            with atomic_path(path) as temporary, temporary.open("wb") as stream:
                save_bioimageio_package_to_stream(description, output_stream=stream)
    return differences


class _Scaling(NamedTuple):
    """What happens to values before and after the network.

    Attributes
    ----------
    picture : ndarray
        The test image in the values that the package takes.
    scale : Range
        Its values that become 0 and 1.
    before, after : list of dict
        Steps of the format.
    words : str
        For the documentation.
    """

    picture: NDArray[np.float32]
    scale: Range
    before: list[dict[str, Any]]
    after: list[dict[str, Any]]
    words: str


def _scaling(rule: RangeRule | None, picture: NDArray[np.float32]) -> _Scaling:
    """Express a range rule in the format, as far as that is possible."""
    if isinstance(rule, tuple) and rule != (0, 1):
        low, span = rule[0], rule[1] - rule[0]
        raw = picture * np.float32(span) + np.float32(low)
        before, after = {"gain": 1 / span, "offset": -low / span}, {"gain": span, "offset": low}
        words = (
            f"as in the images that the model was trained on. {low:g} to {rule[1]:g} become 0 to 1 for the "
            "network, and the result is scaled back."
        )
        return _Scaling(raw, Range(low, span), [_step("linear", before)], [_step("linear", after)], words)
    if rule == "percentile":
        low, high = PERCENTILES
        limits = {"min_percentile": low, "max_percentile": high, "axes": ["channel", "y", "x"]}
        words = (
            f"any. The percentiles {low:g} and {high:g} of each image become 0 and 1, also in the result: "
            "the format cannot scale it back. kbnet does, and leaves hot pixels out of the percentiles."
        )
        return _Scaling(picture, percentile_range(picture), [_step("range", limits)], [], words)
    words = "from 0 to 1. This is left to you: divide 8-bit values by 255, and multiply the result by it."
    return _Scaling(picture, Range(0.0, 1.0), [], [], words)


def _step(kind: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"id": f"scale_{kind}", "kwargs": arguments}


def _picture(channels: int, side: int) -> NDArray[np.float32]:
    """Draw noisy discs and gratings, (1, channels, side, side) in 0..1."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    picture = np.full((channels, side, side), 0.1)
    for _ in range(12):
        at, radius, colour = generator.random(2), generator.uniform(0.03, 0.15), generator.random(channels)
        distance = np.hypot(y - at[0], x - at[1])
        texture = 0.8 + 0.2 * np.sin(2 * np.pi * generator.uniform(5, 30) * (x + y))
        picture += np.where(distance < radius, 0.6 * texture, 0) * colour[:, None, None]
    noisy = picture.clip(0.05, 0.9) + generator.normal(0, 0.06, picture.shape)
    return noisy.clip(0, 1).astype(np.float32)[None]


def _save_cover(path: Path, *pictures: NDArray[np.float32]) -> None:
    """Save pictures (1, channels, side, side) side by side, the first channel of those that are not RGB."""
    shown = [p[0] if p.shape[1] == 3 else np.repeat(p[0, :1], 3, axis=0) for p in pictures]
    row = np.concatenate(shown, axis=2).transpose(1, 2, 0)
    Image.fromarray(np.rint(row.clip(0, 1) * 255).astype(np.uint8)).save(path)


def _describe(model: Model, scaling: _Scaling, side: int, multiple: int) -> dict[str, Any]:
    """Return the content of the description; files are named relative to its folder."""
    from bioimageio.spec.model.v0_5 import LicenseId, ModelDescr

    def channel(count: int) -> dict[str, Any]:
        return {"type": "channel", "channel_names": _CHANNELS.get(count) or [f"c{n}" for n in range(count)]}

    batch = {"type": "batch"}
    size = {"min": side, "step": multiple}
    content: dict[str, Any] = {
        "type": "model",
        "format_version": ModelDescr.implemented_format_version,
        "name": re.sub(r"[^A-Za-z0-9_+() -]+", "-", f"KBNet {model.name}")[:64],
        "description": model.title or f"{model.variant}, {model.in_channels} channels",
        "authors": [{"name": name} for name in AUTHORS if model.shipped],
        "cite": [{"text": PAPER, "doi": DOI}],
        "tags": ["kbnet", "2d", "image-restoration", *([model.task] if model.task else [])],
        "documentation": {"source": "README.md"},
        "covers": [{"source": "cover.png"}],
        "inputs": [
            {
                "id": INPUT,
                "axes": [
                    batch,
                    channel(model.in_channels),
                    *({"type": "space", "id": axis, "size": size} for axis in "yx"),
                ],
                "test_tensor": {"source": "test_input.npy"},
                "data": {"type": "float32"},
                "preprocessing": scaling.before,
            }
        ],
        "outputs": [
            {
                "id": OUTPUT,
                "axes": [
                    batch,
                    channel(model.out_channels),
                    *(
                        {
                            "type": "space",
                            "id": axis,
                            "size": {"tensor_id": INPUT, "axis_id": axis},
                            "halo": HALO,
                        }
                        for axis in "yx"
                    ),
                ],
                "test_tensor": {"source": "test_output.npy"},
                "data": {"type": "float32"},
                "postprocessing": scaling.after,
            }
        ],
        "weights": {"onnx": {"source": "model.onnx", "opset_version": OPSET}},
        "config": {
            "bioimageio": {"architecture_type": model.variant, "model_parameter_count": model.parameters},
        },
    }
    licenses = get_args(LicenseId.root_model.model_fields["root"].annotation)
    if found := next((known for known in licenses if known.lower() == model.license.lower()), None):
        content["license"] = found
    if re.fullmatch(r"\d+(\.\d+)*", model.version):
        content["version"] = model.version
    return content
