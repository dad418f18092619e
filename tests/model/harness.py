"""The store under test, State's copy of it and the reference model, asked together.

`Harness.ask` sends one request as bytes, lets the model judge everything that comes of it, publishes the effect in encoded
form and applies it to the copy, as State does; `check` compares all three.
"""

import struct
from typing import Final

from recovery_box.items import Connection
from tests.model import reference
from tests.model.nodes import PAYLOAD_MAX, SET_PERMS, WRITE, Entry, Node
from tests.model.reference import Reference
from xenstore_logic.embedded import Embedded, Turn
from xenstore_state.access import IGNORED
from xenstore_state.records import Applier, encode
from xenstore_state.store import Store
from xenstore_state.tree import Node as RealNode
from xenstore_state.tree import walk

HEADER: Final = struct.Struct("=IIII")
SET_QUOTA: Final = 26
QUOTAS: Final = {"watches": 6, "transactions": 4, "node-permissions": 5}
"""Of the guests: low enough to be met."""


def messages(stream: bytes) -> list[tuple[int, int, int, bytes]]:
    """Type, request id, transaction id and payload of each."""
    found = []
    while stream:
        op, req_id, tx_id, length = HEADER.unpack_from(stream)
        found.append((op, req_id, tx_id, stream[16 : 16 + length]))
        assert len(stream) >= 16 + length
        stream = stream[16 + length :]
    return found


def message(op: int, tx_id: int, payload: bytes) -> bytes:
    """One request."""
    return HEADER.pack(op, 77, tx_id, len(payload)) + payload


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


class Harness:
    """All three, with the toolstack connected as number 1 and a home for each guest."""

    def __init__(self, guests: tuple[int, ...]) -> None:
        self.store, self.model, self.twin = Embedded(), Reference(QUOTAS), Store()
        self.applier = Applier(self.twin, lambda connection: 0)
        toolstack = self.connect(0)
        for domid in guests:
            self.connect(domid)
            home = b"/local/domain/%d" % domid
            self.ask(toolstack, WRITE, 0, home + b"\0")
            self.ask(toolstack, SET_PERMS, 0, home + b"\0n%d\0" % domid)
            for name, value in QUOTAS.items():
                self.ask(toolstack, SET_QUOTA, 0, b"%d\0%s\0%d\0" % (domid, name.encode(), value))

    def connect(self, domid: int) -> int:
        """A new connection's number: a socket of domain 0, or a guest's ring."""
        number = self.store.connect(domid)
        self.model.connect(number, domid, socket=domid == 0)
        if domid not in self.twin.domains.known:
            self.twin.domains.learn(domid, domid).introduced = True
        self.twin.connect(Connection(number, -1, -1, domid, domid == 0, domid == 0))
        return number

    def disconnect(self, number: int) -> None:
        """The peer is gone."""
        self.store.disconnect(number)
        self.model.disconnect(number)
        self.twin.disconnect(self.twin.items.connections.find(number))

    def ask(self, number: int, op: int, tx_id: int, payload: bytes, cuts: int = 0) -> bytes | str:
        """Sends one request (in two pieces), and checks everything that comes of it.  The answer or the error's name."""
        data = message(op, tx_id, payload)
        turns: list[Turn] = [self.store.feed(number, piece) for piece in (data[:cuts], data[cuts:])]
        said: dict[int, list[tuple[int, bytes]]] = {}
        for turn in turns:
            assert not turn.closed
            for to, stream in turn.output.items():
                for kind, req_id, back, content in messages(stream):
                    assert (req_id, back) == ((0, 0) if kind == reference.EVENT else (77, tx_id))
                    assert len(content) <= PAYLOAD_MAX
                    said.setdefault(to, []).append((kind, content))
        self.model.serve(number, op, tx_id, payload, said)
        performed = [effect for turn in turns for effect in turn.effects]
        assert len(performed) <= 1
        for by, (kind_of_effect, arguments, outcome) in performed:
            generation = self.store.store.tree.generation
            self.applier.apply(encode((by, 0, kind_of_effect, arguments, outcome, generation, ())))
        kind, content = next(message for message in said[number] if message[0] != reference.EVENT)
        return content if kind != reference.ERROR else content[:-1].decode()

    def check(self) -> None:
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
        assert_equal(self.store.store, self.twin)
