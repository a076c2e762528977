"""The cards of the shipped models: a head in YAML, which programs keep, and Markdown, which people write."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import yaml

from benchmarks.harness.measure import ROOT
from kbnet_plugin.files import atomic_path

MODELS = ROOT / "kbnet_plugin" / "zoo" / "data"


def read_card(path: Path) -> tuple[dict[str, Any], str]:
    """Head and text of a card.

    Raises
    ------
    ValueError
        If it has no head, or one that is no mapping; the file is named.
    """
    start, fence, rest = path.read_text(encoding="utf-8").partition("---\n")
    head, closed, text = rest.partition("\n---\n")
    if start or not fence or not closed:
        raise ValueError(f"{path}: no card: it begins with a head in YAML between two lines '---'")
    try:
        facts = yaml.safe_load(head)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: the head is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(facts, dict):
        raise ValueError(f"{path}: the head holds no keys")
    return facts, text


def write_card(path: Path, facts: dict[str, Any], text: str) -> None:
    """Write a card, whole or not at all."""
    head = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=110)
    with atomic_path(path) as temporary:
        temporary.write_text(f"---\n{head}---\n{text}", encoding="utf-8")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
