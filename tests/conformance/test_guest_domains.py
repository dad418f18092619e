"""Domains come, shut down, go on, die, are released: what happens to their nodes, and who is told what, in which order.

Expected is what the newest C xenstored answers, except that the RELEASE of a domain that is another's target releases it at
once (C xenstored: at the second try, and then it may crash).  Each test's docstring names the function that decides it there.
Cases of the edge-case table covered here: 61, 64, 65, 89, 106-110, 155, 156, 161.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.test_guest_basics import (
    MakeGuest,
    account,
    differs,
    eventually,
    give_home,
    home_of,
    introduce,
    is_introduced,
    is_served,
    many_turns,
    newborn,
    next_events,
    not_for_c,
    own_daemon,
    replies,
)
from tests.conformance.wire import Client, Event, Op, pack, strings
from tests.conformance.xen import Guest, SimulatedXen

DEPTHS = not_for_c("special watches have no depth")
INTRODUCED, RELEASED = "@introduceDomain", "@releaseDomain"


def special(name: str, domid: int | None = None, token: str = "") -> Event:
    return Event((name if domid is None else f"{name}/{domid}").encode(), token.encode())


def watch_in_every_way(client: Client, name: str, domid: int) -> None:
    client.watch(name, "plain")
    client.watch(name, "deep", "1")
    client.watch(name, "flat", "0")
    client.watch(f"{name}/{domid}", "own")
    client.watch(f"{name}/{domid + 1}", "neighbour")


# ---- coming


def test_an_introduction_is_told_once(guest: MakeGuest, client: Client, xen: SimulatedXen) -> None:
    """domain.c:do_introduce"""
    client.watch(INTRODUCED, "t")
    with newborn(xen, client) as one:
        assert not is_introduced(client, one.domid)
        introduce(client, one)
        assert client.events_so_far() == [special(INTRODUCED, token="t")]
        assert is_introduced(client, one.domid)
        introduce(client, one)
        assert client.events_so_far() == []


@DEPTHS
def test_who_watches_introductions_in_depth_is_told_the_domid(client: Client, xen: SimulatedXen) -> None:
    """domain.c:fire_special_watches"""
    with newborn(xen, client) as one:
        watch_in_every_way(client, INTRODUCED, one.domid)
        introduce(client, one)
        assert client.events_so_far() == [
            special(INTRODUCED, token="plain"),
            special(INTRODUCED, one.domid, "deep"),
            special(INTRODUCED, one.domid, "own"),
        ]


def test_an_event_of_an_introduction_comes_before_its_reply(client: Client, xen: SimulatedXen) -> None:
    """domain.c:do_introduce"""
    with newborn(xen, client) as one:
        client.watch(INTRODUCED, "t")
        client.forget()
        introduce(client, one)
        assert [message.op for message in client.arrived] == [Op.WATCH_EVENT, Op.INTRODUCE]


# ---- shutting down


@pytest.mark.parametrize("state", ["shutdown", "crashed"])
def test_a_shutdown_is_told_once_until_the_domain_is_resumed(
    guest: MakeGuest, client: Client, other: Client, xen: SimulatedXen, state: str
) -> None:
    """domain.c:do_check_domain, do_resume"""
    one, two = guest(), guest()
    client.watch(RELEASED, "t")
    xen.set_state(one.domid, state)
    assert next_events(client, 1) == [special(RELEASED, token="t")]
    assert is_served(one), "it may still talk"
    assert is_introduced(client, one.domid)
    xen.virq()
    many_turns(other)
    xen.set_state(two.domid, state)
    assert next_events(client, 1) == [special(RELEASED, token="t")], "of the second domain"
    many_turns(other)
    assert client.events_so_far() == [], "and of no other"
    assert client.call(Op.RESUME, strings(one.domid)) == b"OK\0"
    assert client.events_so_far() == []
    xen.virq()
    assert next_events(client, 1) == [special(RELEASED, token="t")], "still shut down, after a RESUME"


@DEPTHS
def test_who_watches_releases_in_depth_is_told_who_shut_down(
    guest: MakeGuest, client: Client, xen: SimulatedXen
) -> None:
    """domain.c:fire_special_watches: the plain event comes last, once for all"""
    one = guest()
    watch_in_every_way(client, RELEASED, one.domid)
    xen.set_state(one.domid, "shutdown")
    assert next_events(client, 3) == [
        special(RELEASED, one.domid, "deep"),
        special(RELEASED, one.domid, "own"),
        special(RELEASED, token="plain"),
    ]
    xen.virq()
    xen.destroy(one.domid)
    assert next_events(client, 3) == [
        special(RELEASED, token="plain"),
        special(RELEASED, one.domid, "deep"),
        special(RELEASED, one.domid, "own"),
    ], "its death is told as any other's"
    assert client.events_so_far() == []


@DEPTHS
def test_a_domain_resumed_and_running_again_can_shut_down_again(
    guest: MakeGuest, client: Client, xen: SimulatedXen
) -> None:
    """domain.c:do_resume"""
    one = guest()
    client.watch(f"{RELEASED}/{one.domid}", "t")
    for _ in range(3):
        xen.set_state(one.domid, "shutdown")
        assert next_events(client, 1) == [special(RELEASED, one.domid, "t")]
        client.call(Op.RESUME, strings(one.domid))
        xen.set_state(one.domid, "")
        many_turns(client)
        assert client.events_so_far() == []


@not_for_c("takes a dying domain for a dead one")
def test_a_dying_domain_is_not_dead(guest: MakeGuest, client: Client, xen: SimulatedXen) -> None:
    """domain.c:do_check_domain"""
    one, two = guest(), guest()
    one.write("a", b"v")
    client.watch(RELEASED, "t")
    xen.set_state(one.domid, "dying")
    many_turns(client)
    assert client.events_so_far() == []
    xen.destroy(two.domid)
    assert next_events(client, 1) == [special(RELEASED, token="t")], "of the second domain"
    assert is_introduced(client, one.domid)
    assert client.read(f"{home_of(one)}/a") == b"v"
    xen.destroy(one.domid)
    assert next_events(client, 1) == [special(RELEASED, token="t")]
    assert not client.exists(home_of(one))


# ---- dying


def test_the_death_of_a_domain_takes_its_nodes_and_then_is_told(
    guest: MakeGuest, client: Client, xen: SimulatedXen, node: str
) -> None:
    """domain.c:domain_tree_remove"""
    one, two = guest(), guest()
    client.set_perms(node, "n0", f"b{one.domid}", f"b{two.domid}")
    one.write(f"{node}/mine/deep", b"v")
    client.set_perms(f"{node}/mine", f"n{one.domid}", f"b{two.domid}")
    two.write(f"{node}/mine/his", b"v")
    two.write(f"{node}/other", b"v")
    for path in (node, f"{node}/mine/deep", f"{node}/mine/his", f"{node}/other", home_of(one), RELEASED):
        client.watch(path, "t")
    xen.destroy(one.domid)
    events = next_events(client, 5)
    assert [event.path.decode() for event in events[-1:]] == [RELEASED]
    assert sorted(event.path.decode() for event in events[:-1]) == sorted(
        [f"{node}/mine/deep", f"{node}/mine/his", f"{node}/mine", home_of(one)]
    )
    paths = [event.path.decode() for event in events]
    assert paths.index(f"{node}/mine/deep") < paths.index(f"{node}/mine/his") < paths.index(f"{node}/mine")
    assert client.directory(node) == [b"other"]
    assert client.events_so_far() == []
    assert not is_introduced(client, one.domid)
    assert account(client, two.domid, "nodes").used == 2, "its home and the other node: what went with mine is off"


@differs("leaves the entries, and takes no notice of them")
def test_the_death_of_a_domain_strips_it_from_all_lists_without_a_word(
    guest: MakeGuest, client: Client, xen: SimulatedXen, node: str
) -> None:
    """domain.c:domain_tree_remove_sub"""
    one, two = guest(), guest()
    lists = {
        "/a": ["n0", f"b{one.domid}", f"r{two.domid}"],
        "/b": [f"b{two.domid}", f"b{one.domid}"],
        "/b/c": ["n0", f"r{one.domid}", f"w{one.domid}"],
    }
    for path, perms in lists.items():
        client.write(node + path, b"v")
        client.set_perms(node + path, *perms)
    client.watch(node, "t")
    client.watch(RELEASED, "t")
    xen.destroy(one.domid)
    assert next_events(client, 1) == [special(RELEASED, token="t")]
    for path, perms in lists.items():
        left = [perm.encode() for perm in perms if perm[1:] != str(one.domid)]
        assert client.get_perms(node + path) == left
    assert client.events_so_far() == []


def test_a_transaction_that_read_a_dead_domains_node_is_told_to_try_again(
    guest: MakeGuest, client: Client, other: Client, xen: SimulatedXen, node: str
) -> None:
    """transaction.c:finalize_transaction"""
    one = guest()
    tx = client.start()
    client.read(home_of(one), tx=tx)
    client.write(f"{node}/x", b"v", tx=tx)
    xen.destroy(one.domid)
    eventually(lambda: not is_introduced(other, one.domid), "the death is noticed")
    assert client.commit(tx) == "EAGAIN"
    assert client.directory(node) == []


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


@DEPTHS
def test_a_release_is_told_after_the_nodes_and_with_the_domid_last(guest: MakeGuest, client: Client) -> None:
    """domain.c:destroy_domain"""
    one = guest()
    client.watch("/local", "L")
    client.watch(RELEASED, "D", "1")
    client.watch(RELEASED, "P")
    client.call(Op.RELEASE, strings(one.domid))
    assert client.events_so_far() == [
        Event(home_of(one).encode(), b"L"),
        special(RELEASED, token="P"),
        special(RELEASED, one.domid, "D"),
    ]


def test_a_released_domain_can_be_introduced_again(guest: MakeGuest, client: Client) -> None:
    """domain.c:do_introduce"""
    one = guest()
    one.watch("a", "t")
    one.write("a", b"old")
    one.forget()
    client.call(Op.RELEASE, strings(one.domid))
    client.watch(INTRODUCED, "t")
    introduce(client, one)
    assert client.events_so_far() == [special(INTRODUCED, token="t")]
    assert one.outcome(Op.READ, strings("a")) == "EACCES"
    give_home(client, one)
    one.write("a", b"new")
    assert one.events_so_far() == [], "its watches did not come back"


def test_domain_0_can_release_a_domain_through_its_ring(guest: MakeGuest, client: Client, dom0_ring: Guest) -> None:
    """domain.c:do_release"""
    one = guest()
    dom0_ring.watch(RELEASED, "t")
    assert dom0_ring.call(Op.RELEASE, strings(one.domid)) == b"OK\0"
    assert dom0_ring.events_so_far() == [special(RELEASED, token="t")]
    assert not is_introduced(client, one.domid)


# ---- targets


def test_a_target_lends_its_rights_and_nothing_else(guest: MakeGuest, client: Client, node: str) -> None:
    """core.c:perm_for_conn; domain.c:do_set_target"""
    stub, target = guest(), guest()
    for name, perms in (("own", [f"n{target.domid}"]), ("acl", ["n0", f"b{target.domid}"])):
        client.write(f"{node}/{name}", b"v")
        client.set_perms(f"{node}/{name}", *perms)
        assert stub.outcome(Op.READ, strings(f"{node}/{name}")) == "EACCES"
    client.call(Op.SET_TARGET, strings(stub.domid, target.domid))
    assert stub.read(f"{node}/own") == stub.read(f"{node}/acl") == b"v"
    stub.write(f"{node}/acl", b"w")
    stub.set_perms(f"{node}/own", f"n{target.domid}", "r0")
    assert stub.outcome(Op.SET_PERMS, strings(f"{node}/own", f"n{stub.domid}")) == "EPERM"
    assert target.outcome(Op.READ, strings(home_of(stub))) == "EACCES", "not the other way round"
    assert stub.outcome(Op.READ, strings("rel")) == "ENOENT", "relative paths stay its own"


def test_the_first_entry_for_the_domain_or_its_target_counts(guest: MakeGuest, client: Client, node: str) -> None:
    """core.c:perm_for_conn"""
    stub, target = guest(), guest()
    client.call(Op.SET_TARGET, strings(stub.domid, target.domid))
    for perms, may_read in (
        (["n0", f"n{stub.domid}", f"r{target.domid}"], False),
        (["n0", f"r{target.domid}", f"n{stub.domid}"], True),
        ([f"n{target.domid}", f"n{stub.domid}"], True),
        (["r0", f"n{target.domid}"], False),
    ):
        client.set_perms(node, *perms)
        assert isinstance(stub.outcome(Op.READ, strings(node)), bytes) == may_read, perms


def test_a_domain_has_one_target_at_a_time(guest: MakeGuest, client: Client) -> None:
    """domain.c:do_set_target"""
    stub, first, second = guest(), guest(), guest()
    client.call(Op.SET_TARGET, strings(stub.domid, first.domid))
    assert stub.read(home_of(first)) == b""
    client.call(Op.SET_TARGET, strings(stub.domid, second.domid))
    assert stub.outcome(Op.READ, strings(home_of(first))) == "EACCES"
    assert stub.read(home_of(second)) == stub.read(home_of(stub)) == b""


@pytest.mark.parametrize("gone", ["stub", "target"])
def test_a_target_must_be_introduced_as_must_who_has_it(guest: MakeGuest, client: Client, gone: str) -> None:
    """domain.c:do_set_target"""
    stub, target = guest(), guest()
    client.call(Op.RELEASE, strings((stub if gone == "stub" else target).domid))
    assert client.outcome(Op.SET_TARGET, strings(stub.domid, target.domid)) == "ENOENT"


@not_for_c("releases a target at the second try, and may not survive it")
def test_a_domain_that_is_a_target_is_released_at_once_and_is_no_target_any_more(
    guest: MakeGuest, client: Client, node: str
) -> None:
    """This daemon's own"""
    stub, target = guest(), guest()
    client.call(Op.SET_TARGET, strings(stub.domid, target.domid))
    client.watch(RELEASED, "t")
    assert client.call(Op.RELEASE, strings(target.domid)) == b"OK\0"
    assert client.events_so_far() == [special(RELEASED, token="t")]
    assert not is_introduced(client, target.domid)
    assert client.outcome(Op.RELEASE, strings(target.domid)) == "ENOENT"
    introduce(client, target)
    client.set_perms(node, "n0", f"r{target.domid}")
    assert target.read(node) == b""
    assert stub.outcome(Op.READ, strings(node)) == "EACCES", "it lends nothing any more"


@not_for_c("may not survive the death of a target")
def test_a_domain_that_takes_a_dead_targets_domid_lends_nothing(
    guest: MakeGuest, client: Client, xen: SimulatedXen, node: str
) -> None:
    """This daemon's own; the target is that domain, not whoever has its number"""
    stub = guest()
    with newborn(xen, client) as target:
        introduce(client, target)
        client.call(Op.SET_TARGET, strings(stub.domid, target.domid))
        xen.destroy(target.domid)
        eventually(lambda: not is_introduced(client, target.domid), "the death is noticed")
        target.close()
        with newborn(xen, client, domid=target.domid) as again:
            introduce(client, again)
            client.set_perms(node, "n0", f"r{again.domid}")
            assert again.read(node) == b""
            assert stub.outcome(Op.READ, strings(node)) == "EACCES"


# ---- who may see it


@pytest.fixture
def special_perms(client: Client) -> Iterator[None]:
    """Puts the permissions of the special nodes back afterwards; 4.17 cannot show them."""
    yield
    client.call(Op.SET_PERMS, strings(INTRODUCED, "n0"))


def test_a_guest_is_not_told_of_introductions_unless_it_may_be(
    guest: MakeGuest, client: Client, xen: SimulatedXen, special_perms: None
) -> None:
    """watch.c:watch_permitted; XSA-115"""
    one, two = guest(), guest()
    for each in (one, two):
        each.watch(INTRODUCED, "t")
    guest()
    assert one.events_so_far() == two.events_so_far() == []
    client.set_perms(INTRODUCED, "n0", f"r{one.domid}")
    for each in (one, two):
        each.events_so_far()  # 4.17 tells nobody of the change itself
    guest()
    assert one.events_so_far() == [special(INTRODUCED, token="t")]
    assert two.events_so_far() == []


@differs("tells nobody")
def test_who_watches_introductions_is_told_of_a_change_of_their_permissions(
    guest: MakeGuest, client: Client, special_perms: None
) -> None:
    """core.c:do_set_perms"""
    one = guest()
    one.watch(INTRODUCED, "t")
    client.set_perms(INTRODUCED, "n0", f"r{one.domid}")
    assert one.get_perms(INTRODUCED) == [b"n0", f"r{one.domid}".encode()]
    assert one.events_so_far() == [special(INTRODUCED, token="t")]
    client.set_perms(INTRODUCED, "n0")
    assert one.events_so_far() == [special(INTRODUCED, token="t")], "for the last time"
    guest()
    assert one.events_so_far() == []


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
