"""The ``basicsr`` command."""

from __future__ import annotations

import importlib.util
import os
import sys


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : list of str, optional
        Arguments, such as ``["train", "-opt", ...]``; by default those of the process, whose signals and
        standard streams are then taken over as `kbnet_plugin.process` describes.

    Returns
    -------
    int
        0 on success, 2 for bad input, 130 after Ctrl-C, 143 after SIGTERM.
    """
    try:
        if argv is not None:
            return _run(argv)
        from kbnet_plugin import process

        name = "basicsr" if os.environ.get("RANK", "0") == "0" else ""
        return process.run(name, lambda: _run(sys.argv[1:]))
    except KeyboardInterrupt:
        return 130


def _run(arguments: list[str]) -> int:
    if importlib.util.find_spec("basicsr") is None:
        print("basicsr: BasicSR is not installed: pip install 'kbnet[train]'", file=sys.stderr)
        return 2
    from .command import run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
