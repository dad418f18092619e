"""Whom a template has forked is, when its turn comes, what State is, like whoever State has forked itself."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import termios
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recovery_box import sibling
from tests.unit.standing import PATIENCE, Fork, same
from xenstore_state import effects, nursery
from xenstore_state.nursery import BEHIND_BYTES, POKE_BYTES, READY, Infant, Nursery, Template
from xenstore_state.standby import NEWCOMERS_MAX, RENEW_BYTES
from xenstore_state.survival import Place
from xenstore_state.worker import Inheritance, StandBy

pytestmark = pytest.mark.skipif(not sibling.POSSIBLE, reason="the compiled helper that forks siblings is missing")


class Nursed(Fork):
    """State in this process, a template, and those that it forks."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._before = children()
        self.nursery = Nursery(self.state.survival, self.epoll)

    def fork(self) -> None:
        """A template, and one whom it has forked and who stands by."""
        self.begin()
        self.order()

    def begin(self) -> None:
        self.nursery.begin(self.worker, self.forked())
        self.reserve.welcome = self.welcome  # type: ignore[method-assign]

    def welcome(self, connection: Any) -> None:
        type(self.reserve).welcome(self.reserve, connection)
        self.nursery.welcome(connection)

    def order(self) -> None:
        self.nursery.order(self.state.sequence)
        self.promote()

    def promote(self) -> None:
        """Whoever was ordered first stands by."""
        infant = self.born()
        self.reserve.begin(infant.worker, self.nursery.began, infant.sequence, 0.0, infant.newcomers)

    def born(self) -> Infant:
        infant = self.nursery.next(PATIENCE)
        assert infant is not None
        return infant

    def at_rest(self) -> None:
        """Waits until the template has done what it was told."""
        deadline = time.monotonic() + PATIENCE
        unread = array("i", [1])
        while unread[0] or Path(f"/proc/{self.worker.pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
            assert time.monotonic() < deadline
            fcntl.ioctl(self.worker.line.telling_fd, termios.TIOCOUTQ, unread)

    def role(self, given: Inheritance, known: dict[str, Any], place: Place) -> StandBy:
        given = Template(given, known, place).children()
        assert given.stand_by is not None
        assert os.getppid() != self.worker.pid
        return given.stand_by(given)

    def close(self) -> None:
        self.nursery.dismiss()
        super().close()
        for pid in children() - self._before:  # in a daemon, State reaps whom it has not heard of
            os.waitpid(pid, 0)


def children() -> set[int]:
    """Of this process."""
    return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))


@pytest.fixture
def nursed(tmp_path: Path) -> Iterator[Nursed]:
    made = Nursed(tmp_path)
    yield made
    made.close()


def test_nothing_has_happened(nursed: Nursed) -> None:
    nursed.state.write("before")
    nursed.open()
    nursed.fork()
    same(nursed.turn(), nursed)


def test_what_has_happened_is_done_again(nursed: Nursed) -> None:
    """Before there is a template, before somebody is ordered, and before the turn comes."""
    everybody = []
    for when in ("first", "then", "last"):
        nursed.state.write(when)
        nursed.state.do(effects.WATCH, b"/w", when.encode(), -1, 0)
        everybody += [nursed.open(), nursed.open()]
        if when == "first":
            nursed.begin()
        elif when == "then":
            nursed.order()
    for ends in everybody[1::2]:
        nursed.end(ends)
    same(nursed.turn(), nursed)


def test_a_number_means_another_connection_when_the_template_hears_of_it(nursed: Nursed) -> None:
    first = nursed.open()
    nursed.begin()
    nursed.end(first)
    assert nursed.open().fd == first.fd, "the lowest that is free"
    nursed.order()
    same(nursed.turn(), nursed)


@pytest.mark.parametrize("size", [1, BEHIND_BYTES], ids=["little", "much"])
def test_one_after_another(nursed: Nursed, size: int) -> None:
    """Those that the template has not followed yet, and those that it has."""
    nursed.begin()
    for number in range(5):
        nursed.open()
        nursed.state.write(f"n{number}", bytes(size))
        nursed.order()
        nursed.state.write(f"m{number}", bytes(size))
        same(nursed.turn(), nursed, digest=number == 0)


def test_several_wait_in_order(nursed: Nursed) -> None:
    nursed.begin()
    for number in range(READY):
        assert nursed.nursery.wants
        nursed.state.write(f"n{number}")
        nursed.nursery.order(nursed.state.sequence)
        nursed.open()
    assert not nursed.nursery.wants
    for number in range(READY):
        nursed.promote()
        assert nursed.nursery.wants
        nursed.state.write(f"m{number}")
        same(nursed.turn(), nursed, digest=number == 0)


def test_they_are_children_of_states(nursed: Nursed) -> None:
    nursed.begin()
    nursed.nursery.order(0)
    worker = nursed.born().worker
    worker.signal(signal.SIGKILL)
    assert worker.reap().si_status == signal.SIGKILL
    worker.close()


def test_the_template_follows_while_nobody_is_ordered(nursed: Nursed) -> None:
    nursed.begin()
    began = nursed.state.survival.place.total
    for number in range(4):
        nursed.write_down(began + (number + 1) * (POKE_BYTES + 1))
        nursed.nursery.look_after()
        nursed.at_rest()
        nursed.state.checkpoint()  # with which older ledgers go
    assert nursed.nursery.there
    nursed.order()
    same(nursed.turn(), nursed)


def test_the_end_of_the_template_is_noticed_and_nobody_is_left(nursed: Nursed) -> None:
    nursed.begin()
    nursed.nursery.order(0)
    assert nursed.nursery.hear(nursed.worker.line.question_fd)
    infant = nursed.nursery.next(PATIENCE)
    assert infant is not None
    nursed.nursery.order(0)
    waits = nursed.nursery.next(PATIENCE)
    assert waits is not None
    nursed.epoll.register(waits.worker.fd, select.EPOLLIN)
    nursed.nursery._born.append(waits)
    fd, waiting = nursed.worker.fd, os.pidfd_open(waits.worker.pid)
    nursed.worker.signal(signal.SIGKILL)
    assert select.select([fd], [], [], PATIENCE)[0]
    assert nursed.nursery.hear(fd)
    assert (nursed.nursery.there, nursed.nursery.wants, nursed.nursery.pids) == (False, False, set())
    assert select.select([waiting], [], [], PATIENCE)[0], "it was ended with the template"
    os.close(waiting)
    assert not nursed.nursery.hear(fd)
    infant.worker.signal(signal.SIGKILL)
    infant.worker.reap()
    infant.worker.close()


@pytest.mark.parametrize("forks_before", [0, 1])
def test_a_template_that_does_nothing_is_given_up(
    nursed: Nursed, monkeypatch: pytest.MonkeyPatch, forks_before: int
) -> None:
    """It has more time for the first one: before that it goes through all of its memory."""
    nursed.begin()
    for _ in range(forks_before):
        nursed.order()
    os.kill(nursed.worker.pid, signal.SIGSTOP)
    nursed.nursery.order(0)
    assert nursed.nursery.next(0.01) is None
    nursed.nursery.look_after()
    assert nursed.nursery.there
    monkeypatch.setattr(nursery, "PREPARING" if forks_before else "PATIENCE", 0.0)
    nursed.nursery.look_after()
    assert nursed.nursery.there
    monkeypatch.setattr(nursery, "PATIENCE" if forks_before else "PREPARING", 0.0)
    nursed.nursery.look_after()
    assert not nursed.nursery.there


def test_a_template_that_took_its_time_for_the_first_has_the_usual_for_the_second(nursed: Nursed) -> None:
    """Both were ordered at once."""
    nursed.begin()
    for _ in range(READY):
        nursed.nursery.order(0)
    assert select.select([nursed.worker.line.question_fd], [], [], PATIENCE)[0]
    nursed.at_rest()
    said, *rest = [nursed.worker.line.listen() for _ in range(READY)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(nursed.worker.line, "listen", iter([said, None]).__next__)
        for infant in nursed.nursery._unborn:
            infant.ordered -= nursery.PATIENCE + 1
        assert nursed.nursery.hear(nursed.worker.line.question_fd)
        nursed.nursery.look_after()
        assert nursed.nursery.there
        patched.setattr(nursed.worker.line, "listen", iter([*rest, None]).__next__)
        nursed.nursery.hear(nursed.worker.line.question_fd)
    assert len(nursed.nursery._born) == READY


def test_whoever_was_forked_too_late_ends(nursed: Nursed) -> None:
    """The template has forked it, and State has not heard of it."""
    nursed.begin()
    nursed.nursery.order(0)
    assert select.select([nursed.worker.line.question_fd], [], [], PATIENCE)[0]
    pid = int.from_bytes(nursed.worker.line.listen() or b"", "little")
    fd = os.pidfd_open(pid)
    nursed.nursery.dismiss()
    assert select.select([fd], [], [], PATIENCE)[0]
    os.waitpid(pid, 0)
    os.close(fd)


def test_whoever_dies_before_it_stands_by_is_passed_over(nursed: Nursed) -> None:
    nursed.begin()
    nursed.nursery.order(0)
    assert select.select([nursed.worker.line.question_fd], [], [], PATIENCE)[0]
    said = nursed.worker.line._keeper_answers.recv(64, 2)  # MSG_PEEK
    pid = int.from_bytes(said, "little")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert nursed.nursery.next(PATIENCE) is None
    nursed.order()
    same(nursed.turn(), nursed)


def test_a_waiting_one_that_dies_is_noticed(nursed: Nursed) -> None:
    nursed.begin()
    nursed.nursery.order(0)
    deadline = time.monotonic() + PATIENCE
    while not nursed.nursery._born:
        assert time.monotonic() < deadline
        nursed.nursery.hear(nursed.worker.line.question_fd)
    worker = nursed.nursery._born[0].worker
    fd = worker.fd
    worker.signal(signal.SIGKILL)
    assert worker.ended(PATIENCE)
    assert nursed.nursery.hear(fd)
    assert not nursed.nursery.there


def test_too_many_connections_at_once_take_another_template(nursed: Nursed) -> None:
    nursed.begin()
    for _ in range(NEWCOMERS_MAX + 1):
        nursed.open()
    nursed.nursery.look_after()
    assert not nursed.nursery.there


def test_a_template_that_has_changed_much_is_replaced(nursed: Nursed) -> None:
    nursed.begin()
    nursed.write_down(RENEW_BYTES)
    nursed.nursery.look_after()
    assert not nursed.nursery.there


def test_what_was_not_written_down_cannot_be_followed(nursed: Nursed) -> None:
    nursed.begin()
    nursed.state.survival.want_checkpoint()
    nursed.nursery.look_after()
    assert not nursed.nursery.there


def test_a_damage_is_nothing_to_fork_from(nursed: Nursed) -> None:
    nursed.begin()
    nursed.state.write("a", bytes(BEHIND_BYTES))
    ledger = nursed.state.survival._ledger
    ledger._memory[ledger.end - 8] ^= 0xFF
    nursed.nursery.order(nursed.state.sequence)
    assert nursed.nursery.next(PATIENCE) is None
    assert "damaged" in nursed.said()["fails"]
