"""Where a run's messages go: the console, a file, TensorBoard."""

from __future__ import annotations

import logging
import os
import time
from typing import Any

from basicsr.utils.logger import init_tb_logger, initialized_logger
from tqdm import tqdm

from .options import Options

logger = logging.getLogger("basicsr")


class _Console(logging.Handler):
    """Writes to standard output, above any progress bar; standard error is for errors only."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record))


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
    file = logging.FileHandler(
        os.path.join(folder, f"{kind}_{options['name']}_{time.strftime('%Y%m%d_%H%M%S')}.log"),
        encoding="utf-8",
    )
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s: %(message)s"))
    logger.addHandler(file)
    logger.setLevel(logging.INFO)


def tensorboard(options: Options) -> Any:
    """Open a TensorBoard writer in ``tb_logger/<name>`` if the options enable it; wandb mirrors it."""
    settings = options["logger"]
    if not settings["use_tb_logger"] or options["rank"] != 0:
        return None
    if (wandb := settings.get("wandb") or {}).get("project"):
        import wandb as service

        resume = wandb.get("resume_id")
        service.init(
            id=resume,
            resume="allow" if resume else None,
            name=options["name"],
            config=options,
            project=wandb["project"],
            sync_tensorboard=True,
        )
    return init_tb_logger(os.path.join(options["root_path"], "tb_logger", options["name"]))


def stop() -> None:
    """Close the handlers, so that the next run in this process starts afresh."""
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    initialized_logger.pop("basicsr", None)
