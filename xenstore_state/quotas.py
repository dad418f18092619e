"""Quotas: their names, defaults and the one comparison (domain.c: quotas, domain_quota_val_exceeds).

Every test is `value >= quota` with the value after the operation, so the effective maximum is one less than the number;
0 means unlimited.  Quotas bind unprivileged domains on rings, never sockets and never the privileged domain.
Knows who counts what by name only; counting is done where the things are.
"""

from typing import Final, NamedTuple

from protocol.errors import StoreError
from xenstore_state.access import Subject


class Quota(NamedTuple):
    """One kind of limit."""

    name: str
    default: int
    description: str
    soft_default: int | None = None


QUOTAS: Final = {
    q.name: q
    for q in (
        Quota("nodes", 1000, "Nodes per domain"),
        Quota("watches", 128, "Watches per domain"),
        Quota("outstanding", 20, "Outstanding requests per domain"),
        Quota("memory", 2621440, "Total Xenstore memory per domain", 2097152),
        Quota("transactions", 10, "Active transactions per domain"),
        Quota("transaction-nodes", 1024, "Max. number of accessed nodes per transaction"),
        Quota("node-permissions", 5, "Max. number of permissions per node"),
        Quota("path-max", 2048, "Max. length of a node path"),
        Quota("node-size", 2048, "Max. size of a node"),
    )
}
"""By name, in the order in which CONTROL and GET_QUOTA list them."""

SOFT: Final = "soft-"
NODE_HEADER: Final = 16
NODE_ENTRY: Final = 8
DISABLED: Final = 0xFFFFFFFF
"""A value that GET_QUOTA and SET_QUOTA reserve."""


def wire_names() -> list[str]:
    """All names a client may use, soft ones behind their hard ones (GET_QUOTA without arguments)."""
    names = []
    for quota in QUOTAS.values():
        names.append(quota.name)
        if quota.soft_default is not None:
            names.append(SOFT + quota.name)
    return names


def is_name(name: str) -> bool:
    """Whether a client may use this name."""
    return name in QUOTAS or (
        name.startswith(SOFT) and name[len(SOFT) :] in QUOTAS and QUOTAS[name[len(SOFT) :]].soft_default is not None
    )


def defaults() -> dict[str, int]:
    """A fresh set of values, soft ones under their `soft-` names."""
    values = {}
    for quota in QUOTAS.values():
        values[quota.name] = quota.default
        if quota.soft_default is not None:
            values[SOFT + quota.name] = quota.soft_default
    return values


class QuotaExceeded(StoreError):
    """A quota refuses a request; beyond the error's name, it says which one, and how far it was used."""

    def __init__(self, error: str, quota: str, limit: int, used: int) -> None:
        super().__init__(error)
        self.quota = quota
        self.limit = limit
        self.used = used


def check(values: dict[str, int], quota: str, value: int, error: str = "ENOSPC") -> None:
    """Refuses a value that would reach a quota.  Raises `QuotaExceeded`."""
    limit = values[quota]
    if limit and value >= limit:
        raise QuotaExceeded(error, quota, limit, value)


def claim(who: Subject, quota: str, value: int, error: str = "ENOSPC") -> None:
    """The same for what a subject comes to use, with the most that it ever did.  Raises `QuotaExceeded`."""
    if who.quotas is None:
        return
    check(who.quotas, quota, value, error)
    for peaks in who.peaks:
        if value > peaks.get(quota, 0):
            peaks[quota] = value


def exceeds(value: int, quota: int) -> bool:
    """Whether a value reached is too much."""
    return bool(quota) and value >= quota


def node_size(value: bytes, entries: int, names: int) -> int:
    """Bytes a node counts for: `names` is the total length of its children's names, a NUL each."""
    return NODE_HEADER + NODE_ENTRY * entries + len(value) + names
