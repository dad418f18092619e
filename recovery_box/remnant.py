"""What is left of a process for a moment after its death: whoever waits for that is told at once.

A process that dies gives up its memory and its descriptors first, and is seen to be dead then: that takes milliseconds, more
the more it had.  A *remnant* is another process that shares both, does nothing, and ends a moment after its maker: it gives
them up while life goes on elsewhere.  Needs the compiled helper; without it a death takes as long as it takes.
"""

import logging
import os
import time
from typing import Final

from recovery_box.prctl import be_called

try:
    from recovery_box import _clone
except ImportError:  # no compiler was there
    _clone = None  # type: ignore[assignment]  # an optional module

log = logging.getLogger(__name__)

NAME: Final = b"xenstore-rest"
"""What it is called."""


def make(name: bytes, *, pause: float = 0.0) -> None:
    """Makes the remnant of this process, once, which is called `name` from then on.

    It ends so many seconds after its maker: the kernel lets whoever runs first finish its slice, whatever its priority, and others
    who wake up at that death may have something to do.
    """
    try:
        if _clone is not None:
            _clone.remnant(NAME, name, round(pause * 1e9))
            return
    except OSError as e:
        log.debug("there is no remnant: %s", e)
    be_called(name)


def reap(others: frozenset[int]) -> None:
    """Reaps the remnants that have ended, and whoever else was left by a child that has died (`prctl.adopt_orphans`).

    `others` are children of this process's own; whoever waits for them finds them.
    """
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None or found.si_pid in others:
            return
        os.waitid(os.P_PID, found.si_pid, os.WEXITED | os.WNOHANG)


def outlast(seconds: float) -> None:
    """Waits until all remnants have ended, and whatever else was left, but at most so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            ended, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not ended:
            time.sleep(0.001)
