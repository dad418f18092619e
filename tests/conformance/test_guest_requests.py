"""Edge cases of requests, features and watches as guests meet them.

Expected is what the newest C xenstored answers; each test's docstring names the function that decides it there.
On rings this daemon offers one feature more than C xenstored: reconnection (bit 0).
"""

from __future__ import annotations

import pytest

from tests.conformance.test_guest_basics import (
    MakeGuest,
    differs,
    introduce,
    is_served,
    newborn,
    not_for_c,
)
from tests.conformance.wire import Client, Op, strings
from tests.conformance.xen import SimulatedXen

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


def test_a_reply_repeats_the_numbers_of_its_request(guest: MakeGuest) -> None:
    """core.c:send_reply"""
    one = guest()
    one.send(Op.READ, b"/missing\0", req_id=0xFFFFFFFF, tx=0x80000001)
    reply = one.receive()
    assert (reply.op, reply.req_id, reply.tx_id, reply.payload) == (Op.ERROR, 0xFFFFFFFF, 0x80000001, b"ENOENT\0")


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


# ---- introducing


def test_a_port_of_minus_one_is_a_port(client: Client, xen: SimulatedXen) -> None:
    """domain.c:do_introduce: the number is taken as unsigned"""
    with newborn(xen, client, port=0xFFFFFFFF) as one:
        assert client.call(Op.INTRODUCE, strings(one.domid, 1, -1)) == b"OK\0"
        assert is_served(one)


@not_for_c("takes the port of the request")
def test_a_port_in_the_page_counts_before_the_requests(client: Client, xen: SimulatedXen) -> None:
    """domain.c:introduce_domain: a domain that Xen itself has started"""
    with newborn(xen, client, port=11) as one:
        one.set_field("evtchn_port", 11)
        assert client.call(Op.INTRODUCE, strings(one.domid, 1, 7)) == b"OK\0"
        assert is_served(one)
