"""What the kernel says about a daemon's processes: memory, processor time, descriptors.

For tests that must show that something costs no more than it may.  Reads /proc and knows nothing about the daemon.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


IDLE = 0.1
"""Share of a processor that a daemon may use of which nobody wants anything."""


def anonymous_bytes(pids: Iterable[int]) -> int:
    """Resident anonymous memory of all the processes; what they share in files is not counted."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                total += int(line.split()[1]) * 1024
    return total


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time that the processes have used."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def cpu_share(pids: Iterable[int], seconds: float = 1.0) -> float:
    """How much of one processor the processes use during the next seconds: 0 is idle, 1 a busy loop."""
    pids = list(pids)
    before, start = cpu_seconds(pids), time.monotonic()
    time.sleep(seconds)
    return (cpu_seconds(pids) - before) / (time.monotonic() - start)


def becomes_idle(pids: Iterable[int], patience: float = 30.0) -> bool:
    """Whether the processes come to rest: work that is left over ends (a checkpoint, say), a busy loop does not."""
    pids = list(pids)
    deadline = time.monotonic() + patience
    while cpu_share(pids, 0.5) >= IDLE:
        if time.monotonic() > deadline:
            return False
    return True


STANDS_BY = 4
"""Descriptors that State has for whoever stands by, if somebody does."""


def descriptors(pid: int) -> int:
    """How many a process has open; numbers that are only kept occupied, by /dev/null, do not count."""
    count = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):
            count += os.readlink(f"/proc/{pid}/fd/{name}") != os.devnull
    return count


def highest_descriptor(pids: Iterable[int]) -> int:
    """The largest descriptor number that any of the processes has open."""
    return max(int(name) for pid in pids for name in os.listdir(f"/proc/{pid}/fd"))
