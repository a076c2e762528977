"""``kbnet info``."""

from __future__ import annotations

import argparse

from .. import zoo
from .._version import __version__
from ..zoo.architectures import identify
from ._common import MODEL, as_name, giga, print_table

DESCRIPTION = (
    "Describe a model or checkpoint. Without one, print the version, devices and backends of this machine."
)
EPILOG = """\
examples:
  kbnet info denoise-color    kind, size and cost of a model
  kbnet info sidd.pth         the same for a checkpoint
  kbnet info                  version, devices and backends
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("model", metavar="MODEL", nargs="?", type=as_name, help=MODEL)


def run(options: argparse.Namespace) -> int:
    """Print the facts, and return the exit status."""
    return describe_machine() if options.model is None else describe(options.model)


def describe_machine() -> int:
    """Print version, devices and backends, and return the exit status."""
    import torch

    devices = [device for device in ("cpu", "cuda", "mps") if _is_available(device)]
    facts = {"torch": torch.__version__, "devices": ", ".join(devices)}
    for device in devices:
        facts |= _backends(device)
    return print_table(f"kbnet {__version__}", facts)


def describe(name: str) -> int:
    """Describe a model and its cost, and return the exit status."""
    from ..inference.device import find_device
    from ..nn.cost import count

    model = zoo.get_model(name)
    network = model.load()
    variant, arguments = identify(network.state_dict())
    cost = count(network)
    parts = {"convolutions": cost.convolution, "KBA": cost.kba, "attention products": cost.attention}
    about = {
        "purpose": model.title,
        "version": model.version,
        "license": model.license,
        "pooling window": model.window and f"{model.window} pixels",
        "range": model.range,
        "card": model.card and f"kbnet models {model.name}",
    }
    size = f"{model.in_channels}x256x256"
    return print_table(
        name,
        {key: str(value) for key, value in about.items() if value}
        | {
            "variant": variant,
            "arguments": ", ".join(f"{name}={value}" for name, value in arguments.items()),
            "channels": f"{model.in_channels} in, {model.out_channels} out",
            "parameters": f"{cost.parameters:,}",
            f"MACs, {size}, in full": f"{giga(cost.macs_total)} = "
            + " + ".join(f"{giga(macs)} {name}" for name, macs in parts.items() if macs),
            f"MACs, {size}, as published": f"{giga(cost.macs_published)} (convolutions only)",
        }
        | _backends(find_device().type),
    )


def _is_available(device: str) -> bool:
    from ..inference.device import find_device

    try:
        find_device(device)
    except ValueError:
        return False
    return True


def _backends(device: str) -> dict[str, str]:
    """Name the backend in use for float32 on a device, and why others cannot run."""
    import torch

    from .. import ops

    x, a = torch.empty(1, 8, 2, 2, device=device), torch.empty(1, 32, 2, 2, device=device)
    w, b = torch.empty(1, 32, 8 * 4 * 9, device=device), torch.empty(1, 32, 8, device=device)
    others = (f"{name}: {reason or 'available'}" for name, reason in ops.available_backends(device).items())
    return {f"KBA on {device}": f"{ops.select_backend(x, a, w, b, groups=2)} ({'; '.join(others)})"}
