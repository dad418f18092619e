"""The loop: readiness in, bytes out, nothing awaited.

A turn takes a batch from the epoll set, and for each ready connection receives, serves at most `TURN_REQUESTS` requests and
notes whom it made output for; then everything made goes out.  Per request: handle it (`core`), publish its record if it
has an effect (`journal`), copy the output into the regions, store one word that says so.  A death between any two of these
steps is made good by the next Logic (`recover`).

A connection whose peer does not read is not read from until its output has gone; others do not notice.
Knows no protocol beyond the header, and nothing of where the box and the descriptors come from.
"""

import logging
import os
import select
from collections.abc import Callable
from typing import Final

from protocol.errors import StoreError
from protocol.ops import Op
from protocol.wire import HEADER, HEADER_SIZE, MESSAGE_MAX, PAYLOAD_MAX
from recovery_box.box import REGION_SIZE, W_ACTIVE, W_ASLEEP, Box
from recovery_box.custody import shut_down
from recovery_box.items import Connection
from recovery_box.journal import Producer
from recovery_box.lanes import M32, BestLane
from xenstore_logic.channels import Channel
from xenstore_logic.core import Core, Performed
from xenstore_state.effects import CLOSE
from xenstore_state.records import Output, Record, encode

log = logging.getLogger(__name__)

TURN_REQUESTS: Final = 32
"""Requests of one connection before others get their turn."""
BATCH: Final = 64
"""Connections in one turn."""
_IN: Final = select.EPOLLIN
_OUT: Final = select.EPOLLOUT
_GONE: Final = select.EPOLLHUP | select.EPOLLERR
_CROWDED: Final = REGION_SIZE - MESSAGE_MAX
"""With more unsent output than this, the next reply might not fit."""
_EIO: Final = StoreError("EIO").payload


class Loop:
    """Serves the connections of one box."""

    def __init__(self, core: Core, box: Box, journal: Producer, epoll: select.epoll, wake: Callable[[], None]) -> None:
        self.core = core
        self._box = box
        self._words = box.words.view
        self._journal = journal
        self._epoll = epoll
        self._wake = wake
        self._channels: dict[int, Channel] = {}
        """By connection id."""
        self._by_fd: dict[int, Channel] = {}
        self._others: dict[int, Callable[[], None]] = {}
        self._ready: dict[Channel, None] = {}
        """Channels with whole requests left over from their last turn."""
        self._dirty: dict[Channel, None] = {}
        """Channels with output made in this turn."""
        self.poison: frozenset[tuple[int, int]] = frozenset()
        """(connection id, stream position) of requests that killed Logic too often; they are answered with EIO."""
        self.running = True

    # ---- wiring

    def listen_to(self, fd: int, callback: Callable[[], None]) -> None:
        """Calls back between requests whenever a descriptor that is not a connection is readable."""
        self._others[fd] = callback
        try:
            self._epoll.register(fd, _IN)
        except FileExistsError:
            self._epoll.modify(fd, _IN)

    def ignore(self, fd: int) -> None:
        """Stops listening to such a descriptor."""
        if self._others.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def add(self, connection: Connection) -> Channel:
        """A connection to be served: a new one, or one inherited, which goes on where it was."""
        channel = Channel(connection, BestLane(self._box, connection.slot, connection.fd))
        self._channels[connection.id] = channel
        self._by_fd[connection.fd] = channel
        channel.interest = _IN
        try:
            self._epoll.register(connection.fd, _IN)
        except FileExistsError:
            self._epoll.modify(connection.fd, _IN)
        return channel

    def welcome(self, connection: Connection) -> None:
        """A new connection.  Most have already sent their first request."""
        self._serve(self.add(connection), _IN)

    def recover(self, last: Record | None) -> None:
        """Continues for a Logic that died: finishes the last published record, then looks at every connection once."""
        for connection in self.core.store.items.connections:
            self.add(connection)
        for output in map(Output._make, last.outputs if last is not None else ()):
            to = self._channels.get(output.connection)
            if to is not None and last is not None:
                to.repeat(output, last.head if output.connection == last.connection else None)
        for channel in list(self._channels.values()):
            lane = channel.lane
            if lane.unsent > REGION_SIZE or (lane.fill - lane.head) & M32 > REGION_SIZE:
                log.error("connection %d: its positions cannot be true; it was closed", channel.connection.id)
                self.close(channel)
                continue
            if channel.connection.overflowed:
                self._hang_up(channel)
                continue
            if channel.connection.pending.chunks:
                channel.move_pending()
            if channel.lane.unsent or channel.connection.pending.chunks:
                self._dirty[channel] = None
            if channel.lane.fill != channel.lane.head:
                self._ready[channel] = None

    # ---- turning

    def run(self) -> None:
        """Serves until `running` is False."""
        self.flush()
        while self.running:
            self.turn()

    def turn(self, timeout: float = -1) -> None:
        """One turn; waits for something to do if there is nothing."""
        by_fd = self._by_fd
        called = []
        for fd, mask in self._epoll.poll(0 if self._ready else timeout, BATCH):
            channel = by_fd.get(fd)
            if channel is not None:
                if mask == _IN and channel.lane.receive() > 0:
                    self._work(channel)
                else:
                    self._serve(channel, mask)
            elif fd in self._others:
                called.append(fd)
        for fd in called:  # last: a new connection must not meet an event of one that had its number before
            self._others[fd]()
        if self._ready:
            ready, self._ready = self._ready, {}
            for channel in ready:
                if not channel.connection.closed:
                    self._work(channel)
        if self._dirty:
            self.flush()

    def _serve(self, channel: Channel, mask: int) -> None:
        if mask & _IN:
            got = channel.lane.receive()
            if got > 0:
                self._work(channel)
                if not mask & _GONE:
                    return
            elif got == 0:
                self._work(channel)
                self.close(channel)
                return
        if mask & _GONE:
            self.close(channel)
        elif mask & _OUT:
            self._dirty[channel] = None

    def _work(self, channel: Channel) -> None:
        """Serves the whole requests that have been received."""
        lane, by = channel.lane, channel.connection
        core, words = self.core, self._words
        trace = core.trace
        for _ in range(TURN_REQUESTS):
            head = lane.head
            there = (lane.fill - head) & M32
            if there < HEADER_SIZE:
                return
            if (lane.made - lane.sent) & M32 > _CROWDED or by.pending.chunks:
                self._dirty[channel] = None
                if by.pending.chunks or not lane.send():
                    self._watch_for(channel, _OUT)
                    return
            data = lane.peek(there if there < MESSAGE_MAX else MESSAGE_MAX)
            op, req_id, tx_id, length = HEADER.unpack_from(data)
            if length > PAYLOAD_MAX:
                log.info("connection %d announced a message of %d bytes and was closed", by.id, length)
                self.close(channel)
                return
            end = HEADER_SIZE + length
            if end > there:
                return
            words[W_ACTIVE] = by.slot << 32 | head
            payload = data[HEADER_SIZE:end]
            if trace.active:
                trace.message("IN", by, op, payload)
            if self.poison and (by.id, head) in self.poison:
                log.error("request %d of connection %d killed Logic again and again: EIO", op, by.id)
                reply = HEADER.pack(Op.ERROR, req_id, tx_id, len(_EIO)) + _EIO
            else:
                reply = core.handle(by, op, req_id, tx_id, payload)
            if trace.active:
                trace.message("OUT", by, HEADER.unpack_from(reply)[0], reply[HEADER_SIZE:])
            head = (head + end) & M32
            if core.effect is None:
                lane.answer(reply, head)
            else:
                self._publish(channel, reply, head, core.effect)
                if by.closed:
                    return
            self._dirty[channel] = None
        self._ready[channel] = None

    def _publish(self, channel: Channel, reply: bytes, head: int, effect: Performed) -> None:
        """One request's effect and all output it causes: one record, then the regions."""
        core, by = self.core, channel.connection
        core.effect = None
        kind, arguments, outcome = effect
        generation = core.store.tree.generation
        lane = channel.lane
        if not core.events and not core.late_events and not by.pending.chunks:
            # Nobody else is told: the common case of the general one below, for speed.
            output = (by.id, lane.made, reply, False)
            self._journal.append(encode((by.id, head, kind, arguments, outcome, generation, (output,))))
            if self._words[W_ASLEEP]:
                self._wake()
            lane.answer(reply, head)
            return
        outputs = self._place(channel, reply)
        self._journal.append(encode(Record(by.id, head, kind, arguments, outcome, generation, tuple(outputs))))
        if self._words[W_ASLEEP]:
            self._wake()
        channels, dirty = self._channels, self._dirty
        for output in outputs:
            to = channels[output.connection]
            to.carry_out(output, head if to is channel else None)
            dirty[to] = None
        for output in outputs:
            if channels[output.connection].connection.overflowed:
                self._hang_up(channels[output.connection])

    def _hang_up(self, channel: Channel) -> None:
        log.warning("connection %d does not read what it is sent and was closed", channel.connection.id)
        self.close(channel)

    def _place(self, channel: Channel, reply: bytes) -> list[Output]:
        core, channels = self.core, self._channels
        made: dict[Channel, list[bytes]] = {}
        ends: dict[Channel, int] = {}

        def put(to: Channel, message: bytes, event: bool) -> None:
            end = (ends.get(to) or to.end) + len(message) & M32
            if event and message[HEADER_SIZE] != 64 and to.is_queued(message, end):  # never those that begin with @
                return
            ends[to] = end
            made.setdefault(to, []).append(message)

        for connection, event in core.events:
            to = channels.get(connection.id)
            if to is not None:
                put(to, event, True)
        put(channel, reply, False)
        for connection, event in core.late_events:
            put(channels[connection.id], event, True)
        core.events.clear()
        core.late_events.clear()
        return [to.place(messages[0] if len(messages) == 1 else b"".join(messages)) for to, messages in made.items()]

    def flush(self) -> None:
        """Sends what was made.  Who cannot take it all is waited for."""
        dirty, self._dirty = self._dirty, {}
        for channel in dirty:
            by, lane = channel.connection, channel.lane
            if by.closed:
                continue
            done = lane.send()
            while done and by.pending.chunks:
                channel.move_pending()
                done = lane.send()
            if done and channel.queued:
                channel.queued.clear()
            if done and channel.interest == _IN:
                continue
            if done:
                self._watch_for(channel, _IN)
                if lane.fill != lane.head:
                    self._ready[channel] = None
            else:
                self._watch_for(channel, _OUT if by.pending.chunks or lane.room < MESSAGE_MAX else _IN | _OUT)

    def _watch_for(self, channel: Channel, interest: int) -> None:
        if channel.interest != interest and not channel.connection.closed:
            channel.interest = interest
            self._epoll.modify(channel.connection.fd, interest)

    def close(self, channel: Channel) -> None:
        """Hangs up: out of the epoll set, shut down, the record, and only then the descriptor."""
        by = channel.connection
        if by.closed:
            return
        self._epoll.unregister(by.fd)
        shut_down(by.fd)
        self.core.trace.thing("DESTROY", "connection", by)
        self.core.perform(CLOSE, by)
        self.core.effect = None
        generation = self.core.store.tree.generation
        self._journal.append(encode((by.id, channel.lane.head, CLOSE, (), "", generation, ())))
        if self._words[W_ASLEEP]:
            self._wake()
        del self._channels[by.id], self._by_fd[by.fd]
        self._dirty.pop(channel, None)
        os.close(by.fd)
