"""The registrar: what State knows of domains from the hypervisor, and tells Logic.

Logic never asks the hypervisor about a domain.  It asks State (`Question`), over the line; State has then applied everything
Logic did before, so both learn at the same point of the same history.  Whatever State has made ready for Logic, such as a
bound event channel, is an *offer*: a record takes it, and a new Logic that does the same request again gets the same one.

State tells Logic (`News`) which domains have shut down or are gone.  A news item that dies with a Logic is told again: every
new Logic is told all that State has found and that has not been recorded.  State looks for news when an event says that
there is some, never because of a restart: nobody is to see one by what is told, or when.
"""

import enum
import logging
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from xenstore_state.domains import PRIVILEGED, Offer, can_exist
from xenstore_state.hypervisor import Hypervisor
from xenstore_state.store import Store
from xenstore_state.survival import Survival

log = logging.getLogger(__name__)


class Question(enum.IntEnum):
    """What Logic may ask."""

    LEARN = 1
    """Make a domain known, if it exists."""
    BIND = 2
    """Bind a domain's event channel and offer its ring a connection."""
    RENEW = 3
    """Offer a ring another connection, on the event channel it has."""
    SYNC = 4
    """Nothing; that the answer comes says that everything recorded is applied."""
    SCAN = 5
    """Nothing; some domain has changed, so look for all that are gone or shut down."""
    PIN = 7
    """Nothing; from now on no record may act for anybody but this connection (in place of the domid)."""
    SETTLED = 6
    """Nothing; domains that were there before the daemon have been introduced, as far as they can be."""


class News(enum.IntEnum):
    """What State tells."""

    GONE = 1
    SHUTDOWN = 2
    SCANNED = 3
    """The end of what one look at the domains has found."""
    APPEARED = 4
    """A domain that was there before the daemon: introduce it."""


class Status(enum.IntEnum):
    """How a question was answered."""

    OK = 0
    NO_SUCH_DOMAIN = 1
    STALE = 2
    """What is known by this domid is another domain, which is gone: deal with that first."""
    REFUSED = 3
    """There is no room for another connection."""


class Answer(NamedTuple):
    """An answer; zeros where it says nothing."""

    status: int
    unique_id: int = 0
    connection: int = 0
    slot: int = 0
    port: int = 0
    remote_port: int = 0


QUESTION: Final = struct.Struct("=BII")
"""Question, domid, remote port."""
ANSWER: Final = struct.Struct("=BQQIII")
FINE: Final = ANSWER.pack(*Answer(Status.OK))
_NOT_ABOUT_ONE: Final = frozenset(map(int, (Question.SYNC, Question.SCAN, Question.SETTLED)))
NEWS: Final = struct.Struct("=BIQ")
"""News, domid, the domain's unique id."""
NEWS_MAX: Final = 256
"""Items in one message."""


class Registrar:
    """State's side."""

    def __init__(
        self,
        store: Store,
        hypervisor: Hypervisor,
        allocate: Callable[[int], tuple[int, int] | None],
        free: Callable[[int], None],
        tell: Callable[[bytes], None],
        survival: Survival | None = None,
        bound: dict[int, tuple[int, int]] | None = None,
    ) -> None:
        """`allocate` gives (connection id, prepared slot) for a domid's ring, or None; `free` takes a slot back."""
        self._store = store
        self._hypervisor = hypervisor
        self._allocate = allocate
        self._free = free
        self._tell = tell
        self._survival = survival
        self.bound: dict[int, tuple[int, int]] = bound if bound is not None else {}
        """(local port, remote port) by domid."""
        self._to_introduce: set[int] = set()
        self.unscanned = False
        """The last look at the domains failed: it must be repeated."""
        self._looked = False
        """This State has looked at all domains once: from then on events say when to look."""

    def begin(self) -> None:
        """At the start of the daemon: all domains that exist are to be introduced."""
        self._to_introduce = {PRIVILEGED, *self._hypervisor.domains()}

    @property
    def unsettled(self) -> bool:
        """Domains that were there before the daemon may not all have been introduced."""
        return bool(self._to_introduce)

    # ---- questions

    def answer(self, question: bytes) -> bytes:
        """The answer to a question."""
        kind, domid, remote_port = QUESTION.unpack(question)
        if kind in _NOT_ABOUT_ONE:
            if kind == Question.SCAN:
                self.scan()
            elif kind == Question.SETTLED:
                self._settle()
            return FINE
        status = self._learn(domid)
        if status != Status.OK:
            return ANSWER.pack(*Answer(status))
        if kind == Question.LEARN:
            return ANSWER.pack(*Answer(Status.OK, self._store.domains.known.find(domid).unique_id))
        return ANSWER.pack(*self._offer(domid, remote_port if kind == Question.BIND else None))

    def _learn(self, domid: int) -> Status:
        known = self._store.domains.known.get(domid)
        if domid == PRIVILEGED:
            return Status.OK
        try:
            facts = self._hypervisor.domain(domid) if can_exist(domid) else None
        except OSError as e:
            log.error("the hypervisor says nothing of domain %d: %s", domid, e)
            return Status.OK if known is not None else Status.NO_SUCH_DOMAIN
        if facts is not None and facts.gone:
            facts = None
        if known is not None:
            if facts is None or facts.unique_id != known.unique_id:
                known.gone = True
                return Status.STALE
            return Status.OK
        if facts is None:
            return Status.NO_SUCH_DOMAIN
        if self._survival is not None:
            self._survival.learned(domid, facts.unique_id)
        self._store.domains.learn(domid, facts.unique_id)
        return Status.OK

    def _bind(self, domid: int, remote_port: int) -> None:
        self._unbind(domid)
        try:
            self.bound[domid] = port, _ = self._hypervisor.bind(domid, remote_port), remote_port
            if self._survival is not None:
                self._survival.bound(domid, port, remote_port)
        except OSError as e:
            log.warning("event channel %d of domain %d cannot be bound: %s", remote_port, domid, e.strerror)

    def _unbind(self, domid: int) -> None:
        port, _ = self.bound.pop(domid, (0, 0))
        if port:
            self._hypervisor.unbind(port)
            if self._survival is not None:
                self._survival.bound(domid, 0, 0)

    def _offer(self, domid: int, remote_port: int | None) -> Answer:
        """Offers a connection, on another event channel if one is named.

        An offer that a Logic died with before it could take it is made again: its event channel is bound already.
        """
        offers = self._store.domains.offers
        old = offers.pop(domid, None)
        if old is not None:
            self._free(old.slot)
        given, unique_id = self._allocate(domid), self._store.domains.known.find(domid).unique_id
        if given is None:
            return Answer(Status.REFUSED, unique_id)
        if remote_port is not None and (old is None or not old.port or old.remote_port != remote_port):
            self._bind(domid, remote_port)
        port, bound = self.bound.get(domid, (0, 0))
        offers[domid] = offer = Offer(*given, port, bound)
        if self._survival is not None:
            self._survival.offered(domid, offer)
        return Answer(Status.OK, unique_id, *offer)

    # ---- what records say

    def removed(self, domid: int) -> None:
        """A domain is forgotten: so are its event channel, and an offer that nobody will take any more."""
        self._unbind(domid)
        offer = self._store.domains.offers.pop(domid, None)
        if offer is not None:
            self._free(offer.slot)

    def forget_unknown(self) -> None:
        """Domains ended by a record that was refused for something else it says are forgotten here too."""
        for domid in {*self.bound, *self._store.domains.offers}:
            if self._store.domains.known.get(domid) is None:
                self.removed(domid)

    # ---- news

    def scan(self) -> None:
        """Tells what has become of domains since they were last recorded."""
        try:
            existing = self._hypervisor.domains()
        except OSError as e:
            log.error("the hypervisor cannot be asked about domains: %s", e)
            self.unscanned = True
            return
        self.unscanned = False
        self._looked = True
        for domain in self._store.domains.known:
            if domain.domid == PRIVILEGED:
                continue
            facts = existing.get(domain.domid)
            if facts is None or facts.gone or facts.unique_id != domain.unique_id:
                domain.gone = True
            domain.stopped = facts is not None and facts.shutdown and not domain.shutdown and domain.introduced
        self._tell_found()

    def _tell_found(self) -> None:
        """Tells all that was found and has not been recorded."""
        news: list[tuple[int, int, int]] = []
        for domain in self._store.domains.known:
            if domain.gone:
                news.append((News.GONE, domain.domid, domain.unique_id))
            elif domain.stopped:
                news.append((News.SHUTDOWN, domain.domid, domain.unique_id))
        if news or self._store.domains.shutdown_untold:
            self._send([*news, (News.SCANNED, 0, 0)])

    def tell_all(self) -> None:
        """To be called for a new Logic: everything that has not been recorded."""
        missing = [domid for domid in sorted(self._to_introduce) if not self._has_ring(domid)]
        if missing:
            self._send([(News.APPEARED, domid, 0) for domid in missing])
        elif self.unsettled:
            self._settle()
        if self._looked:
            self._tell_found()
        else:
            self.scan()

    def _settle(self) -> None:
        self._to_introduce.clear()
        if self._survival is not None:
            self._survival.settled()

    def _has_ring(self, domid: int) -> bool:
        domain = self._store.domains.introduced(domid)
        return domain is not None and (domain.connection is not None or bool(domain.error))

    def _send(self, news: list[tuple[int, int, int]]) -> None:
        for start in range(0, len(news), NEWS_MAX):
            self._tell(b"".join(NEWS.pack(*item) for item in news[start : start + NEWS_MAX]))
