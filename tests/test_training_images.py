"""The check that no test picture is trained on finds copies, however they were changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from tools import training_images


@pytest.fixture
def data(tmp_path):
    """A folder with six training pictures and two others for tests."""
    generator = np.random.default_rng(0)
    for n in range(8):
        small = generator.integers(0, 256, (8, 12, 3), dtype=np.uint8)
        small[generator.random((8, 12)) < 0.5] //= 4
        picture = cv2.resize(small, (360, 240), interpolation=cv2.INTER_CUBIC)
        folder = tmp_path / ("train" if n < 6 else "test/Mine")
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{n}.png"), picture)
    (tmp_path / "list.txt").write_text("".join(f"{n}.png\n" for n in range(6)))
    return tmp_path


def run(data, capsys):
    status = training_images.main([str(data / "list.txt"), "--data", str(data)])
    return status, capsys.readouterr().out


def test_other_pictures_are_not_hits(data, capsys):
    status, out = run(data, capsys)
    assert status == 0
    assert "test/Mine: 2 pictures and 6, closest 0." in out


CHANGES = (
    lambda picture: picture,
    lambda picture: cv2.resize(picture, (253, 169), interpolation=cv2.INTER_AREA),
    lambda picture: picture[30:200, 50:300],
    lambda picture: cv2.copyMakeBorder(picture, 40, 20, 30, 60, cv2.BORDER_CONSTANT),
)


def test_planted_copies_are_found(data, capsys):
    mine = data / "test" / "Mine"
    for n, change in enumerate(CHANGES):
        picture = change(cv2.imread(str(data / "train" / f"{n}.png")))
        cv2.imwrite(str(mine / f"planted{n}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 60])
    shutil.copy(data / "train" / "5.png", mine / "renamed.png")
    status, out = run(data, capsys)
    assert status == 1
    hits = [line.split()[-2:] for line in out.splitlines() if "HIT" in line]
    planted = [[f"test/Mine/planted{n}.jpg", f"train/{n}.png"] for n in range(len(CHANGES))]
    assert sorted(hits) == [*planted, ["test/Mine/renamed.png", "train/5.png"]]
    assert "HIT 1.000 test/Mine/renamed.png" in out  # by its bytes
    assert "5 test pictures are among" in out


def test_a_missing_picture_is_named(data, capsys):
    os.remove(data / "train" / "0.png")
    assert training_images.main([str(data / "list.txt"), "--data", str(data)]) == 2
    assert "0.png" in capsys.readouterr().err


def test_the_lists_of_derain_and_denoising_leave_the_test_sets_out():
    zoo = Path(__file__).parents[1] / "options" / "zoo"
    photographs = set((zoo / "photographs.txt").read_text().split())
    assert set((zoo / "derain-pictures.txt").read_text().split()) < photographs
