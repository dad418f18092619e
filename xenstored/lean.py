"""Keeps out of the daemon's processes what no daemon needs.  To be imported before trio.

trio imports modules for streams that nobody opens here, and for what it asks only once.  With the libraries behind them they are
5 MB, and forty mappings that every fork copies.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any, Final

POSTPONED: Final = ("bz2", "hmac", "lzma", "ssl")
FIRST: Final = "xenstore_logic.loop"
"""A compiled module that is imported by a compiled one is in memory with that; by any other, it has five mappings of its own."""


class Postponed(ModuleType):
    """Stands for a module until something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # the import system asks, and can do without
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


for each in POSTPONED:
    sys.modules.setdefault(each, Postponed(each))
import_module(FIRST)
