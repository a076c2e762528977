"""Python scripts that repeat a restoration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_HEAD = '''\
"""Restore {layer!r} as the napari plugin of kbnet {kbnet} did{when}."""
'''

_PICTURE = """
from pathlib import Path

import tifffile

from kbnet_plugin import Restorer

source, target = Path({source!r}), Path({target!r}){hint}
{restorer}
noisy = tifffile.imread(source)
clean = restorer(noisy, axes={axes!r})
tifffile.imwrite(target, clean, photometric={photometric!r})
"""

_FILE = """
from pathlib import Path

from kbnet_plugin import Restorer
from kbnet_plugin.inference.files import restore_file

source, target = Path({source!r}), Path({target!r})
{restorer}
for step in restore_file(restorer, source, target, axes={axes!r}, resume=True):
    print(f"{{step.done}} of {{step.total}} tiles", end="\\r")
"""

_RESTORER = """\
restorer = Restorer.from_pretrained({arguments})
if restorer.fingerprint != {weights!r}:
    raise SystemExit("these are not the weights that were used")\
"""


def script(record: dict[str, Any]) -> str:
    """Write a script that repeats the restoration in a layer's record.

    It reads the file of the layer; if there is none, a TIFF as which the user is to save the layer.
    """
    arguments = [repr(record["model"]), *(f"{k}={v!r}" for k, v in record["settings"].items())]
    restorer = _RESTORER.format(arguments=", ".join(arguments), weights=record["weights"])
    path, hint = record.get("path"), ""
    if path is None:
        form, path = _PICTURE, f"{_file_name(record['layer'])}.tif"
        hint = "  # save the layer as this file first"
    else:
        form = _FILE
    source = Path(path)
    target = source.with_name(f"{source.stem}_restored{source.suffix}")
    when = f" on {record['finished'][:10]}" if "finished" in record else ""
    head = _HEAD.format(layer=record["layer"], kbnet=record["versions"]["kbnet"], when=when)
    body = form.format(
        source=str(source),
        target=str(target),
        hint=hint,
        restorer=restorer,
        axes=record["axes"],
        photometric="rgb" if record["axes"].endswith("S") else "minisblack",
    )
    return head + body


def _file_name(layer: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in layer)
