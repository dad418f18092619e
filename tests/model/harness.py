"""The store under test, State's copy of it and the reference model, asked together.

`Harness.ask` sends one request as bytes, lets the model judge everything that comes of it, publishes the effect in encoded
form and applies it to the copy, as State does; `compare` compares all three.
"""

import struct
from collections.abc import Callable, Mapping
from typing import Final

from protocol.errors import EINVAL
from recovery_box.items import Connection
from tests.model import reference
from tests.model.nodes import PAYLOAD_MAX, SET_PERMS, WRITE, Entry, Node
from tests.model.reference import Disagreement, Message, Reference
from tests.model.script import Script
from xenstore_logic import domains
from xenstore_logic.core import Performed
from xenstore_logic.embedded import Embedded
from xenstore_state.access import IGNORED
from xenstore_state.domains import Offer
from xenstore_state.records import Applier, encode
from xenstore_state.store import Store
from xenstore_state.tree import Node as RealNode
from xenstore_state.tree import walk

HEADER: Final = struct.Struct("=IIII")
REQ_ID: Final = 77
QUOTAS: Final = {"nodes": 1000, "watches": 128, "transactions": 10, "node-permissions": 5}
"""Those that the model knows, as they are by default."""
LOOK, DOMAIN_ENDS = -1, -2
"""In place of an operation: the tree is read and compared; the hypervisor ends a domain."""
LOW_QUOTAS: Final = {"nodes": 7, "watches": 6, "transactions": 4, "node-permissions": 4}
"""Of the guests: low enough to be met."""


Raw = tuple[int, int, int, bytes]
"""A message: type, request id, transaction id, payload."""


def messages(stream: bytes) -> list[Raw]:
    """Type, request id, transaction id and payload of each."""
    found = []
    while stream:
        op, req_id, tx_id, length = HEADER.unpack_from(stream)
        found.append((op, req_id, tx_id, stream[16 : 16 + length]))
        assert len(stream) >= 16 + length
        stream = stream[16 + length :]
    return found


def plain(heard: dict[int, list[Raw]]) -> dict[int, list[Message]]:
    """Types and payloads alone."""
    return {number: [(kind, content) for kind, _, _, content in found] for number, found in heard.items()}


def message(op: int, tx_id: int, payload: bytes) -> bytes:
    """One request."""
    return HEADER.pack(op, REQ_ID, tx_id, len(payload)) + payload


def answer(store: Embedded, number: int, op: int, payload: bytes, tx_id: int = 0) -> bytes | str:
    """What a store answers to one request, without any model: the payload, or the name of the error."""
    replies = [
        m for m in messages(store.feed(number, message(op, tx_id, payload)).output[number]) if m[0] != reference.EVENT
    ]
    assert len(replies) == 1
    op, _, _, content = replies[0]
    return content if op != reference.ERROR else content[:-1].decode()


def fields(node: RealNode) -> tuple[object, ...]:
    """Everything there is to a node."""
    return node.value, node.acl, node.generation, node.birth, list(node.children or ())


def assert_equal(one: Store, other: Store) -> None:
    """Two stores know the same."""
    assert [fields(n) for n in walk(one.tree.root)] == [fields(n) for n in walk(other.tree.root)]
    assert {k: fields(n) for k, n in one.tree.specials.items()} == {
        k: fields(n) for k, n in other.tree.specials.items()
    }
    assert (one.tree.generation, one.tree.owned) == (other.tree.generation, other.tree.owned)
    assert len(one.items.connections) == len(other.items.connections)
    for a, b in zip(one.items.connections, other.items.connections, strict=True):
        assert a.id == b.id
        for x, y in zip(a.watches.values(), b.watches.values(), strict=True):
            assert (x.path, x.token, x.depth, x.strip, x.sequence) == (y.path, y.token, y.depth, y.strip, y.sequence)
        assert list(a.transactions) == list(b.transactions)
        for t, u in zip(a.transactions.values(), b.transactions.values(), strict=True):
            assert (list(t.seen), t.doomed) == (list(u.seen), u.doomed)
    assert one.watches.count == other.watches.count


def seen(node: RealNode) -> Node:
    """A node as the model writes it."""
    return Node(
        node.value,
        tuple(
            Entry("nrwb"[access & 3], domid - 2**32 if domid >= 2**31 else domid, not access & IGNORED)
            for access, domid in node.acl
        ),
    )


class MadeUpXen:
    """The host of an embedded core: whatever `exist` holds exists.  What Logic learns, State knows as well."""

    def __init__(self) -> None:
        self.exist: set[int] = set()
        self.stores: list[Store] = []
        self.new_id: Callable[[], int] = lambda: 0

    def learn(self, domid: int) -> None:
        """Makes a domain known that exists."""
        for store in self.stores:
            if domid in self.exist and domid not in store.domains.known:
                store.domains.learn(domid, domid + 1)

    def offer(self, domid: int, remote_port: int) -> None:
        """A connection for a ring."""
        self.learn(domid)
        if domid not in self.exist:
            raise EINVAL
        number = self.new_id()
        for store in self.stores:
            store.domains.offers[domid] = Offer(number, -1, remote_port, remote_port)


class Harness:
    """What any store under test is asked through: the model judges what comes of each request.

    Connections have numbers, the same for model and store.  Number 1 is a toolstack's socket, which gives each guest a
    home, a ring and low quotas.  `script` tells what was done, for who reads a failure.
    """

    default_quotas: Mapping[str, int] = QUOTAS

    def __init__(
        self,
        guests: tuple[int, ...],
        quotas: dict[str, int] | None = None,
        known: frozenset[int] = reference.KNOWN,
    ) -> None:
        self.model = Reference(self.default_quotas, known)
        self.script = Script()
        self.requests = 0
        self.last = (0, 0, 0, b"")
        """Number, operation, transaction and payload of the last request, or what else is judged."""
        self.spent = False
        """Something went wrong: the store is not asked any more."""
        self.toolstack = self.connect()
        for domid in guests:
            self.create(domid)
            home = b"/local/domain/%d" % domid
            self.ask(self.toolstack, WRITE, 0, home + b"\0")
            self.ask(self.toolstack, SET_PERMS, 0, home + b"\0n%d\0" % domid)
            self.introduce(domid)
            for name, value in (LOW_QUOTAS if quotas is None else quotas).items():
                self.ask(self.toolstack, reference.SET_QUOTA, 0, b"%d\0%s\0%d\0" % (domid, name.encode(), value))

    def connect(self) -> int:
        """The number of a new socket."""
        number = self.model.connect(0, socket=True)
        self.script.opened(number, 0)
        self.open_socket(number)
        return number

    def disconnect(self, number: int) -> None:
        """A socket is closed."""
        self.script.closed(number)
        self.model.disconnect(number)
        self.close_socket(number)

    def create(self, domid: int) -> None:
        """The hypervisor makes a domain."""
        self.script.domain(domid, "create")
        self.model.exist.add(domid)
        self.create_domain(domid)

    def introduce(self, domid: int) -> int:
        """The toolstack introduces a domain.  The number of its connection."""
        self.ask(self.toolstack, reference.INTRODUCE, 0, b"%d\0001\0007\0" % domid)
        number = self.model.ring(domid)
        assert number is not None
        return number

    def destroy(self, domid: int) -> None:
        """The hypervisor ends a domain."""
        self.last = 0, DOMAIN_ENDS, 0, b"%d\0" % domid
        self.model.exist.discard(domid)
        known = domid in self.model.domains
        wanted = self.model.events(self.model.end_of(domid)) if known else {}
        self.model.forget_targets()
        said = plain(self.destroy_domain(domid))
        self.script.domain(domid, "destroy", said)
        for number in self.model.connections:
            heard = said.get(number, [])
            if heard != wanted.get(number, []):
                raise Disagreement(f"events of {number}, when domain {domid} ended", heard, wanted.get(number, []))

    def ask(self, number: int, op: int, tx_id: int, payload: bytes, cuts: int = 0) -> bytes | str:
        """Sends one request (in two pieces), and checks everything that comes of it.  The answer or the error's name."""
        data = message(op, tx_id, payload)
        self.last = number, op, tx_id, payload
        self.requests += 1
        heard = self.send(number, data[:cuts], data[cuts:])
        said = plain(heard)
        self.script.asked(number, op, tx_id, payload, said)
        for messages in heard.values():
            for kind, req_id, back, content in messages:
                ids = (0, 0) if kind == reference.EVENT else (REQ_ID, tx_id)
                if (req_id, back) != ids:
                    raise Disagreement("ids of a message", (req_id, back), ids)
                assert len(content) <= PAYLOAD_MAX
        self.model.serve(number, op, tx_id, payload, said)
        if op == reference.INTRODUCE and self.model.last_number in self.model.connections:
            self.script.opened(self.model.last_number, self.model.connections[self.model.last_number].domid)
        kind, content = next(message for message in said[number] if message[0] != reference.EVENT)
        return content if kind != reference.ERROR else content[:-1].decode()

    # ---- what the store under test does

    def open_socket(self, number: int) -> None:
        raise NotImplementedError

    def close_socket(self, number: int) -> None:
        raise NotImplementedError

    def create_domain(self, domid: int) -> None:
        raise NotImplementedError

    def destroy_domain(self, domid: int) -> dict[int, list[Raw]]:
        """What anybody heard of it."""
        raise NotImplementedError

    def send(self, number: int, *pieces: bytes) -> dict[int, list[Raw]]:
        """The messages that a request causes, by connection."""
        raise NotImplementedError

    def check(self) -> None:
        """After each step."""
        self.compare()

    def compare(self) -> None:
        """The store holds what the model does."""
        raise NotImplementedError

    def leave(self) -> None:
        """Nothing more will be asked."""


class InProcess(Harness):
    """The core in this process, and beside it State's copy of the store: each effect is encoded and applied to it."""

    def __init__(self, guests: tuple[int, ...]) -> None:
        self.xen = MadeUpXen()
        self.store, self.twin = Embedded(self.xen), Store()
        self.applier = Applier(self.twin, lambda connection: 0)
        self.xen.stores = [self.store.store, self.twin]
        self.xen.new_id = self.store.new_id
        super().__init__(guests)

    def open_socket(self, number: int) -> None:
        assert self.store.connect(0) == number
        self.twin.connect(Connection(number, -1, -1, 0, True, True))

    def close_socket(self, number: int) -> None:
        self.store.disconnect(number)
        self.twin.disconnect(self.twin.items.connections.find(number))

    def create_domain(self, domid: int) -> None:
        self.xen.exist.add(domid)

    def destroy_domain(self, domid: int) -> dict[int, list[Raw]]:
        self.xen.exist.discard(domid)
        core = self.store.core
        for store in (self.store.store, self.twin):
            known = store.domains.known.get(domid)
            if known is not None:
                known.gone = True
        if domains.gone(core, domid):
            assert core.effect is not None
            self._publish(0, core.effect)
        said: dict[int, list[Raw]] = {}
        for to, event in core.events:
            said.setdefault(to.id, []).extend(messages(event))
        core.effect = None
        core.events.clear()
        return said

    def send(self, number: int, *pieces: bytes) -> dict[int, list[Raw]]:
        said: dict[int, list[Raw]] = {}
        turns = [self.store.feed(number, piece) for piece in pieces]
        for turn in turns:
            assert not turn.closed
            for to, stream in turn.output.items():
                said.setdefault(to, []).extend(messages(stream))
        performed = [effect for turn in turns for effect in turn.effects]
        assert len(performed) <= 1
        for by, effect in performed:
            self._publish(by, effect)
        return said

    def _publish(self, by: int, effect: Performed) -> None:
        kind, arguments, outcome = effect
        self.applier.apply(encode((by, 0, kind, arguments, outcome, self.store.store.tree.generation, ())))

    def compare(self) -> None:
        """The store's tree is the model's, and State knows the same."""
        tree = self.store.store.tree
        found: dict[bytes, Node] = {}
        stack: list[tuple[bytes, RealNode]] = [(b"/", tree.root)]
        for path, node in [*stack, *tree.specials.items()]:
            found[path] = seen(node)
        while stack:
            path, node = stack.pop()
            assert list(node.children or ()) == self.model.tree.children(path)
            for name, child in (node.children or {}).items():
                below = (b"" if path == b"/" else path) + b"/" + name
                found[below] = seen(child)
                stack.append((below, child))
        assert found == self.model.tree.nodes
        owned = {domid: self.model.tree.owned(domid) for domid in tree.owned}
        assert tree.owned == owned, f"nodes owned: counted {tree.owned}, there are {owned}"
        assert_equal(self.store.store, self.twin)
