"""Typed items: what has to be remembered from one worker to the next.

Each kind has a table with insert, update and delete, keyed so that no key ever means two things: connections have ids that
are never reused.  A table refuses what contradicts it (`ItemError`): inserting a key twice, touching one that is not there,
growing beyond its bound.  Values are plain data; what they mean is the business of those who store them.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Generic, NamedTuple, TypeVar

M32: Final = 0xFFFFFFFF
PENDING_MAX: Final = 4 << 20
"""Bytes of output that may wait for one connection beyond its region, unless they all came at once."""


class ItemError(Exception):
    """An insert, update or delete contradicts what the table holds."""


K = TypeVar("K")
V = TypeVar("V")


class Table(Generic[K, V]):
    """Items of one kind by key."""

    __slots__ = ("_items", "_limit", "kind")

    def __init__(self, kind: str, limit: int) -> None:
        self.kind = kind
        self._limit = limit
        self._items: dict[K, V] = {}

    def insert(self, key: K, value: V) -> None:
        """Adds an item.  Raises `ItemError` if the key is taken or the table is full."""
        if key in self._items:
            raise ItemError(f"{self.kind} {key!r} is there already")
        if len(self._items) >= self._limit:
            raise ItemError(f"more than {self._limit} items of kind {self.kind}")
        self._items[key] = value

    def update(self, key: K, value: V) -> None:
        """Replaces an item.  Raises `ItemError` if there is none."""
        if key not in self._items:
            raise ItemError(f"no {self.kind} {key!r}")
        self._items[key] = value

    def delete(self, key: K) -> V:
        """Removes an item and returns it.  Raises `ItemError` if there is none."""
        try:
            return self._items.pop(key)
        except KeyError:
            raise ItemError(f"no {self.kind} {key!r}") from None

    def find(self, key: K) -> V:
        """The item.  Raises `ItemError` if there is none."""
        try:
            return self._items[key]
        except KeyError:
            raise ItemError(f"no {self.kind} {key!r}") from None

    def get(self, key: K) -> V | None:
        """The item or None."""
        return self._items.get(key)

    def __contains__(self, key: K) -> bool:
        return key in self._items

    def pairs(self) -> Iterable[tuple[K, V]]:
        """All keys with their items, in order of insertion."""
        return self._items.items()

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[V]:
        return iter(self._items.values())


class Chunk(NamedTuple):
    """A piece of output that waits."""

    position: int
    """Stream position of its first byte."""
    data: bytes
    deadline: int = 0
    """When it is not wanted any more, in milliseconds of the monotonic clock; 0: it always is."""
    cause: tuple[int, int] = (0, 0)
    """Connection id and input position of the request that caused it."""


class PendingOutput:
    """Output that does not fit the region yet, in order.  Chunks are moved into the region front first."""

    __slots__ = ("chunks", "size")

    def __init__(self) -> None:
        self.chunks: deque[Chunk] = deque()
        self.size = 0

    def append(self, position: int, data: bytes, deadline: int = 0, cause: tuple[int, int] = (0, 0)) -> None:
        """Adds bytes at the end of the stream.  Raises `ItemError` when there is no room, or out of order."""
        if not data:
            return
        if self.chunks and self.end != position:
            raise ItemError("pending output does not follow what is pending")
        if not self.has_room(len(data)):
            raise ItemError("too much pending output")
        self.chunks.append(Chunk(position, data, deadline, cause))
        self.size += len(data)

    def has_room(self, size: int) -> bool:
        """Whether so many bytes may wait too.  Who has left nothing waiting can be told anything at once."""
        return not self.chunks or self.size + size <= PENDING_MAX

    def trim(self, made: int) -> list[Chunk]:
        """Forgets what has moved into the region, whose output reaches up to stream position `made`; what went wholly."""
        return self._cut(made, M32 >> 1)

    def begin_at(self, position: int) -> None:
        """Forgets what is before that stream position, however long ago it has moved; everything if nothing is there."""
        self._cut(position, M32)

    def _cut(self, position: int, most: int) -> list[Chunk]:
        """Forgets what is before a stream position, if it is at most so many bytes before; what went wholly."""
        gone = []
        while self.chunks:
            chunk = self.chunks[0]
            moved = (position - chunk.position) & M32
            if not 0 < moved <= most:
                break
            self.chunks.popleft()
            if moved < len(chunk.data):
                self.chunks.appendleft(chunk._replace(position=position, data=chunk.data[moved:]))
                self.size -= moved
                break
            self.size -= len(chunk.data)
            gone.append(chunk)
        return gone

    def clear(self) -> list[Chunk]:
        """Forgets everything; what that was."""
        gone = list(self.chunks)
        self.chunks.clear()
        self.size = 0
        return gone

    def expire(self, now: int) -> list[Chunk]:
        """Drops the chunks whose deadline has come; those behind move up.  What was dropped."""
        dropped = [chunk for chunk in self.chunks if 0 < chunk.deadline <= now]
        if dropped:
            position = self.chunks[0].position
            kept: deque[Chunk] = deque()
            for chunk in self.chunks:
                if not 0 < chunk.deadline <= now:
                    kept.append(chunk._replace(position=position))
                    position = (position + len(chunk.data)) & M32
            self.chunks = kept
            self.size = sum(len(chunk.data) for chunk in kept)
        return dropped

    @property
    def end(self) -> int | None:
        """Stream position behind the last pending byte."""
        if not self.chunks:
            return None
        last = self.chunks[-1]
        return (last.position + len(last.data)) & M32


@dataclass(slots=True)
class Connection:
    """A peer.  `id` is never reused; `slot` and `fd` are, once the closing was applied."""

    id: int
    slot: int
    """Of its lane in the box; -1 for a connection without one (in-process use)."""
    fd: int
    """The descriptor's number, equal in keeper and worker; -1 without one."""
    domid: int
    """Who speaks here."""
    privileged: bool
    socket: bool
    """A socket, not a domain's ring."""
    port: int = 0
    """Of a ring: the local port of its event channel."""
    subject: Any = None
    """On whose behalf requests act; the business of those who check access."""
    watches: dict[tuple[bytes, bytes], Any] = field(default_factory=dict)
    transactions: dict[int, Any] = field(default_factory=dict)
    last_tx_id: int = 0
    pending: PendingOutput = field(default_factory=PendingOutput)
    overflowed: bool = False
    """Its peer let so much output pile up that it will be hung up on."""
    closed: bool = False


class Items:
    """All items of a box, by kind.

    Input received and not consumed is an item too, but needs no table: it stands in the lane's region.
    """

    __slots__ = ("accounts", "connections", "settings", "transactions", "watches")

    def __init__(self) -> None:
        self.connections: Table[int, Connection] = Table("connection", 1 << 20)
        self.watches: Table[tuple[int, bytes, bytes], Any] = Table("watch", 1 << 32)
        """By connection id, path and token; each connection's own stand in `Connection.watches` too."""
        self.transactions: Table[tuple[int, int], Any] = Table("transaction", 1 << 32)
        """By connection id and transaction id; see `Connection.transactions`."""
        self.accounts: Table[int, Any] = Table("quota account", 1 << 16)
        """By domid: what a domain may use, and the most it did."""
        self.settings: Table[str, int | str] = Table("setting", 1024)
