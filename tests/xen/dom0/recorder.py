"""This project's daemon, writing down what is asked of it: for workloads that benchmarks replay.

    python -m tests.xen.dom0.recorder RECORD ARGUMENTS...     (ARGUMENTS as for xenstored)

A line a thing, in the order in which the daemon dealt with them; words separated by blanks, bytes in hexadecimal ("-" if none):

    q CONNECTION DOMID socket|ring OP TRANSACTION PAYLOAD REPLY-TYPE REPLY    a request and how it was answered
    close CONNECTION          a socket has closed
    gone DOMID                a domain is no more, and whoever watches was told
    shutdown DOMID            a domain has shut down, and whoever watches was told

Knows nothing of what the requests are for.  The daemon does what it always does; only the entrances are watched.
"""

import os
import sys
from typing import Final

from recovery_box.items import Connection
from xenstore_logic import domains
from xenstore_logic.channels import Channel
from xenstore_logic.core import Core
from xenstore_logic.loop import Loop
from xenstored.__main__ import main

_serve: Final = Core.serve
_close: Final = Loop.close
_gone: Final = domains.gone
_shut_down: Final = domains.shut_down


def record_into(path: str) -> None:
    """Has the daemon that this process will be append to a file."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def line(*words: object) -> None:
        os.write(fd, (" ".join(map(str, words)) + "\n").encode())

    def serve(core: Core, by: Connection, op: int, tx_id: int, payload: bytes) -> tuple[int, bytes]:
        answer, body = _serve(core, by, op, tx_id, payload)
        kind = "socket" if by.socket else "ring"
        line("q", by.id, by.domid, kind, op, tx_id, payload.hex() or "-", answer, body.hex() or "-")
        return answer, body

    def close(loop: Loop, channel: Channel) -> None:
        line("close", channel.connection.id)
        _close(loop, channel)

    def gone(core: Core, domid: int, unique_id: int | None = None) -> bool:
        news = _gone(core, domid, unique_id)
        if news:
            line("gone", domid)
        return news

    def shut_down(core: Core, domid: int, unique_id: int) -> bool:
        news = _shut_down(core, domid, unique_id)
        if news:
            line("shutdown", domid)
        return news

    Core.serve = serve  # type: ignore[method-assign, assignment]
    Loop.close = close  # type: ignore[method-assign, assignment]
    domains.gone = gone
    domains.shut_down = shut_down


if __name__ == "__main__":
    record_into(sys.argv.pop(1))
    sys.exit(main())
