"""The page of samples shows every degradation."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from kbnet_plugin.degradations import DEGRADATIONS, Degradation
from tools import degradation_samples as samples


def test_every_degradation_has_a_row_of_five_that_differ():
    named = samples.rows()
    assert set(named) == set(DEGRADATIONS) - {"OneOf"}
    for each in named.values():
        assert len(each) == samples.COLUMNS
        assert len({caption for caption, _ in each}) == samples.COLUMNS


def test_a_new_class_has_a_row_of_its_own(monkeypatch):
    class Same(Degradation):
        def __call__(self, degraded, clean, draws):
            return degraded, clean

    monkeypatch.setitem(DEGRADATIONS, "Same", Same)
    assert samples.rows()["Same"] == [(f"seed {i}", {}) for i in range(samples.COLUMNS)]


def test_the_page_is_drawn_from_own_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(samples, "DEGRADATIONS", {"JPEG": DEGRADATIONS["JPEG"]})
    picture = tmp_path / "own.png"
    Image.fromarray(np.full((170, 200), 99, np.uint8)).save(picture)
    target = tmp_path / "page.jpg"
    assert samples.main([str(picture), "-o", str(target)]) == 0
    assert "1 degradations" in capsys.readouterr().out
    page = np.asarray(Image.open(target).convert("L"))
    assert (abs(page.astype(int) - 99) < 3).mean() > 0.7


@pytest.mark.parametrize(("size", "said"), [((20, 300), "smaller than"), (None, "no such file")])
def test_unfit_pictures_are_refused(size, said, tmp_path, capsys):
    picture = tmp_path / "own.png"
    if size:
        Image.fromarray(np.zeros(size, np.uint8)).save(picture)
    assert samples.main([str(picture), "-o", str(tmp_path / "page.jpg")]) == 2
    assert said in capsys.readouterr().err


def test_the_file_stays_within_its_limit():
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)
    content = samples.compressed(Image.fromarray(noise))
    assert len(content) <= samples.LIMIT
    assert Image.open(io.BytesIO(content)).size == (700, 700)
