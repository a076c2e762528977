"""Which pixels are masked, what replaces them, and what the loss is computed on."""

import numpy as np
import pytest
import torch

from kbnet_plugin.selfsup.masking import (
    REACH,
    STRATEGIES,
    fill_missing,
    mask,
    masked_loss,
    masked_pixels,
    replacements,
)


def generator(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("size", "percentage"), [((64, 64), 1), ((64, 48), 0.2), ((7, 30), 2), ((9, 9), 100)]
)
def test_as_many_pixels_are_masked_as_requested_none_twice_and_all_inside(size, percentage):
    rows, columns = masked_pixels(size, percentage, generator())
    expected = max(1, round(size[0] * (percentage / 100) ** 0.5)) * max(
        1, round(size[1] * (percentage / 100) ** 0.5)
    )
    assert len({*zip(rows.tolist(), columns.tolist(), strict=True)}) == len(rows) == expected
    assert rows.min() >= 0
    assert rows.max() < size[0]
    assert columns.max() < size[1]


@pytest.mark.parametrize("size", [(96, 96), (64, 50), (33, 71), (7, 30), (1, 9)])
@pytest.mark.parametrize("percentage", [0.2, 3, 10, 30, 60, 95, 100])
def test_boxes_of_fractional_size_mask_no_pixel_twice(size, percentage):
    drawn = generator()
    expected = max(1, round(size[0] * (percentage / 100) ** 0.5)) * max(
        1, round(size[1] * (percentage / 100) ** 0.5)
    )
    for _ in range(20):
        places = np.ravel_multi_index(masked_pixels(size, percentage, drawn), size)  # raises beyond the edges
        assert len(np.unique(places)) == len(places) == expected


def test_every_pixel_is_masked_equally_often():
    times, drawn = np.zeros((16, 16)), generator()
    for _ in range(8000):
        times[masked_pixels((16, 16), 10, drawn)] += 1
    assert times.sum() == 8000 * 25
    assert np.abs(times / times.mean() - 1).max() < 0.25  # boxes of 3 x 3 and 4 x 4 differ by 1.78


def test_masked_pixels_cover_the_whole_picture():
    rows, columns = masked_pixels((60, 60), 1, generator())
    boxes = {(r // 10, c // 10) for r, c in zip(rows.tolist(), columns.tolist(), strict=True)}
    assert len(boxes) == 36


def test_every_pixel_is_masked_eventually():
    seen = np.zeros((12, 12), bool)
    drawn = generator()
    for _ in range(300):
        seen[masked_pixels((12, 12), 100 / 16, drawn)] = True
    assert seen.all()


def test_a_percentage_outside_its_bounds_is_refused():
    with pytest.raises(ValueError, match="above 0 and at most 100, not 0"):
        masked_pixels((8, 8), 0, generator())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_replacements_do_not_depend_on_the_masked_pixel(strategy):
    picture = generator().random((20, 20, 3), np.float32)
    rows, columns = np.array([0, 5, 19]), np.array([0, 11, 19])
    before = replacements(picture, rows, columns, strategy, generator(1))
    picture[rows, columns] = 1e6
    assert np.array_equal(before, replacements(picture, rows, columns, strategy, generator(1)))


@pytest.mark.parametrize("radius", [1, 2])
def test_the_median_excludes_the_masked_pixel(radius):
    picture = generator().random((9, 9, 1), np.float32)
    square = picture[4 - radius : 5 + radius, 4 - radius : 5 + radius].ravel()
    around = np.delete(square, len(square) // 2)
    found = replacements(picture, np.array([4]), np.array([4]), "median", generator(), radius)
    assert found.item() == pytest.approx(np.median(around))


def test_a_drawn_neighbour_is_the_same_in_all_channels():
    picture = np.arange(50, dtype=np.float32).reshape(5, 5, 2)
    for seed in range(20):
        one, other = replacements(picture, np.array([2]), np.array([2]), "uniform", generator(seed))[0]
        assert other == one + 1
        assert one != picture[2, 2, 0]
        assert one in picture[..., 0]


def test_a_picture_smaller_than_the_surroundings_is_mirrored():
    picture = np.full((1, 2, 1), 0.25, np.float32)
    for strategy in STRATEGIES:
        found = replacements(picture, np.array([0]), np.array([1]), strategy, generator())
        assert found.item() == 0.25


def test_an_unknown_strategy_is_refused():
    with pytest.raises(ValueError, match="'mode'"):
        replacements(np.zeros((4, 4, 1), np.float32), np.array([0]), np.array([0]), "mode", generator())


def test_masking_changes_and_targets_only_the_masked_pixels():
    picture = generator().random((32, 32, 2), np.float32)
    seen, target = mask(picture, generator(1), 2, "median")
    masked = ~np.isnan(target).any(axis=2)
    assert masked.sum() == 25
    assert np.array_equal(target[masked], picture[masked])
    assert np.array_equal(seen[~masked], picture[~masked])
    assert (seen[masked] != picture[masked]).any()


def test_missing_values_are_neither_targets_nor_input():
    picture = np.full((32, 32, 1), 0.5, np.float32)
    picture[4:9, 4:30] = np.nan
    for strategy in STRATEGIES:
        seen, target = mask(picture, generator(2), 20, strategy)
        assert np.isfinite(seen).all()
        assert np.isnan(target[4:9, 4:30]).all()
    assert fill_missing(picture, generator())[4, 4, 0] == 0.5


def test_a_flat_picture_is_its_own_target():
    seen, target = mask(np.full((16, 16, 1), 0.3, np.float32), generator())
    assert (seen == np.float32(0.3)).all()
    assert masked_loss(torch.from_numpy(seen), torch.from_numpy(target)) == 0


@pytest.mark.parametrize(("norm", "loss"), [("l2", 2.5), ("l1", 1.5)])
def test_the_loss_is_the_mean_over_the_targets(norm, loss):
    target = torch.tensor([[1.0, torch.nan], [torch.nan, 4.0]])
    output = torch.tensor([[2.0, 7.0], [torch.nan, 2.0]], requires_grad=True)
    found = masked_loss(output, target, norm)
    assert found.item() == loss
    found.backward()
    assert output.grad is not None
    assert output.grad[0, 1] == output.grad[1, 0] == 0  # not NaN either


def test_a_loss_without_targets_is_zero():
    assert masked_loss(torch.ones(3), torch.full((3,), torch.nan)) == 0


@pytest.mark.parametrize("direction", ["horizontal", "vertical"])
@pytest.mark.parametrize("strategy", ["median", "uniform"])
def test_nothing_of_a_targets_line_reaches_the_input_around_it(direction, strategy):
    picture = generator().normal(size=(60, 50, 1)).astype(np.float32)
    _, target = mask(picture, generator(1), 20, strategy, direction)
    changed = picture.copy()
    rows, columns, _ = np.nonzero(np.isfinite(target))
    assert 20 < len(rows) < 0.04 * 60 * 50
    row, column = rows[len(rows) // 2], columns[len(rows) // 2]
    line = (row, slice(None)) if direction == "horizontal" else (slice(None), column)
    changed[line] += 100
    inputs = [mask(p, generator(1), 20, strategy, direction)[0][..., 0] for p in (picture, changed)]
    if direction == "vertical":
        inputs, row, column = [p.T for p in inputs], column, row
    near = slice(max(0, column - REACH), column + REACH + 1)
    np.testing.assert_array_equal(inputs[0][row, near], inputs[1][row, near])
