"""One Logic after another, without a daemon: State in this process, and children that do no more than say what they are."""

from __future__ import annotations

import errno
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from recovery_box import sibling
from recovery_box.box import Box
from recovery_box.journal import Consumer
from tests.unit.standing import PATIENCE
from tests.unit.written import State
from xenstore_state import standby, succession
from xenstore_state.reception import Reception
from xenstore_state.restarts import POLICY
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
        if given.template is not None:
            given = given.template(given).children()
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


class Short:
    """A machine on which nothing can be forked for now."""

    def __init__(self, still: Callable[[], bool]) -> None:
        self._still = still
        self.tries = 0

    def fork(self) -> int:
        self.tries += 1
        if self._still():
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return os.fork()


def test_whoever_would_only_stand_by_is_not_waited_for(
    line: Line, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    line.succession.begin()
    line.serves()
    with monkeypatch.context() as patched:
        short = Short(lambda: True)
        patched.setattr(succession, "fork", short.fork)
        while not short.tries:
            line.succession.have_one_stand_by()
        line.succession.have_one_stand_by()
        assert short.tries == 1, "and is put off"
        line.succession._reserve._due = 0.0
        line.succession.have_one_stand_by()
    assert short.tries == 2
    assert len(caplog.records) == 1
    assert line.one_stands_by()


@pytest.mark.skipif(not sibling.POSSIBLE, reason="the compiled helper that forks siblings is missing")
def test_whoever_stands_by_makes_room_for_one_that_serves(
    line: Line, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A template, which forks nobody."""
    line.state.store.items.settings.insert(POLICY, "per-request")
    line.succession.begin()
    line.serves()
    nursery = line.succession._nursery
    deadline = time.monotonic() + PATIENCE
    while not nursery.there:
        assert time.monotonic() < deadline
        line.succession.have_one_stand_by()
    (template,) = nursery.pids
    os.kill(template, signal.SIGSTOP)
    short = Short(Path(f"/proc/{template}").exists)
    monkeypatch.setattr(succession, "fork", short.fork)
    assert line.follows() == line.succession.logic.pid
    assert not nursery.there
    assert short.tries == 2
    assert [r.getMessage() for r in caplog.records if "cannot be forked" in r.getMessage()] == [
        "Logic cannot be forked for now: Resource temporarily unavailable"
    ]


def test_while_none_can_be_forked_the_log_says_so_now_and_then(
    line: Line, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(succession, "FORK_AGAIN", 0.001)
    line.succession.begin()
    line.serves()
    short = Short(lambda: short.tries <= 20)
    monkeypatch.setattr(succession, "fork", short.fork)
    line.follows()
    assert len([r for r in caplog.records if "cannot be forked" in r.getMessage()]) == 1


def test_the_pid_of_one_that_serves_alone_is_written_down_once_it_is_there_for_a_while(
    line: Line, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(succession, "NAMED_SECONDS", 3600.0)
    line.state.store.items.settings.insert(POLICY, "per-request")
    line.succession.begin()
    before = (tmp_path / "logic.pid").read_text()
    assert line.succession.named, "the first one is at once: there was none before"
    line.serves()
    line.follows()
    line.succession.look_after(resting=False)
    assert (tmp_path / "logic.pid").read_text() == before
    assert not line.succession.named
    monkeypatch.setattr(succession, "NAMED_SECONDS", 0.0)
    line.succession.look_after(resting=False)
    assert (tmp_path / "logic.pid").read_text() == f"{line.succession.logic.pid}\n"
    assert line.succession.named


def test_a_pid_that_cannot_be_written_down_costs_nothing(
    line: Line, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nor does the descriptor that was kept for it, if somebody else has taken it meanwhile."""

    def nothing_is_free(*_: object) -> int:
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    line.succession.begin()
    line.serves()
    before = (tmp_path / "logic.pid").read_text()
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", nothing_is_free)
        for _ in range(2):
            line.follows()
    assert (tmp_path / "logic.pid").read_text() == before
    line.follows()
    assert (tmp_path / "logic.pid").read_text() == f"{line.succession.logic.pid}\n"
    os.fstat(line.succession._spare)
