"""Several processes: start, agree, end."""

from __future__ import annotations

import os
import warnings
from contextlib import suppress

import torch
import torch.distributed as dist

from kbnet_plugin.errors import BadInput, one_line

_control: dist.ProcessGroup | None = None


def start(launcher: str) -> tuple[int, int]:
    """Join the processes that torchrun started; rank and count. NCCL with CUDA, gloo without."""
    global _control
    world = int(os.environ.get("WORLD_SIZE", 1))
    if launcher == "none":
        if world > 1:
            raise BadInput("torchrun started several processes: add --launcher pytorch")
        return 0, 1
    if missing := [key for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if key not in os.environ]:
        raise BadInput(
            f"--launcher pytorch needs {missing[0]}: "
            "start with torchrun --nproc_per_node=N --no-python basicsr train ..."
        )
    cuda = torch.cuda.is_available()
    if cuda:
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise BadInput(f"{torch.cuda.device_count()} GPUs but process {local}: lower --nproc_per_node")
        torch.cuda.set_device(local)
    # DDP copies such gradients; it costs little, and the user cannot change it.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    try:
        dist.init_process_group("nccl" if cuda else "gloo")
    except (dist.DistError, RuntimeError, ValueError) as error:
        said = one_line(error)
        if "EADDRINUSE" in said or "address already in use" in said.lower():
            raise BadInput(
                f"port {os.environ.get('MASTER_PORT')} is in use by another program; "
                "name a free one: torchrun --master_port=..."
            ) from error
        raise BadInput(f"the processes cannot reach each other: {said}") from error
    # Small agreements go over gloo, because on NCCL each would wait for the GPU.
    _control = dist.new_group(backend="gloo") if cuda else dist.group.WORLD
    return dist.get_rank(), dist.get_world_size()


class Lost(RuntimeError):  # noqa: N818 - reads as the state of the job
    """Another process of the job has ended."""


def any_rank(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    return bool(total(torch.tensor([int(flag)])).item())


def total(values: torch.Tensor) -> torch.Tensor:
    """Sum of a CPU tensor over the processes; raises `Lost` when one of them is gone."""
    if dist.is_initialized():
        try:
            dist.all_reduce(values, group=_control)
        except RuntimeError as error:
            raise Lost(one_line(error)) from error
    return values


def wait() -> None:
    """Wait for all processes."""
    any_rank(False)


def stop() -> None:
    """Leave the group, if there is one."""
    global _control
    _control = None
    if dist.is_initialized():
        with suppress(RuntimeError):  # the others may be gone
            dist.destroy_process_group()
