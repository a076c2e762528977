"""What several test files share."""

from __future__ import annotations

import importlib.util
import os
import signal

import pytest
import torch

from kbnet_plugin import KBNet_l, KBNet_s, save_network

try:
    from qtpy import QtWidgets  # noqa: F401  (as pytest-qt does, which ends the session where that fails)
except Exception:
    pytest_plugins = []
else:
    pytest_plugins = ["pytestqt.plugin"]

# The networks here are tiny. Threads that wait for each other spin, and on a busy machine cost ten times
# what they save.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start

# A shell lets what it starts in the background ignore Ctrl-C, which some tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if importlib.util.find_spec("basicsr") is None:  # as on Python 3.13
    collect_ignore = ["basicsr_ext", "benchmarks", "selfsup", "tools"]

TINY_S = {"width": 8, "middle_blk_num": 1, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]}
TINY_L = {"dim": 24, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1, "heads": [1, 2, 2, 4]}


@pytest.fixture
def tiny_s():
    """Build a small KBNet_s; keywords replace its arguments."""
    return lambda **arguments: _seeded(KBNet_s, TINY_S | arguments)


@pytest.fixture
def tiny_l():
    """Build a small KBNet_l; keywords replace its arguments."""
    return lambda **arguments: _seeded(KBNet_l, TINY_L | arguments)


@pytest.fixture
def lively(tiny_s):
    """Build a small KBNet_s that changes its input, by a part that depends on all of its blocks."""

    def build(**arguments):
        network = tiny_s(**arguments)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if name.rsplit(".", 1)[-1] in ("beta", "gamma"):
                    parameter.fill_(0.3)
        return network

    return build


@pytest.fixture
def checkpoint(tmp_path, tiny_s):
    """Path of a small colour network's weights."""
    path = tmp_path / "tiny.pth"
    save_network(tiny_s(), path)
    return path


def _seeded(variant, arguments):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return variant(**arguments).eval()
