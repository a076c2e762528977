"""What all runs of a comparison share: images, options, seeds and the budget."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from kbnet_plugin.errors import BadInput, nearest

from . import sets, tables
from .measure import ROOT
from .studies import Studies, Test

LISTING = ROOT / "options" / "zoo" / "photographs.txt"
SKIMAGE = {  # where there is no data; all of them ship inside scikit-image
    "train": [
        "astronaut.png",
        "rocket.jpg",
        "motorcycle_left.png",
        "motorcycle_right.png",
        "color.png",
        "camera.png",
        "brick.png",
        "grass.png",
        "gravel.png",
    ],
    "test": ["chelsea.png", "coffee.png"],
}


def conditions(given: Studies, data: Path | None, budget: float, seeds: int, device: str) -> dict[str, Any]:
    """Collect what all runs in a folder share.

    Parameters
    ----------
    given : Studies
    data : Path or None
        Folder of the training and test sets; without it, photographs inside scikit-image are used.
    budget : float
        Seconds for everything.
    seeds : int
        Runs of each network.
    device : str

    Raises
    ------
    BadInput
        If a set is incomplete or unknown.
    """
    return {
        "budget": budget,
        "seeds": seeds,
        "device": device.split(":")[0],
        "options": given.options,
        "network": given.network,
        "train": _training_images(data),
        "test": _test_images(given.test, data),
    }


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Say what differs between two conditions, or return None."""
    for name, what in (("budget", "a budget of {} s"), ("seeds", "{} seeds"), ("device", "the device {}")):
        if before[name] != now[name]:
            return what.format(f"{before[name]:g}" if name == "budget" else before[name])
    for name in ("train", "test"):
        if before[name]["sha256"] != now[name]["sha256"]:
            return f"other {name}ing images" if name == "train" else "other test images"
    if any(before[name] != now[name] for name in ("options", "network", "test")):
        return "other options"
    return None


def _training_images(data: Path | None) -> dict[str, Any]:
    if data is not None and (data / "train" / "BSDS500").is_dir():
        names = [n for n in LISTING.read_text(encoding="utf-8").splitlines() if n.startswith("BSDS500/")]
        root = data.resolve() / "train"
        if missing := [n for n in names if not (root / n).is_file()]:
            raise BadInput(
                f"{root / missing[0]} is missing ({len(missing)} of {len(names)}); download BSDS500 again"
            )
        title = f"{len(names)} photographs of BSDS500"
        return {"title": title, "root": str(root), "files": names, "sha256": _digest(root, names)}
    return _skimage("train")


def _skimage(kind: str) -> dict[str, Any]:
    files = SKIMAGE[kind]
    title = f"photographs inside scikit-image ({', '.join(f.split('.')[0] for f in files)})"
    return {
        "title": title,
        "root": "package:skimage/data",
        "files": files,
        "sha256": hashlib.sha256(" ".join(files).encode()).hexdigest(),
    }


def _test_images(test: Test, data: Path | None) -> dict[str, Any]:
    known = tables.read_datasets(tables.FOLDER / "datasets.yml")
    for name in test.sets:
        if name not in known:
            raise BadInput(f"test sets: no data set {name!r}{nearest(name, known)}")
        found = sets.find(name, known[name], data)
        if found is None:
            continue
        paths = [Path(i.target) for i in found.items]
        root, names = paths[0].resolve().parent, [p.name for p in paths]
        content = {"title": name, "root": str(root), "files": names, "sha256": _digest(root, names)}
        return content | {"sigma": test.sigma}
    return _skimage("test") | {"sigma": test.sigma}


@cache
def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _digest(root: Path, names: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name}\0".encode() + _sha256(root / name))
    return digest.hexdigest()
