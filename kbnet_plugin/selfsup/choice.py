"""Choose between the model that training started from and what it became, without clean pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..arrays.intensity import Range
from ..nn import KBNet_l, KBNet_s
from .noise import DOUBTFUL, NoiseCurve, independence, measure_curve
from .planes import Planes
from .sure import PairRisk, Risk, SingleRisk, applied, scale_correction

_WINDOWS = 64  # for the choice
_WATCHED = 12  # while training
_MEASURED = 160  # for the noise, all kinds together
_FEWEST = 4
_EACH = _FEWEST, 24  # for the noise of one kind
_KINDS = 64  # that are measured one by one
_DOUBT = 0.002  # of the noise's variance; systematic error of SURE, by which differences may be wrong
_WORTH = 0.01  # least relative change of the error that counts

Network = KBNet_s | KBNet_l


class Choice(NamedTuple):
    """The model that is kept.

    Attributes
    ----------
    network : KBNet_s or KBNet_l
    gain : float or None
        Estimated PSNR above that of the start, in dB; 0 for the start itself, None from scratch.
    share : float
        How far the weights moved from the start to the trained ones: 0 to 1.
    shrinkage : float
        Factor of the correction.
    said : str
        What was chosen and why, in one line.
    """

    network: Network
    gain: float | None
    share: float
    shrinkage: float
    said: str


class Judge:
    """Measures denoisers on crops from all over a source.

    Parameters
    ----------
    planes : Planes
    scale : (float, float)
        Values that become 0 and 1.
    side : int
        Side of the crops, in pixels.
    denoiser : KBNet_s or KBNet_l
        Shows the noise; may be `start`.
    start : KBNet_s or KBNet_l, optional
        What training starts from.
    name : str
        Of `start`.
    pairs : list of (int, int), optional
        Numbers of planes that show the same scene; errors are then measured between them.
    others : Planes, optional
        The recording that the second numbers of the pairs refer to; by default `planes`.
    correlated : bool
        Whether noise is known to be correlated, so that nothing can be measured.
    device : torch.device
    """

    def __init__(
        self,
        planes: Planes,
        scale: tuple[float, float],
        side: int,
        *,
        denoiser: Network,
        start: Network | None,
        name: str = "",
        pairs: list[tuple[int, int]] | None = None,
        others: Planes | None = None,
        correlated: bool = False,
        device: torch.device,
    ) -> None:
        self._planes, self._others = planes, others or planes
        self._scale = Range(scale[0], scale[1] - scale[0])
        self._side = min(side, *(min(planes.size(n)) for n in range(len(planes))))
        self._denoiser = denoiser.cpu()
        self._start = None if start is None else start.to(device)
        self._name, self._pairs, self._device = name, pairs, device
        self._correlated = correlated
        self._before: dict[int, Tensor] = {}  # output of the start, by the number of crops

    @cached_property
    def doubt(self) -> bool:
        """Whether noise seems not to be independent from pixel to pixel, or not to be there."""
        if self._correlated:
            return False
        first = self._windows[0]
        return bool(first) and self._pairs is None and independence(first) < DOUBTFUL

    @cached_property
    def noise(self) -> list[NoiseCurve]:
        """Noise of every kind of plane (see `Planes.kind`); of all together if there are too many kinds."""
        kinds = np.array([self._planes.kind(number) for number in range(len(self._planes))])
        if kinds.max() >= _KINDS:
            kinds[:] = 0
        count = int(np.clip(_MEASURED // (kinds.max() + 1), *_EACH))
        generator = np.random.default_rng(1)
        curves = []
        for kind in range(kinds.max() + 1):
            numbers = np.flatnonzero(kinds == kind)
            drawn = (int(n) for n in generator.choice(numbers, min(count, self._enough(numbers))))
            crops = [self._crop(self._planes, n, self._window(n, generator)) for n in drawn]
            curves.append(measure_curve([crop for crop in crops if np.isfinite(crop).all()], self._denoiser))
        return curves

    def gain(self, network: Network) -> float | None:
        """Estimate how much better a network is than the start, in dB; than the input from scratch."""
        network = network.to(self._device)
        found = self._measure(_WATCHED, network)
        if found is None:
            return None
        measure, before, output = found
        after = measure(network, output)
        error = float(after.variance.mean())
        if self._start is not None:
            error = measure(self._start, before).error()
        return 10 * math.log10(error / after.error())

    def choose(self, trained: Mapping[str, Network]) -> Choice:
        """Choose the network with the least estimated error, and scale its correction.

        Parameters
        ----------
        trained : mapping
            Networks from training, by a name.
        """
        networks = [network.to(self._device) for network in trained.values()]
        found = self._measure(_WINDOWS, networks[-1])
        if found is None:
            why = "the noise is correlated" if self._correlated else "values are missing everywhere"
            return Choice(networks[-1].cpu(), None, 1.0, 1.0, f"not measured: {why}")
        measure, before, output = found
        last = measure(networks[-1], output)
        if self._start is None:
            risks = [*map(measure, networks[:-1]), last]
            network, risk = min(zip(networks, risks, strict=True), key=lambda pair: _scaled(pair[1]))
            below = 10 * math.log10(float(risk.variance.mean()) / risk.error(risk.shrinkage))
            scale_correction(network, risk.shrinkage)
            said = f"measured without truth: the error is about {below:.1f} dB below the noise"
            return Choice(network.cpu(), None, 1.0, risk.shrinkage, said)
        start = measure(self._start, before)
        middle = between(self._start, networks[-1])
        candidates = [*((1.0, network) for network in networks), (0.5, middle)]
        risks = [*map(measure, networks[:-1]), last, measure(middle)]
        best = min(range(len(candidates)), key=lambda n: _scaled(risks[n]))
        (share, network), risk = candidates[best], risks[best]
        shrinkage = risk.shrinkage if _scaled(risk) < (1 - _WORTH) * risk.error() else 1.0
        gain = 10 * math.log10(start.error() / risk.error(shrinkage))
        # By chance, the noise of these crops may favour either: the difference must exceed its own error.
        apart = risk.errors(shrinkage) - start.errors()
        least = apart.std() / len(apart) ** 0.5
        if self._pairs is None:
            least = max(least, _DOUBT * start.variance.mean())
        if not apart.mean() < -least:
            doubt = f"not clearly better than {self._name} ({gain:+.2f} dB), which is kept"
            said = f"measured without truth: {doubt}"
            return Choice(deepcopy(self._start).cpu(), 0.0, 0.0, 1.0, said)
        scale_correction(network, shrinkage)
        what = "the trained model" if share == 1 else f"the mean of {self._name} and the trained model"
        said = f"measured without truth: {what} is {gain:.2f} dB better than {self._name}, and is kept"
        return Choice(network.cpu(), gain, share, shrinkage, said)

    def _measure(
        self, count: int, trained: Network
    ) -> tuple[SingleRisk | PairRisk, Tensor | None, Tensor] | None:
        """Return what measures a number of crops, and the output of the start and of a network for them."""
        first, second, numbers = self._windows
        if self._correlated or not first:
            return None
        noisy = self._tensor(first[:count])
        after = applied(trained, noisy)
        if self._start is not None and count not in self._before:
            self._before[count] = applied(self._start, noisy)
        before = self._before.get(count)
        if self._pairs is not None:
            return PairRisk(noisy, self._tensor(second[:count])), before, after
        curves = self.noise
        shown = [] if before is None else [before, after]
        kinds = (self._planes.kind(n) if len(curves) > 1 else 0 for n in numbers[:count])
        return SingleRisk(noisy, [curves[kind] for kind in kinds], shown), before, after

    def _tensor(self, pictures: list[NDArray[np.float32]]) -> Tensor:
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous().to(self._device)

    @cached_property
    def _windows(self) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]], list[int]]:
        """Crops without missing values, in 0..1; the same of the other planes, if paired; their planes."""
        generator = np.random.default_rng(0)
        first: list[NDArray[np.float32]] = []
        second: list[NDArray[np.float32]] = []
        numbers = []
        pairs = self._pairs or [(n, n) for n in range(len(self._planes))]
        # Every plane as often as any other, and the first ones from everywhere.
        count = min(_WINDOWS, self._enough([one for one, _ in pairs]))
        chosen = [int(n) for n in generator.permutation(np.arange(count) * len(pairs) // count)]
        for one, two in (pairs[n] for n in chosen):
            window = self._window(one, generator)
            crop = self._crop(self._planes, one, window)
            other = crop if self._pairs is None else self._crop(self._others, two, window)
            if np.isfinite(crop).all() and np.isfinite(other).all():
                first.append(crop)
                second.append(other)
                numbers.append(one)
        return first, second, numbers

    def _enough(self, numbers: Iterable[int]) -> int:
        """Return how many crops have twice the pixels of some planes: more would show nothing new."""
        pixels = sum(height * width for height, width in map(self._planes.size, numbers))
        return max(_FEWEST, -(-2 * pixels // self._side**2))

    def _window(self, number: int, generator: np.random.Generator) -> tuple[slice, slice]:
        top, left = (int(generator.integers(n - self._side + 1)) for n in self._planes.size(number))
        return slice(top, top + self._side), slice(left, left + self._side)

    def _crop(self, planes: Planes, number: int, window: tuple[slice, slice]) -> NDArray[np.float32]:
        return self._scale.apply(planes.read(number, window))


def _scaled(risk: Risk) -> float:
    return risk.error(risk.shrinkage)


def between(start: Network, end: Network) -> Network:
    """Return a network with the mean of two networks' weights."""
    middle = deepcopy(end)
    with torch.no_grad():
        for weight, other in zip(middle.parameters(), start.parameters(), strict=True):
            weight.lerp_(other.to(weight), 0.5)
    return middle
