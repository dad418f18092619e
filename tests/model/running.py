"""A daemon that runs, as a store under test: sockets, and emulated guests' rings on its simulated Xen.

After each request every connection makes one harmless round trip: a daemon answers in order, so everything that the request
caused has arrived then.  `Running` may be made many times for one daemon; it takes everything away that it finds.
"""

from collections.abc import Iterable
from typing import ClassVar, Final

from tests.conformance.wire import Client, Closed, Op, pack, strings
from tests.conformance.xen import Guest, SimulatedXen, wait_until_released
from tests.model import reference
from tests.model.harness import HEADER, LOOK, REQ_ID, Harness, Raw
from tests.model.nodes import ANYBODY, Entry
from tests.model.reference import Disagreement
from tests.oracle.daemons import Daemon

BARRIER: Final = 0x7B000001
PORT: Final = 7
"""Of the guests' event channels."""
SILENCE: Final = 20.0
"""Seconds after which no answer comes any more, however busy the machine is."""
CHECKED_EVERY: Final = 12
"""Steps after which the whole tree is read and compared."""


class Running(Harness):
    """A daemon, and the model beside it."""

    ordered: bool = True
    """Children are listed in order of creation."""
    special_perms: ClassVar[bool] = True
    """Special nodes have permission lists that can be read and set."""

    def __init__(
        self,
        daemon: Daemon,
        guests: tuple[int, ...],
        quotas: dict[str, int] | None = None,
        known: frozenset[int] = reference.KNOWN,
    ) -> None:
        assert daemon.xen_dir is not None
        self.daemon = daemon
        self.xen = SimulatedXen(daemon.xen_dir)
        self.admin = Client(daemon.socket)
        self.sockets: dict[int, Client] = {}
        self.guests: dict[int, Guest] = {}
        self.checks = 0
        self.clean()
        super().__init__(guests, quotas, known)

    def clean(self) -> None:
        """The store is as the model begins."""
        for name in self.admin.directory("/"):
            self.admin.rm("/" + name.decode())
        self.admin.write("/", b"")
        self.admin.set_perms("/", "n0")
        self.admin.mkdir("/tool/xenstored")
        if self.special_perms:
            self.admin.set_perms("@introduceDomain", "n0")
            self.admin.set_perms("@releaseDomain", "n0", f"r{ANYBODY}")

    def leave(self) -> None:
        """Domains and connections are gone; a daemon that is not asked any more is ended."""
        if self.spent:
            self.daemon.stop()
        for client in self.sockets.values():
            client.close()
        for domid, guest in self.guests.items():
            self.xen.destroy(domid)
            if not self.spent:
                wait_until_released(self.admin, domid)
            guest.close()
        self.admin.close()

    def destroy(self, domid: int) -> None:
        """Only of domains that are introduced one can see when a daemon has noticed their end."""
        if self.model.ring(domid) is None:
            self.introduce(domid)
        super().destroy(domid)

    # ---- what the harness wants

    def open_socket(self, number: int) -> None:
        self.sockets[number] = Client(self.daemon.socket)

    def close_socket(self, number: int) -> None:
        self.sockets.pop(number).close()

    def create_domain(self, domid: int) -> None:
        self.guests[domid] = self.xen.create(domid, port=PORT)

    def destroy_domain(self, domid: int) -> dict[int, list[Raw]]:
        guest = self.guests.pop(domid)
        self.xen.destroy(domid)
        wait_until_released(self.admin, domid)
        guest.close()
        return self.collect(self.model.connections)

    def send(self, number: int, *pieces: bytes) -> dict[int, list[Raw]]:
        try:
            return self._send(number, *pieces)
        except (TimeoutError, Closed) as e:
            self.spent = True
            raise Disagreement("silence", e, "an answer") from e

    def _send(self, number: int, *pieces: bytes) -> dict[int, list[Raw]]:
        client = self.client(number)
        for piece in filter(None, pieces):
            client.send_raw(piece)
        reply = client.reply(REQ_ID, SILENCE)
        numbers = set(self.model.connections)
        if reply.op == Op.RELEASE:
            data = b"".join(pieces)
            released = reference.domid_of(data[HEADER.size :].partition(b"\0")[0])
            numbers.discard(self.model.ring(released) or 0)
        return self.collect(numbers)

    def check(self) -> None:
        self.checks += 1
        if self.checks % CHECKED_EVERY == 0:
            self.compare()

    # ---- how it is done

    def client(self, number: int) -> Client:
        """Who speaks at the other end of a connection."""
        by = self.model.connections[number]
        return self.guests[by.domid] if by.bound else self.sockets[number]

    def collect(self, numbers: Iterable[int]) -> dict[int, list[Raw]]:
        """Everything that these connections were told since the last time."""
        clients = {number: self.client(number) for number in sorted(numbers)}
        for client in clients.values():
            client.send_raw(pack(Op.GET_DOMAIN_PATH, b"0\0", req_id=BARRIER))
        for client in clients.values():
            client.reply(BARRIER, SILENCE)
        told = {}
        for number, client in clients.items():
            told[number] = [(m.op, m.req_id, m.tx_id, m.payload) for m in client.arrived if m.req_id != BARRIER]
            client.forget()
        return told

    def compare(self) -> None:
        """Reads the tree and compares it with the model's."""
        self.last = 0, LOOK, 0, b""
        for path, node in self.model.tree.nodes.items():
            if path[:1] == b"/":
                self.same(Op.READ, path, node.value)
                self.same(Op.DIRECTORY, path, b"".join(name + b"\0" for name in self.model.tree.children(path)))
            if path[:1] == b"/" or self.special_perms:
                self.same(Op.GET_PERMS, path, b"".join(entry(e) for e in node.acl))
        self.admin.forget()

    def same(self, op: Op, path: bytes, wanted: bytes) -> None:
        """The daemon says this of a node."""
        found = self.admin.outcome(op, strings(path))
        if op == Op.DIRECTORY and not self.ordered and isinstance(found, bytes):
            found, wanted = (b"\0".join(sorted(names.split(b"\0"))) for names in (found, wanted))
        if found != wanted:
            raise Disagreement(f"{op.name} of {path!r}", found, wanted)


def entry(of: Entry) -> bytes:
    """As GET_PERMS writes it."""
    return b"%s%d\0" % (of.letter.encode(), of.domid)
