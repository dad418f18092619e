"""What happens to a ring: introduction, misbehaviour, reconnection.

Expected is what the newest C xenstored does, except where this daemon does better on purpose: it offers reconnection, its
positions in the ring are its own (a guest that overwrites them has an error), and an introduction revives a ring that had
one.  Each test's docstring names what decides it in C xenstored, or the document that asks for it.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.conformance.conftest import CHOICE
from tests.conformance.test_guest_basics import (
    UNKNOWN,
    MakeGuest,
    differs,
    empty_responses,
    eventually,
    fill_responses,
    give_home,
    home_of,
    introduce,
    is_introduced,
    is_served,
    many_turns,
    newborn,
    next_events,
    not_for_c,
)
from tests.conformance.wire import HEADER, PATIENCE, Client, Event, Op, pack, strings
from tests.conformance.xen import EVENT, RING, Guest, SimulatedXen

RING_ERROR, PROTOCOL_ERROR = 2, 3
INDICES = ("req_cons", "req_prod", "rsp_cons", "rsp_prod")
PROBE = pack(UNKNOWN)
BETTER = not_for_c("a ring that has had an error stays dead")


def fields(guest: Guest, *names: str) -> list[int]:
    return [guest.field(name) for name in names]


def begin_anew(guest: Guest) -> None:
    """The guest's half of a fresh connection: what it remembers of the old one is void."""
    guest.pending.clear()
    guest.forget()


def expect_error(guest: Guest, error: int) -> None:
    eventually(lambda: guest.field("error") == error, f"error {error} (it is {guest.field('error')})")


def put_request(guest: Guest) -> None:
    """Puts one more request into the ring, whatever the daemon's index says about room."""
    producer = guest.field("req_prod")
    for i, byte in enumerate(PROBE):
        guest.page[(producer + i) % RING] = byte
    guest.set_field("req_prod", producer + len(PROBE))
    guest.kick()


def is_notified(guest: Guest) -> bool:
    """Whether the daemon sends the guest an event; takes all that have come."""
    came = bool(select.select([guest.events_in], [], [], PATIENCE)[0])
    guest.events_in.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            guest.events_in.recv(EVENT.size)
    return came


# ---- introduction


def test_an_introduced_page_begins_at_zero_without_error(guest: MakeGuest) -> None:
    """domain.c:do_introduce"""
    one = guest()
    assert fields(one, *INDICES) == [0, 0, 0, 0]
    assert fields(one, "connection", "error") == [0, 0]


@differs("publishes no features")
def test_an_introduced_page_shows_the_features(guest: MakeGuest, xen: SimulatedXen, client: Client) -> None:
    """domain.c:introduce_domain; reconnection is this daemon's own"""
    assert guest().field("features") == (15 if CHOICE == "ours" else 14)
    with newborn(xen, client) as one:
        assert one.field("features") == 0
        one.set_field("features", 0xFFFF)
        introduce(client, one)
        assert one.field("features") == (15 if CHOICE == "ours" else 14)


def test_a_page_that_was_in_use_begins_anew_with_its_introduction(client: Client, xen: SimulatedXen) -> None:
    """domain.c:domain_conn_reset: as a domain started before the daemon finds it"""
    with newborn(xen, client) as one:
        give_home(client, one)
        one.page[:2048] = b"\xff" * 2048
        for name in INDICES:
            one.set_field(name, 0xFFFFFF00)
        one.set_field("connection", 1)
        introduce(client, one)
        assert fields(one, *INDICES, "connection") == [0, 0, 0, 0, 0]
        assert is_notified(one), "the guest waits for it"
        one.write("a", b"v")
        assert one.read("a") == b"v"


def test_an_introduction_of_an_introduced_domain_gives_it_a_fresh_connection(guest: MakeGuest, client: Client) -> None:
    """domain.c:do_introduce, domain_conn_reset"""
    one = guest()
    client.watch("@introduceDomain", "i")
    one.watch("a", "t")
    tx = one.start()
    one.write("a", b"v")
    one.set_field("connection", 1)
    introduce(client, one)
    begin_anew(one)
    assert fields(one, *INDICES, "connection", "error") == [0, 0, 0, 0, 0, 0]
    assert client.events_so_far() == [], "nobody is introduced"
    assert one.read("a") == b"v", "its nodes stay"
    assert one.outcome(Op.READ, strings("a"), tx=tx) == "ENOENT"
    client.write(f"{home_of(one)}/a", b"w")
    assert one.events_so_far() == [], "its watches are gone"
    one.watch("a", "t")
    assert one.start() > tx, "transactions go on counting"


@not_for_c("takes the beginning of the next message for the rest of the old one")
@pytest.mark.parametrize("size", [10, 16, 20])
def test_half_a_message_from_before_an_introduction_is_forgotten(guest: MakeGuest, client: Client, size: int) -> None:
    """domain.c:domain_conn_reset"""
    one = guest()
    one.put_bytes(pack(Op.WRITE, strings("half") + b"v")[:size])
    many_turns(client)
    introduce(client, one)
    begin_anew(one)
    assert is_served(one)
    assert client.directory(home_of(one)) == []


def test_an_introduction_may_change_the_port(guest: MakeGuest, client: Client, xen: SimulatedXen) -> None:
    """domain.c:do_introduce"""
    one = guest()
    assert is_served(one)
    with Guest(xen, one.domid, 9) as moved:
        introduce(client, moved)
        assert is_served(moved)


def test_domain_0s_ring_can_be_introduced_again(dom0_ring: Guest, client: Client, node: str) -> None:
    """domain.c:do_introduce"""
    dom0_ring.watch(node, "t")
    tx = dom0_ring.start()
    client.watch(node, "s")
    assert client.call(Op.INTRODUCE, strings(0, 1, dom0_ring.port)) == b"OK\0"
    begin_anew(dom0_ring)
    assert fields(dom0_ring, *INDICES) == [0, 0, 0, 0]
    client.write(node, b"v")
    assert client.events_so_far() == [Event(node.encode(), b"s")], "sockets keep theirs"
    assert dom0_ring.events_so_far() == []
    assert dom0_ring.commit(tx) == "ENOENT"
    assert dom0_ring.read(node) == b"v"


# ---- misbehaviour: error in the page, and the ring is left alone


def far_ahead(guest: Guest) -> None:
    guest.set_field("req_prod", guest.field("req_cons") + 1025)


def behind(guest: Guest) -> None:
    guest.set_field("req_prod", guest.field("req_cons") - 1)


def half_way_round(guest: Guest) -> None:
    guest.set_field("req_prod", guest.field("req_cons") + (1 << 31))


def more_taken_than_given(guest: Guest) -> None:
    guest.set_field("rsp_cons", guest.field("rsp_prod") + 1)
    put_request(guest)


def more_given_than_fits(guest: Guest) -> None:
    guest.set_field("rsp_cons", guest.field("rsp_prod") - 1025)
    put_request(guest)


def too_long(guest: Guest) -> None:
    guest.put_bytes(pack(Op.READ, length=4097))


def much_too_long(guest: Guest) -> None:
    guest.put_bytes(pack(Op.WRITE, length=0xFFFFFFFF))


def too_long_and_unknown(guest: Guest) -> None:
    guest.put_bytes(pack(UNKNOWN, length=5000))


def daemons_consumer_ahead(guest: Guest) -> None:
    guest.set_field("req_cons", guest.field("req_cons") + HEADER.size)
    put_request(guest)


def daemons_consumer_back(guest: Guest) -> None:
    guest.set_field("req_cons", guest.field("req_cons") - HEADER.size)
    put_request(guest)


def daemons_producer_ahead(guest: Guest) -> None:
    guest.set_field("rsp_prod", guest.field("rsp_prod") + HEADER.size)
    put_request(guest)


def daemons_producer_back(guest: Guest) -> None:
    guest.set_field("rsp_prod", guest.field("rsp_prod") - 1)
    put_request(guest)


def all_indices_moved(guest: Guest) -> None:
    for name in INDICES:
        guest.set_field(name, guest.field(name) + 100)
    put_request(guest)


OWN_POSITIONS = not_for_c("takes the positions in the page for its own")
MISBEHAVIOUR = [
    *[(act, RING_ERROR) for act in (far_ahead, behind, half_way_round, more_taken_than_given, more_given_than_fits)],
    (daemons_producer_back, RING_ERROR),
    *[(act, PROTOCOL_ERROR) for act in (too_long, much_too_long, too_long_and_unknown)],
    *[
        pytest.param(act, RING_ERROR, marks=OWN_POSITIONS)
        for act in (
            daemons_consumer_ahead,
            daemons_consumer_back,
            daemons_producer_ahead,
            all_indices_moved,
        )
    ],
]
every_misbehaviour = pytest.mark.parametrize(("misbehave", "error"), MISBEHAVIOUR)
Act = Callable[[Guest], None]


@pytest.fixture
def busy(guest: MakeGuest) -> Guest:
    """A guest with a watch, an open transaction and something behind it in both rings."""
    one = guest()
    one.watch("a", "t")
    one.write("a", b"v" * 700)
    one.start()
    one.read("a")
    one.forget()
    return one


@every_misbehaviour
def test_a_ring_that_misbehaves_has_an_error_and_is_left_alone(
    busy: Guest, guest: MakeGuest, client: Client, misbehave: Act, error: int
) -> None:
    """domain.c:ignore_connection"""
    polite = guest()
    client.watch("@releaseDomain", "r")
    misbehave(busy)
    busy.kick()
    expect_error(busy, error)
    taken, given = fields(busy, "req_cons", "rsp_prod")
    client.write(f"{home_of(busy)}/a", b"new")
    put_request(busy)
    many_turns(polite)
    assert fields(busy, "req_cons", "rsp_prod", "error") == [taken, given, error], "neither read nor written"
    assert is_introduced(client, busy.domid)
    assert client.events_so_far() == [], "it is not released"
    assert client.read(f"{home_of(busy)}/a") == b"new", "its nodes stay"
    assert is_served(polite)


@BETTER
@every_misbehaviour
def test_an_introduction_revives_a_ring_that_had_an_error(
    busy: Guest, client: Client, misbehave: Act, error: int
) -> None:
    """This daemon's own; C xenstored leaves the ring dead until the domain is released"""
    misbehave(busy)
    busy.kick()
    expect_error(busy, error)
    introduce(client, busy)
    begin_anew(busy)
    assert fields(busy, *INDICES, "error", "connection") == [0] * 6
    assert len(busy.read("a")) == 700
    assert busy.events_so_far() == []
    client.write(f"{home_of(busy)}/a", b"new")
    assert busy.events_so_far() == [], "the old watch is gone"
    assert busy.outcome(Op.READ, strings("a"), tx=1) == "ENOENT", "so is the transaction"
    busy.watch("a", "t")


@every_misbehaviour
def test_after_release_and_introduction_a_ring_is_as_good_as_new(
    busy: Guest, client: Client, misbehave: Act, error: int
) -> None:
    """domain.c:introduce_domain"""
    misbehave(busy)
    busy.kick()
    expect_error(busy, error)
    client.call(Op.RELEASE, strings(busy.domid))
    busy.page[:] = bytes(len(busy.page))
    give_home(client, busy)
    introduce(client, busy)
    begin_anew(busy)
    busy.write("a", b"v")
    assert fields(busy, "error") == [0]


def test_the_end_of_a_domain_with_a_dead_ring_is_told_once(busy: Guest, client: Client, xen: SimulatedXen) -> None:
    """domain.c: the connection's end is not the domain's; XSA-325"""
    client.watch("@releaseDomain", "r")
    far_ahead(busy)
    busy.kick()
    expect_error(busy, RING_ERROR)
    xen.destroy(busy.domid)
    assert next_events(client, 1) == [Event(b"@releaseDomain", b"r")]
    assert not is_introduced(client, busy.domid)
    assert not client.exists(home_of(busy))
    xen.virq()
    many_turns(client)
    assert client.events_so_far() == []


def test_requests_before_a_length_over_4096_are_carried_out_and_those_behind_it_are_not(
    guest: MakeGuest, client: Client
) -> None:
    """core.c:handle_input"""
    one = guest()
    before, behind_it = (pack(Op.WRITE, strings(name) + b"v") for name in ("before", "behind"))
    one.put_bytes(before + pack(Op.READ, length=4097) + behind_it)
    expect_error(one, PROTOCOL_ERROR)
    assert client.directory(home_of(one)) == [b"before"]


# ---- what a guest may do


def test_exactly_a_ring_full_of_requests_is_served(guest: MakeGuest) -> None:
    """XSA-38"""
    one = guest()
    assert one.put_bytes(PROBE * 64, timeout=0) == 1024
    for _ in range(64):
        assert one.receive().payload == b"ENOSYS\0"
    assert one.field("error") == 0


def test_a_half_header_waits_for_its_other_half(guest: MakeGuest, client: Client) -> None:
    """core.c:handle_input"""
    one = guest()
    whole = pack(Op.GET_DOMAIN_PATH, b"7\0", req_id=9)
    one.put_bytes(whole[:10])
    many_turns(client)
    one.put_bytes(whole[10:])
    assert one.reply(9).payload == b"/local/domain/7\0"


def test_the_words_that_are_only_told_to_guests_are_not_read_back(guest: MakeGuest, client: Client) -> None:
    """xs_wire.h: features and error are written by the daemon"""
    one = guest()
    one.set_field("features", 0)
    one.set_field("error", 7)
    one.set_field("evtchn_port", 55)
    assert is_served(one)
    one.write("a", b"v")
    assert client.read(f"{home_of(one)}/a") == b"v"


def test_events_without_data_and_from_strangers_do_nothing(guest: MakeGuest, xen: SimulatedXen, client: Client) -> None:
    """domain.c:handle_event"""
    one = guest()
    for event in (EVENT.pack(one.domid, one.port), EVENT.pack(9999, 7), EVENT.pack(0, 55), EVENT.pack(one.domid, 8)):
        for _ in range(20):
            xen.notify(one.events_in, event)
    assert is_served(one)
    assert is_served(client)
    assert fields(one, "error") == [0]


# ---- reconnection, by the guest itself

reconnects = pytest.mark.skipif(CHOICE != "ours", reason="reconnection is this daemon's own (C: only by INTRODUCE)")


def reconnect(guest: Guest) -> None:
    """Asks for a fresh connection and waits for it, as a guest does that boots into a page that was in use."""
    guest.set_field("connection", 1)
    guest.kick()
    eventually(lambda: guest.field("connection") == 0, "the daemon accepts the reconnection")
    begin_anew(guest)


@reconnects
def test_a_guest_that_reconnects_has_a_fresh_connection(busy: Guest, client: Client) -> None:
    """docs/misc/xenstore-ring.txt: connection"""
    client.watch("@introduceDomain", "i")
    client.watch("@releaseDomain", "r")
    busy.put_bytes(pack(Op.WRITE, strings("half") + b"v")[:20])
    is_notified(busy)
    reconnect(busy)
    assert is_notified(busy), "the guest is told"
    assert fields(busy, *INDICES, "error") == [0] * 5
    assert len(busy.read("a")) == 700, "its nodes stay"
    assert busy.outcome(Op.READ, strings("a"), tx=1) == "ENOENT", "its transaction is gone"
    client.write(f"{home_of(busy)}/a", b"new")
    assert busy.events_so_far() == [], "its watch is gone"
    assert not client.exists(f"{home_of(busy)}/half")
    assert client.events_so_far() == [], "the domain has neither come nor gone"
    assert is_introduced(client, busy.domid)


@reconnects
def test_what_was_not_yet_delivered_is_dropped_by_a_reconnection(busy: Guest, client: Client) -> None:
    """docs/misc/xenstore-ring.txt: connection"""
    fill_responses(busy)
    for i in range(20):
        client.write(f"{home_of(busy)}/a/{i}", b"v")
    busy.put_bytes(PROBE * 5)
    many_turns(client)
    reconnect(busy)
    assert is_served(busy)
    assert [message.op for message in busy.arrived] == [Op.GET_DOMAIN_PATH]


@reconnects
def test_requests_from_before_a_reconnection_are_not_carried_out_after_it(busy: Guest, client: Client) -> None:
    """docs/misc/xenstore-ring.txt: connection; the old request waits, for nobody reads the replies"""
    fill_responses(busy)
    busy.put_bytes(PROBE * 25 + pack(Op.WRITE, strings("late") + b"v"))
    eventually(lambda: busy.field("req_cons") != busy.field("req_prod"), "requests wait")
    many_turns(client)
    reconnect(busy)
    assert is_served(busy)
    assert not client.exists(f"{home_of(busy)}/late")


@reconnects
def test_a_guest_may_reconnect_again_and_again(guest: MakeGuest) -> None:
    one = guest()
    for i in range(50):
        one.watch("a", "t")
        one.start()
        one.write("a", str(i).encode())
        reconnect(one)
        assert one.read("a") == str(i).encode()


@reconnects
def test_a_connection_word_that_is_not_followed_by_an_event_changes_nothing_for_others(
    guest: MakeGuest, client: Client
) -> None:
    one, two = guest(), guest()
    one.set_field("connection", 1)
    assert is_served(two)
    assert is_served(client)
    reconnect(one)
    assert is_served(one)


@reconnects
def test_a_reply_in_the_ring_when_its_guest_reconnects_is_void(guest: MakeGuest) -> None:
    one = guest()
    one.put_bytes(PROBE)
    eventually(lambda: one.field("rsp_prod") != 0, "the reply is there")
    reconnect(one)
    assert fields(one, *INDICES) == [0] * 4
    empty_responses(one)
    assert is_served(one)
