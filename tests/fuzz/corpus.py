"""Where fuzzing begins: requests of the conformance cases, inputs found earlier, and a few by hand.

`found/TARGET/NAME` are inputs that once failed; `make fuzz` adds what it finds.
"""

import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

from protocol.wire import HEADER
from tests.conformance import notation, transcript
from tests.fuzz.targets import small_store
from xenstore_state.records import encode

FOUND: Final = Path(__file__).parent / "found"
TAKEN: Final = 400
"""Different requests taken from the cases."""


@cache
def recorded() -> tuple[tuple[int, bytes], ...]:
    """Operation and payload of requests in the cases, each once, the short ones first."""
    seen: dict[tuple[int, bytes], None] = {}
    for case in transcript.load():
        for step in case.steps:
            if step.is_request and (op := notation.op_number(step.verb)) < 256:
                seen[op, notation.parse(step.argument)] = None
    return tuple(sorted(seen, key=lambda request: len(request[1]))[:TAKEN])


def seeds(target: str) -> Iterator[bytes]:
    """Inputs to begin with."""
    yield b""
    for path in sorted((FOUND / target).glob("*")):
        yield path.read_bytes()
    if target == "framer":
        stream = b"".join(HEADER.pack(op, 1, 0, len(payload)) + payload for op, payload in recorded()[:12])
        yield b"\x02\x05\xff" + stream
    elif target == "requests":
        for op, payload in recorded():
            if len(payload) < 256:
                yield b"".join(bytes((who, op, who & 1, len(payload))) + payload for who in (0, 1))
    elif target == "ring":
        for op, payload in recorded()[:20]:
            message = HEADER.pack(op, 1, 0, len(payload)) + payload
            yield bytes(8) + b"\0" + bytes((len(message),)) + message + bytes(4) + b"\x03\x05\x06\x07" * 4
    elif target == "records":
        generation = small_store().tree.generation
        for kind, arguments in ((4, (0, b"/c", b"v")), (6, (0, b"/a")), (9, (1,)), (10, (1,)), (12, (b"/a", b"t"))):
            body = encode((1 if kind < 9 else 2, 0, kind, arguments, "", generation + (kind < 9), ()))
            yield b"\1" + bytes((len(body),)) + body
    elif target == "journal":
        yield struct.pack("<QB", 24, 0) + bytes(24)
    elif target == "options":
        yield from (
            line.encode() for line in ("\n-N\n-D", "/run/x\n--restart\nevery=5", "\n-Q\nnodes=5\n-w\nwatch-event=7")
        )
