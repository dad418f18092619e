"""Tests that run while Logic is restarted on purpose (`XOARSTORE_RESTART`): was it restarted inside each of them?"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tests.oracle.daemons import RESTART_POLICY, Daemon, OurDaemon

PATIENCE: Final = 10.0
QUIET: Final = 0.02
"""Seconds without a restart after which those that earlier requests have caused are over."""


@contextmanager
def restarted_inside(daemon: Daemon | None) -> Iterator[None]:
    """Fails unless Logic was restarted in this block; held until it was.  Nothing without `XOARSTORE_RESTART`.

    With `per-request` only what the block itself asks for can cause that.
    """
    if not RESTART_POLICY or not isinstance(daemon, OurDaemon):
        yield
        return
    before = _settled(daemon)
    yield
    deadline = time.monotonic() + PATIENCE
    while daemon.running() and daemon.logic_pid() == before:
        assert time.monotonic() < deadline, f"Logic {before} was not restarted"
        time.sleep(0.002)


def _settled(daemon: OurDaemon) -> int:
    """The Logic that runs when nothing is left to be done; the one that runs if restarts follow the clock."""
    logic = daemon.logic_pid()
    if "per-request" in RESTART_POLICY:
        since = time.monotonic()
        while time.monotonic() < since + QUIET:
            time.sleep(QUIET / 4)
            if daemon.logic_pid() != logic:
                logic, since = daemon.logic_pid(), time.monotonic()
    return logic
