"""The README: what it shows is there, and light."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_picture_of_the_readme_is_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)|<img src=\"([^\"]+)\"", text)
    paths = [ROOT / (one or other) for one, other in shown]
    assert len(paths) >= 3
    assert [path for path in paths if not path.is_file()] == []


def test_the_pictures_of_the_plugin_take_less_than_a_megabyte():
    pictures = list((ROOT / "docs" / "napari").iterdir())
    assert {path.suffix for path in pictures} <= {".png", ".jpg"}
    assert 0 < sum(path.stat().st_size for path in pictures) < 1_000_000
