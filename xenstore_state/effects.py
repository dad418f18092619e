"""Effects: what a request does to the store, as data.

Logic performs an effect to serve a request and publishes it with its outcome; State performs the same effect with the same
function on its own store and compares.  So nothing a record says is taken on trust: State itself asks whether the acting
connection may do it, counts what its quotas count, and finds the same conflicts.

`EFFECTS` is the table: number -> types of the arguments, function(store, acting connection, *arguments).
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, NamedTuple

from protocol.errors import EINVAL, ENOENT
from protocol.ops import SOCKET_FEATURES
from protocol.paths import check_path, components
from recovery_box.items import Connection
from xenstore_state import quotas
from xenstore_state.access import Acl
from xenstore_state.store import Store
from xenstore_state.views import SPECIAL, Fired, Parts

READ: Final = 1
DIRECTORY: Final = 2
GET_PERMS: Final = 3
WRITE: Final = 4
MKDIR: Final = 5
RM: Final = 6
SET_PERMS: Final = 7
START: Final = 8
ABORT: Final = 9
COMMIT: Final = 10
WATCH: Final = 11
UNWATCH: Final = 12
RESET: Final = 13
CLOSE: Final = 14
SET_QUOTA: Final = 15
SET_FEATURE: Final = 16
SETTING: Final = 17

GLOBAL: Final = -1
"""In place of a domid: the global quotas, which new domains copy."""
UNLIMITED_DEPTH: Final = -1


CACHED_PATH_MAX: Final = 128
"""Longest path, in bytes, whose names are remembered: what is remembered must stay small."""


def names_of(path: bytes) -> Parts:
    """Names from the root to the node of a canonical path; see `SPECIAL` for a special one.  Raises EINVAL."""
    return _short_names(path) if len(path) <= CACHED_PATH_MAX else _names(path)


def _names(path: bytes) -> Parts:
    check_path(path)
    return components(path) if path[:1] == b"/" else (*SPECIAL, path)


_short_names: Final = lru_cache(maxsize=16384)(_names)


def read(store: Store, by: Connection, tx_id: int, path: bytes) -> bytes:
    """READ."""
    if path[:1] == b"@":
        raise EINVAL
    return store.view(by, tx_id).read(names_of(path), by.subject)


def directory(store: Store, by: Connection, tx_id: int, path: bytes) -> list[bytes]:
    """DIRECTORY and DIRECTORY_PART."""
    return store.view(by, tx_id).directory(_node(path), by.subject)


def get_perms(store: Store, by: Connection, tx_id: int, path: bytes) -> Acl:
    """GET_PERMS, of special nodes too (those are never isolated)."""
    view = store.live if path[:1] == b"@" else store.view(by, tx_id)
    return view.get_perms(names_of(path), by.subject)


def write(store: Store, by: Connection, tx_id: int, path: bytes, value: bytes) -> list[Fired]:
    """WRITE."""
    if path[:1] == b"@":
        raise EINVAL
    return store.view(by, tx_id).write(names_of(path), value, by.subject)


def mkdir(store: Store, by: Connection, tx_id: int, path: bytes) -> list[Fired]:
    """MKDIR."""
    return store.view(by, tx_id).mkdir(_node(path), by.subject)


def rm(store: Store, by: Connection, tx_id: int, path: bytes) -> list[Fired]:
    """RM.  The root cannot be removed."""
    parts = _node(path)
    if not parts:
        raise EINVAL
    return store.view(by, tx_id).rm(parts, by.subject)


def set_perms(store: Store, by: Connection, tx_id: int, path: bytes, acl: tuple[tuple[int, int], ...]) -> list[Fired]:
    """SET_PERMS, of special nodes too."""
    if not acl or not all(
        type(e) is tuple and len(e) == 2 and type(e[0]) is type(e[1]) is int and 0 <= e[0] <= 3 for e in acl
    ):
        raise EINVAL
    view = store.live if path[:1] == b"@" else store.view(by, tx_id)
    return view.set_perms(names_of(path), store.checked_acl(acl), by.subject)


def start(store: Store, by: Connection, tx_id: int) -> None:
    """TRANSACTION_START."""
    store.start(by, tx_id)


def abort(store: Store, by: Connection, tx_id: int) -> None:
    """TRANSACTION_END F."""
    store.end(by, tx_id).close()


def commit(store: Store, by: Connection, tx_id: int) -> list[Fired]:
    """TRANSACTION_END T.  The transaction is over, whatever comes of it."""
    return store.end(by, tx_id).commit(by.subject)


def watch(store: Store, by: Connection, path: bytes, token: bytes, depth: int, strip: int) -> None:
    """WATCH."""
    names_of(path)
    store.watch(by, path, token, None if depth == UNLIMITED_DEPTH else depth, strip)


def unwatch(store: Store, by: Connection, path: bytes, token: bytes) -> None:
    """UNWATCH."""
    store.unwatch(by, path, token)


def reset(store: Store, by: Connection) -> None:
    """RESET_WATCHES: watches and transactions are gone."""
    store.reset(by)


def close(store: Store, by: Connection) -> None:
    """The connection is closed."""
    store.disconnect(by)


def set_quota(store: Store, by: Connection, domid: int, name: str, value: int) -> None:
    """SET_QUOTA and CONTROL quota set: of one domain, or (`GLOBAL`) of those that come to be known."""
    if not by.subject.privileged or not quotas.is_name(name) or not 0 <= value < 2**32:
        raise EINVAL
    if domid == GLOBAL:
        store.domains.quotas[name] = value
        return
    domain = store.domains.known.get(domid)
    if domain is None:
        raise ENOENT
    domain.quotas[name] = value


def set_feature(store: Store, by: Connection, domid: int, features: int) -> None:
    """SET_FEATURE."""
    domain = store.domains.known.get(domid)
    if domain is None:
        raise ENOENT
    if not by.subject.privileged or domain.introduced or features & ~SOCKET_FEATURES:
        raise EINVAL
    domain.features = features


def setting(store: Store, by: Connection, name: str, value: str) -> None:
    """A setting of the daemon itself: what is traced, and where to."""
    if not by.subject.privileged:
        raise EINVAL
    table = store.items.settings
    if name in table:
        table.update(name, value)
    else:
        table.insert(name, value)


class Effect(NamedTuple):
    """One row of the table."""

    arguments: tuple[type, ...]
    perform: Callable[..., Any]


EFFECTS: Final = {
    READ: Effect((int, bytes), read),
    DIRECTORY: Effect((int, bytes), directory),
    GET_PERMS: Effect((int, bytes), get_perms),
    WRITE: Effect((int, bytes, bytes), write),
    MKDIR: Effect((int, bytes), mkdir),
    RM: Effect((int, bytes), rm),
    SET_PERMS: Effect((int, bytes, tuple), set_perms),
    START: Effect((int,), start),
    ABORT: Effect((int,), abort),
    COMMIT: Effect((int,), commit),
    WATCH: Effect((bytes, bytes, int, int), watch),
    UNWATCH: Effect((bytes, bytes), unwatch),
    RESET: Effect((), reset),
    CLOSE: Effect((), close),
    SET_QUOTA: Effect((int, str, int), set_quota),
    SET_FEATURE: Effect((int, int), set_feature),
    SETTING: Effect((str, str), setting),
}

PERFORM: Final = {kind: effect.perform for kind, effect in EFFECTS.items()}
"""The functions alone."""

CHANGES_TREE: Final = frozenset({WRITE, MKDIR, RM, SET_PERMS})
"""Effects that change the tree at once when their transaction id is 0."""
IN_TRANSACTION: Final = frozenset({READ, DIRECTORY, GET_PERMS, WRITE, MKDIR, RM, SET_PERMS, COMMIT})
"""Effects whose first argument is a transaction id; with one, even a refusal changes something."""


def _node(path: bytes) -> Parts:
    if path[:1] == b"@":
        raise EINVAL
    return names_of(path)


def in_transaction(kind: int, arguments: tuple[Any, ...]) -> bool:
    """Whether an effect belongs to a transaction, where even a refusal changes something.  Special nodes never do."""
    if kind not in IN_TRANSACTION or not arguments[0]:
        return False
    return kind == COMMIT or arguments[1][:1] != b"@"
