"""What a process tells the kernel of itself: its name, with whom it ends, and whose orphans it takes."""

import ctypes
import signal
from typing import Final

try:
    from recovery_box import _clone
except ImportError:  # no compiler was there
    _clone = None  # type: ignore[assignment]  # an optional module

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36
_libc: Final = ctypes.CDLL(None)


def be_called(name: bytes) -> None:
    """Names the calling thread, and with its main thread the process; at most 15 bytes of the name count."""
    if _clone is not None:
        _clone.called(name)  # by a shorter way
    else:
        _libc.prctl(_PR_SET_NAME, name, 0, 0, 0)


def end_with_parent() -> None:
    """Has this process killed when its parent ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def adopt_orphans() -> None:
    """From now on, what descendants of this process leave behind when they end is its own to reap."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
