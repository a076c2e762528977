"""``basicsr test``: evaluate weights on test sets."""

from __future__ import annotations

import logging
from pathlib import Path

from torch.utils.data import DataLoader

from kbnet_plugin.errors import BadInput

from . import logs
from .options import Options
from .registry import build_model
from .train import choose_device, make_dataset
from .val_sets import check_sets
from .validation import validate

logger = logging.getLogger("basicsr")


def test(options: Options) -> int:
    """Evaluate on every test set, or on the validation sets if there is none."""
    choose_device(options)
    path = options["path"]
    if not path.get("pretrain_network_g"):
        trained = Path(path["models"], "net_g_latest.pth")
        if not trained.is_file():
            raise BadInput(
                "nothing to test: path.pretrain_network_g names no weights, "
                f"and there is no {trained} from training"
            )
        path["pretrain_network_g"] = str(trained)
    loaders = [DataLoader(make_dataset(label, d)) for label, d in options["datasets"].items()]
    check_sets(options, loaders)
    model = build_model(options)
    logs.to_file(options, "test")
    for note in options["notes"]:
        logger.info("note: %s", note)
    logger.info("testing %s", path["pretrain_network_g"])
    for loader in loaders:
        validate(model, loader, options["name"], None, options["val"]["save_img"])
    return 0
