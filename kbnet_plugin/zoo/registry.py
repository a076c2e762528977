"""Models by name: those that ship with the package, then the user's own."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from safetensors import SafetensorError, safe_open

from ..cost import Cost
from ..errors import nearest, one_line
from ..files import atomic_path
from .architectures import Name, identify
from .locations import KINDS, SHIPPED, check_name, folder, model_files

if TYPE_CHECKING:
    from ..arrays.intensity import RangeRule
    from ..nn import KBNet_l, KBNet_s

# torch takes seconds to import, and listing models needs none of it: what does is imported where it is used.


@dataclass(frozen=True, slots=True)
class Model:
    """A file of weights, and what it says of itself.

    Attributes
    ----------
    name : str
        What `get_model` knows it by; of a file outside the list, its stem.
    path : Path
        .safetensors, or for a user's own also .pth, .pt, .ckpt.
    title : str
        What it is for, in a line; empty where the file does not say.
    task : str
        Such as ``"denoise"``; empty where the file does not say.
    in_channels, out_channels : int
        Of the network; 0 where the file cannot be used.
    parameters : int
        Their number; 0 where the file cannot be used.
    variant : {"KBNet_s", "KBNet_l", ""}
        Class of the network; empty where the file cannot be used.
    window : int or None
        Side of the patches of local pooling, in pixels.
    range : RangeRule or None
        What it wants to see as 0 and 1, where that is not the default.
    version, license : str
        Of the weights.
    card : Path or None
        Markdown that says what it is good for, how it was made and what it reaches.
    shipped : bool
        Whether it came with the package.
    macs : tuple of int, or None
        Multiply-accumulates of one 256 x 256 image, as its file says; see `cost`.
    problem : str
        Why it cannot be used, as far as its header shows; empty where it can.
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
        """Build the network; errors as those of `load_network`."""
        from .weights import load_network

        return load_network(self.path)

    def cost(self) -> Cost:
        """Parameters, and multiply-accumulates of one 256 x 256 image; counted where the file names none."""
        if self.macs is not None:
            return Cost(self.parameters, *self.macs)
        from ..nn.cost import count

        return count(self.load())


def list_models() -> list[Model]:
    """List the shipped models, the default first, then the user's own.

    A file that cannot be used is listed with its `problem`. Of two files of one name the first counts, and
    the other is listed with that problem.
    """
    found: list[Model] = []
    for path in [*model_files(SHIPPED), *model_files(folder())]:
        model = _describe(path)
        if other := next((m for m in found if m.name == model.name), None):
            model = Model(model.name, path, problem=f"its name is taken by {other.path}; rename it")
        found.append(model)
    return found


def get_model(name: str | PathLike[str]) -> Model:
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
    for candidate in (*model_files(SHIPPED), *model_files(folder())):
        if candidate.stem == text:
            model = _describe(candidate)
            if model.problem:
                raise ValueError(model.problem)
            return model
    if len(path.parts) == 1 and path.suffix.lower() not in KINDS and not path.exists():
        hint = nearest(text, [m.name for m in list_models()])
        raise ValueError(f"no model or file is called {text!r}{hint}")
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
    """Save a model in the user's folder, so that it stands in the list; whole or not at all.

    Parameters
    ----------
    model : KBNet_s, KBNet_l or path
        A network, or a checkpoint.
    name : str
        Letters, digits, ``_``, ``-`` and ``.``; not that of a shipped model.
    title, task, window, range, license
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
    old = [path for path in model_files(own) if path.stem == name]
    if old and not overwrite:
        raise FileExistsError(f"{old[0]}: there is a model of that name already; choose another")
    from ..nn.cost import count
    from .weights import load_network, save_network

    network = load_network(model) if isinstance(model, str | PathLike) else model
    facts = header(title=title, task=task, license=license, window=window, range=range, cost=count(network))
    own.mkdir(parents=True, exist_ok=True)
    path = own / f"{name}.safetensors"
    described = path.with_suffix(".md")
    if card:
        with atomic_path(described) as temporary:
            temporary.write_text(card, encoding="utf-8")
    else:
        described.unlink(missing_ok=True)
    save_network(network, path, facts)
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
    """What a .safetensors file is to say of itself, for `save_network`; read back into `Model`."""
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

        read_state_dict(path)  # raises, and says what it is instead
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
    """Shapes by name, and what a .safetensors file says of itself; no more of it is read."""
    try:
        with safe_open(path, framework="np") as file:
            shapes = {name: _Shape(tuple(file.get_slice(name).get_shape())) for name in file.keys()}  # noqa: SIM118
            facts = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path}: truncated or not a safetensors file; fetch it again") from error
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
        return None  # what a stranger wrote there is no reason to refuse the weights


def _macs(text: str) -> tuple[int, ...] | None:
    parts = text.split(",")
    return tuple(map(int, parts)) if len(parts) == 4 and all(part.isdecimal() for part in parts) else None
