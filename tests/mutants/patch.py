"""Replaces a piece of a module's text as it is imported: how a broken daemon comes about.

`install` acts on this process; `sitecustomize` in `site` calls it in every Python that is started with `environment`.
"""

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Final

from tests.mutants.mutations import MUTATIONS, Mutation

VARIABLE: Final = "XOARSTORE_MUTATION"
SITE: Final = Path(__file__).parent / "site"
ROOT: Final = Path(__file__).parents[2]
BY_NAME: Final = {mutation.name: mutation for mutation in MUTATIONS}


class Stale(Exception):
    """The piece that a mutation replaces does not stand exactly once in its module."""


def applied(mutation: Mutation, text: str) -> str:
    """The module's text, broken.  Raises `Stale`."""
    count = text.count(mutation.old)
    if count != 1:
        raise Stale(f"{mutation.name}: its piece stands {count} times in {mutation.module}")
    return text.replace(mutation.old, mutation.new)


class BrokenLoader(SourceFileLoader):
    """Loads the broken module."""

    def __init__(self, mutation: Mutation, path: str) -> None:
        super().__init__(mutation.module, path)
        self.mutation = mutation

    def get_code(self, fullname: str) -> CodeType:
        """Never from a cache, nor into one."""
        text = applied(self.mutation, Path(self.path).read_text())
        code: CodeType = compile(text, self.path, "exec", dont_inherit=True)
        return code


class Finder(MetaPathFinder):
    """Finds the one module that is broken."""

    def __init__(self, mutation: Mutation) -> None:
        self.mutation = mutation

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.mutation.module:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        assert spec is not None
        assert spec.origin is not None
        spec.loader = BrokenLoader(self.mutation, spec.origin)
        return spec


def install(name: str) -> None:
    """From here on this process imports the broken module."""
    mutation = BY_NAME[name]
    assert mutation.module not in sys.modules, f"{mutation.module} was imported already"
    sys.meta_path.insert(0, Finder(mutation))


def environment(name: str) -> dict[str, Any]:
    """The environment of a process that, with all its children, is broken like this."""
    paths = [str(SITE), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, VARIABLE: name, "PYTHONPATH": os.pathsep.join(paths), "XOARSTORE_SHRINK": "0"}
