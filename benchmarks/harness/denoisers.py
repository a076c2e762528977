"""Methods that denoise a whole colour picture, by name: ours, its peers, and what libraries offer.

Timed by ``benchmarks/speed.py --part shipped``, also on machines with nothing but torch and numpy.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kbnet_plugin.arrays.tiling import HALO
from kbnet_plugin.inference.settings import TILE
from kbnet_plugin.inference.tiled import run_tiled

from . import measure, networks
from .progress import note

Image = NDArray[np.float32]
Denoise = Callable[[Image], Image]
"""From (H, W, 3) in 0..1 with Gaussian noise of `SIGMA` to the same without."""

SIGMA = 25.0
"""Standard deviation of the noise, of 255."""
PEERS = {  # the file of weights, and what is timed without it
    "FFDNet": ("FFDNet_color.npz", {"channels": 3, "features": 96, "layers": 12}),
    "DnCNN": ("DnCNN_color_sigma25.npz", {"channels": 3, "layers": 20}),
    "ADNet": ("ADNet_color_blind.npz", {}),
}
PIP = {"skimage": "scikit-image"}
"""Names of packages on PyPI that differ from those of their modules."""
EXPORTED = "denoise-color"
SMALL_TILE, SMALL_HALO = 256, 32  # ONNX Runtime holds the kernels of all pixels of a tile
_ONNX_FILE = "KBNET_SPEED_ONNX"  # environment variable
_SHIPPED = measure.ROOT / "kbnet_plugin" / "zoo"


@dataclass(frozen=True)
class Denoiser:
    """A method.

    Attributes
    ----------
    make : callable
        From a device to the method, ready to run.
    needs : str
        Modules that it requires beyond torch and numpy, separated by spaces.
    ours : bool
    trained : bool
        False if it has random weights, and only its time means something.
    torch : bool
        Whether it runs on any device, or on the CPU alone.
    """

    make: Callable[[str], Denoise]
    needs: str = ""
    ours: bool = False
    trained: bool = True
    torch: bool = True


def known(data: Path | None) -> dict[str, Denoiser]:
    """Return all methods; the weights of peers are those in `data`/peers."""
    found = _shipped()
    for name, (file, arguments) in PEERS.items():
        path = data / "peers" / file if data else None
        if path is not None and path.is_file():
            found[name] = Denoiser(partial(_trained, path))
        else:
            found[name] = Denoiser(partial(_untrained, name, arguments), trained=False)
    return found | {
        "BM3D": Denoiser(_bm3d, "bm3d", torch=False),
        "non-local means": Denoiser(_non_local_means, "skimage", torch=False),
        "ONNX Runtime": Denoiser(_onnx, "onnx onnxscript onnxruntime", ours=True, torch=False),
        "Open Image Denoise": Denoiser(_oidn, "pyoidn", torch=False),
    }


def missing(needs: str) -> list[str]:
    """Return the names on PyPI of those modules that are not installed."""
    return [PIP.get(name, name) for name in needs.split() if importlib.util.find_spec(name) is None]


def picture(height: int, width: int, seed: int = 0) -> Image:
    """Make a photograph of this size from scikit-image, mirrored at its edges, with noise of `SIGMA`.

    Without scikit-image, waves take the photograph's place. `seed` is that of the noise.
    """
    if missing("skimage"):
        y, x = np.mgrid[:height, :width].astype(np.float32) / 17
        clean = np.stack([0.5 + 0.4 * np.sin(x + c) * np.cos(y) for c in range(3)], -1)
    else:
        from skimage import data

        photograph = data.coffee().astype(np.float32) / np.float32(255)
        edges = [(0, max(0, n - m)) for n, m in zip((height, width), photograph.shape[:2], strict=True)]
        clean = np.pad(photograph, [*edges, (0, 0)], mode="symmetric")[:height, :width]
    noise = np.random.default_rng(seed).standard_normal(clean.shape, dtype=np.float32)
    return np.ascontiguousarray(clean + noise * np.float32(SIGMA / 255))


def images(data: Path | None, most: int | None = None) -> tuple[str, list[tuple[Image, Image]]]:
    """Return a description of the test images, and each of them noisy and clean.

    Kodak24 if it is in `data`, and otherwise photographs inside scikit-image, by the protocol `gaussian`.

    Raises
    ------
    ModuleNotFoundError
        If a package that reads or compares them is not installed.
    """
    from . import protocols, sets, tables

    descriptions = tables.read_datasets(tables.FOLDER / "datasets.yml")
    name = "Kodak24"
    found = sets.find(name, descriptions[name], data)
    if found is None:
        name = "photographs"
        found = sets.find(name, descriptions[name], data)
    assert found is not None  # these need no files
    title = name if name == "Kodak24" else descriptions[name].title
    chosen = found.items[:most]
    which = f"all {len(chosen)}" if len(chosen) == len(found.items) else f"the first {len(chosen)}"
    gaussian = protocols.PROTOCOLS["gaussian"]
    truths = [item.load(found.description.channels)[1] for item in chosen]
    pairs = [(protocols.noisy(t, SIGMA, i, gaussian), t) for i, t in enumerate(truths)]
    return f"{title}, {which} of {len(found.items)} images", pairs


def psnr(restored: Image, truth: Image) -> float:
    """Compute PSNR in dB by the protocol `gaussian`."""
    from . import protocols

    return protocols.compare(restored, truth, ["psnr"], protocols.PROTOCOLS["gaussian"])["psnr"]


def peak_memory(name: str, size: tuple[int, int], device: str, data: Path | None) -> int:
    """Measure the bytes that a method needs at its peak for a picture, in a fresh process on the CPU.

    Raises
    ------
    RuntimeError
        If that process fails.
    """
    if device.startswith("cuda"):  # its allocator keeps count; a process takes seconds to start
        call = known(data)[name].make(device)
        return measure.peak_extra_memory(partial(call, picture(*size)), device)
    return measure.in_fresh_process("-m", __name__, name, *map(str, size), device, str(data or ""))


def _in_torch(call: Callable[[Tensor], Tensor], device: str, tile: int = 0, halo: int = 0) -> Denoise:
    """Run a network as `Restorer` does: channels-last, in float16 on CUDA and in float32 elsewhere."""
    kind = torch.device(device).type

    def denoise(image: Image) -> Image:
        x = torch.from_numpy(image).permute(2, 0, 1)[None].to(device)
        with torch.inference_mode(), torch.autocast(kind, torch.float16, enabled=kind == "cuda"):
            y = run_tiled(call, x, tile, halo)
        return y[0].permute(1, 2, 0).float().cpu().numpy()

    return denoise


# --- Ours


def _shipped() -> dict[str, Denoiser]:
    try:
        from kbnet_plugin import Restorer, zoo
    except ModuleNotFoundError as error:
        note(
            f"no {error.name} here: of the shipped models, the networks alone are timed, in tiles of {TILE} "
            "without local pooling"
        )
        found = {path.stem: _read(path) for path in sorted(_SHIPPED.glob("data/*.safetensors"))}
        return {
            name: Denoiser(partial(_alone, tensors), ours=True)
            for name, (about, tensors) in found.items()
            if about.get("task") == "denoise" and _build(tensors).img_channel == 3
        }
    return {
        m.name: Denoiser(lambda device, name=m.name: Restorer.from_pretrained(name, device=device), ours=True)
        for m in zoo.list_models()
        if m.shipped and m.task == "denoise" and m.in_channels == m.out_channels == 3
    }


def _alone(tensors: Mapping[str, Tensor], device: str) -> Denoise:
    return _in_torch(_build(tensors).to(device), device, TILE, HALO)


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read the metadata and the tensors of a shipped model without the package safetensors."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    about = header.pop("__metadata__", {})
    dtypes = {"F16": np.float16, "F32": np.float32}
    tensors = {}
    for name, entry in header.items():
        first, last = (start + offset for offset in entry["data_offsets"])
        values = np.frombuffer(content[first:last], dtypes[entry["dtype"]]).reshape(entry["shape"])
        tensors[name] = torch.from_numpy(values.astype(np.float32))
    return about, tensors


def _build(tensors: Mapping[str, Tensor]) -> Any:
    from kbnet_plugin import KBNet_s

    _, arguments = _architectures().identify(tensors)
    network = KBNet_s(**arguments)
    network.load_state_dict(tensors)
    return network.eval()


@cache
def _architectures() -> Any:
    """Import `kbnet_plugin.zoo.architectures`, but not the zoo, whose other modules need more packages."""
    name = "kbnet_plugin.bare.architectures"
    spec = importlib.util.spec_from_file_location(name, _SHIPPED / "architectures.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look it up there
    spec.loader.exec_module(module)
    return module


def _onnx(_device: str) -> Denoise:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(_exported(), options, providers=["CPUExecutionProvider"])
    return _in_torch(
        lambda x: torch.from_numpy(session.run(None, {"image": x.contiguous().numpy()})[0]),
        "cpu",
        SMALL_TILE,
        SMALL_HALO,
    )


def _exported() -> str:
    """Export `EXPORTED`, which takes half a minute, once for this process and those that it starts."""
    if _ONNX_FILE not in os.environ:
        from kbnet_plugin import zoo
        from kbnet_plugin.zoo.export import export

        folder = tempfile.TemporaryDirectory()
        atexit.register(folder.cleanup)
        file = Path(folder.name, "model.onnx")
        export(zoo.get_model(EXPORTED), file)
        os.environ[_ONNX_FILE] = str(file)
    return os.environ[_ONNX_FILE]


# --- Peers


def _trained(path: Path, device: str) -> Denoise:
    network = networks.load(path, device)
    network.module.to(memory_format=torch.channels_last)
    return _in_torch(lambda x: network.call(x, SIGMA), device)


def _untrained(name: str, arguments: Mapping[str, Any], device: str) -> Denoise:
    network: nn.Module = networks.build(name, arguments)[0]
    network = network.to(device, memory_format=torch.channels_last)
    return _in_torch(network, device)  # FFDNet's default is our sigma


# --- Libraries


def _bm3d(_device: str) -> Denoise:
    import bm3d

    profile = bm3d.BM3DProfile()
    profile.num_threads = torch.get_num_threads()
    return lambda image: bm3d.bm3d_rgb(image, SIGMA / 255, profile).astype(np.float32)


def _non_local_means(_device: str) -> Denoise:
    from skimage.restoration import denoise_nl_means

    # Patches and strength are those of scikit-image's own example.
    sigma = SIGMA / 255
    settings = {"patch_size": 5, "patch_distance": 6, "h": 0.6 * sigma, "sigma": sigma, "fast_mode": True}
    return lambda image: denoise_nl_means(image, channel_axis=-1, **settings).astype(np.float32)


def _oidn(_device: str) -> Denoise:
    os.environ.setdefault("OIDN_NUM_THREADS", str(torch.get_num_threads()))
    import pyoidn

    return pyoidn.denoise


def _main(name: str, height: str, width: str, device: str, data: str) -> None:
    with contextlib.redirect_stdout(sys.stderr):
        call = known(Path(data) if data else None)[name].make(device)
        call(picture(64, 64))  # excludes what is loaded only once
        peak = measure.peak_extra_memory(partial(call, picture(int(height), int(width))), device)
    print(json.dumps(peak))


if __name__ == "__main__":
    _main(*sys.argv[1:])
