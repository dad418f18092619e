"""Domains come, shut down, go on, die, are released: what happens to their nodes, and who is told what, in which order.

Expected is what the newest C xenstored answers, except that the RELEASE of a domain that is another's target releases it at
once (C xenstored: at the second try, and then it may crash).  Each test's docstring names the function that decides it there.
"""

from __future__ import annotations

from tests.conformance.test_guest_basics import (
    MakeGuest,
    give_home,
    home_of,
    introduce,
    many_turns,
    newborn,
    next_events,
    not_for_c,
    own_daemon,
    replies,
)
from tests.conformance.wire import Client, Event, Op, pack, strings
from tests.conformance.xen import SimulatedXen

DEPTHS = not_for_c("special watches have no depth")
INTRODUCED, RELEASED = "@introduceDomain", "@releaseDomain"


def special(name: str, domid: int | None = None, token: str = "") -> Event:
    return Event((name if domid is None else f"{name}/{domid}").encode(), token.encode())


# ---- dying


def test_with_keep_orphans_a_dead_domains_nodes_become_domain_0s() -> None:
    """domain.c:domain_tree_remove_sub"""
    with own_daemon("-K") as (_, xen, client), newborn(xen, client) as one, newborn(xen, client) as two:
        for each in (one, two):
            give_home(client, each)
            introduce(client, each)
        one.write("a/b", b"v")
        one.set_perms("a", f"r{one.domid}", f"b{two.domid}")
        client.watch(home_of(one), "t")
        client.watch(RELEASED, "t")
        xen.destroy(one.domid)
        assert next_events(client, 1) == [special(RELEASED, token="t")]
        assert client.read(f"{home_of(one)}/a/b") == b"v"
        assert client.get_perms(f"{home_of(one)}/a") == [b"r0", f"b{two.domid}".encode()]
        assert client.get_perms(home_of(one)) == client.get_perms(f"{home_of(one)}/a/b") == [b"n0"]
        one.close()
        with newborn(xen, client, domid=one.domid) as again:
            introduce(client, again)
            assert again.outcome(Op.READ, strings("a/b")) == "EACCES"


# ---- being released


def test_a_release_takes_connection_and_nodes_at_once(guest: MakeGuest, client: Client, other: Client) -> None:
    """domain.c:do_release"""
    one = guest()
    one.write("a/b", b"v")
    one.watch("a", "own")
    client.watch("/local", "L")
    client.watch(RELEASED, "P")
    other.watch(f"{home_of(one)}/a/b", "below")
    client.forget()
    assert client.call(Op.RELEASE, strings(one.domid)) == b"OK\0"
    assert [message.op for message in client.arrived] == [Op.WATCH_EVENT, Op.WATCH_EVENT, Op.RELEASE]
    assert client.events == [Event(home_of(one).encode(), b"L"), special(RELEASED, token="P")]
    client.forget()
    assert other.events_so_far() == [Event(f"{home_of(one)}/a/b".encode(), b"below")]
    assert not client.exists(home_of(one))
    assert client.outcome(Op.RELEASE, strings(one.domid)) == "ENOENT"
    assert client.outcome(Op.RESUME, strings(one.domid)) == "ENOENT"
    given = one.field("rsp_prod")
    one.put_bytes(pack(Op.READ, b"a\0"))
    many_turns(client)
    assert one.field("rsp_prod") == given, "nobody is there"


# ---- who may see it


def test_replies_of_a_domain_are_not_kept_for_the_next_of_its_number(
    guest: MakeGuest, client: Client, xen: SimulatedXen
) -> None:
    """domain.c:destroy_domain"""
    one = guest()
    one.set_field("rsp_cons", one.field("rsp_prod") - 1024)
    one.put_bytes(pack(99) * 10)
    client.call(Op.RELEASE, strings(one.domid))
    one.page[:] = bytes(len(one.page))
    introduce(client, one)
    one.put_bytes(pack(Op.GET_DOMAIN_PATH, b"7\0", req_id=77))
    assert [reply.req_id for reply in replies(one, 1)] == [77]
