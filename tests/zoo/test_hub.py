"""Models travel to Hugging Face and back; a local server stands in for it."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from kbnet_plugin import Restorer, save_network, zoo
from kbnet_plugin.cli import main
from kbnet_plugin.zoo import hub
from kbnet_plugin.zoo.export import export

FACTS = {"title": "my cells", "task": "denoise", "license": "MIT", "window": "16", "range": "percentile"}
SHIPPED = [m for m in zoo.list_models() if m.shipped]


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """Set the folders of the user's models and of the downloads."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(zoo.FOLDER_VARIABLE, str(tmp_path / "own"))
    return tmp_path / "own"


@pytest.fixture
def source(tmp_path, lively):
    """Path of a gray network with a card."""
    path = tmp_path / "cells.safetensors"
    save_network(lively(img_channel=1), path, FACTS)
    path.with_suffix(".md").write_text("# Cells\n\nOf one kind.\n")
    return path


class Hub:
    """Serves folders as Hugging Face does, as much as downloading asks for."""

    def __init__(self):
        self.files, self.asked = {}, []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.do_GET()

            def do_GET(self):
                repository, revision, name = re.fullmatch(
                    r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path
                ).groups()
                server.asked.append(name)
                if repository == "me/closed":
                    return self.fail(403, "GatedRepo")
                if repository not in {r for r, _ in server.files}:
                    return self.fail(401, "RepoNotFound")
                if (repository, revision) not in server.files:
                    return self.fail(404, "RevisionNotFound")
                folder = server.files[repository, revision]
                if not (folder / name).is_file():
                    return self.fail(404, "EntryNotFound")
                content = (folder / name).read_bytes()
                self.send_response(200)
                self.send_header("X-Repo-Commit", hashlib.sha1(str(folder).encode()).hexdigest())
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            def fail(self, status, code):
                self.send_response(status)
                self.send_header("X-Error-Code", code)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def served(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub").constants
    with Hub() as server:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.address)
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        yield server


def test_a_repository_has_card_configuration_and_weights(source, capsys):
    assert main(["export", str(source), "-o", "cells", "--format", "hf"]) == 0
    assert capsys.readouterr() == ("cells  a repository for Hugging Face: hf upload USER/NAME cells\n", "")
    assert sorted(p.name for p in Path("cells").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    config = json.loads(Path("cells/config.json").read_text())
    assert config["architectures"] == ["KBNet_s"]
    assert config["arguments"]["img_channel"] == 1
    assert {k: config[k] for k in FACTS} == FACTS
    _, head, text = Path("cells/README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head) == {
        "license": "mit",
        "library_name": "kbnet",
        "pipeline_tag": "image-to-image",
        "tags": ["image-restoration", "kbnet", "pytorch"],
    }
    assert text.startswith("# Cells\n\nOf one kind.\n")
    assert 'Restorer.from_pretrained("hf://USER/NAME")' in text
    model = zoo.get_model("cells/model.safetensors")
    assert (model.title, model.window, model.range) == ("my cells", 16, "percentile")


@pytest.mark.parametrize("model", SHIPPED, ids=lambda m: m.name)
def test_the_head_of_a_shipped_card_has_what_hugging_face_reads(model):
    cards = pytest.importorskip("huggingface_hub").ModelCard(hub._card(model), ignore_metadata_errors=False)
    head = cards.data.to_dict()
    assert set(head) == {"license", "library_name", "pipeline_tag", "tags", "datasets", "metrics"}
    assert head["license"] == model.license.lower()
    assert head["library_name"] in head["tags"]
    assert f"# {model.title}" in cards.text


def test_other_files_stay_and_a_failure_leaves_none(source, monkeypatch):
    Path("clone/.git").mkdir(parents=True)
    Path("clone/README.md").write_text("old")
    assert main(["export", str(source), "-o", "clone", "--format", "hf"]) == 2
    assert Path("clone/README.md").read_text() == "old"
    assert main(["export", str(source), "-o", "clone", "--format", "hf", "--overwrite"]) == 0
    assert Path("clone/.git").is_dir()

    def fail(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kbnet_plugin.zoo.weights.save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        export(zoo.get_model(source), "new", "hf")
    assert not Path("new").exists()


def test_a_model_is_restored_from_its_address(source, served):
    export(zoo.get_model(source), "cells", "hf")
    Path("cells/code.py").write_text("raise SystemExit")
    served.files["me/cells", "main"] = Path("cells")
    restorer = Restorer.from_pretrained("hf://me/cells", device="cpu")
    assert restorer.name == "hf://me/cells"
    picture = np.random.default_rng(0).random((40, 50), np.float32)
    assert np.array_equal(restorer(picture), Restorer.from_pretrained(source, device="cpu")(picture))
    model = zoo.get_model("hf://me/cells")
    assert (model.title, model.window, model.range) == ("my cells", 16, "percentile")
    assert "Of one kind." in model.card.read_text()
    assert set(served.asked) == {"model.safetensors", "README.md"}


def test_a_revision_is_another_model(source, served, tiny_s):
    save_network(tiny_s(width=16), "wide.safetensors")
    for revision, path in (("main", source), ("v2", "wide.safetensors")):
        export(zoo.get_model(path), revision, "hf")
        served.files["me/cells", revision] = Path(revision)
    assert zoo.get_model("hf://me/cells@v2").load().intro.out_channels == 16
    assert zoo.get_model("hf://me/cells").load().intro.out_channels == 8


def test_what_was_downloaded_needs_no_connection(source, served, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _seconds: None)  # before it tries again
    export(zoo.get_model(source), "cells", "hf")
    served.files["me/cells", "main"] = Path("cells")
    zoo.get_model("hf://me/cells")
    served.server.shutdown()
    served.server.server_close()
    assert zoo.get_model("hf://me/cells").title == "my cells"
    with pytest.raises(OSError, match="cells2: Hugging Face cannot be reached, and the cache has no copy"):
        zoo.get_model("hf://me/cells2")


def test_add_keeps_a_model_among_ones_own(source, served, own, capsys):
    export(zoo.get_model(source), "cells", "hf")
    served.files["me/cells", "main"] = Path("cells")
    assert main(["models", "--add", "hf://me/cells"]) == 0
    assert capsys.readouterr().out == f"cells  {own / 'cells.safetensors'}\n"
    added, before = zoo.get_model("cells"), zoo.get_model(source)
    for key in ("title", "task", "window", "range", "license"):
        assert getattr(added, key) == getattr(before, key)
    assert "Of one kind." in added.card.read_text()
    same = before.load().state_dict()
    assert all(torch.equal(same[name], tensor) for name, tensor in added.load().state_dict().items())
    assert main(["models", "--add", "hf://me/cells"]) == 2
    assert "a model of this name exists already" in capsys.readouterr().err
    assert main(["models", "mine", "--add", str(source), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["path"] == str(own / "mine.safetensors")
    assert main(["models", "--add", "hf://me/cells", "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("hf://cells", ValueError, "hf://cells: write hf://USER/NAME, or hf://USER/NAME@REVISION"),
        ("hf://me/a..b", ValueError, "hf://me/a..b: Cannot have -- or .. in repo_id"),
        ("hf://me/other", FileNotFoundError, "hf://me/other: no such repository, or a private one"),
        ("hf://me/empty", FileNotFoundError, "hf://me/empty: has no model.safetensors"),
        ("hf://me/empty@v3", FileNotFoundError, "hf://me/empty@v3: has no revision 'v3'"),
        ("hf://me/closed", OSError, "hf://me/closed: access is restricted"),
        ("hf://me/junk", ValueError, "truncated or not a safetensors file"),
    ],
)
def test_a_missing_model_is_one_line(served, address, error, message):
    for name in ("empty", "junk"):
        Path(name).mkdir()
        served.files[f"me/{name}", "main"] = Path(name)
    Path("empty/pytorch_model.bin").write_bytes(b"code")
    Path("junk/model.safetensors").write_bytes(b"junk")
    with pytest.raises(error) as caught:
        zoo.get_model(address)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_huggingface_hub_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["info", "hf://me/cells"]) == 2
    err = capsys.readouterr().err
    assert err == "kbnet: hf://me/cells: needs huggingface_hub: pip install 'kbnet[hub]'\n"
