"""The registrar: what State tells Logic of domains, and what it makes ready for them, whichever Logic dies over it.

`FakeXen` is a hypervisor that insists on its own rules: a port is unbound once, only a bound one notifies, taken events
are masked until they are unmasked.  `State` is a store with its registrar and the slots that a keeper would give.
"""

import errno
import os
import struct
from collections import Counter
from collections.abc import Iterator
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.ring import ERROR_COMM
from recovery_box.items import Connection
from tests.model.support import examples
from xenstore_state.domains import PRIVILEGED
from xenstore_state.effects import resume, scanned, shutdown
from xenstore_state.hypervisor import PAGE_SIZE, DomainFacts
from xenstore_state.registrar import ANSWER, NEWS, NEWS_MAX, QUESTION, Answer, News, Question, Registrar, Status
from xenstore_state.store import Store

DOMAIN_PORT: Final = 1


class FakeXen:
    """Implements `xenstore_state.hypervisor.Hypervisor`, strictly."""

    def __init__(self) -> None:
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.domain_port = DOMAIN_PORT
        self.facts: dict[int, DomainFacts] = {}
        self.pages: dict[int, bytearray] = {PRIVILEGED: bytearray(PAGE_SIZE)}
        self.bound: dict[int, tuple[int, int]] = {}
        """(domid, remote port) by local port."""
        self.mapped: dict[int, bytearray] = {}
        self.notified: Counter[tuple[int, int]] = Counter()
        """By domid and remote port."""
        self.speechless = False
        """It cannot be asked about domains for the moment."""
        self.unbindable: set[int] = set()
        """Remote ports."""
        self.dom0_port = 0
        self._unique = 100
        self._port = DOMAIN_PORT
        self._pending: list[int] = []
        self._masked: set[int] = set()
        self._again: set[int] = set()

    def close(self) -> None:
        os.close(self.event_fd)

    # ---- what a test does

    def create(self, domid: int) -> None:
        """A domain that exists: another one than any before, with a page of its own."""
        self._unique += 1
        self.facts[domid] = DomainFacts(domid, self._unique, shutdown=False, gone=False)
        self.pages[domid] = bytearray(PAGE_SIZE)

    def shut_down(self, domid: int) -> None:
        self.facts[domid] = self.facts[domid]._replace(shutdown=True)

    def destroy(self, domid: int) -> None:
        self.facts.pop(domid, None)
        self.pages.pop(domid, None)

    def kick(self, domid: int, remote_port: int) -> None:
        """A domain sends an event; on a port that nobody has bound it is lost."""
        for port, end in self.bound.items():
            if end == (domid, remote_port):
                self._happens(port)

    def virq(self) -> None:
        """Some domain has changed."""
        self._happens(DOMAIN_PORT)

    def _happens(self, port: int) -> None:
        if port in self._masked:
            self._again.add(port)
        elif port not in self._pending:
            self._pending.append(port)
            os.eventfd_write(self.event_fd, 1)

    def _answers(self) -> None:
        if self.speechless:
            raise OSError(errno.EAGAIN, "the hypervisor has no time")

    # ---- State's half

    def domains(self) -> dict[int, DomainFacts]:
        self._answers()
        return dict(self.facts)

    def domain(self, domid: int) -> DomainFacts | None:
        self._answers()
        return self.facts.get(domid)

    def xenbus_port(self) -> int:
        return self.dom0_port

    def bind(self, domid: int, remote_port: int) -> int:
        if remote_port in self.unbindable or (domid not in self.facts and domid != PRIVILEGED):
            raise OSError(errno.EINVAL, "no such port")
        assert (domid, remote_port) not in self.bound.values(), "the other end is bound already"
        self._port += 1
        self.bound[self._port] = domid, remote_port
        return self._port

    def unbind(self, port: int) -> None:
        assert port in self.bound, f"port {port} is not bound (any more)"
        del self.bound[port]
        self._masked.discard(port)
        self._again.discard(port)
        if port in self._pending:
            self._pending.remove(port)

    def forget(self, received: memoryview, port: int) -> None:
        raise NotImplementedError

    def begin_anew(self) -> None:
        self.bound.clear()

    def before_fork(self) -> None:
        self.mapped.clear()

    # ---- Logic's half

    def in_logic(self) -> None:
        pass

    def know_port(self, port: int, domid: int, remote_port: int) -> None:
        assert self.bound[port] == (domid, remote_port)

    def map_ring(self, domid: int) -> memoryview:
        if domid not in self.pages:
            raise OSError(errno.EINVAL, "no such domain")
        assert domid not in self.mapped, "mapped already"
        self.mapped[domid] = self.pages[domid]
        return memoryview(self.mapped[domid])

    def unmap_ring(self, domid: int) -> None:
        del self.mapped[domid]

    def receive(self, into: memoryview) -> None:
        """Takes what is pending; it is masked from then on."""
        assert not any(into), "the buffer still holds events that nobody has dealt with"
        try:
            os.eventfd_read(self.event_fd)
        except BlockingIOError:
            return
        data = struct.pack(f"={len(self._pending)}I", *self._pending)
        into[: len(data)] = data
        self._masked |= set(self._pending)
        self._pending.clear()

    def ports(self, received: memoryview) -> list[int]:
        return [port for (port,) in struct.iter_unpack("=I", received) if port]

    def unmask(self, ports: list[int]) -> None:
        for port in ports:
            self._masked.discard(port)
            if port in self._again:
                self._again.discard(port)
                self._happens(port)

    def notify(self, port: int) -> None:
        if port not in self.bound:
            raise OSError(errno.ENOTCONN, f"port {port} is not bound")
        self.notified[self.bound[port]] += 1

    @property
    def masked(self) -> set[int]:
        """Ports whose events were taken and that were not unmasked."""
        return self._masked


class Slots:
    """Slots as a keeper gives them; each is given and taken back in turn."""

    def __init__(self, most: int = 1000) -> None:
        self.most = most
        self.used: dict[int, int] = {}
        """Connection id by slot."""
        self.last_id = 0

    def allocate(self, domid: int) -> tuple[int, int] | None:
        slot = next(slot for slot in range(len(self.used) + 1) if slot not in self.used)
        if slot >= self.most:
            return None
        self.last_id += 1
        self.used[slot] = self.last_id
        return self.last_id, slot

    def free(self, slot: int) -> None:
        del self.used[slot]


class State:
    """A store and its registrar; records are applied by calling what they say."""

    def __init__(self) -> None:
        self.xen = FakeXen()
        self.store = Store()
        self.slots = Slots()
        self.told: list[list[tuple[int, int]]] = []
        self.registrar = Registrar(self.store, self.xen, self.slots.allocate, self.slots.free, self._tell)

    def _tell(self, news: bytes) -> None:
        told = list(NEWS.iter_unpack(news))
        for kind, domid, unique_id in told:
            means_one = kind in {News.GONE, News.SHUTDOWN}
            assert unique_id == (self.store.domains.known.find(domid).unique_id if means_one else 0)
        self.told.append([(kind, domid) for kind, domid, _ in told])

    def ask(self, question: Question, domid: int = 0, remote_port: int = 0) -> Answer:
        return Answer._make(ANSWER.unpack(self.registrar.answer(QUESTION.pack(question, domid, remote_port))))

    def introduce(self, domid: int) -> None:
        """The record of an introduction."""
        self.store.introduce(domid)
        self._free_closed()

    def remove(self, domid: int) -> None:
        """The record of a release, or of an end."""
        self.store.remove_domain(domid)
        self._free_closed()
        self.registrar.removed(domid)

    def ignore(self, domid: int) -> None:
        """The record of a ring that is not followed any more."""
        self.store.ignore(domid, ERROR_COMM)
        self._free_closed()

    def _free_closed(self) -> None:
        for connection in self.store.closed:
            self.slots.free(connection.slot)
        self.store.closed.clear()

    def news(self) -> list[tuple[int, int]]:
        """What was told since the last look."""
        told, self.told = self.told, []
        return [item for message in told for item in message]

    def serve(self, domid: int, remote_port: int = 7) -> Answer:
        """A domain that exists and is introduced."""
        if domid not in self.xen.facts:
            self.xen.create(domid)
        answer = self.ask(Question.BIND, domid, remote_port)
        self.introduce(domid)
        return answer


@pytest.fixture
def state() -> Iterator[State]:
    """A fresh one with domain 5."""
    made = State()
    made.xen.create(5)
    yield made
    made.xen.close()


# ---- learning


def test_a_domain_that_exists_becomes_known(state: State) -> None:
    unique_id = state.xen.facts[5].unique_id
    assert state.ask(Question.LEARN, 5) == Answer(Status.OK, unique_id)
    assert state.store.domains.known.find(5).unique_id == unique_id
    assert state.ask(Question.LEARN, 5) == Answer(Status.OK, unique_id)


@pytest.mark.parametrize("domid", [6, 0x7FF0, 0x7FF4, 0x7FFF, 0xFFFF, 0xFFFFFFFF])
def test_a_domain_that_does_not_exist_or_cannot_is_not_known(state: State, domid: int) -> None:
    for question in (Question.LEARN, Question.BIND, Question.RENEW):
        assert state.ask(question, domid, 7) == Answer(Status.NO_SUCH_DOMAIN)
    assert domid not in state.store.domains.known
    assert not state.slots.used
    assert not state.xen.bound


def test_a_domain_that_will_never_run_again_does_not_exist(state: State) -> None:
    state.xen.facts[5] = state.xen.facts[5]._replace(gone=True)
    assert state.ask(Question.LEARN, 5).status == Status.NO_SUCH_DOMAIN


def test_domain_0_is_known_without_asking(state: State) -> None:
    state.xen.speechless = True
    assert state.ask(Question.LEARN, PRIVILEGED).status == Status.OK


@pytest.mark.parametrize("question", [Question.LEARN, Question.BIND, Question.RENEW])
@pytest.mark.parametrize("how", ["another", "none", "gone"])
def test_what_is_known_by_a_number_that_means_another_domain_is_stale(
    state: State, question: Question, how: str
) -> None:
    """Nothing is made ready for either until the old one's end was recorded."""
    old = state.serve(5)
    match how:
        case "another":
            state.xen.create(5)
        case "none":
            state.xen.destroy(5)
        case "gone":
            state.xen.facts[5] = state.xen.facts[5]._replace(gone=True)
    answer = state.ask(question, 5, 8)
    assert (answer.status, answer.connection) == (Status.STALE, 0)
    assert state.store.domains.known.find(5).gone
    assert state.slots.used == {old.slot: old.connection}
    assert state.xen.bound == {old.port: (5, 7)}
    state.remove(5)
    assert state.ask(question, 5, 8).status == (Status.OK if how == "another" else Status.NO_SUCH_DOMAIN)


def test_a_hypervisor_that_says_nothing_for_the_moment_ends_no_domain(state: State) -> None:
    state.serve(5)
    state.xen.speechless = True
    for question in (Question.LEARN, Question.BIND, Question.RENEW, Question.SCAN):
        assert state.ask(question, 5, 7).status != Status.STALE
    assert not state.store.domains.known.find(5).gone
    assert state.news() == []


# ---- offers


def test_an_offer_is_a_bound_port_and_a_slot(state: State) -> None:
    answer = state.ask(Question.BIND, 5, 7)
    assert answer == Answer(Status.OK, state.xen.facts[5].unique_id, 1, 0, answer.port, 7)
    assert state.xen.bound == {answer.port: (5, 7)}
    assert state.slots.used == {0: 1}
    assert state.store.domains.offers[5] == answer[2:]


def test_a_logic_that_dies_before_it_takes_an_offer_leaves_the_same_port_and_a_fresh_slot(state: State) -> None:
    answers = [state.ask(Question.BIND, 5, 7) for _ in range(20)]
    assert len({answer.port for answer in answers}) == 1
    assert [answer.connection for answer in answers] == list(range(1, 21)), "an id is never used again"
    assert state.slots.used == {answers[-1].slot: answers[-1].connection}
    state.introduce(5)
    ring = state.store.domains.known.find(5).connection
    assert ring is not None
    assert (ring.id, ring.slot, ring.port) == answers[-1][2:5]
    assert not state.store.domains.offers


def test_an_offer_for_another_port_gives_the_first_one_up(state: State) -> None:
    first = state.ask(Question.BIND, 5, 7)
    second = state.ask(Question.BIND, 5, 8)
    assert state.xen.bound == {second.port: (5, 8)}
    assert second.port != first.port


def test_an_introduction_on_the_same_port_binds_it_anew(state: State) -> None:
    """The other end may have been closed and opened meanwhile: an old binding says nothing of a new one."""
    first = state.serve(5)
    second = state.serve(5)
    assert state.xen.bound == {second.port: (5, 7)}
    assert second.port != first.port
    assert state.slots.used == {second.slot: second.connection}


def test_a_renewed_connection_has_the_port_of_the_old_one(state: State) -> None:
    first = state.serve(5)
    renewed = [state.ask(Question.RENEW, 5) for _ in range(5)][-1]
    assert (renewed.port, renewed.remote_port) == (first.port, 7)
    assert set(state.slots.used.values()) == {first.connection, renewed.connection}
    state.introduce(5)
    assert state.slots.used == {renewed.slot: renewed.connection}
    assert state.xen.bound == {first.port: (5, 7)}


def test_a_port_that_cannot_be_bound_is_an_offer_without_one(state: State) -> None:
    state.xen.unbindable.add(7)
    answer = state.ask(Question.BIND, 5, 7)
    assert (answer.status, answer.port) == (Status.OK, 0)
    state.xen.unbindable.clear()
    again = state.ask(Question.BIND, 5, 7)
    assert again.port
    assert len(state.slots.used) == 1


def test_without_room_there_is_no_offer_and_nothing_is_left_behind(state: State) -> None:
    state.slots.most = 0
    for question in (Question.BIND, Question.RENEW):
        assert state.ask(question, 5, 7).status == Status.REFUSED
    assert not state.store.domains.offers
    state.slots.most = 1
    assert state.ask(Question.BIND, 5, 7).status == Status.OK
    assert len(state.xen.bound) == 1


def test_without_room_for_another_connection_a_ring_keeps_its_port(state: State) -> None:
    first = state.serve(5)
    state.slots.most = 1
    assert state.ask(Question.BIND, 5, 8).status == Status.REFUSED
    assert state.xen.bound == {first.port: (5, 7)}


def test_a_domain_whose_end_was_refused_for_something_else_is_forgotten_all_the_same(state: State) -> None:
    """The end has happened, but no record of it counts."""
    state.serve(5)
    stays = state.serve(6, 8)
    state.ask(Question.BIND, 5, 9)
    state.store.remove_domain(5)
    state._free_closed()
    state.registrar.forget_unknown()
    assert state.slots.used == {stays.slot: stays.connection}
    assert state.xen.bound == {stays.port: (6, 8)}
    assert not state.store.domains.offers


def test_a_domain_that_is_forgotten_leaves_neither_port_nor_slot(state: State) -> None:
    state.ask(Question.BIND, 5, 7)
    state.remove(5)
    assert (state.slots.used, state.xen.bound, state.store.domains.offers) == ({}, {}, {})
    state.serve(5)
    state.ask(Question.RENEW, 5)
    state.remove(5)
    assert (state.slots.used, state.xen.bound, state.store.domains.offers) == ({}, {}, {})
    state.registrar.removed(5)


ACTS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "bind",
                "bind",
                "renew",
                "learn",
                "introduce",
                "introduce",
                "ignore",
                "remove",
                "create",
                "destroy",
                "full",
            ]
        ),
        st.sampled_from([5, 6]),
        st.sampled_from([7, 8, 9]),
    ),
    max_size=50,
)


@examples(200)
@given(ACTS)
def test_neither_slots_nor_ports_are_leaked_whatever_happens(acts: list[tuple[str, int, int]]) -> None:
    """`FakeXen` fails on a port unbound twice, `Slots` on a slot freed twice."""
    state = State()
    state.xen.unbindable.add(9)
    known, offers = state.store.domains.known, state.store.domains.offers
    for what, domid, port in acts:
        match what:
            case "bind":
                state.ask(Question.BIND, domid, port)
            case "renew" | "learn":
                state.ask(Question[what.upper()], domid)
            case "introduce" if domid in offers:
                state.introduce(domid)
            case "ignore" if domid in known and known.find(domid).connection is not None:
                state.ignore(domid)
            case "remove" if domid in known:
                state.remove(domid)
            case "create":
                state.xen.create(domid)
            case "destroy":
                state.xen.destroy(domid)
            case "full":
                state.slots.most = 0 if state.slots.most else 1000
        rings = {d.connection.slot: d.connection.id for d in known if d.connection is not None}
        assert state.slots.used == rings | {offer.slot: offer.connection for offer in offers.values()}
        assert len({end for end, _ in state.xen.bound.values()}) == len(state.xen.bound), "one port a domain"
        assert all(end in known for end, _ in state.xen.bound.values())
    for domid in (5, 6):
        if domid in known:
            state.remove(domid)
    assert (state.slots.used, state.xen.bound, offers) == ({}, {}, {})
    state.xen.close()


# ---- news


def test_domains_as_they_should_be_are_no_news(state: State) -> None:
    state.serve(5)
    state.ask(Question.SCAN)
    assert state.told == []


def test_what_has_become_of_domains_is_told_until_it_is_recorded(state: State) -> None:
    for domid in (5, 6, 7, 8):
        state.serve(domid)
    state.xen.create(9)
    state.ask(Question.LEARN, 9)
    state.xen.shut_down(5)
    state.xen.destroy(6)
    state.xen.create(7)
    state.xen.destroy(9)
    news = [(News.SHUTDOWN, 5), (News.GONE, 6), (News.GONE, 7), (News.GONE, 9), (News.SCANNED, 0)]
    for _ in range(3):
        state.ask(Question.SCAN)
        assert len(state.told) == 1
        assert state.news() == news
    state.store.domains.known.find(5).shutdown = True
    for domid in (6, 7, 9):
        assert state.store.domains.known.find(domid).gone
        state.remove(domid)
    state.ask(Question.SCAN)
    assert state.told == []
    state.store.domains.known.find(5).shutdown = False
    state.ask(Question.SCAN)
    assert state.news() == [(News.SHUTDOWN, 5), (News.SCANNED, 0)], "it was resumed, and has shut down again"


def test_the_shutdown_of_a_domain_that_nobody_introduced_is_no_news(state: State) -> None:
    state.ask(Question.LEARN, 5)
    state.xen.shut_down(5)
    state.ask(Question.SCAN)
    assert state.told == []


def test_the_end_of_domain_0_is_never_told(state: State) -> None:
    state.xen.facts[PRIVILEGED] = DomainFacts(0, 77, shutdown=True, gone=True)
    state.ask(Question.SCAN)
    assert state.told == []
    assert not state.store.domains.known.find(PRIVILEGED).gone


def test_much_news_goes_in_messages_of_bounded_size(state: State) -> None:
    domids = range(10, 10 + NEWS_MAX + 5)
    for domid in domids:
        state.serve(domid)
        state.xen.destroy(domid)
    state.ask(Question.SCAN)
    assert [len(message) for message in state.told] == [NEWS_MAX, 6]
    assert state.news() == [*((News.GONE, domid) for domid in domids), (News.SCANNED, 0)]


def test_a_new_logic_is_told_all_that_was_not_recorded(state: State) -> None:
    for domid in (5, 6):
        state.serve(domid)
    state.xen.shut_down(5)
    state.xen.destroy(6)
    for _ in range(2):
        state.registrar.tell_all()
        assert state.news() == [(News.SHUTDOWN, 5), (News.GONE, 6), (News.SCANNED, 0)]


def test_a_new_logic_is_told_nothing_that_no_event_has_said(state: State) -> None:
    """Nobody is to see a restart by what is told, or when."""
    for domid in (5, 6, 7):
        state.serve(domid)
    state.registrar.tell_all()
    assert state.told == [], "a State that begins looks at all domains once"
    state.xen.shut_down(5)
    state.ask(Question.SCAN)
    assert state.news() == [(News.SHUTDOWN, 5), (News.SCANNED, 0)]
    house, toolstack = state.store.house, Connection(99, 99, -1, PRIVILEGED, True, True)
    shutdown(state.store, house, 5)
    scanned(state.store, house)
    resume(state.store, toolstack, 5)
    state.xen.destroy(6)
    state.xen.shut_down(7)
    state.registrar.tell_all()
    assert state.told == [], "resumed in name only; an end and a shutdown that nobody has noticed"
    state.ask(Question.SCAN)
    news = [(News.SHUTDOWN, 5), (News.GONE, 6), (News.SHUTDOWN, 7), (News.SCANNED, 0)]
    assert state.news() == news
    state.registrar.tell_all()
    assert state.news() == news
    shutdown(state.store, house, 5)
    shutdown(state.store, house, 7)
    state.remove(6)
    state.registrar.tell_all()
    assert state.news() == [(News.SCANNED, 0)], "who watches all of them was not told yet"
    scanned(state.store, house)
    state.registrar.tell_all()
    assert state.told == []


def test_a_look_that_failed_is_repeated_for_the_next_logic(state: State) -> None:
    state.serve(5)
    state.xen.shut_down(5)
    state.xen.speechless = True
    state.registrar.tell_all()
    assert state.told == []
    state.xen.speechless = False
    state.registrar.tell_all()
    assert state.news() == [(News.SHUTDOWN, 5), (News.SCANNED, 0)]


# ---- domains that were there before the daemon


def test_domains_that_were_there_are_to_be_introduced_until_that_is_settled(state: State) -> None:
    state.xen.create(3)
    state.registrar.begin()
    state.xen.create(8)
    for _ in range(2):
        state.registrar.tell_all()
        assert state.news() == [(News.APPEARED, domid) for domid in (0, 3, 5)]
    state.serve(3)
    state.serve(5)
    state.ignore(5)
    state.registrar.tell_all()
    assert state.news() == [(News.APPEARED, 0)], "those that were introduced have been dealt with, ignored or not"
    assert state.ask(Question.SETTLED) == Answer(Status.OK)
    state.registrar.tell_all()
    assert state.told == []


def test_a_question_that_asks_nothing_changes_nothing(state: State) -> None:
    state.serve(5)
    slots, bound = dict(state.slots.used), dict(state.xen.bound)
    assert state.ask(Question.SYNC, 5, 7) == Answer(Status.OK)
    assert (state.slots.used, state.xen.bound, state.told) == (slots, bound, [])


@given(
    st.builds(
        Answer,
        st.sampled_from(Status),
        st.integers(0, 2**64 - 1),
        st.integers(0, 2**64 - 1),
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**32 - 1),
    )
)
@examples(30)
def test_an_answer_travels_whole(answer: Answer) -> None:
    assert Answer._make(ANSWER.unpack(ANSWER.pack(*answer))) == answer
