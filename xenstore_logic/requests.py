"""What each operation on nodes, watches and transactions answers (core.c, watch.c, transaction.c of the C daemon).

A handler takes (core, connection, tx_id, payload), checks the payload's form, and returns the reply's payload or raises a
StoreError.  `HANDLERS` at the end is the table, `ROWS` what the core makes of it.
"""

from typing import Final

from protocol.errors import EINVAL, ENOENT, StoreError
from protocol.ops import FEATURE_WATCH_DEPTH, Op
from protocol.payload import atoi, one_string, string_and_rest, strings
from protocol.permissions import parse_permission
from protocol.wire import ACK, PAYLOAD_MAX, watch_event
from recovery_box.items import Connection
from xenstore_logic import domains
from xenstore_logic.control import control
from xenstore_logic.core import Core, Handler, Row, rows
from xenstore_state import effects
from xenstore_state.access import encode
from xenstore_state.quotas import check

# ---- nodes


def read(core: Core, by: Connection, tx_id: int, payload: bytes) -> bytes:
    """READ: the value, byte for byte."""
    path = core.path(by, one_string(payload))
    if not tx_id:
        return effects.read(core.store, by, 0, path)
    value: bytes = core.perform(effects.READ, by, tx_id, path)
    return value


def directory(core: Core, by: Connection, tx_id: int, payload: bytes) -> bytes:
    """DIRECTORY: names of the children in order of creation.  E2BIG if they do not fit one reply."""
    return core.listing(by, tx_id, core.path(by, one_string(payload)))[1]


def directory_part(core: Core, by: Connection, tx_id: int, payload: bytes) -> bytes:
    """DIRECTORY_PART: the node's generation and as many whole names behind an offset as fit; an empty one ends the list."""
    words = strings(payload)
    if len(words) != 2:
        raise EINVAL
    path = core.path(by, words[0])
    generation, names = core.listing(by, tx_id, path)
    head = b"%d\0" % generation
    offset = atoi(words[1])
    if not 0 <= offset < len(names):
        return head + b"\0"
    room = PAYLOAD_MAX - len(head)
    if len(names) - offset < room:
        return head + names[offset:] + b"\0"
    end = names.rfind(b"\0", offset, offset + room - 1)
    return head + names[offset : end + 1]


def get_perms(core: Core, by: Connection, tx_id: int, payload: bytes) -> bytes:
    """GET_PERMS, of special nodes too."""
    return encode(core.look(effects.GET_PERMS, by, tx_id, core.path(by, one_string(payload), special=True)))


def write(core: Core, by: Connection, tx_id: int, payload: bytes) -> bytes:
    """WRITE: one event on the path, whatever was created on the way and even if the value is the same."""
    written, value = string_and_rest(payload)
    fired = core.perform(effects.WRITE, by, tx_id, core.path(by, written), value)
    if fired:
        core.fire(fired)
    return ACK


def mkdir(core: Core, by: Connection, tx_id: int, payload: bytes) -> bytes:
    """MKDIR: nothing happens to a node that exists."""
    core.fire(core.perform(effects.MKDIR, by, tx_id, core.path(by, one_string(payload))))
    return ACK


def rm(core: Core, by: Connection, tx_id: int, payload: bytes) -> bytes:
    """RM: events for watched descendants first, then for the node."""
    core.fire(core.perform(effects.RM, by, tx_id, core.path(by, one_string(payload))))
    return ACK


def set_perms(core: Core, by: Connection, tx_id: int, payload: bytes) -> bytes:
    """SET_PERMS: an entry without a closing NUL is dropped."""
    words = strings(payload)
    if len(words) < 2:
        raise EINVAL
    limits = by.subject.quotas
    if limits is not None:
        check(limits, "node-permissions", len(words) - 1)
    acl = tuple((access, domid) for access, domid in map(parse_permission, words[1:]))
    for _, domid in acl:
        domains.learn(core, domid)
    if not core.store.counts(acl[0][1], by):
        raise ENOENT
    core.fire(core.perform(effects.SET_PERMS, by, tx_id, core.path(by, words[0], special=True), acl))
    return ACK


# ---- watches


def watch(core: Core, by: Connection, tx_id: int, payload: bytes) -> bytes:
    """WATCH: the reply, then a first event with the path as it was written, whether or not it may be read."""
    words = strings(payload)
    depth = effects.UNLIMITED_DEPTH
    if len(words) == 3 and domains.features(core, by) & FEATURE_WATCH_DEPTH:
        depth = atoi(words[2])
        if depth < 0:
            raise EINVAL
    elif len(words) != 2:
        raise EINVAL
    path = core.path(by, words[0], special=True)
    core.perform(effects.WATCH, by, path, words[1], depth, len(path) - len(words[0]))
    event = watch_event(words[0], words[1])
    if event is not None:
        core.late_events.append((by, event))
    core.trace.thing("CREATE", "watch", by)
    return ACK


def unwatch(core: Core, by: Connection, tx_id: int, payload: bytes) -> bytes:
    """UNWATCH: events already queued stay."""
    words = strings(payload)
    if len(words) != 2:
        raise EINVAL
    core.perform(effects.UNWATCH, by, core.path(by, words[0], special=True), words[1])
    core.trace.thing("DESTROY", "watch", by)
    return ACK


def reset_watches(core: Core, by: Connection, tx_id: int, payload: bytes) -> bytes:
    """RESET_WATCHES: all watches and all transactions of the caller, this one included."""
    core.perform(effects.RESET, by)
    return ACK


# ---- transactions


def transaction_start(core: Core, by: Connection, tx_id: int, payload: bytes) -> bytes:
    """TRANSACTION_START: the payload does not matter; they do not nest."""
    if tx_id:
        raise StoreError("EBUSY")
    new = core.store.next_tx_id(by)
    core.perform(effects.START, by, new)
    core.trace.thing("CREATE", "transaction", by)
    return b"%d\0" % new


def transaction_end(core: Core, by: Connection, tx_id: int, payload: bytes) -> bytes:
    """TRANSACTION_END: a malformed one leaves the transaction open; any other ends it."""
    how = one_string(payload)
    if how not in {b"T", b"F"}:
        raise EINVAL
    if not tx_id:
        raise ENOENT
    core.trace.thing("DESTROY", "transaction", by)
    if how == b"F":
        core.perform(effects.ABORT, by, tx_id)
    else:
        accessed = by.transactions[tx_id].seen
        core.fire_committed(core.perform(effects.COMMIT, by, tx_id), accessed)
    return ACK


HANDLERS: Final[dict[int, Handler]] = {
    Op.CONTROL: control,
    Op.DIRECTORY: directory,
    Op.READ: read,
    Op.GET_PERMS: get_perms,
    Op.WATCH: watch,
    Op.UNWATCH: unwatch,
    Op.TRANSACTION_START: transaction_start,
    Op.TRANSACTION_END: transaction_end,
    Op.INTRODUCE: domains.introduce,
    Op.RELEASE: domains.release,
    Op.GET_DOMAIN_PATH: domains.get_domain_path,
    Op.WRITE: write,
    Op.MKDIR: mkdir,
    Op.RM: rm,
    Op.SET_PERMS: set_perms,
    Op.IS_DOMAIN_INTRODUCED: domains.is_domain_introduced,
    Op.RESUME: domains.resume,
    Op.SET_TARGET: domains.set_target,
    Op.RESET_WATCHES: reset_watches,
    Op.DIRECTORY_PART: directory_part,
    Op.GET_FEATURE: domains.get_feature,
    Op.SET_FEATURE: domains.set_feature,
    Op.GET_QUOTA: domains.get_quota,
    Op.SET_QUOTA: domains.set_quota,
}

ROWS: Final[dict[int, Row]] = rows(HANDLERS)
"""Made once: a Logic that serves a single request has no time for it."""
