"""Learning rate schedules."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kbnet_plugin.errors import BadInput


class CosineAnnealingRestartCyclicLR(LRScheduler):
    """Cosine cycles, each with its own length, weight and floor.

    In cycle i, t steps after its start, lr = eta_i + w_i * (base - eta_i) / 2 * (1 + cos(pi * t / period_i));
    a cycle whose floor is the base rate is constant. After the last cycle the rate stays the same. It depends
    on the step alone, so a run may resume with other periods.

    Parameters
    ----------
    optimizer : Optimizer
    periods : sequence of int
        Steps of each cycle.
    restart_weights, eta_mins : sequence of float
        One per cycle.
    last_epoch : int
        Step to continue after.

    References
    ----------
    Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", arXiv 1608.03983.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        periods: Sequence[int],
        restart_weights: Sequence[float] = (1,),
        eta_mins: Sequence[float] = (0,),
        last_epoch: int = -1,
    ) -> None:
        if not len(periods) == len(restart_weights) == len(eta_mins):
            raise BadInput(
                "scheduler: periods, restart_weights and eta_mins must have the same length, "
                f"not {len(periods)}, {len(restart_weights)} and {len(eta_mins)}"
            )
        self.periods, self.restart_weights, self.eta_mins = periods, restart_weights, eta_mins
        self.ends = list(accumulate(periods))
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """Return the rate of each parameter group at the current step."""
        step = min(self.last_epoch, self.ends[-1])
        cycle = bisect_left(self.ends, step)
        start = self.ends[cycle] - self.periods[cycle]
        wave = 0.5 * (1 + math.cos(math.pi * (step - start) / self.periods[cycle]))
        floor, weight = self.eta_mins[cycle], self.restart_weights[cycle]
        return [floor + weight * (base - floor) * wave for base in self.base_lrs]
