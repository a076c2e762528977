"""BM3D on the test sets, with a stand-in for the package, whose license not everybody can accept."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import classical


def test_it_receives_sigma_and_is_compared_with_the_truth(monkeypatch, tmp_path, capsys):
    told = []

    def stand_in(picture, sigma):
        told.append((picture.shape, sigma))
        return picture

    monkeypatch.setitem(sys.modules, "bm3d", SimpleNamespace(bm3d=stand_in, bm3d_rgb=stand_in))
    for name, channels in (("photographs", (3,)), ("photographs-gray", ())):
        file = tmp_path / f"{name}.json"
        arguments = ["--set", name, "--sigma", "25", "--images", "2", "--json", str(file)]
        assert classical.main(arguments) == 0
        assert [shape[2:] for shape, _ in told] == [channels] * 2
        assert {sigma for _, sigma in told} == {25 / 255}
        told.clear()
        found = json.loads(file.read_text())["psnr"]
        # Clipping takes some of the noise away.
        noisy = -20 * np.log10(25 / 255)
        assert all(noisy < psnr < noisy + 2 for psnr in found.values())
        assert f"2/4 {list(found)[1]}: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "classical: requires a package: pip install bm3d\n"),
        (["--set", "Kodak24"], "classical: no Kodak24 in --data (or KBNET_DATA); get it from "),
        (["--set", "Kodak24", "--data", "nowhere"], "classical: no Kodak24 in --data"),
    ],
)
def test_what_is_missing_takes_one_line(arguments, said, monkeypatch, capsys):
    monkeypatch.delenv("KBNET_DATA", raising=False)
    monkeypatch.setitem(sys.modules, "bm3d", None)
    assert classical.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(said)
    assert error.count("\n") == 1
