"""Operations of the wire protocol and their numbers (xs_wire.h: enum xsd_sockmsg_type).

One table, `OPERATIONS`, says for every request who may send it and whether the transaction id in its header counts.
It knows nothing of what an operation does.
"""

from enum import IntEnum
from typing import Final, NamedTuple


class Op(IntEnum):
    """Message types.  20 was RESTRICT, removed; anything absent here is answered with ENOSYS."""

    CONTROL = 0
    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    INTRODUCE = 8
    RELEASE = 9
    GET_DOMAIN_PATH = 10
    WRITE = 11
    MKDIR = 12
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16
    IS_DOMAIN_INTRODUCED = 17
    RESUME = 18
    SET_TARGET = 19
    RESET_WATCHES = 21
    DIRECTORY_PART = 22
    GET_FEATURE = 23
    SET_FEATURE = 24
    GET_QUOTA = 25
    SET_QUOTA = 26


class Operation(NamedTuple):
    """What the protocol says of a request before anybody looks at its payload."""

    op: Op
    privileged: bool = False
    """Only the privileged domain may send it; others get EACCES."""
    uses_tx: bool = True
    """The header's tx_id must be 0 or name an open transaction of the connection (else ENOENT)."""


OPERATIONS: Final = {
    o.op: o
    for o in (
        Operation(Op.CONTROL, privileged=True),
        Operation(Op.DIRECTORY),
        Operation(Op.READ),
        Operation(Op.GET_PERMS),
        Operation(Op.WATCH, uses_tx=False),
        Operation(Op.UNWATCH, uses_tx=False),
        Operation(Op.TRANSACTION_START),
        Operation(Op.TRANSACTION_END),
        Operation(Op.INTRODUCE, privileged=True),
        Operation(Op.RELEASE, privileged=True),
        Operation(Op.GET_DOMAIN_PATH),
        Operation(Op.WRITE),
        Operation(Op.MKDIR),
        Operation(Op.RM),
        Operation(Op.SET_PERMS),
        Operation(Op.IS_DOMAIN_INTRODUCED, privileged=True),
        Operation(Op.RESUME, privileged=True),
        Operation(Op.SET_TARGET, privileged=True),
        Operation(Op.RESET_WATCHES),
        Operation(Op.DIRECTORY_PART),
        Operation(Op.GET_FEATURE),
        Operation(Op.SET_FEATURE, privileged=True),
        Operation(Op.GET_QUOTA, privileged=True),
        Operation(Op.SET_QUOTA, privileged=True),
    )
}

FEATURE_RECONNECTION: Final = 1
FEATURE_ERROR: Final = 2
FEATURE_WATCH_DEPTH: Final = 4
FEATURE_DOMID_ANY: Final = 8
SOCKET_FEATURES: Final = FEATURE_ERROR | FEATURE_WATCH_DEPTH | FEATURE_DOMID_ANY
"""What GET_FEATURE answers on a socket (14): a socket never reconnects in place."""
RING_FEATURES: Final = SOCKET_FEATURES | FEATURE_RECONNECTION
"""What rings offer (15) unless SET_FEATURE says otherwise."""

DOMID_FIRST_RESERVED: Final = 0x7FF0
DOMID_SELF: Final = 0x7FF0
DOMID_INVALID: Final = 0x7FF4
DOMID_ANY: Final = 0x7FF5
