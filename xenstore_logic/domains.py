"""Domains: what the operations on them answer, and what happens when the hypervisor says something (domain.c of the C daemon).

Handlers as in `requests`.  The functions at the end are called for the daemon itself: a domain is gone, has shut down, or
was there before the daemon.
"""

from protocol.errors import EACCES, EINVAL, ENOENT, StoreError
from protocol.ops import DOMID_SELF, RING_FEATURES, SOCKET_FEATURES
from protocol.paths import domain_path
from protocol.payload import atoi, one_string, parse_domid, strings
from protocol.wire import ACK
from recovery_box.items import Connection
from xenstore_logic.core import Core
from xenstore_state import effects, quotas
from xenstore_state.domains import PRIVILEGED, Domain, can_exist
from xenstore_state.store import INTRODUCE_DOMAIN, RELEASE_DOMAIN


def introduce(core: Core, by: Connection, tx_id: int, payload: bytes) -> bytes:
    """INTRODUCE: a domain whose page cannot be mapped or whose event channel cannot be bound is EINVAL.

    One that is introduced already begins a new connection, and nobody is told.
    """
    words = strings(payload)
    if len(words) < 3:
        raise EINVAL
    domid, port = parse_domid(words[0]), atoi(words[2]) & 0xFFFFFFFF
    if not port:
        raise EINVAL
    if domid == PRIVILEGED and not core.has_hypervisor:
        return ACK
    core.host.offer(domid, port)
    introduce_offered(core, by, domid)
    return ACK


def introduce_offered(core: Core, by: Connection, domid: int) -> None:
    """Introduces a domain for whose ring everything is ready."""
    new = core.store.domains.introduced(domid) is None
    core.perform(effects.INTRODUCE, by, domid)
    if new:
        core.fire_special(INTRODUCE_DOMAIN, domid)


def release(core: Core, by: Connection, tx_id: int, payload: bytes) -> bytes:
    """RELEASE: the privileged domain is EINVAL, one that is not introduced ENOENT."""
    domid = _introduced(core, one_string(payload)).domid
    _end(core, effects.RELEASE, by, domid)
    _tell_release(core, domid)
    return ACK


def resume(core: Core, by: Connection, tx_id: int, payload: bytes) -> bytes:
    """RESUME: the same errors."""
    core.perform(effects.RESUME, by, _introduced(core, one_string(payload)).domid)
    return ACK


def _introduced(core: Core, word: bytes) -> Domain:
    domid = parse_domid(word)
    if domid == PRIVILEGED:
        raise EINVAL
    domain = core.store.domains.introduced(domid)
    if domain is None:
        raise ENOENT
    return domain


def set_target(core: Core, by: Connection, tx_id: int, payload: bytes) -> bytes:
    """SET_TARGET: both domains must be introduced."""
    words = strings(payload)
    if len(words) < 2:
        raise EINVAL
    domid, target = [parse_domid(word) for word in words[:2]]
    for each in (domid, target):
        if core.store.domains.introduced(each) is None:
            raise ENOENT
    core.perform(effects.SET_TARGET, by, domid, target)
    return ACK


def is_domain_introduced(core: Core, by: Connection, tx_id: int, payload: bytes) -> bytes:
    """IS_DOMAIN_INTRODUCED: `T` or `F`; the caller itself (DOMID_SELF) always is."""
    domid = parse_domid(one_string(payload))
    return b"T\0" if domid == DOMID_SELF or core.store.domains.introduced(domid) is not None else b"F\0"


def get_domain_path(core: Core, by: Connection, tx_id: int, payload: bytes) -> bytes:
    """GET_DOMAIN_PATH: of any number that could be a domid; the domain need not exist."""
    return domain_path(parse_domid(one_string(payload))) + b"\0"


# ---- features and quotas


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
    return b"%d\0" % known(core, words[0]).features


def set_feature(core: Core, by: Connection, tx_id: int, payload: bytes) -> bytes:
    """SET_FEATURE: before a domain is introduced."""
    words = strings(payload)
    if len(words) != 2:
        raise EINVAL
    domain = known(core, words[0])
    value = atoi(words[1])
    if domain.introduced:
        raise StoreError("EBUSY")
    if value & ~RING_FEATURES:
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
    values = known(core, words[0]).quotas if len(words) == 2 else core.store.domains.quotas
    return b"%d\0" % values[_quota_name(words[-1])]


def set_quota(core: Core, by: Connection, tx_id: int, payload: bytes) -> bytes:
    """SET_QUOTA: a global value, for domains seen later, or a domain's."""
    words = strings(payload)
    if len(words) not in {2, 3}:
        raise EINVAL
    domid = known(core, words[0]).domid if len(words) == 3 else effects.GLOBAL
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


def known(core: Core, word: bytes) -> Domain:
    """The domain that a word names; one that merely exists becomes known.  Raises EINVAL or ENOENT."""
    domid = parse_domid(word)
    learn(core, domid)
    domain = core.store.domains.known.get(domid)
    if domain is None:
        raise ENOENT
    return domain


def learn(core: Core, domid: int) -> None:
    """Makes a domain known that exists and is not known yet."""
    if domid not in core.store.domains.known and can_exist(domid):
        core.host.learn(domid)


# ---- what the hypervisor says


def gone(core: Core, domid: int, unique_id: int | None = None) -> bool:
    """A domain is no more; whether there was anything to do.  Of one that was never introduced nobody is told.

    News of an earlier domain of this number (`unique_id` says which it means) comes too late.
    """
    domain = core.store.domains.known.get(domid)
    if domain is None or domid == PRIVILEGED or unique_id not in {None, domain.unique_id}:
        return False
    domain.gone = True
    introduced = domain.introduced
    _end(core, effects.GONE, core.store.house, domid)
    if introduced:
        _tell_release(core, domid)
    return True


def shut_down(core: Core, domid: int, unique_id: int) -> bool:
    """A domain has shut down; whether that is news.  Those who watch all of them are told once, by `scanned`."""
    domain = core.store.domains.introduced(domid)
    if domain is None or domain.shutdown or domain.unique_id != unique_id:
        return False
    core.perform(effects.SHUTDOWN, core.store.house, domid)
    core.fire_special(RELEASE_DOMAIN, domid, plain=False)
    return True


def scanned(core: Core) -> bool:
    """All domains that have shut down were told of; whether there were any."""
    if not core.store.domains.shutdown_untold:
        return False
    core.perform(effects.SCANNED, core.store.house)
    core.fire_special(RELEASE_DOMAIN, None)
    return True


def _end(core: Core, effect: int, by: Connection, domid: int) -> None:
    """A domain ends; who stood in for it is still told of its nodes, by the rights that it had."""
    stood_in = [d.connection.subject for d in core.store.domains.known if d.target == domid and d.connection]
    fired = core.perform(effect, by, domid)
    for subject in stood_in:
        subject.target = domid
    core.fire(fired)
    for subject in stood_in:
        subject.target = None


def _tell_release(core: Core, domid: int) -> None:
    core.fire_special(RELEASE_DOMAIN, domid)
