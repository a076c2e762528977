"""Time in a training run: where in its schedule it is, how fast it goes, and when it ends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import torch


class Schedule:
    """Where in the schedule of the option file a run is.

    By default that is the number of its step. With a time limit the schedule follows the clock: whatever the
    speed, the run passes through all learning rates and stages of its option file, and ends in time.

    Parameters
    ----------
    total : int
        Iterations of the schedule (``train.total_iter``).
    minutes : float, optional
        Time for the whole run, earlier parts of a resumed one included.
    began : float, optional
        When the command started, by `time.monotonic`; by default just now.
    seconds : float
        Time that earlier parts of the run took.
    start : float
        Iteration of the schedule at which this part begins.
    """

    def __init__(
        self,
        total: int,
        minutes: float | None = None,
        *,
        began: float | None = None,
        seconds: float = 0.0,
        start: float = 0.0,
    ) -> None:
        self.total, self.limit = total, None if minutes is None else 60 * minutes
        self.position = self._start = start
        self.reserve = 0.0
        self._earlier = seconds
        self._began = time.monotonic() if began is None else began
        self._first: float | None = None

    @property
    def by_clock(self) -> bool:
        """Whether the run has a time limit."""
        return self.limit is not None

    @property
    def done(self) -> float:
        """Share of the schedule that a run by the clock has passed, 0..1."""
        return self.position / self.total

    @property
    def seconds(self) -> float:
        """Time that the run has taken so far, earlier parts included."""
        return self._earlier + time.monotonic() - self._began

    @property
    def seconds_left(self) -> float:
        """Time left for steps: until the limit, less `reserve`, which is kept for what follows them."""
        assert self.limit is not None
        return self.limit - self.seconds - self.reserve

    def advance(self) -> float:
        """Return the position that the clock has reached, in iterations of the schedule."""
        now = time.monotonic()
        self._first = self._first or now
        left, done = max(self.seconds_left, 0.0), now - self._first
        share = 1.0 if left == 0 else done / (done + left)
        return self._start + (self.total - self._start) * share

    def at(self, iteration: int) -> int:
        """Return the iteration of the schedule, from 1, that a step is at."""
        return min(int(self.position) + 1, self.total) if self.by_clock else iteration


class Meter:
    """Speed since the last `restart`: steps, pixels, and the time that the network's own steps took.

    Parameters
    ----------
    device : torch.device
        Of the network. On a GPU, events measure the steps, since calls return before the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.restart()

    def restart(self) -> None:
        """Start to count again."""
        self.steps = self.pixels = self.images = 0
        self._since, self._network, self._paused = time.perf_counter(), 0.0, 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def network(self, images: int, pixels: int) -> Iterator[None]:
        """Measure a step of the network on a batch of `images` with `pixels` in all."""
        if self._cuda:
            events = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            events[0].record()
            yield
            events[1].record()
            self._events.append(events)
        else:
            before = time.perf_counter()
            yield
            self._network += time.perf_counter() - before
        self.steps, self.images, self.pixels = self.steps + 1, self.images + images, self.pixels + pixels

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave out what is not training, such as validation."""
        before = time.perf_counter()
        yield
        self._paused += time.perf_counter() - before

    @property
    def pace(self) -> float:
        """Seconds a step so far, without waiting for the device."""
        return (time.perf_counter() - self._since - self._paused) / self.steps if self.steps else 0.0

    def read(self) -> Speed:
        """Return the speed; on a GPU this waits for the last step."""
        if self._events:
            self._events[-1][1].synchronize()
            self._network += sum(a.elapsed_time(b) for a, b in self._events) / 1000
            self._events.clear()
        elapsed = max(time.perf_counter() - self._since - self._paused, 1e-9)
        return Speed(elapsed, self.steps, self.images, self.pixels, self._network)


class Speed:
    """What a `Meter` measured.

    Attributes
    ----------
    per_step : float
        Seconds.
    images, pixels : float
        Per second.
    outside : float
        Share of the time outside the network's own steps: data, logs, checkpoints; 0..1.
    """

    def __init__(self, elapsed: float, steps: int, images: int, pixels: int, network: float) -> None:
        self.per_step = elapsed / max(steps, 1)
        self.images, self.pixels = images / elapsed, pixels / elapsed
        self.outside = max(0.0, 1 - network / elapsed)

    def __str__(self) -> str:
        return (
            f"{self.per_step:.3g} s/it, {self.pixels / 1e6:.3g} Mpixels/s, "
            f"{self.outside:.1%} outside the network"
        )


def ending(seconds: float) -> str:
    """Say when a run ends that takes so many more seconds, as 'ends 21:43 (in 1:32:10)'."""
    now = datetime.now()
    end = now + timedelta(seconds=seconds)
    form = "%H:%M" if end.date() == now.date() else "%a %d %b %H:%M"
    return f"ends {end.strftime(form)} (in {timedelta(seconds=round(seconds))})"
