"""An actor of a case: one connection, socket or ring, and how its messages are written down."""

from __future__ import annotations

from tests.conformance.notation import op_name, show
from tests.conformance.transcript import CLOSED, SILENCE
from tests.conformance.wire import Client, Closed, Message, Op, pack
from tests.conformance.xen import Guest

BARRIER = 0x7B000000
"""Request ids from here on belong to the round trips after a step and are not recorded."""


class Actor:
    """A connection with what is needed to read its answers; a guest is `live` from its introduction on."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.live = not isinstance(client, Guest) or client.domid == 0
        self.closed = False
        self.held = False
        """It does not read, or its stream was tampered with: no round trips after steps."""
        self.stalled = False
        """It was not answered: no round trips either, until it is introduced again."""
        self._asked: dict[int, tuple[int, int]] = {}
        self._requests = 0
        self._barriers = 0
        self._tx_ids: set[bytes] = set()

    @property
    def guest(self) -> Guest:
        """The ring this actor sits at."""
        assert isinstance(self.client, Guest)
        return self.client

    def sits_at_ring_of(self, domid: int) -> bool:
        return isinstance(self.client, Guest) and self.client.domid == domid

    def answers(self) -> bool:
        """Whether it takes part in the round trips after a step."""
        return self.live and not (self.held or self.stalled or self.closed)

    def revive(self) -> None:
        """Its domain was introduced: the ring begins anew."""
        self.live, self.stalled = True, False
        self.client.pending.clear()

    def close(self) -> None:
        self.client.close()
        self.closed = True

    # ---- requests

    def frame(self, op: int, payload: bytes, tx: int = 0) -> tuple[int, bytes]:
        """The next request's id and bytes."""
        self._requests += 1
        return self._requests, self._frame(self._requests, op, payload, tx)

    def barrier(self) -> tuple[int, bytes]:
        """The id and the bytes of the harmless round trip after a step."""
        self._barriers += 1
        req_id = BARRIER + self._barriers
        return req_id, self._frame(req_id, Op.GET_DOMAIN_PATH, b"0\0", 0)

    def _frame(self, req_id: int, op: int, payload: bytes, tx: int) -> bytes:
        self._asked[req_id] = (op, tx)
        return pack(op, payload, req_id=req_id, tx=tx)

    def send_raw(self, data: bytes, timeout: float) -> None:
        try:
            self.client.send_raw(data, timeout=timeout)
        except (Closed, TimeoutError):
            pass  # reading will tell

    def next(self, timeout: float) -> Message | str:
        """The next message, SILENCE or CLOSED."""
        if self.closed:
            return CLOSED
        try:
            return self.client.receive(timeout)
        except TimeoutError:
            return SILENCE
        except Closed:
            self.closed = True
            return CLOSED

    # ---- messages as text

    def text(self, message: Message, generations: dict[bytes, int], tx_name: str) -> str:
        """The message as transcripts write it.

        `generations` numbers the counts of DIRECTORY_PART; a transaction that starts is called `tx_name`.
        """
        op, req_id, tx_id, payload = message
        if op == Op.WATCH_EVENT:
            return f"event {show(payload)}" + ("" if req_id == tx_id == 0 else f" {{header {req_id} {tx_id}}}")
        if req_id not in self._asked:
            return f"{op_name(op)} {self._content(op, payload)}"
        asked, tx = self._asked[req_id]
        tail = "" if tx_id == tx else " {tx_id not echoed}"
        if op not in (asked, Op.ERROR):
            return f"{op_name(op)} {self._content(op, payload)}{tail}"
        if op == Op.TRANSACTION_START and payload.endswith(b"\0") and payload[:-1].isdigit():
            again = " {an id that was given before}" if payload in self._tx_ids else ""
            self._tx_ids.add(payload)
            return f"= <{tx_name}>|{tail}{again}"
        generation, nul, rest = payload.partition(b"\0")
        if op == Op.DIRECTORY_PART and nul and generation.isdigit():
            count = generations.setdefault(generation, len(generations) + 1)
            return f"= <g{count}>|{show(rest)}{tail}"
        return self._content(op, payload) + tail

    def _content(self, op: int, payload: bytes) -> str:
        if op == Op.ERROR:
            return show(payload[:-1]) if payload.endswith(b"\0") else f"{show(payload)} {{no NUL}}"
        return "OK" if payload == b"OK\0" else f"= {show(payload)}".rstrip(" ")

    def forget(self) -> None:
        """What comes from now on answers nothing that was asked before."""
        self._asked.clear()
