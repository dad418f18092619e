"""The steps of a case that are no single request: what an actor does besides asking one question.

`VERBS` is the list, with the words that `docs/conformance.md` explains.  What such a step reports beside messages is
text of its own: `ring features=14 connection=0 error=0 unread=0`, `taken 320 of 640`, `20 x OK`, `19 events`.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable

from tests.conformance.notation import NotationError, op_number, parse, parse_raw
from tests.conformance.stage import SETTLE, SHORT, Log, Logs, Stage
from tests.conformance.transcript import SILENCE, Step
from tests.conformance.wire import Op, strings
from tests.conformance.xen import EVENT, FIELDS, WORD, Guest

QUIET = ("create", "stop-reading")
"""Nothing is to be waited for after these."""


def perform(stage: Stage, step: Step, logs: Logs) -> None:
    """One such step, round trips included."""
    if step.verb in UNANSWERED:
        UNANSWERED[step.verb](stage, step)
        stage.settle(logs)
    elif step.verb in VERBS:
        VERBS[step.verb](stage, step, logs[step.actor])
    else:
        raise NotationError(f"nobody can {step.verb}")
    if step.verb not in QUIET:
        stage.barrier(logs)


# ---- sockets


def _connect(stage: Stage, step: Step, log: Log) -> None:
    """A new connection in place of this one."""
    stage.drop(step.actor)
    stage.actor(step.actor)


def _close(stage: Stage, step: Step, log: Log) -> None:
    stage.drop(step.actor)
    for _ in range(3):  # the daemon has noticed by then
        stage.admin.call(Op.GET_DOMAIN_PATH, b"0\0")


def _half_close(stage: Stage, step: Step, log: Log) -> None:
    """No more requests; then everything until the hang-up."""
    try:
        stage.actor(step.actor).client.sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # closed already
    stage.drain(step.actor, log)


# ---- domains


def _create(stage: Stage, step: Step, log: Log) -> None:
    """A domain exists, which nobody has introduced."""
    stage.create(step.actor)


def _start(stage: Stage, step: Step, log: Log) -> None:
    """A domain as toolstacks make it: it exists, has a home of its own, and is introduced."""
    stage.create(step.actor)
    guest = stage.guest(step.actor)
    home = f"/local/domain/{guest.domid}"
    for op, payload in (
        (Op.WRITE, strings(home)),
        (Op.SET_PERMS, strings(home, f"n{guest.domid}")),
        (Op.INTRODUCE, strings(guest.domid, 1, guest.port)),
    ):
        answer = stage.prepare(op, payload)
        assert answer == "OK", f"{step.actor} could not be started: {op.name} was answered {answer}"


def _fresh_ring(stage: Stage, step: Step, log: Log) -> None:
    """The same domid with a page of zeros, not introduced."""
    stage.create(step.actor)


def _state(stage: Stage, step: Step) -> None:
    """`running`, `shutdown`, `crashed` or `dying`."""
    domid = stage.guest(step.actor).domid
    if step.argument == "dying":
        stage.mute(domid)  # some daemons drop it here
    stage.xen.set_state(domid, "" if step.argument == "running" else step.argument)


def _destroy(stage: Stage, step: Step) -> None:
    """No domain any more; `quietly`: nobody is told."""
    domid = stage.guest(step.actor).domid
    stage.mute(domid)
    stage.xen.destroy(domid, quietly=step.argument == "quietly")


def _virq(stage: Stage, step: Step) -> None:
    """The hypervisor says that some domain has changed."""
    stage.xen.virq()


def _kick(stage: Stage, step: Step) -> None:
    """An event for the daemon; `kick 5 7` says that domain 5 sent it from its port 7."""
    guest = stage.guest(step.actor)
    words = [int(word) for word in step.argument.split()] or [guest.domid, guest.port]
    guest.xen.notify(guest.events_in, EVENT.pack(*words))


def _counted(stage: Stage, step: Step, log: Log) -> None:
    """`counted 5`: what the daemon says that domain 5 uses (CONTROL `quota`)."""
    text = stage.admin.outcome(Op.CONTROL, strings("quota", step.argument))
    lines = text.decode("latin-1") if isinstance(text, bytes) else ""
    found = re.findall(r"^(nodes|watches|transactions) *: *(\d+)", lines, re.MULTILINE)
    if whole := re.match(r"dom\d+ quota: (\d+)/", lines):  # oxenstored counts nothing else
        found = [("nodes", whole[1])]
    log.append(" ".join(["counted", *(f"{name}={number}" for name, number in found)]))


# ---- rings


def _stop_reading(stage: Stage, step: Step, log: Log) -> None:
    stage.actor(step.actor).held = True


def _read_again(stage: Stage, step: Step, log: Log) -> None:
    stage.actor(step.actor).held = False
    stage.drain(step.actor, log)


def _flood(stage: Stage, step: Step, log: Log) -> None:
    """`flood 40 READ v|`: so many requests, nothing read; how much was taken; then everything is read."""
    times, name, payload = (*step.argument.split(" ", 2), "")[:3]
    actor = stage.actor(step.actor)
    before = actor.guest.field("req_cons")
    data = b"".join(actor.frame(op_number(name), parse(payload))[1] for _ in range(int(times)))

    def taken() -> str:
        return f"taken {(actor.guest.field('req_cons') - before) & WORD} of {len(data)}"

    actor.guest.put_bytes(data, SHORT)
    stage.until(lambda: taken() in stage.want.get(step.actor, ()))
    time.sleep(SHORT)  # and no more than that
    log.append(taken())
    answers: Log = []
    stage.drain(step.actor, answers, int(times))
    log += [f"{answers.count(text)} x {text}" for text in sorted(set(answers))]


def _set(stage: Stage, step: Step, log: Log) -> None:
    """`set req_prod=req_cons+1025`: words of the page, then an event."""
    actor = stage.actor(step.actor)
    for assignment in step.argument.split():
        match = re.fullmatch(r"(\w+)=(?:([a-z_]+)([+-]\w+)?|(\w+))", assignment)
        if match is None or match[1] not in FIELDS or (match[2] and match[2] not in FIELDS):
            raise NotationError(f"not a word of the page: {assignment}")
        number = int(match[4], 0) if match[4] else actor.guest.field(match[2]) + int(match[3] or "0", 0)
        actor.guest.set_field(match[1], number)
    actor.held = True
    actor.guest.kick()
    time.sleep(SETTLE)
    _look(stage, step, log)


def _look(stage: Stage, step: Step, log: Log) -> None:
    """The words of the page."""
    guest = stage.guest(step.actor)
    stage.until(lambda: _ring(guest) in stage.want.get(step.actor, ()))
    log.append(_ring(guest))


def _ring(guest: Guest) -> str:
    words = " ".join(f"{name}={guest.field(name)}" for name in ("features", "connection", "error"))
    return f"ring {words} unread={(guest.field('req_prod') - guest.field('req_cons')) & WORD}"


# ---- both


def _raw(stage: Stage, step: Step, log: Log) -> None:
    """Bytes as they are, then what comes within a short while."""
    actor = stage.actor(step.actor)
    actor.forget()
    for piece in parse_raw(step.argument):
        actor.send_raw(piece, stage.patience(step.actor))
        time.sleep(0.002)  # each piece its own segment
    stage.drain(step.actor, log)
    actor.held = True  # who knows what the daemon makes of the stream: `alive` will tell


def _alive(stage: Stage, step: Step, log: Log) -> None:
    """Does it still answer? (GET_DOMAIN_PATH of domain 1)"""
    actor = stage.actor(step.actor)
    actor.held = actor.stalled = False
    req_id, data = actor.frame(Op.GET_DOMAIN_PATH, b"1\0")
    actor.send_raw(data, stage.patience(step.actor))
    stage.collect(step.actor, req_id, log)


def _repeat(stage: Stage, step: Step, log: Log) -> None:
    """`repeat 0..999 WRITE n%d|x`: one request after the other (`%04d`: four digits); equal outcomes are counted, not repeated."""
    bounds, name, template = (*step.argument.split(" ", 2), "")[:3]
    first, last = (int(bound) for bound in bounds.split(".."))
    actor = stage.actor(step.actor)
    runs: list[tuple[str, int]] = []
    events = 0
    for number in range(first, last + 1):
        arrived: Log = []
        payload = parse(_numbered(template, number))
        req_id, data = actor.frame(op_number(name), payload, stage.tx(step.tx))
        actor.send_raw(data, stage.patience(step.actor))
        stage.collect(step.actor, req_id, arrived)
        events += sum(text.startswith("event ") for text in arrived)
        for text in (text for text in arrived if not text.startswith("event ")):
            if runs and runs[-1][0] == text:
                runs[-1] = (text, runs[-1][1] + 1)
            else:
                runs.append((text, 1))
        if SILENCE in arrived:
            break
    log += [f"{count} x {text}" for text, count in runs]
    if events:
        log.append(f"{events} events")


def _numbered(template: str, number: int) -> str:
    return re.sub(r"%(0\d)?d", lambda form: format(number, (form[1] or "") + "d"), template)


def _pipeline(stage: Stage, step: Step, log: Log) -> None:
    """The requests below, sent in one piece."""
    actor = stage.actor(step.actor)
    requests = []
    for part in step.parts:
        name, _, payload = part.partition(" ")
        requests.append(actor.frame(op_number(name), parse(payload.strip())))
    actor.send_raw(b"".join(data for _, data in requests), stage.patience(step.actor))
    stage.collect(step.actor, requests[-1][0], log)


VERBS: dict[str, Callable[[Stage, Step, Log], None]] = {
    "connect": _connect,
    "close": _close,
    "half-close": _half_close,
    "create": _create,
    "start": _start,
    "fresh-ring": _fresh_ring,
    "counted": _counted,
    "stop-reading": _stop_reading,
    "read-again": _read_again,
    "flood": _flood,
    "set": _set,
    "look": _look,
    "raw": _raw,
    "alive": _alive,
    "repeat": _repeat,
    "pipeline": _pipeline,
}
UNANSWERED: dict[str, Callable[[Stage, Step], None]] = {
    "state": _state,
    "destroy": _destroy,
    "virq": _virq,
    "kick": _kick,
}
"""What nobody answers."""
