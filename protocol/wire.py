"""Messages: header, replies, errors, events, and an incremental framer.

A message is a 16-byte header in host byte order and up to 4,096 bytes of payload; messages follow one another without
padding (xs_wire.h: struct xsd_sockmsg).  This module packs and unpacks them; payloads are opaque here.
"""

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from protocol.errors import StoreError
from protocol.ops import Op

HEADER: Final = struct.Struct("=IIII")
"""type, req_id, tx_id, length of the payload in bytes."""
HEADER_SIZE: Final = HEADER.size
PAYLOAD_MAX: Final = 4096
"""Longest payload in either direction (XENSTORE_PAYLOAD_MAX)."""
MESSAGE_MAX: Final = HEADER_SIZE + PAYLOAD_MAX
ACK: Final = b"OK\0"


class Message(NamedTuple):
    """One whole message.  `op` is a plain int: senders may put anything there."""

    op: int
    req_id: int
    tx_id: int
    payload: bytes

    def encode(self) -> bytes:
        """The message as it goes over the wire."""
        return HEADER.pack(self.op, self.req_id, self.tx_id, len(self.payload)) + self.payload


class FramingViolation(Exception):
    """A header announced more than `PAYLOAD_MAX` bytes.  The stream cannot be followed any further."""

    def __init__(self, length: int) -> None:
        super().__init__(f"a message announces {length} bytes of payload, {PAYLOAD_MAX} are allowed")
        self.length = length


def error_reply(request: Message, error: StoreError) -> Message:
    """The answer that refuses `request`."""
    return Message(Op.ERROR, request.req_id, request.tx_id, error.payload)


def watch_event(path: bytes, token: bytes) -> bytes | None:
    """An encoded WATCH_EVENT (req_id and tx_id 0), or None when it would exceed `PAYLOAD_MAX`: such an event is not sent."""
    n = len(path) + len(token) + 2
    if n > PAYLOAD_MAX:
        return None
    return b"".join((HEADER.pack(15, 0, 0, n), path, b"\0", token, b"\0"))


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, whole message) of each message in a piece of output.  Raises ValueError when the last one is cut short."""
    at = 0
    while at < len(data):
        if len(data) - at < HEADER_SIZE:
            raise ValueError("a header is cut short")
        op, _, _, length = HEADER.unpack_from(data, at)
        end = at + HEADER_SIZE + length
        if end > len(data):
            raise ValueError("a message is cut short")
        yield op, data[at:end]
        at = end


class Framer:
    """Cuts a byte stream into messages, whatever the pieces it arrives in.

    Feed bytes, iterate over what is complete.  After a `FramingViolation` the framer stays broken and raises it again.
    Holds at most one incomplete message plus what was fed and not yet taken.
    """

    __slots__ = ("_broken", "_buffer", "_start")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._start = 0
        self._broken: int | None = None

    @property
    def pending(self) -> bytes:
        """Bytes of the message that is not complete yet."""
        return bytes(self._buffer[self._start :])

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[Message]:
        """Takes `data` and yields each message that is now complete.

        Raises `FramingViolation` at the first header that announces too much; messages before it have been yielded.
        """
        if self._broken is None:
            self._buffer += data
        return self._messages()

    def _messages(self) -> Iterator[Message]:
        buffer = self._buffer
        while True:
            if self._broken is not None:
                raise FramingViolation(self._broken)
            start = self._start
            if len(buffer) - start < HEADER_SIZE:
                break
            op, req_id, tx_id, length = HEADER.unpack_from(buffer, start)
            if length > PAYLOAD_MAX:
                self._broken = length
                buffer.clear()
                continue
            end = start + HEADER_SIZE + length
            if len(buffer) < end:
                break
            payload = bytes(buffer[start + HEADER_SIZE : end])
            self._start = end
            yield Message(op, req_id, tx_id, payload)
        del buffer[: self._start]
        self._start = 0
