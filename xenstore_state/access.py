"""Who may do what with a node: the one permission rule (core.c: perm_for_conn).

A permission list (`Acl`) is a tuple of (access, domid); entry 0 names the owner and, in its letter, the right of everybody
who is not listed.  The owner may always do everything.  Among the others the first entry that fits decides.
An entry marked IGNORED names a domain that did not exist when it was written: it is shown, never used.
Knows no connections and no tree.
"""

from typing import Final

from protocol.ops import DOMID_ANY
from protocol.permissions import READ, WRITE, Permission

OWNER: Final = 8
IGNORED: Final = 16
_LETTER: Final = READ | WRITE

Acl = tuple[tuple[int, int], ...]


class Subject:
    """On whose behalf a request acts: a domain, and the domain it may stand in for (SET_TARGET)."""

    __slots__ = ("domid", "held", "peaks", "privileged", "quotas", "target")

    def __init__(self, domid: int, *, privileged: bool, quotas: dict[str, int] | None = None) -> None:
        self.domid = domid
        self.privileged = privileged
        self.quotas = quotas
        """Limits that bind it, None if none do."""
        self.target: int | None = None
        self.peaks: tuple[dict[str, int], ...] = ()
        """Where the most that it ever used of each quota is noted."""
        self.held = 0
        """Bytes of watches and transactions that it is charged with."""


def allows(acl: Acl, who: Subject, wanted: int) -> bool:
    """Whether `who` has every one of the wanted rights (READ, WRITE, OWNER)."""
    return (rights(acl, who) & wanted) == wanted


def rights(acl: Acl, who: Subject) -> int:
    """All rights of `who`: a combination of READ, WRITE and OWNER."""
    if who.privileged:
        return READ | WRITE | OWNER
    mine = (who.domid, DOMID_ANY) if who.target is None else (who.domid, who.target, DOMID_ANY)
    access, owner = acl[0]
    if owner in mine:
        return READ | WRITE | OWNER
    for entry, domid in acl[1:]:
        if domid in mine and not entry & IGNORED:
            return entry & _LETTER
    return access & _LETTER


def owner(acl: Acl) -> int:
    """Domid of the owner."""
    return acl[0][1]


def inherited(acl: Acl, creator: Subject) -> Acl:
    """The list of a node created below one with `acl`: the parent's, owned by the creator unless that is the privileged domain."""
    if creator.privileged or acl[0][1] == creator.domid:
        return acl
    return ((acl[0][0], creator.domid), *acl[1:])


def without(acl: Acl, domid: int) -> Acl:
    """The list without entries for a domain that is no more, which is not its owner."""
    return (acl[0], *(entry for entry in acl[1:] if entry[1] != domid))


def names(acl: Acl, domid: int) -> bool:
    """Whether a list names a domain, as owner or otherwise; entries that do not count are none."""
    return any(entry[1] == domid and not entry[0] & IGNORED for entry in acl)


def mentions(acl: Acl, domid: int) -> bool:
    """The same, whether or not an entry counts."""
    return any(entry[1] == domid for entry in acl)


def encode(acl: Acl) -> bytes:
    """GET_PERMS' answer: every entry with its closing NUL."""
    return b"".join(Permission(access & _LETTER, domid).encode() + b"\0" for access, domid in acl)
