"""The `kbnet` command: one module per command, imported only when it runs."""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as in kbnet_plugin
if TYPE_CHECKING:
    from collections.abc import Sequence

_KEPT = {
    "restore": "; finished pictures are kept, and --resume continues stacks",
    "fit": "; the same command continues",
}
"""What to say after an interrupt."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, and return the exit status.

    Parameters
    ----------
    argv : sequence of str, optional
        By default the arguments of this process, whose signals and standard streams are then taken over as
        `kbnet_plugin.process` describes.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    kept = _KEPT.get(arguments[0] if arguments else "", "")
    try:
        from .. import process

        return process.run("kbnet", lambda: _run(arguments), kept) if argv is None else _run(arguments)
    except KeyboardInterrupt:
        print(f"kbnet: interrupted{kept}", file=sys.stderr)
        return 130


def _run(arguments: list[str]) -> int:
    from ._program import run

    return run(arguments)
