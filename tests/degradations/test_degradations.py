"""What holds for every registered degradation, and lists of them."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kbnet_plugin.degradations import DEGRADATIONS, Degradation, Draws, Pipeline, register_degradation
from kbnet_plugin.degradations.microscopy import CLIP
from kbnet_plugin.errors import BadInput

OF = [[{"type": "Gaussian"}, {"type": "Quantize"}], [{"type": "Rain", "prob": 0.5}], []]
NEEDED = {"OneOf": {"of": OF}}
EVERY = pytest.mark.parametrize("name", sorted(DEGRADATIONS))
KEYS = [(3, 0), (3, 1), (4, 0)]


@pytest.fixture(scope="module")
def clean():
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(3, 3, 6, 6, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(37, 50), mode="bicubic").clamp(0, 1)


def build(name, **arguments):
    return DEGRADATIONS[name](**NEEDED.get(name, {}), **arguments)


@EVERY
@pytest.mark.parametrize("channels", [1, 3])
def test_a_sample_does_not_depend_on_its_batch(name, channels, clean):
    images = clean[:, :channels]
    before = images.clone()
    together = build(name)(images, images, Draws(KEYS))
    assert torch.equal(images, before)
    for made in together:
        assert made.shape == images.shape
        assert made.dtype == torch.float32
    for i, key in enumerate(KEYS):
        alone = build(name)(images[i : i + 1], images[i : i + 1], Draws([key]))
        for one, all_ in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], all_[i], atol=2e-5, rtol=0)


@EVERY
def test_degraded_and_clean_may_differ_already(name, clean):
    noisy = clean + 0.2 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    kept = noisy.clone(), clean.clone()
    degraded, target = build(name)(noisy, clean, Draws(KEYS))
    assert torch.equal(noisy, kept[0])
    assert torch.equal(clean, kept[1])
    assert degraded.isfinite().all()
    low, high = CLIP if name == "Stretch" else (0, 1)
    assert target.min() >= low
    assert target.max() <= high
    if name not in ("Camera", "ColorJitter", "Fluorescence", "Shapes", "Stretch"):
        assert target is clean or torch.equal(target, clean)


@EVERY
@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("size", [(1, 3, 16, 24), (2, 1, 9, 21)])
def test_black_white_and_small_images(name, value, size):
    images = torch.full(size, value)
    degraded, target = build(name)(images, images, Draws(KEYS[: size[0]]))
    assert degraded.shape == target.shape == size
    assert degraded.isfinite().all()
    assert target.isfinite().all()


class _NoWaiting(TorchDispatchMode):
    """Refuses what makes a GPU wait: values, or shapes that depend on values, read back to the host."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name
        assert name not in (
            "aten::_local_scalar_dense",
            "aten::nonzero",
            "aten::masked_select",
            "aten::equal",
        )
        if name in ("aten::index", "aten::index_put_"):
            assert not any(i is not None and i.dtype == torch.bool for i in args[1])
        return function(*args, **(kwargs or {}))


@EVERY
def test_nothing_is_read_back_from_the_device(name, clean):
    step = build(name)
    step(clean, clean, Draws(KEYS))  # constants are made once
    with _NoWaiting():
        step(clean, clean, Draws(KEYS))


def test_reading_back_is_found():
    with _NoWaiting(), pytest.raises(AssertionError):
        torch.ones(2).sum().item()


@EVERY
def test_the_docstring_names_every_parameter(name):
    text = inspect.getdoc(DEGRADATIONS[name])
    for parameter in inspect.signature(DEGRADATIONS[name]).parameters:
        assert f"\n{parameter} : " in text or f", {parameter} : " in text


@EVERY
def test_the_reference_has_an_entry(name):
    page = (Path(__file__).parents[2] / "docs" / "reference" / "degradations.md").read_text(encoding="utf-8")
    module = DEGRADATIONS[name].__module__
    assert f"autoclass:: {module}.{name}\n" in page or f"automodule:: {module}\n   :members:" in page


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ({"type": "Gausian"}, r"degradations\[0\].type: no degradation 'Gausian'; did you mean 'Gaussian'"),
        ({"type": "Gaussian", "sgima": 5}, r"degradations\[0\] \(Gaussian\): unknown key 'sgima'.* 'sigma'"),
        ({"sigma": 5}, "must be a section with a type"),
        ({"type": "Gaussian", "prob": 1.5}, r"degradations\[0\].prob must be a number from 0 to 1"),
        ({"type": "OneOf"}, "the key 'of' is missing"),
        ({"type": "OneOf", "of": [], "weights": []}, "at least one list"),
        ({"type": "OneOf", "of": [[{"type": "Blur"}]], "weights": [1, 2]}, "weights must be 1 numbers"),
        ({"type": "OneOf", "of": [[{"type": "Blurr"}]]}, "did you mean 'Blur'"),
        ({"type": "Gaussian", "sigma": [5, 2]}, "sigma must be 0 or more, the lower bound first"),
        ({"type": "Gaussian", "gray": 0.7, "colored": 0.6}, "must not exceed 1"),
        ({"type": "Gaussian", "gray": True}, "gray must be a probability"),
        ({"type": "PoissonGaussian", "gain": [0, 1]}, "lower bound must be above 0"),
        ({"type": "Quantize", "bits": 7.5}, "bits must be a whole number"),
        ({"type": "JPEG", "quality": 0}, "quality must be 1 to 100"),
        ({"type": "JPEG", "subsampling": 2}, "subsampling must be a probability"),
        ({"type": "Resize", "kernels": ["bicubc"]}, "did you mean 'bicubic'"),
        ({"type": "Resize", "kernels": []}, "kernels must name"),
        ({"type": "Resize", "between": [{"type": "JPG"}]}, "did you mean 'JPEG'"),
        ({"type": "Blur", "sigma": "much"}, "sigma must be a number or two bounds"),
        ({"type": "Defocus", "blades": [2, 9]}, "blades must be 3 to 12"),
        ({"type": "Rain", "blend": "ad"}, "did you mean 'add'"),
        ({"type": "HotPixels", "share": 2}, "share must be 0 to 1"),
        ({"type": "ColorJitter", "hue": 270}, "hue must be -180 to 180"),
    ],
)
def test_what_is_wrong_is_said(step, said):
    with pytest.raises(BadInput, match=said):
        Pipeline([step])


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="exists already"):
        register_degradation(type("Gaussian", (Degradation,), {}))


class _Mark(Degradation):
    """Adds a constant, so that a test can see who was chosen."""

    def __init__(self, value=1.0):
        self.value = value

    def __call__(self, degraded, clean, draws):
        return degraded + self.value, clean + self.value / 10


@pytest.fixture
def mark(monkeypatch):
    monkeypatch.setitem(DEGRADATIONS, "Mark", _Mark)


def images(count):
    return torch.zeros(count, 1, 2, 2)


def test_steps_concern_their_share_of_the_samples(mark):
    pipeline = Pipeline(
        [{"type": "Mark", "prob": 0.5}, {"type": "Mark", "value": 10}, {"type": "Mark", "prob": 0}]
    )
    degraded, clean = pipeline(images(2000), Draws([(0, i) for i in range(2000)]))
    first = degraded[:, 0, 0, 0] - 10
    assert set(first.tolist()) == {0, 1}
    assert abs(first.mean() - 0.5) < 0.05
    torch.testing.assert_close(clean[:, 0, 0, 0], 1 + first / 10)


@pytest.mark.parametrize(("weights", "shares"), [(None, (1 / 3, 1 / 3, 1 / 3)), ([5, 3, 2], (0.5, 0.3, 0.2))])
def test_one_list_of_several_is_applied(mark, weights, shares):
    of = [[{"type": "Mark", "value": 1}, {"type": "Mark", "value": 2}], {"type": "Mark", "value": 10}, []]
    step = {"type": "OneOf", "of": of} | ({} if weights is None else {"weights": weights})
    degraded, _ = Pipeline([step])(images(2000), Draws([(1, i) for i in range(2000)]))
    for value, share in zip((3, 10, 0), shares, strict=True):
        assert abs((degraded[:, 0, 0, 0] == value).float().mean() - share) < 0.05


def test_draws_repeat_by_key_and_differ_between_keys():
    def numbers(keys):
        draws = Draws(keys)
        return draws.uniform(), draws.normal(), draws.integers(0, 1000), draws.normal_map(1, 4, 4)

    first, again = numbers([(0, 1), (0, 2)]), numbers([(5, 5), (0, 2)])
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one[1], other[1])
        assert not np.array_equal(one[0], other[0])


def test_some_of_the_draws_go_on_with_the_same_generators():
    keys = [(0, i) for i in range(4)]
    whole, parts = Draws(keys), Draws(keys)
    expected = [whole.uniform_map(3), whole.uniform_map(3)]
    assert torch.equal(parts.subset([1, 3]).uniform_map(3), expected[0][[1, 3]])
    assert torch.equal(parts.subset([3]).uniform_map(3), expected[1][[3]])
    assert torch.equal(parts.subset([0, 1]).uniform_map(3), torch.stack([expected[0][0], expected[1][1]]))


def test_draws_follow_their_distributions():
    draws = Draws([(9, i) for i in range(2000)])
    assert 1 <= draws.uniform(1, 3).min() < 1.1
    assert abs(np.log(draws.log_uniform(0.01, 100)).mean()) < 0.2
    assert set(draws.integers(2, 5).tolist()) == {2, 3, 4}
    assert abs(draws.normal(1, 2).std() - 2) < 0.15
    assert np.bincount(draws.choice([0, 1, 3])).tolist()[0] == 0
    assert abs((draws.choice([1, 3]) == 1).mean() - 0.75) < 0.05
    rate = torch.full((2000, 1, 2, 2), 3.0)
    assert abs(draws.poisson(rate).mean() - 3) < 0.1
    assert draws.on_device(np.zeros((2000, 3))).shape == (2000, 3, 1, 1)
