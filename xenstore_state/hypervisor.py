"""The hypervisor as the daemon needs it: domains, ring pages, event channels.  An interface; two classes implement it.

One object is opened before State starts and inherited by every Logic.  State asks about domains and binds ports; Logic maps
rings, takes events and gives them.  Logic drops what only State may do (`in_logic`).  A bound port outlives Logic, a mapped
page does not: every Logic maps a ring anew when it needs it.
Knows nothing of messages, nodes and connections.
"""

from typing import NamedTuple, Protocol

PAGE_SIZE = 4096
"""Bytes of a ring page."""


class DomainFacts(NamedTuple):
    """What the hypervisor says of a domain that exists."""

    domid: int
    unique_id: int
    """Tells this domain from an earlier or later one with the same domid.  Never 0."""
    shutdown: bool
    """It has shut down or crashed and waits for the toolstack."""
    gone: bool
    """It will never run again: its end may be announced."""


class Hypervisor(Protocol):
    """See the module.  Every method raises OSError when the hypervisor refuses."""

    event_fd: int
    """Readable when ports are pending."""
    domain_port: int
    """The local port that becomes pending when some domain has changed."""

    # ---- State's half

    def domains(self) -> dict[int, DomainFacts]:
        """All domains that exist, by domid.  One query, however many there are."""

    def domain(self, domid: int) -> DomainFacts | None:
        """One domain, if it exists."""

    def xenbus_port(self) -> int:
        """The remote port of domain 0's own ring; 0 if it has none."""

    def bind(self, domid: int, remote_port: int) -> int:
        """Binds a domain's event channel; the local port, never 0."""

    def unbind(self, port: int) -> None:
        """Gives a local port up.  One that is not bound does not matter."""

    def begin_anew(self) -> None:
        """Nothing that a State which died had bound is known any more: gives all of it up."""

    def before_fork(self) -> None:
        """To be called before each fork of Logic, when the last one is dead: what that had mapped is let go of."""

    # ---- Logic's half

    def in_logic(self) -> None:
        """To be called in each new Logic: gives up the right to ask about domains."""

    def know_port(self, port: int, domid: int, remote_port: int) -> None:
        """State has bound a port since this Logic was forked."""

    def map_ring(self, domid: int) -> memoryview:
        """A domain's ring page, `PAGE_SIZE` bytes, writable.  Domain 0's is the one of its kernel."""

    def unmap_ring(self, domid: int) -> None:
        """Lets go of a mapped page; all views of it must have been released."""

    def receive(self, into: memoryview) -> None:
        """Takes pending events into a zeroed buffer, as the kernel gives them; nothing is there again once it returns."""

    def ports(self, received: memoryview) -> list[int]:
        """The local ports among what `receive` took.  An empty buffer has none."""

    def forget(self, received: memoryview, port: int) -> None:
        """Takes one port out of what `receive` took, and leaves the others."""

    def unmask(self, ports: list[int]) -> None:
        """These ports may become pending again; to be called once what they stand for was looked at."""

    def notify(self, port: int) -> None:
        """Sends an event to the domain at the other end."""
