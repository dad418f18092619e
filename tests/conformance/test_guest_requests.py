"""Edge cases of requests, features and watches as guests meet them.

Expected is what the newest C xenstored answers; each test's docstring names the function that decides it there.
On rings this daemon offers one feature more than C xenstored: reconnection (bit 0).
Cases of the edge-case table covered here: 31, 33-36, 41-43, 45-47, 54, 58, 59, 91, 96, 97, 99, 100, 103, 105, 148, 160.
"""

from __future__ import annotations

import pytest

from tests.conformance.conftest import CHOICE
from tests.conformance.test_guest_basics import (
    MakeGuest,
    differs,
    give_home,
    home_of,
    introduce,
    is_introduced,
    is_served,
    newborn,
    not_for_c,
)
from tests.conformance.wire import PAYLOAD_MAX, Client, Event, Op, strings
from tests.conformance.xen import Guest, SimulatedXen

RING_FEATURES = 15
"""Reconnection 1, error 2, depth of watches 4, any domain 8."""
NOT_IN_4_17 = {Op.GET_FEATURE, Op.SET_FEATURE, Op.GET_QUOTA, Op.SET_QUOTA}
NEWER = differs("ENOSYS")
FOR_DOMAIN_0 = [
    pytest.param(op, marks=[NEWER] if op in NOT_IN_4_17 else [], id=op.name)
    for op in (
        Op.CONTROL,
        Op.INTRODUCE,
        Op.RELEASE,
        Op.IS_DOMAIN_INTRODUCED,
        Op.RESUME,
        Op.SET_TARGET,
        Op.SET_FEATURE,
        Op.GET_QUOTA,
        Op.SET_QUOTA,
    )
]


# ---- which operations a guest has


@pytest.mark.parametrize("tx", [0, 99], ids=["no transaction", "unknown transaction"])
@pytest.mark.parametrize("op", FOR_DOMAIN_0)
def test_what_is_for_domain_0_is_eacces_for_guests_whatever_is_asked(guest: MakeGuest, op: Op, tx: int) -> None:
    """core.c:process_message: the privilege is asked for before the transaction and before the payload"""
    one = guest()
    for payload in (b"", b"\0", b"check\0", strings(one.domid, 1, 7), strings(one.domid, "nodes", 0), b"\xff" * 100):
        assert one.outcome(op, payload, tx=tx) == "EACCES"
    assert is_served(one)


def test_a_guest_that_is_somebodys_stub_domain_has_no_privilege_of_it(guest: MakeGuest, client: Client) -> None:
    """core.h:domain_is_unprivileged"""
    stub = guest()
    assert client.call(Op.SET_TARGET, strings(stub.domid, 0)) == b"OK\0"
    assert stub.read("/tool") == b"", "the rights of a target are had"
    assert stub.outcome(Op.IS_DOMAIN_INTRODUCED, b"0\0") == "EACCES"
    assert stub.outcome(Op.INTRODUCE, b"x") == "EACCES"


@pytest.mark.parametrize("tx", [0, 99], ids=["no transaction", "unknown transaction"])
@pytest.mark.parametrize("op", [15, 16, 20, 27, 28, 64, 128, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF])
def test_an_unknown_operation_is_enosys(guest: MakeGuest, op: int, tx: int) -> None:
    """core.c:process_message: asked before everything else"""
    one = guest()
    assert one.outcome(op, b"/\0", tx=tx) == "ENOSYS"
    assert one.outcome(op, b"x" * PAYLOAD_MAX, tx=tx) == "ENOSYS"
    assert is_served(one)


@pytest.mark.parametrize(
    "op",
    [
        *(Op.READ, Op.WRITE, Op.MKDIR, Op.RM, Op.DIRECTORY, Op.GET_PERMS, Op.SET_PERMS, Op.DIRECTORY_PART),
        *(Op.TRANSACTION_START, Op.TRANSACTION_END, Op.GET_DOMAIN_PATH, Op.RESET_WATCHES),
        pytest.param(Op.GET_FEATURE, marks=NEWER),
    ],
)
def test_an_unknown_transaction_is_enoent(guest: MakeGuest, op: Op) -> None:
    """core.c:transaction_lookup: asked before the payload"""
    one = guest()
    for payload in (b"", b"T\0", b"1\0"):
        assert one.outcome(op, payload, tx=4242) == "ENOENT"


def test_watches_take_no_notice_of_transactions(guest: MakeGuest) -> None:
    """core.c: wire_funcs"""
    one = guest()
    reply = one.ask(Op.WATCH, strings("a", "t"), tx=4242)
    assert (reply.op, reply.tx_id, reply.payload) == (Op.WATCH, 4242, b"OK\0")
    event = one.receive()
    assert (event.op, event.req_id, event.tx_id) == (Op.WATCH_EVENT, 0, 0)
    assert one.ask(Op.UNWATCH, strings("a", "t"), tx=4242).payload == b"OK\0"


def test_a_reply_repeats_the_numbers_of_its_request(guest: MakeGuest) -> None:
    """core.c:send_reply"""
    one = guest()
    one.send(Op.READ, b"/missing\0", req_id=0xFFFFFFFF, tx=0x80000001)
    reply = one.receive()
    assert (reply.op, reply.req_id, reply.tx_id, reply.payload) == (Op.ERROR, 0xFFFFFFFF, 0x80000001, b"ENOENT\0")


def test_reset_watches_in_a_transaction_ends_it(guest: MakeGuest) -> None:
    """watch.c:do_reset_watches; XSA-484"""
    one = guest()
    one.watch("a", "t")
    tx = one.start()
    one.write("a", b"v", tx=tx)
    assert one.outcome(Op.RESET_WATCHES, b"\0", tx=tx) == b"OK\0"
    assert one.commit(tx) == "ENOENT"
    one.write("a", b"v")
    assert one.events_so_far() == []


@differs("answers some malformed requests with the error of an earlier one")
def test_an_error_is_that_of_its_own_request(guest: MakeGuest) -> None:
    """core.c:onearg leaves errno as it was; a fault, not a rule"""
    one = guest()
    for op in (Op.READ, Op.MKDIR, Op.RM, Op.DIRECTORY, Op.GET_PERMS):
        for earlier, name in ((strings("v") + b"x" * 3000, "ENOSPC"), (strings("/no") + b"x", "EACCES")):
            assert one.outcome(Op.WRITE, earlier) == name
            assert one.outcome(op, b"no NUL") == "EINVAL"


# ---- features


@differs("has no features")
def test_a_guest_is_told_the_features_of_its_own_ring_only(guest: MakeGuest, client: Client) -> None:
    """domain.c:do_get_feature"""
    one = guest()
    assert one.call(Op.GET_FEATURE) == strings(RING_FEATURES)
    assert one.field("features") == RING_FEATURES
    for payload in (strings(one.domid), strings(0), b"\0"):
        assert one.outcome(Op.GET_FEATURE, payload) == "EACCES"
    assert client.call(Op.GET_FEATURE, strings(one.domid)) == strings(RING_FEATURES)


@differs("has no features")
@pytest.mark.parametrize(
    ("asked", "features"), [(f"{n}", n) for n in range(16)] + [("abc", 0), ("", 0), ("6x", 6), (" 9", 9)]
)
def test_features_can_be_chosen_before_the_introduction(
    client: Client, xen: SimulatedXen, asked: str, features: int
) -> None:
    """domain.c:do_set_feature"""
    with newborn(xen, client) as one:
        assert client.call(Op.SET_FEATURE, strings(one.domid, asked)) == b"OK\0"
        assert client.call(Op.GET_FEATURE, strings(one.domid)) == strings(features)
        introduce(client, one)
        assert one.field("features") == features
        assert one.call(Op.GET_FEATURE) == strings(features)


@differs("has no features")
@pytest.mark.parametrize("asked", ["16", "31", "-1", "4294967295", "256"])
def test_features_that_do_not_exist_are_einval(client: Client, xen: SimulatedXen, asked: str) -> None:
    """domain.c:do_set_feature"""
    with newborn(xen, client) as one:
        assert client.outcome(Op.SET_FEATURE, strings(one.domid, asked)) == "EINVAL"
        assert client.call(Op.GET_FEATURE, strings(one.domid)) == strings(RING_FEATURES)


@differs("has no features")
def test_features_of_an_introduced_domain_cannot_be_chosen(guest: MakeGuest, client: Client) -> None:
    """domain.c:do_set_feature"""
    assert client.outcome(Op.SET_FEATURE, strings(guest().domid, 4)) == "EBUSY"


@not_for_c("has no features")
def test_without_the_feature_a_watch_has_no_depth(client: Client, xen: SimulatedXen) -> None:
    """watch.c:do_watch"""
    with newborn(xen, client) as one:
        client.call(Op.SET_FEATURE, strings(one.domid, RING_FEATURES - 4))
        introduce(client, one)
        assert one.outcome(Op.WATCH, strings("x", "t", 1)) == "EINVAL"
        one.watch("x", "t")


# ---- introducing


def test_a_port_of_minus_one_is_a_port(client: Client, xen: SimulatedXen) -> None:
    """domain.c:do_introduce: the number is taken as unsigned"""
    with newborn(xen, client, port=0xFFFFFFFF) as one:
        assert client.call(Op.INTRODUCE, strings(one.domid, 1, -1)) == b"OK\0"
        assert is_served(one)


@pytest.mark.parametrize("payload", ["1", "1\x000", "1\0x", "1\0"])
def test_an_introduction_without_a_port_is_einval(client: Client, xen: SimulatedXen, payload: str) -> None:
    """domain.c:do_introduce"""
    with newborn(xen, client) as one:
        assert client.outcome(Op.INTRODUCE, strings(one.domid, payload)) == "EINVAL"
        assert not is_introduced(client, one.domid)


def test_a_domain_without_a_page_is_not_introduced(client: Client, xen: SimulatedXen) -> None:
    """domain.c:introduce_domain; the error's name is the hypervisor's matter"""
    with newborn(xen, client) as one:
        xen.ring(one.domid).rename(xen.path / "hidden")
        assert isinstance(client.outcome(Op.INTRODUCE, strings(one.domid, 1, one.port)), str)
        assert not is_introduced(client, one.domid)
        (xen.path / "hidden").rename(xen.ring(one.domid))
        introduce(client, one)
        assert is_served(one)


def test_an_introduction_may_have_more_strings(client: Client, xen: SimulatedXen) -> None:
    """domain.c:do_introduce: the frame's number is not looked at"""
    with newborn(xen, client) as one:
        assert client.call(Op.INTRODUCE, strings(one.domid, "zz", one.port, "extra") + b"junk") == b"OK\0"
        assert is_served(one)


@not_for_c("takes the port of the request")
def test_a_port_in_the_page_counts_before_the_requests(client: Client, xen: SimulatedXen) -> None:
    """domain.c:introduce_domain: a domain that Xen itself has started"""
    with newborn(xen, client, port=11) as one:
        one.set_field("evtchn_port", 11)
        assert client.call(Op.INTRODUCE, strings(one.domid, 1, 7)) == b"OK\0"
        assert is_served(one)


# ---- watches


def test_a_guests_relative_watch_and_its_absolute_form_are_one(guest: MakeGuest) -> None:
    """watch.c:do_watch, do_unwatch"""
    one = guest()
    one.watch("data", "t")
    assert one.outcome(Op.WATCH, strings(f"{home_of(one)}/data", "t")) == "EEXIST"
    assert one.outcome(Op.UNWATCH, strings(f"{home_of(one)}/data", "t")) == b"OK\0"
    assert one.outcome(Op.UNWATCH, strings("data", "t")) == "ENOENT"


def test_a_guests_relative_watch_gives_relative_paths(guest: MakeGuest, client: Client) -> None:
    """watch.c:get_watch_path"""
    one = guest()
    one.watch("data", "relative")
    one.watch(f"{home_of(one)}/data", "absolute")
    client.write(f"{home_of(one)}/data/y/z", b"v")
    assert one.events_so_far() == [
        Event(b"data/y/z", b"relative"),
        Event(f"{home_of(one)}/data/y/z".encode(), b"absolute"),
    ]


@pytest.mark.parametrize("path", ["/missing", "/tool", "@foo", "@introduceDomain", "missing"])
def test_anything_can_be_watched_and_has_a_first_event(guest: MakeGuest, path: str) -> None:
    """watch.c:do_watch"""
    guest().watch(path, "t")


def test_events_of_a_guests_own_change_come_before_its_reply(guest: MakeGuest) -> None:
    """core.c:do_write, do_rm"""
    one = guest()
    one.watch("a", "t")
    for op in (Op.WRITE, Op.SET_PERMS, Op.RM):
        one.forget()
        one.call(op, strings("a") + (strings(f"n{one.domid}") if op == Op.SET_PERMS else b""))
        assert [message.op for message in one.arrived] == [Op.WATCH_EVENT, op]


def test_a_guest_sees_changes_of_what_it_may_read_and_of_its_children(
    guest: MakeGuest, client: Client, node: str
) -> None:
    """watch.c:watch_permitted: the node or its direct parent"""
    one = guest()
    client.write(f"{node}/seen/hidden/deep", b"v")
    for path in (node, f"{node}/seen/hidden", f"{node}/seen/hidden/deep"):
        client.set_perms(path, "n0")
    client.set_perms(f"{node}/seen", "n0", f"r{one.domid}")
    one.watch(node, "t")
    for path in (node, f"{node}/seen", f"{node}/seen/hidden", f"{node}/seen/hidden/deep"):
        client.write(path, b"new")
    client.write(f"{node}/other", b"v")
    assert [event.path.decode() for event in one.events_so_far()] == [f"{node}/seen", f"{node}/seen/hidden"]


def test_taking_the_right_to_read_away_is_the_last_event(guest: MakeGuest, client: Client, node: str) -> None:
    """watch.c:watch_permitted"""
    one = guest()
    client.set_perms(node, "n0", f"r{one.domid}")
    one.watch(node, "t")
    client.set_perms(node, "n0")
    assert one.events_so_far() == [Event(node.encode(), b"t")]
    client.write(node, b"v")
    client.set_perms(node, "n0", "r9")
    assert one.events_so_far() == []
    client.set_perms(node, "n0", f"r{one.domid}")
    client.write(node, b"v")
    assert one.events_so_far() == [Event(node.encode(), b"t")] * 2


def test_the_depth_of_a_guests_watch(guest: MakeGuest, client: Client) -> None:
    """watch.c:is_child"""
    if CHOICE == "c":
        pytest.skip("C xenstored 4.17: watches have no depth")
    one = guest()
    client.write(f"{home_of(one)}/k/l/m", b"")
    for path in (home_of(one), "k"):
        for depth in (0, 1):
            one.watch(path, f"{path[-1]}{depth}", str(depth))
    seen = []
    for path in ("", "/k", "/k/l", "/k/l/m"):
        client.write(home_of(one) + path, b"v")
        seen.append([event.token.decode() for event in one.events_so_far()])
    own = home_of(one)[-1]
    assert seen == [[f"{own}0", f"{own}1"], [f"{own}1", "k0", "k1"], ["k1"], []]


def test_an_event_for_a_guest_of_more_than_4096_bytes_is_not_sent(guest: MakeGuest, client: Client) -> None:
    """core.c:send_event; XSA-324"""
    one = guest()
    token = "T" * (PAYLOAD_MAX - len("big/") - 2 - 10)
    one.watch("big", token)
    client.write(f"{home_of(one)}/big/{'x' * 10}", b"v")
    client.write(f"{home_of(one)}/big/{'y' * 11}", b"v")
    assert one.events_so_far() == [Event(b"big/" + b"x" * 10, token.encode())]


@pytest.mark.parametrize("who", ["guest", "domain 0"])
def test_a_watch_on_a_domains_home_sees_it_go(guest: MakeGuest, client: Client, dom0_ring: Guest, who: str) -> None:
    """core.c:delnode_sub"""
    one = guest()
    watcher = one if who == "guest" else dom0_ring
    watcher.watch(home_of(one), "t")
    client.rm(home_of(one))
    assert watcher.events_so_far() == [Event(home_of(one).encode(), b"t")]
    give_home(client, one)
    watcher.call(Op.RESET_WATCHES, b"\0")
