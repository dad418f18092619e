"""Permission entries on the wire: a letter and a domid (xenstore-common.h: xenstore_strings_to_perms).

Only the notation lives here.  What an entry grants is `xenstore_state.access`.
"""

from typing import Final, NamedTuple

from protocol.errors import EINVAL
from protocol.payload import strtol_any_base

NONE: Final = 0
READ: Final = 1
WRITE: Final = 2
BOTH: Final = READ | WRITE
_LETTERS: Final = b"nrwb"


class Permission(NamedTuple):
    """One entry: `access` is a combination of READ and WRITE, `domid` an unsigned 32-bit number (not range checked)."""

    access: int
    domid: int

    def encode(self) -> bytes:
        """`b7` and the like; the number is printed signed, as the C daemon prints it."""
        signed = self.domid - 2**32 if self.domid >= 2**31 else self.domid
        return b"%c%d" % (_LETTERS[self.access], signed)


def parse_permission(text: bytes) -> Permission:
    """Reads `n0`, `r0x10`, `b-1`...  Raises EINVAL for another letter, no number, or anything behind the number."""
    access = _LETTERS.find(text[:1]) if text else -1
    domid = strtol_any_base(text[1:])
    if access < 0 or domid is None:
        raise EINVAL
    return Permission(access, domid & 0xFFFFFFFF)
