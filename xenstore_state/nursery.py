"""The nursery: whoever stands by is forked by a *template*, when each Logic serves one request and another one follows at once.

Theory of operation.  A fork costs State more than anything else that it does: the page tables are copied, and afterwards there
is a fault at every page that it writes to.  Once a second nobody notices; for each request it is most of the time.  So State
forks a template, which does nothing but follow what State writes down, and forks on *order*.  Its children are State's
(`recovery_box.sibling`): each stands by like one that State has forked (`standby`), and is waited for in the same way.

The template never sees a byte that a client has sent, and none of its children can reach it.  Whatever goes wrong with it, it is
replaced; meanwhile nobody stands by, or State forks itself.
"""

import logging
import os
import select
import struct
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from recovery_box import sibling
from recovery_box.custody import Handover
from recovery_box.items import Connection
from recovery_box.ledger import Reader
from recovery_box.line import Line
from xenstore_state.repetition import Incomplete
from xenstore_state.standby import AGAIN_SECONDS, NEWCOMERS_MAX, RENEW_BYTES, Follower
from xenstore_state.survival import Place, Survival
from xenstore_state.worker import Inheritance, StandBy, Worker

log = logging.getLogger(__name__)

BEHIND_BYTES: Final = 700
"""What has been written down that a template leaves to its next child to follow: to do it itself costs a batch less."""
POKE_BYTES: Final = 64 << 10
"""What it may be behind while nobody is ordered."""
PATIENCE: Final = 1.0
"""Seconds within which it has to do what it was told."""
PREPARING: Final = 30.0
"""The same for what it is told first: before, it goes through all of its memory, which may be gigabytes."""
_FORK: Final = b"F"
_FOLLOW: Final = b"P"
_ORDER: Final = struct.Struct("=cQQI")
"""What is to be done, how far to follow (number of the ledger, bytes of it), how many connections wait to be handed over.
Who is only forked follows so far itself."""
_BIRTH: Final = struct.Struct("=i")
"""The pid."""
_ENDS: Final = 3
"""Descriptors that come with an order: two of a line, one of a handover."""
READY: Final = 2
"""Who wait to stand by, behind the one that does: to fork and to serve go on at once, and either takes longer now and then."""


class Template(Follower):
    """In the forked process: forks whoever stands by."""

    def children(self) -> Inheritance:
        """Does what it is told, and never returns; in each child, what that begins with.

        Raises what `hear` raises.
        """
        self._rehearse()
        sibling.prepare()
        says, hears = self._given.line.worker_ends
        while True:
            order, ends, born = sibling.breed(hears, says, _FORK, _ENDS)
            if not order:
                raise EOFError("the keeper is gone")
            kind, number, end, newcomers = _ORDER.unpack(order)
            if born:
                asks, learns, takes = ends
                return self._begin_to_stand_by((number, end), asks, learns, takes)
            if kind == _FORK:
                raise Incomplete("no descriptor was free for a line to State")
            self._catch_up((number, end))
            self._take(newcomers)

    def _rehearse(self) -> None:
        """Does what children are the first to do: the loader looks up then where that is, which each of them would have to."""
        line = Line()
        line.entrust(b".", (line.telling_fd,))
        received = line.receive(1)
        if received is not None:
            for fd in received[1]:
                os.close(fd)
        line.close()
        Reader(self._reader.path).close()

    def _begin_to_stand_by(self, until: tuple[int, int], asks: int, hears: int, takes: int) -> Inheritance:
        given = self._given
        given.line.close()
        given.handover.close()
        given.line, given.handover = Line((asks, hears)), Handover(takes)
        given.template, given.stand_by = None, self._as_it_is
        self._catch_up(until)
        return given

    def _as_it_is(self, given: Inheritance) -> StandBy:
        return self


@dataclass(eq=False)
class Infant:
    """Somebody who was ordered."""

    worker: Worker
    sequence: int
    """Up to which record it follows."""
    ordered: float
    newcomers: list[Connection] = field(default_factory=list)
    """Connections that have come since it was ordered."""


class Nursery:
    """In State: the template, and whom it was told to fork, in that order."""

    def __init__(self, survival: Survival | None, epoll: select.epoll) -> None:
        self._survival = survival
        self._epoll = epoll
        self._template: Worker | None = None
        self._unborn: deque[Infant] = deque()
        self._born: deque[Infant] = deque()
        self._newcomers: list[Connection] = []
        """Those that the template has not."""
        self._due = 0.0
        self._last_birth = 0.0
        """When the template was last heard to have forked somebody; 0 if it has not yet."""
        self.began = self._told = Place("", 0, 0, 0)
        """How far State had written when it forked the template, and when it last told it to follow."""

    @property
    def there(self) -> bool:
        """Whether there is a template."""
        return self._template is not None

    @property
    def may_be(self) -> bool:
        """Whether there is a template, or may be one now: not for a moment after one has failed."""
        return self.there or (sibling.POSSIBLE and time.monotonic() >= self._due)

    @property
    def pids(self) -> set[int]:
        """Of the template, and of all that it has forked who stand by no more than to wait for that."""
        return {w.pid for w in (self._template, *(infant.worker for infant in self._born)) if w is not None}

    @property
    def wants(self) -> bool:
        """Whether somebody is to be ordered."""
        return self._template is not None and len(self._unborn) + len(self._born) < READY

    def begin(self, template: Worker, place: Place) -> None:
        """There is a template from now on, which was forked when State had written so far."""
        self._template = template
        self._last_birth = 0.0
        self.began = self._told = place
        self._epoll.register(template.fd, select.EPOLLIN)
        self._epoll.register(template.line.question_fd, select.EPOLLIN)

    def welcome(self, connection: Connection) -> None:
        """A connection was accepted."""
        if self._template is not None:
            self._newcomers.append(connection)
            for infant in (*self._unborn, *self._born):
                infant.newcomers.append(connection)

    def order(self, sequence: int) -> None:
        """Has somebody forked; `sequence` is that of the last record.  Gives the template up if that can't be."""
        try:
            worker = Worker()
        except OSError as e:
            self._give_up(str(e))
            return
        if self._tell((*worker.line.worker_ends, worker.handover.worker_fd)):
            self._unborn.append(Infant(worker, sequence, time.monotonic()))
        else:
            worker.close()
            self._give_up("it cannot be told anything")

    def _tell(self, ends: tuple[int, ...]) -> bool:
        assert self._template is not None
        assert self._survival is not None
        newcomers = [c for c in self._newcomers if not c.closed]
        self._newcomers.clear()
        place, line = self._survival.place, self._template.line
        if newcomers or not ends or place.total - self._told.total > BEHIND_BYTES:
            self._told = place
            if (
                len(newcomers) > NEWCOMERS_MAX
                or not all(self._template.handover.give(c.id, c.slot, c.fd, c.domid) for c in newcomers)
                or not line.entrust(_ORDER.pack(_FOLLOW, place.number, place.end, len(newcomers)), ())
            ):
                return False
        return not ends or line.entrust(_ORDER.pack(_FORK, place.number, place.end, 0), ends)

    def look_after(self) -> None:
        """Has the template follow, or gives it up; to be called every now and then."""
        if self._template is None or self._survival is None:
            return
        total = self._survival.place.total
        if (
            not self._survival.can_be_followed
            or len(self._newcomers) > NEWCOMERS_MAX
            or (not self._unborn and total - self.began.total > RENEW_BYTES)
            or (total - self._told.total > POKE_BYTES and not self._tell(()))
        ):
            self.dismiss()
        elif self._unborn:
            since = max(self._unborn[0].ordered, self._last_birth)
            if time.monotonic() > since + (PATIENCE if self._last_birth else PREPARING):
                self._give_up("it does nothing")

    def _give_up(self, why: str) -> None:
        log.warning("the template of Logic is given up (%s); another one will be forked by and by", why)
        self._due = time.monotonic() + AGAIN_SECONDS
        self.dismiss()

    def hear(self, fd: int) -> bool:
        """Whether `fd` concerns the template or anybody whom it has forked; who has ended is looked after then."""
        template = self._template
        if template is None:
            return False
        if fd == template.line.question_fd:
            self._hear_of_births()
            return True
        if fd == template.fd:
            if template.ended(0):
                self._give_up("it has ended")
            return True
        for infant in self._born:
            if fd == infant.worker.fd:
                if infant.worker.ended(0):
                    self.dismiss()
                return True
        return False

    def next(self, seconds: float) -> Infant | None:
        """Whoever was ordered first and is there; waits for that, at most so long."""
        self._hear_of_births()
        if seconds and not self._born and self._unborn and self._template is not None:
            waiting = select.poll()
            waiting.register(self._template.line.question_fd, select.POLLIN)
            waiting.poll(seconds * 1000)
            self._hear_of_births()
        if not self._born:
            return None
        self._epoll.unregister(self._born[0].worker.fd)
        return self._born.popleft()

    def _hear_of_births(self) -> None:
        while self._unborn and self._template is not None:
            said = self._template.line.listen()
            if said is None:
                return
            infant = self._unborn.popleft()
            self._last_birth = time.monotonic()
            try:
                infant.worker.in_keeper(*_BIRTH.unpack(said))
                os.waitid(os.P_PIDFD, infant.worker.fd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except (OSError, struct.error) as e:
                infant.worker.in_another()
                if isinstance(e, ProcessLookupError | ChildProcessError):
                    continue  # it has died already
                self._give_up(str(e))
                return
            self._epoll.register(infant.worker.fd, select.EPOLLIN)
            self._born.append(infant)

    def dismiss(self) -> None:
        """There is no template any more, and nobody of it waits to stand by."""
        template, self._template = self._template, None
        if template is None:
            return
        self._epoll.unregister(template.line.question_fd)
        for worker in (template, *(infant.worker for infant in self._born)):
            self._epoll.unregister(worker.fd)
            worker.end()
        for infant in self._unborn:
            infant.worker.close()  # by which it will find that nobody wants it
        self._unborn.clear()
        self._born.clear()
        self._newcomers.clear()

    def in_logic(self) -> None:
        """In a fresh process: none of this is its business."""
        if self._template is not None:
            self._template.in_another()
        for infant in self._born:
            infant.worker.in_another()
        for infant in self._unborn:
            infant.worker.close()
