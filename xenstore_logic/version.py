"""Which code runs: the version, and a checksum of the sources as they were when this process was started."""

from pathlib import Path
from typing import Final
from zlib import crc32

VERSION: Final = "0.1.0"
_PACKAGES: Final = ("protocol", "recovery_box", "xenstore_state", "xenstore_logic")


def _checksum() -> int:
    above = Path(__file__).resolve().parent.parent
    sources = (path for package in _PACKAGES for path in sorted((above / package).glob("**/*.py")))
    return crc32(b"".join(path.read_bytes() for path in sources))


CODE: Final = f"{VERSION} ({_checksum():08x})"
"""As `xenstore-control restarts` shows it."""
