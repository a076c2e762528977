"""From an experiment to a shipped model and its card, once and again; and whether the recipe repeats."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from kbnet_plugin import load_network, zoo
from kbnet_plugin.zoo import locations, registry
from tools import cards, publish
from tools import check_recipe as recipe
from tools.cards import read_card, sha256, write_card

ROOT = Path(zoo.__file__).parents[2]
QUICKSTART = ROOT / "options" / "kbnet_quickstart.yml"
SAID = ["--title", "a test", "--task", "denoise", "--version", "1.0", "--license", "MIT"]
DATA = ["--datasets", "scikit-image"]


@pytest.fixture
def house(tmp_path, monkeypatch, tiny_s):
    """A repository with an option file, an experiment of it, and no models yet."""
    for name in ("options/zoo", "models", "experiment/models"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(QUICKSTART, tmp_path / "options" / "zoo" / "x.yml")
    text = QUICKSTART.read_text(encoding="utf-8")
    (tmp_path / "experiment" / "x.yml").write_text(f"# today: basicsr train\n{text}", encoding="utf-8")
    for iteration, width in ((90, 8), (100, 16)):
        averaged, last = tiny_s(width=width).state_dict(), tiny_s(width=width).state_dict()
        averaged["intro.bias"] = averaged["intro.bias"] + 0.125 + 1e-5
        path = tmp_path / "experiment" / "models" / f"net_g_{iteration}.pth"
        torch.save({"params": last, "params_ema": averaged}, path)
    for module in (publish, recipe):
        monkeypatch.setattr(module, "ROOT", tmp_path)
        monkeypatch.setattr(module, "MODELS", tmp_path / "models")
    for module in (locations, registry):
        monkeypatch.setattr(module, "SHIPPED", tmp_path / "models")
    return tmp_path


def run(house, *arguments):
    return publish.main([str(house / "experiment"), "--name", "x", *arguments])


def test_the_last_averaged_weights_are_written_in_half_precision(house, capsys):
    assert run(house, *SAID, *DATA) == 0
    found = load_network(house / "models" / "x.safetensors")
    last = load_network(house / "experiment" / "models" / "net_g_100.pth")
    for name, tensor in last.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor.half().float()), name
    assert "iteration 100" in capsys.readouterr().out
    facts, text = read_card(house / "models" / "x.md")
    assert facts["sha256"] == sha256(house / "models" / "x.safetensors")
    assert (facts["patch"], facts["window"], facts["iterations"], facts["seed"]) == (64, 32, 100, 0)
    assert facts["network"]["width"] == 16
    assert facts["option_file"] == "options/zoo/x.yml"
    assert facts["data"] == "package:skimage/data"
    assert text.startswith("\n# a test\n")
    model = zoo.get_model("x")
    assert (model.title, model.window, model.version, model.card) == (
        "a test",
        32,
        "1.0",
        house / "models" / "x.md",
    )


def test_a_card_has_the_fields_of_hugging_face(house):
    assert run(house, *SAID, *DATA) == 0
    card = house / "models" / "x.md"
    facts, _ = read_card(card)
    assert facts["license"] == "mit"
    assert facts["library_name"] == "kbnet"
    assert facts["tags"] == ["image-restoration", "image-denoising", "kbnet", "pytorch"]
    assert (facts["datasets"], facts["metrics"]) == (["scikit-image"], ["psnr"])
    assert run(house, "--datasets", "A", "B", "--metrics", "psnr", "ssim") == 0
    again, _ = read_card(card)
    assert (again["datasets"], again["metrics"], again["tags"]) == (
        ["A", "B"],
        ["psnr", "ssim"],
        facts["tags"],
    )


@pytest.mark.parametrize("card", sorted(cards.MODELS.glob("*.md")), ids=lambda p: p.stem)
def test_a_shipped_card_lacks_none_of_them(card):
    facts, text = read_card(card)
    assert cards.missing_fields(facts) == []
    assert facts["library_name"] == "kbnet"
    assert {"image-restoration", "kbnet", "pytorch"} <= set(facts["tags"])
    assert "psnr" in facts["metrics"]
    for name in facts["datasets"]:
        assert name in text
    assert "non-commercial" in text  # the terms of BSDS500


@pytest.mark.parametrize("field", cards.HUGGING_FACE)
@pytest.mark.parametrize("empty", [False, True])
def test_a_missing_field_is_noticed(field, empty):
    facts, _ = read_card(next(cards.MODELS.glob("*.md")))
    facts = facts | {field: []} if empty else {k: v for k, v in facts.items() if k != field}
    assert cards.missing_fields(facts) == [field]


def test_publishing_again_keeps_what_people_wrote(house, tiny_s):
    assert run(house, *SAID, *DATA) == 0
    card = house / "models" / "x.md"
    facts, _ = read_card(card)
    write_card(card, facts | {"thanks": "to all", "losses": {20: 0.5}}, "\nby hand\n")
    torch.save(tiny_s().state_dict(), house / "experiment" / "models" / "net_g_110.pth")
    assert run(house, "--version", "1.1") == 0
    again, text = read_card(card)
    assert text == "\nby hand\n"
    assert (again["thanks"], again["losses"]) == ("to all", {20: 0.5})
    assert (again["version"], again["iterations"], again["title"]) == ("1.1", 110, "a test")
    assert again["sha256"] != facts["sha256"]


def test_losses_of_another_recipe_are_dropped_and_the_start_is_named(house, capsys):
    assert run(house, *SAID, *DATA) == 0
    card = house / "models" / "x.md"
    facts, text = read_card(card)
    assert "starts_from" not in facts
    write_card(card, facts | {"losses": {20: 0.5}}, text)
    path = house / "options" / "zoo" / "x.yml"
    weights = house / "experiment" / "models" / "net_g_90.pth"
    start = f"path:\n  pretrain_network_g: {weights.relative_to(house)}\n"
    path.write_text(path.read_text(encoding="utf-8") + start, encoding="utf-8")
    capsys.readouterr()
    assert run(house) == 0
    assert "record the first losses" in capsys.readouterr().out
    again, _ = read_card(card)
    assert again["losses"] == {}
    expected = {"file": "experiment/models/net_g_90.pth", "sha256": sha256(weights)}
    assert again["starts_from"] == expected


def test_an_experiment_with_another_option_file_is_noted(house, capsys):
    assert run(house, *SAID, *DATA) == 0
    assert "another option file" not in capsys.readouterr().out
    path = house / "experiment" / "x.yml"
    path.write_text(path.read_text(encoding="utf-8").replace("2e-3", "3e-3"), encoding="utf-8")
    assert run(house) == 0
    assert "another option file" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the card names no title yet: use --title"),
        (SAID, "the card names no datasets yet: use --datasets"),
        ([*SAID[:-2], *DATA], "the card names no license yet: use --license"),
        ([*SAID, *DATA, "--checkpoint", "x.pth"], "--checkpoint needs --iterations"),
        ([*SAID, *DATA, "--options", "/etc/none.yml"], "none.yml: not in this repository"),
    ],
)
def test_what_is_missing_is_one_line_and_nothing_is_written(house, capsys, arguments, said):
    assert run(house, *arguments) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not list((house / "models").iterdir())


def test_weights_too_large_for_half_precision_are_refused(house, capsys, tiny_s):
    state = tiny_s().state_dict()
    state["intro.bias"] = state["intro.bias"] + 1e6
    torch.save(state, house / "experiment" / "models" / "net_g_120.pth")
    assert run(house, *SAID, *DATA) == 2
    assert "intro.bias is not finite in float16" in capsys.readouterr().err
    assert not list((house / "models").iterdir())


def history(path, factor=1.0):
    rows = [f"{i},{name},{v}" for i in range(1, 241) for name, v in (("l_pix", factor / i), ("lr", 1e-3))]
    path.write_text("\n".join(["iteration,quantity,value", *rows]) + "\n", encoding="utf-8")
    return ["x", "--history", str(path)]


@pytest.mark.parametrize("sign", [1, -1])  # PSNRLoss is negative
def test_recorded_losses_are_compared(house, capsys, sign):
    assert run(house, *SAID, *DATA) == 0
    same = history(house / "history.csv", factor=sign)
    assert recipe.main(same) == 2
    assert "the card has no losses" in capsys.readouterr().err
    assert recipe.main([*same, "--record"]) == 0
    facts, _ = read_card(house / "models" / "x.md")
    assert facts["losses"] == {i: sign / i for i in range(20, 201, 20)}
    assert recipe.main(same) == 0
    assert recipe.main(history(house / "other.csv", factor=sign * 1.02)) == 1
    assert "IS NOT REPRODUCED" in capsys.readouterr().out


def test_the_start_of_a_recipe_is_trained_as_the_whole_would_be():
    losses = recipe.train(QUICKSTART, 2)
    assert list(losses) == [1, 2]
    assert recipe.compare(recipe.train(QUICKSTART, 3), losses) == {1: 0, 2: 0}


def test_training_that_fails_is_one_line(tmp_path):
    broken = tmp_path / "broken.yml"
    broken.write_text(QUICKSTART.read_text(encoding="utf-8").replace("gt_size", "gt_sighs"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"unknown key datasets\.train\.gt_sighs"):
        recipe.train(broken, 2)


@pytest.mark.parametrize("text", ["no head", "---\nname: x\n", "---\n[1\n---\nx", "---\njust words\n---\nx"])
def test_a_file_without_a_head_is_named(tmp_path, text):
    (tmp_path / "x.md").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"x\.md: .*head"):
        read_card(tmp_path / "x.md")
