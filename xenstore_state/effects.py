"""Effects: what a request does to the store, as data.

Logic performs an effect to serve a request and publishes it with its outcome; State performs the same effect with the same
function on its own store and compares.  So nothing a record says is taken on trust: State itself asks whether the acting
connection may do it, counts what its quotas count, and finds the same conflicts.

`EFFECTS` is the table: number -> types of the arguments, function(store, acting connection, *arguments).
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from protocol.errors import EINVAL, ENOENT
from protocol.ops import RING_FEATURES
from protocol.paths import check_path, components
from recovery_box.items import Chunk, Connection
from xenstore_state import quotas, snapshots
from xenstore_state.access import Acl
from xenstore_state.domains import Domain
from xenstore_state.store import Store
from xenstore_state.tree import Parts
from xenstore_state.views import SPECIAL, Fired

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
INTRODUCE: Final = 18
RELEASE: Final = 19
RESUME: Final = 20
SET_TARGET: Final = 21
GONE: Final = 22
SHUTDOWN: Final = 23
IGNORE: Final = 24
EXPIRE: Final = 25
REFUSED: Final = 26
NOTHING: Final = 27
SCANNED: Final = 28
RESTART: Final = 29
SNAPSHOT: Final = 30
ROLLBACK: Final = 31
DIGEST: Final = 32
FORGET_PEAKS: Final = 33

GLOBAL: Final = -1
"""In place of a domid: the global quotas, which new domains copy."""
UNLIMITED_DEPTH: Final = -1


CACHED_PATH_MAX: Final = 128
"""Longest path, in bytes, whose names are remembered: what is remembered must stay small."""


_NAMES_MAX: Final = 16384
_names_by_path: Final[dict[bytes, Parts]] = {}
"""Of paths that were asked for lately.  Emptied when it is full: what is in use is soon there again."""
_SHARED_MAX: Final = 4096
_shared: Final[dict[bytes, bytes]] = {}
"""Names that were met lately, each as the object that all nodes of this name share: a large store has few different ones."""


def names_of(path: bytes) -> Parts:
    """Names from the root to the node of a canonical path; see `SPECIAL` for a special one.  Raises EINVAL."""
    names = _names_by_path.get(path)
    if names is not None:
        return names
    check_path(path)
    names = components(path) if path[:1] == b"/" else (*SPECIAL, path)
    if len(path) <= CACHED_PATH_MAX:
        if len(_shared) >= _SHARED_MAX:
            _shared.clear()
        names = tuple([_shared.setdefault(name, name) for name in names])
        if len(_names_by_path) >= _NAMES_MAX:
            _names_by_path.clear()
        _names_by_path[path] = names
    return names


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
    """RM."""
    return store.view(by, tx_id).rm(_node(path), by.subject)


def set_perms(store: Store, by: Connection, tx_id: int, path: bytes, acl: tuple[tuple[int, int], ...]) -> list[Fired]:
    """SET_PERMS, of special nodes too."""
    if not acl or not all(
        type(e) is tuple and len(e) == 2 and type(e[0]) is type(e[1]) is int and 0 <= e[0] <= 3 for e in acl
    ):
        raise EINVAL
    view = store.live if path[:1] == b"@" else store.view(by, tx_id)
    return view.set_perms(names_of(path), store.checked_acl(acl, by), by.subject)


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


def forget_peaks(store: Store, by: Connection) -> None:
    """CONTROL quota max -r: from now on the most that any domain uses of each quota is noted anew."""
    if not by.privileged:
        raise EINVAL
    store.domains.peaks.clear()


def set_feature(store: Store, by: Connection, domid: int, features: int) -> None:
    """SET_FEATURE."""
    domain = store.domains.known.get(domid)
    if domain is None:
        raise ENOENT
    if not by.subject.privileged or domain.introduced or features & ~RING_FEATURES:
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


def introduce(store: Store, by: Connection, domid: int) -> None:
    """INTRODUCE, or a guest that connects anew: the domain's ring gets a fresh connection, as State has offered it."""
    if not by.privileged:
        raise EINVAL
    store.introduce(domid)


def release(store: Store, by: Connection, domid: int) -> list[Fired]:
    """RELEASE."""
    if not by.privileged or store.domains.introduced(domid) is None:
        raise EINVAL
    return store.remove_domain(domid)


def gone(store: Store, by: Connection, domid: int) -> list[Fired]:
    """A domain has ended, as the hypervisor said."""
    domain = store.domains.known.get(domid)
    if by is not store.house or domain is None or not domain.gone:
        raise EINVAL
    return store.remove_domain(domid)


def shutdown(store: Store, by: Connection, domid: int) -> None:
    """A domain has shut down."""
    domain = _by_house(store, by, domid)
    domain.shutdown, domain.stopped = True, False
    store.domains.shutdown_untold = True


def scanned(store: Store, by: Connection) -> None:
    """Who watches all domains was told that some have shut down."""
    if by is not store.house:
        raise EINVAL
    store.domains.shutdown_untold = False


def resume(store: Store, by: Connection, domid: int) -> None:
    """RESUME: its next shutdown will be announced."""
    domain = store.domains.introduced(domid)
    if not by.privileged or domain is None:
        raise EINVAL
    domain.shutdown = False


def set_target(store: Store, by: Connection, domid: int, target: int) -> None:
    """SET_TARGET."""
    if not by.privileged:
        raise EINVAL
    store.set_target(domid, target)


def ignore(store: Store, by: Connection, domid: int, error: int) -> None:
    """A ring misbehaves: it is not served any more."""
    _by_house(store, by, domid)
    store.ignore(domid, error)


def expire(store: Store, by: Connection, number: int, now: int) -> list[Chunk]:
    """Events that waited too long for a connection to read them are dropped."""
    if by is not store.house:
        raise EINVAL
    return store.items.connections.find(number).pending.expire(now)


def refused(store: Store, by: Connection, quota: str) -> None:
    """A quota has refused the caller something."""
    domain = store.domains.known.get(by.domid)
    if domain is None or not quotas.is_name(quota):
        raise EINVAL
    domain.refused[quota] = domain.refused.get(quota, 0) + 1


def restart(store: Store, by: Connection) -> None:
    """The daemon is to start again: State's business once it has the record."""
    if not by.privileged:
        raise EINVAL


def snapshot(store: Store, by: Connection, name: str) -> None:
    """A snapshot of the tree under a name; one of this name before is replaced."""
    if not by.privileged or (name not in store.snapshots and len(store.snapshots) >= snapshots.SNAPSHOTS_MAX):
        raise EINVAL
    store.snapshots[name] = snapshots.take(store.tree, store.domains)


def rollback(store: Store, by: Connection, name: str) -> list[Fired]:
    """The tree becomes what it was when the snapshot was taken."""
    copy = store.snapshots.get(name)
    if not by.privileged or copy is None:
        raise EINVAL
    return snapshots.go_back(store.tree, store.domains, copy)


class Diverged(Exception):
    """The tree is not what it is elsewhere."""


def digest(store: Store, by: Connection, value: int) -> None:
    """The tree has this digest.  Raises `Diverged` if it has another one."""
    if by is not store.house:
        raise EINVAL
    if not store.tree.same(value):
        raise Diverged


def nothing(store: Store, by: Connection) -> None:
    """Output alone."""


def _by_house(store: Store, by: Connection, domid: int) -> Domain:
    domain = store.domains.known.get(domid)
    if by is not store.house or domain is None:
        raise EINVAL
    return domain


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
    INTRODUCE: Effect((int,), introduce),
    RELEASE: Effect((int,), release),
    RESUME: Effect((int,), resume),
    SET_TARGET: Effect((int, int), set_target),
    GONE: Effect((int,), gone),
    SHUTDOWN: Effect((int,), shutdown),
    IGNORE: Effect((int, int), ignore),
    EXPIRE: Effect((int, int), expire),
    REFUSED: Effect((str,), refused),
    NOTHING: Effect((), nothing),
    SCANNED: Effect((), scanned),
    RESTART: Effect((), restart),
    SNAPSHOT: Effect((str,), snapshot),
    ROLLBACK: Effect((str,), rollback),
    DIGEST: Effect((int,), digest),
    FORGET_PEAKS: Effect((), forget_peaks),
}

PERFORM: Final = {kind: effect.perform for kind, effect in EFFECTS.items()}
"""The functions alone."""

CHANGES_TREE: Final = frozenset({WRITE, MKDIR, RM, SET_PERMS})
"""Effects that change the tree at once when their transaction id is 0."""
ENDS_DOMAIN: Final = frozenset({RELEASE, GONE})
ABOUT_RING: Final = frozenset({INTRODUCE, IGNORE})
"""What the daemon itself does about a ring on account of what stands in it."""
CHANGES_CONNECTIONS: Final = frozenset({INTRODUCE, IGNORE, *ENDS_DOMAIN})
"""Effects with which connections of rings begin or end."""
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
