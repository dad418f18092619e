"""Forking for the parent: a process makes another one, which is its parent's child as if that had forked.

So the parent, which has much memory and much to do, neither has to copy its page tables nor meets a fault at each page that it
writes to afterwards.  Needs the compiled helper, and a process of one thread: what Python or a library wants to do at a fork, for
the sake of other threads, is not done.
"""

import ctypes
import logging
import os
from typing import Final

try:
    from recovery_box import _clone
except ImportError:  # no compiler was there
    _clone = None  # type: ignore[assignment]  # an optional module

log = logging.getLogger(__name__)

POSSIBLE: Final = _clone is not None
"""Whether this can be done here."""
_LARGE: Final = 2 << 20
_MADV_COLLAPSE: Final = 25
_TRIES: Final = 2
"""The kernel cannot move a page that somebody has in hand."""
_libc: Final = ctypes.CDLL(None, use_errno=True)


def breed(hears: int, says: int, kind: bytes, ends: int) -> tuple[bytes, list[int], bool]:
    """Forks a child of this process's parent, killed when that ends, for each order of one kind, and says its pid by `says`.

    An order is a message that comes by `hears`, begins with the byte `kind`, and comes with so many descriptors, which only the
    child keeps.  Returns in each child, with any other message, which is left to the caller, and when there will be none
    any more (it is empty then): the message, its descriptors, whether this is a child.  A pid is an int as the machine has it.
    Raises OSError.
    """
    return _clone.breed(hears, says, kind, ends)


def prepare() -> None:
    """Makes forks of this process cheaper: its memory comes to lie in large pages, as far as the kernel can and will."""
    with open("/proc/self/maps", encoding="utf-8") as f:
        lines = [line.split() for line in f]
    small: list[int] = []
    for addresses, rights, _, _, inode, *name in lines:
        if rights == "rw-p" and inode == "0" and name in ([], ["[heap]"]):
            first, end = (int(number, 16) for number in addresses.split("-"))
            small.extend(range((first + _LARGE - 1) // _LARGE * _LARGE, end - _LARGE + 1, _LARGE))
    for _ in range(_TRIES):
        small = [at for at in small if _libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t(_LARGE), _MADV_COLLAPSE)]
    if small:
        log.debug("%d MB stay in small pages: %s", len(small) * _LARGE >> 20, os.strerror(ctypes.get_errno()))
