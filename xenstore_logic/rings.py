"""Rings: the part of the loop that is about domains' ring pages and event channels.

An event says that a ring needs looking at: take its requests, serve them, put output in, notify once, unmask.  Taken events
stand in the box until all that is done, so the next Logic does it again after a death.  A ring is mapped when this Logic
first has to do with it, not before.

What holds a guest back is `gate`'s business; how long what it does not read waits is decided here (core.c:
check_event_timeout).
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from protocol.errors import StoreError
from protocol.ops import FEATURE_ERROR, FEATURE_RECONNECTION
from protocol.ring import (
    ERROR_COMM,
    ERROR_PROTOCOL,
    ERROR_RING_INDEX,
    FEATURES,
    REQ_CONS,
    REQ_PROD,
    RING_SIZE,
    RSP_CONS,
    RSP_PROD,
    RingIndexError,
    RingPage,
)
from protocol.wire import HEADER_SIZE
from recovery_box.box import EVENTS_AT, EVENTS_SIZE, W_NEWS, W_RING, Box
from recovery_box.items import Connection
from recovery_box.lanes import M32, stage_of
from recovery_box.ringlane import RingLane
from xenstore_logic import domains
from xenstore_logic.channels import Channel
from xenstore_logic.gate import Gate
from xenstore_logic.host import Later, XenHost
from xenstore_state.domains import PRIVILEGED, Domain
from xenstore_state.effects import EXPIRE, IGNORE, INTRODUCE
from xenstore_state.records import Placed
from xenstore_state.registrar import NEWS, News

if TYPE_CHECKING:
    from xenstore_logic.loop import Loop

log = logging.getLogger(__name__)

EVENT_TIMEOUT: Final = "event-timeout"
"""The daemon's setting for that: seconds, 0 for never."""
EVENT_SECONDS: Final = 20
"""How long an event may wait for a guest that does not read it, unless the daemon was told otherwise."""
RENEW_SECONDS: Final = 0.05
"""Time between two connections that a guest asks for."""
NEWS_TURN: Final = 4
"""Items of news dealt with in one turn."""
_NO_EVENTS: Final = bytes(EVENTS_SIZE)

# How far a ring's page has been made ready: `Lane.stage`.
_RESET: Final = 1
_IN_SERVICE: Final = 2
_LOOK_AGAIN: Final = 3
"""In service, and to be looked at although no event may come: whoever is Logic then."""


class Rings:
    """The rings of one loop."""

    def __init__(self, loop: "Loop", host: XenHost, box: Box) -> None:
        self._loop = loop
        self._core = loop.core
        self._host = host
        self._hypervisor = host.hypervisor
        self._box = box
        self._words = box.words.view
        self._events = memoryview(box.memory)[EVENTS_AT : EVENTS_AT + EVENTS_SIZE]
        self._by_port: dict[int, Channel] = {}
        self._sleeping: dict[int, Connection] = {}
        """Rings, by port, for which there was nothing to do yet."""
        self._touched = self._words[W_RING]
        self._interrupted: list[Connection] = []
        """Rings in whose page the last Logic was writing when it died."""
        self._again: list[Connection] = []
        """Rings that the last Logic meant to look at again."""
        self.taken: list[int] = []
        """Ports of events that are being dealt with in this turn."""
        self.gate = Gate(loop.core, lambda: len(self._by_port) + len(self._sleeping))
        self._expiring: dict[Channel, int] = {}
        """Guests for whom events wait, with when the first of those is to be dropped."""
        self._kick_at: dict[Channel, float] = {}
        """Rings to be looked at although no event came, with when; their stage says so too."""
        self.kick: Callable[[Channel], object] = self.look_into
        """What is done about a ring that needs looking at."""
        self._news: deque[tuple[int, int, int]] = deque()
        """What State has told, and was not dealt with yet."""
        self._renewed: dict[int, int] = {}
        """When a domain last connected anew, in milliseconds of the monotonic clock; also in the lane, for the next Logic."""
        loop.rings = self
        loop.core.outstanding = self._outstanding

    def listen(self) -> None:
        """Begins to take events and news."""
        self._loop.listen_to(self._hypervisor.event_fd, self._on_events)
        self._loop.listen_to(self._host.hearing_fd, self._on_news)

    # ---- connections

    def add(self, connection: Connection) -> Channel:
        """A ring to be served; it is mapped later."""
        lane = RingLane(self._box, connection.slot)
        channel = Channel(connection, lane)
        self._sleeping.pop(connection.port, None)
        self.gate.welcome(channel)
        lane.renewed = self._renewed.setdefault(connection.domid, lane.renewed)
        if connection.port:
            self._by_port[connection.port] = channel
        for chunk in connection.pending.chunks:
            if chunk.deadline:
                self._expiring.setdefault(channel, chunk.deadline)
        return channel

    def open(self, channel: Channel) -> None:
        """A connection has begun: the page is made ready, and the domain may go on."""
        by, lane = channel.connection, channel.ring
        assert lane is not None
        page = self._host.page(by.domid)
        if page is None:
            return
        domain = self._core.store.domains.known.find(by.domid)
        if lane.stage < _RESET:
            page.reset(domain.features)
            lane.stage = _RESET
        else:
            page.words[FEATURES] = domain.features
        page.accept()
        lane.stage = _LOOK_AGAIN
        lane.attach(page)
        self._loop.mark(channel)
        self._kick_at[channel] = 0

    def inherit(self, connection: Connection) -> None:
        """A ring that was served by another Logic."""
        self._sleeping[connection.port] = connection
        if connection.slot + 1 == self._touched or stage_of(self._box, connection.slot) < _IN_SERVICE:
            self._interrupted.append(connection)
        elif stage_of(self._box, connection.slot) == _LOOK_AGAIN:
            self._again.append(connection)

    def drop(self, by: Connection, channel: Channel | None) -> None:
        """A connection has ended."""
        if channel is not None:
            if self._by_port.get(by.port) is channel:
                del self._by_port[by.port]
            self.gate.drop(channel)
            for table in (self._expiring, self._kick_at):
                table.pop(channel, None)
        elif self._sleeping.get(by.port) is by:
            del self._sleeping[by.port]
        domain = self._core.store.domains.introduced(by.domid)
        if domain is not None and domain.error:
            self._show_error(domain)
            self._host.unmap(by.domid)

    def forget(self, domid: int) -> None:
        """A domain is no more."""
        self._renewed.pop(domid, None)
        self.gate.forget(domid)
        self._host.unmap(domid)

    def _show_error(self, domain: Domain) -> None:
        """Says in the page why it is left alone, if that was offered."""
        page = self._host.page(domain.domid) if domain.features & FEATURE_ERROR else None
        if page is not None:
            page.fail(domain.error)

    def fail(self, channel: Channel, error: int, why: str) -> None:
        """A ring cannot be followed: it is not served any more, until it is introduced again."""
        by = channel.connection
        if by.closed:
            return
        log.warning("the ring of domain %d is ignored: %s", by.domid, why)
        core = self._core
        self._loop.for_the_house(partial(core.perform, IGNORE, core.store.house, by.domid, error))

    def break_off(self, channel: Channel, length: int) -> None:
        """A guest announces a message that is too long: its header was taken, and nothing behind it is looked at."""
        assert channel.ring is not None
        self._words[W_RING] = channel.connection.slot + 1
        channel.ring.skip(HEADER_SIZE)
        self._words[W_RING] = 0
        self.fail(channel, ERROR_PROTOCOL, f"a message of {length} bytes")

    def recover(self) -> None:
        """Continues for a Logic that died."""
        for connection in self._interrupted:
            if connection.closed:  # by what stood in another of these rings
                continue
            channel = self._loop.channel(connection)
            if channel.ring is not None and channel.ring.stage < _IN_SERVICE:
                self.open(channel)
            else:
                self.send(channel)  # first: its guest is told of what the dead Logic could not tell it of any more
                self.kick(channel)
        self._interrupted.clear()
        for connection in self._again:
            if not connection.closed:
                self.kick(self._loop.channel(connection))
        self._again.clear()
        self._words[W_RING] = 0
        for domain in self._core.store.domains.known:
            if domain.error:
                self._show_error(domain)
                self._host.unmap(domain.domid)
        if self._events != _NO_EVENTS:
            self._deal()
        if self._words[W_NEWS]:
            self._host.synchronize()  # then State has told it anew: before the first request, as if nobody had died
            self._on_news()
        self._deal_with_news()

    # ---- events

    def _on_events(self) -> None:
        if self.taken:  # of the Logic before: what stands in the buffer must not be lost to what comes
            if self.kick != self.look_into:
                return  # somebody has taken it on himself to look at them one by one
            self._loop.flush()
            self.unmask()
        self._hypervisor.receive(self._events)
        self._deal()

    def _deal(self) -> None:
        hypervisor = self._hypervisor
        self.taken = hypervisor.ports(self._events)
        for port in self.taken:
            channel = self._by_port.get(port)
            if channel is not None:
                self.kick(channel)
            elif port in self._sleeping:
                self.kick(self._loop.channel(self._sleeping[port]))
            elif port == hypervisor.domain_port:
                self._host.domains_changed()
                self._on_news()  # told before the answer came: no request is served in between

    def unmask(self) -> None:
        """What the events of this turn stood for was looked at."""
        self._hypervisor.unmask(self.taken)
        self.taken = []
        self._events[:] = _NO_EVENTS

    def unmask_only(self, channel: Channel, waiting: list[Channel]) -> None:
        """The same when one connection was served alone: events of rings that wait are left for the next Logic."""
        port = channel.connection.port
        if all(ring is channel for ring in waiting):
            self.unmask()
        elif port in self.taken:
            self._hypervisor.unmask([port])
            self._hypervisor.forget(self._events, port)

    def _mapped(self, channel: Channel) -> RingPage | None:
        lane = channel.ring
        assert lane is not None
        if lane.page is None:
            page = self._host.page(channel.connection.domid)
            if page is None:
                self.fail(channel, ERROR_COMM, "it cannot be mapped")
                return None
            if lane.stage >= _IN_SERVICE and channel.connection not in self._interrupted:
                try:
                    lane.compare(page)
                except RingIndexError as e:
                    self.fail(channel, ERROR_RING_INDEX, str(e))
                    return None
            lane.attach(page)
        return lane.page

    def has_requests(self, channel: Channel) -> bool:
        """Whether a ring's guest wants something, by its indices alone.  If not, it has taken output: more is sent."""
        if channel.connection.closed:
            return False
        lane, page = channel.ring, self._mapped(channel)
        if lane is None or page is None:
            return False
        if page.wants_reconnection:
            return not self._renewed_lately(channel)
        if self._loop.has_left_over(channel) or page.words[REQ_PROD] != lane.fill:
            if not self._loop.has_to_wait(channel):
                return True
            channel.waiting = True
            self._receive(channel)
        elif lane.stage == _LOOK_AGAIN:
            lane.stage = _IN_SERVICE
        self._loop.mark(channel)
        return False

    def look_into(self, channel: Channel) -> None:
        """Takes what stands in a ring, and serves it."""
        page = self._mapped(channel)
        if page is None or (page.wants_reconnection and self._reconnect(channel)):
            return
        self._receive(channel)
        if channel.connection.closed:
            return
        self._loop.work(channel)
        if not channel.connection.closed:
            self._loop.mark(channel)

    def _receive(self, channel: Channel) -> None:
        """Takes what stands in a ring that is mapped."""
        lane = channel.ring
        assert lane is not None
        try:
            lane.receive()
        except RingIndexError as e:
            self.fail(channel, ERROR_RING_INDEX, str(e))
            return
        if lane.stage == _LOOK_AGAIN:
            lane.stage = _IN_SERVICE  # what was received stands in the region, for others too

    def _look_later(self, channel: Channel, at: float = 0) -> None:
        """A ring is to be looked at although no event may come."""
        assert channel.ring is not None
        channel.ring.stage = _LOOK_AGAIN
        self._kick_at[channel] = at

    def _reconnect(self, channel: Channel) -> bool:
        """The guest asks for a fresh connection; whether it may."""
        core, domid = self._core, channel.connection.domid
        domain = core.store.domains.introduced(domid)
        if domain is None or not domain.features & FEATURE_RECONNECTION:
            return False
        if self._renewed_lately(channel):
            return True
        self._renewed[domid] = now = int(
            time.monotonic() * 1000
        )  # and in the lane of the connection that there will be
        try:
            if self._host.renew(domid):
                self.gate.say(domid, "anew", "domain %d connects anew", domid, level=logging.INFO)
                self._loop.for_the_house(partial(core.perform, INTRODUCE, core.store.house, domid))
            elif channel.ring is not None:
                channel.ring.renewed = now
        except Later as e:
            self._loop.for_the_house(partial(domains.gone, core, e.domid))
        return True

    def _renewed_lately(self, channel: Channel) -> bool:
        """Whether a domain may not connect anew yet; it is looked at again when it may."""
        again = self._renewed.get(channel.connection.domid, 0) / 1000 + RENEW_SECONDS
        if time.monotonic() >= again:
            return False
        self._look_later(channel, again)
        return True

    def send(self, channel: Channel) -> bool:
        """Puts output into a ring and tells its guest what has changed; whether more requests may be served now."""
        lane, by = channel.ring, channel.connection
        if lane is None or self._mapped(channel) is None:
            return False
        words, before = self._words, lane.sent
        words[W_RING] = by.slot + 1
        try:
            done = lane.send()
            while done and by.pending.chunks:
                moved = channel.move_pending()
                self._loop.unlink(moved)
                if not lane.unsent:
                    break
                done = lane.send()
            lane.release(waiting=channel.waiting)
        except RingIndexError as e:
            lane.release(waiting=channel.waiting)
            words[W_RING] = 0
            self.fail(channel, ERROR_RING_INDEX, str(e))
            return False
        if lane.news:
            lane.news = False
            self._notify(by)
            if lane.overtaken(waiting=channel.waiting):
                self._look_later(channel)
        words[W_RING] = 0
        if channel.bound:
            if done:
                lane.mark(lane.sent)  # whole messages went
            if done and not by.pending.chunks:
                channel.replies.clear()
                channel.queued.clear()
            elif lane.sent != before:
                channel.taken()
        elif done:
            channel.queued.clear()
        return done or lane.sent != before

    def _notify(self, by: Connection) -> None:
        try:
            self._hypervisor.notify(by.port)
        except OSError as e:  # its event channel was given up, for a connection that is about to begin
            self.gate.say(
                by.domid, "deaf", "domain %d cannot be notified: %s", by.domid, e.strerror, level=logging.INFO
            )

    def _outstanding(self, ring: Connection) -> int:
        return self._loop.channel(ring).outstanding()

    # ---- the clock

    @property
    def timed(self) -> bool:
        """Whether something waits for its time."""
        return bool(self.gate.held or self._expiring or self._kick_at or self._news)

    def wait(self, timeout: float) -> float:
        """How long a turn may wait, in seconds: `timeout` (negative: for ever), or less."""
        if self._news:
            return 0.0
        times = [*self.gate.held.values(), *self._kick_at.values()]
        if self._expiring:
            times.append(min(self._expiring.values()) / 1000)
        left = max(0.0, min(times) - time.monotonic())
        return left if timeout < 0 else min(left, timeout)

    def look_at_clock(self) -> None:
        """Does what is due."""
        self._deal_with_news()
        now = time.monotonic()
        for channel in [c for c, at in self._kick_at.items() if at <= now]:
            if self._kick_at.pop(channel, None) is not None:  # else it ended while another was looked at
                self.kick(channel)
        for channel in [c for c, at in self.gate.held.items() if at <= now]:
            del self.gate.held[channel]
            self._loop.look_at(channel)
        milliseconds = int(now * 1000)
        for channel in [c for c, at in self._expiring.items() if at <= milliseconds]:
            del self._expiring[channel]
            self._expire(channel, milliseconds)

    def deadline(self) -> int:
        """When events made now are not wanted any more, in milliseconds of the monotonic clock; 0 for never."""
        seconds = self._core.store.items.settings.get(EVENT_TIMEOUT)
        seconds = seconds if isinstance(seconds, int) else EVENT_SECONDS
        return int((time.monotonic() + seconds) * 1000) if seconds else 0

    def has_to_wait(self, channel: Channel, output: Placed) -> None:
        """Output waits for a guest."""
        deadline = output[4]
        if deadline:
            self._expiring.setdefault(channel, deadline)

    def _expire(self, channel: Channel, now: int) -> None:
        """Drops events that a guest has not read in time."""
        core, by = self._core, channel.connection
        pending = by.pending
        if by.closed:
            return
        pending.trim(channel.lane.made)
        dropped = [chunk for chunk in pending.chunks if 0 < chunk.deadline <= now]
        if dropped:
            log.warning("domain %d has not read %d events in time: they are dropped", by.domid, len(dropped))
            self._loop.for_the_house(partial(core.perform, EXPIRE, core.store.house, by.id, now))
            self._host.synchronize()  # positions behind those dropped have moved, in State too, before anything is sent
            channel.queued.clear()
            self._loop.unlink(dropped)
            self._loop.look_at(channel)
        deadlines = [chunk.deadline for chunk in pending.chunks if chunk.deadline]
        if deadlines:
            self._expiring[channel] = min(deadlines)

    # ---- news

    def _on_news(self) -> None:
        while (message := self._host.hear()) is not None:
            self._news.extend(NEWS.iter_unpack(message))

    def _deal_with_news(self) -> None:
        """A few items a turn: the end of a domain can be much work, and others wait."""
        core, act = self._core, self._loop.for_the_house
        for _ in range(min(NEWS_TURN, len(self._news))):
            kind, domid, unique_id = self._news.popleft()
            if kind == News.GONE:
                act(partial(domains.gone, core, domid, unique_id))
            elif kind == News.SHUTDOWN:
                act(partial(domains.shut_down, core, domid, unique_id))
            elif kind == News.SCANNED:
                act(partial(domains.scanned, core))
            elif kind == News.APPEARED:
                self._introduce(domid)
                if not any(item[0] == News.APPEARED for item in self._news):
                    self._host.settled()

    def _introduce(self, domid: int) -> None:
        """Introduces a domain that was there before the daemon, and continues where its ring is."""
        core, hypervisor = self._core, self._hypervisor
        try:
            page = self._host.page(domid) if domid == PRIVILEGED or self._exists(domid) else None
            port = hypervisor.xenbus_port() if domid == PRIVILEGED else page.event_port if page is not None else 0
            if page is None or not port:
                log.info("domain %d has no ring to be continued; it is served once it is introduced", domid)
                self._host.unmap(domid)
                return
            self._host.offer(domid, port)
        except (StoreError, Later, OSError) as e:
            log.error("domain %d cannot be introduced: %r", domid, e)
            return
        words = page.words
        consumed, made = words[REQ_CONS], words[RSP_PROD]
        lane = RingLane(self._box, core.store.domains.offers[domid].slot)
        if (words[REQ_PROD] - consumed) & M32 <= RING_SIZE and (made - words[RSP_CONS]) & M32 <= RING_SIZE:
            lane.begin(consumed, made)
            lane.stage = _RESET
        self._loop.for_the_house(partial(domains.introduce_offered, core, core.store.house, domid))

    def _exists(self, domid: int) -> bool:
        domains.learn(self._core, domid)
        return domid in self._core.store.domains.known
