"""Choose the images of each batch, their crop size and their random numbers.

Every sample of a run has a number. Its image, crop, flips and noise follow from that number and the seed
alone: neither the number of workers nor an interruption changes them, and no epoch repeats another.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate as running_sum
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler, default_collate, get_worker_info

from kbnet_plugin.errors import BadInput, one_line

from .options import Options, count


class Ticket(NamedTuple):
    """A request for one sample: index of the image, crop size (None: the dataset's own), seed."""

    image: int
    crop: int | None
    seed: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Stages:
    """Progressive training: batch per process and crop size for each range of iterations."""

    ends: tuple[int, ...]
    batches: tuple[int, ...]
    crops: tuple[int | None, ...]

    @classmethod
    def from_options(cls, dataset: Options, where: str = "datasets.train", accumulate: int = 1) -> Stages:
        """Read ``mini_batch_sizes``, ``iters``, ``gt_sizes``, or ``batch_size_per_gpu`` and ``gt_size``.

        The batch of a step is `accumulate` times as large.
        """
        keys = ("iters", "mini_batch_sizes", "gt_sizes")
        given = [key for key in keys if dataset.get(key) is not None]
        if not given:
            crop = count(dataset, "gt_size", where) if dataset.get("gt_size") is not None else None
            return cls((1,), (accumulate * count(dataset, "batch_size_per_gpu", where),), (crop,))
        if missing := [key for key in keys if key not in given]:
            raise BadInput(f"{where}: {given[0]} requires {' and '.join(missing)}, of the same length")
        columns = []
        for key in keys:
            values = dataset[key] if isinstance(dataset[key], list) else [dataset[key]]
            columns.append([count({key: value}, key, where) for value in values])
        if len({len(column) for column in columns}) != 1:
            lengths = ", ".join(f"{key} {len(column)}" for key, column in zip(keys, columns, strict=True))
            raise BadInput(
                f"{where}: {', '.join(keys)} must have the same length, one value per stage: {lengths}"
            )
        iters, batches, crops = columns
        return cls(tuple(running_sum(iters)), tuple(b * accumulate for b in batches), tuple(crops))

    def at(self, iteration: int) -> tuple[int, int | None]:
        """Return batch and crop of an iteration, counted from 1; the last stage has no end."""
        stage = min(bisect_left(self.ends, iteration), len(self.ends) - 1)
        return self.batches[stage], self.crops[stage]


class StageBatchSampler(Sampler[list[Ticket]]):
    """Batches of tickets for the iterations ``start + 1 .. total``, for one of `world` processes.

    The images come in a stream of shuffled passes, and a batch may span two: no image is dropped, and a
    dataset smaller than the batch is repeated.

    Attributes
    ----------
    sizes : deque of int
        Number of images of each batch that was requested; whoever uses a batch takes its number away.
    """

    def __init__(
        self,
        length: int,
        stages: Stages,
        total: int,
        *,
        start: int = 0,
        samples: int = 0,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        place: Callable[[int], int] = int,
    ) -> None:
        self.length, self.stages, self.total, self.start = length, stages, total, start
        self.samples, self.rank, self.world, self.seed, self.shuffle = samples, rank, world, seed, shuffle
        self.place, self.sizes = place, deque[int]()
        self._pass: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return max(self.total - self.start, 0)

    def __iter__(self) -> Iterator[list[Ticket]]:
        first = self.samples
        for iteration in range(self.start + 1, self.total + 1):
            batch, crop = self.stages.at(self.place(iteration))
            self.sizes.append(batch)
            mine = range(first + self.rank * batch, first + (self.rank + 1) * batch)
            yield [Ticket(self._image(number), crop, (self.seed, number)) for number in mine]
            first += batch * self.world

    def _image(self, number: int) -> int:
        epoch, place = divmod(number, self.length)
        if not self.shuffle:
            return place
        if self._pass is None or self._pass[0] != epoch:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.length)
            self._pass = (epoch, order)
        return int(self._pass[1][place])


def seed_everything(*key: int) -> None:
    """Seed Python's, NumPy's and torch's global generators from integers."""
    first, second = np.random.SeedSequence(key).generate_state(2, np.uint64).tolist()
    random.seed(first)
    np.random.seed(second % 2**32)
    torch.manual_seed(first)


class Reproducible(Dataset[Any]):
    """Reads any BasicSR dataset by ticket, with the global generators seeded for each sample.

    An error is returned as a `Failure`, because an exception from a worker becomes a page of traceback.
    """

    def __init__(self, dataset: Any, label: str) -> None:
        self.dataset, self.label = dataset, label

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, ticket: Ticket) -> Any:
        worker = get_worker_info() is not None
        states = None if worker else (random.getstate(), np.random.get_state(), torch.get_rng_state())
        try:
            # Not `seed_everything`: a forked worker must not touch CUDA's generators.
            first, second = np.random.SeedSequence(ticket.seed).generate_state(2, np.uint64).tolist()
            random.seed(first)
            np.random.seed(second % 2**32)
            torch.default_generator.manual_seed(first)
            if ticket.crop is not None:
                self.dataset.opt["gt_size"] = ticket.crop  # where BasicSR's datasets read it
            return self.dataset[ticket.image]
        except BadInput as error:
            return Failure(f"{self.label}: {one_line(error)}")
        except Exception as error:
            return Failure(
                f"{self.label}: {self._name(ticket.image)}: {type(error).__name__}: {one_line(error)}"
            )
        finally:
            if states is not None:
                random.setstate(states[0])
                np.random.set_state(states[1])
                torch.set_rng_state(states[2])

    def _name(self, index: int) -> str:
        paths = getattr(self.dataset, "paths", None)
        return str(paths[index]) if isinstance(paths, list) and index < len(paths) else f"image {index}"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a sample could not be read."""

    message: str


def collate(samples: list[Any]) -> Any:
    """Stack samples, or return the first failure."""
    return next((s for s in samples if isinstance(s, Failure)), None) or default_collate(samples)
