"""What is measured: the hot functions, each in the state in which the daemon calls it.

For: `bench.micro.__main__`, `bench.micro.budget` (by name).
Guarantees: every part leaves its store, lane and journal as it found them, so that it can be repeated for ever; building a
part costs nothing until it is measured.
Does not know: how often it is repeated, or what becomes of the figure.

A *looped* part is called again and again; a *stepped* one has something before and behind it that is not measured. What a
call or a step costs by itself is a part too (`CALL`, `STEP`), to be subtracted.

What a turn is made of is measured otherwise (`bench.micro.courses`): parts that are measured alone do not add up to anything.
"""

import gc
from collections.abc import Callable
from time import perf_counter
from typing import Any, Final, NamedTuple

from bench.stand import Stand, request, write
from protocol.ops import Op
from protocol.paths import check_path, components
from protocol.wire import ACK, HEADER, HEADER_SIZE, Framer, watch_event
from recovery_box.journal import Consumer
from xenstore_logic.loop import DIGEST_EVERY
from xenstore_state.access import Subject, rights
from xenstore_state.effects import PERFORM, WRITE, names_of
from xenstore_state.records import decode, encode

CALL: Final = "harness: a call"
STEP: Final = "harness: a step"
PATH: Final = b"/local/domain/5/device/vbd/51712/state"
VALUE: Final = b"v" * 32
READING: Final = request(Op.READ, PATH)
WRITING: Final = write(PATH, VALUE)
OTHER_WATCHES: Final = 10_000
WATCHERS: Final = 10
GUEST_ACL: Final = ((0, 5), (1, 7), (3, 9))

Step = Callable[[], object]


def nothing() -> None:
    """What a harness costs by itself."""


class Steps(NamedTuple):
    """A step that is measured, with what is done before and behind it."""

    before: Step
    step: Step
    behind: Step = nothing


class Part(NamedTuple):
    """One micro-benchmark."""

    name: str
    make: Callable[[], Step | Steps]
    stepped: bool = False

    @property
    def timed(self) -> Callable[[int], float]:
        """Seconds of so many repetitions, as pyperf wants them. What is measured is made at the first call."""
        made: list[Step | Steps] = []

        def timed(loops: int) -> float:
            if not made:
                made.append(self.make())
                gc.disable()  # as in the daemon
            thing = made[0]
            assert isinstance(thing, Steps) is self.stepped
            return _stepped(thing, loops) if isinstance(thing, Steps) else _looped(thing, loops)

        return timed


def _looped(step: Step, loops: int) -> float:
    turns = range(loops)
    start = perf_counter()
    for _ in turns:
        step()
    return perf_counter() - start


def _stepped(steps: Steps, loops: int) -> float:
    before, step, behind = steps
    seconds = 0.0
    for _ in range(loops):
        before()
        start = perf_counter()
        step()
        seconds += perf_counter() - start
        behind()
    return seconds


def ready_stand() -> Stand:
    """A stand whose nodes are there, and whose caches are warm."""
    stand = Stand()
    for _ in range(3):
        stand.exchange(WRITING)
        stand.exchange(READING)
    stand.drain()
    return stand


# ---- what comes in


def _framer() -> Step:
    framer = Framer()
    return lambda: list(framer.feed(READING))


def _path_check() -> Step:
    return lambda: check_path(PATH)


def _names_split() -> Step:
    return lambda: components(PATH)


def _names_remembered() -> Step:
    return lambda: names_of(PATH)


def _path() -> Step:
    stand = ready_stand()
    path, by = stand.core.path, stand.connection
    return lambda: path(by, PATH)


# ---- what is done


def _lookup() -> Step:
    tree, parts = ready_stand().core.store.tree, components(PATH)
    return lambda: tree.find(parts)


def _permission_toolstack() -> Step:
    toolstack = Subject(0, privileged=True)
    return lambda: rights(GUEST_ACL, toolstack)


def _permission_guest() -> Step:
    guest = Subject(9, privileged=False)
    return lambda: rights(GUEST_ACL, guest)


def _effect_write() -> Step:
    stand = ready_stand()
    perform, store, by = PERFORM[WRITE], stand.core.store, stand.connection
    return lambda: perform(store, by, 0, PATH, VALUE)


def _watch_match() -> Step:
    stand = ready_stand()
    for i in range(OTHER_WATCHES):
        stand.exchange(request(Op.WATCH, b"/other/%d" % i, b"t"))
        stand.drain()
    match, parts = stand.core.store.watches.matching, components(PATH)
    return lambda: match(parts)


def _watch_match_some() -> Step:
    stand = ready_stand()
    for i in range(WATCHERS):
        stand.exchange(request(Op.WATCH, PATH, b"t%d" % i))
    stand.drain()
    match, parts = stand.core.store.watches.matching, components(PATH)
    return lambda: match(parts)


def _handler(message: bytes) -> Step:
    stand = ready_stand()
    core, by, payload = stand.core, stand.connection, message[HEADER_SIZE:]
    op = HEADER.unpack_from(message)[0]

    def handle() -> None:
        core.serve(by, op, 0, payload)
        core.effect = None

    return handle


# ---- what is published


def _a_record(stand: Stand) -> tuple[Any, ...]:
    reply = HEADER.pack(Op.WRITE, 1, 0, len(ACK)) + ACK
    return (1, 1000, WRITE, (0, PATH, VALUE), "", stand.core.store.tree.generation, ((1, 2000, reply, False, 0),))


def _record_decode() -> Step:
    body = encode(_a_record(ready_stand()))
    return lambda: decode(body)


def _read_all(consumer: Consumer) -> None:
    for _ in consumer.records():
        pass


def _publish() -> Steps:
    stand = ready_stand()
    record = _a_record(stand)
    return Steps(nothing, lambda: stand.producer.publish(record), lambda: _read_all(stand.consumer))


# ---- what goes out


def _event() -> Step:
    return lambda: watch_event(PATH, b"token")


def _reply() -> Step:
    return lambda: HEADER.pack(Op.READ, 1, 0, len(VALUE)) + VALUE


def _digest() -> Steps:
    stand = ready_stand()
    perform, store, by = PERFORM[WRITE], stand.core.store, stand.connection

    def change() -> None:
        for _ in range(DIGEST_EVERY):
            perform(store, by, 0, PATH, VALUE)

    return Steps(change, store.tree.digest)


PARTS: Final = (
    Part(CALL, lambda: nothing),
    Part(STEP, lambda: Steps(nothing, nothing), stepped=True),
    Part("framer: a message", _framer),
    Part("path: check", _path_check),
    Part("path: split", _names_split),
    Part("path: names, remembered", _names_remembered),
    Part("path: as a handler takes it", _path),
    Part("lookup", _lookup),
    Part("permission: toolstack", _permission_toolstack),
    Part("permission: guest", _permission_guest),
    Part("effect: WRITE", _effect_write),
    Part("watches: match, 10k others", _watch_match),
    Part("watches: match, 10 watchers", _watch_match_some),
    Part("event: encode", _event),
    Part("reply: encode", _reply),
    Part("handler: READ", lambda: _handler(READING)),
    Part("handler: WRITE", lambda: _handler(WRITING)),
    Part("record: publish", _publish, stepped=True),
    Part("record: decode", _record_decode),
    Part("digest of 1,000 changes", _digest, stepped=True),
)
