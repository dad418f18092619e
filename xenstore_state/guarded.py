"""State's eye on whoever keeps its descriptors: an end is noticed, and somebody else is given everything (`survival`).

Knows nothing of how one is started.
"""

import select

from recovery_box.fdstore import FdStore
from xenstore_state.survival import Survival


class Guarded:
    """Whoever keeps the descriptors now, in an epoll set."""

    def __init__(self, epoll: select.epoll, survival: Survival | None) -> None:
        self._epoll = epoll
        self._survival = survival
        self._guardian: FdStore | None = None
        self._fd = -1

    def look(self) -> None:
        """Takes care to notice the end of whoever it is by now."""
        survival = self._survival
        if survival is None or survival.keeper is self._guardian or not survival.can_be_lost:
            return
        if self._fd >= 0:
            try:
                self._epoll.unregister(self._fd)
            except OSError:
                pass  # it was closed
        self._guardian, self._fd = survival.keeper, survival.keeper.fileno()
        self._epoll.register(self._fd, 0)  # it says nothing, but its end shows

    def keep_alike(self) -> None:
        """Whatever was done to State was meant for the daemon, and so for whoever starts State again."""
        if self._guardian is not None:
            self._guardian.keep_alike()

    def has_ended(self, fd: int) -> bool:
        """Whether `fd` says that it has ended; then another one is looked for."""
        if fd != self._fd:
            return False
        self._epoll.unregister(fd)
        self._fd = -1
        if self._survival is not None and self._survival.keeper is self._guardian:
            self._survival.keeper_gone("it has ended")
        return True
