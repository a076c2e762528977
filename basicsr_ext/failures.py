"""Say in one line why a run stopped, what is saved, and what may help."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from traceback import extract_tb
from typing import TYPE_CHECKING

import torch

from kbnet_plugin.errors import BadInput, one_line

from . import dist
from .model import ImageCleanModel
from .saver import SavingError
from .watch import NotFiniteError

if TYPE_CHECKING:
    from .run import Run

logger = logging.getLogger("basicsr")


@contextmanager
def one_line_errors(run: Run, received: list[int]) -> Iterator[None]:
    """Save what is good, and turn errors of a run into `BadInput`; `received` are the signals that it got."""
    try:
        yield
    except NotFiniteError as error:
        hints = "check these images, or lower train.optim_g.lr"
        if isinstance(run.model, ImageCleanModel):
            hints += ", use train.precision: fp32, or skip such batches with train.on_nan: skip"
        raise BadInput(f"{one_line(error)}; {run.rescue()}; {hints}") from error
    except SavingError as error:
        raise BadInput(f"{one_line(error)}; {run.checkpoints.kept()}") from error
    except BadInput as error:
        raise BadInput(f"{one_line(error)}; {run.rescue()}") from error
    except (RuntimeError, MemoryError) as error:
        if (message := _explain(run, error, bool(received))) is None:
            logger.warning("%s", run.rescue())
            raise
        raise BadInput(message) from error
    except (ConnectionError, EOFError) as error:
        if not any("multiprocessing" in frame.filename for frame in extract_tb(error.__traceback__)):
            raise BadInput(f"{one_line(error)}; {run.rescue()}") from error
        # The pipe of a dead worker broke before torch noticed, whose own error may follow.
        with suppress(RuntimeError):
            time.sleep(0.2)
        raise BadInput(_worker_died(run, one_line(error))) from error
    except OSError as error:  # a full disk, for example
        text = one_line(error)
        if error.filename is None and error.strerror:
            text = f"cannot write: {error.strerror.lower()}"
        raise BadInput(f"{text}; {run.rescue()}") from error
    except Exception:
        logger.warning("%s", run.rescue())
        raise


def _worker_died(run: Run, text: str) -> str:
    return (
        f"a data worker died ({text}), perhaps for lack of memory; lower "
        f"datasets.train.num_worker_per_gpu; {run.rescue()}"
    )


def _explain(run: Run, error: BaseException, stopping: bool) -> str | None:
    text = one_line(error)
    # A lost process shows up in DDP's backward pass or in our own exchanges.
    lost = isinstance(error, dist.PeerLostError) or re.search(r"gloo|NCCL|[Cc]onnection", text)
    if run.world > 1 and lost:
        # On a GPU, an exchange that never ends would let the copy for a checkpoint wait too.
        kept = run.rescue() if run.model.device.type == "cpu" else run.checkpoints.kept()
        if stopping:
            return f"stopped at iter {run.iteration:,}; {kept}"
        return (
            f"another process of the job stopped at iter {run.iteration:,}; its own message says why; "
            f"{kept} ({text})"
        )
    if "DataLoader worker" in text:
        return _worker_died(run, text)
    # By module name: importing torch._dynamo for its error classes takes seconds.
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return (
            f"train.compile: {text.split(' Set TORCHDYNAMO')[0]}; on a CPU it requires a C++ compiler "
            f"(g++): install one, or set train.compile: false; {run.rescue()}"
        )
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text:
        return _out_of_memory(run, text)
    return None


def _out_of_memory(run: Run, text: str) -> str:
    i = max(run.iteration, 1)
    batch, crop = run.stages.at(run.schedule.at(i))
    staged = run.options["datasets"]["train"].get("mini_batch_sizes")
    keys = ("mini_batch_sizes", "gt_sizes") if staged else ("batch_size_per_gpu", "gt_size")
    requested = re.search(r"[Tt]ried to allocate ([\d.]+ ?\w+)", text)
    more = f", which requested {requested[1]} more" if requested else ""
    return (
        f"out of memory on {run.model.device} at iter {i:,}, a step of {batch} images "
        f"with a crop of {crop}{more}; lower datasets.train.{keys[0]} (and raise train.accumulate "
        f"in proportion) or {keys[1]}, set train.activation_checkpointing: true "
        f"or train.precision: bf16; {run.rescue()}"
    )
