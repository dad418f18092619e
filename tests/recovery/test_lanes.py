"""Positions of a lane after `kill -9`: base + length is what really moved, wherever the process died.

A child receives (or sends) on a socket pair through a lane and is killed at a random instant; the kernel is asked how many
bytes have left the socket, and the lane must say the same.  What a process could have stored about it in user mode is
compared too: where that is behind, the kill fell into the window that plain recv and send cannot decide.
"""

from __future__ import annotations

import array
import fcntl
import os
import random
import signal
import socket
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from recovery_box import lanes
from recovery_box.box import REGION_SIZE, SLOT_SIZE, SLOTS_AT, Box
from recovery_box.lanes import M32, Lane, prepare_slot
from tests.oracle.daemons import short_run_dir

KILLS = 600
SECONDS = 10.0
ENOUGH = KILLS // 3
"""However long they take on a busy machine."""
LIFE_MAX = 0.0015
SLOT = 3
NEAR_THE_END = 0xFFFFFFFF - 3 * REGION_SIZE
"""Positions begin here, so that they run over 2**32."""
W_SEEN = 40
"""A word of the box that nothing else uses: the position as the process knows it, stored after each call."""
PERIOD = 251
PATTERN = bytes(range(PERIOD)) * 400
KINDS = [Lane] if lanes.BestLane is Lane else [Lane, lanes.BestLane]


class PlainLane(Lane):
    """What must not be done: a plain read, and its result stored afterwards."""

    __slots__ = ()

    def receive(self) -> int:
        start = self.fill % REGION_SIZE
        try:
            data = os.read(self.fd, REGION_SIZE - start)
        except BlockingIOError:
            return -1
        self._memory[self.in_offset + start : self.in_offset + start + len(data)] = data
        self.fill = (self.fill + len(data)) & M32
        self._words[self._in_word] = self.fill << 32
        return len(data)


@pytest.fixture
def box() -> Iterator[Box]:
    with short_run_dir() as folder:
        box = Box(str(Path(folder) / "box"), 8)
        prepare_slot(box, SLOT, 1)
        base = (SLOTS_AT + SLOT * SLOT_SIZE) // 8
        for header in (lanes._IN_HEADER, lanes._OUT_HEADER):
            box.words[base + header + lanes._BYTES] = NEAR_THE_END << 32
        box.words[base + lanes._DONE] = NEAR_THE_END << 32 | NEAR_THE_END
        yield box
        box.unlink()
        os.close(box.fd)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    near.setblocking(False)
    far.setblocking(False)
    with near, far:
        yield near, far


def at(position: int, length: int) -> bytes:
    """What the stream contains from a position on: the same bytes over and over, counted from `NEAR_THE_END`."""
    start = ((position - NEAR_THE_END) & M32) % PERIOD
    return PATTERN[start : start + length]


def waiting_in(sock: socket.socket) -> int:
    """Bytes that wait to be read from a socket."""
    found = array.array("i", [0])
    fcntl.ioctl(sock.fileno(), termios.FIONREAD, found)
    return found[0]


def receive_for_ever(box: Box, kind: type[Lane], fd: int) -> NoReturn:
    try:
        lane = kind(box, SLOT, fd)
        words = box.words.view
        while True:
            if lane.receive() > 0:
                words[W_SEEN] = lane.fill
                lane.publish(lane.fill, lane.made)
    finally:
        os._exit(1)


def send_for_ever(box: Box, kind: type[Lane], fd: int) -> NoReturn:
    try:
        lane = kind(box, SLOT, fd)
        words = box.words.view
        while True:
            if lane.unsent < 1000:
                made = lane.made
                n = 37 + made % 900
                lane.put(at(made, n), made)
                lane.publish(lane.head, (made + n) & M32)
            lane.send()
            words[W_SEEN] = lane.sent
    finally:
        os._exit(1)


class Count:
    """What the kills showed."""

    def __init__(self) -> None:
        self.kills = 0
        self.in_the_window = 0
        self.moved = 0
        self.wrong: list[str] = []


def kill_again_and_again(count: Count, start: Iterator[int], peer: Iterator[None], judge: Iterator[None]) -> None:
    """Forks children and kills each at a random instant, while the peer does its part; asks the judge after each."""
    rng = random.Random(2)
    end = time.monotonic() + SECONDS
    while count.kills < KILLS and not count.wrong and (count.kills < ENOUGH or time.monotonic() < end):
        pid = next(start)
        try:
            dies = time.monotonic() + rng.random() * LIFE_MAX
            while time.monotonic() < dies:
                next(peer)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        count.kills += 1
        next(judge)


def report(count: Count, what: str, kind: type[Lane], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(
            f"\n{what}, {kind.__name__}: {count.kills} kills, {count.in_the_window} between the call and the storing of "
            f"its result, {count.moved} bytes, {len(count.wrong)} wrong"
        )
    assert count.wrong == []
    assert count.kills >= ENOUGH
    assert count.in_the_window > 0, "the window was never hit"  # how often depends on how fast the machine is
    assert count.moved > 10 * REGION_SIZE, "positions did not run over 2**32"


def kill_receivers(box: Box, near: socket.socket, far: socket.socket, kind: type[Lane]) -> Count:
    """Kills children that receive; counts."""
    count = Count()
    given = 0
    box.words[W_SEEN] = NEAR_THE_END

    def start() -> Iterator[int]:
        while True:
            pid = os.fork()
            if not pid:
                receive_for_ever(box, kind, near.fileno())
            yield pid

    def peer() -> Iterator[None]:
        nonlocal given
        while True:
            try:
                given += far.send(at(NEAR_THE_END + given, 1 + given % 700))
            except BlockingIOError:
                os.sched_yield()
            yield

    def judge() -> Iterator[None]:
        while True:
            lane = kind(box, SLOT, near.fileno())
            count.moved = given - waiting_in(near)
            truth = (NEAR_THE_END + count.moved) & M32
            unread = (lane.fill - lane.head) & M32
            if lane.fill != truth:
                count.wrong.append(f"received up to {truth:#x}, the lane says {lane.fill:#x}")
            elif lane.peek(unread) != at(lane.head, unread):
                count.wrong.append(f"the {unread} bytes before {truth:#x} are not those that were sent")
            count.in_the_window += box.words[W_SEEN] != lane.fill
            box.words[W_SEEN] = lane.fill
            lane.publish(lane.fill, lane.made)
            yield

    kill_again_and_again(count, start(), peer(), judge())
    return count


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_received_is_known_exactly(
    box: Box, pair: tuple[socket.socket, socket.socket], kind: type[Lane], capsys: pytest.CaptureFixture[str]
) -> None:
    report(kill_receivers(box, *pair, kind), "receiving", kind, capsys)


def test_the_same_check_finds_a_plain_read_guilty(box: Box, pair: tuple[socket.socket, socket.socket]) -> None:
    count = kill_receivers(box, *pair, PlainLane)
    assert count.wrong, f"nothing was noticed in {count.kills} kills"


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_sent_is_known_exactly(
    box: Box, pair: tuple[socket.socket, socket.socket], kind: type[Lane], capsys: pytest.CaptureFixture[str]
) -> None:
    near, far = pair
    count = Count()
    taken = 0
    box.words[W_SEEN] = NEAR_THE_END

    def start() -> Iterator[int]:
        while True:
            pid = os.fork()
            if not pid:
                send_for_ever(box, kind, near.fileno())
            yield pid

    def peer() -> Iterator[None]:
        nonlocal taken
        while True:
            try:
                data = far.recv(50_000)
            except BlockingIOError:
                os.sched_yield()
            else:
                if data != at(NEAR_THE_END + taken, len(data)):
                    count.wrong.append(f"the {len(data)} bytes behind {taken} are not those that follow")
                taken += len(data)
            yield

    def judge() -> Iterator[None]:
        while True:
            lane = kind(box, SLOT, near.fileno())
            count.moved = taken + waiting_in(far)
            truth = (NEAR_THE_END + count.moved) & M32
            if lane.sent != truth:
                count.wrong.append(f"sent up to {truth:#x}, the lane says {lane.sent:#x}")
            elif lane.unsent > REGION_SIZE:
                count.wrong.append(f"{lane.unsent} bytes are unsent")
            count.in_the_window += box.words[W_SEEN] != lane.sent
            box.words[W_SEEN] = lane.sent
            yield

    kill_again_and_again(count, start(), peer(), judge())
    report(count, "sending", kind, capsys)
