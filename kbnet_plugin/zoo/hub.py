"""Models on Hugging Face: download those of others, and write the files of a repository."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .._version import __version__
from ..errors import one_line
from ..files import atomic_path, check_folder
from .card import read_card

if TYPE_CHECKING:
    from .registry import Model

PREFIX = "hf://"
"""How the address of a model on Hugging Face starts."""

WEIGHTS, CARD, CONFIG = "model.safetensors", "README.md", "config.json"
"""Files of a repository. Only the first two are ever downloaded; nothing in them is run."""

_ADDRESS = re.compile(r"hf://([\w.-]+/([\w.-]+))(?:@(\S+))?")
_COPIED = ("license", "tags", "datasets", "metrics")  # lines of a card's head that Hugging Face understands

_USE = """
## Use

With `pip install "kbnet[hub]"`, and the name of this repository for `USER/NAME`:

```python
from kbnet_plugin import Restorer

restorer = Restorer.from_pretrained("hf://USER/NAME")
restored = restorer(image)
```
"""


class Address(NamedTuple):
    """The parts of ``hf://USER/NAME@REVISION``.

    Attributes
    ----------
    repository : str
        ``USER/NAME``.
    name : str
        Its second half.
    revision : str or None
        Branch, tag or commit; None for the main branch.
    """

    repository: str
    name: str
    revision: str | None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Take an address apart.

        Raises
        ------
        ValueError
            If it is not one.
        """
        found = _ADDRESS.fullmatch(text)
        if found is None:
            raise ValueError(f"{text}: write {PREFIX}USER/NAME, or {PREFIX}USER/NAME@REVISION")
        return cls(*found.groups())


def download(text: str) -> tuple[Path, Path | None]:
    """Bring a model from Hugging Face into the cache of huggingface_hub, unless it is there already.

    Parameters
    ----------
    text : str
        ``hf://USER/NAME`` or ``hf://USER/NAME@REVISION``.

    Returns
    -------
    weights : Path
    card : Path or None

    Raises
    ------
    FileNotFoundError
        If there is no such repository, revision or file.
    OSError
        If it cannot be reached, and is not in the cache.
    ValueError
        If `text` is not an address, or huggingface_hub is not installed.
    """
    address = Address.parse(text)
    try:
        from huggingface_hub import errors, hf_hub_download
    except ImportError:
        raise ValueError(f"{text}: needs huggingface_hub: pip install 'kbnet[hub]'") from None

    def fetch(name: str) -> Path:
        return Path(
            hf_hub_download(
                address.repository,
                name,
                revision=address.revision,
                library_name="kbnet",
                library_version=__version__,
            )
        )

    try:
        weights = fetch(WEIGHTS)
        with suppress(errors.EntryNotFoundError):
            return weights, fetch(CARD)
        return weights, None
    except errors.LocalEntryNotFoundError as error:  # which is also an EntryNotFoundError
        raise OSError(f"{text}: Hugging Face cannot be reached, and the cache has no copy") from error
    except errors.EntryNotFoundError as error:
        raise FileNotFoundError(f"{text}: has no {WEIGHTS}, the only file of weights that is read") from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"{text}: has no revision {address.revision!r}") from error
    except errors.GatedRepoError as error:  # which is also a RepositoryNotFoundError
        raise OSError(f"{text}: access is restricted; log in with `hf auth login`") from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(f"{text}: no such repository, or a private one") from error
    except errors.HFValidationError as error:
        raise ValueError(f"{text}: {one_line(error)}") from error
    except OSError as error:
        raise OSError(f"{text}: cannot be downloaded ({one_line(error)})") from error


def write_repository(model: Model, path: Path, metadata: dict[str, str]) -> None:
    """Write the files of a repository: all of them, or none.

    Parameters
    ----------
    model : Model
    path : Path
        Folder, which may exist; other files in it stay.
    metadata : dict
        For the file of weights.
    """
    from .architectures import identify
    from .weights import save_network

    check_folder(path)
    network = model.load()
    _, arguments = identify(network.state_dict())
    config = {
        "model_type": "kbnet",
        "architectures": [model.variant],
        "arguments": arguments,
        "kbnet_version": __version__,
        **metadata,
    }
    created = not path.exists()
    path.mkdir(exist_ok=True)
    try:
        with ExitStack() as files:
            files.enter_context(atomic_path(path / CARD)).write_text(_card(model), encoding="utf-8")
            text = json.dumps(config, indent=1, ensure_ascii=False) + "\n"
            files.enter_context(atomic_path(path / CONFIG)).write_text(text, encoding="utf-8")
            save_network(network, path / WEIGHTS, metadata)
    except BaseException:
        if created:
            with suppress(OSError):
                path.rmdir()
        raise


def _card(model: Model) -> str:
    head, text = read_card(model)
    lines = {key: head[key] for key in _COPIED if key in head}
    if model.license:
        lines.setdefault("license", f"license: {json.dumps(model.license.lower())}")
    lines.setdefault("tags", "tags:\n- image-restoration\n- kbnet\n- pytorch")
    lines |= {"library_name": "library_name: kbnet", "pipeline_tag": "pipeline_tag: image-to-image"}
    use = "" if "\n## Use\n" in text else _USE
    return "\n".join(("---", *lines.values(), "---", text.rstrip("\n"), use))
