"""Which code runs: the version, and a digest of the sources as they were when this process was started."""

import hashlib
from importlib import metadata
from pathlib import Path
from typing import Final

_PACKAGES: Final = ("protocol", "recovery_box", "xenstore_state", "xenstore_logic")


def _version() -> str:
    try:
        return metadata.version("xoarstore")
    except metadata.PackageNotFoundError:
        return "not installed"


def _digest() -> str:
    above = Path(__file__).resolve().parent.parent
    sources = (path for package in _PACKAGES for path in sorted((above / package).glob("**/*.py")))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]


CODE: Final = f"{_version()} ({_digest()})"
"""As `xenstore-control restarts` shows it."""
