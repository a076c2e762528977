"""Which pixels are hidden, what stands in for them, and what the loss sees."""

import numpy as np
import pytest
import torch

from kbnet_plugin.selfsup.masking import (
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
def test_hidden_pixels_are_as_many_as_asked_none_twice_and_all_inside(size, percentage):
    rows, columns = masked_pixels(size, percentage, generator())
    wanted = max(1, round(size[0] * (percentage / 100) ** 0.5)) * max(
        1, round(size[1] * (percentage / 100) ** 0.5)
    )
    assert len({*zip(rows.tolist(), columns.tolist(), strict=True)}) == len(rows) == wanted
    assert rows.min() >= 0
    assert rows.max() < size[0]
    assert columns.max() < size[1]


@pytest.mark.parametrize("size", [(96, 96), (64, 50), (33, 71), (7, 30), (1, 9)])
@pytest.mark.parametrize("percentage", [0.2, 3, 10, 30, 60, 95, 100])
def test_boxes_that_are_no_whole_number_of_pixels_hide_none_twice(size, percentage):
    drawn = generator()
    wanted = max(1, round(size[0] * (percentage / 100) ** 0.5)) * max(
        1, round(size[1] * (percentage / 100) ** 0.5)
    )
    for _ in range(20):
        places = np.ravel_multi_index(masked_pixels(size, percentage, drawn), size)  # raises beyond the edges
        assert len(np.unique(places)) == len(places) == wanted


def test_every_pixel_is_hidden_as_often_as_any_other():
    times, drawn = np.zeros((16, 16)), generator()
    for _ in range(8000):
        times[masked_pixels((16, 16), 10, drawn)] += 1
    assert times.sum() == 8000 * 25
    assert np.abs(times / times.mean() - 1).max() < 0.25  # boxes of 3 x 3 and 4 x 4 differ by 1.78


def test_hidden_pixels_are_spread_so_that_no_corner_is_without():
    rows, columns = masked_pixels((60, 60), 1, generator())
    boxes = {(r // 10, c // 10) for r, c in zip(rows.tolist(), columns.tolist(), strict=True)}
    assert len(boxes) == 36


def test_every_pixel_is_hidden_some_time():
    seen = np.zeros((12, 12), bool)
    drawn = generator()
    for _ in range(300):
        seen[masked_pixels((12, 12), 100 / 16, drawn)] = True
    assert seen.all()


def test_a_percentage_outside_its_bounds_is_refused():
    with pytest.raises(ValueError, match="above 0 and at most 100, not 0"):
        masked_pixels((8, 8), 0, generator())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_stands_in_does_not_depend_on_the_hidden_pixel(strategy):
    picture = generator().random((20, 20, 3), np.float32)
    rows, columns = np.array([0, 5, 19]), np.array([0, 11, 19])
    before = replacements(picture, rows, columns, strategy, generator(1))
    picture[rows, columns] = 1e6
    assert np.array_equal(before, replacements(picture, rows, columns, strategy, generator(1)))


@pytest.mark.parametrize("radius", [1, 2])
def test_the_median_is_that_of_the_pixels_around(radius):
    picture = generator().random((9, 9, 1), np.float32)
    square = picture[4 - radius : 5 + radius, 4 - radius : 5 + radius].ravel()
    around = np.delete(square, len(square) // 2)
    found = replacements(picture, np.array([4]), np.array([4]), "median", generator(), radius)
    assert found.item() == pytest.approx(np.median(around))


def test_a_drawn_neighbour_is_a_neighbour_of_the_same_place_in_all_channels():
    picture = np.arange(50, dtype=np.float32).reshape(5, 5, 2)
    for seed in range(20):
        one, other = replacements(picture, np.array([2]), np.array([2]), "uniform", generator(seed))[0]
        assert other == one + 1
        assert one != picture[2, 2, 0]
        assert one in picture[..., 0]


def test_nothing_is_invented_for_a_picture_smaller_than_the_surroundings():
    picture = np.full((1, 2, 1), 0.25, np.float32)
    for strategy in STRATEGIES:
        found = replacements(picture, np.array([0]), np.array([1]), strategy, generator())
        assert found.item() == 0.25


def test_another_strategy_is_refused():
    with pytest.raises(ValueError, match="'mode'"):
        replacements(np.zeros((4, 4, 1), np.float32), np.array([0]), np.array([0]), "mode", generator())


def test_blinding_changes_the_hidden_pixels_alone_and_asks_for_them_alone():
    picture = generator().random((32, 32, 2), np.float32)
    seen, wanted = mask(picture, generator(1), 2, "median")
    asked = ~np.isnan(wanted).any(axis=2)
    assert asked.sum() == 25
    assert np.array_equal(wanted[asked], picture[asked])
    assert np.array_equal(seen[~asked], picture[~asked])
    assert (seen[asked] != picture[asked]).any()


def test_missing_values_are_never_asked_for_and_the_network_does_not_see_them():
    picture = np.full((32, 32, 1), 0.5, np.float32)
    picture[4:9, 4:30] = np.nan
    for strategy in STRATEGIES:
        seen, wanted = mask(picture, generator(2), 20, strategy)
        assert np.isfinite(seen).all()
        assert np.isnan(wanted[4:9, 4:30]).all()
    assert fill_missing(picture, generator())[4, 4, 0] == 0.5


def test_a_flat_picture_is_taught_itself():
    seen, wanted = mask(np.full((16, 16, 1), 0.3, np.float32), generator())
    assert (seen == np.float32(0.3)).all()
    assert masked_loss(torch.from_numpy(seen), torch.from_numpy(wanted)) == 0


@pytest.mark.parametrize(("norm", "loss"), [("l2", 2.5), ("l1", 1.5)])
def test_the_loss_is_the_mean_over_what_is_asked_for(norm, loss):
    wanted = torch.tensor([[1.0, torch.nan], [torch.nan, 4.0]])
    output = torch.tensor([[2.0, 7.0], [torch.nan, 2.0]], requires_grad=True)
    found = masked_loss(output, wanted, norm)
    assert found.item() == loss
    found.backward()
    assert output.grad is not None
    assert output.grad[0, 1] == output.grad[1, 0] == 0  # not NaN either


def test_a_loss_that_asks_for_nothing_is_nought():
    assert masked_loss(torch.ones(3), torch.full((3,), torch.nan)) == 0
