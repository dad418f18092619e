"""A daemon with the actors of one case on it: requests, answers, and the round trips that separate the steps.

After every step each live actor makes one harmless round trip (GET_DOMAIN_PATH), so that all events the step caused
have arrived before the next step begins, and the record is the same on every run.  How long to wait for a message
follows from what is expected: long for what should come, shortly for silence.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from tests.conformance.actors import BARRIER, Actor
from tests.conformance.notation import NotationError, op_number, parse
from tests.conformance.transcript import SILENCE, TOOLSTACK, Answer, Step, is_guest
from tests.conformance.wire import PATIENCE, Client, Message, Op, strings
from tests.conformance.xen import Guest, SimulatedXen, wait_until_released

LONG = PATIENCE
SOON = 2.0
SHORT = 0.15
SETTLE = 0.03
"""Seconds: for an answer; for what follows an event; for silence; to notice an event that nothing follows."""
UNKNOWN_TX = 0xDEAD01
"""Stands for a transaction whose start failed."""

Log = list[str]
Logs = defaultdict[str, Log]


class Stage:
    """The actors of a case on the daemon that listens at `path`.

    Rings need the simulated Xen it runs on; domain 0's may instead be the one that `dom0_ring` opens.
    """

    def __init__(
        self,
        path: str | Path,
        xen: SimulatedXen | None,
        dom0_ring: Callable[[], Client] | None = None,
        patience: float = LONG,
    ) -> None:
        self.path = path
        self.admin = Client(path)
        self._toolstack = Actor(self.admin)
        self.actors: dict[str, Actor] = {}
        self.want: Answer = {}
        """What the step under way is expected to bring."""
        self._xen = xen
        self._patience = patience
        self._dom0_ring = dom0_ring
        self._domids: set[int] = set()
        self._tx_ids: dict[str, int] = {}
        self._generations: dict[bytes, int] = {}

    @property
    def xen(self) -> SimulatedXen:
        assert self._xen is not None, "a case with domains, and no Xen to have them"
        return self._xen

    # ---- actors

    def actor(self, name: str) -> Actor:
        """The actor of this name; sockets and domain 0's ring are opened at their first step."""
        if name not in self.actors:
            assert not is_guest(name), f"{name} does not exist yet"
            self.actors[name] = Actor(self._open_dom0_ring() if name == "dom0-ring" else Client(self.path))
        return self.actors[name]

    def guest(self, name: str) -> Guest:
        """The actor's ring."""
        return self.actor(name).guest

    def _open_dom0_ring(self) -> Client:
        return self.xen.dom0_ring() if self._dom0_ring is None else self._dom0_ring()

    def drop(self, name: str) -> None:
        """Closes the actor, if there is one."""
        if name in self.actors:
            actor = self.actors.pop(name)
            if name == "dom0-ring":  # the ring stays, and what was watched through it
                actor.client.reply(actor.client.send(Op.RESET_WATCHES, req_id=BARRIER - 1))
            actor.close()

    def create(self, name: str) -> None:
        """A new domain for this actor, whose page is zeros; a former one with its number is no more."""
        domid = int(name.removeprefix("dom"))
        self.drop(name)
        self._domids.add(domid)
        self.actors[name] = Actor(self.xen.create(domid))

    def end(self) -> None:
        """No actor is left, nor any domain, as far as the daemon is concerned."""
        rings = [name for name in self.actors if is_guest(name)]
        for name in self.actors.keys() - rings:
            self.drop(name)
        for domid in sorted(self._domids):
            self.xen.destroy(domid)
            wait_until_released(self.admin, domid)
            self.admin.ask(Op.RM, strings(f"/local/domain/{domid}"))
        for name in rings:
            self.drop(name)

    def close(self) -> None:
        """Nothing is open any more, whatever became of the daemon."""
        for name in list(self.actors):
            self.drop(name)
        self.admin.close()

    # ---- one request

    def prepare(self, op: int, payload: bytes) -> str:
        """A request of the toolstack, and how it was answered."""
        req_id, data = self._toolstack.frame(op, payload)
        self.admin.send_raw(data)
        reply = self.admin.reply(req_id)
        if reply.op == Op.INTRODUCE:
            self.introduced(payload)
        return self._toolstack.text(reply, self._generations, "t")

    def request(self, step: Step, log: Log) -> None:
        """A step that is one plain request."""
        actor, op, payload = self.actor(step.actor), op_number(step.verb), parse(step.argument)
        req_id, data = actor.frame(op, payload, self.tx(step.tx))
        actor.send_raw(data, self.patience(step.actor))
        reply = self.collect(step.actor, req_id, log)
        if reply is None or reply.op != op:
            return
        if op == Op.TRANSACTION_START:
            tx_id = reply.payload.rstrip(b"\0")
            self._tx_ids[self.tx_name(step.actor)] = int(tx_id) if tx_id.isdigit() else UNKNOWN_TX
        if op == Op.INTRODUCE:
            self.introduced(payload)
        if op == Op.RELEASE:
            self.mute(int(payload.rstrip(b"\0")))

    def tx(self, name: str) -> int:
        """A transaction's id, given as it is or by the name that its start gave it."""
        if not name:
            return 0
        return int(name, 0) if name[0].isdigit() else self._tx_ids.get(name, UNKNOWN_TX)

    def tx_name(self, actor: str) -> str:
        """What the step under way calls the transaction that the actor starts."""
        for message in self.want.get(actor, ()):
            name, bracket, _ = message.rpartition("= <")[2].partition(">|")
            if bracket:
                return name
        return "t"

    def mute(self, domid: int) -> None:
        """No answers can be expected from this domain's ring any more."""
        for actor in self.actors.values():
            if actor.sits_at_ring_of(domid):
                actor.live = False

    def introduced(self, payload: bytes) -> None:
        """A domain was introduced: its ring, if it is an actor's, begins anew."""
        domid = payload.partition(b"\0")[0]
        for actor in self.actors.values():
            if domid.isdigit() and actor.sits_at_ring_of(int(domid)):
                actor.revive()

    # ---- what arrives

    def patience(self, name: str) -> float:
        return SHORT if SILENCE in self.want.get(name, ()) else self._patience

    def text(self, name: str, message: Message) -> str:
        return self.actors[name].text(message, self._generations, self.tx_name(name))

    def collect(self, name: str, req_id: int, log: Log) -> Message | None:
        """Messages up to the reply to req_id; None when it does not come."""
        actor = self.actors[name]
        while True:
            message = actor.next(self.patience(name))
            if isinstance(message, str):
                log.append(message)
                actor.stalled = actor.stalled or message == SILENCE
                return None
            is_reply = message.req_id == req_id and message.op != Op.WATCH_EVENT
            if not (is_reply and req_id >= BARRIER and message.op == Op.GET_DOMAIN_PATH):
                log.append(self.text(name, message))
            if is_reply:
                return message

    def drain(self, name: str, log: Log, expected: int | None = None) -> None:
        """Everything that comes: with patience until as much came as is expected, then for a short while."""
        actor = self.actors[name]
        expected = len(self.want.get(name, ())) if expected is None else expected
        while True:
            message = actor.next(self._patience if len(log) < expected else SHORT)
            if message == SILENCE:
                return
            if isinstance(message, str):
                log.append(message)
                return
            log.append(self.text(name, message))

    def barrier(self, logs: Logs, *, everybody: bool = True) -> None:
        """The round trips after a step; or only of those who still miss something that is expected."""
        for name, actor in self.actors.items():
            if actor.answers() and (everybody or len(logs[name]) < len(self.want.get(name, ()))):
                req_id, data = actor.barrier()
                actor.send_raw(data, self.patience(name))
                self.collect(name, req_id, logs[name])

    # ---- what nobody answers

    def settle(self, logs: Logs) -> None:
        """After an event that nobody answers: until the messages it should cause are there."""
        time.sleep(SETTLE)
        for name, messages in self.want.items():
            actor, log = self.actors.get(name), logs[name]
            while actor is not None and actor.answers() and len(log) < len(messages):
                message = actor.next(SOON)
                if isinstance(message, str):
                    break  # what is missing is missing; the round trip tells whether it answers
                log.append(self.text(name, message))

    def until(self, holds: Callable[[], bool]) -> None:
        """Waits until this holds, as long as a daemon may take for what it tells nobody."""
        deadline = time.monotonic() + SOON
        while not holds() and time.monotonic() < deadline:
            time.sleep(0.001)


def toolstack_request(line: str) -> tuple[int, bytes]:
    """Operation and payload of a request without an actor."""
    verb, _, argument = line.partition(" ")
    if verb == TOOLSTACK:
        raise NotationError("a request of the toolstack's needs no actor here")
    return op_number(verb), parse(argument.strip())
