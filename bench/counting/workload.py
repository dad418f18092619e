"""A fixed workload whose cost is counted, not timed: the same requests to the same store, every time.

For: `bench.counting.bytecodes`, `bench.counting.instructions`.
Guarantees: each section is one kind of request, can be repeated any number of times and leaves the store as it found it.
Does not know: how its cost is counted.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.stand import Stand, all_of, request, write
from protocol.ops import Op
from protocol.wire import messages
from xenstore_logic.embedded import Embedded

Section = Callable[[], object]

GUEST = 5
HOME = b"/local/domain/5"
VALUE = b"v" * 32
WATCHERS = 10
OTHER_WATCHES = 200
CHILDREN = 20
TRANSACTION_WRITES = 10
WARM_UPS = 3


class Shop:
    """The in-process core, with a toolstack, a guest, watchers and some nodes."""

    def __init__(self) -> None:
        self.store = Embedded()
        self.toolstack = self.store.connect()
        self.guest = self.store.connect(GUEST)
        watchers = [self.store.connect() for _ in range(WATCHERS)]
        self._must(
            self.toolstack, write(b"/bench/r", VALUE), write(b"/bench/w", VALUE), write(b"/bench/watched", VALUE)
        )
        self._must(self.toolstack, *(write(b"/bench/t/%d" % i, VALUE) for i in range(TRANSACTION_WRITES)))
        for name in (b"", b"/r", b"/w"):
            perms = request(Op.SET_PERMS, HOME + name, b"n%d" % GUEST)
            self._must(self.toolstack, write(HOME + name, VALUE), perms)
        self._must(self.toolstack, *(request(Op.WATCH, b"/other/%d" % i, b"t") for i in range(OTHER_WATCHES)))
        for watcher in watchers:
            self._must(watcher, request(Op.WATCH, b"/bench/watched", b"t"))

    def _must(self, by: int, *requests: bytes) -> None:
        turn = self.store.feed(by, all_of(requests))
        if turn.closed or Op.ERROR in {op for op, _ in messages(turn.output[by])}:
            raise ValueError(f"refused: {requests!r:.200}")

    def feeding(self, by: int, *requests: bytes) -> Section:
        """Sends some requests."""
        feed, data = self.store.feed, all_of(requests)
        return lambda: feed(by, data)

    def transaction(self) -> None:
        """Start, writes, commit."""
        feed, toolstack = self.store.feed, self.toolstack
        reply = feed(toolstack, request(Op.TRANSACTION_START, b"")).output[toolstack]
        tx_id = int(reply[16:-1])
        for i in range(TRANSACTION_WRITES):
            feed(toolstack, request(Op.WRITE, b"/bench/t/%d" % i, tx_id=tx_id, rest=VALUE))
        feed(toolstack, request(Op.TRANSACTION_END, b"T", tx_id=tx_id))


def core_sections() -> dict[str, Section]:
    """What the core does, without any loop or journal."""
    shop = Shop()
    tools, guest, feeding = shop.toolstack, shop.guest, shop.feeding
    tree = [write(b"/bench/tree/%d" % i, VALUE) for i in range(CHILDREN)]
    return {
        "read": feeding(tools, request(Op.READ, b"/bench/r")),
        "read of nothing": feeding(tools, request(Op.READ, b"/bench/no/such/node")),
        "write": feeding(tools, write(b"/bench/w", VALUE)),
        "get-perms": feeding(tools, request(Op.GET_PERMS, b"/bench/r")),
        "set-perms": feeding(tools, request(Op.SET_PERMS, b"/bench/w", b"n0", b"r5")),
        "directory": feeding(tools, request(Op.DIRECTORY, b"/bench/t")),
        "mkdir, rm": feeding(tools, request(Op.MKDIR, b"/bench/x"), request(Op.RM, b"/bench/x")),
        "subtree made and removed": feeding(tools, *tree, request(Op.RM, b"/bench/tree")),
        "write with 10 watchers": feeding(tools, write(b"/bench/watched", VALUE)),
        "watch, unwatch": feeding(tools, request(Op.WATCH, b"/some", b"t"), request(Op.UNWATCH, b"/some", b"t")),
        "transaction of 10 writes": shop.transaction,
        "guest reads": feeding(guest, request(Op.READ, b"r")),
        "guest writes": feeding(guest, write(b"w", VALUE)),
        "guest is refused": feeding(guest, write(b"/bench/r", VALUE)),
    }


@contextmanager
def loop_sections() -> Iterator[dict[str, Section]]:
    """Whole turns: loop, lanes, core, journal; and State's part."""
    stand = Stand()
    try:
        for path in (b"/bench/r", b"/bench/w"):
            stand.exchange(write(path, VALUE))
        stand.drain()
        reading, writing = request(Op.READ, b"/bench/r"), write(b"/bench/w", VALUE)

        def write_and_apply() -> None:
            stand.exchange(writing)
            stand.drain()

        yield {"turn: read": lambda: stand.exchange(reading), "turn: write, applied by State": write_and_apply}
    finally:
        stand.close()


@contextmanager
def sections() -> Iterator[dict[str, Section]]:
    """All of them, warmed up: what is cached is cached."""
    with loop_sections() as turns:
        everything = core_sections() | turns
        for section in everything.values():
            for _ in range(WARM_UPS):
                section()
        yield everything
