"""A Restorer keeps shape, dtype and range; tiles do not change the results of local networks."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch

from kbnet_plugin import Restorer
from kbnet_plugin.arrays.tiling import plan
from kbnet_plugin.inference import engine
from kbnet_plugin.inference import restorer as restorers
from kbnet_plugin.inference.journal import Journal


@pytest.fixture
def colour(tiny_s):
    return Restorer(tiny_s(), device="cpu")


@pytest.fixture
def gray(tiny_s):
    return Restorer(tiny_s(img_channel=1), device="cpu")


def unit(shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


def apply(restorer, image):
    """Run the bare network on (H, W, C) in 0..1."""
    with torch.inference_mode():
        batch = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
        return restorer.engine.network(batch)[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8"])
def test_integers_span_their_dtype(colour, dtype):
    least, top = np.iinfo(dtype).min, np.iinfo(dtype).max
    image = (unit((20, 30, 3)).astype(np.float64) * top * 0.99).astype(dtype)
    out = Restorer(colour.engine.network, device="cpu", range="dtype")(image)
    assert (out.shape, out.dtype) == (image.shape, image.dtype)
    expected = apply(colour, (image.astype(np.float64) / top).astype(np.float32)).astype(np.float64)
    assert np.abs(out.astype(np.float64) / top - expected.clip(least / top, 1)).max() <= 0.5 / top + 1e-6


def test_integers_are_clipped_not_wrapped(colour):
    with torch.no_grad():
        colour.engine.network.ending.bias.fill_(3)
    assert (colour(np.full((8, 8, 3), 200, np.uint8)) == 255).all()
    wide = Restorer(colour.engine.network, device="cpu", range="dtype")
    assert (wide(np.full((8, 8, 3), 2, np.uint64)) > 2**64 - 2**12).all()
    with torch.no_grad():
        colour.engine.network.ending.bias.fill_(-3)
    assert (colour(np.full((8, 8, 3), 200, np.uint8)) == 0).all()


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_floats_near_0_to_1_are_not_scaled(colour, dtype):
    image = (unit((20, 30, 3)) * 1.3 - 0.2).astype(dtype)
    out = colour(image)
    assert out.dtype == image.dtype
    np.testing.assert_allclose(
        out, apply(colour, image.astype(np.float32)), atol=2e-3 if dtype == "f2" else 1e-6
    )


def test_other_floats_keep_their_own_scale(colour):
    image = unit((20, 30, 3))
    image[0, 0], image[1, 1] = 0, 1
    expected = colour(image)
    np.testing.assert_allclose(colour(image * 4000 - 1000), expected * 4000 - 1000, atol=0.01)


@pytest.mark.parametrize("value", [0.0, 0.25, 1e6, -40.0])
def test_a_constant_picture_comes_through_finite_and_near(colour, value):
    out = colour(np.full((9, 9, 3), value))
    assert np.isfinite(out).all()
    assert np.abs(out - value).max() < 1


def test_bool_stays_bool(gray):
    image = np.kron(unit((3, 4)) > 0.5, np.ones((8, 8), bool))
    out = gray(image)
    assert (out.shape, out.dtype) == (image.shape, np.dtype(bool))
    assert (out == (apply(gray, image[..., None].astype(np.float32))[..., 0] >= 0.5)).all()


def test_alpha_is_copied_and_does_not_touch_the_colours(colour, gray):
    image = (unit((20, 30, 4)) * 255).astype(np.uint8)
    out = colour(image)
    assert np.array_equal(out[..., 3], image[..., 3])
    assert np.array_equal(out[..., :3], colour(image[..., :3]))
    out = gray(image[..., 2:])
    assert np.array_equal(out[..., 1], image[..., 3])
    assert np.array_equal(out[..., 0], gray(image[..., 2]))


def test_a_gray_picture_in_a_colour_network_is_three_equal_channels(colour):
    image = unit((20, 30))
    expected = apply(colour, np.stack([image] * 3, axis=2)).mean(axis=2)
    out = colour(image)
    assert out.shape == (20, 30)
    np.testing.assert_allclose(out, expected, atol=1e-6)
    assert colour(image[..., None]).shape == (20, 30, 1)
    with_alpha = colour(np.stack([image, 1 - image], axis=2))
    np.testing.assert_allclose(with_alpha, np.stack([expected, 1 - image], axis=2), atol=1e-6)


def test_a_network_may_return_fewer_channels_than_it_takes(tiny_l):
    restorer = Restorer(tiny_l(inp_channels=6), device="cpu")
    assert (restorer.in_channels, restorer.out_channels) == (6, 3)
    assert restorer(unit((16, 9, 6))).shape == (16, 9, 3)


@pytest.mark.parametrize("shape", [(1, 1), (1, 50, 3), (50, 1), (3, 2, 4)])
def test_any_size_is_taken(colour, shape):
    assert colour(unit(shape)).shape == shape


def test_tiling_does_not_change_the_result_of_a_network_that_is_local(tiny_s):
    network = tiny_s()
    with torch.no_grad():
        for name, p in network.named_parameters():
            if ".sca.1." in name:  # the only global part, multiplied by 0
                p.fill_(1.0 if name.endswith("bias") else 0.0)
            elif name.rsplit(".", 1)[-1] in ("ga1", "attgamma", "beta", "gamma"):
                p.normal_(std=0.5)
    image = unit((210, 333, 3))
    whole = Restorer(network, device="cpu")(image)
    calls = []
    tiled = Restorer(network, device="cpu", tile=128, halo=32)(
        image, progress=lambda *call: calls.append(call)
    )
    assert np.abs(whole - image).max() > 0.01  # it changes the image
    np.testing.assert_allclose(tiled, whole, atol=2e-6)
    total = len(plan(image.shape[:2], 128, 32, 4))
    assert total > 4
    assert calls == [(i, total) for i in range(1, total + 1)]


def test_tiles_bound_what_the_network_sees(tiny_s):
    seen = []
    network = tiny_s()
    network.register_forward_pre_hook(lambda _module, args: seen.append(args[0].shape))
    Restorer(network, device="cpu", tile=96, halo=16, window=32)(unit((300, 200, 3)))
    assert max(max(shape[2:]) for shape in seen) <= 96
    assert max(shape[0] * shape[2] * shape[3] for shape in seen) <= (96 + 2 * 96) ** 2


@pytest.mark.parametrize(
    ("image", "named"),
    [
        (np.zeros((8, 8, 5), np.uint8), "ambiguous; set axes to 'ZYX' .8 gray pictures of 8 x 5. or 'YXS'"),
        (np.zeros((0, 8, 3), np.uint8), "the array is empty"),
        (np.zeros((8, 8, 0), np.uint8), "the array is empty"),
        (np.zeros((8, 0), np.uint8), "the array is empty"),
        (np.zeros((2, 64, 64), np.uint8), "'ZYX' .2 gray pictures .* or 'SYX' .1 2-channel picture"),
        (np.zeros((9, 3, 64, 64), np.uint8), "'TZYX' .27 gray .* or 'TSYX' .9 3-channel"),
        (np.zeros((1,) * 7, np.uint8), r"must be \(H, W\) or \(H, W, C\), or a stack"),
        (np.zeros(8, np.uint8), r"must be \(H, W\) or \(H, W, C\)"),
        (np.zeros((8, 8), complex), "bool, integer or float, not complex128"),
        (np.zeros((8, 8), object), "bool, integer or float, not object"),
        (np.array([["a"]]), "bool, integer or float, not <U1"),
        (np.array([[-1.7e308, 1.7e308]] * 2), "too far apart to be scaled; set a range"),
    ],
)
def test_what_cannot_be_restored_is_named(colour, image, named):
    with pytest.raises(ValueError, match=named):
        colour(image)


def test_a_window_is_restored_as_in_the_whole(lively):
    restorer = Restorer(lively(), device="cpu", tile=96, halo=32, window=16)
    stack = (unit((2, 150, 170, 3)) * 255).astype(np.uint8)
    window = slice(40, 90), slice(100, 170)
    found = restorer.restore_window(stack, window, "ZYXS", (1,))
    assert np.array_equal(found.before, stack[1][window])
    assert np.abs(found.after.astype(int) - restorer(stack, "ZYXS")[1][window]).max() <= 1
    assert found.scale == restorer.intensity_range(stack, "ZYXS", (1,)) == (0, 255)


@pytest.mark.parametrize("pooling", ["local", "global"])
def test_a_gray_network_restores_each_colour_by_itself(gray, pooling):
    image = (unit((40, 50, 4)) * 255).astype(np.uint8)
    restorer = Restorer(gray.engine.network, device="cpu", tile=32, halo=8, window=16, pooling=pooling)
    out = restorer(image)
    for colour in range(3):  # a batch of three and one by one, which on some processors differ in last bits
        apart = np.abs(out[..., colour].astype(int) - restorer(image[..., colour]))
        assert apart.max() <= 1
        assert (apart > 0).mean() < 0.01
    assert np.array_equal(out[..., 3], image[..., 3])


def test_invalid_settings_are_named_at_once(tiny_s, tmp_path):
    with pytest.raises(ValueError, match="tile must exceed twice the halo"):
        Restorer(tiny_s(), device="cpu", tile=64, halo=32)
    for device in ("abacus", "cuda:99"):
        with pytest.raises(ValueError, match=f"device '{device}' is not available"):
            Restorer(tiny_s(), device=device)
    with pytest.raises(FileNotFoundError, match="no such file"):
        Restorer.from_pretrained(tmp_path / "x.pth")


def test_a_file_becomes_a_restorer(checkpoint, colour):
    image = unit((20, 30, 3))
    assert np.array_equal(Restorer.from_pretrained(checkpoint, device="cpu")(image), colour(image))


DTYPES = ["u1", "u2", "i2", "f4", "f8", "?"]
AXES = {"YX": (20, 28), "YXS": (20, 28, 3), "SYX": (4, 20, 28), "ZYX": (3, 20, 28), "TCYX": (2, 3, 20, 28)}
AXES |= {"TZCYXS": (2, 1, 2, 20, 28, 3), "XCYT": (20, 2, 28, 2)}


def values(shape, dtype):
    dtype = np.dtype(dtype)
    top = {"f": 1000, "b": 1}.get(dtype.kind) or np.iinfo(dtype).max
    image = unit(shape).astype(np.float64)
    return image > 0.5 if dtype.kind == "b" else (image * top).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axes", AXES)
def test_planes_are_restored_as_if_alone(lively, dtype, axes):
    image = values(AXES[axes], dtype)
    ends = (0, float(image.max())) if dtype != "?" else "auto"
    restorer = Restorer(lively(), device="cpu", tile=24, halo=4, window=8, range=ends)
    out = restorer(image, axes)
    assert (out.shape, out.dtype) == (image.shape, image.dtype)
    assert dtype == "?" or not np.array_equal(out, image)
    inner = [i for i, a in enumerate(axes) if a in "YXS"]
    for index in np.ndindex(*(n for i, n in enumerate(image.shape) if i not in inner)):
        rest = iter(index)
        key = tuple(slice(None) if i in inner else next(rest) for i in range(image.ndim))
        plane = "".join(a for a in axes if a in "YXS")
        assert np.array_equal(out[key], restorer(image[key], plane))
    if axes == "SYX":
        assert np.array_equal(out[3], image[3])


@pytest.mark.parametrize(
    ("shape", "axes"), [((30, 40, 50), "ZYX"), ((5, 20, 30, 3), "ZYXS"), ((1, 50, 40), "ZYX")]
)
def test_unambiguous_axes_are_inferred(colour, shape, axes):
    image = unit(shape)
    assert np.array_equal(colour(image), colour(image, axes))


@pytest.mark.parametrize(
    ("axes", "named"),
    [
        ("YX", "axes 'YX' name 2 dimensions, but the array has 5"),
        ("TZCYQ", "unknown axis 'Q'; use T, Z, C, S, Y, X"),
        ("TZCYY", "must name Y and X, and no axis twice"),
        ("TZCSY", "must name Y and X"),
        ("TZSYX", "takes RGB or gray pictures, not 5 channels"),
    ],
)
def test_axes_that_do_not_fit_are_named(colour, axes, named):
    with pytest.raises(ValueError, match=named):
        colour(np.zeros((2, 2, 5, 8, 9), np.uint8), axes)


def test_a_network_of_six_channels_takes_six_and_no_less(tiny_l):
    restorer = Restorer(tiny_l(inp_channels=6), device="cpu")
    assert restorer(unit((4, 6, 16, 20)), "TCYX").shape == (4, 3, 16, 20)
    for shape, axes in (((2, 16, 20), "CYX"), ((16, 20), "YX"), ((16, 20), None)):
        with pytest.raises(ValueError, match="takes pictures of 6 channels, not"):
            restorer(unit(shape), axes)


def test_tensors_come_back_as_tensors(colour):
    image = torch.from_numpy(unit((2, 3, 20, 30)))
    out = colour(image)
    assert (out.shape, out.dtype) == (image.shape, image.dtype)
    assert np.array_equal(out.numpy(), colour(image.numpy(), "TSYX"))
    half = colour(image[0].bfloat16())
    assert (half.shape, half.dtype) == ((3, 20, 30), torch.bfloat16)
    assert colour(image[0, 0]).shape == (20, 30)


def test_nan_and_infinity_are_kept_and_do_not_spread(lively):
    restorer = Restorer(lively(img_channel=1), device="cpu", window=16)
    image = unit((40, 60))
    expected = restorer(image)
    image[10, 10], image[11, 10], image[:5, 50:] = np.nan, -np.inf, np.inf
    out = restorer(image)
    odd = ~np.isfinite(image)
    assert np.array_equal(out[odd], image[odd], equal_nan=True)
    assert np.isfinite(out[~odd]).all()
    assert np.abs(out - expected)[~odd].max() < 1
    nothing = np.full((9, 9), np.nan)
    assert np.isnan(restorer(nothing)).all()


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i2", "i4", "f4", "f8", "?"])
@pytest.mark.parametrize("rule", ["dtype", "percentile", (-7, 1e5)])
def test_what_the_network_leaves_alone_keeps_every_digit(tiny_s, dtype, rule):
    network = tiny_s()
    torch.nn.init.zeros_(network.ending.weight)
    torch.nn.init.zeros_(network.ending.bias)
    image = values((20, 30, 3), dtype)
    assert np.array_equal(Restorer(network, device="cpu", range=rule)(image), image)
    assert np.array_equal(Restorer(tiny_s(), device="cpu", range=rule, strength=0)(image), image)


def test_twelve_bits_in_sixteen_are_found(lively):
    unit_image = unit((64, 64)).astype(np.float64)
    image = np.rint(unit_image * 4095).astype(np.uint16)
    expected = Restorer(lively(), device="cpu")(unit_image) * 4095
    named = Restorer(lively(), device="cpu", range=(0, 4095))(image)
    assert np.abs(named - expected.clip(0, 65535)).max() < 2
    found = Restorer(lively(), device="cpu")(image)
    dtypes = Restorer(lively(), device="cpu", range="dtype")(image)
    change = [np.abs(x.astype(float) - expected.clip(0)).mean() for x in (found, dtypes)]
    assert change[0] < change[1] / 5


def test_strength_blends_with_the_input(lively):
    image = unit((20, 30, 3))
    full = Restorer(lively(), device="cpu")(image)
    half = Restorer(lively(), device="cpu", strength=0.5)(image)
    np.testing.assert_allclose(half, (full + image) / 2, atol=1e-6)


def test_the_self_ensemble_turns_with_the_picture(lively):
    restorer = Restorer(lively(), device="cpu", self_ensemble=True)
    image = unit((24, 32, 3))
    out = restorer(image)
    assert not np.allclose(out, Restorer(lively(), device="cpu")(image), atol=1e-4)
    np.testing.assert_allclose(restorer(np.rot90(image)), np.rot90(out), atol=1e-5)
    np.testing.assert_allclose(restorer(image[:, ::-1]), out[:, ::-1], atol=1e-5)


def test_batches_change_nothing(lively):
    image = unit((7, 40, 50))
    one = Restorer(lively(), device="cpu", tile=40, halo=4)(image)
    four = Restorer(lively(), device="cpu", tile=40, halo=4, batch=4)(image)
    np.testing.assert_allclose(four, one, atol=1e-5)


def test_local_pooling_is_what_makes_tiles_agree(lively):
    image = unit((256, 256, 3)) * np.linspace(0, 1, 256, dtype=np.float32)[:, None]

    def difference(pooling):
        whole, tiled = (
            Restorer(lively(), device="cpu", pooling=pooling, window=48, tile=tile, halo=32)(image)
            for tile in (256, 128)
        )
        return np.sqrt(np.mean((whole - tiled) ** 2))

    assert difference("local") < difference("global") / 3


class Allocator:
    """Let a network run out of memory above so many pixels."""

    def __init__(self, network, pixels, error):
        self.seen = []

        def allocate(_module, args):
            self.seen.append(args[0].numel() // args[0].shape[1])
            if self.seen[-1] > pixels:
                raise error

        network.register_forward_pre_hook(allocate)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_tiles_are_halved_if_memory_runs_out(lively, error):
    image = unit((200, 200, 3))
    network = lively()
    allocator = Allocator(network, 64 * 64, error)
    restorer = Restorer(network, device="cpu", tile=128, halo=16, batch=2, window=16)
    out = restorer(image)
    assert sum(n > 64 * 64 for n in allocator.seen) == 3  # patches, a batch, a tile; never again
    expected = Restorer(lively(), device="cpu", tile=64, halo=16, window=16)(image)
    assert np.abs(out - expected).max() < 0.1 * np.abs(out - image).max()


def test_too_little_memory_for_any_tile_is_one_line(lively):
    network = lively()
    Allocator(network, 10, MemoryError())
    with pytest.raises(MemoryError, match="out of memory for a tile of"):
        Restorer(network, device="cpu", halo=8)(unit((100, 100, 3)))


def test_other_errors_of_the_network_are_not_hidden(lively):
    network = lively()
    Allocator(network, 10, RuntimeError("wires crossed"))
    with pytest.raises(RuntimeError, match="wires crossed"):
        Restorer(network, device="cpu")(unit((100, 100, 3)))


def test_the_tile_follows_the_free_memory(colour, monkeypatch):
    assert colour.plan((4000, 4000)).tile[0] in range(600, 769)
    need = colour.plan((4000, 4000)).memory
    monkeypatch.setattr(engine, "free_memory", lambda device: need)
    assert colour.plan((4000, 4000)).tile[0] in range(300, 385)


def test_a_tile_that_overflows_is_computed_again_in_float32(tiny_s):
    network = tiny_s()
    with torch.no_grad():
        network.ending.bias.fill_(1e5)  # overflows float16
    image = unit((20, 30, 3))
    expected = Restorer(network, device="cpu")(image)
    assert np.array_equal(Restorer(network, device="cpu", precision="float16")(image), expected)


def test_bfloat16_is_near(lively):
    image = unit((32, 32, 3))
    full = Restorer(lively(), device="cpu")(image)
    half = Restorer(lively(), device="cpu", precision="bfloat16")(image)
    assert 0 < np.abs(half - full).max() < 0.1


def test_a_plan_matches_what_is_done(colour):
    plan_ = Restorer(colour.engine.network, device="cpu", tile=128).plan((2, 200, 140), "ZYX")
    image = np.zeros((2, 200, 140), np.uint8)
    target = np.empty_like(image)
    calls = list(Restorer(colour.engine.network, device="cpu", tile=128).restore_into(image, target, "ZYX"))
    assert calls[-1] == (plan_.tiles, plan_.tiles)
    assert plan_.planes == 2
    assert plan_.seconds > 0
    assert plan_.memory > 0
    assert f"{plan_.tiles} of at most {plan_.tile[0]} x {plan_.tile[1]}, halo 40" in str(plan_)


class Watched:
    """An array that can only be sliced, and records how."""

    def __init__(self, array, fail_after=None):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.largest, self.count, self.fail_after = 0, 0, fail_after

    def __getitem__(self, key):
        part = self.array[key]
        self.largest = max(self.largest, part.size)
        return part

    def __setitem__(self, key, value):
        if self.count == self.fail_after:
            raise OSError(28, "No space left on device")
        self.count += 1
        self.array[key] = value


def test_only_tiles_are_read_and_written(lively):
    image = values((2, 100, 150), "u2")
    source, target = Watched(image), Watched(np.zeros_like(image))
    restorer = Restorer(lively(), device="cpu", tile=64, halo=8, window=16)
    list(restorer.restore_into(source, target, "TYX"))
    assert source.largest <= 2 * 100 * 150  # the sample that the range is found from
    assert np.array_equal(target.array, restorer(image, "TYX"))


@pytest.mark.parametrize("batch", [1, 3])
def test_an_interrupted_run_continues_and_ends_the_same(lively, tmp_path, batch):
    image = values((2, 150, 200), "u2")
    restorer = Restorer(lively(), device="cpu", tile=64, halo=8, window=16, batch=batch)
    expected = np.zeros_like(image)
    total = len(list(restorer.restore_into(image, expected, "ZYX"))) if batch == 1 else 2 * 20
    target = Watched(np.zeros_like(image), fail_after=11)
    journal = tmp_path / "journal"
    with pytest.raises(OSError, match="No space left"):
        list(restorer.restore_into(image, target, "ZYX", journal=journal))
    with journal.open("ab") as file:
        file.write(b"1")  # an incomplete line, as after a crash
    finished = target.count // batch * batch
    assert 0 < finished < total
    target.fail_after = None
    before = target.count
    seen = []
    restorer.engine.network.register_forward_pre_hook(
        lambda _module, args: seen.append(args[0].shape[2:] != (16, 16))
    )
    list(restorer.restore_into(image, target, "ZYX", journal=journal))
    assert np.array_equal(target.array, expected if batch == 1 else restorer(image, "ZYX"))
    if batch == 1:
        assert sum(seen) == target.count - before == total - finished


def test_a_journal_of_other_settings_is_refused(lively, tmp_path):
    image = values((100, 100), "u2")
    target = np.zeros_like(image)
    journal = tmp_path / "journal"
    settings = {"device": "cpu", "tile": 64, "halo": 8}
    list(Restorer(lively(), **settings).restore_into(image, target, journal=journal))
    with pytest.raises(ValueError, match=r"different settings \(strength\)"):
        list(Restorer(lively(), **settings, strength=0.5).restore_into(image, target, journal=journal))
    with pytest.raises(ValueError, match=r"different settings \(source\)"):
        list(Restorer(lively(), **settings).restore_into(image, target, journal=journal, identity="x"))
    journal.write_text("a poem\n")
    with pytest.raises(ValueError, match="not a journal of kbnet"):
        Restorer(lively(), device="cpu").restore_into(image, target, journal=journal)


def test_a_journal_keeps_the_tile_that_free_memory_chose(lively, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "TILE", 128)
    image = values((160, 160), "u1")
    target = np.zeros_like(image)
    journal = tmp_path / "journal"
    run = Restorer(lively(), device="cpu").restore_into(image, target, journal=journal)
    next(run)
    run.close()
    with monkeypatch.context() as scarce:
        scarce.setattr(engine, "free_memory", lambda device: 1 << 20)
        list(Restorer(lively(), device="cpu").restore_into(image, target, journal=journal))
    assert np.array_equal(target, Restorer(lively(), device="cpu")(image))


def test_a_finished_step_is_recorded(tmp_path):
    with Journal(tmp_path / "j", {"a": 1}) as journal:
        journal.add(3, 30)
        journal.add(0, 40)
    with Journal(tmp_path / "j", {"a": 1}) as journal:
        assert journal.done == {3: 30, 0: 40}


def test_a_wrong_target_is_named_and_untouched(colour):
    image = values((30, 40), "u1")
    frozen = np.zeros_like(image)
    frozen.flags.writeable = False
    for target, named in (
        (frozen, "the target is read-only"),
        (image, "the target is the source"),
        (image[:], "the target is the source"),
        (np.zeros((30, 41), np.uint8), r"the target must be uint8 \(30, 40\), not uint8 \(30, 41\)"),
        (np.zeros((30, 40), np.uint16), "the target must be uint8"),
    ):
        before = np.array(target)
        with pytest.raises(ValueError, match=named):
            colour.restore_into(image, target)
        assert np.array_equal(before, target)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"pooling": "some"}, "pooling must be 'local' or 'global'"),
        ({"precision": "int8"}, "precision must be auto, float32"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"strength": 1.5}, "strength must be from 0 to 1"),
        ({"range": "wide"}, "range must be 'auto', 'dtype', 'percentile' or two numbers"),
        ({"range": (5, 5)}, "range must run from a lower to a higher number"),
    ],
)
def test_invalid_arguments_are_named(tiny_s, settings, named):
    with pytest.raises(ValueError, match=named):
        Restorer(tiny_s(), device="cpu", **settings)


def test_the_example_runs():
    assert doctest.testmod(restorers).failed == 0
