"""Shrink an option file to a few seconds on made data, with the same classes and sections."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

from tools.option_data import Section, make_data

TOTAL = 4
"""Iterations of a shrunken training."""

BATCH = 2

SMALL = {
    "num_feat": 16, "num_grow_ch": 8, "num_block": 1, "num_blocks": 1, "num_group": 1, "num_layer": 16,
    "num_extract_block": 1, "num_reconstruct_block": 1, "mid_channels": 16, "embed_dim": 60, "depths": 2,
    "num_heads": 2, "dim": 16, "num_refinement_blocks": 1, "width": 8, "enc_blk_nums": 1, "dec_blk_nums": 1,
    "middle_blk_num": 1, "n_blocks": 1, "n_feat": 16, "n_MRB": 1, "wf": 8, "num_style_feat": 16, "num_mlp": 2,
    "num_channel": 8, "num_blks": 1,
}  # fmt: skip
"""Largest values of networks' arguments that determine their size."""

LISTS_OF_ONE = ("depths", "num_heads")
"""Lists of which one element is left."""

SIDE = 64
"""Side of training crops, unless a network requires another."""


def shrink(options: Section, folder: Path) -> Section:
    """Return small options on data that this makes in `folder`."""
    small = deepcopy(options)
    scale = int(small.get("scale") or 1)
    small |= {"num_gpu": 0, "manual_seed": 0}
    networks = [v for k, v in small.items() if k.startswith("network_") and isinstance(v, dict)]
    crop, shown = _sides(networks)
    if "calculate_niqe" in str(small.get("val")):
        shown = max(shown, 240)  # it compares blocks of 96 pixels
    if scale == 3 and crop == SIDE:
        crop = 48
    for network in networks:
        _shrink_network(network, crop, scale)
    if any(network.get("type") == "TOFlow" for network in networks):
        scale = 1  # it takes enlarged frames
    frames = 5 if any(network.get("type") == "IconVSR" for network in networks) else 3  # the fewest that work
    if "gt_size" in small:  # Real-ESRGAN's, at the top
        small["gt_size"] = crop
        small["queue_size"] = 2 * BATCH
    small["datasets"] = {
        label: _shrink_dataset(label, section, folder / label, scale, crop, shown, frames)
        for label, section in small["datasets"].items()
        if section is not None
    }
    if small.get("train"):
        _shrink_training(small["train"])
    if small.get("val") is not None:
        small["val"] |= {
            "val_freq": TOTAL,
            "suffix": None,
            "save_img": small["val"].get("save_img", False),
        }
    small["logger"] = {"print_freq": 1, "save_checkpoint_freq": 1, "use_tb_logger": False}
    small["path"] = {k: v for k, v in (small.get("path") or {}).items() if v is not None}
    return small


def _sides(networks: list[Section]) -> tuple[int, int]:
    """Return the sides of training crops and of validation pictures that the networks can process."""
    kinds = {n.get("type") for n in networks}
    if "BasicVSRPlusPlus" in kinds or kinds >= {"BasicVSR", "VGGStyleDiscriminator"}:
        return 256, 256
    if kinds & {"BasicVSR", "IconVSR"}:
        return 144, 144  # their optical flow needs more than 32 pixels at a quarter of the size
    if "StyleGAN2Generator" in kinds:
        return 16, 16
    if "HiFaceGAN" in kinds:
        return 128, 128
    return (128 if "VGGStyleDiscriminator" in kinds else SIDE), 96


def _shrink_network(network: Section, crop: int, scale: int) -> None:
    for key, value in network.items():
        limit = SMALL.get(key)
        if limit is not None and isinstance(value, int):
            network[key] = min(value, limit)
        elif limit is not None and isinstance(value, list):
            network[key] = [min(v, limit) for v in value][: 1 if key in LISTS_OF_ONE else None]
        elif key in ("spynet_path", "edvr_path"):
            network[key] = None
        elif key in ("out_size", "crop_size", "input_size"):
            network[key] = crop
        elif key == "img_size":
            network[key] = crop // scale


def _shrink_dataset(
    label: str, section: Section, folder: Path, scale: int, crop: int, shown: int, frames: int
) -> Section:
    training = label.startswith("train")
    made = make_data(section, folder, scale, -(-crop // 48) * 48 if training and crop > 16 else shown)
    if not training:
        return made
    made |= {"num_worker_per_gpu": 0, "batch_size_per_gpu": BATCH, "prefetch_mode": None}
    if "gt_size" in made:
        made["gt_size"] = crop
    if made.get("gt_sizes"):  # progressive training
        stages = len(made["gt_sizes"])
        made["gt_sizes"] = [crop // 2] * (stages - 1) + [crop]
        made["mini_batch_sizes"] = [BATCH] * (stages - 1) + [1]
        made["iters"] = _split(TOTAL, stages)
    if made.get("type") == "REDSRecurrentDataset":
        made["num_frame"] = frames
    if "Recurrent" in str(made.get("type")):
        made["batch_size_per_gpu"] = 1
    if made.get("dataset_enlarge_ratio") not in (None, "auto"):
        made["dataset_enlarge_ratio"] = 10  # or stock BasicSR ends before the last iteration
    return made


def _split(total: int, parts: int) -> list[int]:
    return [max(1, total // parts + (i < total % parts)) for i in range(parts)]


def _shrink_training(train: Section) -> None:
    train["total_iter"] = TOTAL
    if (train.get("warmup_iter") or -1) > 0:
        train["warmup_iter"] = 2
    if train.get("perceptual_opt"):
        train["perceptual_opt"]["layer_weights"] = {"conv1_2": 0.1}
    for key in ("fix_flow", "tsa_iter"):
        if train.get(key):
            train[key] = TOTAL // 2
    scheduler = train.get("scheduler") or {}
    if "milestones" in scheduler:
        scheduler["milestones"] = [1 + i for i in range(len(scheduler["milestones"]))]
    if "periods" in scheduler:
        scheduler["periods"] = _split(TOTAL, len(scheduler["periods"]))
    if "T_max" in scheduler:
        scheduler["T_max"] = TOTAL
    if train.get("net_d_init_iters"):
        train["net_d_init_iters"] = 1


def for_testing(options: Section, weights: str | None) -> Section:
    """Return options that test trained weights on the validation sets, for both commands."""
    test = deepcopy(options)
    averaged = (test.pop("train", None) or {}).get("ema_decay")
    if str(test.get("model_type")).startswith("VideoRecurrent"):
        averaged = False  # it validates the network itself
    test["datasets"] = {k: d for k, d in test["datasets"].items() if not k.startswith("train")}
    path = {k: v for k, v in test["path"].items() if not k.startswith(("pretrain_network", "param_key"))}
    if weights:
        path |= {"pretrain_network_g": weights, "param_key_g": "params_ema" if averaged else "params"}
    test["path"] = path if weights else test["path"]
    test["name"] = f"{test['name']}_test"
    return test
