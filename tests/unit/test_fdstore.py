"""What is said to whoever keeps descriptors: nobody waits who need not, and nobody waits for ever."""

import errno
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from recovery_box import fdstore
from recovery_box.fdstore import FdStore


@pytest.fixture(params=[socket.SOCK_SEQPACKET, socket.SOCK_DGRAM], ids=["guardian", "systemd"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, request.param)
    with ours, theirs:
        yield ours, theirs


def stuff(store: FdStore) -> int:
    """Says as much as nobody has to listen to."""
    store._socket.setblocking(False)
    said = 0
    try:
        while True:
            store._socket.send(b"x")
            said += 1
    except BlockingIOError:
        return said


def test_who_does_not_listen_is_given_up(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fdstore, "PATIENCE", 0.05)
    store = FdStore(ends[0])
    stuff(store)
    with pytest.raises(TimeoutError):
        store.keep("c", ends[1].fileno())
    with pytest.raises(TimeoutError):
        store.drop(ends[1].fileno())


def test_who_listens_late_hears_everything(ends: tuple[socket.socket, socket.socket]) -> None:
    store = FdStore(ends[0])
    said = stuff(store)
    heard: list[bytes] = []

    def listen() -> None:
        heard.extend(ends[1].recv(100) for _ in range(said + 2))

    listener = threading.Timer(0.1, listen)
    listener.start()
    store.keep("c", ends[1].fileno())
    store.drop(ends[1].fileno())
    listener.join(10)
    assert heard[:said] == [b"x"] * said
    assert [text.split(b"\n")[0] for text in heard[said:]] == [b"FDSTORE=1", b"FDSTOREREMOVE=1"]


class Crowded(socket.socket):
    """As many descriptors are under way as the kernel lets one user have, until some are taken."""

    refused = 0

    def sendmsg(self, *said: Any) -> int:
        if self.refused < 3:
            self.refused += 1
            raise OSError(errno.ETOOMANYREFS, "too many references")
        return super().sendmsg(*said)


def test_too_many_descriptors_under_way_is_no_death(ends: tuple[socket.socket, socket.socket]) -> None:
    with Crowded(fileno=ends[0].detach()) as crowded:
        FdStore(crowded).keep("c", ends[1].fileno())
        assert crowded.refused == 3
        assert ends[1].recv(100).startswith(b"FDSTORE=1")
