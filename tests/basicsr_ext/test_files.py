"""Which files a dataset finds, and how their values become 0..1."""

from __future__ import annotations

import os

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from basicsr_ext.datasets import Dataset_CleanImages, Dataset_PairedImage
from basicsr_ext.depth import Depth
from basicsr_ext.files import image_files, picture_name, read_listing
from basicsr_ext.resident import Resident
from basicsr_ext.sampler import Ticket
from basicsr_ext.val_sets import check_sets
from kbnet_plugin.errors import BadInput


def clean(root, phase="val", **keys):
    options = {"type": "Dataset_CleanImages", "phase": phase, "dataroot_gt": str(root), "degradations": []}
    return Dataset_CleanImages(options | keys)


def paired(root, phase="val", **keys):
    options = {"type": "Dataset_PairedImage", "phase": phase, "dataroot_gt": f"{root}/gt"}
    return Dataset_PairedImage(options | {"dataroot_lq": f"{root}/lq"} | keys)


def stack(path, pages):
    assert cv2.imwritemulti(str(path), pages)


def gray(picture, seed, dtype=np.uint16):
    return picture(channels=1, seed=seed, dtype=dtype)


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path, picture):
    (tmp_path / "set").mkdir()
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "set" / "a.png"), picture())
    cv2.imwrite(str(tmp_path / "elsewhere" / "deep" / "b.png"), picture())
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "again").symlink_to(tmp_path / "elsewhere" / "deep")
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "gone").symlink_to(tmp_path / "nowhere")
    assert list(image_files(str(tmp_path / "set"))) == ["a", "again/b", "linked/deep/b"]


def test_names_in_a_listing_may_have_spaces_shapes_and_partners(tmp_path):
    listing = tmp_path / "meta.txt"
    listing.write_text(
        "plain.png\n\nwith space.png\nsub folder/a b.png (480,480,3)\nno suffix (1, 2)\nx.png (4,5,3) 1\n"
        "clean 1.png, noisy 1.png\na, b.tiff,c.JPG\n"
    )
    assert read_listing(str(listing)) == [
        ["plain.png"], ["with space.png"], ["sub folder/a b.png"], ["no suffix"], ["x.png"],
        ["clean 1.png", "noisy 1.png"], ["a, b.tiff", "c.JPG"],
    ]  # fmt: skip


def test_a_listing_pairs_files_of_any_names(pairs, picture):
    (pairs / "lq" / "1.png").rename(pairs / "lq" / "the noisy one.png")
    listing = pairs / "meta.txt"
    listing.write_text("1.png, the noisy one.png\n0.png (24,20,3)\n")
    dataset = paired(pairs, meta_info_file=str(listing))
    assert [os.path.basename(p["lq"]) for p in dataset.paths] == ["the noisy one.png", "0.png"]
    assert torch.equal((dataset[0]["gt"] * 255).round() // 2, (dataset[0]["lq"] * 255).round())
    listing.write_text("0.png, 1.png, 2.png\n")
    with pytest.raises(BadInput, match=r"expected one name, or 2 \(gt, lq\)"):
        paired(pairs, meta_info_file=str(listing))


def test_pages_of_a_tiff_are_images_of_their_own(tmp_path, picture):
    for role in ("gt", "lq"):
        (tmp_path / role).mkdir()
    pages = [gray(picture, seed) for seed in range(3)]
    stack(tmp_path / "gt" / "a.tif", pages)
    stack(tmp_path / "lq" / "a.tif", [page // 2 for page in pages])
    dataset = paired(tmp_path, "train", in_ch=1, gt_size=8)
    assert [p["gt"] for p in dataset.paths] == [f"{tmp_path}/gt/a.tif[{n}]" for n in range(3)]
    for number, page in enumerate(pages):
        assert np.array_equal(dataset.read("gt", dataset.paths[number]["gt"])[..., 0], page)
        assert np.array_equal(dataset.read("lq", dataset.paths[number]["lq"])[..., 0], page // 2)
    batch = Resident(dataset, "cpu").batch([Ticket(2, 8, (0, 0))])
    assert batch["gt_path"] == [f"{tmp_path}/gt/a.tif[2]"]
    stack(tmp_path / "lq" / "a.tif", pages[:2])
    with pytest.raises(BadInput, match=r"gt/a.tif and .*lq/a.tif differ in pages, 2 and 3"):
        paired(tmp_path, in_ch=1)


def test_pages_of_different_size_and_stacks_behind_one_header_are_refused(tmp_path, picture):
    stack(tmp_path / "pyramid.tif", [gray(picture, 0), gray(picture, 0)[::2, ::2]])
    with pytest.raises(BadInput, match=r"pyramid.tif has 2 pages of different size"):
        clean(tmp_path)
    os.unlink(tmp_path / "pyramid.tif")
    text = "ImageJ=1.53\nimages=4\nslices=4\n"
    Image.fromarray(gray(picture, 0)).save(tmp_path / "whole.tif", description=text)
    with pytest.raises(BadInput, match=r"whole.tif is an ImageJ stack of 4 images"):
        clean(tmp_path)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_fewer_bits_in_16_are_as_bright_as_16(tmp_path, bits):
    full = (1 << bits) - 1
    image = np.linspace(0, full, 24 * 20).astype(np.uint16).reshape(24, 20)
    for number in range(2):
        cv2.imwrite(str(tmp_path / f"{number}.png"), image // (number + 1))
    dataset = clean(tmp_path, "train", in_ch=1, gt_size=20, geometric_augs=False)
    assert dataset.depth.bits == bits
    for number in range(2):
        expected = torch.from_numpy((image // (number + 1)).astype(np.float32) / full)
        whole = clean(tmp_path, in_ch=1)[number]["gt"][0]
        assert torch.allclose(whole, expected, atol=1 / 65535)
    batch = Resident(dataset, "cpu").batch([Ticket(0, 20, (0, 0))])
    assert batch["gt"].max() > 0.8
    assert (dataset.depth.note != "") == (bits < 16)


def test_a_range_of_the_options_holds_for_all_files(tmp_path, picture):
    cv2.imwrite(str(tmp_path / "a.tif"), gray(picture, 0).astype(np.float32))
    cv2.imwrite(str(tmp_path / "b.png"), gray(picture, 1))
    with pytest.raises(BadInput, match=r"a.tif contains floats from .* set range"):
        clean(tmp_path, in_ch=1)
    dataset = clean(tmp_path, "train", in_ch=1, gt_size=24, pad_small=True, range=[100, 40100])
    for number, seed in enumerate((0, 1)):
        expected = (gray(picture, seed).astype(np.float32) - 100) / 40000
        path = dataset.paths[number]["gt"]
        assert np.allclose(dataset.read("gt", path)[..., 0], expected, atol=1e-6)
    Resident(dataset, "cpu")
    with pytest.raises(BadInput, match=r"range must be two rising numbers"):
        clean(tmp_path, in_ch=1, range=[1, 1])


def test_an_image_with_more_bits_than_the_others_is_named():
    depth = Depth(None, [("a.png", np.full((2, 2, 1), 4000, np.uint16))])
    assert depth.apply(np.full((1, 1, 1), 4095, np.uint16), "b.png") == 65535
    with pytest.raises(BadInput, match=r"c.png contains values up to 4,096, but .* only 12 bits; set range"):
        depth.apply(np.full((1, 1, 1), 4096, np.uint16), "c.png")


def test_training_and_validation_of_different_depth_or_channels_are_refused(tmp_path, picture):
    for name, shift in (("train", 4), ("val", 2)):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "a.png"), gray(picture, 0) >> shift)
    train = clean(tmp_path / "train", "train", in_ch=1, gt_size=8)

    def check(val):
        loader = torch.utils.data.DataLoader(val)
        sets = {"val": {"name": "v", "phase": "val"}}
        check_sets({"datasets": sets, "val": {}, "notes": (notes := [])}, [loader], train)
        return notes

    with pytest.raises(BadInput, match=r"datasets.train contain 12 bits, but those of datasets.val 14"):
        check(clean(tmp_path / "val", name="v", in_ch=1))
    with pytest.raises(BadInput, match=r"datasets.val has in_ch: 3, but datasets.train in_ch: 1"):
        check(clean(tmp_path / "train", name="v"))
    with pytest.raises(BadInput, match=r"datasets.val and datasets.train have 16-bit files, but only one"):
        check(clean(tmp_path / "val", name="v", in_ch=1, range=[0, 4095]))
    notes = check(clean(tmp_path / "train", name="v", in_ch=1))
    assert any("12 bits: 4,095 becomes 1" in note for note in notes)


def test_no_two_images_share_the_name_of_their_pictures():
    roots = {"dataroot_gt": "data/gt", "dataroot_lq": "data/lq.lmdb"}
    names = {
        "data/gt/a.png": "a",
        "data/gt/sub/a.png": "sub__a",
        "data/gt/s.tif[12]": "s__12",
        "data/lq.lmdb:x/0001.5": "x__0001.5",
        "/other/a.PNG": "a",
    }
    assert {path: picture_name(roots, path) for path in names} == names
