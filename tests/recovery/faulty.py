"""The daemon with faults in its Logic, to be started in its place: what the last name of a written path says is done.

    .../abort     Logic dies by SIGABRT
    .../raise     the handler raises what nobody expects
    .../hang      the handler never returns
    .../diverge   Logic's own tree gets another value than what it publishes
    .../forge-X   Logic publishes a hostile record first: `FORGERIES` says which there are

State is the real one.  Knows nothing of tests.
"""

from __future__ import annotations

import os
import resource
import struct
import sys
from collections.abc import Callable
from typing import Any

from protocol.ops import Op
from recovery_box.box import JOURNAL_SIZE, PAGE, W_HEAD
from recovery_box.items import Connection
from tests.oracle.daemons import OurDaemon
from xenstore_logic.core import Core
from xenstore_logic.loop import Loop
from xenstore_logic.requests import ROWS
from xenstore_state.effects import REFUSED, RM, SET_PERMS, SET_QUOTA, WRITE, names_of
from xenstore_state.records import encode
from xenstored.__main__ import main


class FaultyDaemon(OurDaemon):
    """This program, run as a daemon."""

    module = "tests.recovery.faulty"


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


# ---- forgeries


def _forge(loop: Loop, by: Connection, kind: int, *arguments: object, connection: int | None = None) -> None:
    """A record in due form, with what Logic would find if it were true."""
    generation = loop.core.store.tree.generation + 1
    number = by.id if connection is None else connection
    loop._journal.append(encode((number, loop.channel(by).lane.head, kind, arguments, "", generation, ())))


def _raw(loop: Loop, by: Connection, length: int, check: int, body: bytes) -> None:
    """An entry of the journal as it should not be."""
    journal = loop._journal
    at = PAGE + journal._head % JOURNAL_SIZE
    entry = struct.pack("=IIQ", length, check, journal.sequence + 1) + body
    loop._box.memory[at : at + len(entry)] = entry
    loop.words[W_HEAD] = journal._head = journal._head + (len(entry) + 7 & ~7)


def _another(loop: Loop, by: Connection) -> int:
    return next(c.id for c in loop.core.store.items.connections if c is not by)


FORGERIES: dict[bytes, Callable[[Loop, Connection], None]] = {
    b"checksum": lambda loop, by: _raw(loop, by, 8, 12345, b"8 bytes!"),
    b"schema": lambda loop, by: loop._journal.append(b"\xc1 not msgpack"),
    b"fields": lambda loop, by: loop._journal.append(encode((by.id, 0, "kind", (), "", 0, ()))),
    b"foreigner": lambda loop, by: _forge(loop, by, WRITE, 0, b"/forged", b"", connection=_another(loop, by)),
    b"right": lambda loop, by: _forge(loop, by, WRITE, 0, b"/secret", b"forged"),
    b"permissions": lambda loop, by: _forge(loop, by, SET_PERMS, 0, b"/secret", ((0, by.domid),)),
    b"quota": lambda loop, by: _forge(loop, by, WRITE, 0, b"/local/domain/%d/one-more" % by.domid, b""),
    b"quota-raised": lambda loop, by: _forge(loop, by, SET_QUOTA, by.domid, "nodes", 1 << 20),
    b"uncounted": lambda loop, by: _forge(loop, by, REFUSED, "no such quota"),
    b"root": lambda loop, by: _forge(loop, by, RM, 0, b"/"),
    b"path": lambda loop, by: _forge(loop, by, WRITE, 0, b"/forged path\x01", b""),
    b"path-relative": lambda loop, by: _forge(loop, by, WRITE, 0, b"forged", b""),
    b"path-double": lambda loop, by: _forge(loop, by, WRITE, 0, b"/forged//x", b""),
    b"gibibyte": lambda loop, by: _raw(loop, by, 1 << 30, 0, b"8 bytes!"),
    b"long": lambda loop, by: _raw(loop, by, (1 << 28) - 1, 0, b"8 bytes!"),
}


def _loop_that_is_known(loop: Loop, *arguments: Any) -> None:
    _begin(loop, *arguments)
    loops.append(loop)


loops: list[Loop] = []
_begin = Loop.__init__

BEFORE: dict[bytes, Callable[[Core, bytes], None]] = {b"abort": _abort, b"raise": _raise, b"hang": _hang}
AFTER: dict[bytes, Callable[[Core, bytes], None]] = {b"diverge": _diverge}


def _faulty_write(core: Core, by: Connection, tx_id: int, payload: bytes) -> bytes:
    path = core.path(by, payload.partition(b"\0")[0])
    name = path.rpartition(b"/")[2]
    if name in BEFORE:
        BEFORE[name](core, path)
    if name.startswith(b"forge-"):
        FORGERIES[name[len(b"forge-") :]](loops[-1], by)
    reply = _write(core, by, tx_id, payload)
    if name in AFTER:
        AFTER[name](core, path)
    return reply


_write = ROWS[Op.WRITE][0]

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ROWS[Op.WRITE] = (_faulty_write, *ROWS[Op.WRITE][1:])
    setattr(Loop, "__init__", _loop_that_is_known)  # noqa: B010  # that is the fault
    sys.exit(main())
