"""Who is ready: State's own look at all sockets, for the time in which each Logic serves somebody alone.

Such a Logic lives too short to be worth an epoll set that holds every socket.  Its set begins empty, and State adds whoever has
something to say, once for each Logic: a set of State's own, which no Logic ever sees, reports each socket once, and again after
it was taken back from the Logic before.

Knows nothing of what connections say.
"""

import select
from array import array
from collections.abc import Iterable
from typing import Final

from recovery_box.lanes import wait_for_all

_ONCE: Final = select.EPOLLIN | select.EPOLLONESHOT
MANY: Final = 256
"""Sockets that are reported at a time."""


class Readiness:
    """State's set, and what it has added to the running Logic's."""

    def __init__(self, epoll: select.epoll) -> None:
        """State waits with `epoll`, and is woken by whoever is ready."""
        self._epoll = epoll
        self._all = select.epoll()
        self._added: dict[int, None] = {}
        """Descriptors that were reported, and are not again until they are taken back."""
        self._logics: select.epoll | None = None
        self.looks = False
        """Whether it looks at the sockets."""

    def fileno(self) -> int:
        """Readable when somebody is ready."""
        return self._all.fileno()

    def start(self, fds: Iterable[int]) -> None:
        """Looks at these descriptors from now on."""
        self.looks = True
        self.add(*fds)
        self._epoll.register(self._all, select.EPOLLIN)

    def stop(self, fds: Iterable[int]) -> None:
        """Looks no more at these, which are all."""
        self._epoll.unregister(self._all)
        for fd in fds:
            _leave(self._all, fd)
        self._added.clear()
        self.looks = False

    def add(self, *fds: int) -> None:
        """Sockets to be looked at from now on."""
        wait_for_all(self._all, array("i", fds), _ONCE)

    def drop(self, fd: int) -> None:
        """A socket that has ended."""
        _leave(self._all, fd)
        if fd in self._added:
            del self._added[fd]
            if self._logics is not None:
                _leave(
                    self._logics, fd
                )  # Logic takes it out, too, but it may have been found ready once more after that

    def begin(self, logics: select.epoll) -> None:
        """Another Logic waits with this set: what was the one's before it is taken back, and whoever is ready is added."""
        self._logics = logics
        added, self._added = self._added, {}
        for fd in added:
            self._all.modify(fd, _ONCE)
        self.look()

    def look(self) -> None:
        """Adds whoever is ready."""
        logics = self._logics
        assert logics is not None
        full = True
        while full:
            found = array("i", [fd for fd, _ in self._all.poll(0, MANY)])
            self._added.update(dict.fromkeys(found))
            wait_for_all(logics, found)
            full = len(found) == MANY

    def close_in_fork(self) -> None:
        """In a process that is not State."""
        self._all.close()


def _leave(epoll: select.epoll, fd: int) -> None:
    try:
        epoll.unregister(fd)
    except FileNotFoundError:
        pass
