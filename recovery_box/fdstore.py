"""Descriptors that outlive the keeper: kept by somebody else, and given back when the keeper starts again.

The protocol is systemd's (sd_notify FDSTORE, sd_listen_fds): whoever keeps them, systemd itself or a guardian process of our
own, is spoken to alike.  A descriptor's name says what it is and which number it had, so that it comes back under the same
one.  Names are short: those of 16,384 descriptors must fit into one variable of a process's environment (128 KiB).
Knows nothing of what the descriptors are.
"""

import errno
import fcntl
import itertools
import logging
import os
import re
import select
import socket
import time
from collections.abc import MutableMapping, Sequence
from typing import Final, NamedTuple

from recovery_box.custody import enclosing

log = logging.getLogger(__name__)

FIRST: Final = 3
"""Number of the first descriptor that is handed to a process at its start (SD_LISTEN_FDS_START)."""
PATIENCE: Final = 3.0
"""Seconds that whoever keeps descriptors may take to listen; then it counts as dead."""
TOO_MANY_SECONDS: Final = 0.001
_NAME: Final = re.compile(r"([a-z]+[0-9]*)\.([0-9a-z]{1,6})")
_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"


class FdStore:
    """The way to whoever keeps descriptors."""

    def __init__(self, connected: socket.socket, most: int | None = None) -> None:
        """At most so many are kept."""
        self._socket = connected
        connected.setblocking(False)
        self._room = select.poll()
        self._room.register(connected, select.POLLOUT)
        self._most = most
        self._full = False
        self.kept: dict[int, str] = {}
        """What is kept, by number."""

    def fileno(self) -> int:
        """Readable once whoever keeps descriptors is gone (as far as that shows)."""
        return self._socket.fileno()

    def wait_for_room(self) -> None:
        """Returns when something can be said without waiting.  Raises OSError if that takes too long."""
        if not self._room.poll(PATIENCE * 1000):
            raise TimeoutError("it does not listen")

    def _send(self, text: bytes, descriptors: Sequence[tuple[int, int, bytes]] = ()) -> None:
        """Says something; waits only if there is no room for it, but not longer than `PATIENCE`.  Raises OSError."""
        until = 0.0
        while True:
            try:
                self._socket.sendmsg([text], descriptors)
                return
            except OSError as e:
                if e.errno not in {errno.EAGAIN, errno.ETOOMANYREFS}:
                    raise
                now = time.monotonic()
                until = until or now + PATIENCE
                if now > until:  # there is room each time, and somebody else takes it
                    raise TimeoutError("it does not listen") from None
                self.wait_for_room()
                if e.errno == errno.ETOOMANYREFS:  # as many are under way as may be: it is about to take some
                    time.sleep(TOO_MANY_SECONDS)

    def keep(self, what: str, fd: int) -> None:
        """Has a descriptor kept.  Raises OSError."""
        if self._most is not None and len(self.kept) >= self._most:
            if not self._full:
                self._full = True
                log.warning(
                    "no more than %d descriptors are kept: further connections would end with State", self._most
                )
            return
        self.kept[fd] = what
        text = f"FDSTORE=1\nFDPOLL=0\nFDNAME={what}.{_in_digits(fd)}".encode()
        self._send(text, enclosing(fd))

    def drop(self, fd: int) -> None:
        """Has a descriptor given up.  Raises OSError."""
        what = self.kept.pop(fd, None)
        if what is not None:
            self._full = False
            self._send(f"FDSTOREREMOVE=1\nFDNAME={what}.{_in_digits(fd)}".encode())

    def say(self, text: str) -> None:
        """Any other notification, such as STOPPING=1.  Raises OSError."""
        self._send(text.encode())

    def stop(self) -> None:
        """Nothing is to be kept any more: the keeper ends.  Raises OSError."""
        self.say("STOPPING=1")
        self.let_go()

    def let_go(self) -> None:
        """Nothing is to be kept any more, and the keeper goes on.  Raises OSError."""
        for fd in list(self.kept):
            self.drop(fd)

    def keep_alike(self) -> None:
        """A process of ours that keeps them is to be as this one is; there is none here."""

    def close(self) -> None:
        """Nothing more is said; what is kept stays so."""
        self._socket.close()


def at(address: str, most: int | None = None) -> FdStore:
    """The one at an address as in $NOTIFY_SOCKET.  Raises OSError."""
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    connected.connect("\0" + address[1:] if address.startswith("@") else address)
    return FdStore(connected, most)


class Inherited(NamedTuple):
    """One descriptor that was kept."""

    what: str
    came: int
    """The number it came under."""
    number: int
    """The number it is to have."""


def inherited(environment: MutableMapping[str, str], ours: re.Pattern[str]) -> list[Inherited]:
    """What was kept, by names that are `ours`; others are closed.  Empty at an ordinary start.

    Takes the variables that say so out of the environment: they are not for children.
    """
    count, names = environment.pop("LISTEN_FDS", ""), environment.pop("LISTEN_FDNAMES", "")
    pid = environment.pop("LISTEN_PID", "")
    if not count.isdecimal() or (pid and pid != str(os.getpid())):
        return []
    found = []
    for number, name in zip(range(FIRST, FIRST + int(count)), names.split(":"), strict=False):
        match = _NAME.fullmatch(name)
        if match is not None and ours.fullmatch(match[1]):
            found.append(Inherited(match[1], number, int(match[2], 36)))
        else:
            os.close(number)
    return found


def settle(kept: list[Inherited], others: tuple[int, ...] = ()) -> tuple[dict[int, str], tuple[int, ...]]:
    """Moves inherited descriptors to the numbers they had, and others that came along out of their way.

    By number, what the kept ones are; the new numbers of the others.  None outlives an exec.  Needs one free number only.
    """
    wanted = {one.number for one in kept}
    came = {*others, *(one.came for one in kept)}
    free = (n for n in itertools.count(FIRST) if n not in wanted and (n in came or not _is_open(n)))
    places = [(one.came, one.number) for one in kept] + [(fd, next(free)) for fd in others]
    there = dict(places)
    while there:
        fd, place = there.popitem()
        if fd == place:
            os.set_inheritable(fd, False)
            continue
        if place in there:  # somebody else came under this number
            aside = fcntl.fcntl(place, fcntl.F_DUPFD_CLOEXEC, FIRST)
            there[aside] = there.pop(place)
        os.dup2(fd, place, inheritable=False)
        os.close(fd)
    return {one.number: one.what for one in kept}, tuple(place for _, place in places[len(kept) :])


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def number_of(kept: dict[int, str], what: str) -> int | None:
    """The number of the one descriptor that is this."""
    return next((number for number, name in kept.items() if name == what), None)


def _in_digits(number: int) -> str:
    text = _DIGITS[number % 36]
    while number := number // 36:
        text = _DIGITS[number % 36] + text
    return text
