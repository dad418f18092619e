"""What each operation answers, CONTROL apart (core.c, watch.c, transaction.c, domain.c of the C daemon).

A handler takes (core, connection, tx_id, payload), checks the payload's form, and returns the reply's payload or raises a
StoreError.  `HANDLERS` at the end is the table.
"""

from typing import Final

from protocol.errors import EACCES, EINVAL, ENOENT, ENOSPC, StoreError
from protocol.ops import DOMID_SELF, FEATURE_WATCH_DEPTH, SOCKET_FEATURES, Op
from protocol.paths import domain_path
from protocol.payload import atoi, one_string, parse_domid, string_and_rest, strings
from protocol.permissions import parse_permission
from protocol.wire import ACK, PAYLOAD_MAX, watch_event
from recovery_box.items import Connection
from xenstore_logic.control import control
from xenstore_logic.core import Core, Handler
from xenstore_state import effects, quotas
from xenstore_state.access import encode
from xenstore_state.domains import PRIVILEGED, Domain
from xenstore_state.quotas import exceeds

# ---- nodes


def read(core: Core, by: Connection, tx_id: int, payload: bytes) -> bytes:
    """READ: the value, byte for byte."""
    value: bytes = core.look(effects.READ, by, tx_id, core.path(by, one_string(payload)))
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
    rest = names[offset : offset + room]
    if len(rest) < room and offset + len(rest) == len(names):
        return head + rest + b"\0"
    return head + rest[: rest.rfind(b"\0", 0, room - 1) + 1]


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
    if limits is not None and exceeds(len(words) - 1, limits["node-permissions"]):
        raise ENOSPC
    acl = tuple(tuple(parse_permission(word)) for word in words[1:])
    if not core.store.domains.exists(acl[0][1]):
        raise ENOENT
    core.fire(core.perform(effects.SET_PERMS, by, tx_id, core.path(by, words[0], special=True), acl))
    return ACK


# ---- watches


def watch(core: Core, by: Connection, tx_id: int, payload: bytes) -> bytes:
    """WATCH: the reply, then a first event with the path as it was written, whether or not it may be read."""
    words = strings(payload)
    depth = effects.UNLIMITED_DEPTH
    if len(words) == 3 and features(core, by) & FEATURE_WATCH_DEPTH:
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
        core.fire(core.perform(effects.COMMIT, by, tx_id), committed=True)
    return ACK


# ---- domains.  Without a hypervisor domain 0 is the only one there is.


def introduce(core: Core, by: Connection, tx_id: int, payload: bytes) -> bytes:
    """INTRODUCE: a domain whose page cannot be mapped is EINVAL."""
    words = strings(payload)
    if len(words) < 3:
        raise EINVAL
    domid = parse_domid(words[0])
    if not atoi(words[2]) or core.store.domains.introduced(domid) is None:
        raise EINVAL
    return ACK


def release_or_resume(core: Core, by: Connection, tx_id: int, payload: bytes) -> bytes:
    """RELEASE and RESUME of the privileged domain are EINVAL, of one that is not introduced ENOENT."""
    domid = parse_domid(one_string(payload))
    if domid == PRIVILEGED:
        raise EINVAL
    raise ENOENT


def set_target(core: Core, by: Connection, tx_id: int, payload: bytes) -> bytes:
    """SET_TARGET: both domains must be introduced."""
    words = strings(payload)
    if len(words) < 2:
        raise EINVAL
    for domid in [parse_domid(word) for word in words[:2]]:
        if core.store.domains.introduced(domid) is None:
            raise ENOENT
    return ACK


def is_domain_introduced(core: Core, by: Connection, tx_id: int, payload: bytes) -> bytes:
    """IS_DOMAIN_INTRODUCED: `T` or `F`; the caller itself (DOMID_SELF) always is."""
    domid = parse_domid(one_string(payload))
    return b"T\0" if domid == DOMID_SELF or core.store.domains.introduced(domid) is not None else b"F\0"


def get_domain_path(core: Core, by: Connection, tx_id: int, payload: bytes) -> bytes:
    """GET_DOMAIN_PATH: of any number that could be a domid; the domain need not exist."""
    return domain_path(parse_domid(one_string(payload))) + b"\0"


def features(core: Core, by: Connection) -> int:
    """Features of a connection's own protocol."""
    domain = core.store.domains.known.get(by.domid)
    return SOCKET_FEATURES if by.socket or domain is None else domain.features


def get_feature(core: Core, by: Connection, tx_id: int, payload: bytes) -> bytes:
    """GET_FEATURE: one's own, or (privileged) those of a domain."""
    words = strings(payload)
    if not words:
        return b"%d\0" % features(core, by)
    if not by.privileged:
        raise EACCES
    if len(words) != 1:
        raise EINVAL
    return b"%d\0" % _known(core, words[0]).features


def set_feature(core: Core, by: Connection, tx_id: int, payload: bytes) -> bytes:
    """SET_FEATURE: before a domain is introduced."""
    words = strings(payload)
    if len(words) != 2:
        raise EINVAL
    domain = _known(core, words[0])
    value = atoi(words[1])
    if domain.introduced:
        raise StoreError("EBUSY")
    if value & ~SOCKET_FEATURES:
        raise EINVAL
    core.perform(effects.SET_FEATURE, by, domain.domid, value)
    return ACK


def get_quota(core: Core, by: Connection, tx_id: int, payload: bytes) -> bytes:
    """GET_QUOTA: the names, a global value, or a domain's value."""
    words = strings(payload)
    if not words:
        return " ".join(quotas.wire_names()).encode() + b"\0"
    if len(words) > 2:
        raise EINVAL
    values = _known(core, words[0]).quotas if len(words) == 2 else core.store.domains.quotas
    return b"%d\0" % values[_quota_name(words[-1])]


def set_quota(core: Core, by: Connection, tx_id: int, payload: bytes) -> bytes:
    """SET_QUOTA: a global value, for domains seen later, or a domain's."""
    words = strings(payload)
    if len(words) not in {2, 3}:
        raise EINVAL
    domid = _known(core, words[0]).domid if len(words) == 3 else effects.GLOBAL
    name, value = _quota_name(words[-2]), atoi(words[-1]) & 0xFFFFFFFF
    if value == quotas.DISABLED:
        raise EINVAL
    core.perform(effects.SET_QUOTA, by, domid, name, value)
    return ACK


def _quota_name(word: bytes) -> str:
    name = word.decode("latin1")
    if not quotas.is_name(name):
        raise EINVAL
    return name


def _known(core: Core, word: bytes) -> Domain:
    domain = core.store.domains.known.get(parse_domid(word))
    if domain is None:
        raise ENOENT
    return domain


HANDLERS: Final[dict[int, Handler]] = {
    Op.CONTROL: control,
    Op.DIRECTORY: directory,
    Op.READ: read,
    Op.GET_PERMS: get_perms,
    Op.WATCH: watch,
    Op.UNWATCH: unwatch,
    Op.TRANSACTION_START: transaction_start,
    Op.TRANSACTION_END: transaction_end,
    Op.INTRODUCE: introduce,
    Op.RELEASE: release_or_resume,
    Op.GET_DOMAIN_PATH: get_domain_path,
    Op.WRITE: write,
    Op.MKDIR: mkdir,
    Op.RM: rm,
    Op.SET_PERMS: set_perms,
    Op.IS_DOMAIN_INTRODUCED: is_domain_introduced,
    Op.RESUME: release_or_resume,
    Op.SET_TARGET: set_target,
    Op.RESET_WATCHES: reset_watches,
    Op.DIRECTORY_PART: directory_part,
    Op.GET_FEATURE: get_feature,
    Op.SET_FEATURE: set_feature,
    Op.GET_QUOTA: get_quota,
    Op.SET_QUOTA: set_quota,
}
