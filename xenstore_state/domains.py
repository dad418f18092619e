"""Domains the store knows: their identity, features, quotas, target, ring, and most used amounts.

A domain becomes *known* when somebody needs to know of it (a permission entry, a quota, its introduction) and the hypervisor
says that it exists; it is *introduced* by the toolstack, and forgotten when it is gone or released.  Whatever belongs to it
goes with it, so a later domain with the same domid inherits nothing.  Knows no nodes and no ring pages.
"""

from typing import Final, NamedTuple

from protocol.ops import DOMID_FIRST_RESERVED, RING_FEATURES
from recovery_box.items import Connection, Table
from xenstore_state import quotas

PRIVILEGED: Final = 0
"""Domid of the privileged domain; sockets speak for it."""


class Offer(NamedTuple):
    """What State has made ready for the next connection of a domain's ring."""

    connection: int
    slot: int
    port: int
    """The local port of its event channel; 0 if it could not be bound."""
    remote_port: int


class Domain:
    """One domain identity."""

    __slots__ = (
        "connection",
        "domid",
        "error",
        "features",
        "gone",
        "introduced",
        "peaks",
        "quotas",
        "refused",
        "shutdown",
        "stopped",
        "target",
        "unique_id",
    )

    def __init__(self, domid: int, unique_id: int, values: dict[str, int]) -> None:
        self.domid = domid
        self.unique_id = unique_id
        """The hypervisor's; tells it from another domain that has this domid at another time."""
        self.features = RING_FEATURES
        """What its ring offers."""
        self.introduced = False
        self.connection: Connection | None = None
        """Its ring's; None when it has none, or is ignored for `error`."""
        self.error = 0
        """Why its ring is ignored: an error number of the ring page."""
        self.gone = False
        """The hypervisor says so; its end has not been dealt with."""
        self.shutdown = False
        """It was announced that it has shut down."""
        self.stopped = False
        """The hypervisor says that it has shut down; that has not been dealt with."""
        self.quotas = dict(values)
        self.target: int | None = None
        self.peaks: dict[str, int] = {}
        self.refused: dict[str, int] = {}
        """How often each quota refused it something."""


class Domains:
    """All known domains, and the global quotas, which new ones copy."""

    def __init__(self, known: Table[int, Domain]) -> None:
        self.quotas = quotas.defaults()
        self.known = known
        self.peaks: dict[str, int] = {}
        """Highest amounts seen (CONTROL quota max)."""
        self.offers: dict[int, Offer] = {}
        """By domid."""
        self.shutdown_untold = False
        """Domains have shut down, and those who watch all of them have not been told."""
        self.keep_orphans = False
        """Nodes of a domain that is gone pass to the privileged domain instead of going with it."""
        self.learn(PRIVILEGED, 0).introduced = True

    def learn(self, domid: int, unique_id: int) -> Domain:
        """Makes a domain known.  Raises `ItemError` if it is."""
        domain = Domain(domid, unique_id, self.quotas)
        self.known.insert(domid, domain)
        return domain

    @property
    def untold(self) -> bool:
        """Whether the hypervisor has said something of a domain that has not been dealt with."""
        return any(domain.gone or domain.stopped for domain in self.known)

    def introduced(self, domid: int) -> Domain | None:
        """The domain if it is introduced."""
        domain = self.known.get(domid)
        return domain if domain is not None and domain.introduced else None


def can_exist(domid: int) -> bool:
    """Whether the hypervisor could have such a domain."""
    return 0 <= domid < DOMID_FIRST_RESERVED
