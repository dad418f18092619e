"""Domain 0's ring as Linux offers it: a client over `/dev/xen/xenbus`, for the suite inside a real dom0.

The kernel sits between: it hands out request ids of its own, answers watches and unknown transactions itself, and takes
messages of at most 4,096 bytes with their header.  Cases about the ring itself need a simulated Xen instead.
"""

from __future__ import annotations

import os
import select
from pathlib import Path

from tests.conformance.wire import PATIENCE, Client, Closed

DEVICES = (Path("/dev/xen/xenbus"), Path("/proc/xen/xenbus"))


class XenbusClient(Client):
    """One opening of the device; everything a `Client` offers."""

    def __init__(self, fd: int | None = None) -> None:
        """Opens the device, or takes a descriptor that is open already."""
        self._begin()
        self._fd = os.open(_device(), os.O_RDWR | os.O_CLOEXEC) if fd is None else fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def send_raw(self, data: bytes, *, timeout: float = PATIENCE) -> None:
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            raise Closed(str(error)) from error

    def receive_raw(self, timeout: float) -> bytes:
        if not select.select([self._fd], [], [], timeout)[0]:
            raise TimeoutError("nothing came from the device within the time given")
        data = os.read(self._fd, 4096)
        if not data:
            raise Closed("end of the device")
        return data


def _device() -> Path:
    for path in DEVICES:
        if path.exists():
            return path
    raise FileNotFoundError(f"no {DEVICES[0]}: this is no domain 0 of a Xen")
