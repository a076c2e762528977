"""Degradations by name, and lists of them, as option files write them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from ..errors import BadInput, nearest, one_line
from .base import Degradation, Draws, to_device

DEGRADATIONS: dict[str, type[Degradation]] = {}
"""Known classes by name."""

Class = TypeVar("Class", bound=type[Degradation])


def register_degradation(cls: Class) -> Class:
    """Make a class available to option files under its name; a decorator.

    Raises
    ------
    ValueError
        If another class has this name.
    """
    if DEGRADATIONS.setdefault(cls.__name__, cls) is not cls:
        raise ValueError(f"the degradation {cls.__name__} exists already")
    return cls


class Pipeline:
    """Degradations in a row, each applied to a random part of the samples.

    Parameters
    ----------
    steps : sequence of mapping
        Of each step: ``type``, its name in `DEGRADATIONS`; ``prob``, the probability with which a sample is
        degraded, by default 1; and the class's own arguments.

    Raises
    ------
    BadInput
        If a name or an argument is unknown, or a value is out of range; the message names the step.

    Examples
    --------
    >>> import torch
    >>> from kbnet_plugin.degradations import Draws, Pipeline
    >>> pipeline = Pipeline([{"type": "Gaussian", "sigma": [0, 55], "prob": 0.5}])
    >>> degraded, clean = pipeline(torch.rand(4, 3, 32, 32), Draws([(0, i) for i in range(4)]))
    """

    def __init__(self, steps: Sequence[Mapping[str, Any]]) -> None:
        self.steps = [_build(step, f"degradations[{i}]") for i, step in enumerate(steps)]

    def __call__(self, clean: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Degrade clean images, (B, C, H, W), float32, 0..1; returns the degraded and the clean ones."""
        degraded = clean
        for step, probability in self.steps:
            degraded, clean = apply_to_some(step, draws.uniform() < probability, degraded, clean, draws)
        return degraded, clean


def apply_to_some(
    step: Degradation, chosen: np.ndarray[Any, Any], degraded: Tensor, clean: Tensor, draws: Draws
) -> tuple[Tensor, Tensor]:
    """Apply a step to the samples for which `chosen`, (B,), is true."""
    index = np.flatnonzero(chosen)
    if not len(index):
        return degraded, clean
    if len(index) == len(draws):
        return step(degraded, clean, draws)
    where = to_device(index, draws.device)
    some = clean[where]
    # Still one tensor where nothing has been degraded yet, which a step may take advantage of.
    changed = step(some if degraded is clean else degraded[where], some, draws.subset(index.tolist()))
    return degraded.index_copy(0, where, changed[0]), clean.index_copy(0, where, changed[1])


def _build(step: Mapping[str, Any], where: str) -> tuple[Degradation, float]:
    if not isinstance(step, Mapping) or "type" not in step:
        raise BadInput(f"{where} must be a section with a type, such as {{type: Gaussian, sigma: 25}}")
    arguments = dict(step)
    name, probability = arguments.pop("type"), arguments.pop("prob", 1)
    if (cls := DEGRADATIONS.get(name)) is None:
        raise BadInput(f"{where}.type: no degradation {name!r}{nearest(name, DEGRADATIONS)}")
    if (
        isinstance(probability, bool)
        or not isinstance(probability, (int, float))
        or not 0 <= probability <= 1
    ):
        raise BadInput(f"{where}.prob must be a number from 0 to 1, not {probability!r}")
    known = inspect.signature(cls).parameters
    for key in arguments:
        if key not in known:
            raise BadInput(f"{where} ({name}): unknown key {key!r}{nearest(key, [*known, 'type', 'prob'])}")
    if missing := [k for k, p in known.items() if p.default is p.empty and k not in arguments]:
        raise BadInput(f"{where} ({name}): the key {missing[0]!r} is missing")
    try:
        return cls(**arguments), float(probability)
    except (BadInput, TypeError, ValueError) as error:
        raise BadInput(f"{where} ({name}): {one_line(error)}") from error


@register_degradation
class OneOf(Degradation):
    """One of several lists of steps for each sample.

    Parameters
    ----------
    of : sequence of sequence of mapping
        Each as for `Pipeline`; an empty list leaves the sample as it is.
    weights : sequence of float, optional
        How often each is chosen, relative to the others; by default all alike.
    """

    def __init__(
        self, of: Sequence[Sequence[Mapping[str, Any]]], weights: Sequence[float] | None = None
    ) -> None:
        if not of:
            raise BadInput("of must name at least one list of steps")
        self.pipelines = [Pipeline([steps] if isinstance(steps, Mapping) else steps) for steps in of]
        self.weights = [1.0] * len(of) if weights is None else [float(w) for w in weights]
        if len(self.weights) != len(of) or min(self.weights) < 0 or sum(self.weights) <= 0:
            raise BadInput(f"weights must be {len(of)} numbers from 0, one for each list, not {weights!r}")

    def __call__(self, degraded: Tensor, clean: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        which = draws.choice(self.weights)
        for number, pipeline in enumerate(self.pipelines):
            for step, probability in pipeline.steps:
                chosen = (draws.uniform() < probability) & (which == number)
                degraded, clean = apply_to_some(step, chosen, degraded, clean, draws)
        return degraded, clean
