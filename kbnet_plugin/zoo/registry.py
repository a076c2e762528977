"""Models by name: those that ship with the package, then the user's own."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from functools import lru_cache
from os import PathLike
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..arrays.intensity import RangeRule, check_rule
from ..errors import one_line
from ..files import atomic_path
from ..nn import KBNet_l, KBNet_s
from ..nn.cost import Cost, count
from .locations import DEFAULT, DEFAULT_GRAY, FOLDER_VARIABLE, check_name, folder
from .locations import KINDS as _KINDS
from .locations import SHIPPED as _SHIPPED
from .locations import files as _files
from .weights import build_network, identify, load_network, read_state_dict, save_network

__all__ = [
    "DEFAULT",
    "DEFAULT_GRAY",
    "FOLDER_VARIABLE",
    "Model",
    "add",
    "find",
    "folder",
    "models",
]


@dataclass(frozen=True, slots=True)
class Model:
    """A file of weights, and what it says of itself.

    Attributes
    ----------
    name : str
        What `find` knows it by; of a file outside the list, its stem.
    path : Path
        .safetensors, or for a user's own also .pth, .pt, .ckpt.
    title : str
        What it is for, in a line; empty where the file does not say.
    task : str
        Such as ``"denoise"``; empty where the file does not say.
    channels : int
        That the network takes; 0 of a broken file.
    variant : str
        ``"KBNet_s"`` or ``"KBNet_l"``; empty of a broken file.
    window : int or None
        Side of the patches of local pooling, in pixels.
    range : RangeRule or None
        What it wants to see as 0 and 1, where that is not the default.
    version, licence : str
        Of the weights.
    card : Path or None
        Markdown that says what it is good for, how it was made and what it reaches.
    shipped : bool
        Whether it came with the package.
    problem : str
        Why it cannot be used; empty where it can.
    """

    name: str
    path: Path
    title: str = ""
    task: str = ""
    channels: int = 0
    variant: str = ""
    window: int | None = None
    range: RangeRule | None = None
    version: str = ""
    licence: str = ""
    card: Path | None = None
    shipped: bool = False
    problem: str = ""

    def load(self) -> KBNet_s | KBNet_l:
        """Build the network; errors as those of `load_network`."""
        return load_network(self.path)

    def cost(self) -> Cost:
        """Parameters, and multiply-accumulates of one 256 x 256 image."""
        return count(build_network(_shapes(self.path)[0]))


def models() -> list[Model]:
    """List the shipped models, the default first, then the user's own.

    A file that cannot be used is listed with its `problem`. Of two files of one name the first counts, and
    the other is listed with that problem.
    """
    found: list[Model] = []
    for path in [*_files(_SHIPPED), *_files(folder())]:
        model = _describe(path)
        if other := next((m for m in found if m.name == model.name), None):
            model = Model(model.name, path, problem=f"its name is taken by {other.path}; rename it")
        found.append(model)
    return found


def find(name: str | PathLike[str]) -> Model:
    """Find a model by its name, or a file by its path.

    Raises
    ------
    FileNotFoundError
        If what looks like a path is none of a file.
    ValueError
        If there is no such name, and the nearest ones are told; or if the file cannot be used.
    """
    text = os.fspath(name)
    path = Path(text)
    for candidate in (*_files(_SHIPPED), *_files(folder())):
        if candidate.stem == text:
            model = _describe(candidate)
            if model.problem:
                raise ValueError(model.problem)
            return model
    if len(path.parts) == 1 and path.suffix.lower() not in _KINDS and not path.exists():
        known = [m.name for m in models()]
        near = difflib.get_close_matches(text, known, n=3, cutoff=0.5)
        hint = f"nearest: {', '.join(near)}" if near else f"known: {', '.join(known) or 'none'}"
        raise ValueError(f"no model is called {text!r}; {hint}; or name a file (.pth or .safetensors)")
    return _read(path)


def add(
    model: KBNet_s | KBNet_l | str | PathLike[str],
    name: str,
    *,
    title: str = "",
    task: str = "",
    window: int | None = None,
    range: RangeRule | None = None,
    licence: str = "",
    card: str = "",
    overwrite: bool = False,
) -> Model:
    """Save a model in the user's folder, so that it stands in the list; whole or not at all.

    Parameters
    ----------
    model : KBNet_s, KBNet_l or path
        A network, or a checkpoint.
    name : str
        Letters, digits, ``_``, ``-`` and ``.``; not that of a shipped model.
    title, task, window, range, licence
        As in `Model`.
    card : str
        Markdown to lie beside it.
    overwrite : bool
        Replace a model of that name.

    Raises
    ------
    FileExistsError
        If there is a model of that name already.
    ValueError
        If the name will not do, or the checkpoint cannot be used.
    """
    check_name(name)
    own = folder()
    old = [path for path in _files(own) if path.stem == name]
    if old and not overwrite:
        raise FileExistsError(f"{old[0]}: there is a model of that name already; choose another")
    network = load_network(model) if isinstance(model, str | PathLike) else model
    facts = {"title": title, "task": task, "licence": licence, "window": window or "", "range": _text(range)}
    own.mkdir(parents=True, exist_ok=True)
    path = own / f"{name}.safetensors"
    described = path.with_suffix(".md")
    if card:
        with atomic_path(described) as temporary:
            temporary.write_text(card, encoding="utf-8")
    else:
        described.unlink(missing_ok=True)
    save_network(network, path, {key: str(value) for key, value in facts.items() if value})
    for other in old:
        if other != path:
            other.unlink()
    return _describe(path)


def _describe(path: Path) -> Model:
    try:
        return _read(path)
    except (ValueError, OSError) as error:
        return Model(path.stem, path, shipped=path.parent == _SHIPPED, problem=one_line(error))


def _read(path: Path) -> Model:
    if not path.is_file():
        read_state_dict(path)  # raises, and says what it is instead
    status = path.stat()
    card = path.with_suffix(".md")
    return _inspect(path, card if card.is_file() else None, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=256)
def _inspect(path: Path, card: Path | None, _changed: int, _size: int) -> Model:
    tensors, facts = _shapes(path)
    try:
        network = build_network(tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    variant, arguments = identify(tensors)
    return Model(
        name=path.stem,
        path=path,
        title=facts.get("title", ""),
        task=facts.get("task", ""),
        channels=arguments["img_channel" if isinstance(network, KBNet_s) else "inp_channels"],
        variant=variant.__name__,
        window=int(facts["window"]) if facts.get("window", "").isdigit() else None,
        range=_rule(facts.get("range", "")),
        version=facts.get("version", ""),
        licence=facts.get("licence", ""),
        card=card,
        shipped=path.parent == _SHIPPED,
    )


def _shapes(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors without values, and what the file says of itself; of safetensors only the head is read."""
    if path.suffix.lower() != ".safetensors":
        tensors = read_state_dict(path)
        return {name: tensor.to("meta") for name, tensor in tensors.items()}, {}
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            facts = file.metadata() or {}
            shapes = {name: (s.get_shape(), "F" in s.get_dtype()) for name, s in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path}: truncated or not a safetensors file; fetch it again") from error
    prefix = "module." if all(name.startswith("module.") for name in shapes) else ""
    return {
        name.removeprefix(prefix): torch.empty(
            shape, dtype=torch.float32 if floating else torch.int64, device="meta"
        )
        for name, (shape, floating) in shapes.items()
    }, facts


def _rule(text: str) -> RangeRule | None:
    try:
        return check_rule(tuple(text.split(",")) if "," in text else text) if text else None
    except ValueError:
        return None  # what a stranger wrote there is no reason to refuse the weights


def _text(rule: RangeRule | None) -> str:
    if rule is None:
        return ""
    rule = check_rule(rule)
    return rule if isinstance(rule, str) else f"{rule[0]!r},{rule[1]!r}"
