"""Packages for bioimage.io are valid, and bioimageio.core restores the same pictures with them."""

from __future__ import annotations

import gc
import importlib.util
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from kbnet_plugin import KBNet_s, Restorer, save_network, zoo
from kbnet_plugin.arrays.tiling import HALO
from kbnet_plugin.cli import main
from kbnet_plugin.zoo import bioimageio, card, export

ROOT = Path(zoo.__file__).parents[2]
LIMIT = 1e-4  # of the range that the network sees as 0..1

spec = pytest.importorskip("bioimageio.spec")
core = pytest.importorskip("bioimageio.core")
pytest.importorskip("onnxscript")

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # by bioimageio


@pytest.fixture(scope="module")
def onnx(tmp_path_factory):
    """Path of a gray network, and of its ONNX file, which takes seconds to make."""
    folder = tmp_path_factory.mktemp("onnx")
    torch.manual_seed(0)
    network = KBNet_s(width=8, enc_blk_nums=[1], dec_blk_nums=[1], middle_blk_num=0, img_channel=1).eval()
    for name, parameter in network.named_parameters():
        if name.endswith((".beta", ".gamma")):  # else it changes nothing
            torch.nn.init.constant_(parameter, 0.3)
    save_network(network, folder / "x.safetensors")
    export.export(zoo.get_model(folder / "x.safetensors"), folder / "x.onnx")
    return folder / "x.safetensors", folder / "x.onnx"


@pytest.fixture
def package(onnx, tmp_path, monkeypatch):
    """Return a model with a range rule, and the description of its package."""
    weights, graph = onnx
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        bioimageio, "export_onnx", lambda _network, path, _facts: shutil.copy(graph, path) and {}
    )

    def build(rule):
        facts = {"title": "my cells", "window": "16", "license": "MIT", "range": rule}
        save_network(
            zoo.get_model(weights).load(), "cells.safetensors", {k: v for k, v in facts.items() if v}
        )
        Path("cells.md").write_text("---\nlicense: mit\n---\n# Cells\n\nOf one kind.\n")
        assert main(["export", "cells.safetensors", "-o", "cells.zip"]) == 0
        shutil.unpack_archive(
            "cells.zip", "cells"
        )  # bioimageio.spec does not close a .zip that it opens itself
        return Restorer.from_pretrained("cells.safetensors", device="cpu", pooling="global")

    yield build
    gc.collect()  # while such warnings are ignored


def picture(scale, offset, size=(124, 150)):
    y, x = np.mgrid[: size[0], : size[1]] / 40
    clean = 0.5 + 0.3 * np.sin(2 * x) * np.cos(3 * y)
    noisy = clean + np.random.default_rng(0).normal(0, 0.05, size)
    return (noisy * scale + offset).astype(np.float32)


def padded(restorer, values):
    """Restore as bioimageio.core does: with mirrored halos, which it then crops."""
    return restorer(np.pad(values, HALO, "symmetric"))[HALO:-HALO, HALO:-HALO]


def run(values, **options):
    return core.predict(
        model=spec.load_model_description("cells/rdf.yaml"), inputs={"image": values[None, None]}, **options
    ).as_arrays()["restored"][0, 0]


def test_a_package_is_valid_and_gives_the_same_picture(package):
    restorer = package("percentile")
    summary = core.test_model("cells/rdf.yaml")
    assert summary.status == "passed", summary.format()
    description = spec.load_model_description("cells/rdf.yaml")
    assert (description.name, description.description) == ("KBNet cells", "my cells")
    assert str(description.license) == "MIT"
    tolerance = description.config.bioimageio.reproducibility_tolerance[0]
    assert (tolerance.absolute_tolerance, tolerance.relative_tolerance) == (LIMIT, 0)
    for tensor in (*description.inputs, *description.outputs):
        assert [axis.id for axis in tensor.axes] == ["batch", "channel", "y", "x"]
    side, halo = description.inputs[0].axes[2].size, description.outputs[0].axes[2].halo
    assert (side.min, side.step, halo) == (16 + 2 * HALO, 2, HALO)

    # Percentiles become 0 and 1, and stay so.
    values = picture(900, 100)
    low, high = np.percentile(np.pad(values, HALO, "symmetric").astype(np.float64), (0.1, 99.9))
    expected = (padded(restorer, values) - low) / (high - low)
    assert np.abs(expected - (values - low) / (high - low)).mean() > 0.01  # it does something
    np.testing.assert_allclose(run(values), expected, rtol=0, atol=LIMIT)


def test_a_package_has_documentation_and_a_cover(package):
    package("percentile")
    with zipfile.ZipFile("cells.zip") as files:
        assert spec.load_model_description(files).name == "KBNet cells"
        text = files.read("README.md").decode()
        assert text.startswith("# Cells\n\nOf one kind.\n")
        for words in (
            "The percentiles 0.1 and 99.9",
            "multiples of 2 from 96 x 96",
            "16 pixels, whatever the tiles",
            "# Validation",
        ):
            assert words in text
        with files.open("cover.png") as file:
            before, after = np.hsplit(np.asarray(Image.open(file), float), 2)
    assert before.shape == (96, 96, 3)
    assert np.abs(before - after).mean() > 1


def test_fixed_values_are_scaled_there_and_back(package):
    restorer = package("100.0,1100.0")
    values = picture(900, 100)
    np.testing.assert_allclose(run(values), padded(restorer, values), rtol=0, atol=LIMIT * 1000)
    assert core.test_model("cells/rdf.yaml").status == "passed"


def test_other_values_are_left_alone_and_tiles_hardly_change_the_picture(package):
    restorer = package("")
    values = picture(1, 0, (204, 150))
    expected = padded(restorer, values)
    np.testing.assert_allclose(run(values), expected, rtol=0, atol=LIMIT)
    tiled = run(values, blocksize_parameter=20)
    assert np.abs(tiled - expected).max() < 0.3 * np.abs(expected - values).max()

    description = spec.load_model_description("cells/rdf.yaml")
    assert {step.id for step in description.inputs[0].preprocessing} == {"ensure_dtype"}
    with core.create_prediction_pipeline(description) as pipeline:  # without the halo
        sample = core.digest_spec.create_sample_for_model(description, inputs={"image": values[None, None]})
        found = pipeline.predict_sample_without_blocking(
            sample, skip_input_padding=True, skip_output_cropping=True
        ).as_arrays()["restored"]
    np.testing.assert_allclose(found[0, 0], restorer(values), rtol=0, atol=LIMIT)


@pytest.mark.parametrize("rule", [None, "auto", "dtype", (0.0, 1.0)])
def test_values_that_are_0_to_1_already_need_no_step(rule):
    scaling = bioimageio._scaling(rule, np.zeros((1, 1, 2, 2), np.float32))
    assert (scaling.before, scaling.after, tuple(scaling.scale)) == ([], [], (0, 1))


def test_the_paper_and_the_authors_are_those_of_the_citation_file():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert tuple(author["name"] for author in citation["authors"]) == card.AUTHORS
    paper = citation["preferred-citation"]
    assert f"{paper['authors'][0]['family-names']} et al., {paper['title']}, arXiv" in card.PAPER
    assert str(paper["year"]) in card.PAPER
    number = paper["identifiers"][0]["value"].removeprefix("arXiv:")
    assert f"arXiv {number}" in card.PAPER
    assert f"10.48550/arXiv.{number}" == card.DOI


@pytest.mark.parametrize("model", [m for m in zoo.list_models() if m.shipped], ids=lambda m: m.name)
def test_a_shipped_model_has_a_complete_description(model, tmp_path):
    # All but the graph, which takes a minute.
    multiple = model.load().size_multiple
    picture = bioimageio._picture(model.in_channels, 16)
    content = bioimageio._describe(model, bioimageio._scaling(model.range, picture), 144, multiple)
    for tensor in (*content["inputs"], *content["outputs"]):
        del tensor["test_tensor"]
    context = spec.ValidationContext(perform_io_checks=False)
    description = spec.build_description(content, context=context)
    assert not isinstance(description, spec.InvalidDescr), description.get_reason()
    assert [author.name for author in description.authors] == list(card.AUTHORS)
    assert str(description.license) == model.license.upper() == "MIT"
    assert str(description.version) == model.version
    head, text = card.read_card(model)
    assert head["license"] == "license: mit"
    assert text.lstrip().startswith(f"# {model.title}\n")


def test_without_bioimageio_it_says_what_to_install(package, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda n: None if n == "bioimageio" else find(n))
    assert main(["export", "denoise-gray", "-o", "x.zip"]) == 2
    assert capsys.readouterr().err == "kbnet: bioimageio needs bioimageio: pip install 'kbnet[export]'\n"
    assert not Path("x.zip").exists()
