"""Files of weights are identified by shapes, refused if unsafe, and read by spandrel with the same result."""

from __future__ import annotations

import argparse
import collections
import os
import pickle

import pytest
import spandrel
import torch
from safetensors.torch import save_file

from kbnet_plugin import KBNet_l, KBNet_s, load_network, save_network
from kbnet_plugin.zoo.architectures import identify
from kbnet_plugin.zoo.weights import read_state_dict

CONFIGURATIONS = [
    pytest.param("s", {}, id="s"),
    pytest.param("s", {"img_channel": 1}, id="s-gray"),
    pytest.param("s", {"lightweight": True, "ffn_scale": 1.5}, id="s-lightweight"),
    pytest.param("s", {"width": 12, "enc_blk_nums": [1], "dec_blk_nums": [2], "ffn_scale": 2.7}, id="s-2.7"),
    pytest.param("s", {"bases": 8, "per_group": 2, "fold": 2}, id="s-folded"),
    pytest.param("s", {"img_channel": 1, "width": 48, "bases": 3, "per_group": 1, "fold": 4}, id="s-48"),
    pytest.param("l", {}, id="l"),
    pytest.param("l", {"inp_channels": 6}, id="l-6-to-3"),
    pytest.param("l", {"bias": True, "ffn_expansion_factor": 2.5}, id="l-bias"),
    pytest.param("l", {"ffn_expansion_factor": 2.337}, id="l-2.337"),
]


@pytest.fixture
def build(tiny_s, tiny_l):
    return lambda kind, arguments: {"s": tiny_s, "l": tiny_l}[kind](**arguments)


def equal(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in expected)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(("kind", "arguments"), CONFIGURATIONS)
def test_a_saved_network_comes_back_equal(build, tmp_path, kind, arguments, suffix):
    network = build(kind, arguments)
    save_network(network, tmp_path / f"x{suffix}")
    loaded = load_network(tmp_path / f"x{suffix}")
    assert type(loaded) is type(network)
    found = identify(loaded.state_dict())[1]
    assert kind == "l" or all(found[name] == value for name, value in arguments.items())
    assert not loaded.training
    assert all(p.requires_grad for p in loaded.parameters())
    assert equal(loaded.state_dict(), network.state_dict())
    image = torch.rand(1, arguments.get("inp_channels", arguments.get("img_channel", 3)), 9, 12)
    assert torch.equal(loaded(image), network(image))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("kind", "arguments"),
    [p for p in CONFIGURATIONS if "bases" not in p.values[1]],  # which spandrel lacks
)
def test_spandrel_reads_the_same_arguments_and_gives_the_same_picture(
    build, tmp_path, kind, arguments, suffix
):
    network = build(kind, arguments)
    save_network(network, tmp_path / f"x{suffix}")
    theirs = spandrel.ModelLoader().load_from_file(tmp_path / f"x{suffix}")
    _, found = identify(network.state_dict())
    # spandrel returns the ratio of the widths, we the shortest number that leads to it.
    scales = ("ffn_scale", "ffn_expansion_factor")
    for name, value in theirs.model.hyperparameters.items():
        assert name in scales or found[name] == value
    assert theirs.input_channels == found.get("img_channel", found.get("inp_channels"))
    if theirs.input_channels == theirs.output_channels:  # spandrel cannot run 6 to 3
        image = torch.rand(1, theirs.input_channels, 16, 24)
        with torch.inference_mode():
            torch.testing.assert_close(network(image), theirs.model.eval()(image), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.25, 1.5, 2, 2.66, 3.999, 1 / 3])
@pytest.mark.parametrize("width", [4, 8, 12, 32, 64, 96, 224])
def test_the_inferred_scale_gives_every_level_its_width(width, scale):
    hidden = [int(scale * width * 2**level) for level in range(5)]
    tensors = {"intro.weight": torch.empty(width, 3, 3, 3, device="meta"), "middle_blks.0.attgamma": None}
    for level, h in enumerate(hidden):
        tensors[f"encoders.{level}.0.conv4.weight"] = torch.empty(h, width * 2**level, 1, 1, device="meta")
    _, found = identify(tensors)
    assert [int(found["ffn_scale"] * width * 2**level) for level in range(5)] == hidden


def test_a_round_scale_is_inferred_exactly(tiny_s, tiny_l):
    assert identify(tiny_s(ffn_scale=1.5).state_dict())[1]["ffn_scale"] == 1.5
    assert identify(tiny_l(dim=24).state_dict())[1]["ffn_expansion_factor"] == 1.5


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("key", ["params_ema", "params", "model", "net", "state_dict", None])
def test_released_layouts_load(tiny_s, tmp_path, key, prefix):
    network = tiny_s()
    tensors = collections.OrderedDict((prefix + n, t) for n, t in network.state_dict().items())
    content = tensors if key is None else {"epoch": 3, "best": [0.5, "x"], key: tensors}
    torch.save(content, tmp_path / "x.pth")
    assert equal(load_network(tmp_path / "x.pth").state_dict(), network.state_dict())


def test_the_averaged_weights_come_first_and_others_by_name(tiny_s, tmp_path):
    averaged, last = tiny_s(), tiny_s()
    torch.nn.init.ones_(last.intro.weight)
    torch.save({"params": last.state_dict(), "params_ema": averaged.state_dict()}, tmp_path / "x.pth")
    assert equal(load_network(tmp_path / "x.pth").state_dict(), averaged.state_dict())
    assert equal(load_network(tmp_path / "x.pth", key="params").state_dict(), last.state_dict())
    with pytest.raises(ValueError, match=r"no weights under 'net'; use one of its keys: params, params_ema"):
        load_network(tmp_path / "x.pth", key="net")


@pytest.mark.parametrize("suffix", [".pt", ".ckpt"])
def test_other_suffixes_of_pickles_are_read(tiny_s, tmp_path, suffix):
    torch.save(tiny_s().state_dict(), tmp_path / f"x{suffix}")
    assert isinstance(load_network(tmp_path / f"x{suffix}"), KBNet_s)


def test_half_precision_files_become_float32(tiny_l, tmp_path):
    save_file({n: t.half() for n, t in tiny_l().state_dict().items()}, tmp_path / "x.safetensors")
    network = load_network(tmp_path / "x.safetensors")
    assert isinstance(network, KBNet_l)
    assert {p.dtype for p in network.parameters()} == {torch.float32}


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_malicious_pickle_is_refused_without_running(tmp_path, zipped):
    torch.save(
        {"params": {"intro.weight": Attack(tmp_path / "ran")}},
        tmp_path / "x.pth",
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(ValueError, match=r"x.pth: contains posix.mkdir, refused") as caught:
        load_network(tmp_path / "x.pth")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_bare_malicious_pickle_is_refused_without_running(tmp_path):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "x.pth").write_bytes(pickle.dumps(Attack(tmp_path / "ran"), protocol))
        with pytest.raises(ValueError, match=r"x.pth: "):
            read_state_dict(tmp_path / "x.pth")
        assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"params": {"a": torch.ones(1)}, "options": argparse.Namespace()}, "contains argparse.Namespace"),
        ([torch.ones(1)], "contains a list, not named weights"),
        (torch.ones(1), "contains a Tensor, not named weights"),
        ({"a": 1, "b": torch.ones(1)}, "contains a besides weights"),
        ({}, "contains no weights"),
    ],
    ids=["object", "list", "tensor", "number", "empty"],
)
def test_anything_but_named_tensors_is_refused(tmp_path, content, named):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=f"x.pth: {named}") as caught:
        load_network(tmp_path / "x.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0, 5, 100, 0.5, 0.999])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file_is_named(tiny_s, tmp_path, suffix, kept):
    path = tmp_path / f"x{suffix}"
    save_network(tiny_s(), path)
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(ValueError, match=f"x{suffix}: truncated or not a .*; download it again") as caught:
        load_network(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_an_unknown_suffix_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.pth: no such file"):
        load_network(tmp_path / "nowhere.pth")
    with pytest.raises(FileNotFoundError, match="a folder, not a file"):
        load_network(tmp_path)
    (tmp_path / "x.onnx").touch()
    with pytest.raises(ValueError, match=r"x.onnx: unknown kind of checkpoint '.onnx'"):
        load_network(tmp_path / "x.onnx")


def without(*names):
    return lambda tensors: {n: t for n, t in tensors.items() if not n.startswith(names)}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (without("ending"), r"not a complete KBNet_s; keys: 2 missing \(ending.weight, ending.bias\)"),
        (without("encoders.0.0.conv"), r"20 missing \(encoders.0.0.conv11.0.weight, .*, \.\.\.\)"),
        (without("intro"), "not a complete KBNet_s: intro.weight is missing"),
        (lambda t: t | {"more": torch.ones(1)}, r"keys: 1 unexpected \(more\)"),
        (
            lambda t: t | {"ending.bias": torch.ones(7)},
            r"1 of another shape \(ending.bias \(7,\) instead of \(3,\)\)",
        ),
        (lambda t: t | {"ending.bias": torch.ones(3, dtype=torch.int8)}, "ending.bias are torch.int8"),
        (lambda t: t | {"intro.weight": torch.ones(7, 3, 3, 3)}, "width must be a multiple of 4"),
        (lambda t: t | {"intro.weight": torch.ones(8)}, "not a complete KBNet_s"),
        (lambda t: t | {"encoders.1000000.0.w": torch.ones(1)}, r"1 unexpected \(encoders.1000000.0.w\)"),
        (
            lambda t: torch.nn.Linear(2, 2).state_dict(),
            r"neither KBNet_s nor KBNet_l \(keys: weight, bias\)",
        ),
    ],
)
def test_other_weights_and_missing_and_unexpected_keys_are_named_in_one_line(tiny_s, tmp_path, change, named):
    torch.save({"params": change(dict(tiny_s().state_dict()))}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=f"x.pth: .*{named}") as caught:
        load_network(tmp_path / "x.pth")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_saving_is_all_or_nothing(tiny_s, tmp_path, monkeypatch):
    path = tmp_path / "x.pth"
    save_network(tiny_s(), path)
    before = path.read_bytes()

    def fail(_tensors, file):
        file.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        save_network(tiny_s(), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.pth"]


def test_files_are_as_readable_as_the_umask_says(tiny_s, tmp_path):
    (tmp_path / "plain").touch()
    for name in ("x.pth", "x.safetensors"):
        save_network(tiny_s(), tmp_path / name)
        assert (tmp_path / name).stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_path_that_cannot_be_written_is_named(tiny_s, tmp_path):
    with pytest.raises(ValueError, match=r"x.bin: weights are written as .pth or .safetensors"):
        save_network(tiny_s(), tmp_path / "x.bin")
    with pytest.raises(FileNotFoundError, match=r"no such folder to write x.pth to"):
        save_network(tiny_s(), tmp_path / "nowhere" / "x.pth")
