"""One connection, sans-IO: requests and their replies, watches and their events.

Bytes from the daemon go into `receive`; whole messages for it stand in `outbox`, to be written one by one and in order.
Replies are matched to requests by req_id, whatever their order; events are sorted into `Subscription`s by token.
Guarantees: a caller that lost interest leaves nothing behind (`abandon` undoes a transaction or a watch that comes into
being later); a subscription never holds more than its limit.  Does not know file descriptors, clocks or waiting.
"""

from collections import deque
from dataclasses import dataclass, field
from itertools import count
from typing import Final, NamedTuple

from protocol.client import steps
from protocol.client.failures import ConnectionLost, RequestTooLong
from protocol.client.steps import Request, Steps, Text, decode_text, encode_text
from protocol.errors import StoreError
from protocol.ops import Op
from protocol.paths import components, is_special
from protocol.payload import printable
from protocol.wire import PAYLOAD_MAX, Framer, FramingViolation, Message

EVENT_LIMIT: Final = 4096
"""Events that a subscription holds, unless the client says otherwise."""
_NOTE_LENGTH: Final = 100


class WatchEvent(NamedTuple):
    """Something happened at `path`; go and look.

    `path` is the node that changed, in the form of the watch (relative if the watch is).  `watched` is the path that was
    passed to `watch`.  `overflow` says that events were lost because nobody fetched them: anything at or below `watched`
    may have changed.
    """

    path: str
    watched: str
    overflow: bool = False


@dataclass(slots=True)
class Subscription:
    """The events of one iterator: what is queued, and which of the connection's tokens feed it."""

    limit: int
    events: deque[WatchEvent] = field(default_factory=deque)
    tokens: list[bytes] = field(default_factory=list)
    closed: bool = False


class _Watched(NamedTuple):
    subscription: Subscription
    path: bytes
    depth: int | None


@dataclass(slots=True)
class _Pending:
    request: Request
    reply: Message | None = None
    abandoned: bool = False


class Session:
    """State of one connection.  `name` is for messages to humans, `payload_max` the transport's limit in bytes."""

    def __init__(self, name: str, payload_max: int = PAYLOAD_MAX, event_limit: int = EVENT_LIMIT) -> None:
        self.name = name
        self.outbox: deque[bytes] = deque()
        self._payload_max = payload_max
        self._event_limit = event_limit
        self._framer = Framer()
        self._pending: dict[int, _Pending] = {}
        self._next_id = 1
        self._watched: dict[bytes, _Watched] = {}
        self._token_numbers = count(1)
        self._dropped: deque[Subscription] = deque()
        self._lost: str | None = None

    # Requests

    def send(self, request: Request, tx_id: int = 0) -> int:
        """Puts a request into `outbox` and returns its req_id.  Raises RequestTooLong, ConnectionLost."""
        self.check()
        self._unsubscribe_dropped()
        return self._send(request, tx_id)

    def _send(self, request: Request, tx_id: int = 0) -> int:
        if len(request.payload) > self._payload_max:
            raise RequestTooLong(len(request.payload), self._payload_max)
        req_id = self._next_id
        while req_id in self._pending or not req_id:
            req_id = (req_id + 1) & 0xFFFFFFFF
        self._next_id = (req_id + 1) & 0xFFFFFFFF
        self._pending[req_id] = _Pending(request)
        self.outbox.append(Message(request.op, req_id, tx_id, request.payload).encode())
        return req_id

    def post(self, request: Request, tx_id: int = 0) -> None:
        """Sends a request whose answer nobody waits for.  Does nothing on a lost connection."""
        if self._lost is None:
            self.abandon(self.send(request, tx_id))

    def answered(self, req_id: int) -> bool:
        """Whether `take` would have a reply."""
        return self._pending[req_id].reply is not None

    def take(self, req_id: int) -> bytes:
        """The payload of the reply.  Raises the StoreError of a refusal, ConnectionLost if none will come."""
        pending = self._pending[req_id]
        if pending.reply is None:
            self.check()
            raise AssertionError("the request has not been answered yet")
        del self._pending[req_id]
        if pending.reply.op == Op.ERROR:
            error = steps.refusal(pending.reply.payload)
            error.add_note(f"the answer to {printable(*pending.request)[:_NOTE_LENGTH]}")
            raise error
        return pending.reply.payload

    def abandon(self, req_id: int) -> None:
        """Nobody will `take` the reply any more.  A transaction or watch that the request opens is closed again."""
        pending = self._pending[req_id]
        if pending.reply is None:
            pending.abandoned = True
        else:
            del self._pending[req_id]
            self._undo(pending.request, pending.reply)

    def _undo(self, request: Request, reply: Message) -> None:
        if reply.op == Op.TRANSACTION_START and (tx_id := reply.payload.rstrip(b"\0")).isdigit():
            self.abandon(self._send(steps.end_transaction(False), int(tx_id)))
        elif reply.op == Op.WATCH:
            path, token, *_ = request.payload.split(b"\0")
            self.abandon(self._send(_unwatch(path, token)))

    # The connection

    def receive(self, data: bytes) -> None:
        """Takes bytes from the daemon.  What breaks the protocol loses the connection."""
        self._unsubscribe_dropped()
        try:
            for message in self._framer.feed(data):
                if message.op == Op.WATCH_EVENT:
                    self._take_event(message.payload)
                else:
                    self._take_reply(message)
        except FramingViolation as violation:
            self.lose(str(violation))

    def _take_reply(self, message: Message) -> None:
        pending = self._pending.get(message.req_id)
        if pending is None or pending.reply is not None:
            self.lose(f"a reply to no request: {printable(message.op, message.payload)[:_NOTE_LENGTH]}")
        elif message.op not in {pending.request.op, Op.ERROR}:
            asked, got = pending.request.op.name, printable(message.op, message.payload)[:_NOTE_LENGTH]
            self.lose(f"{asked} was answered with {got}")
        elif pending.abandoned:
            del self._pending[message.req_id]
            self._undo(pending.request, message)
        else:
            pending.reply = message

    def lose(self, reason: str) -> None:
        """The connection is gone; replies and events that have arrived can still be taken."""
        if self._lost is None:
            self._lost = reason
            self.outbox.clear()

    @property
    def lost(self) -> bool:
        """Whether the connection is gone."""
        return self._lost is not None

    def check(self) -> None:
        """Raises ConnectionLost if the connection is gone."""
        if self._lost is not None:
            raise ConnectionLost(f"connection to {self.name} lost: {self._lost}")

    # Watches

    def subscribe(self) -> Subscription:
        """A queue for the events of watches to come."""
        return Subscription(self._event_limit)

    def watch(self, subscription: Subscription, path: Text, depth: int | None) -> Steps[None]:
        """WATCH: from now on, events at or below `path` go to the subscription.

        A daemon that knows no depth is asked for a watch without; `_take_event` leaves out what lies too deep.
        """
        wanted = encode_text(path)
        token = b"%x" % next(self._token_numbers)
        payload = wanted + b"\0" + token + b"\0"
        self._watched[token] = _Watched(subscription, wanted, depth)
        subscription.tokens.append(token)
        try:
            if depth is None:
                yield Request(Op.WATCH, payload)
                return
            try:
                yield Request(Op.WATCH, payload + b"%d\0" % depth)
            except StoreError as error:
                if error.name != "EINVAL" or depth < 0 or is_special(wanted):
                    raise
                yield Request(Op.WATCH, payload)
        except BaseException:
            subscription.tokens.remove(token)
            self._watched.pop(token, None)
            raise

    def unsubscribe(self, subscription: Subscription) -> None:
        """UNWATCH for everything that feeds the subscription; its replies are waited for by nobody."""
        subscription.closed = True
        for token in subscription.tokens:
            watched = self._watched.pop(token, None)
            if watched is not None and self._lost is None:
                self.abandon(self._send(_unwatch(watched.path, token)))
        subscription.tokens.clear()

    def drop(self, subscription: Subscription) -> None:
        """`unsubscribe` with the next request or reply.  May be called at any moment, by the garbage collector too."""
        self._dropped.append(subscription)

    def _unsubscribe_dropped(self) -> None:
        while self._dropped:
            self.unsubscribe(self._dropped.popleft())

    def reset_watches(self) -> Steps[None]:
        """RESET_WATCHES: closes all subscriptions."""
        yield Request(Op.RESET_WATCHES, b"\0")
        for watched in self._watched.values():
            watched.subscription.closed = True
            watched.subscription.tokens.clear()
        self._watched.clear()

    def _take_event(self, payload: bytes) -> None:
        path, _, rest = payload.partition(b"\0")
        watched = self._watched.get(rest.partition(b"\0")[0])
        if watched is None or _too_deep(path, watched):
            return
        subscription = watched.subscription
        if len(subscription.events) < subscription.limit:
            subscription.events.append(WatchEvent(decode_text(path), decode_text(watched.path)))
            return
        subscription.events.clear()
        for token in subscription.tokens:
            everything = decode_text(self._watched[token].path)
            subscription.events.append(WatchEvent(everything, everything, overflow=True))


def _unwatch(path: bytes, token: bytes) -> Request:
    return Request(Op.UNWATCH, path + b"\0" + token + b"\0")


def _too_deep(path: bytes, watched: _Watched) -> bool:
    if watched.depth is None or is_special(watched.path) or path == watched.path:
        return False
    top = b"" if watched.path == b"/" else watched.path
    return path.startswith(top + b"/") and len(components(path[len(top) :])) > watched.depth
