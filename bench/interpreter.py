"""Which interpreter runs the daemon that is measured, and what build of the daemon it has.

For: `bench.opening`, `bench.micro` and `bench.counting`.
Guarantees: a build is described by asking the interpreter itself, not by how a folder is called.
Does not know: how a build is made.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.oracle.build import ROOT
from tests.oracle.daemons import PYTHON

COMPILED = ROOT / ".venv-compiled" / "bin" / "python"
BUILT = ROOT / ".venv-compiled" / ".stamp"
"""When that was built: the Makefile's `$(COMPILED_STAMP)`."""
SOURCES = (
    "protocol/*.py",
    "recovery_box/*.py",
    "recovery_box/*.c",
    "xenstore_state/*.py",
    "xenstore_logic/*.py",
    "xenstored/*.py",
)
"""What it is built of."""

_QUESTION = """
import importlib, json, pkgutil, platform, sys
packages = ("protocol", "recovery_box", "xenstore_state", "xenstore_logic", "xenstored")
compiled = []
for package in map(importlib.import_module, packages):
    for found in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        origin = found.module_finder.find_spec(found.name).origin
        if origin.endswith(".so"):
            compiled.append(found.name)
print(json.dumps({"implementation": platform.python_implementation(), "version": platform.python_version(),
                  "compiler": platform.python_compiler(), "compiled": sorted(compiled),
                  "where": importlib.import_module("xenstored").__path__[0]}))
"""
_HELPERS = frozenset({"recovery_box._lanes", "recovery_box._journal", "recovery_box._clone"})


class Build(NamedTuple):
    """A daemon as some interpreter has it."""

    python: Path
    implementation: str
    version: str
    compiler: str
    compiled: tuple[str, ...]
    """Modules that are machine code."""
    where: str

    @property
    def ahead_of_time(self) -> bool:
        """Whether typed modules are compiled, beyond the helpers."""
        return any(name not in _HELPERS for name in self.compiled)

    @property
    def name(self) -> str:
        """`compiled`, `plain`, or `plain without compiled helpers`."""
        if self.ahead_of_time:
            return "compiled"
        return "plain" if set(self.compiled) >= _HELPERS else "plain without compiled helpers"

    def describe(self) -> str:
        """For people."""
        modules = [name for name in self.compiled if name not in _HELPERS]
        what = f"compiled ahead of time ({len(modules)} modules)" if modules else self.name
        return f"{what}, {self.implementation} {self.version} ({self.compiler})"


class NoBuild(Exception):
    """An interpreter that does not have the daemon."""


def build_of(python: Path | str) -> Build:
    """The build that `python` runs. Raises NoBuild."""
    here = str(python) == sys.executable and not sys.flags.safe_path
    command = [str(python), *([] if here else ["-P"]), "-c", _QUESTION]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    except OSError as error:
        raise NoBuild(f"{python}: {error}") from error
    except subprocess.CalledProcessError as error:
        raise NoBuild(f"{python} has no xenstored: {error.stderr.strip().splitlines()[-1:]}") from error
    answer = json.loads(done.stdout)
    return Build(
        Path(python),
        answer["implementation"],
        answer["version"],
        answer["compiler"],
        tuple(answer["compiled"]),
        answer["where"],
    )


def not_compiled() -> str | None:
    """Why there is no build in .venv-compiled of the sources as they are, or None."""
    build_it = "`make .venv-compiled/.stamp` builds it"
    if not COMPILED.exists() or not BUILT.exists():
        return f"no compiled build: {build_it}"
    newer = [path for pattern in SOURCES for path in ROOT.glob(pattern) if path.stat().st_mtime > BUILT.stat().st_mtime]
    return f"the compiled build is older than {newer[0].relative_to(ROOT)}: {build_it}" if newer else None


def chosen() -> Build:
    """The build to measure: XOARSTORE_PYTHON's; else that of .venv-compiled, if there is one; else this interpreter's.

    From here on every daemon that is started in this process is of that build. Raises NoBuild.
    """
    named = os.environ.get(PYTHON)
    if named:
        return build_of(named)
    if not COMPILED.exists():
        return build_of(sys.executable)
    build = build_of(COMPILED)
    os.environ[PYTHON] = str(COMPILED)
    return build
