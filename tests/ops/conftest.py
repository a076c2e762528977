from __future__ import annotations

import pytest
import torch

from kbnet_plugin.ops import native


@pytest.fixture(params=native.available_isas() or ("plain",))
def isa(request, monkeypatch):
    """Compute with each instruction set that this machine has."""
    monkeypatch.setenv("KBNET_KBA_ISA", request.param)
    return request.param


@pytest.fixture
def threads():
    """Set the number of threads for the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
