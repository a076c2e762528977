"""How much memory a job may use."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch

from kbnet_plugin.inference import device as memory
from kbnet_plugin.inference.device import free_memory

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("limit", "used", "free"),
    [(None, None, 8000), ("max", 5000, 8000), (3000, 1000, 2000), (90000, 1000, 8000), (3000, 4000, 0)],
)
def test_both_machine_and_container_limit_memory(monkeypatch, tmp_path, limit, used, free):
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=8000))
    if limit is not None:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text(f"{used}\n")
    assert free_memory(CPU) == free


def test_memory_is_found_without_sysconf(monkeypatch):
    monkeypatch.delattr(os, "sysconf")
    assert free_memory(CPU) > 0
