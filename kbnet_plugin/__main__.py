"""``python -m kbnet_plugin`` is the `kbnet` command."""

import sys

from .cli import main

sys.exit(main())
