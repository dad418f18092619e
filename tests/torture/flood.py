"""A client that keeps Logic busy at little cost to itself: the same request a hundred times in one piece.

What comes back must be the same reply a hundred times, byte for byte.  Knows nothing of what it asks for.
"""

from __future__ import annotations

from collections.abc import Generator

from tests.recovery.clients import Peer, Wait, check


class Flooder(Peer):
    """A peer which, once it floods, takes bytes as they come."""

    _wanted = 0
    _got = b""

    def flood(self, asked: bytes, expected: bytes, requests: int) -> Generator[Wait, None, None]:
        """Sends these bytes, and must get those."""
        self.counts["requests"] += requests
        self._wanted, self._got = len(expected), b""
        self._outbox.append((0, asked))
        yield Wait(None)
        check(self._got == expected, f"the stream is torn: {len(self._got)} bytes, {self._got[:200]!r}")

    @property
    def has_message(self) -> bool:
        return len(self._got) >= self._wanted if self._wanted else super().has_message

    def receive(self) -> None:
        """Takes what is there."""
        if not self._wanted:
            super().receive()
            return
        data = self.take()
        if not data:
            return
        self._got += data
