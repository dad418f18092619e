"""The next Logic's epoll set: complete when it is taken, whatever came and went, and nobody else's."""

import os
import select
import socket
from collections.abc import Iterator

import pytest

from recovery_box import lanes
from recovery_box.items import Connection
from recovery_box.lanes import BestLane, Lane
from xenstore_state.readiness import MANY
from xenstore_state.sockets import FEW, PIECE, Sockets


class Pairs:
    """Connections with both ends in the test's hand."""

    def __init__(self) -> None:
        self.peers: dict[int, socket.socket] = {}
        self._made = 0

    def connect(self) -> Connection:
        ours, theirs = socket.socketpair()
        self._made += 1
        self.peers[ours.fileno()] = theirs
        return Connection(self._made, self._made, ours.detach(), 0, True, True)

    def speaking(self) -> Connection:
        """One whose peer has said something."""
        connection = self.connect()
        self.peers[connection.fd].send(b"x")
        return connection

    def close(self, connection: Connection) -> None:
        os.close(connection.fd)
        self.peers.pop(connection.fd).close()


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    made = Pairs()
    yield made
    for fd, peer in made.peers.items():
        os.close(fd)
        peer.close()


@pytest.fixture
def states() -> Iterator[select.epoll]:
    with select.epoll() as made:
        yield made


@pytest.fixture(params=["compiled", "not compiled"], autouse=True)
def _kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "not compiled":
        monkeypatch.setattr(lanes, "_lanes", None)
    elif BestLane is Lane:
        pytest.skip("the lanes are not compiled")


def ready(taken: select.epoll, pairs: Pairs) -> set[int]:
    """The descriptors that the set reports when every peer says something."""
    for peer in pairs.peers.values():
        peer.send(b"x")
    return {fd for fd, _ in taken.poll(0, 1000)}


def test_it_holds_all_sockets_however_many_are_still_missing(pairs: Pairs, states: select.epoll) -> None:
    sockets = Sockets(states)
    for _ in range(3 * PIECE):
        sockets.add(pairs.connect())
    sockets.fill()
    assert not sockets.complete
    with sockets.take() as taken:
        assert ready(taken, pairs) == set(pairs.peers) == set(sockets.by_fd)


def test_a_few_cost_nothing_until_the_set_is_taken(pairs: Pairs, states: select.epoll) -> None:
    sockets = Sockets(states)
    made = [pairs.connect() for _ in range(FEW)]
    for connection in made:
        sockets.add(connection)
    assert sockets.complete
    sockets.drop(made[0])
    pairs.close(made[0])
    with sockets.take() as taken:
        assert ready(taken, pairs) == {connection.fd for connection in made[1:]}


def test_a_socket_that_has_ended_is_not_in_it_nor_one_that_had_its_number(pairs: Pairs, states: select.epoll) -> None:
    sockets = Sockets(states)
    early, late = pairs.connect(), pairs.connect()
    others = [pairs.connect() for _ in range(FEW)]
    for connection in (early, *others):
        sockets.add(connection)
    sockets.fill()
    sockets.add(late)
    copies = [
        os.dup(connection.fd) for connection in (early, late)
    ]  # Logic's: they would keep the kernel's entries alive
    for connection in (early, late):
        sockets.drop(connection)
        pairs.close(connection)
    sockets.add(again := pairs.connect())
    assert again.fd in {early.fd, late.fd}
    with sockets.take() as taken:
        assert ready(taken, pairs) == {again.fd, *(connection.fd for connection in others)}
    for fd in copies:
        os.close(fd)


def test_the_next_one_is_another_one_with_the_same_sockets(pairs: Pairs, states: select.epoll) -> None:
    sockets = Sockets(states)
    for _ in range(3):
        sockets.add(pairs.connect())
    first = sockets.take()
    foreign = os.eventfd(1)
    first.register(foreign, select.EPOLLIN)  # what a Logic does to its own set
    sockets.renew(first)
    sockets.add(pairs.connect())
    with sockets.take() as taken:
        assert first.closed
        assert ready(taken, pairs) == set(pairs.peers)
    os.close(foreign)


def test_one_that_serves_somebody_alone_gets_whoever_is_ready_and_others_as_they_become_so(
    pairs: Pairs, states: select.epoll
) -> None:
    sockets = Sockets(states)
    early, late, silent = (pairs.connect() for _ in range(3))
    for connection in (early, late, silent):
        sockets.add(connection)
    pairs.peers[early.fd].send(b"x")
    with sockets.take(alone=True) as taken:
        assert [fd for fd, _ in taken.poll(0)] == [early.fd]
        assert not states.poll(0)
        pairs.peers[late.fd].send(b"x")
        ((fd, _),) = states.poll(0)
        assert sockets.hear(fd)
        assert not sockets.hear(early.fd)
        assert {fd for fd, _ in taken.poll(0)} == {early.fd, late.fd}
        assert not states.poll(0), "told once for each Logic"
        with pytest.raises(FileNotFoundError):
            taken.unregister(silent.fd)


def test_whoever_the_last_one_left_unserved_the_next_one_finds(pairs: Pairs, states: select.epoll) -> None:
    sockets = Sockets(states)
    served, left = pairs.speaking(), pairs.speaking()
    sockets.add(served)
    sockets.add(left)
    first = sockets.take(alone=True)
    assert {fd for fd, _ in first.poll(0)} == {served.fd, left.fd}
    os.read(served.fd, 1)
    sockets.renew(first)
    with sockets.take(alone=True) as second:
        assert [fd for fd, _ in second.poll(0)] == [left.fd]
        pairs.peers[served.fd].send(b"x")
        assert [sockets.hear(fd) for fd, _ in states.poll(0)] == [True]
        assert {fd for fd, _ in second.poll(0)} == {served.fd, left.fd}


def test_more_than_are_reported_at_a_time_are_ready(pairs: Pairs, states: select.epoll) -> None:
    sockets = Sockets(states)
    for _ in range(MANY + 3):
        sockets.add(pairs.speaking())
    with sockets.take(alone=True) as taken:
        assert {fd for fd, _ in taken.poll(0, 1000)} == set(pairs.peers)


def test_a_socket_that_ended_after_it_was_found_ready_wakes_nobody(pairs: Pairs, states: select.epoll) -> None:
    sockets = Sockets(states)
    ended, other = pairs.speaking(), pairs.speaking()
    sockets.add(ended)
    sockets.add(other)
    kept = os.dup(ended.fd)  # by the guardian, as ever
    with sockets.take(alone=True) as taken:
        sockets.drop(ended)
        pairs.close(ended)
        assert [fd for fd, _ in taken.poll(0)] == [other.fd]
        assert not states.poll(0)
    os.close(kept)


def test_policies_may_change(pairs: Pairs, states: select.epoll) -> None:
    sockets = Sockets(states)
    for _ in range(3):
        sockets.add(pairs.connect())
    sockets.renew(sockets.take())
    sockets.renew(alone := sockets.take(alone=True))
    sockets.add(pairs.connect())
    alone.close()
    with sockets.take() as taken:
        assert ready(taken, pairs) == set(pairs.peers)
        assert not states.poll(0), "it is not looked at who is ready"
    sockets.renew(taken)
    with sockets.take(alone=True) as taken:
        assert {fd for fd, _ in taken.poll(0)} == set(pairs.peers)
