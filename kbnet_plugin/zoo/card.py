"""What the card of a model says, for packages that other programs and sites read."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .registry import Model

AUTHORS = ("The kbnet developers",)
"""Of the shipped models, as in CITATION.cff."""

PAPER = "Zhang et al., KBNet: Kernel Basis Network for Image Restoration, arXiv 2303.02881, 2023"
"""What to cite for the networks, as in CITATION.cff."""

DOI = "10.48550/arXiv.2303.02881"
"""Of `PAPER`."""


def read_card(model: Model) -> tuple[dict[str, str], str]:
    """Read the card of a model.

    Parameters
    ----------
    model : Model
        If it has no card, its header says what there is to say.

    Returns
    -------
    head : dict
        From each key of the head, if there is one, to its lines of YAML, key included.
    text : str
        Markdown.
    """
    text = model.card.read_text(encoding="utf-8") if model.card else ""
    head = ""
    if text.startswith("---\n"):
        head, closed, rest = text.removeprefix("---\n").partition("\n---\n")
        head, text = (head, rest) if closed else ("", text)
    if not text.strip():
        text = f"# {model.title or model.name}\n\nA {model.variant} with {model.parameters:,} parameters.\n"
    keys = re.finditer(r"^(\w+):.*(?:\n(?!\w).*)*", head, re.MULTILINE)
    return {key[1]: key[0] for key in keys}, text
