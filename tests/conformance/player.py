"""Plays recorded scenarios against a daemon's socket and says what came back, step by step.

A scenario is a list of steps of named socket connections (S0, S1, ...) on paths of its own, with what the newest C
xenstored answered to each (`golden/*.jsonl`).  After every step each live connection makes one harmless round trip
(GET_DOMAIN_PATH), so that all watch events the step caused have arrived before the next step begins: nothing
sleeps for luck, and the record is the same on every run.

Notation, in requests and answers alike: `|` is NUL, `\\|` and `\\\\` are those characters themselves; in requests
`\\{300*x}` is a run.  An answer is a list per connection, in order of arrival: `=` reply, `E:` error, `!` watch event,
`TIMEOUT`, `CLOSED`.  Transaction ids are `<T1>`..., generation counts `<g1>`... in order of first appearance;
long payloads are shown by their beginning, length and SHA-1.

Steps of the actor A prepare and are not recorded.  Operations that begin with @ are special:
`@open` (a new connection in place of this one), `@close`, `@shutwr` (half-close, then everything until the hang-up),
`@raw` (bytes as they are, then what comes within a short while), `@alive` (does it still answer?),
`@bulk` (one request many times over, with a running number), `@pipe` (several requests in one piece).
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conformance.wire import Client, Closed, Message, Op, pack

LONG = 5.0
SHORT = 0.15
BARRIER = 0x7B000000
"""Request ids from here on belong to the round trips after a step and are not recorded."""
UNKNOWN_TX = 0xDEAD01
"""Stands for a transaction whose start failed."""
SHOWN = 160
TIMEOUT, CLOSED = "TIMEOUT", "CLOSED"

Answer = dict[str, list[str]]


@dataclass(frozen=True)
class Step:
    """One request or special act of one actor, and what the reference answered (None: not recorded)."""

    actor: str
    op: str
    payload: Any
    tx: int | str
    save: str
    want: Answer | None

    def __str__(self) -> str:
        payload = json.dumps(self.payload) if isinstance(self.payload, list) else self.payload or ""
        text = f"{self.actor} {self.op} {payload if len(payload) <= SHOWN else payload[:SHOWN] + '...'}"
        return text + (f"  [transaction {self.tx}]" if self.tx else "")


@dataclass
class Scenario:
    """A named list of steps below `root`, which the player makes and removes."""

    name: str
    root: str
    steps: list[Step] = field(default_factory=list)


def load(folder: Path) -> list[Scenario]:
    """The scenarios of every `*.jsonl` in the folder, in order of file name."""
    scenarios: list[Scenario] = []
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text(encoding="ascii").splitlines():
            record = json.loads(line)
            if "scenario" in record:
                scenarios.append(Scenario(record["scenario"], record["root"]))
            else:
                step = Step(
                    record["actor"],
                    record["op"],
                    record.get("payload"),
                    record.get("tx", 0),
                    record.get("save", ""),
                    record.get("want"),
                )
                scenarios[-1].steps.append(step)
    return scenarios


def parse(text: str) -> bytes:
    """The bytes that the notation stands for."""

    def one(match: re.Match[str]) -> str:
        if match["count"]:
            return match["what"] * int(match["count"])
        return match["escaped"] or "\0"

    pattern = r"\\\{(?P<count>\d+)\*(?P<what>.)\}|\\(?P<escaped>[\\|])|\|"
    return re.sub(pattern, one, text).encode("latin-1")


def show(payload: bytes) -> str:
    """A payload in the notation, shortened when it is long."""
    text = payload.decode("latin-1").replace("\\", "\\\\").replace("|", "\\|").replace("\0", "|")
    if len(text) <= SHOWN:
        return text
    digest = hashlib.sha1(payload, usedforsecurity=False).hexdigest()
    return f"{text[:48]}...{len(payload)}:{digest[:10]}"


def expected(step: Step) -> int:
    """How many messages the reference sent to the actor of this step."""
    return len((step.want or {}).get(step.actor, []))


def op_number(op: str) -> int:
    """The operation's number; it may be given as such."""
    return int(op) if op.isdigit() else Op[op]


class Actor:
    """One of a scenario's connections, with what is needed to read its answers."""

    def __init__(self, path: str | Path) -> None:
        self.client = Client(path)
        self.asked: dict[int, tuple[int, int]] = {}
        self.tx_names: dict[bytes, int] = {}
        self.barriers = 0
        self.closed = False
        self.silent = False
        """No round trips any more: its stream was tampered with, or it did not answer."""

    def send_raw(self, data: bytes) -> None:
        try:
            self.client.send_raw(data)
        except (Closed, TimeoutError):
            pass  # reading will tell

    def send(self, op: int, payload: bytes, tx: int = 0, req_id: int | None = None) -> int:
        if req_id is None:
            req_id = len(self.asked) + 1
        self.asked[req_id] = (op, tx)
        self.send_raw(pack(op, payload, req_id=req_id, tx=tx))
        return req_id

    def next(self, timeout: float) -> Message | str:
        """The next message, TIMEOUT or CLOSED."""
        if self.closed:
            return CLOSED
        try:
            return self.client.receive(timeout)
        except TimeoutError:
            return TIMEOUT
        except Closed:
            self.closed = True
            return CLOSED

    def close(self) -> None:
        self.client.close()
        self.closed = True


class Player:
    """Plays scenarios, one after the other, against the daemon that listens at `path`."""

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.actors: dict[str, Actor] = {}
        self.tx_ids: dict[str, int] = {}
        self.generations: dict[bytes, int] = {}

    def play(self, scenario: Scenario) -> Iterator[tuple[int, Step, Answer]]:
        """Number, step and actual answer of each recorded step; leaves the store as it was."""
        self.actors, self.tx_ids, self.generations = {}, {}, {}
        with Client(self.path) as admin:
            for path in ("/g", "/local/domain"):
                admin.mkdir(path)
            try:
                number = 0
                for step in scenario.steps:
                    if step.want is None:
                        admin.call(op_number(step.op), parse(step.payload))
                    else:
                        yield number, step, self._step(step)
                        number += 1
            finally:
                for actor in self.actors.values():
                    actor.close()
                for path in (scenario.root, "/local/domain/0", "/nosuch", "/@foo", "/@x"):
                    admin.ask(Op.RM, path.encode() + b"\0")

    # ---- one step

    def _step(self, step: Step) -> Answer:
        logs: Answer = {}
        log = logs.setdefault(step.actor, [])
        if step.op.startswith("@"):
            getattr(self, "_do_" + step.op[1:])(step, log)
        else:
            actor = self._actor(step.actor)
            req_id = actor.send(op_number(step.op), parse(step.payload), self._tx(step.tx))
            last = self._collect(actor, req_id, LONG, log)
            if last is not None and last.op == op_number(step.op) and step.save:
                tx_id = last.payload.rstrip(b"\0")
                self.tx_ids[step.save] = int(tx_id) if tx_id.isdigit() else UNKNOWN_TX
        self._barrier(logs)
        return {name: messages for name, messages in logs.items() if messages}

    def _tx(self, tx: int | str) -> int:
        return self.tx_ids.get(tx, UNKNOWN_TX) if isinstance(tx, str) else tx

    def _actor(self, name: str) -> Actor:
        if name not in self.actors:
            self.actors[name] = Actor(self.path)
        return self.actors[name]

    def _collect(self, actor: Actor, req_id: int, timeout: float, log: list[str]) -> Message | None:
        """Messages up to the reply to req_id; None when it does not come."""
        while True:
            message = actor.next(timeout)
            if isinstance(message, str):
                log.append(message)
                actor.silent = actor.silent or message == TIMEOUT
                return None
            if message.req_id == req_id and message.op != Op.WATCH_EVENT:
                if not (req_id >= BARRIER and message.op == Op.GET_DOMAIN_PATH):
                    log.append(self._text(actor, message))
                return message
            log.append(self._text(actor, message))

    def _drain(self, actor: Actor, expected: int, log: list[str]) -> None:
        """Everything that comes: with patience as long as something is expected, then for a short while."""
        while True:
            message = actor.next(LONG if len(log) < expected else SHORT)
            if message == TIMEOUT:
                return
            if isinstance(message, str):
                log.append(message)
                return
            log.append(self._text(actor, message))

    def _barrier(self, logs: Answer) -> None:
        for name, actor in self.actors.items():
            if actor.silent or actor.closed:
                continue
            actor.barriers += 1
            req_id = actor.send(Op.GET_DOMAIN_PATH, b"0\0", 0, BARRIER + actor.barriers)
            self._collect(actor, req_id, LONG, logs.setdefault(name, []))

    def _text(self, actor: Actor, message: Message) -> str:
        op, req_id, tx_id, payload = message
        if op == Op.WATCH_EVENT:
            if req_id == tx_id == 0:
                return "!" + show(payload)
            header = (req_id, tx_id) if req_id or tx_id < 9 else "?"
            return f"!{show(payload)} {{header {header}}}"
        if req_id not in actor.asked:
            return f"? reply {op} to nothing: {show(payload)}"
        asked, tx = actor.asked[req_id]
        tail = "" if tx_id == tx else " {tx_id not echoed}"
        if op == Op.ERROR:
            name = show(payload[:-1]) if payload.endswith(b"\0") else show(payload) + " {no NUL}"
            return f"E:{name}{tail}"
        if op != asked:
            return f"?{op}:{show(payload)}{tail}"
        if op == Op.TRANSACTION_START and payload.endswith(b"\0") and payload[:-1].isdigit():
            return f"=<T{actor.tx_names.setdefault(payload, len(actor.tx_names) + 1)}>{tail}"
        generation, nul, rest = payload.partition(b"\0")
        if op == Op.DIRECTORY_PART and nul and generation.isdigit():
            count = self.generations.setdefault(generation, len(self.generations) + 1)
            return f"=<g{count}>|{show(rest)}{tail}"
        return f"={show(payload)}{tail}"

    # ---- special steps

    def _do_open(self, step: Step, log: list[str]) -> None:
        if step.actor in self.actors:
            self.actors.pop(step.actor).close()
        self._actor(step.actor)

    def _do_close(self, step: Step, log: list[str]) -> None:
        self.actors.pop(step.actor).close()

    def _do_shutwr(self, step: Step, log: list[str]) -> None:
        actor = self._actor(step.actor)
        try:
            actor.client.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        self._drain(actor, expected(step), log)

    def _do_raw(self, step: Step, log: list[str]) -> None:
        actor = self._actor(step.actor)
        for part in step.payload:
            actor.send_raw(parse(part))
            time.sleep(0.002)  # each part its own segment
        self._drain(actor, expected(step), log)
        actor.silent = not actor.closed

    def _do_alive(self, step: Step, log: list[str]) -> None:
        actor = self._actor(step.actor)
        actor.silent = False
        patience = SHORT if step.want == {step.actor: [TIMEOUT]} else LONG
        self._collect(actor, actor.send(Op.GET_DOMAIN_PATH, b"1\0"), patience, log)

    def _do_bulk(self, step: Step, log: list[str]) -> None:
        """Payload: operation, payload with %d, first, last; equal outcomes are counted, not repeated."""
        name, template, first, last = step.payload
        actor = self._actor(step.actor)
        runs: list[tuple[str, int]] = []
        events = 0
        for i in range(first, last):
            sub: list[str] = []
            self._collect(actor, actor.send(Op[name], parse(template % i if "%" in template else template)), LONG, sub)
            events += sum(text.startswith("!") for text in sub)
            for text in sub:
                if text.startswith("!"):
                    continue
                if runs and runs[-1][0] == text:
                    runs[-1] = (text, runs[-1][1] + 1)
                else:
                    runs.append((text, 1))
        log += [f"{text} x{count}" for text, count in runs]
        if events:
            log.append(f"{events} events")

    def _do_pipe(self, step: Step, log: list[str]) -> None:
        """Payload: pairs of operation and payload; they are sent in one piece, and answered in this order."""
        actor = self._actor(step.actor)
        data, last = b"", 0
        for name, payload in step.payload:
            last = len(actor.asked) + 1
            actor.asked[last] = (op_number(name), 0)
            data += pack(op_number(name), parse(payload), req_id=last)
        actor.send_raw(data)
        self._collect(actor, last, LONG, log)
