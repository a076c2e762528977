"""Denoisers side by side: time and memory for a whole picture, and the PSNR that they buy."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from kbnet_plugin.errors import one_line

from . import denoisers, measure
from .denoisers import Denoiser
from .progress import note

Size = tuple[int, int]
SLOW = 60.0
"""Seconds above which one call has to do."""
PROBE = 128
"""Side of the picture by which the first estimate is made."""
FAILURES = (ArithmeticError, ImportError, LookupError, MemoryError, OSError, RuntimeError, ValueError)
"""What a method may raise without ending the others."""


@dataclass
class Timed:
    """A denoiser at one size: seconds of its calls, the first of them to warm up; or the reason for none."""

    seconds: list[float] = field(default_factory=list)
    peak: int | None = None
    reason: str = ""

    @property
    def timing(self) -> measure.Timing | None:
        return measure.summary(self.seconds[1:] or self.seconds) if self.seconds else None


@dataclass
class Judged:
    """A denoiser: what it is, its PSNR for each image, and its times by size."""

    method: Denoiser
    psnr: list[float] = field(default_factory=list)
    sizes: dict[tuple[int, int], Timed] = field(default_factory=dict)
    reason: str = ""


class Shipped:
    """Denoisers side by side; everything measured is in `found`, also after an interrupt.

    Parameters
    ----------
    methods : mapping
        From names to denoisers.
    device : str
        For those of torch.
    data : Path or None
        Folder with test sets and ``peers``.
    """

    def __init__(self, methods: Mapping[str, Denoiser], device: str, data: Path | None) -> None:
        self.found = {name: Judged(method) for name, method in methods.items()}
        self._device, self._data = device, data
        self._images, self._count = "", 0  # of the test
        self._calls: dict[str, denoisers.Denoise] = {}
        self._rate: dict[str, float] = {}  # seconds per pixel

    def time(self, size: Size, repeats: int, limit: float) -> None:
        """Time one picture in rounds, the first to warm up; what would take more than `limit` is left out."""
        self._start()
        pixels = size[0] * size[1]
        waiting = {}
        for name, judged in self.found.items():
            timed = judged.sizes[size] = Timed(reason=judged.reason)
            if name not in self._calls:
                continue
            if (estimate := self._rate[name] * pixels) > limit:
                timed.reason = f"would take about {estimate:.0f} s, more than --limit {limit:g}"
            else:
                waiting[name] = timed
        for turn in range(1 + repeats):
            noisy = denoisers.picture(*size, seed=turn)  # another each time, for nobody to remember
            for name, timed in list(waiting.items()):
                measure.show(f"{_named(size)}, round {turn + 1}/{1 + repeats}: {name}")
                try:
                    timed.seconds.append(_seconds(partial(self._calls[name], noisy)))
                except FAILURES as error:
                    timed.reason = one_line(error) or type(error).__name__
                    timed.seconds.clear()
                if timed.reason or (not turn and timed.seconds[0] > SLOW):
                    del waiting[name]
                if timed.timing:
                    self._rate[name] = timed.timing.median / pixels
        measure.show("")

    def _start(self) -> None:
        probe = denoisers.picture(PROBE, PROBE)
        for name, judged in self.found.items():
            if name in self._calls or judged.reason:
                continue
            measure.show(f"starting {name}")
            try:
                call = judged.method.make(self._device)
                call(probe)  # loads libraries and compiles kernels
                self._rate[name] = _seconds(partial(call, probe)) / PROBE**2
            except FAILURES as error:
                judged.reason = one_line(error) or type(error).__name__
            else:
                self._calls[name] = call

    def measure_memory(self, size: Size) -> None:
        """Measure the peak memory of whatever was timed at this size."""
        for name, judged in self.found.items():
            if judged.sizes[size].seconds:
                measure.show(f"{_named(size)}, memory: {name}")
                try:
                    judged.sizes[size].peak = denoisers.peak_memory(name, size, self._device, self._data)
                except RuntimeError as error:
                    note(f"memory of {name} not measured: {one_line(error)}")
        measure.show("")

    def judge(self, most: int | None) -> None:
        """Compute the PSNR of the first `most` test images, or of all; needs more packages than timing."""
        try:
            self._images, pairs = denoisers.images(self._data, most)
        except ModuleNotFoundError as error:
            note(f"left out: PSNR (pip install {denoisers.PIP.get(error.name or '', error.name)})")
            return
        self._count = len(pairs)
        for i, (noisy, truth) in enumerate(pairs):
            for name, call in self._calls.items():
                if self.found[name].method.trained:
                    measure.show(f"image {i + 1}/{len(pairs)}: {name}")
                    self.found[name].psnr.append(denoisers.psnr(call(noisy), truth))
        measure.show("")

    def text(self) -> str:
        """Format a table for each size, with the reasons for what is missing below it."""
        out = []
        for size in dict.fromkeys(s for judged in self.found.values() for s in judged.sizes):
            rows, reasons = [], []
            timings = {n: j.sizes[size].timing if size in j.sizes else None for n, j in self.found.items()}
            base = timings.get("FFDNet")
            for name, judged in self.found.items():
                timing, timed = timings[name], judged.sizes.get(size, Timed())
                single = "n/f" if timing is None else f"{timing.median:.3g} s"
                rows.append(
                    [
                        name,
                        str(timing) if timing and timing.calls > 1 else single,
                        f"{timing.median / base.median:.2f}x" if timing and base else "-",
                        "not measured" if timed.peak is None else f"{timed.peak / 2**20:.0f} MiB",
                        "n/f" if (quality := self.quality(name)) is None else f"{quality:.2f}",
                    ]
                )
                if timing is None and timed.reason:
                    reasons.append(f"{name}: {timed.reason}")
            header = ["method", "median (quartiles)", "vs. FFDNet", "peak extra memory", "PSNR"]
            what = f"Denoising, {_named(size)}; ratios are of times: below 1 is faster. {self.caption}"
            out.append("\n".join([f"\n{what}\n", measure.table(header, rows), *reasons]))
        if untrained := [n for n, j in self.found.items() if not j.method.trained]:
            out.append(f"untrained for want of weights in DATA/peers: {', '.join(untrained)}")
        return "\n".join(out)

    @property
    def _judged(self) -> int:
        """Number of the images that all methods have restored which restored any."""
        return min((len(j.psnr) for j in self.found.values() if j.psnr), default=0)

    def quality(self, name: str) -> float | None:
        """Return the mean PSNR over the images that all methods have restored, unless this one has none."""
        values = self.found[name].psnr[: self._judged]
        return sum(values) / len(values) if values else None

    @property
    def caption(self) -> str:
        """What the PSNR is of."""
        done = f" ({self._judged} of them measured)" if self._judged < self._count else ""
        return f"PSNR in dB, σ {denoisers.SIGMA:g}: {self._images or 'none'}{done}."

    def content(self) -> dict[str, Any]:
        """Return what `benchmarks.harness.illustrate.shipped` reads."""
        return {
            "caption": self.caption,
            "methods": {
                name: {
                    "ours": judged.method.ours,
                    "psnr": self.quality(name),
                    "sizes": {
                        _named(size): {
                            "seconds": timed.timing,
                            "peak_extra_bytes": timed.peak,
                            "reason": timed.reason,
                        }
                        for size, timed in judged.sizes.items()
                    },
                }
                for name, judged in self.found.items()
            },
        }


def _named(size: Size) -> str:
    return f"{size[0]} x {size[1]}"


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()  # the result is in the host's memory, so there is nothing to wait for
    call()
    return time.perf_counter() - start
