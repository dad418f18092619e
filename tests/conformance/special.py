"""The special steps of golden scenarios: what an actor does besides asking one question and reading the answer.

Sockets: `@open` (a new connection in place of this one), `@close`, `@shutwr` (half-close, then everything until the
hang-up).  Domains: `@new` (a domain exists, not introduced), `@reopen` (the same domid with a fresh ring), `@state`,
`@gone` (no domain any more), `@virq` (a word about nothing).  Rings: `@hold` and `@unhold` (stop reading, and read
again), `@flood` (many requests unread, how much was taken, then all answers), `@ringset` (store words of the page: a
number, or [another word, how far from it]), `@ringget`, `@kick` (an event, or [domid, port] of somebody else's).
Both: `@raw` (bytes as they are, then what comes within a short while), `@alive` (does it still answer?), `@bulk` (one
request many times over, with a running number), `@pipe` (several requests in one piece).
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable

from tests.conformance.actors import TIMEOUT
from tests.conformance.scenarios import Step, parse
from tests.conformance.stage import SETTLE, SHORT, Log, Logs, Stage, op_number
from tests.conformance.wire import Op
from tests.conformance.xen import EVENT, WORD, Guest

QUIET = ("@new", "@hold")
"""Nothing is to be waited for after these."""


def perform(stage: Stage, step: Step, logs: Logs) -> None:
    """One special step, round trips included."""
    if step.op in EVENTS:
        EVENTS[step.op](stage, step)
        stage.settle(logs)
    else:
        SPECIAL[step.op](stage, step, logs[step.actor])
    if step.op not in QUIET:
        stage.barrier(logs)


# ---- sockets


def _open(stage: Stage, step: Step, log: Log) -> None:
    stage.drop(step.actor)
    stage.actor(step.actor)


def _close(stage: Stage, step: Step, log: Log) -> None:
    stage.drop(step.actor)
    for _ in range(3):  # the daemon has noticed by then
        stage.admin.call(Op.GET_DOMAIN_PATH, b"0\0")


def _shutwr(stage: Stage, step: Step, log: Log) -> None:
    try:
        stage.actor(step.actor).client.sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # closed already
    stage.drain(step.actor, log)


# ---- domains


def _new(stage: Stage, step: Step, log: Log) -> None:
    stage.create(step.actor, step.payload)


def _reopen(stage: Stage, step: Step, log: Log) -> None:
    stage.create(step.actor, stage.actor(step.actor).guest.domid)


def _state(stage: Stage, step: Step) -> None:
    domid = stage.actor(step.actor).guest.domid
    if step.payload == "dying":
        stage.mute(domid)  # some daemons drop it here
    stage.xen.set_state(domid, step.payload)


def _gone(stage: Stage, step: Step) -> None:
    domid = stage.actor(step.actor).guest.domid
    stage.mute(domid)
    stage.xen.destroy(domid)


def _virq(stage: Stage, step: Step) -> None:
    stage.xen.virq()


def _kick(stage: Stage, step: Step) -> None:
    guest = stage.actor(step.actor).guest
    guest.xen.notify(guest.events_in, EVENT.pack(*(step.payload or (guest.domid, guest.port))))


# ---- rings


def _hold(stage: Stage, step: Step, log: Log) -> None:
    stage.actor(step.actor).held = True


def _unhold(stage: Stage, step: Step, log: Log) -> None:
    stage.actor(step.actor).held = False
    stage.drain(step.actor, log)


def _flood(stage: Stage, step: Step, log: Log) -> None:
    name, payload, times = step.payload
    actor = stage.actor(step.actor)
    before = actor.guest.field("req_cons")
    data = b"".join(actor.frame(op_number(name), parse(payload))[1] for _ in range(times))

    def taken() -> str:
        return f"taken {(actor.guest.field('req_cons') - before) & WORD} of {len(data)}"

    actor.guest.put_bytes(data, SHORT)
    stage.until(lambda: taken() in stage.want.get(step.actor, ()))
    time.sleep(SHORT)  # and no more than that
    log.append(taken())
    answers: Log = []
    stage.drain(step.actor, answers, times)
    log += [f"{text} x{answers.count(text)}" for text in sorted(set(answers))]


def _ringset(stage: Stage, step: Step, log: Log) -> None:
    actor = stage.actor(step.actor)
    for name, value in step.payload.items():
        number = value if isinstance(value, int) else actor.guest.field(value[0]) + value[1]
        actor.guest.set_field(name, number)
    actor.held = True
    actor.guest.kick()
    time.sleep(SETTLE)
    _ringget(stage, step, log)


def _ringget(stage: Stage, step: Step, log: Log) -> None:
    guest = stage.actor(step.actor).guest
    stage.until(lambda: _ring(guest) in stage.want.get(step.actor, ()))
    log.append(_ring(guest))


def _ring(guest: Guest) -> str:
    words = " ".join(f"{name}={guest.field(name)}" for name in ("features", "connection", "error"))
    return f"ring {words} unread={(guest.field('req_prod') - guest.field('req_cons')) & WORD}"


# ---- both


def _raw(stage: Stage, step: Step, log: Log) -> None:
    actor = stage.actor(step.actor)
    for part in step.payload:
        actor.send_raw(parse(part), stage.patience(step.actor))
        time.sleep(0.002)  # each part its own segment
    stage.drain(step.actor, log)
    actor.held = True  # who knows what the daemon makes of the stream: @alive will tell


def _alive(stage: Stage, step: Step, log: Log) -> None:
    actor = stage.actor(step.actor)
    actor.held = actor.stalled = False
    req_id, data = actor.frame(Op.GET_DOMAIN_PATH, b"1\0")
    actor.send_raw(data, stage.patience(step.actor))
    stage.collect(step.actor, req_id, log)


def _bulk(stage: Stage, step: Step, log: Log) -> None:
    """Payload: operation, payload with %d, first, last; equal outcomes are counted, not repeated."""
    name, template, first, last = step.payload
    actor = stage.actor(step.actor)
    runs: list[tuple[str, int]] = []
    events = 0
    for number in range(first, last):
        arrived: Log = []
        payload = parse(template % number if "%" in template else template)
        req_id, data = actor.frame(op_number(name), payload, stage.tx(step.tx))
        actor.send_raw(data, stage.patience(step.actor))
        stage.collect(step.actor, req_id, arrived)
        events += sum(text.startswith("!") for text in arrived)
        for text in (re.sub(r"^=<T\d+>", "=<T>", text) for text in arrived if not text.startswith("!")):
            if runs and runs[-1][0] == text:
                runs[-1] = (text, runs[-1][1] + 1)
            else:
                runs.append((text, 1))
        if TIMEOUT in arrived:
            break
    log += [f"{text} x{count}" for text, count in runs]
    if events:
        log.append(f"{events} events")


def _pipe(stage: Stage, step: Step, log: Log) -> None:
    """Payload: pairs of operation and payload; they are sent in one piece, and answered in this order."""
    actor = stage.actor(step.actor)
    requests = [actor.frame(op_number(name), parse(payload)) for name, payload in step.payload]
    actor.send_raw(b"".join(data for _, data in requests), stage.patience(step.actor))
    stage.collect(step.actor, requests[-1][0], log)


SPECIAL: dict[str, Callable[[Stage, Step, Log], None]] = {
    "@open": _open,
    "@close": _close,
    "@shutwr": _shutwr,
    "@new": _new,
    "@reopen": _reopen,
    "@hold": _hold,
    "@unhold": _unhold,
    "@flood": _flood,
    "@ringset": _ringset,
    "@ringget": _ringget,
    "@raw": _raw,
    "@alive": _alive,
    "@bulk": _bulk,
    "@pipe": _pipe,
}
EVENTS: dict[str, Callable[[Stage, Step], None]] = {
    "@state": _state,
    "@gone": _gone,
    "@virq": _virq,
    "@kick": _kick,
}
"""What nobody answers."""
