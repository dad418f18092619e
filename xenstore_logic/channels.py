"""A channel: what one Logic knows of one connection beyond what outlives it.

It places output: into the lane's region where it fits, else behind it, as pending output that a record carries.
"""

from recovery_box.box import REGION_SIZE
from recovery_box.items import PENDING_MAX, Connection
from recovery_box.lanes import M32, Lane
from xenstore_state.records import Output

_HALF = 1 << 31
_QUEUED_MIN = 4096


class Channel:
    """One connection as the loop sees it."""

    __slots__ = ("_prune_at", "connection", "interest", "lane", "queued")

    def __init__(self, connection: Connection, lane: Lane) -> None:
        self.connection = connection
        self.lane = lane
        self.interest = 0
        """What the epoll set waits for."""
        self._prune_at = _QUEUED_MIN
        self.queued: dict[bytes, int] = {}
        """Events not sent yet, each with the stream position of its end.  (core.c: send_event drops duplicates.)"""

    @property
    def end(self) -> int:
        """Stream position behind the last output, wherever it waits."""
        end = self.connection.pending.end
        return self.lane.made if end is None else end

    def is_queued(self, event: bytes, at: int) -> bool:
        """Whether the same event waits unsent; if not, it is from now on, ending at stream position `at`."""
        queued, lane = self.queued, self.lane
        if lane.made == lane.sent and not self.connection.pending.chunks:
            queued.clear()
        else:
            end = queued.get(event)
            if end is not None and 0 < (end - lane.sent) & M32 < _HALF:
                return True
            if len(queued) > self._prune_at:
                self.queued = {e: p for e, p in queued.items() if 0 < (p - lane.sent) & M32 < _HALF}
                self._prune_at = max(_QUEUED_MIN, 2 * len(self.queued))
        self.queued[event] = at
        return False

    def place(self, data: bytes) -> Output:
        """Where the next output goes.  When the peer has let too much pile up, the output says that it is hung up on."""
        by, lane = self.connection, self.lane
        if not by.pending.chunks and len(data) <= lane.room:
            return Output(by.id, lane.made, data, False)
        if by.overflowed or by.pending.size + len(data) > PENDING_MAX:
            by.overflowed = True
            return Output(by.id, self.end, b"", True)
        return Output(by.id, self.end, data, True)

    def carry_out(self, output: Output, head: int | None) -> None:
        """Does what a published record says: output made and, for who asked, input consumed up to `head`."""
        lane = self.lane
        if head is None:
            head = lane.head
        if output.pending:
            self.connection.pending.append(output.position, output.data)
            lane.publish(head, lane.made)
            return
        lane.put(output.data, output.position)
        lane.publish(head, (output.position + len(output.data)) & M32)

    def repeat(self, output: Output, head: int | None) -> None:
        """Like `carry_out`, for a record that a Logic published which died: does what that one had not got to."""
        lane = self.lane
        made = lane.made
        if not output.pending and made == output.position:
            lane.put(output.data, output.position)
            made = (output.position + len(output.data)) & M32
        behind = head is not None and 0 < (head - lane.head) & M32 <= REGION_SIZE
        lane.publish(head if head is not None and behind else lane.head, made)

    def move_pending(self) -> None:
        """Moves pending output into the region as far as there is room.  No record: the positions say what is where."""
        pending, lane = self.connection.pending, self.lane
        pending.trim(lane.made)
        while pending.chunks and lane.room:
            position, data = pending.chunks[0]
            part = data[: lane.room]
            lane.put(part, position)
            lane.publish(lane.head, (position + len(part)) & M32)
            pending.trim(lane.made)
