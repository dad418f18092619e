"""The host: what Logic learns of domains and rings beyond its own store.

The core asks it when a request names a domain that is not known, or introduces one.  Three kinds: no hypervisor at all
(`NoHost`), State and the hypervisor's devices (`XenHost`), and whatever a test or a fuzzer makes up.
"""

import logging
from typing import Protocol

from protocol.errors import EINVAL, StoreError
from protocol.ring import RingPage
from recovery_box.line import Line
from xenstore_state.domains import PRIVILEGED, Offer
from xenstore_state.hypervisor import Hypervisor
from xenstore_state.registrar import ANSWER, QUESTION, Answer, Question, Status
from xenstore_state.store import Store

log = logging.getLogger(__name__)


class Later(Exception):
    """A domain that is gone must be dealt with before this request; then it is to be done again."""

    def __init__(self, domid: int) -> None:
        super().__init__(domid)
        self.domid = domid


class Host(Protocol):
    """See the module.  `learn` and `offer` may raise `Later`."""

    def learn(self, domid: int) -> None:
        """Makes a domain known to the store if it exists."""

    def offer(self, domid: int, remote_port: int) -> None:
        """Readies what an introduction needs: the mapped ring and an offer in the store.  Raises EINVAL or ENOMEM."""


class NoHost:
    """There is no hypervisor: domain 0 is known, and no other exists."""

    def learn(self, domid: int) -> None:
        """Nothing to learn."""

    def offer(self, domid: int, remote_port: int) -> None:
        """No ring can be mapped."""
        raise EINVAL


class XenHost:
    """A hypervisor, and State, which alone may ask it about domains."""

    def __init__(self, store: Store, line: Line, hypervisor: Hypervisor) -> None:
        self._store = store
        self._line = line
        self.hypervisor = hypervisor
        self._pages: dict[int, RingPage] = {}

    def learn(self, domid: int) -> None:
        """Makes a domain known to the store if it exists."""
        self._ask(Question.LEARN, domid)

    def offer(self, domid: int, remote_port: int) -> None:
        """Readies what an introduction needs: the mapped ring and an offer in the store.  Raises EINVAL or ENOMEM."""
        domain = self._store.domains.introduced(domid)
        page = self.page(domid)
        if page is None:
            raise EINVAL
        bound = False
        try:
            answer = self._ask(
                Question.BIND, domid, remote_port if domain is not None else page.event_port or remote_port
            )
            if answer.status == Status.REFUSED:
                raise StoreError("ENOMEM")
            bound = answer.status == Status.OK and (bool(answer.port) or domain is not None)
            if not bound:
                raise EINVAL
        finally:
            if not bound and domain is None:
                self.unmap(domid)

    @property
    def hearing_fd(self) -> int:
        """Readable when State has news."""
        return self._line.hearing_fd

    def hear(self) -> bytes | None:
        """The next news from State; None if there is none."""
        return self._line.hear()

    def renew(self, domid: int) -> bool:
        """Readies another connection for a ring on the event channel it has; whether there is room for it."""
        return self._ask(Question.RENEW, domid).status == Status.OK

    def synchronize(self) -> None:
        """Returns when State has applied everything recorded."""
        self._ask(Question.SYNC, 0)

    def domains_changed(self) -> None:
        """Has State look at the domains."""
        self._ask(Question.SCAN, 0)

    def settled(self) -> None:
        """Domains that were there before the daemon have been introduced, as far as they can be."""
        self._ask(Question.SETTLED, 0)

    def _ask(self, question: Question, domid: int, remote_port: int = 0) -> Answer:
        answer = Answer._make(ANSWER.unpack(self._line.ask(QUESTION.pack(question, domid, remote_port & 0xFFFFFFFF))))
        if answer.status == Status.STALE:
            raise Later(domid)
        domains = self._store.domains
        if answer.unique_id and domid not in domains.known:
            domains.learn(domid, answer.unique_id)
        if answer.connection:
            domains.offers[domid] = Offer(answer.connection, answer.slot, answer.port, answer.remote_port)
            if answer.port:
                self.hypervisor.know_port(answer.port, domid, answer.remote_port)
        return answer

    # ---- ring pages

    def page(self, domid: int) -> RingPage | None:
        """A domain's ring page, mapped if it is not yet; None if it cannot be."""
        page = self._pages.get(domid)
        if page is None:
            try:
                page = self._pages[domid] = RingPage(self.hypervisor.map_ring(domid))
            except OSError as e:
                level = logging.ERROR if domid == PRIVILEGED else logging.INFO
                log.log(level, "the ring of domain %d cannot be mapped: %s", domid, e.strerror or e)
                return None
        return page

    def unmap(self, domid: int) -> None:
        """Lets go of a page."""
        page = self._pages.pop(domid, None)
        if page is not None:
            page.release()
            self.hypervisor.unmap_ring(domid)
