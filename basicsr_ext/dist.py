"""Several processes: join their group, exchange flags and sums, leave."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
import torch.distributed as dist

from kbnet_plugin.errors import BadInput, one_line

_control: dist.ProcessGroup | None = None


def start(launcher: str) -> tuple[int, int]:
    """Join the processes that torchrun started, by NCCL with CUDA, else gloo; returns rank and world size."""
    global _control
    world = int(os.environ.get("WORLD_SIZE", 1))
    if launcher == "none":
        if world > 1:
            raise BadInput("torchrun started several processes: add --launcher pytorch")
        return 0, 1
    if missing := [key for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if key not in os.environ]:
        raise BadInput(
            f"--launcher pytorch needs the variable {missing[0]}; "
            "start with torchrun --nproc_per_node=N --no-python basicsr train ..."
        )
    cuda = torch.cuda.is_available()
    if cuda:
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise BadInput(
                f"process {local} has no GPU (there are {torch.cuda.device_count()}); lower --nproc_per_node"
            )
        torch.cuda.set_device(local)
    # DDP copies such gradients, which costs little; users cannot change it.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    try:
        dist.init_process_group("nccl" if cuda else "gloo")
    except (dist.DistError, RuntimeError, ValueError) as error:
        message = one_line(error)
        if "EADDRINUSE" in message or "address already in use" in message.lower():
            raise BadInput(
                f"port {os.environ.get('MASTER_PORT')} is in use by another program; "
                "choose a free one: torchrun --master_port=..."
            ) from error
        raise BadInput(f"the processes cannot reach each other: {message}") from error
    # Flags and sums use gloo, because NCCL would wait for the GPU each time.
    group = dist.new_group(backend="gloo") if cuda else dist.group.WORLD
    assert not isinstance(group, int)  # what processes outside the group get
    _control = group
    return dist.get_rank(), dist.get_world_size()


class PeerLostError(RuntimeError):
    """Another process of the job has ended."""


def any_rank(flag: bool) -> bool:
    """Return whether the flag is set in any process."""
    return bool(total(torch.tensor([int(flag)])).item())


def total(values: torch.Tensor) -> torch.Tensor:
    """Sum a CPU tensor over the processes; raises `PeerLostError` if one has ended."""
    if dist.is_initialized():
        try:
            dist.all_reduce(values, group=_control)
        except RuntimeError as error:
            raise PeerLostError(one_line(error)) from error
    return values


@contextmanager
def together() -> Iterator[None]:
    """Raise in every process when the block raises `BadInput` in one of them."""
    failed: BadInput | None = None
    try:
        yield
    except BadInput as error:
        failed = error
    if any_rank(failed is not None):
        raise failed or BadInput("another process of the job stopped; its own message says why")


def wait() -> None:
    """Wait for all processes."""
    any_rank(False)


def stop() -> None:
    """Leave the group, if any."""
    global _control
    _control = None
    if dist.is_initialized():
        with suppress(RuntimeError):  # the others may be gone
            dist.destroy_process_group()
