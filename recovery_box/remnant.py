"""What is left of a process for a moment after its death: whoever waits for that is told at once.

A process that dies gives up its memory and its descriptors first, and is seen to be dead then: that takes milliseconds, more
the more it had.  A *remnant* is another process that shares both, does nothing, and ends when its maker has: it gives them up
while life goes on elsewhere.  Needs the compiled helper; without it a death takes as long as it takes.
"""

import ctypes
import logging
import os
from typing import Final

try:
    from recovery_box import _remnant
except ImportError:  # no compiler was there
    _remnant = None  # type: ignore[assignment]  # an optional module

log = logging.getLogger(__name__)

NAME: Final = b"xenstore-rest"
"""What it is called."""
_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36
_libc: Final = ctypes.CDLL(None)


def make(name: bytes) -> int:
    """Makes the remnant of this process, once, which is called `name` from then on; its pid, 0 if there is none."""
    pid = 0
    if _remnant is not None:
        _libc.prctl(_PR_SET_NAME, NAME, 0, 0, 0)  # which the remnant inherits, so that it never goes by another
        try:
            pid = _remnant.make()
        except OSError as e:
            log.debug("there is no remnant: %s", e)
    _libc.prctl(_PR_SET_NAME, name, 0, 0, 0)
    return pid


def expect() -> None:
    """From now on remnants of this process's children are its own to reap."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap(others: frozenset[int]) -> int:
    """Reaps the remnants that have ended, and whoever else was left by a child that has died; how many that were.

    `others` are children of this process's own; whoever waits for them finds them.
    """
    count = 0
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return count
        if found is None or found.si_pid in others:
            return count
        os.waitid(os.P_PID, found.si_pid, os.WEXITED | os.WNOHANG)
        count += 1
