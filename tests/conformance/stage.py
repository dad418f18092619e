"""A daemon with the actors of one scenario on it: requests, answers, and the round trips that separate the steps.

After every step each live actor makes one harmless round trip (GET_DOMAIN_PATH), so that all events the step caused
have arrived before the next step begins, and the record is the same on every run.  How long to wait for a message
follows from what is expected: long for what should come, shortly for silence.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from tests.conformance.actors import BARRIER, TIMEOUT, Actor
from tests.conformance.scenarios import Answer, Step, parse
from tests.conformance.wire import Client, Message, Op
from tests.conformance.xen import SimulatedXen, wait_until_released

LONG = 5.0
SOON = 2.0
SHORT = 0.15
SETTLE = 0.03
"""Seconds: for an answer; for what follows an event; for silence; to notice an event that nothing follows."""
UNKNOWN_TX = 0xDEAD01
"""Stands for a transaction whose start failed."""

Log = list[str]
Logs = defaultdict[str, Log]


def op_number(op: str) -> int:
    """The operation's number; it may be given as such."""
    return int(op) if op.isdigit() else Op[op]


class Stage:
    """The actors of a scenario on the daemon that listens at `path`; guests need the Xen it runs on."""

    def __init__(self, path: str | Path, xen: SimulatedXen | None) -> None:
        self.path = path
        self.admin = Client(path)
        self.actors: dict[str, Actor] = {}
        self.want: Answer = {}
        """What the step under way is expected to bring."""
        self._xen = xen
        self._domids: set[int] = set()
        self._tx_ids: dict[str, int] = {}
        self._generations: dict[bytes, int] = {}

    @property
    def xen(self) -> SimulatedXen:
        assert self._xen is not None, "a scenario with guests, and no Xen to have them"
        return self._xen

    # ---- actors

    def actor(self, name: str) -> Actor:
        """The actor of this name; sockets and domain 0's ring are opened at their first step."""
        if name not in self.actors:
            assert not name.startswith("G"), f"{name} was not made"
            self.actors[name] = Actor(self.xen.dom0_ring() if name == "R0" else Client(self.path))
        return self.actors[name]

    def drop(self, name: str) -> None:
        """Closes the actor, if there is one."""
        if name in self.actors:
            self.actors.pop(name).close()

    def create(self, name: str, domid: int) -> None:
        """A new domain for this actor (its former one, if any, is its own no more)."""
        self.drop(name)
        self._domids.add(domid)
        self.actors[name] = Actor(self.xen.create(domid))

    def end(self) -> None:
        """No actor is left, nor any domain, as far as the daemon is concerned."""
        rings = [name for name in self.actors if name.startswith("G")]
        for name in self.actors.keys() - rings:
            self.drop(name)
        for domid in sorted(self._domids):
            self.xen.destroy(domid)
            wait_until_released(self.admin, domid)
            self.admin.ask(Op.RM, b"/local/domain/%d\0" % domid)
        for name in rings:
            self.drop(name)

    # ---- one request

    def prepare(self, step: Step) -> None:
        """A request of the player's own."""
        payload = parse(step.payload)
        if self.admin.ask(op_number(step.op), payload).op == Op.INTRODUCE:
            self._introduced(payload)

    def request(self, step: Step, log: Log) -> None:
        """A step that is one plain request."""
        actor, op, payload = self.actor(step.actor), op_number(step.op), parse(step.payload)
        req_id, data = actor.frame(op, payload, self.tx(step.tx))
        actor.send_raw(data, self.patience(step.actor))
        reply = self.collect(step.actor, req_id, log)
        if reply is None or reply.op != op:
            return
        if step.save:
            tx_id = reply.payload.rstrip(b"\0")
            self._tx_ids[step.save] = int(tx_id) if tx_id.isdigit() else UNKNOWN_TX
        if op == Op.INTRODUCE:
            self._introduced(payload)
        if op == Op.RELEASE:
            self.mute(int(payload.rstrip(b"\0")))

    def tx(self, tx: int | str) -> int:
        """A transaction's id, given as it is or by the name under which its start saved it."""
        return self._tx_ids.get(tx, UNKNOWN_TX) if isinstance(tx, str) else tx

    def mute(self, domid: int) -> None:
        """No answers can be expected from this domain's ring any more."""
        for actor in self.actors.values():
            if actor.sits_at_ring_of(domid):
                actor.live = False

    def _introduced(self, payload: bytes) -> None:
        domid = payload.partition(b"\0")[0]
        for actor in self.actors.values():
            if domid.isdigit() and actor.sits_at_ring_of(int(domid)):
                actor.revive()

    # ---- what arrives

    def patience(self, name: str) -> float:
        return SHORT if TIMEOUT in self.want.get(name, ()) else LONG

    def collect(self, name: str, req_id: int, log: Log) -> Message | None:
        """Messages up to the reply to req_id; None when it does not come."""
        actor = self.actors[name]
        while True:
            message = actor.next(self.patience(name))
            if isinstance(message, str):
                log.append(message)
                actor.stalled = actor.stalled or message == TIMEOUT
                return None
            is_reply = message.req_id == req_id and message.op != Op.WATCH_EVENT
            if not (is_reply and req_id >= BARRIER and message.op == Op.GET_DOMAIN_PATH):
                log.append(actor.text(message, self._generations))
            if is_reply:
                return message

    def drain(self, name: str, log: Log, expected: int | None = None) -> None:
        """Everything that comes: with patience until as much came as is expected, then for a short while."""
        actor = self.actors[name]
        expected = len(self.want.get(name, ())) if expected is None else expected
        while True:
            message = actor.next(LONG if len(log) < expected else SHORT)
            if message == TIMEOUT:
                return
            if isinstance(message, str):
                log.append(message)
                return
            log.append(actor.text(message, self._generations))

    def barrier(self, logs: Logs) -> None:
        """The round trips after a step."""
        for name, actor in self.actors.items():
            if actor.answers():
                req_id, data = actor.barrier()
                actor.send_raw(data, self.patience(name))
                self.collect(name, req_id, logs[name])

    # ---- what nobody answers

    def settle(self, logs: Logs) -> None:
        """After an event that nobody answers: until the messages it should cause are there."""
        time.sleep(SETTLE)
        for name, messages in self.want.items():
            actor, log = self.actors[name], logs[name]
            while actor.answers() and len(log) < len(messages):
                message = actor.next(SOON)
                if isinstance(message, str):
                    break  # what is missing is missing; the round trip tells whether it answers
                log.append(actor.text(message, self._generations))

    def until(self, holds: Callable[[], bool]) -> None:
        """Waits until this holds, as long as a daemon may take for what it tells nobody."""
        deadline = time.monotonic() + SOON
        while not holds() and time.monotonic() < deadline:
            time.sleep(0.001)
