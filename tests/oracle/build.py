"""Compiles the C helpers of the comparisons, such as the simulated-Xen shim.

For: `tests.oracle.daemons` (the shim) and `bench` (its load client); `python -m tests.oracle.build` makes
both.
Guarantees: a helper is compiled only when it is missing or older than its sources; it appears whole, also
when two processes build it at once; what is missing on this machine is named with its Debian package
(`MissingPackage`).
Does not know: how the helpers are used.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from shutil import which
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "build" / "oracle"
XEN_BIN = Path("/usr/lib/xen-4.17/bin")

GCC = ("gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Wno-unused-parameter")


class MissingPackage(Exception):
    """Something that a Debian package provides is not on this machine."""


class BuildFailed(Exception):
    """The compiler refused a helper; the message holds what it said."""


class Helper(NamedTuple):
    """One file to compile: its name in `OUTPUT`, its sources, what it needs on the machine."""

    name: str
    sources: tuple[Path, ...]
    flags: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    headers_package: str = ""

    @property
    def path(self) -> Path:
        return OUTPUT / self.name

    def missing(self) -> str | None:
        """What must be installed before this can be compiled, or None."""
        if which("gcc") is None:
            return "gcc is missing (Debian package gcc)"
        if which("ld") is None:
            return "ld is missing (Debian package binutils)"
        needed = (*self.headers, "stdio.h")
        for header in needed:
            if not (Path("/usr/include") / header).exists():
                package = "libc6-dev" if header == "stdio.h" else self.headers_package
                return f"/usr/include/{header} is missing (Debian package {package})"
        return None

    def stale(self) -> bool:
        """Whether the compiled file is missing or older than a source or than this module."""
        if not self.path.exists():
            return True
        built = self.path.stat().st_mtime_ns
        return any(source.stat().st_mtime_ns > built for source in (*self.sources, Path(__file__)))


SHIM = Helper(
    "fakexen.so",
    (ROOT / "tests" / "oracle" / "fakexen.c",),
    ("-shared", "-fPIC", "-ldl"),
    ("xenctrl.h", "xenevtchn.h", "xengnttab.h"),
    "libxen-dev",
)


def require(program: str, package: str) -> Path:
    """The path of one of Xen's own programs. Raises MissingPackage."""
    path = XEN_BIN / program
    if not os.access(path, os.X_OK):
        raise MissingPackage(f"{path} is missing (Debian package {package})")
    return path


def compiled(helper: Helper) -> Path:
    """Compiles a helper if it is stale. Raises MissingPackage or BuildFailed."""
    if not helper.stale():
        return helper.path
    reason = helper.missing()
    if reason is not None:
        raise MissingPackage(reason)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=OUTPUT) as scratch:
        target = Path(scratch) / helper.name
        units = [str(source) for source in helper.sources if source.suffix == ".c"]
        command = [*GCC, "-o", str(target), *units, *helper.flags]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise BuildFailed(f"{' '.join(command)}\n{result.stderr}")
        if result.stderr:
            print(result.stderr, file=sys.stderr)
        target.replace(helper.path)
    return helper.path


def build() -> Path:
    """Compiles every helper and returns the folder they stand in. Raises MissingPackage or BuildFailed."""
    for program in ("xenstored", "oxenstored"):
        require(program, "xen-utils-4.17")
    for helper in (SHIM,):
        compiled(helper)
    return OUTPUT


def main() -> int:
    try:
        print(build())
    except (MissingPackage, BuildFailed) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
