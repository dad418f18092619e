"""The core in one's own process: for fuzzers, model checkers, and tests.  No sockets, no clock, no fork, no files.

from xenstore_logic.embedded import Embedded
from protocol.wire import Message

store = Embedded()
toolstack, guest = store.connect(), store.connect(domid=5)
turn = store.feed(toolstack, Message(11, 1, 0, b"/hello\\0world").encode())
turn.output[toolstack]     # the reply, b"...OK\\0", behind any events
turn.effects               # what a daemon would have published before letting go of a single byte
store.feed(guest, b"...any bytes, in any pieces...")
"""

from collections import defaultdict
from typing import NamedTuple

from protocol.wire import Framer, FramingViolation
from recovery_box.items import Connection
from xenstore_logic.core import Core, Performed
from xenstore_logic.host import Host
from xenstore_logic.requests import ROWS
from xenstore_state.domains import PRIVILEGED
from xenstore_state.store import Store


class Turn(NamedTuple):
    """What came of feeding some bytes."""

    effects: list[tuple[int, Performed]]
    """(connection id, effect) in order."""
    output: dict[int, bytes]
    """Bytes for each connection, by connection id."""
    closed: bool
    """The stream cannot be followed any further; the connection is gone."""


class Embedded:
    """A store with connections that bytes are fed to.

    Without a `host` there are no domains but those that `connect` is told of; with one, INTRODUCE takes what it offers.
    """

    def __init__(self, host: Host | None = None) -> None:
        self.store = Store()
        self.core = Core(self.store, ROWS, host)
        self._framers: defaultdict[int, Framer] = defaultdict(Framer)
        self._last_id = 0

    def new_id(self) -> int:
        """An id for one more connection: a host needs it for its offers."""
        self._last_id += 1
        return self._last_id

    def connect(self, domid: int = PRIVILEGED, *, socket: bool | None = None) -> int:
        """A new connection's id: a socket of the privileged domain, or an introduced guest's ring."""
        if domid not in self.store.domains.known:
            self.store.domains.learn(domid, domid).introduced = True
        number = self.new_id()
        privileged = domid == PRIVILEGED
        self.store.connect(Connection(number, -1, -1, domid, privileged, socket if socket is not None else privileged))
        return number

    def feed(self, connection: int, data: bytes) -> Turn:
        """Bytes from a connection, in any splitting."""
        core, by = self.core, self.store.items.connections.find(connection)
        effects: list[tuple[int, Performed]] = []
        output: dict[int, bytes] = {}

        def put(events: list[tuple[Connection, bytes]]) -> None:
            for to, event in events:
                output[to.id] = output.get(to.id, b"") + event
            events.clear()

        try:
            for message in self._framers[connection].feed(data):
                reply = core.handle(by, *message)
                if core.effect is not None:
                    effects.append((connection, core.effect))
                    core.effect = None
                put(core.events)
                output[connection] = output.get(connection, b"") + reply
                put(core.late_events)
            self.store.tree.bound_digest()
        except FramingViolation:
            self.disconnect(connection)
            return Turn(effects, output, closed=True)
        return Turn(effects, output, closed=False)

    def disconnect(self, connection: int) -> None:
        """The peer is gone."""
        self.store.disconnect(self.store.items.connections.find(connection))
