"""The recovery box alone, two processes and `kill -9`: what was published is there, whole, and no index ever goes back.

A producer appends numbered records to a journal and counts in shared words; the other process reads both all the time,
kills the producer at a random instant, and starts the next one where the last one published.  The same check finds
`struct.pack_into` guilty at once: a producer that stores its words with it is the test of the test.
"""

from __future__ import annotations

import os
import random
import signal
import struct
import time
from collections.abc import Iterator
from mmap import mmap
from pathlib import Path
from typing import NoReturn, Protocol

import pytest

from recovery_box.box import JOURNAL_SIZE, W_HEAD, W_SERVED, Box
from recovery_box.journal import Consumer, JournalCorrupt, Producer
from tests.oracle.daemons import short_run_dir

KILLS = 1500
SECONDS = 15.0
ENOUGH = KILLS // 3
"""However long they take on a busy machine."""
LIFE_MAX = 0.002
LOOKS = 10
"""At the shared words, for each record read."""
NUMBER = struct.Struct("=Q")
BODY_MAX = 600
LARGE = JOURNAL_SIZE // 4 + 1000
"""Longer than what travels in one piece."""
LARGE_EVERY = 4999
W_BUMPED = 40
"""A word of the box that nothing else uses."""
BUMPS = 20
"""How often it is counted up for each record."""


class Words(Protocol):
    """How a producer stores its words."""

    def __getitem__(self, index: int) -> int: ...

    def __setitem__(self, index: int, value: int) -> None: ...


class TornWords:
    """What must not be done: `pack_into` clears its target before it writes."""

    def __init__(self, memory: mmap) -> None:
        self._memory = memory

    def __getitem__(self, index: int) -> int:
        value: int = NUMBER.unpack_from(self._memory, index * 8)[0]
        return value

    def __setitem__(self, index: int, value: int) -> None:
        struct.pack_into("=Q", self._memory, index * 8, value)


@pytest.fixture
def box() -> Iterator[Box]:
    with short_run_dir() as folder:
        box = Box(str(Path(folder) / "box"), 64)
        yield box
        box.unlink()
        os.close(box.fd)


def body_of(number: int) -> bytes:
    """The body of a record: its number, and bytes that follow from it."""
    length = LARGE if number % LARGE_EVERY == 0 else number * 7919 % BODY_MAX
    return NUMBER.pack(number) + bytes([number & 0xFF]) * length


def produce(box: Box, sequence: int, number: int, words: Words | None) -> NoReturn:
    """The producer's process: records from this number on, until it is killed."""
    try:
        if words is not None:
            box.words._words = words  # type: ignore[assignment]  # the accessor is what is under test
        producer = Producer(box, sequence, os.sched_yield)
        served = box.words.view
        while True:
            producer.append(body_of(number))
            served[W_SERVED] = number
            number += 1
            for _ in range(BUMPS):
                served[W_BUMPED] += 1
    finally:
        os._exit(1)


class Reader:
    """The other process: reads, kills, and notes what cannot be."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.consumer = Consumer(box)
        self.wrong: list[str] = []
        self.number = 0
        """Of the last record read."""
        self._last = 0, 0, 0
        self._victim: int | None = None
        self._dies = 0.0

    def kill(self, pid: int, life: float) -> None:
        """Reads, kills the producer after so many seconds, and reads the rest."""
        self._victim, self._dies = pid, time.monotonic() + life
        try:
            while self._victim is not None:
                self._read()
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self._read()
        self.consumer.drop_staged()
        if not self.box.words[W_SERVED] <= self.number <= self.box.words[W_SERVED] + 1:
            self.wrong.append(f"{self.box.words[W_SERVED]} counted, {self.number} published")

    def _read(self) -> None:
        """Takes what is published and looks at the words."""
        self._look()
        try:
            for body in self.consumer.records():
                expected = body_of(self.number + 1)
                if body != expected:
                    self.wrong.append(f"record {self.number + 1} is {body[:16]!r}... of {len(body)} bytes")
                self.number += 1
                self._look()
        except JournalCorrupt as e:
            self.wrong.append(f"corrupt behind record {self.number}: {e}")

    def _look(self) -> None:
        words, last = self.box.words.view, self._last
        for _ in range(LOOKS):
            now = words[W_HEAD], words[W_SERVED], words[W_BUMPED]
            if now[0] < last[0] or now[1] < last[1] or now[2] < last[2]:
                self.wrong.append(f"head, count and other count went from {last} to {now}")
            last = now
        self._last = last
        if self._victim is not None and (self.wrong or time.monotonic() > self._dies):
            os.kill(self._victim, signal.SIGKILL)  # even while records still come
            self._victim = None


def kill_producers(box: Box, rng: random.Random, words: Words | None = None) -> tuple[Reader, int]:
    """Starts producers and kills them; the reader, and how many it took until something was wrong, or all."""
    reader = Reader(box)
    end = time.monotonic() + SECONDS
    kills = 0
    while kills < KILLS and not reader.wrong and (kills < ENOUGH or time.monotonic() < end):
        pid = os.fork()
        if not pid:
            produce(box, reader.consumer.sequence, reader.number + 1, words)
        reader.kill(pid, rng.random() * LIFE_MAX)
        kills += 1
    return reader, kills


def test_no_index_goes_back_and_every_record_is_whole(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    reader, kills = kill_producers(box, random.Random(1))
    with capsys.disabled():
        print(f"\n{kills} producers killed, {reader.number} records, {box.words[W_HEAD] >> 20} MiB of journal")
    assert reader.wrong == []
    assert kills >= ENOUGH
    assert reader.number > kills


def test_the_same_check_finds_pack_into_guilty(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    reader, kills = kill_producers(box, random.Random(1), TornWords(box.memory))
    assert reader.wrong, f"nothing was noticed in {kills} kills"
    with capsys.disabled():
        print(f"\nwith pack_into, within {kills} kills: {reader.wrong[0]}")


def test_whoever_publishes_nothing_leaves_nothing(box: Box) -> None:
    """Bytes behind the head are nobody's: a producer that died while writing them has done nothing."""
    producer = Producer(box, 0, lambda: None)
    producer.append(b"one")
    head = box.words[W_HEAD]
    producer.append(b"two")
    box.words[W_HEAD] = head  # as if it had died before the last store
    consumer = Consumer(box)
    assert list(consumer.records()) == [b"one"]
    Producer(box, consumer.sequence, lambda: None).append(b"three")
    assert list(consumer.records()) == [b"three"]
