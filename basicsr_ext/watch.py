"""Notice losses and gradients that are not finite, without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class NotFiniteError(Exception):
    """A loss, a gradient or a weight became NaN or infinite."""


class Watch:
    """Watches the steps of a model that does not watch its own.

    A step with a gradient that is not finite does not change the weights; on CUDA, optimizers that are not
    fused make it with a gradient of 0, since to leave it out they would have to wait for the device.

    Parameters
    ----------
    optimizers : sequence of Optimizer
    device : torch.device
        Of the network.
    """

    def __init__(self, optimizers: Sequence[Optimizer], device: torch.device) -> None:
        self._device = device
        self._gradients: list[Tensor] = []
        self._unread: list[tuple[int, Tensor, list[str]]] = []
        for optimizer in optimizers:
            optimizer.register_step_pre_hook(self._guard)
            optimizer.register_step_post_hook(_release)

    def _guard(self, optimizer: Optimizer, *_: Any) -> None:
        weights = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not weights or hasattr(optimizer, "found_inf"):  # which a GradScaler sets: overflows are its task
            return
        finite = nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None]).isfinite()
        self._gradients.append(finite.to(self._device))
        if self._device.type == "cuda" and optimizer.defaults.get("fused"):
            optimizer.found_inf = 1 - finite.float()  # type: ignore[attr-defined]
        elif self._device.type == "cuda":
            for weight in weights:
                weight.grad = torch.where(finite, weight.grad, 0)
        elif not finite:
            for weight in weights:
                weight.grad = None

    def note(self, iteration: int, losses: Mapping[str, Any], images: list[str]) -> None:
        """Remember whether the losses and gradients of a step are finite."""
        values = [torch.as_tensor(value, device=self._device) for value in losses.values()]
        flags = [value.detach().isfinite().all() for value in values] + self._gradients
        self._gradients = []
        if flags:
            self._unread.append((iteration, torch.stack(flags).all(), images))

    def check(self) -> None:
        """Read what `note` has remembered; on a GPU, this waits for those steps.

        Raises
        ------
        NotFiniteError
            If a loss or a gradient was not finite.
        """
        if not self._unread:
            return
        unread, self._unread = self._unread, []
        flags = torch.stack([flag for _, flag, _ in unread]).tolist()
        for (iteration, _, images), finite in zip(unread, flags, strict=True):
            if not finite:
                of = f" (images {', '.join(images)})" if images else ""
                raise NotFiniteError(f"the loss or its gradient is not finite at iter {iteration}{of}")


def _release(optimizer: Optimizer, *_: Any) -> None:
    if hasattr(optimizer, "found_inf"):
        del optimizer.found_inf


def require_finite(networks: Iterable[nn.Module], iteration: int) -> None:
    """Raise `NotFiniteError` if a weight is NaN or infinite, or a buffer, which may be infinite, is NaN."""
    networks = list(networks)
    weights = [p.detach() for net in networks for p in net.parameters() if p.numel()]
    buffers = [b for net in networks for b in net.buffers() if b.is_floating_point()]
    broken = [w.isfinite().all().logical_not() for w in weights] + [b.isnan().any() for b in buffers]
    if broken and bool(torch.stack([flag.to(broken[0].device) for flag in broken]).any()):
        raise NotFiniteError(f"a weight or running statistic is not finite at iter {iteration}")


def images_of(batch: Any) -> list[str]:
    """Return the names of a batch's images, as far as its dataset gives them."""
    keys = [key for key in ("lq_path", "gt_path", "key") if isinstance(batch, dict) and key in batch]
    return [str(name) for name in batch[keys[0]]] if keys else []
