"""Edge cases of watches and their events, as far as sockets can see them.

Expected is what the newest C xenstored answers; each test's docstring names the function that decides it there.
Cases of the edge-case table covered here: 90-102, 104, 105, 160, 162.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conformance.wire import PAYLOAD_MAX, Client, Event, Op, strings

# ---- registering


def test_the_reply_comes_before_the_first_event(client: Client, node: str) -> None:
    """watch.c:do_watch"""
    client.call(Op.WATCH, strings(node, "t"))
    client.receive()
    assert [message.op for message in client.arrived] == [Op.WATCH, Op.WATCH_EVENT]
    assert client.events == [Event(node.encode(), b"t")]


def test_the_same_path_and_token_twice_is_eexist(client: Client, node: str) -> None:
    """watch.c:do_watch"""
    client.watch(node, "t")
    assert client.outcome(Op.WATCH, strings(node, "t")) == "EEXIST"
    assert client.outcome(Op.WATCH, strings(node, "t", "1")) == "EEXIST", "whatever the depth"
    client.watch(node, "u")
    client.watch(f"{node}/x", "t")


def test_the_absolute_form_of_a_relative_watch_is_the_same_watch(client: Client, home: str) -> None:
    """watch.c:do_watch, do_unwatch"""
    client.watch("data", "t")
    assert client.outcome(Op.WATCH, strings(f"{home}/data", "t")) == "EEXIST"
    assert client.outcome(Op.UNWATCH, strings(f"{home}/data", "t")) == b"OK\0"
    assert client.outcome(Op.UNWATCH, strings("data", "t")) == "ENOENT"


def test_a_depth_that_is_no_number_is_0(client: Client, node: str) -> None:
    """watch.c:do_watch"""
    client.watch(node, "t", "x")
    client.write(f"{node}/kid", b"v")
    client.write(node, b"v")
    assert client.events_so_far() == [Event(node.encode(), b"t")]


@pytest.mark.parametrize(
    "rest", [b"", b"t", b"t\0-1\0", b"t\x001\x002\0"], ids=["no token", "open token", "negative depth", "four strings"]
)
def test_a_watch_takes_two_or_three_strings(client: Client, node: str, rest: bytes) -> None:
    """watch.c:do_watch"""
    assert client.outcome(Op.WATCH, strings(node) + rest) == "EINVAL"


def test_bytes_after_the_last_nul_are_ignored(client: Client, node: str) -> None:
    """core.c:get_strings"""
    assert client.outcome(Op.WATCH, strings(node, "t") + b"junk") == b"OK\0"
    assert client.outcome(Op.UNWATCH, strings(node, "t") + b"junk") == b"OK\0"


def test_any_special_name_can_be_watched(client: Client) -> None:
    """watch.c:do_watch"""
    client.watch("@foo", "t")
    assert client.events_so_far() == []


def test_a_missing_node_can_be_watched(client: Client, node: str) -> None:
    """watch.c:do_watch"""
    client.watch(f"{node}/missing", "t")
    client.write(f"{node}/missing/deep", b"v")
    assert client.events_so_far() == [Event(f"{node}/missing/deep".encode(), b"t")]


@pytest.mark.parametrize("token", ["", "x" * 400, "\xff\x01 |", "/a b/"])
def test_a_token_is_any_string(client: Client, node: str, token: str) -> None:
    """watch.c:do_watch"""
    client.watch(node, token)
    client.write(node, b"v")
    assert client.events_so_far() == [Event(node.encode(), token.encode("latin-1"))]


# ---- unregistering


def test_unwatching_twice_is_enoent(client: Client, node: str) -> None:
    """watch.c:do_unwatch"""
    client.watch(node, "t")
    assert client.outcome(Op.UNWATCH, strings(node, "t")) == b"OK\0"
    assert client.outcome(Op.UNWATCH, strings(node, "t")) == "ENOENT"


@pytest.mark.parametrize("rest", [b"", b"t\0x\0"], ids=["one string", "three strings"])
def test_unwatching_takes_exactly_two_strings(client: Client, node: str, rest: bytes) -> None:
    """watch.c:do_unwatch"""
    client.watch(node, "t")
    assert client.outcome(Op.UNWATCH, strings(node) + rest) == "EINVAL"


def test_an_unwatched_node_causes_no_events(client: Client, other: Client, node: str) -> None:
    """watch.c:do_unwatch"""
    client.watch(node, "t")
    client.watch(node, "u")
    client.call(Op.UNWATCH, strings(node, "t"))
    other.write(node, b"v")
    assert client.events_so_far() == [Event(node.encode(), b"u")]


def test_reset_watches_removes_every_watch_of_this_connection_only(client: Client, other: Client, node: str) -> None:
    """watch.c:do_reset_watches"""
    client.watch(node, "t")
    client.watch("@releaseDomain", "r")
    other.watch(node, "t")
    client.call(Op.RESET_WATCHES, b"\0")
    client.write(node, b"v")
    assert client.events_so_far() == []
    assert other.events_so_far() == [Event(node.encode(), b"t")]
    client.watch(node, "t")


# ---- which events, and when


def test_events_of_ones_own_change_come_before_its_reply(client: Client, node: str) -> None:
    """core.c:do_write, do_rm"""
    client.watch(node, "t")
    for op, payload in ((Op.WRITE, strings(f"{node}/x")), (Op.RM, strings(f"{node}/x"))):
        client.forget()
        client.call(op, payload)
        assert [message.op for message in client.arrived] == [Op.WATCH_EVENT, op]


def test_a_relative_watch_gives_relative_paths(client: Client, home: str) -> None:
    """watch.c:get_watch_path"""
    client.watch("data", "t")
    client.write("data/y/z", b"v")
    client.write(f"{home}/data/w", b"v")
    assert client.events_so_far() == [Event(b"data/y/z", b"t"), Event(b"data/w", b"t")]


def test_removing_a_subtree_tells_exact_watches_below_and_all_watches_above(
    client: Client, connect: Callable[[], Client], node: str
) -> None:
    """core.c:delnode_sub, watch.c:fire_watches"""
    below, root, above, absent = (connect() for _ in range(4))
    client.write(f"{node}/a/b/c", b"v")
    below.watch(f"{node}/a/b", "t")
    root.watch(f"{node}/a", "t")
    above.watch(node, "t")
    absent.watch(f"{node}/a/zz", "t")
    client.rm(f"{node}/a")
    assert below.events_so_far() == [Event(f"{node}/a/b".encode(), b"t")]
    assert root.events_so_far() == above.events_so_far() == [Event(f"{node}/a".encode(), b"t")]
    assert absent.events_so_far() == []


def test_children_are_told_before_the_removed_node(client: Client, node: str) -> None:
    """core.c:delnode_sub"""
    client.write(f"{node}/a/b", b"v")
    for path in (node, f"{node}/a/b"):
        client.watch(path, "t")
    client.rm(f"{node}/a")
    assert client.events_so_far() == [Event(f"{node}/a/b".encode(), b"t"), Event(f"{node}/a".encode(), b"t")]


def test_a_longer_name_with_the_same_beginning_is_not_below(client: Client, node: str) -> None:
    """watch.c:is_child"""
    client.watch(f"{node}/a", "t")
    client.write(f"{node}/ab", b"v")
    assert client.events_so_far() == []


def test_a_depth_limits_how_far_below_events_are_seen(client: Client, node: str) -> None:
    """watch.c:is_child"""
    levels = [node, f"{node}/k", f"{node}/k/l", f"{node}/k/l/m"]
    client.write(levels[-1], b"")
    for depth in (0, 1, 2):
        client.watch(node, f"d{depth}", str(depth))
    seen = []
    for path in levels:
        client.write(path, b"v")
        seen.append([event.token for event in client.events_so_far()])
    assert seen == [[b"d0", b"d1", b"d2"], [b"d1", b"d2"], [b"d2"], []]


def test_a_depth_counts_from_the_root_too(client: Client, node: str) -> None:
    """watch.c:is_child"""
    for depth in (0, 1, 2):
        client.watch("/", f"d{depth}", str(depth))
    seen = []
    for path in ("/", node, f"{node}/k", f"{node}/k/l"):
        client.write(path, b"")
        seen.append([event.token for event in client.events_so_far()])
    assert seen == [[b"d0", b"d1", b"d2"], [b"d1", b"d2"], [b"d2"], []]


def test_an_event_of_more_than_4096_bytes_is_not_sent(client: Client, node: str) -> None:
    """core.c:send_event; XSA-324"""
    token = "T" * (PAYLOAD_MAX - len(node) - 2 - 10)
    client.watch(node, token)
    client.write(f"{node}/{'x' * 9}", b"v")
    assert len(client.events_so_far()) == 1
    client.write(f"{node}/{'x' * 10}", b"v")
    assert client.events_so_far() == []
    assert client.read(f"{node}/{'x' * 10}") == b"v"


def test_an_event_that_is_still_waiting_is_not_queued_again(client: Client, other: Client, node: str) -> None:
    """core.c:send_event"""
    filling = 100  # of nearly 4 KiB each: more than a socket's buffer takes
    client.watch(f"{node}/fill", "T" * 3900)
    client.watch(f"{node}/x", "t")
    client.watch(f"{node}/y", "t")
    for i in range(filling):
        other.write(f"{node}/fill/{i}", b"")
    for i in range(7):
        other.write(f"{node}/{'xy'[i % 2]}", str(i).encode())
    events = client.events_so_far()
    assert [event.path for event in events[:filling]] == [f"{node}/fill/{i}".encode() for i in range(filling)]
    assert sorted(event.path for event in events[filling:]) == [f"{node}/x".encode(), f"{node}/y".encode()]


def test_ten_thousand_changes_leave_a_reader_that_sleeps_few_events(client: Client, other: Client, node: str) -> None:
    """core.c:send_event; XSA-349"""
    client.watch(node, "T" * 3000)
    for _ in range(100):
        replies = other.pipeline([(Op.WRITE, strings(node) + b"v")] * 100)
        assert all(reply.op == Op.WRITE for reply in replies)
    events = client.events_so_far()
    assert set(events) == {Event(node.encode(), b"T" * 3000)}
    assert len(events) < 500
