"""What guests see of loop and rings, when Logic dies before any store that it makes (`ring_world`)."""

import logging
import time
from collections.abc import Callable, Iterator
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.ops import FEATURE_ERROR, FEATURE_WATCH_DEPTH, Op
from protocol.ring import (
    CONNECTED,
    CONNECTION,
    ERROR,
    ERROR_COMM,
    ERROR_RING_INDEX,
    EVTCHN_PORT,
    M32,
    RECONNECT,
    REQ_CONS,
    REQ_PROD,
    RING_SIZE,
    RSP_CONS,
    RSP_PROD,
)
from protocol.wire import Framer
from recovery_box import journal
from recovery_box.box import REGION_SIZE, W_RING, Box
from recovery_box.lanes import _DONE
from tests.model.support import examples
from tests.unit.ring_world import OK, PORT, SLOTS, Guest, World, strings
from tests.unit.test_ring_lane import Died
from xenstore_logic.rings import NEWS_TURN, RENEW_SECONDS
from xenstore_state.domains import PRIVILEGED


@pytest.fixture(autouse=True)
def journal_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose single stores one can die of."""
    monkeypatch.setattr(journal, "_journal", None)


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Box:
    """One file for the whole module."""
    return Box(str(tmp_path_factory.mktemp("loop") / "box"), max_connections=SLOTS)


@pytest.fixture
def world(box: Box) -> Iterator[World]:
    """One with Logic running."""
    made = World(box)
    yield made
    made.close()


# ---- service


def test_a_guest_is_served_over_its_ring(world: World) -> None:
    guest = world.introduced(5)
    assert guest.does((Op.WRITE, b"a\0value"), (Op.READ, b"a\0"), (Op.READ, b"b\0")) == [OK, b"value", b"ENOENT\0"]
    assert (guest.words[ERROR], guest.words[CONNECTION]) == (0, CONNECTED)


def test_messages_larger_than_the_ring_go_both_ways(world: World) -> None:
    guest = world.introduced(5)
    value = bytes(range(256)) * 7
    assert guest.does((Op.WRITE, b"a\0" + value), *[(Op.READ, b"a\0")] * 10) == [OK, *[value] * 10]


def test_a_guest_is_told_of_what_it_watches(world: World) -> None:
    guest, other = world.introduced(5), world.introduced(6)
    guest.sends((Op.WATCH, b"a\0token\0"))
    world.settle()
    guest.looks()
    guest.take()
    assert world.toolstack.does(Op.WRITE, strings(b"/local/domain/5/a") + b"x") == OK
    guest.looks()
    assert [m.payload for m in guest.take()] == [b"a\0token\0"]
    other.looks()
    assert other.take() == []


# ---- death before any store


def both(world: World) -> list[object]:
    """Two guests and a toolstack do a bit of everything; what they are told."""
    first = world.introduced(5)
    second = world.introduced(6, port=9)
    watched = [(Op.WATCH, b"/local/domain/5\0token\0"), (Op.WATCH, b"@releaseDomain\0t\0")]
    said: list[object] = [second.does(*watched), first.does((Op.TRANSACTION_START, b"\0"))]
    said += [
        world.toolstack.does(Op.SET_PERMS, strings(b"/local/domain/5", b"n5", b"r6")),
        world.toolstack.does(Op.WATCH, strings(b"@releaseDomain", b"token")),
        first.does((Op.WRITE, b"a\0" + bytes(1500)), *[(Op.READ, b"a\0")] * 3, (Op.MKDIR, b"b\0")),
    ]
    second.looks()
    said.append([m.payload for m in second.take()])
    first.words[CONNECTION] = RECONNECT
    first.kicks()
    world.settle()
    assert first.words[CONNECTION] == CONNECTED
    first.framer, first.to_put = Framer(), b""
    first.looks()
    said.append(first.does((Op.WRITE, b"c\0again"), (Op.RM, b"b\0"), (Op.DIRECTORY, b"/local/domain/5\0")))
    second.looks()
    second.take()
    world.xen.destroy(5)
    world.xen.virq()
    world.settle()
    second.looks()
    world.toolstack.looks()
    said.append([m.payload for m in second.take()])
    said.append([m.payload for m in world.toolstack.take()])
    said.append(second.does((Op.READ, b"/local/domain/5\0"), (Op.WRITE, b"x\0y"), (Op.READ, b"x\0")))
    said.append((world.toolstack.does(Op.RELEASE, b"6\0"), dict(world.xen.bound), len(world.slots)))
    return said


def slow_reader(world: World) -> list[object]:
    """A guest that puts more requests than may be outstanding, in parts, and reads late; another one goes on."""
    guest, other = world.introduced(5), world.introduced(6, port=9)
    said: list[object] = [guest.does((Op.WRITE, b"a\0" + bytes(range(200))))]
    guest.sends(*[(Op.READ, b"a\0")] * 60)
    for _ in range(5):
        world.settle()
        guest._puts()
    said.append(other.does((Op.WRITE, b"a\0b"), (Op.READ, b"a\0")))
    guest.notices = -1
    guest.looks()
    said.append([(m.req_id, m.payload) for m in guest.take()])
    return said


def shutdowns(world: World) -> list[object]:
    """Two domains shut down at once; who watches releases plainly is told once, who watches in depth of each."""
    for domid in (5, 6):
        world.introduced(domid)
    world.toolstack.does(Op.WATCH, strings(b"@releaseDomain", b"plain"))
    world.toolstack.does(Op.WATCH, strings(b"@releaseDomain", b"deep", b"1"))
    for domid in (5, 6):
        world.xen.shut_down(domid)
    world.xen.virq()
    world.settle()
    world.toolstack.looks()
    return [[m.payload for m in world.toolstack.take()]]


def taken_over(world: World) -> list[object]:
    """A domain that was there before the daemon, in the middle of a request, goes on over the ring it has."""
    guest = world.guest(5)
    data = guest.encoded((Op.WRITE, b"/local\0x"), (Op.READ, b"/tool\0"), (Op.GET_DOMAIN_PATH, b"5\0"))
    start = M32 - 20
    guest.words[REQ_CONS] = guest.words[REQ_PROD] = guest.words[RSP_CONS] = guest.words[RSP_PROD] = start
    guest.words[EVTCHN_PORT] = PORT
    guest.to_put = data[:30]
    guest._puts()
    world.registrar.begin()
    world.dies()
    world.settle()
    guest.to_put += data[30:]
    guest._puts()
    world.settle()
    guest.looks()
    return [[(m.op, m.payload) for m in guest.take()], guest.words[REQ_CONS], list(world.xen.bound.values())]


def itself(world: World) -> list[object]:
    """Domain 0 introduces itself anew, over the ring that this ends: the answer comes over the new one."""
    dom0 = Guest(world, PRIVILEGED, 2)
    said: list[object] = [world.toolstack.does(Op.INTRODUCE, b"0\0000\0002\0")]
    dom0.looks()
    for _ in range(2):
        dom0.sends((Op.INTRODUCE, b"0\0000\0002\0"))
        world.settle()
        dom0.looks()
        (answer,) = dom0.take()
        said.append((answer.req_id == dom0.last_id, answer.payload))
    said.append(dom0.does((Op.WRITE, b"/a\0b"), (Op.READ, b"/a\0")))
    return said


SCENARIOS: Final = [both, slow_reader, shutdowns, taken_over, itself]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_death_before_each_single_store_is_not_noticed(box: Box, scenario: Callable[[World], list[object]]) -> None:
    """One run without death is counted; then there is one run for each of its stores."""
    world = World(box)
    expected = scenario(world)
    stores, deaths = world.mortal.stores, world.deaths
    world.close()
    assert stores > 80
    for n in range(stores):
        world = World(box)
        world.mortal.dies_at = n
        said = scenario(world)
        assert world.deaths == deaths + 1
        assert said == expected, f"death after {n} stores"
        world.close()


@examples(40)
@given(st.sampled_from(SCENARIOS), st.lists(st.integers(0, 120), max_size=30))
def test_death_upon_death_is_not_noticed(
    box: Box, scenario: Callable[[World], list[object]], deaths: list[int]
) -> None:
    world = World(box)
    expected = scenario(world)
    world.close()
    world = World(box)
    world.more_deaths = deaths
    world.dies()
    assert scenario(world) == expected
    world.close()


# ---- death at certain points


def test_events_that_a_dead_logic_had_taken_are_unmasked_although_others_come_meanwhile(world: World) -> None:
    first, second = world.introduced(5), world.introduced(6, port=9)
    first.sends((Op.READ, b"a\0"))
    world.xen.dies_in = "unmask"
    world.turn()
    assert world.deaths == 1
    second.sends((Op.READ, b"a\0"))
    world.settle()
    for guest in (first, second):
        guest.looks()
        assert len(guest.take()) == 1
        assert guest.does((Op.WRITE, b"a\0b")) == [OK]


@pytest.mark.parametrize("port", [PORT, 8], ids=["the same port", "another port"])
def test_death_in_the_middle_of_a_second_introduction_ends_in_a_fresh_connection(world: World, port: int) -> None:
    """The event channel of the connection that is to end may be gone already; there is output for it."""
    guest, other = world.introduced(5), world.introduced(6, port=9)
    guest.does((Op.WRITE, b"a\0" + bytes(500)))
    guest.sends(*[(Op.READ, b"a\0")] * 6)
    world.settle()
    world.xen.dies_in = "answered"
    assert world.toolstack.does(Op.INTRODUCE, b"5\0000\000%d\0" % port) == OK
    assert world.deaths == 1
    assert sorted(world.xen.bound.values()) == [(5, port), (6, 9)]
    assert other.does((Op.READ, b"a\0")) == [b"ENOENT\0"]
    again = Guest(world, 5, port)
    assert again.does((Op.READ, b"a\0")) == [bytes(500)]


def test_an_introduction_with_a_port_that_cannot_be_bound_harms_nobody(world: World) -> None:
    world.introduced(5)
    other = world.introduced(6, port=9)
    world.xen.unbindable.add(8)
    world.toolstack.does(Op.INTRODUCE, b"5\0000\0008\0")
    assert world.deaths == 0
    assert other.does((Op.WRITE, b"a\0b")) == [OK]
    assert world.toolstack.does(Op.INTRODUCE, b"5\0000\0007\0") == OK
    assert Guest(world, 5, PORT).does((Op.WRITE, b"a\0b")) == [OK]


def test_positions_that_cannot_be_true_end_one_ring_and_no_other(world: World) -> None:
    """Whoever died had gone mad."""
    guest, other = world.introduced(5), world.introduced(6, port=9)
    ring = world.store.domains.known.find(5).connection
    assert ring is not None
    world.box.words[world.box.slot_word(ring.slot) + _DONE] += (REGION_SIZE + 1) << 32
    world.dies()
    world.settle()
    assert guest.words[ERROR] == ERROR_COMM
    assert guest.words[CONNECTION] == CONNECTED
    assert other.does((Op.WRITE, b"a\0b")) == [OK]


# ---- news that comes too late


def test_the_end_of_a_domain_is_not_taken_for_that_of_the_next_one_of_its_number(world: World) -> None:
    """State tells that 5 is gone; before Logic hears of it, another 5 is introduced."""
    world.introduced(5)
    world.xen.destroy(5)
    world.registrar.scan()
    world.xen.create(5)
    assert world.toolstack.does(Op.INTRODUCE, b"5\0000\0007\0") == OK
    assert world.toolstack.does(Op.IS_DOMAIN_INTRODUCED, b"5\0") == b"T\0"
    assert Guest(world, 5, PORT).does((Op.READ, b"/tool\0")) != []


def test_the_shutdown_of_a_domain_is_not_taken_for_that_of_the_next_one_of_its_number(world: World) -> None:
    world.introduced(5)
    world.xen.shut_down(5)
    world.registrar.scan()
    world.xen.create(5)
    assert world.toolstack.does(Op.INTRODUCE, b"5\0000\0007\0") == OK
    assert not world.store.domains.known.find(5).shutdown


def test_a_page_is_not_taken_for_that_of_the_next_domain_of_its_number(world: World) -> None:
    """The first one could not be introduced for want of room."""
    world.xen.create(5)
    world.most_slots = len(world.slots)
    assert world.toolstack.does(Op.INTRODUCE, b"5\0000\0007\0") == b"ENOMEM\0"
    world.most_slots = SLOTS
    world.xen.destroy(5)
    world.xen.virq()
    world.settle()
    guest = world.introduced(5)
    assert guest.does((Op.WRITE, b"a\0b")) == [OK]


# ---- guests that keep no rules


def test_a_guest_that_asks_for_a_fresh_connection_all_the_time_is_alone_with_that(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    guest, other = world.introduced(5), world.introduced(6, port=9)

    def ask_again(domid: int, index: int, value: int) -> None:
        if domid == 5 and index != CONNECTION:
            guest.words[CONNECTION] = RECONNECT

    world.xen.on_store = ask_again
    guest.words[CONNECTION] = RECONNECT
    guest.kicks()
    before = world.last_id
    for _ in range(100):
        world.turn()
        time.sleep(0.001)
    assert 1 < world.last_id - before < 50
    assert caplog.text.count("connects anew") == 1, "the log is not a guest's to fill"
    assert other.does((Op.WRITE, b"a\0b")) == [OK]
    assert len(world.slots) == 3


@pytest.mark.parametrize("ahead", [RING_SIZE + 1, -1, 1 << 31])
@pytest.mark.parametrize("index", [REQ_PROD, RSP_CONS], ids=["requests", "responses"])
def test_an_index_that_cannot_be_is_an_error_wherever_logic_is(world: World, index: int, ahead: int) -> None:
    for dead in (False, True):
        guest, other = world.introduced(5), world.introduced(6, port=9)
        guest.does((Op.WATCH, b"a\0token\0"))
        guest.words[index] = (guest.words[index] + (ahead if index == REQ_PROD else -ahead)) & M32
        if dead:
            world.dies()
        guest.kicks()
        world.toolstack.does(Op.WRITE, b"/local/domain/5/a\0")  # only who is given something shows how far it has read
        assert guest.words[ERROR] == ERROR_RING_INDEX
        assert other.does((Op.READ, b"a\0")) == [b"ENOENT\0"]
        for domid in (b"5\0", b"6\0"):
            assert world.toolstack.does(Op.RELEASE, domid) == OK


OVERWRITES = st.lists(st.tuples(st.sampled_from([REQ_CONS, RSP_PROD]), st.integers(0, M32)), min_size=1)


@examples(60)
@given(OVERWRITES, st.booleans(), st.booleans())
def test_the_daemons_own_indices_overwritten_while_nobody_lives_are_an_error_as_at_any_other_time(
    box: Box, writes: list[tuple[int, int]], busy: bool, first: bool
) -> None:
    """Nobody is to see by what becomes of a guest that misbehaves whether Logic has been another one since."""
    world = World(box)
    guest, other = world.introduced(5), world.introduced(6)
    assert guest.does((Op.WRITE, b"a\0" + bytes(700))) == [OK]
    if busy:
        guest.sends(*[(Op.READ, b"a\0")] * 3)
        world.settle()
    before = bytes(guest.page)
    for index, value in writes:
        guest.words[index] = value
    forged = bytes(guest.page) != before
    world.dies()
    if not first:
        other.kicks()
        world.settle()
        world.dies()  # one that has looked at another ring only
    guest.kicks()
    world.settle()
    assert guest.words[ERROR] == (ERROR_RING_INDEX if forged else 0)
    if not forged:
        guest.notices = -1
        guest.looks()
        assert [m.payload for m in guest.take()] == ([bytes(700)] * 3 if busy else [])
        assert guest.does((Op.READ, b"a\0")) == [bytes(700)]
    assert other.does((Op.GET_DOMAIN_PATH, b"7\0")) == [b"/local/domain/7\0"]
    world.close()


@examples(60)
@given(OVERWRITES, st.booleans())
def test_indices_that_a_logic_was_storing_when_it_died_are_stored_again_whatever_they_are(
    box: Box, writes: list[tuple[int, int]], busy: bool
) -> None:
    world = World(box)
    guest = world.introduced(5)
    assert guest.does((Op.WRITE, b"a\0" + bytes(700))) == [OK]
    if busy:
        guest.sends(*[(Op.READ, b"a\0")] * 3)
        world.settle()
    for index, value in writes:
        guest.words[index] = value
    ring = world.store.domains.known.find(5).connection
    assert ring is not None
    world.box.words[W_RING] = ring.slot + 1
    world.dies()
    world.settle()
    guest.notices = -1
    guest.looks()
    assert [m.payload for m in guest.take()] == ([bytes(700)] * 3 if busy else [])
    assert guest.does((Op.READ, b"a\0")) == [bytes(700)]
    assert guest.words[ERROR] == 0
    world.close()


@pytest.mark.parametrize("turns", [0, 1])
def test_a_reconnection_that_must_wait_is_made_by_the_next_logic(world: World, turns: int) -> None:
    guest = world.introduced(5)
    for _ in range(2):
        assert guest.words[CONNECTION] == 0
        guest.words[CONNECTION] = 1
        guest.kicks()
        world.turn()
    assert guest.words[CONNECTION] == 1, "that was too soon"
    for _ in range(turns):
        world.turn()
    world.dies()
    time.sleep(RENEW_SECONDS)
    world.settle()
    assert guest.words[CONNECTION] == 0
    guest.notified()
    assert guest.does((Op.GET_DOMAIN_PATH, b"7\0")) == [b"/local/domain/7\0"]


def test_a_reconnection_has_to_wait_although_another_logic_made_the_last_one(world: World) -> None:
    guest = world.introduced(5)
    for death in range(3):
        guest.words[CONNECTION] = RECONNECT
        guest.kicks()
        world.turn()
        assert guest.words[CONNECTION] == (RECONNECT if death else CONNECTED)
        world.dies()
    time.sleep(RENEW_SECONDS)
    world.settle()
    assert guest.words[CONNECTION] == CONNECTED


def test_one_that_is_served_alone_has_no_logic_to_itself_until_it_may_connect_anew(world: World) -> None:
    guest = world.introduced(5)

    def wants_something() -> bool:
        ring = world.core.store.domains.known.find(5).connection
        assert ring is not None
        return world.rings.has_requests(world.loop.channel(ring))

    for served in (True, False):
        guest.words[CONNECTION] = RECONNECT
        assert wants_something() == served
        guest.kicks()
        world.turn()
        world.dies()
    time.sleep(RENEW_SECONDS)
    assert wants_something()


@pytest.mark.parametrize("dies", [False, True])
def test_a_request_put_while_others_are_given_back_is_taken_by_whoever_is_logic_then(world: World, dies: bool) -> None:
    """A guest that finds its requests not taken yet sends no event for one more."""
    guest = world.introduced(5)
    first, second = ((Op.GET_DOMAIN_PATH, b"%d\0" % number) for number in (7, 8))
    guest.sends(first)
    one_more = guest.encoded(second)

    def put_one_more(domid: int, index: int, value: int) -> None:
        if index == REQ_CONS:
            world.xen.on_store = lambda domid, index, value: None
            producer = guest.words[REQ_PROD]
            for k, byte in enumerate(one_more):
                guest.page[(producer + k) % RING_SIZE] = byte
            guest.words[REQ_PROD] = (producer + len(one_more)) & M32

    world.xen.on_store = put_one_more
    while world.xen.on_store == put_one_more:
        world.turn()
    if dies:
        world.dies()
    world.settle()
    assert guest.words[REQ_CONS] == guest.words[REQ_PROD], "not all is taken"
    guest.looks()
    assert [m.payload for m in guest.take()] == [b"/local/domain/7\0", b"/local/domain/8\0"]


@pytest.mark.parametrize("dies", [False, True])
def test_an_event_that_waits_for_a_socket_is_not_queued_again_by_the_next_logic_either(
    world: World, dies: bool
) -> None:
    writer = Guest(world, PRIVILEGED, 2)
    assert world.toolstack.does(Op.INTRODUCE, b"0\0000\0002\0") == OK
    writer.looks()
    home = b"/local/domain/0/"
    for name, token in ((b"fill", b"T" * 3900), (b"x", b"t"), (b"y", b"t")):
        assert world.toolstack.does(Op.WATCH, home + name + b"\0" + token + b"\0") == OK
    filling = 100  # more than the socket takes
    for number in range(filling):
        assert writer.does((Op.WRITE, b"fill/%d\0" % number)) == [OK]
    for number in range(7):
        if dies:
            world.dies()
        assert writer.does((Op.WRITE, b"xy"[number % 2 : number % 2 + 1] + b"\0%d" % number)) == [OK]
    got: list[bytes] = []
    while True:
        world.settle()
        world.toolstack.looks()
        messages = world.toolstack.take()
        if not messages:
            break
        got += [message.payload.partition(b"\0")[0] for message in messages]
    assert got == [*(home + b"fill/%d" % number for number in range(filling)), home + b"x", home + b"y"]


@pytest.mark.parametrize("where", ["received", "ask", "answered", "unmask"])
def test_a_domains_end_is_dealt_with_before_the_first_request_whoever_heard_of_it(world: World, where: str) -> None:
    world.introduced(5)
    world.xen.destroy(5)
    world.xen.virq()
    world.xen.dies_in = where
    world.turn()
    assert world.deaths == 1
    assert world.toolstack.does(Op.IS_DOMAIN_INTRODUCED, b"5\0") == b"F\0"


def test_of_many_ends_those_that_the_last_logic_had_not_come_to_are_dealt_with_before_the_first_request(
    world: World,
) -> None:
    domids = range(5, 5 + NEWS_TURN + 2)
    for domid in domids:
        world.introduced(domid)
    for domid in domids:
        world.xen.destroy(domid)
    world.xen.virq()
    world.turn()
    assert len([d for d in world.core.store.domains.known if d.domid in domids]) == 2
    world.dies()
    for domid in reversed(domids):
        world.toolstack.sends(Op.IS_DOMAIN_INTRODUCED, b"%d\0" % domid)
    world.turn()
    world.toolstack.looks()
    assert [m.payload for m in world.toolstack.take()] == [b"F\0"] * len(domids)


def test_a_ring_with_an_error_is_left_alone_and_an_introduction_revives_it(world: World) -> None:
    guest = world.introduced(5)
    guest.words[REQ_PROD] += RING_SIZE + 1
    guest.kicks()
    for _ in range(2):
        world.settle()
        assert guest.words[ERROR] == ERROR_RING_INDEX
        before = bytes(guest.page)
        guest.kicks()
        world.settle()
        assert bytes(guest.page) == before
        world.dies()
    assert world.toolstack.does(Op.INTRODUCE, b"5\0000\0007\0") == OK
    guest.looks()
    assert guest.words[ERROR] == 0
    assert guest.does((Op.WRITE, b"a\0b"), (Op.READ, b"a\0")) == [OK, b"b"]


def test_one_that_is_introduced_again_is_served_on_the_port_of_the_request(world: World) -> None:
    """domain.c: introduce_domain: the page's own port is for the first time."""
    guest = world.introduced(5)
    guest.words[EVTCHN_PORT] = PORT + 4
    assert world.toolstack.does(Op.INTRODUCE, b"5\0000\000%d\0" % PORT) == OK
    guest.looks()
    assert guest.does((Op.GET_DOMAIN_PATH, b"5\0")) == [b"/local/domain/5\0"]


def test_a_page_that_names_a_port_decides_the_first_time(world: World) -> None:
    guest = world.guest(5)
    guest.words[EVTCHN_PORT] = PORT
    assert world.toolstack.does(Op.INTRODUCE, b"5\0000\000%d\0" % (PORT + 4)) == OK
    guest.looks()
    assert guest.does((Op.GET_DOMAIN_PATH, b"5\0")) == [b"/local/domain/5\0"]


@pytest.mark.parametrize(("features", "shown"), [(FEATURE_WATCH_DEPTH, 0), (FEATURE_ERROR, ERROR_RING_INDEX)])
def test_an_error_is_shown_to_whom_that_was_offered(world: World, features: int, shown: int) -> None:
    guest = world.guest(5)
    assert world.toolstack.does(Op.SET_FEATURE, b"5\0%d\0" % features) == OK
    assert world.toolstack.does(Op.INTRODUCE, b"5\0000\000%d\0" % PORT) == OK
    guest.words[REQ_PROD] += RING_SIZE + 1
    guest.kicks()
    for _ in range(2):
        world.settle()
        assert guest.words[ERROR] == shown
        world.dies()


@pytest.mark.parametrize("released", [False, True])
def test_who_stands_in_for_a_domain_is_told_of_its_nodes_end(world: World, released: bool) -> None:
    stub, _ = world.introduced(5), world.introduced(6, port=9)
    assert world.toolstack.does(Op.SET_TARGET, b"5\0006\0") == OK
    assert world.toolstack.does(Op.WRITE, b"/local/domain/6/dev\0") == OK
    stub.does((Op.WATCH, strings(b"/local/domain/6/dev", b"t")))
    if released:
        assert world.toolstack.does(Op.RELEASE, b"6\0") == OK
    else:
        world.xen.destroy(6)
        world.xen.virq()
        world.settle()
    stub.looks()
    assert [m.payload for m in stub.take()] == [b"/local/domain/6/dev\0t\0"]
    world.introduced(6, port=9)
    assert stub.does((Op.READ, b"/local/domain/6\0")) == [b"EACCES\0"]


def test_a_request_whose_reply_and_events_wait_is_outstanding_once(world: World) -> None:
    busy, deaf = world.introduced(5), world.introduced(6, port=9)
    assert world.toolstack.does(Op.SET_PERMS, strings(b"/local/domain/5", b"n5", b"r6")) == OK
    deaf.sends((Op.WATCH, strings(b"/local/domain/5", b"t" * 900)))  # one such event fills its ring
    busy.sends((Op.WRITE, b"v\0" + bytes(1000)), (Op.READ, b"v\0"))  # so does this reply
    world.settle()
    limit = world.store.domains.quotas["outstanding"]
    busy.sends(*[(Op.WRITE, b"n%d\0" % k) for k in range(limit + 10)])
    world.settle()
    assert b"outstanding      :       %d" % limit in world.toolstack.does(Op.CONTROL, b"quota\0005\0")
    assert world.toolstack.does(Op.DIRECTORY, b"/local/domain/5\0").count(b"n") == limit - 1  # the READ is one


def test_requests_whose_events_others_do_not_read_stay_outstanding_when_logic_dies(world: World) -> None:
    busy, deaf = world.introduced(5), world.introduced(6, port=9)
    assert world.toolstack.does(Op.SET_PERMS, strings(b"/local/domain/5", b"n5", b"r6")) == OK
    deaf.sends((Op.WATCH, strings(b"/local/domain/5", b"t" * 900)))  # one such event fills its ring
    world.settle()
    for round_ in range(3):
        busy.sends(*[(Op.WRITE, b"n%d-%d\0" % (round_, k)) for k in range(15)])
        world.settle()
        busy.looks()
        assert world.toolstack.does(Op.WRITE, b"/tool\0") == OK  # the last record is not about them
        world.dies()
        world.settle()
        busy.looks()
    made = world.toolstack.does(Op.DIRECTORY, b"/local/domain/5\0").count(b"\0")
    assert made == 1 + world.store.domains.quotas["outstanding"]  # the first event is on its way


def test_replies_that_a_guest_has_not_read_stay_outstanding_when_logic_dies(world: World) -> None:
    guest = world.introduced(5)
    guest.does((Op.WRITE, b"a\0" + bytes(60)))
    before = guest.words[REQ_CONS]
    guest.sends(*[(Op.READ, b"a\0")] * 50)
    for _ in range(3):
        world.settle()
        assert world.toolstack.does(Op.WRITE, b"/tool\0") == OK  # the last record is not about it
        world.dies()
    world.settle()
    answered = (guest.words[REQ_CONS] - before) // len(guest.encoded((Op.READ, b"a\0")))
    guest.last_id -= 1
    assert answered == world.store.domains.quotas["outstanding"] + 13  # that many replies are in its ring
    guest.notices = -1
    guest.looks()
    assert [m.req_id for m in guest.take()] == list(range(guest.last_id - 49, guest.last_id + 1))


def test_an_event_that_waits_is_not_queued_again_when_logic_dies(world: World) -> None:
    deaf = world.introduced(5)
    deaf.sends((Op.WATCH, strings(b"a", b"t" * 900)))  # its first event fills the ring
    world.settle()
    for _ in range(3):
        assert world.toolstack.does(Op.WRITE, b"/local/domain/5/a\0") == OK
        world.dies()
    world.settle()
    deaf.looks()
    assert len(deaf.take()) == 3  # the reply, the first event, and one for all writes


# ---- connections that end while others are being dealt with


def test_a_ring_may_release_a_domain_whose_ring_is_to_be_looked_at_next(world: World) -> None:
    """Both were introduced in this turn, and domain 0 is quick."""
    world.guest(5)
    dom0 = Guest(world, PRIVILEGED, 2)

    def releases(domid: int, index: int, value: int) -> None:
        if domid == PRIVILEGED and index == CONNECTION:
            dom0.sends((Op.RELEASE, b"5\0"))

    world.xen.on_store = releases
    introductions = (Op.INTRODUCE, b"0\0000\0002\0"), (Op.INTRODUCE, b"5\0000\0007\0")
    world.toolstack.sock.send(world.toolstack.encoded(*introductions))
    world.settle()
    world.toolstack.looks()
    assert [m.payload for m in world.toolstack.take()] == [OK, OK]
    dom0.looks()
    assert [m.payload for m in dom0.take()] == [OK]
    assert world.toolstack.does(Op.IS_DOMAIN_INTRODUCED, b"5\0") == b"F\0"


def test_a_ring_that_ended_in_the_same_turn_has_no_requests(world: World) -> None:
    world.introduced(5)
    ring = world.core.store.domains.known.find(5).connection
    assert ring is not None
    channel = world.loop.channel(ring)
    assert world.toolstack.does(Op.RELEASE, b"5\0") == OK
    assert not world.rings.has_requests(channel)


def test_rings_that_a_dead_logic_left_half_done_may_end_each_other(world: World) -> None:
    """Domain 0's ring was being written when Logic died, and what stands in it releases another such ring's domain."""
    world.guest(5)
    dom0 = Guest(world, PRIVILEGED, 2)
    assert world.toolstack.does(Op.INTRODUCE, b"0\0000\0002\0") == OK
    dom0.looks()
    world.toolstack.sends(Op.INTRODUCE, b"5\0000\0007\0")
    world.xen.on_store = lambda domid, index, value: dies_if(domid == 5)

    def dies_if(now: bool) -> None:
        if now:
            world.xen.on_store = lambda domid, index, value: None
            dom0.sends((Op.RELEASE, b"5\0"))
            ring = world.store.domains.known.find(PRIVILEGED).connection
            assert ring is not None
            world.box.words[W_RING] = ring.slot + 1
            raise Died

    world.settle()
    world.toolstack.looks()
    assert [m.payload for m in world.toolstack.take()] == [OK]
    dom0.looks()
    assert [m.payload for m in dom0.take()] == [OK]
    assert world.toolstack.does(Op.IS_DOMAIN_INTRODUCED, b"5\0") == b"F\0"
