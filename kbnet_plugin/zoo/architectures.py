"""Identify the network of a state dict, and the arguments it was built with, from names and shapes alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ..errors import one_line

Name = Literal["KBNet_s", "KBNet_l"]


class Shaped(Protocol):
    """A tensor, or its entry in the header of a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Size along each axis."""


Shapes = Mapping[str, Shaped]
"""From the name of each tensor in a state dict to something with its shape."""


def identify(tensors: Shapes) -> tuple[Name, dict[str, Any]]:
    """Identify the network of a state dict.

    Parameters
    ----------
    tensors : mapping
        From the names in the state dict to tensors, or to anything else with their shapes.

    Returns
    -------
    name : {"KBNet_s", "KBNet_l"}
        Class of the network.
    arguments : dict
        Keyword arguments that it was built with.

    Raises
    ------
    ValueError
        If it is not the state dict of a KBNet.
    """
    for architecture in _ARCHITECTURES:
        if architecture.recognize(tensors):
            try:
                return architecture.name, architecture.arguments(tensors)
            except (LookupError, ZeroDivisionError) as error:
                name, what = architecture.name, one_line(error).strip("'")
                raise ValueError(f"not a complete {name}: {what} is missing or invalid") from None
    raise ValueError(f"weights of neither KBNet_s nor KBNet_l (keys: {few(tensors)})")


@dataclass(frozen=True, slots=True)
class _Architecture:
    """How to recognize a network by its state dict, and to infer its arguments."""

    name: Name
    recognize: Callable[[Shapes], bool]
    arguments: Callable[[Shapes], dict[str, Any]]


def _is_s(tensors: Shapes) -> bool:
    return any(n.endswith(".attgamma") and ".attn." not in n for n in tensors)  # NAFNet has no attgamma


def _arguments_s(tensors: Shapes) -> dict[str, Any]:
    intro = tensors["intro.weight"].shape
    spatial = [t.shape[-1] for n, t in tensors.items() if n.endswith("conv11.1.weight")]
    gated = (t for n, t in tensors.items() if n.endswith("conv4.weight"))
    return {
        "img_channel": intro[1],
        "width": intro[0],
        "middle_blk_num": _count(tensors, "middle_blks"),
        "enc_blk_nums": [_count(tensors, f"encoders.{i}") for i in range(_count(tensors, "downs"))],
        "dec_blk_nums": [_count(tensors, f"decoders.{i}") for i in range(_count(tensors, "ups"))],
        "lightweight": 3 in spatial,
        "ffn_scale": _scale((t.shape[1], t.shape[0]) for t in gated),
        **_bases(tensors),
        "fold": intro[2] // 3,
    }


def _bases(tensors: Shapes) -> dict[str, int]:
    name = next((n for n in tensors if n.endswith(".w")), None)
    if name is None:
        return {}
    weights, biases = tensors[name].shape, tensors[f"{name[:-1]}b"].shape
    return {"bases": weights[1], "per_group": weights[2] // biases[2] // 9}


def _is_l(tensors: Shapes) -> bool:
    return any(n.endswith(".attn.attgamma") for n in tensors)  # Restormer has none either


def _arguments_l(tensors: Shapes) -> dict[str, Any]:
    embed = tensors["patch_embed.proj.weight"].shape
    levels = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")
    heads = (tensors.get(f"{level}.0.ffn.temperature") for level in levels)
    fusions = (t for n, t in tensors.items() if n.endswith("attn.project_out.weight"))
    return {
        "inp_channels": embed[1],
        "out_channels": tensors["output.weight"].shape[0],
        "dim": embed[0],
        "num_blocks": [_count(tensors, level) for level in levels],
        "num_refinement_blocks": _count(tensors, "refinement"),
        "heads": [1 if t is None else t.shape[0] for t in heads],
        "ffn_expansion_factor": _scale((t.shape[0], t.shape[1]) for t in fusions),
        "bias": "output.bias" in tensors,
    }


_ARCHITECTURES = (
    _Architecture("KBNet_s", _is_s, _arguments_s),
    _Architecture("KBNet_l", _is_l, _arguments_l),
)


def _count(tensors: Shapes, prefix: str) -> int:
    """Count the modules of a list up to the first gap, so that a forged index builds no huge network."""
    indices = {name[len(prefix) + 1 :].split(".", 1)[0] for name in tensors if name.startswith(f"{prefix}.")}
    count = 0
    while str(count) in indices:
        count += 1
    return count


def _scale(widths: Iterable[tuple[int, int]]) -> float:
    """Return the shortest decimal s with int(s * channels) == hidden for every (channels, hidden)."""
    pairs = set(widths)
    low = max(hidden / channels for channels, hidden in pairs) if pairs else 0.0
    if low == 0:
        raise LookupError("every block's feed-forward width")
    for digits in range(10):
        scale = math.ceil(low * 10**digits - 1e-6) / 10**digits
        if all(int(scale * channels) == hidden for channels, hidden in pairs):
            return scale
    return low  # the widths are inconsistent; comparing all shapes reports where


def few(names: Iterable[str], total: int | None = None) -> str:
    """List the first three of some names, for a message.

    Parameters
    ----------
    names : iterable of str
    total : int, optional
        Their number, if `names` has only the first.
    """
    listed = [name if len(name) <= 100 else f"{name[:97]}..." for name in names]
    return ", ".join(listed[:3]) + (", ..." if (total or len(listed)) > 3 else "") or "none"
