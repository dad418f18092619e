"""The Logic process: what surrounds the loop in a fork of State.

The loop is the host; trio runs as its guest, for signals and the orderly end, and never stands between a request and its
reply.  The first requests are served before trio starts: a micro-reboot costs no more than the fork.
"""

import logging
import os
import select
import signal
from types import FrameType
from typing import Final

from protocol.ops import Op
from protocol.wire import Message
from recovery_box import remnant
from recovery_box.items import Connection
from recovery_box.line import Line
from recovery_box.prctl import be_called, end_with_parent
from xenstore_logic.core import Core
from xenstore_logic.embedded import Embedded
from xenstore_logic.guest import Guest
from xenstore_logic.host import XenHost
from xenstore_logic.loop import Loop
from xenstore_logic.pinned import PinnedTurns
from xenstore_logic.requests import ROWS
from xenstore_logic.rings import Rings
from xenstore_state import divergence
from xenstore_state.domains import PRIVILEGED
from xenstore_state.registrar import QUESTION, Question
from xenstore_state.restarts import POLICY, Planned, Policy
from xenstore_state.worker import Inheritance, StandBy

log = logging.getLogger(__name__)

OOM_SCORE: Final = 200
"""How much rather than others the kernel should kill Logic when memory runs out: it comes back, State does not."""
REST: Final = 0.003
"""Seconds for State, and for whoever comes next, before memory is given up; where one death follows another, those are only more
that wait."""
NAME: Final = b"xenstore-logic"
NAME_BEFORE: Final = b"xenstore-next"
"""What one is called that stands by."""
NAME_OF_TEMPLATE: Final = b"xenstore-model"
REHEARSED: Final = (
    (Op.WRITE, b"/local/domain/1/a\0b"),
    (Op.READ, b"/local/domain/1/a\0"),
    (Op.DIRECTORY, b"/local/domain/1\0"),
    (Op.GET_PERMS, b"/local/domain/1\0"),
    (Op.WATCH, b"a\0token\0"),
    (Op.MKDIR, b"/local/domain/1/a/b\0"),
    (Op.RM, b"/local/domain/1/a\0"),
)
"""Some of what guests ask for."""


def run_logic(inheritance: Inheritance) -> int:
    """Runs Logic until it is told to end, or retires.  To be called in a fresh fork of State.  The exit status.

    One that stands by comes as far as it can without touching a connection, and waits there for its turn.  A template never gets
    further itself, its children do.
    """
    end_with_parent()
    _be_dispensable()

    def write_down(number: int, frame: FrameType | None) -> None:
        if inheritance.epoll is not None:
            _write_down_and_end(inheritance)

    signal.signal(signal.SIGUSR2, write_down)
    if inheritance.template is not None:
        be_called(NAME_OF_TEMPLATE)
        _rehearse()
        inheritance = inheritance.template(inheritance).children()
    short = bool(Policy.of(inheritance.store.items.settings).alone)
    remnant.make(NAME if inheritance.stand_by is None else NAME_BEFORE, pause=0.0 if short else REST)
    if inheritance.hypervisor is not None:
        inheritance.hypervisor.in_logic()
    guest = None
    if inheritance.stand_by is not None:
        stand_by = inheritance.stand_by(inheritance)
        if short:
            given: Inheritance | None = _wait(stand_by)
        else:
            guest = Guest()
            given = guest.wait(stand_by)
        if given is None:
            return Planned.STOP
        inheritance = given
        be_called(NAME)
    host = None
    if inheritance.hypervisor is not None:
        host = XenHost(inheritance.store, inheritance.line, inheritance.hypervisor)
    core = Core(inheritance.store, ROWS, host)
    core.trace.obey(core.store.items.settings)
    assert inheritance.epoll is not None
    loop = Loop(core, inheritance.box, inheritance.producer(), inheritance.epoll, inheritance.wake)
    loop.poison = inheritance.poison
    loop.inherit(inheritance.sockets)
    policy = Policy.of(core.store.items.settings)
    begin = loop.add if policy.alone == "all" else loop.welcome  # nothing is read of whom nobody has pinned

    def take() -> None:
        given = inheritance.handover.take()
        if given is not None:
            number, slot, fd, domid = given
            connection = Connection(number, slot, fd, domid, domid == PRIVILEGED, True)
            core.store.connect(connection)
            core.trace.thing("CREATE", "connection", connection)
            begin(connection)

    loop.listen_to(inheritance.handover.worker_fd, take)
    if host is not None:
        Rings(loop, host, inheritance.box).listen()
    core.history, core.guarded = inheritance.history, inheritance.guarded
    loop.punish(inheritance.penalties)
    turns = _pinned_turns(loop, inheritance.line, policy) if policy.alone else None
    loop.recover(inheritance.last, inheritance.begun)
    if turns is None:
        return (guest or Guest()).run(loop)
    if guest is not None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # trio has begun, and hears nothing where it is not run
    return _serve_alone(loop, turns)


def _rehearse() -> None:
    """Serves nobody's requests on a store of nobody's: what is made at the first use, children find made."""
    nobodys = Embedded()
    for by in (nobodys.connect(), nobodys.connect(domid=1)):
        for op, payload in REHEARSED:
            nobodys.feed(by, Message(op, 1, 0, payload).encode())


def _wait(stand_by: StandBy) -> Inheritance:
    """Stands by without trio: nobody here will live long enough for it."""
    waiting = select.poll()
    waiting.register(stand_by.fileno(), select.POLLIN)
    given = None
    while given is None:
        waiting.poll()
        given = stand_by.hear()
    return given


def _pinned_turns(loop: Loop, line: Line, policy: Policy) -> PinnedTurns:
    """To be made before anything else is done: no byte may be looked at that was not asked for."""

    def ask(question: Question, number: int = 0) -> None:
        line.ask(QUESTION.pack(question, number, 0))

    guests_only = policy.alone == "guests"
    return PinnedTurns(loop, lambda by: ask(Question.PIN, by.id), lambda: ask(Question.SYNC), guests_only=guests_only)


def _serve_alone(loop: Loop, turns: PinnedTurns) -> int:
    """Serves somebody alone, without trio: nothing here lives long enough for it.  The exit status."""
    text = loop.core.store.items.settings.get(POLICY)
    while not turns.turn():
        if loop.core.retiring or loop.core.store.items.settings.get(POLICY) is not text:
            return Planned.ASKED
    return Planned.PER_REQUEST


def _write_down_and_end(inheritance: Inheritance) -> None:
    """State has found that its tree is another one."""
    try:
        divergence.dump(inheritance.store.tree, inheritance.dump_path)
    finally:
        os._exit(1)


def _be_dispensable() -> None:
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        os.write(fd, b"%d" % OOM_SCORE)
        os.close(fd)
    except OSError as e:
        log.debug("the OOM score stays as it is: %s", e)
