"""One Logic after another, without a daemon: State in this process, and children that do no more than say what they are."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from recovery_box.box import Box
from recovery_box.journal import Consumer
from tests.unit.standing import PATIENCE
from tests.unit.written import State
from xenstore_state import standby
from xenstore_state.reception import Reception
from xenstore_state.succession import Estate, Succession
from xenstore_state.worker import Inheritance, Worker

LOWEST = 3
"""Connections may have any number: there are none."""


class Line:
    """State, which has one Logic serve after another."""

    def __init__(self, directory: Path) -> None:
        self.state = State(directory)
        self.box = Box(str(directory / "box"))
        self.epoll = select.epoll()
        self.said, self._says = os.pipe()
        first, consumer = Worker(), Consumer(self.box)
        survival, store = self.state.survival, self.state.store
        reception = Reception(store, self.box, [], self.epoll, LOWEST, first.handover, survival)
        applier = self.state.applier
        estate = Estate(
            store, self.box, consumer, applier, reception, None, survival, self.epoll, -1,
            lambda: self.state.more, lambda: None,
        )  # fmt: skip
        self.succession = Succession(estate, first, self._serve, str(directory / "logic.pid"), LOWEST)

    def one_stands_by(self) -> int:
        """Somebody does, from now on."""
        deadline = time.monotonic() + PATIENCE
        while not self.succession._reserve.pid:
            assert time.monotonic() < deadline
            self.succession.have_one_stand_by()
        return self.succession._reserve.pid

    def follows(self) -> int:
        """Logic ends, and the next one begins to serve: its pid."""
        self.succession.logic.signal(signal.SIGKILL)
        self.succession.bury(lambda: None)
        return self.serves()

    def serves(self) -> int:
        """Who says so."""
        assert select.select([self.said], [], [], PATIENCE)[0]
        return int.from_bytes(os.read(self.said, 4), "little")

    def _serve(self, given: Inheritance) -> int:
        if given.stand_by is not None:
            follower = given.stand_by(given)
            turn = None
            while turn is None:
                select.select([follower], [], [])
                turn = follower.hear()
        os.write(self._says, os.getpid().to_bytes(4, "little"))
        while True:
            signal.pause()

    def close(self) -> None:
        self.succession.nobody_stands_by()
        if self.succession.logic.pid:
            self.succession.logic.end()
        self.succession.logic.close()
        self.succession.reap_remnants()
        self.state.close()
        for fd in (self.said, self._says, self.succession._spare):
            os.close(fd)
        self.succession.epoll_set.close()
        self.epoll.close()


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    made = Line(tmp_path)
    yield made
    made.close()


def test_whoever_stands_by_follows(line: Line) -> None:
    assert not line.succession.begin()
    assert line.serves() == line.succession.logic.pid
    who = line.one_stands_by()
    assert line.follows() == line.succession.logic.pid == who


def test_whoever_cannot_be_told_all_that_it_must_know_does_not(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line.succession.begin()
    line.serves()
    who = line.one_stands_by()
    monkeypatch.setattr(standby, "TURN_MAX", 1)
    assert line.follows() == line.succession.logic.pid != who
    with pytest.raises(ProcessLookupError):
        os.kill(who, 0)


def test_nothing_is_heard_of_a_logic_that_is_gone_whoever_has_copies_of_its_descriptors(line: Line) -> None:
    """Whoever writes a checkpoint has, for as long as that takes: what cannot be unregistered any more would keep State awake."""
    line.succession.begin()
    line.serves()
    logic = line.succession.logic
    copies = [os.dup(fd) for fd in (logic.line.question_fd, logic.line.telling_fd, logic.handover.keeper_fd)]
    line.follows()
    assert line.epoll.poll(0) == []
    for fd in copies:
        os.close(fd)
