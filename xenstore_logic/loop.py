"""The loop: readiness in, bytes out, nothing awaited.

A turn takes a batch from the epoll set, and for each ready connection receives, serves at most `TURN_REQUESTS` requests and
notes whom it made output for; then everything made goes out.  Per request: handle it (`core`), publish its record if it
has an effect (`journal`), copy the output into the regions, store one word that says so.  A death between any two of these
steps is made good by the next Logic (`recover`).

A connection whose peer does not read is not read from until its output has gone; others do not notice.  One whose peer says
nothing more is closed when everything that came before is answered, and the answers have gone.
Knows no protocol beyond the header, and nothing of where the box and the descriptors come from; what is particular to rings
is in `rings`.
"""

import logging
import os
import select
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from protocol.errors import StoreError
from protocol.ops import Op
from protocol.ring import ERROR_COMM
from protocol.wire import HEADER, HEADER_SIZE, MESSAGE_MAX, PAYLOAD_MAX, messages
from recovery_box.box import REGION_SIZE, W_ACTIVE, W_ASLEEP, W_BEAT, W_LAST, Box
from recovery_box.custody import reads_no_more, shut_down
from recovery_box.items import Chunk, Connection
from recovery_box.journal import Producer
from recovery_box.lanes import M32, BestLane, is_idle, is_incomplete, note_incomplete, output_made
from xenstore_logic import domains
from xenstore_logic.channels import Channel
from xenstore_logic.core import Core, Performed
from xenstore_logic.host import Later
from xenstore_logic.rings import Rings
from xenstore_state.domains import PRIVILEGED
from xenstore_state.effects import CHANGES_CONNECTIONS, CLOSE, DIGEST, ENDS_DOMAIN, INTRODUCE, NOTHING
from xenstore_state.records import Placed, Record

log = logging.getLogger(__name__)

TURN_REQUESTS: Final = 32
"""Requests of one connection before others get their turn."""
BATCH: Final = 64
"""Connections in one turn."""
_IN: Final = select.EPOLLIN
_OUT: Final = select.EPOLLOUT
_GONE: Final = select.EPOLLHUP | select.EPOLLERR
DOES_NOT_READ: Final = "does not read what it is sent"
BEAT_SECONDS: Final = 0.5
"""Longest time between two turns."""
DIGEST_EVERY: Final = 1000
"""Changes of the tree after which its digest is published."""
_CROWDED: Final = REGION_SIZE - MESSAGE_MAX
"""With more unsent output than this, the next reply might not fit."""
_ERROR: Final = int(Op.ERROR)
_AT: Final = ord("@")
_EINVAL: Final = StoreError("EINVAL").payload
_EIO: Final = StoreError("EIO").payload
_NOTHING: Final[Performed] = (NOTHING, (), "")


class Loop:
    """Serves the connections of one box."""

    def __init__(self, core: Core, box: Box, journal: Producer, epoll: select.epoll, wake: Callable[[], None]) -> None:
        self.core = core
        self._box = box
        self.words = box.words.view
        self._journal = journal
        self._epoll = epoll
        self._wake = wake
        self._channels: dict[int, Channel] = {}
        """By connection id."""
        self._by_fd: dict[int, Channel] = {}
        self._sleeping: dict[int, Connection] = {}
        """Sockets, by descriptor, for which there was nothing to do yet."""
        self._others: dict[int, Callable[[], None]] = {}
        self._ready: dict[Channel, None] = {}
        """Channels with whole requests left over from their last turn."""
        self._dirty: dict[Channel, None] = {}
        """Channels with output made in this turn."""
        self.holds = False
        """Nothing goes out before the end of a turn: somebody must agree first."""
        self.poison: frozenset[tuple[int, int]] = frozenset()
        """(connection id, stream position) of requests that killed Logic too often; they are answered with EIO."""
        self._penalized: dict[Channel, float] = {}
        """Whose requests have killed Logic, with until when they are not served."""
        self.running = True
        self.served = 0
        """Requests handled."""
        self.rings: Rings | None = None
        """None without a hypervisor."""
        self._digest_at = self._next_digest()

    def _next_digest(self) -> int:
        """The generation at which the next digest of the tree is due, whichever Logic gets there."""
        return (self.core.store.tree.generation // DIGEST_EVERY + 1) * DIGEST_EVERY

    @property
    def published(self) -> int:
        """Number of the last record that any Logic has published."""
        return self._journal.sequence

    # ---- wiring

    def listen_to(self, fd: int, callback: Callable[[], None]) -> None:
        """Calls back between requests whenever a descriptor that is not a connection is readable."""
        self._others[fd] = callback
        self._wait_for(fd, _IN)

    def ignore(self, fd: int) -> None:
        """Stops listening to such a descriptor."""
        if self._others.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def add(self, connection: Connection) -> Channel:
        """A new connection to be served."""
        if connection.socket:
            self._listen(connection)
        return self.channel(connection)

    def _listen(self, connection: Connection) -> None:
        self._sleeping[connection.fd] = connection
        self._wait_for(connection.fd, _IN)

    def _wait_for(self, fd: int, interest: int) -> None:
        """Has the set wait for a descriptor that State may have added to it."""
        try:
            self._epoll.register(fd, interest)
        except FileExistsError:
            self._epoll.modify(fd, interest)

    def channel(self, connection: Connection) -> Channel:
        """The channel of a connection that is served.  One inherited gets it when there is something to do for it."""
        channel = self._channels.get(connection.id)
        if channel is not None:
            return channel
        if connection.socket:
            channel = Channel(connection, BestLane(self._box, connection.slot, connection.fd))
            channel.interest = _IN
            self._by_fd[connection.fd] = channel
            self._sleeping.pop(connection.fd, None)
        else:
            assert self.rings is not None
            channel = self.rings.add(connection)
        self._channels[connection.id] = channel
        return channel

    def welcome(self, connection: Connection) -> None:
        """A new connection.  Most have already sent their first request."""
        self.serve(self.add(connection), _IN)

    def inherit(self, sockets: dict[int, Connection]) -> None:
        """Begins with all sockets, by descriptor; the epoll set holds them already, or State adds whoever is ready."""
        self._sleeping = sockets

    def recover(self, last: Record | None, begun: list[Connection] | None = None) -> None:
        """Continues for a Logic that died: finishes the last published record, then whatever else was begun.

        What was begun is looked for if nobody knows.
        """
        rings, connections = self.rings, self.core.store.items.connections
        if rings is not None:
            for domain in self.core.store.domains.known:
                if domain.connection is not None:
                    rings.inherit(domain.connection)
        unfinished = [c for c in connections if self._is_unfinished(c)] if begun is None else begun
        for output in last.outputs if last is not None else ():
            number, _, data, _, _ = output
            to = connections.get(number)
            if to is None and last is not None and (last.kind, last.arguments) == (INTRODUCE, (PRIVILEGED,)):
                self._answer_again(data)
            elif to is not None and last is not None:
                self.channel(to).repeat(output, last.head if number == last.connection else None)
                self._dirty[self.channel(to)] = None
        for connection in unfinished:
            if not connection.closed:
                self._continue(self.channel(connection))
        if rings is not None:
            rings.recover()

    def _is_unfinished(self, by: Connection) -> bool:
        return bool(by.pending.chunks) or by.overflowed or not is_idle(self._box, by.slot)

    def _continue(self, channel: Channel) -> None:
        lane, by = channel.lane, channel.connection
        by.pending.trim(lane.made)
        for chunk in by.pending.chunks:
            self._link(chunk.cause, 1)
        if lane.unsent > REGION_SIZE or (lane.fill - lane.head) & M32 > REGION_SIZE:
            self._hang_up(channel, "has positions that cannot be true")
            return
        if by.overflowed:
            self._hang_up(channel, DOES_NOT_READ)
            return
        if by.pending.chunks and channel.ring is None:
            channel.move_pending()
        if lane.unsent or by.pending.chunks:
            self._dirty[channel] = None
        if lane.fill != lane.head:
            self._ready[channel] = None
            channel.waiting = True  # until it is known whether a whole request is there

    # ---- turning

    def turn(self, timeout: float = BEAT_SECONDS) -> None:
        """One turn; waits for something to do if there is nothing, but not longer than a heart may stand still."""
        by_fd, rings = self._by_fd, self.rings
        self.words[W_BEAT] += 1
        called = []
        if self._ready:
            timeout = 0.0
        elif rings is not None and rings.timed:
            timeout = rings.wait(timeout)
        if self._penalized:
            self._forgive()
        for fd, mask in self._epoll.poll(timeout, BATCH):
            channel = by_fd.get(fd)
            if channel is None and fd in self._sleeping:
                channel = self.channel(self._sleeping[fd])
            if channel is not None:
                if mask == _IN and channel.lane.receive() > 0:
                    self.work(channel)
                else:
                    self.serve(channel, mask)
            elif fd in self._others:
                called.append(fd)
        for fd in called:  # last: a new connection must not meet an event of one that had its number before
            self._others[fd]()
        if rings is not None and rings.timed:
            rings.look_at_clock()
        if self._ready:
            ready, self._ready = self._ready, {}
            for channel in ready:
                if not channel.connection.closed:
                    self.work(channel)
        if self._dirty:
            self.flush()
        if rings is not None and rings.taken:
            rings.unmask()

    def first_turn(self) -> None:
        """A turn that goes on with whose turn it is after the last Logic's.

        The set is a new one, and shows first whom the last one showed first; and Logic may live for no more than one turn.
        """
        found = self.poll(0.0, self.words[W_LAST])
        if found:
            self.words[W_LAST] = found[-1][0].connection.id
        for channel, mask in found:
            if not channel.connection.closed:
                self.serve(channel, mask)
        for channel in self.take_ready():
            if not channel.connection.closed:
                self.work(channel)
        self.flush()
        if self.rings is not None and self.rings.taken:
            self.rings.unmask()

    def poll(self, timeout: float, last: int) -> list[tuple[Channel, int]]:
        """Half a turn: waits, does whatever concerns no request, and says which connections are ready, with epoll's mask.

        Of more than one turn serves, those that come after `last` (a connection id).
        """
        self.words[W_BEAT] += 1
        if self._ready:
            timeout = 0.0
        elif self.rings is not None and self.rings.timed:
            timeout = self.rings.wait(timeout)
        if self._penalized:
            self._forgive()
        found, called = [], []
        ready = self._epoll.poll(timeout, BATCH + len(self._by_fd) + len(self._sleeping))
        for fd, mask in ready if len(ready) <= BATCH else self._whose_turn(ready, last):
            channel = self._by_fd.get(fd)
            if channel is None and fd in self._sleeping:
                channel = self.channel(self._sleeping[fd])
            if channel is not None:
                found.append((channel, mask))
            elif fd in self._others:
                called.append(fd)
        for fd in called:
            self._others[fd]()
        if self.rings is not None and self.rings.timed:
            self.rings.look_at_clock()
        return found

    def _whose_turn(self, ready: list[tuple[int, int]], last: int) -> list[tuple[int, int]]:
        """As many connections as one turn serves, and whatever else there is."""
        ids = {fd: self._by_fd[fd].connection.id for fd, _ in ready if fd in self._by_fd}
        ids |= {fd: self._sleeping[fd].id for fd, _ in ready if fd in self._sleeping}
        connections = [event for event in ready if event[0] in ids]
        connections.sort(key=lambda event: (ids[event[0]] <= last, ids[event[0]]))
        return connections[:BATCH] + [event for event in ready if event[0] not in ids]

    def take_ready(self) -> list[Channel]:
        """Channels with whole requests left over; whoever takes one serves it, or leaves it to the next Logic."""
        ready, self._ready = self._ready, {}
        return [channel for channel in ready if not channel.connection.closed]

    def is_crowded(self, channel: Channel) -> bool:
        """Whether a socket's peer must read before another request of it is served."""
        return channel.lane.unsent > _CROWDED or bool(channel.connection.pending.chunks)

    def has_to_wait(self, channel: Channel) -> bool:
        """Whether no request of a connection may be served for now; what ends that is seen to.

        What was received meanwhile stands in the region: the next Logic finds that there is something.
        """
        if channel in self._penalized:
            self._listen_less(channel)
            return True
        if channel.bound and self.rings is not None:
            return not self.rings.gate.may_go(channel)
        if not (channel.unread if channel.ring is None else self.is_crowded(channel)):
            return False
        self._dirty[channel] = None  # sending will say for what to wait
        return True

    def note(self, channel: Channel) -> None:
        """Remembers beyond this Logic that what a channel that was just worked off has left is less than a request."""
        if not (channel.connection.closed or channel.waiting or (channel.ring is None and self.is_crowded(channel))):
            note_incomplete(self._box, channel.connection.slot, channel.lane.fill)

    def has_left_over(self, channel: Channel) -> bool:
        """Whether something has been received that nobody has found to be less than a request; no byte of it is looked at."""
        lane = channel.lane
        return lane.fill != lane.head and not is_incomplete(self._box, channel.connection.slot, lane.fill)

    def punish(self, penalties: dict[int, float]) -> None:
        """Does not serve these connections (by id) until then (seconds of the monotonic clock)."""
        for number, until in penalties.items():
            connection = self.core.store.items.connections.get(number)
            if connection is not None:
                log.warning("connection %d (domain %d) has to wait: its requests kill Logic", number, connection.domid)
                self._penalized[self.channel(connection)] = until

    def _forgive(self) -> None:
        now = time.monotonic()
        for channel in [c for c, until in self._penalized.items() if until <= now]:
            del self._penalized[channel]
            if not channel.connection.closed:
                self.look_at(channel)

    def serve(self, channel: Channel, mask: int) -> None:
        """Serves a connection for which there were such events."""
        if mask & _IN:
            got = channel.lane.receive()
            if got > 0:
                self.work(channel)
                if not mask & _GONE:
                    return
            elif got == 0:
                self.work(channel)
                if not (channel.waiting or channel.unread):  # else the end is met again when that is done
                    self.close(channel)
                return
        if mask & _GONE:
            self.close(channel)
        elif mask & _OUT:
            self._dirty[channel] = None

    def work(self, channel: Channel) -> None:
        """Serves the whole requests that have been received."""
        lane, by = channel.lane, channel.connection
        core, words, bound = self.core, self.words, channel.bound
        trace = core.trace
        channel.waiting = False
        for _ in range(TURN_REQUESTS):
            head = lane.head
            if lane.fill == head:
                return
            if not bound and ((lane.made - lane.sent) & M32 > _CROWDED or by.pending.chunks):
                self._dirty[channel] = None
                if by.pending.chunks or channel.ring is not None or self.holds or not lane.send():
                    self._wait_for_room(channel)
                    return
            frame = lane.frame(PAYLOAD_MAX)
            if frame is None:
                return
            if isinstance(frame, int):
                self._break_off(channel, frame)
                return
            op, req_id, tx_id, payload = frame
            if self._penalized and channel in self._penalized:
                channel.waiting = True
                self._listen_less(channel)
                return
            if bound and self.rings is not None and not self.rings.gate.may_go(channel):
                channel.waiting = True
                return
            words[W_ACTIVE] = by.slot << 32 | head
            self.served += 1
            if trace.active:
                trace.message("IN", by, op, payload)
            if self.poison and (by.id, head) in self.poison:
                log.error("request %d of connection %d killed Logic again and again: EIO", op, by.id)
                op, body = _ERROR, _EIO
            else:
                try:
                    op, body = core.serve(by, op, tx_id, payload)
                except Later as e:
                    if self.for_the_house(partial(domains.gone, core, e.domid)):
                        if by.closed:
                            return
                        continue
                    op, body = _ERROR, _EINVAL
                if bound and self.rings is not None:
                    op, body = self.rings.gate.within_memory(channel, op, body)
            if trace.active:
                trace.message("OUT", by, op, body)
            head = (head + HEADER_SIZE + len(payload)) & M32
            if core.effect is None and (not bound or (HEADER_SIZE + len(body) <= lane.room and not by.pending.chunks)):
                lane.reply(op, req_id, tx_id, body, head)
            else:
                reply = HEADER.pack(op, req_id, tx_id, len(body)) + body
                self._publish(channel, reply, head, core.effect or _NOTHING)
                if by.closed:
                    return
            if bound:
                channel.replies.append((channel.end, head))
            self._dirty[channel] = None
        self._ready[channel] = None
        channel.waiting = True

    def _wait_for_room(self, channel: Channel) -> None:
        if channel.ring is None:
            self._watch_for(channel, _OUT)
        else:
            channel.waiting = True

    def _break_off(self, channel: Channel, length: int) -> None:
        """A header announces more than a message may have: the stream cannot be followed."""
        if channel.ring is not None and self.rings is not None:
            self.rings.break_off(channel, length)
            return
        log.info("connection %d announced a message of %d bytes and was closed", channel.connection.id, length)
        self.close(channel)

    def _publish(self, channel: Channel, reply: bytes, head: int, effect: Performed) -> None:
        """One request's effect and all output it causes: one record, then the regions."""
        core, by = self.core, channel.connection
        core.effect = None
        kind, arguments, outcome = effect
        generation = core.store.tree.generation
        lane = channel.lane
        if channel.bound and self.rings is not None:
            self.rings.gate.charge(channel, kind, arguments)
        if not core.events and not core.late_events and not by.pending.chunks and len(reply) <= lane.room:
            # Nobody else is told: the common case of the general one below, for speed.
            output = (by.id, lane.made, reply, False, 0)
            self._journal.publish((by.id, head, kind, arguments, outcome, generation, (output,)))
            if self.words[W_ASLEEP]:
                self._wake()
            lane.answer(reply, head)
            if kind in CHANGES_CONNECTIONS:
                self._follow(kind, arguments)
                self._answer_anew(by, reply)
            return
        self._publish_all(by, channel, reply, head, effect)

    def for_the_house(self, act: Callable[[], object]) -> bool:
        """Does something on the daemon's own behalf, and publishes it unless `act` returns False; whether it did."""
        if act() is False or self.core.effect is None:
            return False
        effect, self.core.effect = self.core.effect, None
        self._publish_all(self.core.store.house, None, b"", 0, effect)
        return True

    def _publish_all(self, by: Connection, channel: Channel | None, reply: bytes, head: int, effect: Performed) -> None:
        kind, arguments, outcome = effect
        outputs = self._place(channel, reply)
        generation = self.core.store.tree.generation
        self._journal.publish((by.id, head, kind, arguments, outcome, generation, tuple(outputs)))
        if self.words[W_ASLEEP]:
            self._wake()
        channels, dirty = self._channels, self._dirty
        cause = by.id, head
        overflowed: list[Channel] = []
        for output in outputs:
            number, _, data, pending, _ = output
            to = channels[number]
            if to.connection.closed:
                continue  # its slot may be another's already
            to.carry_out(output, head if to is channel else None, cause)
            dirty[to] = None
            if to.connection.overflowed:
                overflowed.append(to)
            if pending and self.rings is not None:
                self.rings.has_to_wait(to, output)
                if to is not channel and channel is not None and channel.bound:
                    self._link(cause, sum(op == Op.WATCH_EVENT for op, _ in messages(data)) if to.bound else 1)
        for to in overflowed:
            self._hang_up(to, DOES_NOT_READ)
        if kind in CHANGES_CONNECTIONS:
            self._follow(kind, arguments)
            self._answer_anew(by, reply)

    def _answer_anew(self, by: Connection, reply: bytes) -> None:
        """A ring that has introduced its own domain again (domain 0's: no other may) gets the answer on its new connection."""
        domain = self.core.store.domains.introduced(by.domid)
        if by.closed and reply and domain is not None and domain.connection is not None:
            channel = self.channel(domain.connection)
            channel.lane.answer(reply, channel.lane.head)
            self._dirty[channel] = None

    def _answer_again(self, reply: bytes) -> None:
        """The same for a Logic that died, unless that one had got so far."""
        ring = self.core.store.domains.known.find(PRIVILEGED).connection
        if ring is not None and not output_made(self._box, ring.slot):
            channel = self.channel(ring)
            channel.lane.answer(reply, channel.lane.head)
            self._dirty[channel] = None

    def _link(self, cause: tuple[int, int], events: int) -> None:
        """A guest's request has caused events that wait elsewhere."""
        by = self.core.store.items.connections.get(cause[0])
        if by is not None and by.subject.quotas is not None:
            linked = self.channel(by).linked
            linked[cause[1]] = linked.get(cause[1], 0) + events

    def unlink(self, chunks: list[Chunk]) -> None:
        """Output that waited has moved on, or was dropped: who caused it may have been waiting for that."""
        for chunk in chunks:
            by = self._channels.get(chunk.cause[0])
            if by is None or chunk.cause[1] not in by.linked:
                continue
            by.linked[chunk.cause[1]] -= 1
            if by.linked[chunk.cause[1]] <= 0:
                del by.linked[chunk.cause[1]]
                if by.waiting:
                    self._ready[by] = None

    def _follow(self, kind: int, arguments: tuple[Any, ...]) -> None:
        """Connections of rings have ended or begun with what was just published."""
        store, rings = self.core.store, self.rings
        assert rings is not None
        ended, begun = list(store.closed), list(store.opened)
        store.closed.clear()
        store.opened.clear()
        for connection in ended:
            channel = self._channels.pop(connection.id, None)
            if channel is not None:
                self._dirty.pop(channel, None)
                self._ready.pop(channel, None)
            rings.drop(connection, channel)
            self._let_go(connection)
        if kind in ENDS_DOMAIN:
            rings.forget(arguments[0])
        for connection in begun:
            rings.open(self.add(connection))

    def mark(self, channel: Channel) -> None:
        """Has a channel's output sent in this turn."""
        self._dirty[channel] = None

    def _let_go(self, connection: Connection) -> None:
        """What a connection that has ended was still to be told, nobody waits for any more."""
        self.unlink(connection.pending.clear())

    def look_at(self, channel: Channel) -> None:
        """Has a channel served and its output sent in this turn."""
        self._ready[channel] = None
        self._dirty[channel] = None

    def _hang_up(self, channel: Channel, why: str) -> None:
        if channel.ring is not None and self.rings is not None:
            self.rings.fail(channel, ERROR_COMM, why)
            return
        log.warning("connection %d %s and was closed", channel.connection.id, why)
        self.close(channel)

    def _place(self, channel: Channel | None, reply: bytes) -> list[Placed]:
        """Where the events of this request, and its reply between them, will stand."""
        core, channels = self.core, self._channels
        touched: list[Channel] = []
        for connection, event in core.events:
            self._put(touched, channels.get(connection.id) or self.channel(connection), event, event=True)
        if channel is not None:
            self._put(touched, channel, reply, event=False)
        for connection, event in core.late_events:
            self._put(touched, channels.get(connection.id) or self.channel(connection), event, event=True)
        core.events.clear()
        core.late_events.clear()
        deadline = self.rings.deadline() if self.rings is not None else 0
        outputs: list[Placed] = []
        for to in touched:
            parts, to.parts, to.parts_size = to.parts, [], 0
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            outputs.append(to.place(data, events=to is not channel or len(parts) > 1, deadline=deadline))
        return outputs

    def _put(self, touched: list[Channel], to: Channel, message: bytes, *, event: bool) -> None:
        size = to.parts_size + len(message)
        if event:
            # never those that begin with @
            if message[HEADER_SIZE] != _AT and to.is_queued(message, (to.end + size) & M32):
                return
            if to.bound and self.rings is not None and self.rings.gate.over_memory(to, size):
                return
        if not to.parts:
            touched.append(to)
        to.parts.append(message)
        to.parts_size = size

    def flush(self) -> None:
        """Sends what was made.  Who cannot take it all is waited for."""
        core = self.core
        if core.store.tree.generation >= self._digest_at:
            self._digest_at = self._next_digest()
            digest = core.store.tree.digest()
            self.for_the_house(partial(core.perform, DIGEST, core.store.house, digest))
        dirty, self._dirty = self._dirty, {}
        for channel in dirty:
            by, lane = channel.connection, channel.lane
            if by.closed:
                continue
            if channel.ring is not None:
                if self.rings is not None and self.rings.send(channel) and channel.waiting:
                    self._ready[channel] = None
                continue
            before = lane.sent
            done = lane.send()
            while done and by.pending.chunks:
                self.unlink(channel.move_pending())
                done = lane.send()
            if done and channel.queued:
                channel.queued.clear()
            if done and channel.interest == _IN:
                continue
            if done:
                self._watch_for(channel, 0 if channel in self._penalized else _IN)
                if lane.fill != lane.head:
                    self._ready[channel] = None
            elif lane.sent == before and reads_no_more(by.fd):
                self.close(channel)
            else:
                self._watch_for(channel, _OUT)

    def _listen_less(self, channel: Channel) -> None:
        """Whoever is not served for now is not heard either: what it says next would be there at every look."""
        if channel.ring is None:
            self._watch_for(channel, _OUT if channel.unread else 0)

    def _watch_for(self, channel: Channel, interest: int) -> None:
        if channel.interest != interest and not channel.connection.closed:
            channel.interest = interest
            try:
                self._epoll.modify(channel.connection.fd, interest)
            except FileNotFoundError:  # it was not ready, and State adds only whom it finds so
                self._wait_for(channel.connection.fd, interest)

    def close(self, channel: Channel) -> None:
        """Hangs up: out of the epoll set, shut down, the record, and only then the descriptor."""
        by = channel.connection
        if by.closed:
            return
        try:
            self._epoll.unregister(by.fd)
        except FileNotFoundError:
            pass  # it was not ready, and State adds only whom it finds so
        shut_down(by.fd)
        self.core.trace.thing("DESTROY", "connection", by)
        self.core.perform(CLOSE, by)
        self.core.effect = None
        self.core.store.closed.clear()
        generation = self.core.store.tree.generation
        self._journal.publish((by.id, channel.lane.head, CLOSE, (), "", generation, ()))
        if self.words[W_ASLEEP]:
            self._wake()
        del self._channels[by.id], self._by_fd[by.fd]
        self._dirty.pop(channel, None)
        self._let_go(by)
        os.close(by.fd)
