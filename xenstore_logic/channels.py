"""A channel: what one Logic knows of one connection beyond what outlives it.

It places output: into the lane's region where it fits, else behind it, as pending output that a record carries.  What a
guest must read itself waits outside the region as long as its ring is full, message by message: events among it can expire.
"""

from collections import deque
from itertools import islice

from protocol.ops import Op
from protocol.ring import RingIndexError
from protocol.wire import messages
from recovery_box.box import REGION_SIZE
from recovery_box.items import Chunk, Connection
from recovery_box.lanes import M32, Lane
from recovery_box.ringlane import RingLane
from xenstore_state.records import Placed, wait

_HALF = 1 << 31
_QUEUED_MIN = 4096
_UNKNOWN = -1
"""In place of the input position of a request that another Logic has answered: then it may be counted twice."""
REMEMBERED = 1024
"""Pieces of output for one that does not read in which the next Logic looks for an event, at most: it has to look once."""


class Channel:
    """One connection as the loop sees it."""

    __slots__ = (
        "_prune_at",
        "_remembers",
        "bound",
        "connection",
        "interest",
        "lane",
        "linked",
        "parts",
        "parts_size",
        "queued",
        "replies",
        "ring",
        "waiting",
    )

    def __init__(self, connection: Connection, lane: Lane) -> None:
        self.connection = connection
        self.lane = lane
        self.ring = lane if isinstance(lane, RingLane) else None
        self.bound = connection.subject.quotas is not None
        """Quotas bind it: a guest's."""
        self.interest = 0
        """What the epoll set waits for."""
        self.waiting = False
        """Whole requests have been received that may not be served yet."""
        self._prune_at = _QUEUED_MIN
        self.queued: dict[bytes, int] = {}
        """Events not sent yet, each with the stream position of its end.  (core.c: send_event drops duplicates.)"""
        self.parts: list[bytes] = []
        """Messages that the record being made has for it."""
        self.parts_size = 0
        self.replies: deque[tuple[int, int]] = deque()
        """Of a guest: stream positions of the ends of replies that it has not taken, each with its request's input position."""
        self.linked: dict[int, int] = {}
        """Of a guest: its requests, by input position, whose events others have not taken, with the number of those."""
        self._remembers = self.bound
        """What of its output waited when another Logic died is in `queued`."""
        if self.bound:
            self._remember_output()

    def _remember_output(self) -> None:
        """Of a ring that another Logic served: what its guest has not taken of its region, and what waits behind it."""
        if self.ring is not None:
            self._remember(*self.ring.since_mark())
        for chunk in self.connection.pending.chunks:
            asked_by, request = chunk.cause
            self._remember(chunk.position, chunk.data, request if asked_by == self.connection.id else _UNKNOWN)

    def _remember_waiting(self) -> None:
        """The same of a socket, before an event is queued behind that: of the last pieces that begin with a message, as all
        but the first do."""
        self._remembers = True
        chunks = self.connection.pending.chunks
        for chunk in [*islice(reversed(chunks), min(len(chunks) - 1, REMEMBERED))][::-1]:
            self._remember(chunk.position, chunk.data)

    def _remember(self, position: int, data: bytes, request: int = _UNKNOWN) -> None:
        """Replies, which are outstanding, and events, which are not queued again."""
        try:
            for op, message in messages(data):
                position = (position + len(message)) & M32
                if not 0 < (position - self.lane.sent) & M32 < _HALF:
                    continue
                if op == Op.WATCH_EVENT:
                    self.queued[message] = position
                elif self.bound:
                    self.replies.append((position, request))
        except ValueError:
            pass  # written by a Logic that had gone mad

    @property
    def end(self) -> int:
        """Stream position behind the last output, wherever it waits."""
        end = self.connection.pending.end
        return self.lane.made if end is None else end

    @property
    def unread(self) -> int:
        """Bytes of output that the peer has not taken."""
        return self.lane.unsent + self.connection.pending.size

    def is_queued(self, event: bytes, at: int) -> bool:
        """Whether the same event waits unsent; if not, it is from now on, ending at stream position `at`."""
        queued, lane = self.queued, self.lane
        if lane.made == lane.sent and not self.connection.pending.chunks:
            queued.clear()
        else:
            if not self._remembers and self.connection.pending.chunks:
                self._remember_waiting()
            end = queued.get(event)
            if end is not None and 0 < (end - lane.sent) & M32 < _HALF:
                return True
            if len(queued) > self._prune_at:
                self.queued = {e: p for e, p in queued.items() if 0 < (p - lane.sent) & M32 < _HALF}
                self._prune_at = max(_QUEUED_MIN, 2 * len(self.queued))
        self.queued[event] = at
        return False

    def place(self, data: bytes, *, events: bool = True, deadline: int = 0) -> Placed:
        """Where the next output goes.  When the peer has let too much pile up, the output says that it is hung up on.

        Events for a guest go where they cannot expire only if its ring takes all of this at once.
        """
        by, lane = self.connection, self.lane
        if not by.pending.chunks and len(data) <= lane.room and (not (events and self.bound) or self._fits_ring(data)):
            return by.id, lane.made, data, False, 0
        if by.overflowed or not by.pending.has_room(len(data)):
            by.overflowed = True
            return by.id, self.end, b"", True, 0
        return by.id, self.end, data, True, deadline if self.bound else 0

    def _fits_ring(self, data: bytes) -> bool:
        try:
            return self.ring is not None and len(data) <= self.ring.ring_room()
        except RingIndexError:
            return False  # whoever sends will find out

    def carry_out(self, output: Placed, head: int | None, cause: tuple[int, int]) -> None:
        """Does what a published record says: output made and, for who asked, input consumed up to `head`."""
        lane = self.lane
        _, _, data, pending, _ = output
        if head is None:
            head = lane.head
        if pending:
            wait(self.connection, output, cause)
            lane.publish(head, lane.made)
        else:
            lane.answer(data, head)  # nothing was made since it was placed

    def repeat(self, output: Placed, head: int | None) -> None:
        """Like `carry_out`, for a record that a Logic published which died: does what that one had not got to."""
        lane = self.lane
        _, position, data, pending, _ = output
        made = lane.made
        if not pending and made == position:
            lane.put(data, position)
            made = (position + len(data)) & M32
        behind = head is not None and 0 < (head - lane.head) & M32 <= REGION_SIZE
        lane.publish(head if head is not None and behind else lane.head, made)

    def move_pending(self) -> list[Chunk]:
        """Moves pending output into the region as far as there is room.  No record: the positions say what is where.

        For a guest one message at a time, and only when its ring can take the first of it.  What has moved wholly.
        """
        pending, lane = self.connection.pending, self.lane
        gone = pending.trim(lane.made)
        while pending.chunks and lane.room:
            if self.bound and not (self.ring is not None and self.ring.ring_room()):
                break
            chunk = pending.chunks[0]
            part = chunk.data[: lane.room]
            lane.put(part, chunk.position)
            lane.publish(lane.head, (chunk.position + len(part)) & M32)
            gone += pending.trim(lane.made)
        return gone

    def taken(self) -> None:
        """Forgets replies that the peer has been given."""
        replies, sent = self.replies, self.lane.sent
        end = None
        while replies and (sent - replies[0][0]) & M32 < _HALF:
            end = replies.popleft()[0]
        if end is not None and self.ring is not None:
            self.ring.mark(end)

    def outstanding(self) -> int:
        """How many of a guest's requests are: their replies were not taken, or events that they caused wait at others."""
        self.taken()
        unread = {request for _, request in self.replies}
        return len(self.replies) + sum(request not in unread for request in self.linked)
