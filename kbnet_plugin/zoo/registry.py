"""List, find and register models by name."""

from __future__ import annotations

import math
import os
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from safetensors import SafetensorError, safe_open

from ..cost import Cost
from ..errors import nearest, one_line
from ..files import atomic_path
from . import hub
from .architectures import Name, identify
from .locations import (
    KINDS,
    SHIPPED,
    TRUNCATED_SAFETENSORS,
    all_files,
    check_name,
    folder,
    folder_problem,
    model_files,
)

if TYPE_CHECKING:
    from ..arrays.intensity import RangeRule
    from ..nn import KBNet_l, KBNet_s

# torch takes seconds to import and listing models does not need it, so it is imported only where it is used.


@dataclass(frozen=True, slots=True)
class Model:
    """A file of weights with its metadata.

    Attributes
    ----------
    name : str
        Name for `get_model`, or address; for other files the name without its suffix.
    path : Path
        .safetensors, or for the user's own also .pth, .pt or .ckpt.
    title : str
        What it is for, in one line; empty if unknown.
    task : str
        Such as ``"denoise"``; empty if unknown.
    in_channels, out_channels : int
        Channels of the network; 0 if the file cannot be used.
    parameters : int
        Number of parameters; 0 if the file cannot be used.
    variant : {"KBNet_s", "KBNet_l", ""}
        Class of the network; empty if the file cannot be used.
    window : int or None
        Side of the patches for local pooling, in pixels.
    range : RangeRule or None
        Which values of a picture become 0 and 1; None for the default of `Restorer`.
    version, license : str
        Of the weights; empty if unknown.
    card : Path or None
        Markdown file about its purpose, training and results.
    shipped : bool
        Whether it came with the package.
    macs : tuple of int, or None
        Multiply-accumulates for one 256 x 256 image by kind of layer, if the file has them; see `cost`.
    problem : str
        Why it cannot be used, as far as its header shows; empty if it can.
    """

    name: str
    path: Path
    title: str = ""
    task: str = ""
    in_channels: int = 0
    out_channels: int = 0
    parameters: int = 0
    variant: Name | Literal[""] = ""
    window: int | None = None
    range: RangeRule | None = None
    version: str = ""
    license: str = ""
    card: Path | None = None
    shipped: bool = False
    macs: tuple[int, ...] | None = None
    problem: str = ""

    def load(self) -> KBNet_s | KBNet_l:
        """Build the network on the CPU, in evaluation mode; raises what `load_network` raises."""
        from .weights import load_network

        return load_network(self.path)

    def cost(self) -> Cost:
        """Return parameters and multiply-accumulates for one 256 x 256 image; counts them if necessary."""
        if self.macs is not None:
            return Cost(self.parameters, *self.macs)
        from ..nn.cost import count

        return count(self.load())


def list_models() -> list[Model]:
    """List the shipped models, the default first, then the user's own.

    A file that cannot be used is listed with its `problem`; so is a file whose name is already taken.
    """
    found: list[Model] = []
    for path in all_files():
        model = _describe(path)
        if other := next((m for m in found if m.name == model.name), None):
            model = Model(model.name, path, problem=f"its name is taken by {other.path}; rename it")
        found.append(model)
    return found


def get_model(name: str | PathLike[str]) -> Model:
    """Find a model by its name, its path, or its address on Hugging Face.

    Parameters
    ----------
    name : str or path
        Name of a model as `list_models` lists it, a file of weights, ``"hf://USER/NAME"`` or
        ``"hf://USER/NAME@REVISION"``. The last two are downloaded by huggingface_hub, into its cache.

    Returns
    -------
    Model

    Raises
    ------
    FileNotFoundError
        If `name` is a path or an address that does not exist.
    OSError
        If Hugging Face cannot be reached.
    ValueError
        If there is no model of this name (the message suggests the nearest), the file cannot be used, or
        huggingface_hub is not installed.
    """
    text = os.fspath(name)
    if not text:
        raise ValueError("the name of the model is empty; name a model or a checkpoint")
    if text.startswith(hub.PREFIX):
        weights, card = hub.download(text)
        return replace(_read(weights), name=text, card=card)
    path = Path(text)
    for candidate in all_files():
        if candidate.stem == text:
            model = _describe(candidate)
            if model.problem:
                raise ValueError(model.problem)
            return model
    if len(path.parts) == 1 and path.suffix.lower() not in KINDS and not path.exists():
        hint = nearest(text, [m.name for m in list_models()])
        problem = folder_problem()
        unlisted = f"; your own models are not listed: {problem}" if problem else ""
        raise ValueError(f"no model or file is called {text!r}{hint}{unlisted}")
    return _read(path)


def register_model(
    model: KBNet_s | KBNet_l | str | PathLike[str],
    name: str,
    *,
    title: str = "",
    task: str = "",
    window: int | None = None,
    range: RangeRule | None = None,
    license: str = "",
    card: str = "",
    overwrite: bool = False,
) -> Model:
    """Save a model in the user's folder, completely or not at all, and so add it to the list.

    Parameters
    ----------
    model : KBNet_s, KBNet_l or path
        Network or checkpoint.
    name : str
        Letters, digits, ``_``, ``-`` and ``.``; not the name of a shipped model.
    title, task, window, range, license
        As in `Model`.
    card : str
        Markdown about it, saved beside it.
    overwrite : bool
        Replace the user's model of this name, if there is one.

    Returns
    -------
    Model

    Raises
    ------
    FileExistsError
        If there is a model of this name already.
    ValueError
        If the name is not allowed, or the checkpoint cannot be used.
    """
    check_name(name)
    own = folder()
    old = [path for path in model_files(own) if path.stem == name]
    if old and not overwrite:
        raise FileExistsError(f"{old[0]}: a model of this name exists already; choose another name")
    from ..nn.cost import count
    from .weights import load_network, save_network

    network = load_network(model) if isinstance(model, str | PathLike) else model
    facts = header(title=title, task=task, license=license, window=window, range=range, cost=count(network))
    own.mkdir(parents=True, exist_ok=True)
    path = own / f"{name}.safetensors"
    card_file = path.with_suffix(".md")
    with atomic_path(card_file) if card else nullcontext() as temporary:
        if temporary is not None:  # backslashreplace, as it may name files
            temporary.write_text(card, encoding="utf-8", errors="backslashreplace")
        save_network(network, path, facts)
    if not card:
        card_file.unlink(missing_ok=True)
    for other in old:
        if other != path:
            other.unlink()
    return _describe(path)


def header(
    *,
    title: str,
    task: str,
    license: str,
    cost: Cost,
    window: int | None = None,
    range: RangeRule | None = None,
    version: str = "",
) -> dict[str, str]:
    """Build the metadata of a .safetensors file, for `save_network`.

    Parameters
    ----------
    title, task, license, window, range, version
        As in `Model`.
    cost : Cost
        Of the network, for one 256 x 256 image.

    Returns
    -------
    dict
        From keys to text; empty values are left out. `Model` has them again when the file is read.

    Raises
    ------
    ValueError
        If `range` is not a range rule.
    """
    from ..arrays.intensity import check_rule

    facts = {
        "title": title,
        "task": task,
        "license": license,
        "version": version,
        "window": str(window or ""),
        "macs": f"{cost.convolution},{cost.kba},{cost.attention},{cost.linear}",
    }
    if range is not None:
        rule = check_rule(range)
        facts["range"] = rule if isinstance(rule, str) else f"{rule[0]!r},{rule[1]!r}"
    return {key: value for key, value in facts.items() if value}


def _describe(path: Path) -> Model:
    try:
        return _read(path)
    except (ValueError, OSError) as error:
        return Model(path.stem, path, shipped=path.parent == SHIPPED, problem=one_line(error))


def _read(path: Path) -> Model:
    if not path.is_file() or path.suffix.lower() not in KINDS:
        from .weights import read_state_dict

        read_state_dict(path)  # raises, with the reason
    status = path.stat()
    card = path.with_suffix(".md")
    return _inspect(path, card if card.is_file() else None, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=256)
def _inspect(path: Path, card: Path | None, _changed: int, _size: int) -> Model:
    shapes, facts = _header(path) if path.suffix.lower() == ".safetensors" else _state(path)
    try:
        variant, arguments = identify(shapes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    small = variant == "KBNet_s"
    return Model(
        name=path.stem,
        path=path,
        title=facts.get("title", ""),
        task=facts.get("task", ""),
        in_channels=arguments["img_channel" if small else "inp_channels"],
        out_channels=arguments["img_channel" if small else "out_channels"],
        parameters=sum(math.prod(tensor.shape) for tensor in shapes.values()),
        variant=variant,
        window=int(facts["window"]) if facts.get("window", "").isdigit() else None,
        range=_rule(facts.get("range", "")),
        version=facts.get("version", ""),
        license=facts.get("license", ""),
        card=card,
        shipped=path.parent == SHIPPED,
        macs=_macs(facts.get("macs", "")),
    )


class _Shape(NamedTuple):
    shape: tuple[int, ...]


def _header(path: Path) -> tuple[dict[str, _Shape], dict[str, str]]:
    """Return shapes by name and the metadata of a .safetensors file, reading only its header."""
    path.open("rb").close()  # safetensors calls a file that it may not read missing
    try:
        with safe_open(path, framework="np") as file:
            shapes = {name: _Shape(tuple(file.get_slice(name).get_shape())) for name in file.keys()}  # noqa: SIM118
            facts = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path}: {TRUNCATED_SAFETENSORS}") from error
    prefix = "module." if all(name.startswith("module.") for name in shapes) else ""
    return {name.removeprefix(prefix): shape for name, shape in shapes.items()}, facts


def _state(path: Path) -> tuple[dict[str, _Shape], dict[str, str]]:
    from .weights import build_network, read_state_dict

    tensors = read_state_dict(path)
    try:
        build_network(tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return {name: _Shape(tuple(tensor.shape)) for name, tensor in tensors.items()}, {}


def _rule(text: str) -> RangeRule | None:
    if not text:
        return None
    from ..arrays.intensity import check_rule

    try:
        return check_rule(tuple(text.split(",")) if "," in text else text)
    except ValueError:
        return None  # invalid metadata is no reason to refuse the weights


def _macs(text: str) -> tuple[int, ...] | None:
    parts = text.split(",")
    return tuple(map(int, parts)) if len(parts) == 4 and all(part.isdecimal() for part in parts) else None
