"""The daemon with faults in its Logic, to be started in its place: what the last name of a written path says is done.

    .../abort     Logic dies by SIGABRT
    .../raise     the handler raises what nobody expects
    .../hang      the handler never returns
    .../diverge   Logic's own tree gets another value than what it publishes

State is the real one.  Knows nothing of tests.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable

from protocol.ops import Op
from recovery_box.items import Connection
from tests.oracle.daemons import OurDaemon
from xenstore_logic.core import Core
from xenstore_logic.requests import HANDLERS
from xenstore_state.effects import names_of
from xenstored.__main__ import main


class FaultyDaemon(OurDaemon):
    """This program, run as a daemon."""

    def command(self) -> list[str]:
        return ["tests.recovery.faulty" if word == "xenstored" else word for word in super().command()]


def _abort(core: Core, path: bytes) -> None:
    os.abort()


def _raise(core: Core, path: bytes) -> None:
    raise RuntimeError("a fault")


def _hang(core: Core, path: bytes) -> None:
    while True:
        pass


def _diverge(core: Core, path: bytes) -> None:
    node = core.store.tree.find(names_of(path))
    assert node is not None
    node.value = b"something else"


BEFORE: dict[bytes, Callable[[Core, bytes], None]] = {b"abort": _abort, b"raise": _raise, b"hang": _hang}
AFTER: dict[bytes, Callable[[Core, bytes], None]] = {b"diverge": _diverge}


def _faulty_write(core: Core, by: Connection, tx_id: int, payload: bytes) -> bytes:
    path = core.path(by, payload.partition(b"\0")[0])
    name = path.rpartition(b"/")[2]
    if name in BEFORE:
        BEFORE[name](core, path)
    reply = _write(core, by, tx_id, payload)
    if name in AFTER:
        AFTER[name](core, path)
    return reply


_write = HANDLERS[Op.WRITE]

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    HANDLERS[Op.WRITE] = _faulty_write
    sys.exit(main())
