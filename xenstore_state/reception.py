"""The reception: takes connections in, gives each a number, a slot and an id, and hands it to the running Logic.

Descriptor exhaustion and a full box pause accepting, with one line in the log, and nothing spins; both end it again.
Knows nothing of what connections say, and nothing of records.
"""

import logging
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from recovery_box import custody
from recovery_box.box import Box, BoxFull
from recovery_box.custody import Handover
from recovery_box.items import Connection
from recovery_box.lanes import owner_of, prepare_slot, unfinished_slots
from xenstore_state.domains import PRIVILEGED
from xenstore_state.sockets import Sockets
from xenstore_state.store import Store
from xenstore_state.survival import CONNECTION, Survival

log = logging.getLogger(__name__)

TELL_AGAIN_SECONDS: Final = 10.0
"""From one line about a pause to the next: who leaves makes room for one, and the next must wait again."""


class Reception:
    """Listening sockets, slots of the box, and connections on their way to Logic."""

    def __init__(
        self,
        store: Store,
        box: Box,
        listeners: list[socket.socket],
        epoll: select.epoll,
        first_number: int,
        handover: Handover,
        survival: Survival | None = None,
    ) -> None:
        self._store = store
        self._box = box
        self._listeners = {s.fileno(): s for s in listeners}
        self._epoll = epoll
        self._first_number = first_number
        self._reserved = False
        """All low numbers are taken, and nothing else that State opens can come to lie there."""
        self.occupies = False
        """Some of them may be taken for nothing else but that: see `custody.make_room`."""
        self.newcomer: Callable[[Connection], None] = lambda connection: None
        """Told of each connection that was accepted."""
        self._handover = handover
        self.sockets = Sockets(epoll)
        self._queue: deque[Connection] = deque()
        self._blocked = False
        self._survival = survival
        self._next_id = 1
        self._free: list[int] = []
        self._used = 0
        self.accepting = True
        self._pause_told = False
        self._told = -TELL_AGAIN_SECONDS

    def resume_with(self, next_id: int) -> None:
        """Goes on for a State that died: slots in use are those of connections and offers there are."""
        offers = self._store.domains.offers.values()
        taken = {c.slot for c in self._store.items.connections} | {offer.slot for offer in offers}
        for connection in self._store.items.connections:
            if connection.socket:
                self.sockets.add(connection)
        self._next_id = next_id
        self._used = 1 + max(taken, default=-1)
        self._free = [slot for slot in range(self._used) if slot not in taken]

    def open(self) -> None:
        """Begins to listen."""
        for fd in self._listeners:
            self._epoll.register(fd, select.EPOLLIN)

    def close_in_logic(self) -> None:
        """In a fresh Logic: clients are State's to accept."""
        for listener in self._listeners.values():
            listener.close()

    def reserve_numbers(self) -> int:
        """Takes every free number below those of connections; the lowest of them that are only reserved."""
        lowest = custody.reserve_low_numbers(self._first_number)
        self._reserved = self.occupies = True
        return lowest

    def some_came_free(self) -> None:
        """Descriptors were closed that had low numbers."""
        self._reserved = False

    # ---- slots

    def allocate(self, what: str) -> tuple[int, int] | None:
        """Id and prepared slot for a connection that is not accepted here; None, and a line in the log, without room."""
        slot = self._next_slot()
        try:
            self._box.ensure_slot(slot)
        except BoxFull as e:
            log.error("no connection for %s: %s", what, e)
            return None
        return self._take_slot(slot), slot

    def free(self, slot: int) -> None:
        """A slot may be used again."""
        self._free.append(slot)

    def unfinished(self) -> list[Connection] | None:
        """Connections whose lanes have something left to do; None if the box does not say whose they are."""
        found, unknown = [], []
        for slot in unfinished_slots(self._box, self._used):
            connection = self.at(slot)
            if connection is not None:
                found.append(connection)
            else:
                unknown.append(slot)
        return found if set(unknown) <= set(self._free) else None

    def at(self, slot: int) -> Connection | None:
        """The connection that has a slot, if the box still says for whom it was prepared."""
        if slot >= self._used:
            return None
        connection = self._store.items.connections.get(owner_of(self._box, slot))
        return connection if connection is not None and connection.slot == slot else None

    def _next_slot(self) -> int:
        return self._free[-1] if self._free else self._used

    def _take_slot(self, slot: int) -> int:
        """Takes the slot that `_next_slot` named, prepared; the id of its connection."""
        if self._free:
            self._free.pop()
        else:
            self._used += 1
        number = self._next_id
        self._next_id += 1
        if self._survival is not None:
            self._survival.next_id = self._next_id
        prepare_slot(self._box, slot, number)
        return number

    def forget_closed(self) -> None:
        """Connections that have ended give back descriptor and slot."""
        for connection in self._store.closed:
            if self._survival is not None:
                self._survival.closed(connection)
            if connection.socket:
                self.sockets.drop(connection)
                os.close(connection.fd)
            self._free.append(connection.slot)
        self._store.closed.clear()
        if not self.accepting:
            self.resume()

    # ---- accepting

    def accept_from(self, fd: int) -> bool:
        """Takes one waiting client if `fd` is a listener, once there is room for it; whether it is one.

        Whoever else waits makes the listener readable again.
        """
        listener = self._listeners.get(fd)
        if listener is None:
            return False
        slot = self._next_slot()
        try:
            self._box.ensure_slot(slot)
            if self._survival is not None:
                self._survival.prepare()
            if not self._reserved or len(self._store.items.connections) >= custody.plenty(self._first_number):
                self.reserve_numbers()  # one may have become free; no other might be left
            accepted = listener._accept()[0]  # type: ignore[attr-defined]  # the number is all that is wanted
            fd = custody.settle(accepted, self._first_number)
        except BlockingIOError:
            return True
        except BoxFull as full:
            self._pause(str(full))
            return True
        except OSError as e:
            if custody.is_exhaustion(e):
                self._pause(f"out of descriptors or memory ({e.strerror})")
            else:
                log.info("a connection was gone before it was accepted: %s", e)
            return True
        if fd != accepted:
            self.some_came_free()
        if self._survival is not None:
            self._survival.keep(CONNECTION, fd)  # first of all: from here on it outlives State
        if self._pause_told:
            self._pause_told = False
            log.warning("accepting connections again")
        connection = self._connection(slot, fd)
        self._queue.append(connection)
        self.newcomer(connection)
        self._hand_over()
        self._store.connect(connection)
        self.sockets.add(connection)
        return True

    def take_in(self, fd: int) -> None:
        """A State that died had accepted this connection.  The next Logic inherits it."""
        slot = self._next_slot()
        try:
            self._box.ensure_slot(slot)
        except BoxFull as e:
            log.error("no room for a connection that was accepted before: %s", e)
            if self._survival is not None:
                self._survival.drop(fd)
            os.close(fd)
            return
        connection = self._connection(slot, fd)
        self._store.connect(connection)
        self.sockets.add(connection)

    def _connection(self, slot: int, fd: int) -> Connection:
        connection = Connection(self._take_slot(slot), slot, fd, PRIVILEGED, True, True)
        if self._survival is not None:
            self._survival.accepted(connection)
        return connection

    def resume(self) -> None:
        """Accepts again: whatever ran out may be there again."""
        self.accepting = True
        for fd in self._listeners:
            self._epoll.modify(fd, select.EPOLLIN)

    def _pause(self, why: str) -> None:
        self.accepting = False
        for fd in self._listeners:
            self._epoll.modify(fd, 0)
        now = time.monotonic()
        if not self._pause_told and now >= self._told + TELL_AGAIN_SECONDS:
            self._pause_told, self._told = True, now
            count = len(self._store.items.connections)
            log.warning("no more connections are accepted for now: %s (%d open)", why, count)

    # ---- handing over

    def hand_over_by(self, handover: Handover) -> None:
        """Another Logic, which lacks nobody so far, takes descriptors in this way."""
        self._queue.clear()
        self._blocked = False
        self.some_came_free()
        self._handover = handover
        self._epoll.register(handover.keeper_fd, 0)

    def hand_over_to(self, fd: int) -> bool:
        """Goes on handing over if `fd` says that there is room again; whether it does."""
        if fd != self._handover.keeper_fd or not self._blocked:
            return False
        self._hand_over()
        return True

    def hand_over_again(self) -> None:
        """Goes on handing over what could not be for other reasons than want of room; to be called every now and then."""
        if self._blocked:
            self._hand_over()

    def _hand_over(self) -> None:
        queue = self._queue
        while queue:
            c = queue[0]
            if not c.closed and not self._handover.give(c.id, c.slot, c.fd, c.domid):
                break
            queue.popleft()
        if bool(queue) != self._blocked:
            self._blocked = bool(queue)
            # Edge-triggered: there may be room, and no memory.
            self._epoll.modify(self._handover.keeper_fd, select.EPOLLOUT | select.EPOLLET if queue else 0)
