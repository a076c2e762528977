"""The cards of the shipped models: a YAML head, which programs maintain, and Markdown, which people write."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import yaml

from benchmarks.harness.measure import ROOT
from kbnet_plugin.files import atomic_path

MODELS = ROOT / "kbnet_plugin" / "zoo" / "data"

LIBRARY = "kbnet"

HUGGING_FACE = ("license", "library_name", "tags", "datasets", "metrics")
"""Fields that Hugging Face reads from the head of a card."""


def read_card(path: Path) -> tuple[dict[str, Any], str]:
    """Read the head and the text of a card.

    Raises
    ------
    ValueError
        If there is no head, or it is not a mapping; the message names the file.
    """
    start, fence, rest = path.read_text(encoding="utf-8").partition("---\n")
    head, closed, text = rest.partition("\n---\n")
    if start or not fence or not closed:
        raise ValueError(f"{path}: not a card, which begins with a head in YAML between two lines '---'")
    try:
        facts = yaml.safe_load(head)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: the head is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(facts, dict):
        raise ValueError(f"{path}: the head contains no keys")
    return facts, text


def write_card(path: Path, facts: dict[str, Any], text: str) -> None:
    """Write a card, whole or not at all."""
    head = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=110)
    with atomic_path(path) as temporary:
        temporary.write_text(f"---\n{head}---\n{text}", encoding="utf-8")


def missing_fields(facts: dict[str, Any]) -> list[str]:
    """Return the fields of `HUGGING_FACE` that a head lacks."""
    return [field for field in HUGGING_FACE if not facts.get(field)]


def default_tags(task: str) -> list[str]:
    """Return tags for a new card."""
    tags = ["image-restoration", {"denoise": "image-denoising"}.get(task, task), LIBRARY, "pytorch"]
    return list(dict.fromkeys(tags))


def sha256(path: Path) -> str:
    """Hash a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
