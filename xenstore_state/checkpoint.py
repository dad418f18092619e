"""Checkpoints: the whole store as bytes, and back.

A checkpoint is a file: a front with magic, version, length and checksum, then the msgpack of `_parts`.  It is written under
another name and renamed, so what bears its name is whole; what is damaged all the same is refused (`Damaged`).
Nothing here recurses, however deep the tree.  Knows no processes and no descriptors.
"""

import os
import struct
from collections.abc import Iterator
from typing import Any, Final
from zlib import crc32

import msgpack

from recovery_box.items import Chunk, Connection
from xenstore_state.access import Acl
from xenstore_state.domains import Domain, Offer
from xenstore_state.snapshots import Copy
from xenstore_state.store import Store
from xenstore_state.transactions import Seen, Transaction
from xenstore_state.tree import Node, Parts, Tree

MAGIC: Final = b"XOARCKPT"
VERSION: Final = 3
_FRONT: Final = struct.Struct("=8sIIQ")
"""Magic, version, CRC-32 and length of what follows."""

_DOMAIN_FIELDS: Final = (
    "unique_id",
    "features",
    "introduced",
    "error",
    "gone",
    "shutdown",
    "target",
    "refused",
    "peaks",
)
_CONNECTION_FIELDS: Final = (
    "id",
    "slot",
    "fd",
    "domid",
    "privileged",
    "socket",
    "port",
    "last_tx_id",
    "overflowed",
)


class Damaged(Exception):
    """A checkpoint cannot be used."""


def write(path: str, store: Store, sequence: int, more: dict[str, Any]) -> None:
    """Writes a checkpoint: the store, the number of the last record in it, and what else is to be kept.  Raises OSError."""
    body: bytes = msgpack.packb(_parts(store, sequence) | more, use_bin_type=True)
    fd = os.open(temporary(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with open(fd, "wb") as f:
            f.write(_FRONT.pack(MAGIC, VERSION, crc32(body), len(body)))
            f.write(body)
        os.replace(temporary(path), path)
    except OSError:
        os.unlink(temporary(path))  # there is little room as it is
        raise


def temporary(path: str) -> str:
    """What a checkpoint is called until it is whole."""
    return path + ".new"


def read(path: str) -> tuple[Store, dict[str, Any]]:
    """Reads a checkpoint: a store equal to the one written, and by name what else was written.

    Raises `Damaged`, or OSError if there is no such file.
    """
    body = _body(path)
    try:
        parts = msgpack.unpackb(body, use_list=False, strict_map_key=False)
        return _store(parts), parts
    except (msgpack.UnpackException, ValueError, TypeError, LookupError, AttributeError) as e:
        raise Damaged(repr(e)) from None


def verify(path: str) -> None:
    """Raises `Damaged` unless the file is what was written, or OSError if there is none."""
    _body(path)


def _body(path: str) -> bytes:
    with open(path, "rb") as f:
        data = f.read()
    if len(data) < _FRONT.size:
        raise Damaged("too short")
    magic, version, check, length = _FRONT.unpack_from(data)
    body = data[_FRONT.size :]
    if magic != MAGIC or version != VERSION or len(body) != length or crc32(body) != check:
        raise Damaged("not a checkpoint, of another version, or its checksum is wrong")
    return body


# ---- out


def _parts(store: Store, sequence: int) -> dict[str, Any]:
    domains = store.domains
    return {
        "sequence": sequence,
        "generation": store.tree.generation,
        "nodes": list(_nodes(store.tree)),
        "specials": [(name, node.value, node.acl, node.generation) for name, node in store.tree.specials.items()],
        "quotas": domains.quotas,
        "peaks": domains.peaks,
        "keep_orphans": domains.keep_orphans,
        "shutdown_untold": domains.shutdown_untold,
        "offers": dict(domains.offers),
        "domains": [_domain(domain) for domain in domains.known],
        "settings": dict(store.items.settings.pairs()),
        "connections": [_connection(connection) for connection in store.items.connections],
        "watch_sequence": store.watch_sequence,
        "snapshots": store.snapshots,
    }


def _nodes(tree: Tree) -> Iterator[tuple[int, bytes, bytes, Acl, int, int]]:
    """(depth, name, value, permission list, generation, birth) of each node, parents first, siblings in order."""
    stack = [(0, b"", tree.root)]
    while stack:
        depth, name, node = stack.pop()
        yield depth, name, node.value, node.acl, node.generation, node.birth
        if node.children:
            stack += [(depth + 1, below, child) for below, child in reversed(node.children.items())]


def _domain(domain: Domain) -> tuple[Any, ...]:
    ring = domain.connection.id if domain.connection is not None else 0
    return domain.domid, domain.quotas, ring, [getattr(domain, name) for name in _DOMAIN_FIELDS]


def _connection(by: Connection) -> tuple[Any, ...]:
    watches = [(w.path, w.token, w.depth, w.strip, w.sequence) for w in by.watches.values()]
    transactions = [_transaction(transaction) for transaction in by.transactions.values()]
    fields = tuple(getattr(by, name) for name in _CONNECTION_FIELDS)
    return fields, tuple(by.pending.chunks), watches, transactions


def _transaction(t: Transaction) -> dict[str, Any]:
    kept = t.kept()
    kept["seen"] = [(parts, _seen(t.tree, seen) if seen is not None else None) for parts, seen in t.seen.items()]
    return kept


def _seen(tree: Tree, seen: Seen) -> tuple[bool, bytes, Acl, int, list[bytes] | None]:
    """With its children's names as it will be listed unless the ledger says otherwise; None if that depends on what comes."""
    names = seen.then()
    if names is None and tree.find(seen.parts) is not seen.node:  # it is gone, and stays as it is
        names = seen.now()
    return seen.node is not None, seen.value, seen.acl, seen.generation, names


# ---- back


def _store(parts: Any) -> Store:
    store = Store()
    domains = store.domains
    domains.quotas, domains.peaks = dict(parts["quotas"]), dict(parts["peaks"])
    domains.keep_orphans, domains.shutdown_untold = parts["keep_orphans"], parts["shutdown_untold"]
    domains.offers = {domid: Offer(*offer) for domid, offer in parts["offers"].items()}
    _restore_tree(store.tree, parts)
    rings = {}
    for domid, quotas, ring, fields in parts["domains"]:
        domain = domains.known.get(domid) or domains.learn(domid, 0)
        domain.quotas = dict(quotas)
        for name, value in zip(_DOMAIN_FIELDS, fields, strict=True):
            setattr(domain, name, dict(value) if isinstance(value, dict) else value)
        rings[ring] = domain
    for name, value in parts["settings"].items():
        store.items.settings.insert(name, value)
    watches = []
    for fields, chunks, watched, transactions in parts["connections"]:
        by = Connection(**dict(zip(_CONNECTION_FIELDS, fields, strict=True)))
        store.connect(by)
        if by.id in rings:
            rings[by.id].connection = by
        for chunk in chunks:
            by.pending.append(*Chunk(*chunk))
        watches += [(by, *watch) for watch in watched]
        for kept in transactions:
            _restore_transaction(store, by, kept)
    for by, path, token, depth, strip, sequence in sorted(watches, key=lambda watch: watch[5]):
        store.watch_sequence = sequence - 1
        store.watch(by, path, token, depth, strip, checked=False)
    store.watch_sequence = parts["watch_sequence"]
    store.snapshots = {name: Copy(*copy) for name, copy in parts["snapshots"].items()}
    return store


def _restore_tree(tree: Tree, parts: Any) -> None:
    for name in list(tree.root.children or ()):
        tree.remove_child(tree.root, 0, (name,))
    _, _, value, acl, generation, _ = parts["nodes"][0]
    tree.set_acl(tree.root, acl, generation, ())
    tree.set_value(tree.root, value, generation)
    trail: list[tuple[Node, Parts]] = [(tree.root, ())]
    shared: dict[bytes, bytes] = {}  # as `names_of` does
    for depth, name, value, acl, generation, birth in parts["nodes"][1:]:
        del trail[depth:]
        parent, above = trail[-1]
        before = parent.generation
        there = (*above, shared.setdefault(name, name))
        node = tree.add_child(parent, value, acl, birth, there)
        parent.generation = before
        node.generation = generation
        trail.append((node, there))
    for name, value, acl, generation in parts["specials"]:
        special = tree.specials[name]
        tree.set_acl(special, acl, generation, (b"", name))
        special.value = value
    tree.generation = parts["generation"]
    tree.begin_digest()


def _restore_transaction(store: Store, by: Connection, kept: dict[str, Any]) -> None:
    seen: dict[Parts, Seen | None] = {}
    for parts, fields in kept["seen"]:
        if fields is None:
            seen[parts] = None
            continue
        existed, value, acl, generation, names = fields
        node = None
        if existed:  # with names, it does not matter which one it is: it may be gone, or another one in its place
            node = (store.tree.find(parts) if names is None else None) or Node(value, acl, generation)
        seen[parts] = Seen.restored(parts, node, value, acl, generation, None if names is None else list(names))
    transaction = Transaction.restored(store.tree, by.subject, kept, seen)
    store.items.transactions.insert((by.id, transaction.tx_id), transaction)
    by.transactions[transaction.tx_id] = transaction
