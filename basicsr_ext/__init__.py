"""Bridge between KBNet and BasicSR: networks, data, model, metrics and the ``basicsr`` command.

Importing this package only makes ``import basicsr`` work; `basicsr_ext.registry.register` does the rest.
Keep it light: spawned data workers import it again before BasicSR.
"""

from __future__ import annotations

from ._shim import install as _install

_install()
