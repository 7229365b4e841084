"""Normalization layers for distribution shift, on one fast core.

The public names, and torch with them, are loaded when the first of them is asked for: `shiftnorm --help` needs none.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

__version__ = "0.2.0"

if TYPE_CHECKING:
    from shiftnorm import norms as norms
    from shiftnorm import ops as ops
    from shiftnorm import public
    from shiftnorm.public import *  # noqa: F403  (the roster is listed once, there)

    __all__ = []
    __all__ += public.__all__
else:

    def _load():
        # Not `from shiftnorm import public`, which would ask __getattr__ for it.
        from importlib import import_module

        public = import_module("shiftnorm.public")
        # without the list it is just being loaded, and what is asked for is a part of the package
        if names := getattr(public, "__all__", None):
            globals().update({name: getattr(public, name) for name in names}, __all__=names)

    def __getattr__(name):
        # Python and tools ask modules for many names with underscores, none of which needs torch.
        if name == "__all__" or not name.startswith("_"):
            _load()
            if name in globals():
                return globals()[name]
        # with what Python needs to suggest a near name
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])

    def __dir__():
        _load()
        return sorted(globals())
