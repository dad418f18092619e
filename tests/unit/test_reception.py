"""The reception: a connection that cannot be handed over waits until it can, and costs nothing meanwhile."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from recovery_box.box import Box
from recovery_box.custody import Handover
from tests.unit.standing import PATIENCE
from xenstore_state.reception import Reception
from xenstore_state.store import Store

LOWEST = 3


class Short(Handover):
    """One on a machine that may be short of something."""

    short = False

    def give(self, connection: int, slot: int, fd: int, domid: int) -> bool:
        return not self.short and super().give(connection, slot, fd, domid)


class Door:
    """A reception with one listener, and those who come."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "socket")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        self.listener.setblocking(False)
        self.epoll = select.epoll()
        self.handover = Short()
        self.store = Store()
        self.reception = Reception(
            self.store, Box(str(directory / "box")), [self.listener], self.epoll, LOWEST, self.handover
        )
        self.reception.open()
        self.reception.hand_over_by(self.handover)
        self.clients: list[socket.socket] = []

    def one_comes(self) -> None:
        client = socket.socket(socket.AF_UNIX)
        client.connect(self.path)
        self.clients.append(client)
        self.hear(PATIENCE)

    def hear(self, seconds: float = 0) -> int:
        """What State does when it waits; how much it hears."""
        events = self.epoll.poll(seconds)
        for fd, _ in events:
            assert self.reception.accept_from(fd) or self.reception.hand_over_to(fd)
        return len(events)

    def taken(self) -> list[int]:
        """The connections that Logic takes."""
        ids = []
        while (taken := self.handover.take()) is not None:
            ids.append(taken[0])
        return ids

    def close(self) -> None:
        for connection in list(self.store.items.connections):
            socket.socket(fileno=connection.fd).close()
        for each in (*self.clients, self.listener):
            each.close()
        self.handover.close()
        self.epoll.close()


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    made = Door(tmp_path)
    yield made
    made.close()


def test_who_comes_is_handed_over(door: Door) -> None:
    door.one_comes()
    door.one_comes()
    assert door.taken() == [1, 2]
    assert not door.hear()


def test_while_a_logic_takes_nobody_the_others_wait(door: Door) -> None:
    room = 0
    while door.handover.give(0, 0, door.listener.fileno(), 0):
        room += 1
    door.one_comes()
    door.one_comes()
    assert not door.hear()
    assert door.taken() == [0] * room
    door.hear(PATIENCE)
    assert door.taken() == [1, 2]
    assert not door.hear()


def test_what_fails_though_the_logic_takes_is_tried_again_now_and_then_and_not_all_the_time(door: Door) -> None:
    door.handover.short = True
    door.one_comes()
    door.one_comes()
    until = time.monotonic() + 0.05
    heard = 0
    while time.monotonic() < until:
        heard += door.hear()
    assert heard <= 2
    door.reception.hand_over_again()
    assert not door.taken()
    door.handover.short = False
    door.reception.hand_over_again()
    assert door.taken() == [1, 2]
    assert not door.hear()
