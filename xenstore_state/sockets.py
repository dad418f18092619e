"""Sockets that are served, and the epoll set that the next Logic will wait with, filled before it is needed.

A micro-reboot then costs no system call for each connection.  No Logic waits with the set before it is taken: it is made after
one fork for the next, and what a dead Logic was waiting for stays behind in that one's own.  Filling it is done in pieces, while
State has nothing better to do; whoever takes it gets it complete.  A Logic that serves somebody alone gets only whoever is ready
(`readiness`).

Knows nothing of what connections say.
"""

import select
from array import array
from typing import Final

from recovery_box.items import Connection
from recovery_box.lanes import wait_for_all
from xenstore_state.readiness import Readiness

PIECE: Final = 256
"""Sockets added at a time."""
FEW: Final = 16
"""So many may be missing until the set is taken: most connections end before that, and cost the set nothing."""


class Sockets:
    """All sockets, by descriptor, and the next Logic's epoll set."""

    def __init__(self, epoll: select.epoll) -> None:
        """State waits with `epoll`."""
        self._readiness = Readiness(epoll)
        """Looks while Logics do not get every socket."""
        self.by_fd: dict[int, Connection] = {}
        self._next: select.epoll | None = None
        self._last: select.epoll | None = None
        """The set of a Logic that is dead."""
        self._missing: dict[int, None] = {}
        """Descriptors that the next set does not hold yet."""

    def add(self, connection: Connection) -> None:
        """A socket to be served from now on."""
        self.by_fd[connection.fd] = connection
        if self._readiness.looks:
            self._readiness.add(connection.fd)
        else:
            self._missing[connection.fd] = None

    def drop(self, connection: Connection) -> None:
        """A socket that has ended; to be called before its descriptor is closed."""
        fd = connection.fd
        if self.by_fd.pop(fd, None) is None:
            return
        if self._readiness.looks:
            self._readiness.drop(fd)
        elif fd in self._missing:
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
        wait_for_all(self._next, array("i", [missing.popitem()[0] for _ in range(min(most, len(missing)))]))

    def take(self, *, alone: bool = False) -> select.epoll:
        """The set for the next Logic; `renew` begins another one, which must not be done before the fork.

        It is complete; for a Logic that serves somebody `alone` it holds whoever is ready, and others are added as they become so.
        """
        readiness = self._readiness
        self._begin()
        assert self._next is not None
        if alone and not readiness.looks:
            readiness.start(self.by_fd)
            self._missing = {}
        elif readiness.looks and not alone:
            readiness.stop(self.by_fd)
            self._missing = dict.fromkeys(self.by_fd)
        if alone:
            readiness.begin(self._next)
        else:
            self._add(len(self._missing))
        taken, self._next = self._next, None
        return taken

    def hear(self, fd: int) -> bool:
        """Adds whoever is ready to the running Logic's set, if that is what `fd` says; whether it is."""
        if fd != self._readiness.fileno():
            return False
        self._readiness.look()
        return True

    def close_in_fork(self) -> None:
        """In another process: the set that it will wait with is given to it with its turn, if not at once."""
        self._readiness.close_in_fork()
        if self._next is not None:
            self._next.close()

    def renew(self, last: select.epoll) -> None:
        """In State, after the fork: what is filled from now on is for the Logic after this one.

        The `last` set is closed by and by.  That takes a moment for each socket in it, for whoever does it last: a new Logic,
        which closes it as well, must come before State.
        """
        self._last = last
        if not self._readiness.looks:
            self._missing = dict.fromkeys(self.by_fd)

    def _begin(self) -> None:
        if self._last is not None:
            self._last.close()
            self._last = None
        if self._next is None:
            self._next = select.epoll()
