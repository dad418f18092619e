"""`kill -9` of Logic at any instruction, under load: nobody notices, nothing is lost, nothing happens twice.

Twenty clients keep Logic busy and check every message they get (`load`).  Meanwhile it is killed, at random times, as fast
as it comes back, and at each step of a request on purpose (`killer`, `steps`).
`XOARSTORE_KILL_SECONDS` sets how long (default 20), `XOARSTORE_KILL_SEED` the seed of a run to be repeated.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.oracle.daemons import OurDaemon
from tests.recovery.boxview import BoxView
from tests.recovery.killer import LIFE_MAX, Killer
from tests.recovery.load import SLOW
from tests.recovery.logic import EPOLL_WAIT, wait_for_restarts
from tests.recovery.steps import Step

SECONDS = float(os.environ.get("XOARSTORE_KILL_SECONDS", "20"))
SEED = int(os.environ.get("XOARSTORE_KILL_SEED", "0")) or random.SystemRandom().getrandbits(32)
HITS = 5
"""Kills that every step must have had."""
LONGEST = 3
"""Times the duration after which steps not yet hit are given up on."""
AS_FAST_AS_IT_RESTARTS = 3.0
FINISH = 30.0
"""Seconds in which the clients come to their end."""


class Herd:
    """The clients' process."""

    def __init__(self, daemon: OurDaemon, view: BoxView) -> None:
        before = max((slot.owner for slot in view.slots()), default=0)
        command = [sys.executable, "-m", "tests.recovery.load", str(daemon.socket), str(SEED)]
        self.daemon = daemon
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        # First comes the connection that prepares the store, then the slow clients'.
        self.slow = range(before + 2, before + 2 + SLOW)

    @property
    def works(self) -> bool:
        return self.process.poll() is None

    def finish(self) -> dict[str, int]:
        """Lets the clients come to their end; what they counted.  Fails with what they found."""
        output, _ = self.process.communicate("stop\n" if self.works else None, timeout=FINISH)
        report = json.loads(output)
        assert not report["failures"], (report["failures"], unusual(self.daemon))
        assert self.process.returncode == 0
        counts: dict[str, int] = report["counts"]
        return counts


@contextmanager
def under_load(daemon: OurDaemon) -> Iterator[tuple[Herd, Killer]]:
    """Clients at work, and a killer."""
    with BoxView(daemon.pid) as view:
        herd = Herd(daemon, view)
        try:
            yield herd, Killer(daemon, view, random.Random(SEED), herd.slow)
        finally:
            if herd.works:
                herd.process.kill()
            herd.process.wait()


def unusual(daemon: OurDaemon) -> list[str]:
    """What the daemon logged, but for its start and for Logics that were killed."""
    usual = ("killed by SIGKILL", "serving on")
    return [line for line in daemon.output().splitlines() if not any(text in line for text in usual)]


def only_killed(daemon: OurDaemon, kills: int) -> None:
    """Every Logic that ended was killed by this test; none died of itself."""
    lines = wait_for_restarts(daemon, kills)
    assert all("killed by SIGKILL" in line for line in lines), daemon.output()
    assert not unusual(daemon)


@pytest.mark.slow
@pytest.mark.skipif(not EPOLL_WAIT, reason="the numbers of system calls are not known for this machine")
def test_killed_at_every_step_of_a_request_nobody_notices(
    daemon: OurDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(SEED)
    with under_load(daemon) as (herd, killer):
        start = time.monotonic()
        while herd.works:
            elapsed = time.monotonic() - start
            missing = [step for step in Step if killer.hits[step] < HITS]
            if elapsed > SECONDS and (not missing or elapsed > LONGEST * SECONDS):
                break
            match rng.randrange(4):
                case 0:
                    killer.at_once(rng.random() * LIFE_MAX)
                case 1:
                    killer.at_once()
                case _:
                    killer.at_a_step()
        with capsys.disabled():
            print(f"\nseed {SEED}, {elapsed:.0f} s\n{killer.table()}")
        counts = herd.finish()
    with capsys.disabled():
        print(f"  {counts}")
    assert not missing, f"too seldom hit: {missing}"
    only_killed(daemon, killer.kills)
    assert counts["commits"]
    assert counts["conflicts"]


def test_killed_as_fast_as_it_restarts_nobody_notices(daemon: OurDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    with under_load(daemon) as (herd, killer):
        end = time.monotonic() + AS_FAST_AS_IT_RESTARTS
        while herd.works and time.monotonic() < end:
            killer.at_once()
        with capsys.disabled():
            print(f"\nseed {SEED}: {killer.kills} kills in {AS_FAST_AS_IT_RESTARTS:g} s")
        counts = herd.finish()
    with capsys.disabled():
        print(f"  {counts}")
    assert killer.kills > 100
    only_killed(daemon, killer.kills)
