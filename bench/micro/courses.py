"""What a turn is made of: its stages run in their order, over and over, with a look at the clock between any two.

For: `bench.micro.budget`.
Guarantees: stages and whole turns alternate in one process, so that they meet the same machine, and each is as warm or cold as
the others leave it; a look at the clock is in no figure; nothing is left behind.
Does not know: what the stages add up to.

(Stages that are measured one by one, each in a process of its own, do not add up to anything: a machine's speed changes by more
between two of them than a stage takes.)
"""

import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import pairwise
from statistics import median
from time import perf_counter_ns
from typing import Final, NamedTuple

from bench.micro.parts import GUEST_ACL, PATH, READING, VALUE, WRITING, ready_stand
from bench.stand import RECEIVE, Stand
from protocol.ops import Op
from protocol.paths import components
from protocol.wire import ACK, HEADER, HEADER_SIZE, PAYLOAD_MAX
from recovery_box.box import JOURNAL_SIZE
from xenstore_logic.loop import DIGEST_EVERY
from xenstore_state.access import Subject, rights
from xenstore_state.effects import PERFORM, WRITE
from xenstore_state.records import decode

TURNS = 20_000
WARM_UP = 20
"""The share of turns that count for nothing is one of so many."""
HANDLER: Final = "handler"

Stage = Callable[[], object]


class Course(NamedTuple):
    """Stages by their titles; what else is measured, by its title; and the whole that the stages belong to."""

    before: Stage
    stages: Mapping[str, Stage]
    inside: Mapping[str, Stage]
    behind: Stage
    whole: Stage
    behind_whole: Stage


def nothing() -> None:
    """What a look at the clock costs by itself."""


def _performed(stand: Stand) -> Stage:
    perform, store, by = PERFORM[WRITE], stand.core.store, stand.connection

    def act() -> None:
        perform(store, by, 0, PATH, VALUE)
        if store.tree.generation % DIGEST_EVERY == 0:
            store.tree.begin_digest()

    return act


def _reading(stand: Stand) -> Course:
    lane, core, by, payload = stand.channel.lane, stand.core, stand.connection, READING[HEADER_SIZE:]
    client, tree, toolstack, parts = stand.client, core.store.tree, Subject(0, privileged=True), components(PATH)
    op = int(Op.READ)
    return Course(
        lambda: client.send(READING),
        {
            "readiness (epoll_wait)": lambda: stand.epoll.poll(0, 64),
            "receive (recvmmsg)": lane.receive,
            "message framed: header, payload": lambda: lane.frame(PAYLOAD_MAX),
            HANDLER: lambda: core.serve(by, op, 0, payload),
            "reply encoded, into its region": lambda: lane.reply(op, 1, 0, VALUE, lane.fill),
            "send (sendmmsg)": lane.send,
        },
        {
            "the path: checked, its names": lambda: core.path(by, PATH),
            "lookup": lambda: tree.find(parts),
            "permission check": lambda: rights(GUEST_ACL, toolstack),
        },
        lambda: client.recv(RECEIVE),
        lambda: stand.loop.turn(0),
        lambda: client.recv(RECEIVE),
    )


def _writing(stand: Stand) -> Course:
    lane, core, by, payload = stand.channel.lane, stand.core, stand.connection, WRITING[HEADER_SIZE:]
    client, store, publish, spare = stand.client, core.store, stand.producer.publish, ready_stand()
    op, reply = int(Op.WRITE), HEADER.pack(Op.WRITE, 1, 0, len(ACK)) + ACK

    def publishing() -> None:
        assert core.effect is not None
        publish((by.id, lane.fill, *core.effect, store.tree.generation, ((by.id, lane.made, reply, False, 0),)))
        core.effect = None

    def end() -> None:
        client.recv(RECEIVE)
        # State's part, now and then: beside each turn it would take the caches that in the daemon are Logic's alone.
        if stand.producer.backlog > JOURNAL_SIZE // 2:
            stand.drain()

    return Course(
        lambda: client.send(WRITING),
        {
            "readiness (epoll_wait)": lambda: stand.epoll.poll(0, 64),
            "receive (recvmmsg)": lane.receive,
            "message framed: header, payload": lambda: lane.frame(PAYLOAD_MAX),
            HANDLER: lambda: core.serve(by, op, 0, payload),
            "record encoded, into the journal": publishing,
            "reply, into its region": lambda: lane.answer(reply, lane.fill),
            "send (sendmmsg)": lane.send,
        },
        {
            "the path: checked, its names": lambda: core.path(by, PATH),
            "the effect: lookup, permission check, new value": _performed(spare),
        },
        end,
        lambda: stand.loop.turn(0),
        end,
    )


def _applying(stand: Stand) -> Course:
    """State's: the records of one turn of Logic's at a time."""
    records: list[Iterator[bytes]] = []
    bodies: list[bytes] = []

    def take() -> None:
        records.append(stand.consumer.records())
        bodies.append(next(records[-1]))

    def end() -> None:
        stand.applier.apply(bodies.pop())
        for body in records.pop():
            stand.applier.apply(body)

    def write() -> None:
        stand.exchange(WRITING)

    stages = {
        "journal read": take,
        "record decoded": lambda: decode(bodies[-1]),
        "the effect": _performed(ready_stand()),
    }
    return Course(write, stages, {}, end, stand.drain, nothing)


class Measured(NamedTuple):
    """Microseconds, medians over the turns."""

    stages: Mapping[str, float]
    inside: Mapping[str, float]
    whole: float


def _timed(stages: Sequence[Stage]) -> list[int]:
    """Nanoseconds of each, a look at the clock included."""
    stamps = [perf_counter_ns()]
    for stage in stages:
        stage()
        stamps.append(perf_counter_ns())
    return [after - before for before, after in pairwise(stamps)]


def _measured(course: Course, turns: int) -> Measured:
    steps = [*course.stages.values(), *course.inside.values(), nothing]
    found, wholes = [], []
    for _ in range(turns):
        course.before()
        found.append(_timed(steps))
        course.behind()
        course.before()
        wholes.append(_timed([course.whole])[0])
        course.behind_whole()
    *medians, clock = (median(column) for column in zip(*found[turns // WARM_UP :], strict=True))
    us = dict(zip([*course.stages, *course.inside], ((value - clock) / 1e3 for value in medians), strict=True))
    whole = (median(wholes[turns // WARM_UP :]) - clock) / 1e3
    return Measured({t: us[t] for t in course.stages}, {t: us[t] for t in course.inside}, whole)


COURSES: Final = {"READ": _reading, "WRITE": _writing, "State": _applying}


def measure(core: int, turns: int = TURNS) -> dict[str, Measured]:
    """Every course, on one core and without garbage collection, as in the daemon."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    gc.disable()
    result = {}
    try:
        for name, make in COURSES.items():
            with closing(ready_stand()) as stand:
                result[name] = _measured(make(stand), turns)
    finally:
        gc.enable()
        os.sched_setaffinity(0, allowed)
    return result
