"""Where a run's messages go: the console, a file, TensorBoard."""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from basicsr.utils.logger import initialized_logger
from tqdm import tqdm

from kbnet_plugin.errors import BadInput, one_line

from .experiment import archive_of
from .options import Options

logger = logging.getLogger("basicsr")


class _Console(logging.Handler):
    """Writes to standard output, above any progress bar; standard error is for errors only."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record))


class _File(logging.FileHandler):
    """A log file that loses lines on a full disk, which the next checkpoint reports."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        pass

    def close(self) -> None:
        with suppress(OSError):
            super().close()


def _thread_failed(args: threading.ExceptHookArgs) -> None:
    """Print nothing of TensorBoard's thread and a full disk: the next value that is added raises it again."""
    if not isinstance(args.exc_value, OSError):
        threading.__excepthook__(args)


def to_console(rank: int) -> None:
    """Start BasicSR's logger; until `to_file`, it shows warnings only, as building the parts logs a lot."""
    stop()
    console = _Console()
    console.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.addHandler(console)
    logger.propagate = False
    logger.setLevel(logging.WARNING if rank == 0 else logging.ERROR)
    initialized_logger["basicsr"] = True  # else BasicSR adds a console of its own


def to_file(options: Options, kind: str) -> None:
    """Log everything from here on, and also to ``<kind>_<name>_<time>.log``."""
    if options["rank"] != 0:
        return
    folder = options["path"]["log"]
    os.makedirs(folder, exist_ok=True)
    file = _File(
        os.path.join(folder, f"{kind}_{options['name']}_{time.strftime('%Y%m%d_%H%M%S')}.log"),
        encoding="utf-8",
    )
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s: %(message)s"))
    logger.addHandler(file)
    logger.setLevel(logging.INFO)


def tensorboard(options: Options, start: int) -> Any:
    """Open a TensorBoard writer in ``tb_logger/<name>`` if the options enable it; wandb mirrors it.

    Parameters
    ----------
    options : dict
    start : int
        Iteration to resume after: TensorBoard leaves out what an earlier part of the run has written of later
        ones. At 0, the folder of an earlier run is moved aside, as its experiment is.

    Raises
    ------
    BadInput
        If the folder cannot be written, or wandb does not start.
    """
    settings = options["logger"]
    if not settings["use_tb_logger"] or options["rank"] != 0:
        return None
    if (wandb := settings.get("wandb") or {}).get("project"):
        _start_wandb(options, wandb)
    from torch.utils.tensorboard import SummaryWriter

    folder = os.path.join(options["root_path"], "tb_logger", options["name"])
    try:
        if start == 0 and os.path.isdir(folder):
            os.rename(folder, archive_of(Path(folder)))
        threading.excepthook = _thread_failed
        return SummaryWriter(folder, purge_step=start + 1)
    except OSError as error:
        raise BadInput(f"cannot write to {folder}: {error.strerror or one_line(error)}") from error


def _start_wandb(options: Options, settings: Options) -> None:
    try:
        import wandb

        resume = settings.get("resume_id")
        wandb.init(
            id=resume,
            resume="allow" if resume else None,
            name=options["name"],
            config=options["as_given"],
            project=settings["project"],
            sync_tensorboard=True,
        )
    except Exception as error:  # of its own kinds: no account, no network
        raise BadInput(
            f"logger.wandb: {one_line(error)}; log in with wandb login, or set WANDB_MODE=offline"
        ) from error


def stop() -> None:
    """Close the handlers, so that the next run in this process starts afresh."""
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    threading.excepthook = threading.__excepthook__
    initialized_logger.pop("basicsr", None)
