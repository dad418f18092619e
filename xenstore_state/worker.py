"""A Logic as State sees it: a process, the ways to talk to it, and what it is given to begin with."""

import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from recovery_box.box import W_BEAT, Box
from recovery_box.custody import Handover
from recovery_box.items import Connection
from recovery_box.journal import Producer
from recovery_box.line import Line
from xenstore_state.hypervisor import Hypervisor
from xenstore_state.records import Record
from xenstore_state.store import Store

TICK: Final = 0.001
"""Seconds between looks at the journal while records come: how far State may lag behind."""


class StandBy(Protocol):
    """What a Logic does until its turn comes (`standby`)."""

    def fileno(self) -> int:
        """Readable when there is something to hear."""

    def hear(self) -> "Inheritance | None":
        """Follows; what to serve with, once the turn has come."""


class Breeding(Protocol):
    """What a template does (`nursery`)."""

    def children(self) -> "Inheritance":
        """Returns in each child, with what that begins with."""


@dataclass(eq=False)
class Inheritance:
    """What a new Logic starts with; whoever stands by learns some of it only when its turn comes."""

    store: Store
    box: Box
    epoll: select.epoll | None
    """What it waits with; None as long as it stands by."""
    handover: Handover
    line: Line
    hypervisor: Hypervisor | None
    """None when there is none: sockets only."""
    sockets: dict[int, Connection]
    """By descriptor; the epoll set holds them all, or comes to hold whoever is ready."""
    begun: list[Connection] | None
    """Connections that have something left to do; None if every one must be looked at."""
    last: Record | None
    """The last record applied; its output may not have been made."""
    sequence: int
    poison: frozenset[tuple[int, int]]
    """(connection id, input position) of requests that are answered with EIO."""
    penalties: dict[int, float]
    """Until when connections are not to be served, by id, in seconds of the monotonic clock."""
    guarded: bool
    """Somebody starts State again when it ends."""
    history: str
    """What an operator is told of restarts."""
    dump_path: str
    """Where Logic writes its tree when SIGUSR2 asks for it: State has another one."""
    bell: int
    stand_by: "Callable[[Inheritance], StandBy] | None" = None
    """What a Logic does that is forked ahead, until its turn comes; None if it is its turn."""
    template: "Callable[[Inheritance], Breeding] | None" = None
    """What a process does that never becomes Logic, but forks those that stand by."""

    def producer(self) -> Producer:
        """The writing end of the journal."""
        return Producer(self.box, self.sequence, self._wait)

    def wake(self) -> None:
        """Wakes State."""
        os.eventfd_write(self.bell, 1)

    def _wait(self) -> None:
        self.box.words[W_BEAT] += 1
        self.wake()
        time.sleep(TICK / 5)


@dataclass(eq=False)
class Worker:
    """One process.  Make it before the fork; then either `in_worker` or `in_keeper` is called on each side."""

    line: Line = field(default_factory=Line)
    handover: Handover = field(default_factory=Handover)
    pid: int = 0
    fd: int = -1
    """A pidfd: readable when the process has ended."""

    def in_worker(self) -> None:
        """In the fresh process."""
        self.handover.in_worker()
        self.line.in_worker()

    def in_another(self) -> None:
        """In a fresh process that is another worker's: none of this is its business."""
        self.close()
        if self.fd >= 0:
            os.close(self.fd)

    def in_keeper(self, pid: int) -> None:
        """In State."""
        self.pid = pid
        self.handover.in_keeper()
        self.line.in_keeper()
        self.fd = os.pidfd_open(pid)

    def signal(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.pid:
            try:
                signal.pidfd_send_signal(self.fd, number)
            except ProcessLookupError:
                pass

    def ended(self, seconds: float) -> bool:
        """Whether it has ended; waits for that, at most so long.  Needs no descriptor: there may be none."""
        if not self.pid:
            return True
        waiting = select.poll()
        waiting.register(self.fd, select.POLLIN)
        return bool(waiting.poll(seconds * 1000))

    def reap(self, *, later: bool = False) -> Any:
        """Waits for its end, and says how that was (`os.waitid`).

        To reap it takes the kernel milliseconds if somebody has looked at its descriptors in /proc: `later`, others do that.
        """
        found = os.waitid(os.P_PIDFD, self.fd, os.WEXITED | (os.WNOWAIT if later else 0))
        os.close(self.fd)
        self.fd, self.pid = -1, 0
        return found

    def end(self) -> None:
        """Kills it, and closes all there is of it here."""
        self.signal(signal.SIGKILL)
        self.reap()
        self.close()

    def close(self) -> None:
        """Closes what is open here of the ways to talk to it."""
        self.line.close()
        self.handover.close()
