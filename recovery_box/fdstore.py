"""Descriptors that outlive the keeper: kept by somebody else, under names, and given back when the keeper starts again.

The protocol is systemd's (sd_notify FDSTORE, sd_listen_fds): whoever keeps them, systemd itself or a guardian process of our
own, is spoken to alike.  A descriptor's name carries its number, so that it comes back under the same one.
Knows nothing of what the descriptors are.
"""

import array
import fcntl
import os
import re
import socket
from collections.abc import MutableMapping
from typing import Final

FIRST: Final = 3
"""Number of the first descriptor that is handed to a process at its start (SD_LISTEN_FDS_START)."""
_NAME: Final = re.compile(r"([a-z]+[0-9]*)\.([0-9]+)")


class FdStore:
    """The way to whoever keeps descriptors."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    def keep(self, what: str, fd: int) -> None:
        """Has a descriptor kept: `what` names it, its number comes along.  Raises OSError."""
        text = f"FDSTORE=1\nFDPOLL=0\nFDNAME={what}.{fd}".encode()
        self._socket.sendmsg([text], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])

    def drop(self, what: str, fd: int) -> None:
        """Has a descriptor given up.  Raises OSError."""
        self._socket.send(f"FDSTOREREMOVE=1\nFDNAME={what}.{fd}".encode())

    def say(self, text: str) -> None:
        """Any other notification, such as STOPPING=1."""
        self._socket.send(text.encode())


def at(address: str) -> FdStore:
    """The one at an address as in $NOTIFY_SOCKET.  Raises OSError."""
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    connected.connect("\0" + address[1:] if address.startswith("@") else address)
    return FdStore(connected)


def inherited(environment: MutableMapping[str, str]) -> dict[str, tuple[int, int]]:
    """What was kept, by name: (number it came under, number it is to have).  Empty at an ordinary start.

    Takes the variables that say so out of the environment: they are not for children.
    """
    count, names = environment.pop("LISTEN_FDS", ""), environment.pop("LISTEN_FDNAMES", "")
    pid = environment.pop("LISTEN_PID", "")
    if not count.isdecimal() or (pid and pid != str(os.getpid())):
        return {}
    found = {}
    for number, name in zip(range(FIRST, FIRST + int(count)), names.split(":"), strict=False):
        match = _NAME.fullmatch(name)
        if match is not None:
            found[match[1]] = number, int(match[2])
        else:
            os.close(number)
    return found


def above(kept: dict[str, tuple[int, int]]) -> int:
    """From this number on no inherited descriptor comes or is to have its place."""
    return 1 + max((max(pair) for pair in kept.values()), default=FIRST)


def settle(kept: dict[str, tuple[int, int]]) -> dict[str, int]:
    """Moves inherited descriptors to the numbers they had; by name, those numbers.  None outlives an exec."""
    moved = {}
    for name, (came, wanted) in kept.items():
        moved[name] = fcntl.fcntl(came, fcntl.F_DUPFD_CLOEXEC, above(kept)), wanted
        os.close(came)
    for came, wanted in moved.values():
        os.dup2(came, wanted, inheritable=False)
        os.close(came)
    return {name: wanted for name, (_, wanted) in moved.items()}
