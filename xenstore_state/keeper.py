"""The State process: accepts connections, drains the journal, and has one Logic after another serve (`succession`).

A plain loop without threads or trio, so that it can fork at any moment; a new Logic is a fork and inherits tree, items,
descriptors and rings' positions as they are.  State never reads a connection or a ring.  Nothing it does waits for Logic.
"""

import gc
import logging
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from protocol.ring import ERROR_COMM
from recovery_box import custody, remnant
from recovery_box.box import W_ASLEEP, Box
from recovery_box.items import Connection, ItemError
from recovery_box.journal import Consumer, JournalCorrupt
from recovery_box.lanes import output_made
from recovery_box.prctl import adopt_orphans
from xenstore_state import divergence
from xenstore_state.effects import ABOUT_RING, CLOSE, DIGEST, DIRECTORY, ENDS_DOMAIN, GONE, RESTART, Diverged
from xenstore_state.guarded import Guarded
from xenstore_state.hypervisor import Hypervisor
from xenstore_state.reception import Reception
from xenstore_state.records import Applier, BadRecord, Record, decode, encode
from xenstore_state.registrar import FINE, QUESTION, Question, Registrar
from xenstore_state.repetition import Recovered
from xenstore_state.restarts import Death
from xenstore_state.store import Store
from xenstore_state.succession import SIGNALS, Estate, Succession
from xenstore_state.survival import Survival
from xenstore_state.worker import TICK, Inheritance, Worker

log = logging.getLogger(__name__)

AWAKE_TICKS: Final = 50
"""Empty ticks after which State goes to sleep until it is woken."""
DRAIN_RECORDS: Final = 256
"""Records applied before connections and signals get their turn."""
SLEEP: Final = 1.0
"""Longest sleep, in seconds: should a wake-up ever be missed."""
BACKLOG: Final = 256
STOP_SECONDS: Final = 2.0
"""How long Logic may take for an orderly end."""
DUMP_SECONDS: Final = 3.0
"""How long a Logic may take to write down the tree it had, when that was not State's."""


def _take_no_notice(number: int, frame: FrameType | None) -> None:
    """Of a signal: it is the wake-up descriptor that tells."""


class Keeper:
    """The process."""

    def __init__(
        self,
        box: Box,
        listeners: list[socket.socket],
        run_logic: Callable[[Inheritance], int],
        logic_pid_file: str,
        descriptors: int,
        hypervisor: Hypervisor | None = None,
        survival: Survival | None = None,
        recovered: Recovered | None = None,
    ) -> None:
        """With `survival`, what happens is written down; `recovered` is what a State knew that died."""
        self.store = recovered.store if recovered is not None else Store()
        self._survival = survival
        self._repeated = 0
        self._unsettled = recovered is None or recovered.unsettled
        self.box = box
        self._consumer = Consumer(box)
        if survival is not None:
            self._consumer.on_segment = survival.segment
        self._made: dict[int, int] = {}
        self._applier = Applier(self.store, self._output_made)
        self._epoll = select.epoll()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        first, first_number = Worker(), custody.first_number(descriptors)
        self._line_blocked = False
        self._reception = Reception(self.store, box, listeners, self._epoll, first_number, first.handover, survival)
        estate = Estate(
            self.store,
            box,
            self._consumer,
            self._applier,
            self._reception,
            hypervisor,
            survival,
            self._epoll,
            self._bell,
            self._known_beside,
            self._leave,
        )
        self.succession = Succession(estate, first, run_logic, logic_pid_file, first_number)
        self._reception.newcomer = self.succession.welcome
        self._hypervisor = hypervisor
        self._registrar = (
            Registrar(
                self.store,
                hypervisor,
                self._allocate_ring,
                self._reception.free,
                self._tell,
                survival,
                recovered.bound if recovered is not None else None,
            )
            if hypervisor is not None
            else None
        )
        self._guarded = Guarded(self._epoll, survival)
        self._pinned = 0
        """The connection for which alone this Logic may act; 0 for all."""
        self._patience = 0.0
        """How long State meant to wait before it looks at everything again."""
        self._stopping = False
        self._signals_read, self._signals_write = socket.socketpair()
        self.reopen_logs: Callable[[], None] = lambda: None
        if recovered is not None:
            self._resume(recovered)

    # ---- life

    def _resume(self, recovered: Recovered) -> None:
        """Goes on for a State that died."""
        self._reception.resume_with(recovered.next_id)
        self.succession.restarts.restore(recovered.restarts)
        if not recovered.complete:
            return
        self._consumer.resume(recovered.sequence, recovered.staged)
        self._repeated = recovered.sequence
        self._applier.last = recovered.last
        if self._hypervisor is not None:
            for domid, (port, remote_port) in list(recovered.bound.items()):
                if domid in self.store.domains.known:
                    self._hypervisor.know_port(port, domid, remote_port)
                else:  # the domain had ended, and State died before it could give this up
                    del recovered.bound[domid]
                    self._hypervisor.unbind(port)
                    if self._survival is not None:
                        self._survival.bound(domid, 0, 0)
        self._drain()
        self._consumer.drop_staged()
        for fd in recovered.newcomers:
            self._reception.take_in(fd)
        self.succession.count(Death("died with State", "orphaned"), 0.0)

    def run(self, ready: Callable[[], None]) -> None:
        """Serves until SIGTERM or SIGINT; calls `ready` once clients can connect."""
        gc.disable()  # the tree has no cycles, and walking it would cost more than everything else
        adopt_orphans()  # what is left of a Logic is this one's to reap
        self._take_signals()
        self._reception.open()
        for fd in (self._bell, self._signals_read.fileno()):
            self._epoll.register(fd, select.EPOLLIN)
        if self._registrar is not None and self._unsettled:
            self._registrar.begin()
        self._write_down()
        self.succession.begin()
        self._tell_all()
        ready()
        self.succession.settle_numbers()
        quiet = 0
        due = 0.0
        while not self._stopping:
            if time.monotonic() >= due:
                due = time.monotonic() + SLEEP
                self._try_again()
            quiet = 0 if self._drain(DRAIN_RECORDS) else quiet + 1
            self._applier.trim()
            self.succession.watch(self._patience)
            self._write_down()
            if self.succession.serves:  # not sooner: the new Logic serves first
                self._reception.sockets.fill()
                self.succession.have_one_stand_by()
            self._guarded.look()
            self._reception.hand_over_again()
            self._wait(quiet)
        self._stop()

    def _take_signals(self) -> None:
        self._signals_read.setblocking(False)
        self._signals_write.setblocking(False)
        signal.set_wakeup_fd(self._signals_write.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, _take_no_notice)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _wait(self, quiet: int) -> None:
        words = self.box.words
        timeout = TICK if self._consumer.empty else 0
        resting = quiet > AWAKE_TICKS and self._reception.sockets.complete and self.succession.named
        self.succession.look_after(resting=resting)
        if resting:
            words[W_ASLEEP] = 1
            timeout = SLEEP if self._consumer.empty else 0
        self._patience = timeout
        events = self._epoll.poll(timeout)
        words[W_ASLEEP] = 0
        if not events and timeout == SLEEP:
            self.succession.reap_remnants()
            self.succession.rest()
        if len(events) > 1:  # a death first: what that Logic has published concerns nobody who comes now
            logic = self.succession.logic.fd
            events.sort(key=lambda event: event[0] != logic)
        for fd, _ in events:
            if self._reception.sockets.hear(fd) or self._reception.accept_from(fd) or self._reception.hand_over_to(fd):
                continue
            if fd == self._bell:
                try:
                    os.eventfd_read(self._bell)
                except BlockingIOError:
                    pass
            elif fd == self.succession.logic.fd:
                if self.succession.logic.ended(0):  # not one before it, whose number it has
                    self._bury()
            elif fd == self._signals_read.fileno():
                self._on_signals(self._signals_read.recv(64))
            elif fd == self.succession.logic.line.question_fd:
                self._answer()
            elif fd == self.succession.logic.line.telling_fd and self._line_blocked:
                self._tell(b"")
            elif not self.succession.hear(fd):
                self._guarded.has_ended(fd)

    def _try_again(self) -> None:
        """Some time has gone by: what has failed may succeed now."""
        self._guarded.keep_alike()
        if not self._reception.accepting:
            self._reception.resume()
        if self._registrar is not None and self._registrar.unscanned:
            self._registrar.scan()

    def _on_signals(self, numbers: bytes) -> None:
        if signal.SIGHUP in numbers:
            self.reopen_logs()
            self.succession.nobody_stands_by()  # it would go on with the old ones
            self.succession.logic.signal(signal.SIGHUP)
        if signal.SIGCHLD in numbers:
            self.succession.reap_remnants()
        if signal.SIGUSR1 in numbers:
            self.succession.logic.signal(signal.SIGUSR1)
        if signal.SIGTERM in numbers or signal.SIGINT in numbers:
            self._stopping = True

    def _stop(self) -> None:
        """The orderly end: Logic finishes its turn, everything published is applied."""
        self.succession.nobody_stands_by()
        self.succession.logic.signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while not self.succession.logic.ended(TICK):
            self._drain(DRAIN_RECORDS)
            self._answer()
            if time.monotonic() > deadline:
                log.warning("Logic did not end in time and is killed")
                self.succession.logic.signal(signal.SIGKILL)
                deadline += STOP_SECONDS
        self.succession.reap()
        self._drain()
        if self._survival is not None:
            self._survival.end()
        remnant.outlast(STOP_SECONDS)  # they have the connections open
        log.info("stopped: %d nodes, %d connections", self.store.tree.size, len(self.store.items.connections))

    def _start_again(self) -> None:
        """Ends like a crash, of which nothing is lost: the guardian starts State with the code that is installed now."""
        if self._survival is None or not self._survival.outlives:
            log.error("asked to start again, which State would not survive: it goes on")
            return
        log.info("asked to start again")
        logging.shutdown()
        os._exit(1)

    def _output_made(self, connection: Connection) -> int:
        """How far a connection's output has got into its region; what depends on it is written down with it."""
        made = output_made(self.box, connection.slot)
        if self._survival is not None:
            self._made[connection.id] = made
        return made

    def _write_down(self) -> None:
        if self._survival is not None and self._consumer.between_records:
            self._survival.look_after(self.store, self._consumer.sequence, self._known_beside)

    def _known_beside(self) -> dict[str, Any]:
        """What State knows that the store does not."""
        last, registrar = self._applier.last, self._registrar
        return {
            "last": encode(last) if last is not None else b"",
            "bound": registrar.bound if registrar is not None else {},
            "unsettled": registrar is not None and registrar.unsettled,
            "restarts": self.succession.restarts.kept(),
        }

    def _bury(self) -> None:
        """Logic is dead: whatever it published is taken over before the next one begins."""
        self.succession.bury(self._settle)
        self._line_blocked = False
        self._tell_all()

    def _settle(self) -> None:
        self._drain()
        self._consumer.drop_staged()
        self._applier.trim()
        self._pinned = 0

    def _leave(self) -> None:
        """In a Logic: closes what is only State's."""
        self._epoll.close()
        self._signals_read.close()
        self._signals_write.close()

    # ---- the journal

    def _drain(self, most: int = 0) -> bool:
        """Applies what is published, or at most so many records of it; whether there was anything."""
        if self._consumer.empty:
            return False
        try:
            for count, body in enumerate(self._consumer.records(), 1):
                if self._consumer.taken <= self._repeated:
                    continue  # applied by a State that died before it could say so
                record = self._applier.apply(body, self._check_pin if self._pinned else None)
                if self._survival is not None:
                    if record.kind == DIRECTORY:
                        self._survival.listed(self.store, record.connection, record.arguments[0])
                    self._survival.record(self._consumer.taken, body, self._made)
                    self._made = {}
                if self.store.closed:
                    self._reception.forget_closed()
                if record.kind == RESTART:
                    self._start_again()
                if record.kind in ENDS_DOMAIN and self._registrar is not None:
                    self._registrar.removed(record.arguments[0])
                if count == most:
                    self._consumer.accept()
                    break
        except (JournalCorrupt, BadRecord) as e:
            self._distrust(str(e))
        except Diverged:
            self._write_both_down()
            self._distrust("the digest of its tree is another one")
        self.store.tree.bound_digest()
        return True

    def _write_both_down(self) -> None:
        """Logic has another tree: somebody will want to know how they differ.  State's is the one that counts."""
        ours, theirs = self.succession.beside(divergence.STATES), self.succession.beside(divergence.LOGICS)
        log.error("Logic's tree is not State's: Logic is replaced; the trees are written to %s and %s", ours, theirs)
        divergence.dump_aside(self.store.tree, ours)
        self.succession.logic.signal(signal.SIGUSR2)
        self.succession.logic.ended(DUMP_SECONDS)

    def _distrust(self, why: str) -> None:
        """A record cannot be true: it and all later ones are void, and Logic with them."""
        log.error("Logic published a record that cannot be true (%s): it is killed, what it says is void", why)
        self.succession.nobody_stands_by()  # what it follows is not all that has happened
        if self.succession.logic.pid:
            self.succession.distrusted = True
            self.succession.logic.signal(signal.SIGKILL)
            os.waitid(os.P_PIDFD, self.succession.logic.fd, os.WEXITED | os.WNOWAIT)
        for number in self._concerned():
            connection = self.store.items.connections.get(number)
            if connection is not None:
                log.error("connection %d is closed: its output was part of that", number)
                self._hang_up(connection)
        if self.store.closed:
            self._reception.forget_closed()
        if self._registrar is not None:
            self._registrar.forget_unknown()
        if self._survival is not None:
            self._survival.want_checkpoint()

    def _concerned(self) -> set[int]:
        """Discards what is in the journal; the connections whose requests or output that carried."""
        bodies, complete = self._consumer.discard()
        concerned: set[int] = set()
        try:
            for record in map(decode, bodies):
                concerned.add(record.connection)
                concerned.update(output[0] for output in record.outputs)
        except BadRecord:
            complete = False
        if complete:
            return concerned
        # Nobody can tell whom all of it concerned, and no client may go on believing what was lost.
        return {connection.id for connection in self.store.items.connections}

    def _hang_up(self, connection: Connection) -> None:
        if connection.socket:
            try:
                self.succession.epoll_set.unregister(connection.fd)
            except OSError:
                pass
            custody.shut_down(connection.fd)
            if self._survival is not None:
                self._survival.hung_up(connection)
            self.store.disconnect(connection)
        else:
            if self._survival is not None:
                self._survival.hung_up(connection)
            self.store.ignore(connection.domid, ERROR_COMM)
        self._reception.forget_closed()

    # ---- domains

    def _tell_all(self) -> None:
        if self._registrar is not None:
            self._registrar.tell_all()

    def _answer(self) -> None:
        """Answers Logic, which waits.  It has recorded all it did before it asked."""
        while not self._consumer.empty:
            self._drain()
        self.succession.logic.line.answer(self._reply_to)

    def _reply_to(self, question: bytes) -> bytes:
        try:
            kind, number, _ = QUESTION.unpack(question)
            if kind == Question.PIN:
                if self._pinned not in {0, number}:
                    raise ValueError(f"connection {self._pinned} is pinned already")
                self._pinned = number
            elif self._registrar is not None:
                return self._registrar.answer(question)
        except (struct.error, ValueError, ItemError) as e:
            log.error("Logic asked what no Logic asks (%s): it is killed", e)
            self.succession.distrusted = True
            self.succession.logic.signal(signal.SIGKILL)
        return FINE

    def _check_pin(self, record: Record) -> None:
        """Raises `BadRecord` when Logic has pinned a connection and acts for another one."""
        pinned = self.store.connection(self._pinned)
        own_ring = pinned is not None and record.kind in ABOUT_RING and record.arguments[:1] == (pinned.domid,)
        actor = self.store.connection(record.connection)
        overflowed = record.kind == CLOSE and actor is not None and actor.overflowed
        known = record.kind in {GONE, DIGEST} and record.connection == self.store.house.id  # State knows what is true
        if record.connection != self._pinned and not (own_ring or overflowed or known):
            raise BadRecord(f"connection {self._pinned} is pinned, and this acts for connection {record.connection}")

    def _tell(self, news: bytes) -> None:
        blocked = not (self.succession.logic.line.tell(news) if news else self.succession.logic.line.tell_rest())
        if blocked != self._line_blocked:
            self._line_blocked = blocked
            self._epoll.modify(self.succession.logic.line.telling_fd, select.EPOLLOUT if blocked else 0)

    def _allocate_ring(self, domid: int) -> tuple[int, int] | None:
        return self._reception.allocate(f"the ring of domain {domid}")
