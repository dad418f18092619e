"""Tests that run while Logic is restarted on purpose (`XOARSTORE_RESTART`): was it restarted inside each of them?"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tests.oracle.daemons import EACH_REQUEST, RESTART_POLICY, STARTED, Daemon, OurDaemon

PATIENCE: Final = 10.0
QUIET: Final = 0.02
"""Seconds without a restart after which those that earlier requests have caused are over."""

_looked_at: Final[set[OurDaemon]] = set()


class Look:
    """A look at a daemon's Logic; whether that is restarted after it."""

    def __init__(self, daemon: OurDaemon) -> None:
        self._daemon = daemon
        self._state = daemon.pid
        self._logic = _settled(daemon)

    def wait(self) -> None:
        """Returns once Logic was restarted; fails if it is not.

        A daemon that was started again must have restarted since; of one that has ended nothing is expected.
        """
        daemon, deadline = self._daemon, time.monotonic() + PATIENCE
        while daemon.running():
            logic = self._logic if daemon.pid == self._state else daemon.first_logic
            if daemon.logic_pid() != logic:
                return
            assert time.monotonic() < deadline, f"Logic {logic} was not restarted"
            time.sleep(0.002)


@contextmanager
def restarted_inside(daemon: Daemon) -> Iterator[None]:
    """Fails unless Logic was restarted in this block; held until it was.  Nothing without `XOARSTORE_RESTART`.

    With `per-request` only what the block itself asks for can cause that.
    """
    if not RESTART_POLICY or not isinstance(daemon, OurDaemon):
        yield
        return
    look = Look(daemon)
    try:
        yield
    finally:
        _looked_at.add(daemon)
    look.wait()


@contextmanager
def restarted_in_test(shared: Daemon | None) -> Iterator[None]:
    """The same around a test, with a daemon that it shares with others; or with those that the test itself starts, if any.

    Those must be looked at by whoever starts them.  A test that has no daemon of this project's has nothing to show.
    """
    look = Look(shared) if RESTART_POLICY and isinstance(shared, OurDaemon) else None
    before = set(STARTED)
    yield
    own = set(STARTED) - before
    for daemon in own:
        assert daemon in _looked_at, f"nobody knows whether the Logic of {daemon.run_dir} was restarted in this test"
    if look is not None and not own:
        look.wait()


def _settled(daemon: OurDaemon) -> int:
    """The Logic that runs when nothing is left to be done; the one that runs if restarts follow the clock."""
    logic = daemon.logic_pid()
    if EACH_REQUEST:
        since = time.monotonic()
        while time.monotonic() < since + QUIET:
            time.sleep(QUIET / 4)
            if daemon.logic_pid() != logic:
                logic, since = daemon.logic_pid(), time.monotonic()
    return logic
