"""Domains the store knows: their features, quotas, target and most used amounts.

Without a hypervisor only domain 0 exists, introduced from the beginning.  Knows no rings.
"""

from typing import Final

from protocol.ops import DOMID_ANY, SOCKET_FEATURES
from recovery_box.items import Table
from xenstore_state import quotas

PRIVILEGED: Final = 0
"""Domid of the privileged domain; sockets speak for it."""


class Domain:
    """One domain identity."""

    __slots__ = ("domid", "features", "introduced", "peaks", "quotas", "target")

    def __init__(self, domid: int, values: dict[str, int], *, introduced: bool) -> None:
        self.domid = domid
        self.features = SOCKET_FEATURES
        self.introduced = introduced
        self.quotas = dict(values)
        self.target: int | None = None
        self.peaks: dict[str, int] = {}


class Domains:
    """All known domains, and the global quotas, which new ones copy."""

    def __init__(self, known: Table[int, Domain]) -> None:
        self.quotas = quotas.defaults()
        self.known = known
        self.peaks: dict[str, int] = {}
        """Highest amounts seen (CONTROL quota max)."""
        self.add(PRIVILEGED)

    def add(self, domid: int, *, introduced: bool = True) -> Domain:
        """Makes a domain known.  Raises `ItemError` if it is."""
        domain = Domain(domid, self.quotas, introduced=introduced)
        self.known.insert(domid, domain)
        return domain

    def exists(self, domid: int) -> bool:
        """Whether the hypervisor has such a domain (a permission entry may name it), DOMID_ANY included."""
        return domid in self.known or domid == DOMID_ANY

    def introduced(self, domid: int) -> Domain | None:
        """The domain if it is introduced."""
        domain = self.known.get(domid)
        return domain if domain is not None and domain.introduced else None
