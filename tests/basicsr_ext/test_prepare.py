"""`kbnet prepare`."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from basicsr_ext.datasets import Dataset_PairedImage
from basicsr_ext.files import decode
from kbnet_plugin.cli import main


def read(path):
    return decode(Path(path).read_bytes(), str(path), 3)


@pytest.fixture
def rain(tmp_path, make_pairs):
    make_pairs(tmp_path, 2, height=50, width=40)
    source = tmp_path / "rain"
    source.mkdir()
    (tmp_path / "gt").rename(source / "target")
    (tmp_path / "lq").rename(source / "input")
    return source


def small(task, source, target, *more):
    return main(["prepare", task, str(source), str(target), "--crop", "32", "--step", "16", *more])


def test_crops_cover_the_pictures_in_both_roles_alike(rain, tmp_path, capsys):
    assert small("derain", rain, tmp_path / "out") == 0
    assert "12 crops of 2 pictures" in capsys.readouterr().out
    whole = {role: read(rain / role / "0.png") for role in ("target", "input")}
    starts = [(y, x) for y in (0, 16, 18) for x in (0, 8)]
    for number, (y, x) in enumerate(starts, 1):
        for role, image in whole.items():
            crop = read(tmp_path / "out" / f"{role}_crops" / f"0_s{number:03d}.png")
            assert np.array_equal(crop, image[y : y + 32, x : x + 32])


def test_an_interrupted_run_resumes_and_damage_is_found(rain, tmp_path, capsys):
    out = tmp_path / "out"
    assert small("derain", rain, out) == 0
    kept, lost = out / "target_crops/0_s002.png", out / "input_crops/0_s003.png"
    before, content = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    assert small("derain", rain, out) == 0
    assert lost.read_bytes() == content
    assert kept.stat().st_mtime_ns == before
    lost.write_bytes(content[:100])
    capsys.readouterr()
    assert small("derain", rain, out) == 2
    assert "0_s003.png was damaged and has been removed; run the command again" in capsys.readouterr().err
    assert small("derain", rain, out) == 0
    assert lost.read_bytes() == content


def test_the_databases_can_be_trained_on(rain, tmp_path):
    out = tmp_path / "out"
    assert small("derain", rain, out, "--lmdb") == 0
    assert not list(out.glob(".*.lmdb"))
    dataset = Dataset_PairedImage(
        {
            "phase": "train",
            "gt_size": 32,
            "dataroot_gt": str(out / "target_crops.lmdb"),
            "dataroot_lq": str(out / "input_crops.lmdb"),
            "io_backend": {"type": "lmdb"},
        }
    )
    assert len(dataset) == 12
    assert dataset[5]["lq"].shape == (3, 32, 32)


def test_sidd_is_found_in_its_scenes_with_the_validation_blocks(tmp_path, picture, capsys):
    from scipy.io import savemat

    for scene in ("0001_001_S6", "0002_001_S6"):
        folder = tmp_path / "sidd" / "Data" / scene
        folder.mkdir(parents=True)
        for role in ("GT", "NOISY"):
            cv2.imwrite(str(folder / f"{scene[:4]}_{role}_SRGB_010.PNG"), picture(40, 40))
    blocks = np.stack([np.stack([picture(8, 8, seed=i) for i in range(3)])] * 2)
    for kind in ("Gt", "Noisy"):
        savemat(
            tmp_path / "sidd" / f"Validation{kind}BlocksSrgb.mat", {f"Validation{kind}BlocksSrgb": blocks}
        )
    assert small("sidd", tmp_path / "sidd", tmp_path / "out") == 0
    assert "8 crops of 2 pictures" in (said := capsys.readouterr().out)
    assert "6 validation blocks" in said
    assert len(list((tmp_path / "out/train/target_crops").glob("*.png"))) == 8
    assert np.array_equal(read(tmp_path / "out/val/input_crops/0002.png"), blocks[0, 1])


def test_16_bits_and_the_three_views_of_dual_pixels_are_kept(tmp_path, picture):
    for role in ("inputL", "inputR", "target"):
        (tmp_path / "dpdd" / role).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "dpdd" / role / "a.png"), picture(32, 32, dtype=np.uint16))
    assert small("defocus", tmp_path / "dpdd", tmp_path / "out") == 0
    for role in ("inputL", "inputR", "target"):
        assert read(tmp_path / "out" / f"{role}_crops" / "a_s001.png").dtype == np.uint16


def test_clean_pictures_keep_their_folders_in_the_name(tmp_path, picture):
    (tmp_path / "clean" / "sub").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "clean" / "sub" / "a.jpg"), picture(20, 20))
    assert small("gaussian", tmp_path / "clean", tmp_path / "out") == 0
    assert [p.name for p in (tmp_path / "out/target_crops").glob("*.png")] == ["sub_a_s001.png"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("derain", "no"), "no is not a folder"),
        (("derain", "."), "target does not exist"),
        (("defocus", "."), "none of the folders"),
        (("sidd", "."), "no *_GT_SRGB_*.PNG"),
        (("gaussian", "."), "contains no images"),
    ],
)
def test_a_folder_with_another_layout(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert small(*arguments, "out") == 2
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_pairs_of_different_size_and_damaged_pictures_are_named(rain, tmp_path, picture, capsys):
    cv2.imwrite(str(rain / "input" / "1.png"), picture(50, 41))
    assert small("derain", rain, tmp_path / "out") == 2
    assert "1.png is 41x50" in capsys.readouterr().err
    (rain / "input" / "1.png").write_bytes(b"nothing")
    assert small("derain", rain, tmp_path / "out") == 2
    assert "1.png cannot be read" in capsys.readouterr().err
