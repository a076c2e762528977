"""``python -m kbnet_plugin`` is the `kbnet` command."""

import os
import sys

try:
    from .cli import main
except KeyboardInterrupt:
    os._exit(130)

sys.exit(main())
