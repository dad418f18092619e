"""The loop and its sockets: who is listened to, and when."""

import select
import socket
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from bench.stand import Stand, all_of, request, write
from protocol.ops import Op
from protocol.wire import messages

VALUE = b"v" * 3000
LONG = 60.0


@pytest.fixture
def stand() -> Iterator[Stand]:
    """A loop with one connection."""
    with closing(Stand()) as made:
        yield made


def flood(stand: Stand, data: bytes) -> None:
    """Sends more than the loop takes at once."""
    assert stand.client.send(data) == len(data)


def turns(stand: Stand, number: int) -> bytes:
    """So many turns, and what the client gets in them."""
    got = b""
    for _ in range(number):
        stand.loop.turn(0)
        try:
            while part := stand.client.recv(1 << 20):
                got += part
        except BlockingIOError:
            pass
    return got


def test_who_has_to_wait_wakes_nobody_whatever_it_sends(stand: Stand) -> None:
    stand.loop.punish({stand.connection.id: time.monotonic() + LONG})
    flood(stand, write(b"/a", VALUE) * 20)
    assert turns(stand, 3) == b""
    assert not stand.epoll.poll(0)
    stand.loop.mark(stand.channel)  # somebody else had something for it
    assert turns(stand, 3) == b""
    assert not stand.epoll.poll(0)
    stand.loop.punish({stand.connection.id: 0.0})
    assert [op for op, _ in messages(turns(stand, 20))] == [Op.WRITE] * 20


def test_who_has_to_wait_gets_what_it_was_owed(stand: Stand) -> None:
    reads = 1000
    flood(stand, all_of([write(b"/a", VALUE), *[request(Op.READ, b"/a")] * reads]))
    for _ in range(20):
        stand.loop.turn(0)
    assert stand.channel.unread
    stand.loop.punish({stand.connection.id: time.monotonic() + LONG})
    stand.loop.look_at(stand.channel)
    got = turns(stand, 10)
    assert not stand.channel.unread
    assert not stand.epoll.poll(0)
    stand.loop.punish({stand.connection.id: 0.0})
    got += turns(stand, reads)
    assert [op for op, _ in messages(got)] == [Op.WRITE] + [Op.READ] * reads


def test_who_says_that_it_does_not_read_is_closed(stand: Stand) -> None:
    """What is sent to it cannot arrive, and there would always be room for it."""
    stand._server.detach()  # the loop is to close it
    stand.client.shutdown(socket.SHUT_RD)
    flood(stand, request(Op.READ, b"/") * 3)
    for _ in range(3):
        stand.loop.turn(0)
    assert stand.connection.closed


def test_who_does_not_read_for_now_is_waited_for(stand: Stand) -> None:
    flood(stand, all_of([write(b"/a", VALUE), *[request(Op.READ, b"/a")] * 1000]))
    for _ in range(20):
        stand.loop.turn(0)
    assert stand.channel.unread
    assert not stand.connection.closed


def test_nothing_goes_out_before_the_end_of_a_turn_where_somebody_must_agree(stand: Stand) -> None:
    """However much there is to be sent: the rest is left for another turn."""
    flood(stand, write(b"/a", VALUE))
    assert turns(stand, 1)
    stand.loop.holds = True
    flood(stand, request(Op.READ, b"/a") * 30)
    stand.loop.serve(stand.channel, select.EPOLLIN)
    with pytest.raises(BlockingIOError):
        stand.client.recv(1)
    assert len(list(messages(turns(stand, 40)))) == 30
