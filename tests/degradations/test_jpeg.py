"""JPEG against libjpeg, as Pillow carries it."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from kbnet_plugin.degradations import DEGRADATIONS, Draws
from kbnet_plugin.degradations.jpeg import compress, quantization_tables


def pillow(picture, quality, subsampling):
    file = io.BytesIO()
    # Pillow's 2 is 4:2:0, and its 0 is 4:4:4.
    Image.fromarray(picture).save(file, "JPEG", quality=quality, subsampling=2 if subsampling else 0)
    opened = Image.open(file)
    return np.asarray(opened, np.float32), opened.quantization


def tensor(picture):
    return torch.from_numpy(np.atleast_3d(picture).copy()).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("quality", [1, 5, 30, 49, 50, 75, 92, 100])
def test_the_tables_are_libjpegs(quality):
    _, tables = pillow(np.zeros((8, 8, 3), np.uint8), quality, False)
    made = quantization_tables(np.array([quality]))[0]
    assert [tables[i] for i in range(2)] == made.reshape(2, 64).tolist()


@pytest.mark.parametrize("subsampling", [False, True])
@pytest.mark.parametrize("quality", [10, 50, 75, 95, 100])
def test_pixels_are_libjpegs(quality, subsampling):
    picture = data.coffee()[100:221, 200:351]  # neither side a multiple of 8
    expected, _ = pillow(picture, quality, subsampling)
    made = compress(tensor(picture), np.array([quality]), np.array([subsampling]))
    levels = made[0].permute(1, 2, 0).numpy() * 255
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-3)
    difference = np.abs(levels - expected)
    assert difference.mean() < 0.3
    assert np.quantile(difference, 0.999) < 12
    assert difference.max() < 40
    # Far nearer than the picture itself is.
    assert difference.mean() < np.abs(picture - expected).mean() / 3


@pytest.mark.parametrize("quality", [20, 90])
def test_gray_pixels_are_libjpegs(quality):
    picture = data.camera()[:99, 50:153]
    expected, _ = pillow(picture, quality, False)
    made = compress(tensor(picture), np.array([quality]), np.array([True]))[0, 0].numpy() * 255
    assert np.abs(made - expected).mean() < 0.1


def test_each_sample_has_its_own_quality_and_subsampling():
    picture = tensor(data.coffee()[100:164, 200:264])
    batch = compress(picture.expand(3, -1, -1, -1), np.array([20, 90, 90]), np.array([True, True, False]))
    for i, (quality, subsampling) in enumerate([(20, True), (90, True), (90, False)]):
        alone = compress(picture, np.array([quality]), np.array([subsampling]))
        assert torch.equal(batch[i], alone[0])
    assert not torch.equal(batch[1], batch[2])


def test_the_step_draws_quality_and_subsampling():
    picture = tensor(data.coffee()[100:164, 200:264]).expand(6, -1, -1, -1)
    draws = Draws([(0, i) for i in range(6)])
    made, clean = DEGRADATIONS["JPEG"](quality=[30, 90])(picture, picture, draws)
    assert clean is picture
    assert len({round(float((m - picture[0]).square().mean() * 1e6), 3) for m in made}) == 6
