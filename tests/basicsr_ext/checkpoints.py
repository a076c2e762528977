"""Read and compare the weights that a run in this folder has saved."""

from __future__ import annotations

import torch
from torch import Tensor

from kbnet_plugin.zoo.weights import read_state_dict


def weights(name: str = "tiny", label: int | str = "latest", key: str = "params") -> dict[str, Tensor]:
    return read_state_dict(f"experiments/{name}/models/net_g_{label}.pth", key=key)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
