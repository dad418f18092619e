"""Custody: a descriptor has one number on both sides of a fork, and running out of numbers is an ordinary event."""

import errno
import os
import resource
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from recovery_box.custody import (
    Handover,
    OutOfDescriptors,
    first_number,
    is_exhaustion,
    raise_limit,
    release_low_numbers,
    reserve_low_numbers,
    settle,
    shut_down,
)

FIRST = 200
Note = tuple[int, int, int, int]


def forked(run: Callable[[], object]) -> Callable[[], str]:
    """Runs something in a fork; the result waits for it and tells the exception, or ""."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        try:
            run()
        except BaseException as e:
            os.write(writer, repr(e).encode()[:4000] or b"?")
        finally:
            os._exit(0)
    os.close(writer)

    def wait() -> str:
        with os.fdopen(reader, "rb") as f:
            said = f.read()
        os.waitpid(child, 0)
        return said.decode()

    return wait


def in_child(run: Callable[[], object]) -> str:
    """What came of running something in a fork: "" or the exception."""
    return forked(run)()


@contextmanager
def at_most(files: int) -> Iterator[None]:
    """A lower limit of open files while it lasts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_numbers() -> set[int]:
    """Numbers of this process's descriptors."""
    return {int(n) for n in os.listdir("/proc/self/fd")}


def take_all(handover: Handover) -> list[Note]:
    """Everything that waits."""
    taken = []
    while (note := handover.take()) is not None:
        taken.append(note)
    return taken


@pytest.fixture
def connection() -> Iterator[tuple[int, socket.socket]]:
    """The keeper's number of a connection, and its peer."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours.fileno(), theirs


# ---- numbers


def test_the_limit_is_raised_to_what_is_allowed() -> None:
    def run() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 512))
        assert raise_limit() == 512
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (512, 512)

    assert in_child(run) == ""


@pytest.mark.parametrize(("limit", "first"), [(1 << 20, 64), (512, 64), (73, 63), (64, 56)])
def test_most_of_few_numbers_and_64_of_many_are_kept_for_the_processes_themselves(limit: int, first: int) -> None:
    assert first_number(limit) == first


def test_what_the_keeper_accepts_lies_at_the_first_number_and_above() -> None:
    def run() -> None:
        reserve_low_numbers(FIRST)
        numbers = [os.dup(0) for _ in range(3)]
        assert numbers[0] >= FIRST
        assert numbers == list(range(numbers[0], numbers[0] + 3))
        os.close(numbers[0])
        assert os.dup(0) == numbers[0]

    assert in_child(run) == ""


def test_the_numbers_below_are_free_again_in_a_worker_and_nothing_else_is_closed() -> None:
    def run() -> None:
        reader, writer = os.pipe()
        hole = os.dup(reader)
        beyond = os.dup(writer)
        os.close(hole)
        lowest = reserve_low_numbers(FIRST)
        assert beyond < lowest < FIRST
        connection = os.dup(writer)
        assert connection >= FIRST
        release_low_numbers(lowest, FIRST)
        os.fstat(beyond)
        low = os.dup(reader)
        assert low < FIRST
        os.write(connection, b"still there")
        assert os.read(low, 20) == b"still there"
        for standard in range(3):
            os.fstat(standard)

    assert in_child(run) == ""


def test_reserved_numbers_are_not_inherited_by_other_programs() -> None:
    def run() -> None:
        before = open_numbers()
        reserve_low_numbers(FIRST)
        reserved = open_numbers() - before
        assert reserved
        assert not any(os.get_inheritable(fd) for fd in reserved if fd < FIRST)

    assert in_child(run) == ""


def test_accepting_beyond_the_limit_fails_without_taking_a_number() -> None:
    def run() -> None:
        ours, theirs = socket.socketpair()
        reserve_low_numbers(FIRST)
        first = os.dup(0)
        with at_most(first + 1):
            with pytest.raises(OSError, match="Too many") as caught:
                os.dup(0)
            assert is_exhaustion(caught.value)
            os.close(first)
            assert os.dup(0) == first
        ours.close()
        theirs.close()

    assert in_child(run) == ""


def test_a_connection_is_moved_to_the_first_number_and_above_or_closed() -> None:
    def run() -> None:
        low, peer = socket.socketpair()
        number = low.detach()
        moved = settle(number, FIRST)
        assert moved >= FIRST
        assert settle(moved, FIRST) == moved
        assert os.dup(0) == number, "the old number is free"
        os.close(number)
        again = os.dup(moved)
        assert again < FIRST
        with at_most(moved + 1):
            with pytest.raises(OSError, match="Too many") as caught:
                settle(again, FIRST)
            assert is_exhaustion(caught.value)
        os.close(moved)
        assert peer.recv(1) == b""

    assert in_child(run) == ""


def test_exhaustion_is_told_from_a_peer_that_went_away() -> None:
    for number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
        assert is_exhaustion(OSError(number, "x"))
    for number in (errno.ECONNABORTED, errno.EAGAIN, errno.EINTR, errno.EPERM):
        assert not is_exhaustion(OSError(number, "x"))


def test_shutting_down_ends_the_stream_whoever_else_holds_the_descriptor(connection: tuple[int, socket.socket]) -> None:
    fd, peer = connection
    other = os.dup(fd)
    shut_down(fd)
    assert peer.recv(1) == b""
    shut_down(fd)  # again, or of nothing at all, is no error
    shut_down(-1)
    os.close(other)


# ---- handing over


def test_a_connection_accepted_after_the_fork_has_the_same_number_in_the_worker() -> None:
    handover = Handover()
    go, gone = os.pipe()

    def worker() -> None:
        inherited = open_numbers()
        handover.in_worker()
        os.read(go, 1)
        taken = take_all(handover)
        assert [note[:2] + note[3:] for note in taken] == [(7, 3, 0), (8, 4, 12)]
        for _, _, fd, _ in taken:
            assert not os.get_inheritable(fd)
            os.write(fd, b"%d" % fd)
        # Nothing is left open under another number.
        assert {n for n in open_numbers() - inherited if n >= FIRST} == {fd for _, _, fd, _ in taken}

    wait = forked(worker)
    handover.in_keeper()
    pairs = [socket.socketpair() for _ in range(2)]
    fds = [max(FIRST, *open_numbers()) + 10 + n for n in range(2)]
    for fd, (ours, _) in zip(fds, pairs, strict=True):
        os.dup2(ours.fileno(), fd, inheritable=False)
        ours.close()
    assert handover.give(7, 3, fds[0], 0)
    assert handover.give(8, 4, fds[1], 12)
    os.write(gone, b"x")
    assert wait() == ""
    for fd, (_, peer) in zip(fds, pairs, strict=True):
        assert peer.recv(10) == b"%d" % fd
        # The worker is dead; the keeper's duplicate keeps the connection open.
        peer.setblocking(False)
        with pytest.raises(BlockingIOError):
            peer.recv(1)
        os.close(fd)
        assert peer.recv(1) == b""
        peer.close()
    os.close(go)
    os.close(gone)
    handover.close()


def test_the_workers_end_is_readable_when_something_waits_wherever_it_was_moved(
    connection: tuple[int, socket.socket],
) -> None:
    handover = Handover()

    def worker() -> None:
        before = handover.worker_fd
        handover.in_worker()
        assert not os.get_inheritable(handover.worker_fd)
        assert handover.worker_fd < max(before, FIRST)
        assert select.select([handover.worker_fd], [], [], 10)[0] == [handover.worker_fd]
        assert take_all(handover)[0][:2] == (1, 2)

    wait = forked(worker)
    handover.in_keeper()
    assert handover.give(1, 2, connection[0], 0)
    assert wait() == ""
    handover.close()


def test_taking_when_nothing_waits_is_none_and_a_dead_keeper_is_said() -> None:
    handover = Handover()
    assert handover.take() is None
    handover.in_worker()  # the keeper's end is closed
    with pytest.raises(EOFError):
        handover.take()
    handover.close()


def test_a_worker_that_does_not_take_makes_the_keeper_stop_giving_not_wait(
    connection: tuple[int, socket.socket],
) -> None:
    handover = Handover()
    given = 0
    while handover.give(given, 0, connection[0], 0):
        given += 1
        assert given < 100_000
    assert given
    assert [number for number, *_ in take_all(handover)] == list(range(given))
    assert handover.give(given, 0, connection[0], 0)
    handover.close()


def test_giving_to_a_dead_worker_is_false(connection: tuple[int, socket.socket]) -> None:
    handover = Handover()
    handover.in_keeper()  # no worker holds the other end
    assert not handover.give(1, 0, connection[0], 0)
    handover.close()


def test_a_worker_without_numbers_left_says_so() -> None:
    def run() -> None:
        handover = Handover()
        ours, _theirs = socket.socketpair()
        high = max(FIRST, *open_numbers()) + 10
        os.dup2(ours.fileno(), high, inheritable=False)
        assert handover.give(1, 0, high, 0)
        lowest = os.dup(0)
        with at_most(lowest + 1), pytest.raises(OutOfDescriptors):
            handover.take()

    assert in_child(run) == ""


def test_a_forked_worker_inherits_what_was_there_before(connection: tuple[int, socket.socket]) -> None:
    fd, peer = connection
    assert in_child(lambda: os.write(fd, b"inherited")) == ""
    assert peer.recv(20) == b"inherited"


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.ENOBUFS, errno.ETOOMANYREFS], ids=errno.errorcode.get)
def test_what_cannot_be_handed_over_for_want_of_something_is_not_given(
    connection: tuple[int, socket.socket], number: int
) -> None:
    handover = Handover()
    handover._keeper.close()
    handover._keeper = Failing(number)  # type: ignore[assignment]
    assert not handover.give(1, 0, connection[0], 0)
    handover.close()


class Failing:
    """A socket on a machine that is short of something."""

    def __init__(self, number: int) -> None:
        self._number = number

    def sendmsg(self, *_: object) -> int:
        raise OSError(self._number, os.strerror(self._number))

    def close(self) -> None:
        pass
