"""The core in one's own process: bytes in, bytes and effects out, and nothing else."""

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.wire import Message
from recovery_box.items import ItemError
from tests.model.harness import assert_equal, messages
from tests.model.support import examples
from xenstore_logic.embedded import Embedded, Turn
from xenstore_state import effects

READ, WATCH, START, WRITE, EVENT = 2, 4, 6, 11, 15


def test_the_example_of_its_documentation() -> None:
    store = Embedded()
    toolstack, guest = store.connect(), store.connect(domid=5)
    turn = store.feed(toolstack, Message(11, 1, 0, b"/hello\0world").encode())
    assert messages(turn.output[toolstack]) == [(11, 1, 0, b"OK\0")]
    assert turn.effects == [(toolstack, (effects.WRITE, (0, b"/hello", b"world"), ""))]
    assert not turn.closed
    turn = store.feed(guest, Message(2, 1, 0, b"/hello\0").encode())
    assert messages(turn.output[guest]) == [(16, 1, 0, b"EACCES\0")]


REQUESTS = st.lists(
    st.builds(
        Message,
        st.sampled_from([1, 2, 3, 4, 5, 6, 7, 11, 11, 12, 13, 14, 21, 22, 99]),
        st.integers(0, 2**32 - 1),
        st.integers(0, 2),
        st.sampled_from([b"", b"/a\0", b"/a/b\0", b"/a\0t\0", b"/\0all\0", b"T\0", b"/a\0n0\0", b"/a/b\0value", b"x"]),
    ),
    max_size=12,
)


@examples(150)
@given(REQUESTS, st.lists(st.integers(0, 400), max_size=12))
def test_it_makes_no_difference_in_which_pieces_bytes_arrive(requests: list[Message], cuts: list[int]) -> None:
    stream = b"".join(request.encode() for request in requests)
    one, other = Embedded(), Embedded()
    for store in (one, other):
        store.connect()
        store.connect(domid=5)
        store.feed(2, Message(WATCH, 0, 0, b"@releaseDomain\0t\0").encode())
    at_once = one.feed(1, stream)
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    turns: list[Turn] = [other.feed(1, stream[a:b]) for a, b in pairwise(places)]
    assert b"".join(turn.output.get(1, b"") for turn in turns) == at_once.output.get(1, b"")
    assert [effect for turn in turns for effect in turn.effects] == at_once.effects
    assert_equal(one.store, other.store)


@examples(40)
@given(REQUESTS)
def test_the_same_bytes_always_give_the_same_answers(requests: list[Message]) -> None:
    stream = b"".join(request.encode() for request in requests)
    turns = []
    for _ in range(2):
        store = Embedded()
        turns.append(store.feed(store.connect(), stream))
    assert turns[0] == turns[1]


def test_events_go_to_their_connection_before_the_reply_and_the_first_one_behind_it() -> None:
    store = Embedded()
    writer, watcher = store.connect(), store.connect()
    for number in (writer, watcher):
        turn = store.feed(number, Message(WATCH, 5, 0, b"/a\0t\0").encode())
        assert [m[0] for m in messages(turn.output[number])] == [WATCH, EVENT]
    turn = store.feed(writer, Message(WRITE, 6, 0, b"/a\0").encode())
    assert [m[0] for m in messages(turn.output[writer])] == [EVENT, WRITE]
    assert messages(turn.output[watcher]) == [(EVENT, 0, 0, b"/a\0t\0")]


def test_a_message_that_announces_too_much_closes_the_connection_behind_what_came_before() -> None:
    store = Embedded()
    number, other = store.connect(), store.connect()
    store.feed(number, Message(WATCH, 1, 0, b"/a\0t\0").encode())
    store.feed(number, Message(START, 1, 0, b"\0").encode())
    turn = store.feed(number, Message(WRITE, 1, 0, b"/a\0v").encode() + struct.pack("=IIII", READ, 0, 0, 4097))
    assert turn.closed
    assert [m[0] for m in messages(turn.output[number])] == [EVENT, WRITE]
    assert len(turn.effects) == 1
    assert store.store.watches.count == 0
    with pytest.raises(ItemError):
        store.feed(number, b"")
    assert messages(store.feed(other, Message(READ, 1, 0, b"/a\0").encode()).output[other])[0][3] == b"v"


def test_a_peer_that_goes_takes_its_watches_and_transactions_along() -> None:
    store = Embedded()
    number = store.connect()
    other = store.connect()
    store.feed(number, Message(WATCH, 1, 0, b"/a\0t\0").encode())
    store.feed(number, Message(START, 1, 0, b"\0").encode())
    store.feed(number, Message(READ, 1, 1, b"/tool\0").encode())
    store.disconnect(number)
    assert store.store.watches.count == 0
    assert store.store.tree._epochs == []
    turn = store.feed(other, Message(WRITE, 1, 0, b"/a\0v").encode())
    assert set(turn.output) == {other}
    with pytest.raises(ItemError):
        store.disconnect(number)


def test_numbers_are_never_used_again() -> None:
    store = Embedded()
    first = store.connect()
    store.disconnect(first)
    assert store.connect() != first


def test_a_guest_may_speak_through_a_socket_and_no_quota_binds_it_then() -> None:
    store = Embedded()
    ring, socket = store.connect(domid=5), store.connect(domid=5, socket=True)
    connections = store.store.items.connections
    assert connections.find(ring).subject.quotas is not None
    assert connections.find(socket).subject.quotas is None
    assert not connections.find(socket).privileged


def test_two_stores_know_nothing_of_each_other() -> None:
    one, other = Embedded(), Embedded()
    number = one.connect()
    one.feed(number, Message(WRITE, 1, 0, b"/a\0v").encode())
    other.connect()
    assert messages(other.feed(1, Message(READ, 1, 0, b"/a\0").encode()).output[1])[0][3] == b"ENOENT\0"


def test_nothing_opens_a_file_or_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins
    import os
    import socket

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the core reaches out")

    for module, name in ((builtins, "open"), (os, "open"), (os, "fork"), (os, "write"), (socket, "socket")):
        monkeypatch.setattr(module, name, never)
    store = Embedded()
    number = store.connect()
    for op in (1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 14, 21, 22, 23):
        store.feed(number, Message(op, 1, 0, b"/a\0").encode())
    monkeypatch.undo()
