"""The README: short, with the commands that continuous integration runs; its pictures are light."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_picture_of_the_readme_is_there():
    shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)|<img src=\"([^\"]+)\"", README)
    paths = [ROOT / (one or other) for one, other in shown]
    assert len(paths) >= 1
    assert [path for path in paths if not path.is_file()] == []


def test_the_readme_is_short_and_leads_to_the_pages():
    assert len(README.splitlines()) <= 120
    assert len(set(re.findall(r"\]\((docs/[\w/-]+\.md)\)", README))) >= 5


def test_the_readme_shows_both_commands():
    assert re.findall(r"(?m)^make (\w+) ", README) == ["demo", "test"]
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").rstrip().endswith("make test")


def test_the_pictures_of_the_pages_are_there_and_each_is_shown():
    pages = "".join(
        p.read_text(encoding="utf-8") for p in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    )
    pictures = [path for path in (ROOT / "docs").rglob("*") if path.suffix in {".png", ".jpg"}]
    assert len(pictures) >= 3
    unused = [path.name for path in pictures if path.parent.name != "models" and path.name not in pages]
    assert unused == []


def test_the_pictures_of_the_plugin_take_less_than_a_megabyte():
    pictures = list((ROOT / "docs" / "napari").iterdir())
    assert {path.suffix for path in pictures} <= {".png", ".jpg"}
    assert 0 < sum(path.stat().st_size for path in pictures) < 1_000_000
