"""Shared memory mapped without keeping a descriptor.

Python's own mmap keeps a duplicate of the descriptor, under a number that a connection may be given later, and refuses files that
claim no size.
"""

import ctypes
import os
from typing import Final

PROT_READ_WRITE: Final = 3
MAP_SHARED: Final = 1
MAP_ANONYMOUS: Final = 0x20

libc: Final = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_ssize_t
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


class Mapping:
    """Shared writable memory: of a file, or without one."""

    def __init__(self, length: int, fd: int = -1, offset: int = 0) -> None:
        flags = MAP_SHARED if fd >= 0 else MAP_SHARED | MAP_ANONYMOUS
        self.address: int = libc.mmap(None, length, PROT_READ_WRITE, flags, fd, offset)
        if self.address == -1:
            raise libc_error("mmap")
        self._length = length
        self.view = memoryview((ctypes.c_ubyte * length).from_address(self.address)).cast("B")

    def close(self) -> None:
        """Unmaps; nobody may look at the memory any more."""
        self.view.release()
        libc.munmap(self.address, self._length)


def libc_error(what: str) -> OSError:
    """What the last call says through errno."""
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")
