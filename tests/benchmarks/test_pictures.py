"""Pictures of the report: they show what they claim."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from skimage.metrics import peak_signal_noise_ratio

from benchmarks.harness import illustrate, pictures
from benchmarks.harness.pictures import Point
from benchmarks.harness.results import Cell, Column, Measured, Published, Row, Table
from kbnet_plugin.nn.layers import KBAMixin


@pytest.fixture(scope="module")
def truth():
    return data.astronaut()[:160, 100:260]


@pytest.fixture(scope="module")
def noisy(truth):
    noise = np.random.default_rng(0).normal(0, 25 / 255, truth.shape)
    return np.clip(truth / 255 + noise, 0, 1)


def decoded(panel) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(panel.content)))


def test_crops_show_the_same_pixels_of_every_image_with_psnr_of_the_whole(truth, noisy):
    picture = pictures.crops("crops", truth, {"noisy": noisy, "same": truth}, size=32)
    top, left = pictures.busiest(truth, 32)
    shown = [decoded(p) for p in picture.panels]
    square = np.s_[top : top + 32, left : left + 32]
    eight = np.rint(noisy * 255).astype(np.uint8)
    assert np.array_equal(shown[0], eight[square])
    assert np.array_equal(shown[2], truth[square])
    assert picture.panels[0].label == f"noisy\n{peak_signal_noise_ratio(truth, eight):.2f} dB"
    assert picture.panels[1].label == "same\ninf dB"


def test_the_square_is_where_the_truth_varies_most():
    texture = np.full((64, 80), 128, np.uint8)
    texture[:, :20] = 0  # an edge, of more contrast than the texture
    texture[40:56:2, 60:76] = 160
    top, left = pictures.busiest(texture, 16)
    assert top in (39, 40)
    assert left in (59, 60)


@pytest.mark.parametrize("size", [1, 2, 31, 64])
def test_the_square_lies_within_the_picture(size):
    noise = np.random.default_rng(size).random((64, 70))
    top, left = pictures.busiest(noise, size)
    assert 0 <= top <= 64 - size
    assert 0 <= left <= 70 - size


def test_a_square_larger_than_the_picture_is_refused(truth):
    with pytest.raises(ValueError, match="no square of 161 pixels in a picture of 160x160"):
        pictures.crops("crops", truth, {}, size=161)


def test_errors_have_one_scale_that_the_caption_states(truth, noisy):
    half = 0.5 * (noisy + truth / 255)
    picture = pictures.errors("errors", truth, {"noisy": noisy, "half": half, "none": truth}, size=64)
    limit = int(re.search(r"yellow is (\d+) of 255", picture.caption).group(1))
    top, left = pictures.busiest(truth, 64)
    error = np.abs(np.rint(noisy * 255) - truth).mean(-1)[top : top + 64, left : left + 64]
    assert limit == round(np.quantile(error, 0.99))
    assert picture.panels[0].label == f"noisy\nmean {error.mean():.2f} of 255"
    # Cividis grows lighter all along: the same error is the same shade in every panel.
    shades = [decoded(p).astype(float).sum(-1) for p in picture.panels]
    assert shades[0].mean() > shades[1].mean() > shades[2].mean()
    assert np.ptp(shades[2]) == 0


def test_gray_pictures_are_drawn_too():
    gray = data.camera()[:64, :64]
    assert decoded(pictures.crops("gray", gray, {"same": gray}, size=16).panels[0]).shape == (16, 16)
    assert decoded(pictures.errors("gray", gray, {"same": gray}, size=16).panels[0]).shape == (16, 16, 3)


def test_a_picture_of_unknown_range_is_refused(truth):
    with pytest.raises(ValueError, match=r"uint8 or float in 0\.\.1, not int64"):
        pictures.crops("crops", truth, {"wrong": truth.astype(np.int64)})


def test_bases_are_drawn_where_they_lie_in_the_weights(tiny_s):
    network = tiny_s()
    block = network.get_submodule("encoders.0.0")
    with torch.no_grad():
        block.w.zero_()
        # basis 5, first group, output 2 from input 3, row 0, column 2 of the kernel
        block.w.view(1, 32, 2, 4, 4, 3, 3)[0, 5, 0, 2, 3, 0, 2] = 0.25
    picture = pictures.bases(network, "encoders.0.0")
    sheet = decoded(picture.panels[0]).astype(int)
    assert sheet.shape == (32 * 4 - 1, 16 * 4 - 1, 3)
    white = np.abs(sheet - sheet[0, 0]).sum(-1)
    inside = [(y, x) for y, x in np.argwhere(white > 8) if y % 4 != 3 and x % 4 != 3]
    assert inside == [(5 * 4 + 0, (2 * 4 + 3) * 4 + 2)]
    assert "Purple is 0.25" in picture.caption
    assert "32 bases" in picture.caption


@pytest.mark.parametrize("name", ["tiny_s", "tiny_l"])
def test_coefficients_are_those_that_the_block_used(name, request, truth, monkeypatch):
    network = request.getfixturevalue(name)().eval()
    block = next(iter(pictures.adaptive_blocks(network)))
    used = []
    original = KBAMixin._coefficients
    monkeypatch.setattr(KBAMixin, "_coefficients", lambda self, t: used.append(original(self, t)) or used[-1])
    found = pictures._coefficients(network, network.get_submodule(block), pictures._unit(truth[:32, :32]))
    assert np.allclose(found, used[0][0].detach().numpy(), atol=1e-6)
    picture = pictures.coefficients(network, block, truth[:32, :32], most=5)
    assert [p.label.split()[0] for p in picture.panels] == ["input"] + 5 * ["basis"]
    assert decoded(picture.panels[1]).shape == (32, 32, 3)


def test_an_unknown_block_is_named_with_those_there_are(tiny_s):
    with pytest.raises(ValueError, match=r"no block 'middle' with kernel bases; known: encoders\.0\.0, "):
        pictures.bases(tiny_s(), "middle")


def table() -> Table:
    rows = (
        Row("both", ours=True, cells={"x": cell(1, 2), "y": cell(30, 31)}),
        Row("printed", cells={"x": cell(None, 4), "y": cell(29.5, None)}),
        Row("half", cells={"x": cell(5, 6)}),
        Row("unknown", cells={"x": cell(5, 6), "y": Cell(Published(None, "s"), Measured("failed"))}),
    )
    return Table("t", "T", "", (Column("x", "x"), Column("y", "y")), rows)


def cell(published: float | None, value: float | None) -> Cell:
    return Cell(
        Published(published, "s") if published is not None else None,
        Measured("measured", value) if value is not None else None,
    )


def test_points_prefer_measured_numbers_and_mark_published_ones():
    assert pictures.points(table(), "x", "y") == [
        Point("both", 2, 31, ours=True),
        Point("printed", 4, 29.5, published=True),
    ]


def test_a_scatter_plot_is_a_picture_of_its_own(monkeypatch):
    found = [Point("KBNet_s", 117.3, 31.8, True), Point("$other_a$ & b", 63.2, 31.7, published=True)]
    picture = pictures.scatter("title", found, Column("m", "in full", "MACs", "G"), "PSNR (dB)")
    (panel,) = picture.panels
    assert panel.media == "image/svg+xml"
    ElementTree.fromstring(panel.content)
    assert b"http" not in re.sub(
        rb'xmlns(:\w+)?="[^"]*"|<!DOCTYPE[^>]*>|<metadata>.*?</metadata>', b"", panel.content, flags=re.DOTALL
    )
    assert "Hollow" in picture.caption
    assert "Diamonds" in picture.caption
    again = pictures.scatter("title", found, Column("m", "in full", "MACs", "G"), "PSNR (dB)")
    assert again == picture  # the same numbers, the same file


def test_names_in_a_scatter_plot_do_not_cover_each_other():
    with pictures.matplotlib.rc_context(pictures.STYLE):
        figure, axes = pictures._figure(4.2, 3.6)
        found = [Point(f"a method {i}", 10 + i / 10, 30 + i / 100) for i in range(5)]
        found += [Point("far", 100.0, 31.0), Point("low", 1.0, 29.0)]
        axes.set_xscale("log")
        axes.plot([p.x for p in found], [p.y for p in found], "o")
        axes.margins(0.16, 0.12)
        pictures._labels(figure, axes, found)
        boxes = [text.get_window_extent().extents for text in axes.texts]
    assert len(boxes) == len(found)
    assert not any(pictures._overlap(a, b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_chart_of_seeds_shows_every_run(monkeypatch):
    seen = []
    monkeypatch.setattr(pictures, "_svg", lambda figure: seen.append(figure.axes[0]) or b"<svg/>")
    runs = [("KBNet_s", [29.0, 29.1, 29.3]), ("one", [28.5])]
    pictures.seeds("title", runs, "PSNR (dB)", ours=["KBNet_s"])
    lines = [line.get_xdata() for line in seen[0].lines]
    assert [29.0, 29.1, 29.3] in [list(x) for x in lines]
    mean, spread = np.mean(runs[0][1]), np.std(runs[0][1], ddof=1)
    assert any(np.allclose(x, [mean - spread, mean + spread]) for x in lines if len(x) == 2)
    assert len(lines) == 3 + 2  # no band where there is one run
    assert [t.get_text() for t in seen[0].get_yticklabels()] == ["KBNet_s", "one"]


def test_comparisons_get_a_chart_beside_their_table_once_a_seed_is_done():
    columns = (Column("psnr", "PSNR", unit="dB"),)
    tables = [Table(f"compare-{s}", s, "", columns, (Row("KBNet_s", ours=True),)) for s in ("done", "begun")]
    runs = {"done": [("KBNet_s", [29.0, 29.1]), ("NAFNet", [])], "begun": [("KBNet_s", [])]}
    (picture,) = illustrate.trained(tables, runs)
    assert picture.table == "compare-done"
