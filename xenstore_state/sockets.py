"""Sockets that are served, and the epoll set that the next Logic will wait with, filled before it is needed.

A micro-reboot then costs no system call for each connection.  No Logic waits with the set before it is taken: it is made after
one fork for the next, and what a dead Logic was waiting for stays behind in that one's own.  Filling it is done in pieces, while
State has nothing better to do; whoever takes it gets it complete.

Knows nothing of what connections say.
"""

import logging
import select
from array import array
from typing import Final

from recovery_box.items import Connection
from recovery_box.lanes import wait_for_all

log = logging.getLogger(__name__)

PIECE: Final = 256
"""Sockets added at a time."""
FEW: Final = 16
"""So many may be missing until the set is taken: most connections end before that, and cost the set nothing."""


class Sockets:
    """All sockets, by descriptor, and the next Logic's epoll set."""

    def __init__(self) -> None:
        self.by_fd: dict[int, Connection] = {}
        self._next: select.epoll | None = None
        self._last: select.epoll | None = None
        """The set of a Logic that is dead."""
        self._missing: dict[int, None] = {}
        """Descriptors that the next set does not hold yet."""

    def add(self, connection: Connection) -> None:
        """A socket to be served from now on."""
        self.by_fd[connection.fd] = connection
        self._missing[connection.fd] = None

    def drop(self, connection: Connection) -> None:
        """A socket that has ended; to be called before its descriptor is closed."""
        fd = connection.fd
        if self.by_fd.pop(fd, None) is None:
            return
        if fd in self._missing:
            del self._missing[fd]
        elif self._next is not None:
            try:
                self._next.unregister(fd)
            except FileNotFoundError:
                pass

    @property
    def complete(self) -> bool:
        """Whether the next set holds every socket, but for a few."""
        return len(self._missing) <= FEW

    def fill(self) -> None:
        """Adds some of the sockets that are missing, if those are more than a few."""
        if len(self._missing) > FEW:
            self._add(PIECE)

    def _add(self, most: int) -> None:
        self._begin()
        assert self._next is not None
        missing = self._missing
        refused = wait_for_all(self._next, array("i", [missing.popitem()[0] for _ in range(min(most, len(missing)))]))
        if refused:  # the kernel has a limit for this, too
            log.error("%d connections cannot be waited for", refused)

    def take(self) -> select.epoll:
        """The complete set, for a Logic; `renew` begins another one, which must not be done before the fork."""
        self._add(len(self._missing))
        assert self._next is not None
        taken, self._next = self._next, None
        return taken

    def close_in_fork(self) -> None:
        """In a process that was forked ahead: the set that it will wait with is given to it with its turn."""
        if self._next is not None:
            self._next.close()

    def renew(self, last: select.epoll) -> None:
        """In State, after the fork: what is filled from now on is for the Logic after this one.

        The `last` set is closed by and by.  That takes a moment for each socket in it, for whoever does it last: a new Logic,
        which closes it as well, must come before State.
        """
        self._last = last
        self._missing = dict.fromkeys(self.by_fd)

    def _begin(self) -> None:
        if self._last is not None:
            self._last.close()
            self._last = None
        if self._next is None:
            self._next = select.epoll()
