"""The State process: accepts connections, drains the journal, forks Logic, and forks it again whenever it dies.

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
from typing import Any, Final

from protocol.ring import ERROR_COMM
from recovery_box import custody, remnant
from recovery_box.box import W_ACTIVE, W_ASLEEP, W_BEAT, Box
from recovery_box.items import Connection, ItemError
from recovery_box.journal import Consumer, JournalCorrupt
from recovery_box.lanes import output_made
from xenstore_state import divergence
from xenstore_state.effects import ABOUT_RING, CLOSE, DIGEST, ENDS_DOMAIN, GONE, RESTART, Diverged
from xenstore_state.guarded import Guarded
from xenstore_state.hypervisor import Hypervisor
from xenstore_state.pulse import Pulse
from xenstore_state.reception import Reception
from xenstore_state.records import Applier, BadRecord, Record, decode, encode
from xenstore_state.registrar import ANSWER, QUESTION, Answer, Question, Registrar, Status
from xenstore_state.repetition import Recovered
from xenstore_state.restarts import ALONE, REASONS, Death, Planned, Policy, Restarts
from xenstore_state.standby import Follower, Reserve, Turn
from xenstore_state.store import Store
from xenstore_state.survival import Survival
from xenstore_state.worker import TICK, Inheritance, StandBy, Worker, fork

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
WATCHDOG: Final = 2.0
"""Seconds without a turn after which Logic is killed, unless the daemon was told otherwise."""
NODES_FOR_ANOTHER: Final = 250_000
"""With so many nodes Logic gets the same time once more: one request may remove them all."""
WORKER_DESCRIPTORS: Final = 20
"""Numbers that making another Logic takes for a moment, at most, and one that stands by keeps."""
NO_MEMORY: Final = 20
"""Exit status of a Logic that could get no more; none of `Planned`."""
DUMP_SECONDS: Final = 3.0
"""How long a Logic may take to write down the tree it had, when that was not State's."""
SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD})
"""What State listens to.  Whoever starts it may block them until it does."""


class Keeper:
    """The process.  `run_logic` is what a fork does, and gives its exit status; it knows Logic so that State need not."""

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
        self._run_logic = run_logic
        self._logic_pid_file = logic_pid_file
        self._first_number = self._reserved_from = custody.first_number(descriptors)
        self._consumer = Consumer(box)
        if survival is not None:
            self._consumer.on_segment = survival.segment
        self._made: dict[int, int] = {}
        self._applier = Applier(self.store, self._output_made)
        self._logic_epoll = select.epoll()
        self._epoll = select.epoll()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._logic = Worker()
        self._line_blocked = False
        self._reception = Reception(
            self.store, box, listeners, self._epoll, self._first_number, self._logic.handover, survival
        )
        self._reserve = Reserve(box, survival, self._epoll)
        self._reception.newcomer = self._reserve.welcome
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
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._restarts = Restarts(self.store, box, self._reception.at)
        self._hung = self._distrusted = False
        self._guarded = Guarded(self._epoll, survival)
        self._pinned = 0
        """The connection for which alone this Logic may act; 0 for all."""
        self._pulse = Pulse()
        self._patience = 0.0
        """How long State meant to wait before it looks at everything again."""
        self.watchdog = WATCHDOG
        self.stand_by = True
        """Whether another Logic is forked ahead (`standby`)."""
        self._started = 0.0
        self._first_beat = 0
        self._stopping = False
        self._signals_read, self._signals_write = socket.socketpair()
        self.reopen_logs: Callable[[], None] = lambda: None
        if recovered is not None:
            self._resume(recovered)

    # ---- life

    def _resume(self, recovered: Recovered) -> None:
        """Goes on for a State that died."""
        self._reception.resume_with(recovered.next_id)
        self._restarts.restore(recovered.restarts)
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
        self._drain()
        self._consumer.drop_staged()
        for fd in recovered.newcomers:
            self._reception.take_in(fd)
        self._count(Death("died with State", "orphaned"), 0.0)

    def run(self, ready: Callable[[], None]) -> None:
        """Serves until SIGTERM or SIGINT; calls `ready` once clients can connect."""
        gc.disable()  # the tree has no cycles, and walking it would cost more than everything else
        remnant.expect()
        self._take_signals()
        self._reception.open()
        for fd in (self._bell, self._signals_read.fileno()):
            self._epoll.register(fd, select.EPOLLIN)
        if self._registrar is not None and self._unsettled:
            self._registrar.begin()
        self._write_down()
        self._begin_logic()
        self._tell_all()
        ready()
        self._reserved_from = custody.reserve_low_numbers(self._first_number)
        quiet = 0
        while not self._stopping:
            quiet = 0 if self._drain(DRAIN_RECORDS) else quiet + 1
            self._applier.trim()
            self._watch_over_logic()
            self._write_down()
            if self.box.words[W_BEAT] != self._first_beat:  # not sooner: the new Logic serves first
                self._reception.sockets.fill()
                if self._reserve.wanted(time.monotonic()):
                    self._have_one_stand_by()
            self._guarded.look()
            self._wait(quiet)
        self._stop()

    def _take_signals(self) -> None:
        self._signals_read.setblocking(False)
        self._signals_write.setblocking(False)
        signal.set_wakeup_fd(self._signals_write.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _wait(self, quiet: int) -> None:
        words = self.box.words
        timeout = TICK if self._consumer.empty else 0
        resting = quiet > AWAKE_TICKS and self._reception.sockets.complete
        self._reserve.look_after(resting=resting)
        if resting:
            words[W_ASLEEP] = 1
            timeout = SLEEP if self._consumer.empty else 0
        self._patience = timeout
        events = self._epoll.poll(timeout)
        words[W_ASLEEP] = 0
        if not events and timeout == SLEEP:
            self._try_again()
        for fd, _ in events:
            if self._reception.accept_from(fd) or self._reception.hand_over_to(fd):
                continue
            if fd == self._bell:
                try:
                    os.eventfd_read(self._bell)
                except BlockingIOError:
                    pass
            elif fd == self._logic.fd:
                if self._logic.ended(0):  # not one before it, whose number it has
                    self._bury()
            elif fd == self._signals_read.fileno():
                self._on_signals(self._signals_read.recv(64))
            elif fd == self._logic.line.question_fd:
                self._answer()
            elif fd == self._logic.line.telling_fd and self._line_blocked:
                self._tell(b"")
            elif not self._reserve.has_ended(fd):
                self._guarded.has_ended(fd)

    def _try_again(self) -> None:
        """Nothing happens: what has failed may succeed now."""
        self._reap_remnants()
        if not self._reception.accepting:
            self._reception.resume()
        if self._registrar is not None and self._registrar.unscanned:
            self._registrar.scan()

    def _on_signals(self, numbers: bytes) -> None:
        if signal.SIGHUP in numbers:
            self.reopen_logs()
            self._reserve.dismiss()  # it would go on with the old ones
            self._logic.signal(signal.SIGHUP)
        if signal.SIGCHLD in numbers:
            self._reap_remnants()
        if signal.SIGUSR1 in numbers:
            self._logic.signal(signal.SIGUSR1)
        if signal.SIGTERM in numbers or signal.SIGINT in numbers:
            self._stopping = True

    def _stop(self) -> None:
        """The orderly end: Logic finishes its turn, everything published is applied."""
        self._reserve.dismiss()
        self._logic.signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while not self._logic.ended(TICK):
            self._drain(DRAIN_RECORDS)
            self._answer()
            if time.monotonic() > deadline:
                log.warning("Logic did not end in time and is killed")
                self._logic.signal(signal.SIGKILL)
                deadline += STOP_SECONDS
        self._reap()
        self._drain()
        if self._survival is not None:
            self._survival.end()
        log.info("stopped: %d nodes, %d connections", self.store.tree.size, len(self.store.items.connections))

    def _start_again(self) -> None:
        """Ends like a crash, of which nothing is lost: the guardian starts State with the code that is installed now."""
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
            "restarts": self._restarts.kept(),
        }

    # ---- Logic

    def _begin_logic(self) -> None:
        """The next Logic: whoever stands by, or a fresh fork."""
        ready = self._reserve.turn(self._consumer.sequence)
        last, self._logic_epoll = self._logic_epoll, self._reception.sockets.take()
        self._logic.close()
        self._line_blocked = False
        self._started = time.monotonic()
        self._first_beat = self.box.words[W_BEAT]
        if ready is not None:
            self._logic, newcomers = ready
            self._logic.line.tell(self._turn(newcomers))
        else:
            if self._hypervisor is not None:
                self._hypervisor.before_fork()
            self._logic = self._fork(self._logic_epoll, None, last)
        self._reception.sockets.renew(last)
        self._reception.hand_over_by(self._logic.handover)
        self._epoll.register(self._logic.line.question_fd, select.EPOLLIN)
        self._epoll.register(self._logic.line.telling_fd, 0)
        self._epoll.register(self._logic.fd, select.EPOLLIN)
        self._pulse.begin(time.monotonic())
        self._reserve.after(self._started, at_once=bool(Policy.of(self.store.items.settings).alone))
        self._write_pid()

    def _fork(
        self, epoll: select.epoll, stand_by: Callable[[Inheritance], StandBy] | None, unneeded: select.epoll
    ) -> Worker:
        """A new Logic that waits with this epoll set; another set is none of its business."""
        gc.freeze()
        margin = min(self._reserved_from + WORKER_DESCRIPTORS, self._first_number)
        custody.make_room(self._reserved_from, margin, self._spare)
        worker = Worker()
        inheritance = self._inheritance(worker, epoll, stand_by)
        # A signal for the new Logic must not reach the handlers it still shares with State.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        pid = fork()
        if not pid:
            unneeded.close()
            self._be_logic(inheritance, worker, margin)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        worker.in_keeper(pid)
        return worker

    def _inheritance(
        self, worker: Worker, epoll: select.epoll, stand_by: Callable[[Inheritance], StandBy] | None
    ) -> Inheritance:
        return Inheritance(
            self.store,
            self.box,
            epoll,
            worker.handover,
            worker.line,
            self._hypervisor,
            self._reception.sockets.by_fd,
            self._begun() if stand_by is None else [],
            self._applier.last,
            self._consumer.sequence,
            self._restarts.poison(),
            self._restarts.penalties(),
            self._survival is not None,
            self._restarts.report(),
            self._beside(divergence.LOGICS),
            self._bell,
            stand_by,
        )

    def _have_one_stand_by(self) -> None:
        """Forks the next Logic while this one serves, if that is of any use."""
        if not self.stand_by or self._survival is None or not self._consumer.between_records or self._is_alone():
            self._reserve.later(time.monotonic())
            return
        known, place = self._known_beside(), self._survival.place
        known["sequence"], known["next_id"] = self._consumer.sequence, self._survival.next_id
        worker = self._fork(
            self._reception.sockets.peek(), lambda given: Follower(given, known, place), self._logic_epoll
        )
        custody.reserve_low_numbers(self._first_number)
        self._reserve.begin(worker, place, self._consumer.sequence, time.monotonic())

    def _is_alone(self) -> bool:
        """Whether one that stands by would be in the way, or of no use.

        It has no processor to follow on, or Logic does not live longer than it takes to fork another one.
        """
        try:
            mine, logics = os.sched_getaffinity(0), os.sched_getaffinity(self._logic.pid)
        except ProcessLookupError:
            return True
        return len(mine | logics) == 1

    def _turn(self, newcomers: int) -> bytes:
        """What whoever stood by is told when it is its turn."""
        assert self._survival is not None
        begun, last, place = self._begun(), self._applier.last, self._survival.place
        return Turn(
            newcomers,
            (place.number, place.end),
            encode(last) if last is not None else b"",
            self._consumer.sequence,
            [c.id for c in begun] if begun is not None else None,
            list(self._restarts.poison()),
            self._restarts.penalties(),
            {c.id: c.pending.chunks[0].position for c in self._applier.waiting if c.pending.chunks},
            self._restarts.report(),
        ).packed()

    def _reap_remnants(self) -> None:
        known = (self._logic.pid, self._reserve.pid, self._survival.child if self._survival is not None else 0)
        remnant.reap(frozenset(known))

    def _begun(self) -> list[Connection] | None:
        """Connections at which a new Logic has something to finish."""
        unfinished = self._reception.unfinished()
        if unfinished is None:
            return None
        return list({c.id: c for c in (*unfinished, *self._applier.waiting)}.values())

    def _be_logic(self, inheritance: Inheritance, worker: Worker, margin: int) -> None:
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # until there is somebody to retire
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            self._logic.in_another()
            self._reserve.in_logic()
            self._epoll.close()
            self._reception.close_in_logic()
            self._signals_read.close()
            self._signals_write.close()
            custody.release_low_numbers(margin, self._first_number)
            worker.in_worker()
            if self._survival is not None:
                self._survival.in_logic()
            status = self._run_logic(inheritance)
        except EOFError:
            pass  # State is dead, and this Logic will be in a moment
        except MemoryError:
            status = NO_MEMORY  # even to say so takes memory: State does
        except BaseException:
            log.exception("Logic fails")
        finally:
            logging.shutdown()
            os._exit(status)

    def _write_pid(self) -> None:
        temporary = self._logic_pid_file + ".new"
        os.close(self._spare)  # there may be no other descriptor left
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                os.write(fd, b"%d\n" % self._logic.pid)
            finally:
                os.close(fd)
            os.replace(temporary, self._logic_pid_file)
        except OSError as e:
            log.error("%s: %s", self._logic_pid_file, e.strerror)
        finally:
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _reap(self) -> Death:
        """Waits for Logic's death."""
        self._epoll.unregister(self._logic.fd)
        found = self._logic.reap()
        hung, self._hung = self._hung, False
        if hung:
            return Death("hung and was killed", "hung")
        if found is not None and found.si_code in {os.CLD_KILLED, os.CLD_DUMPED}:
            outside = found.si_status in {signal.SIGKILL, signal.SIGTERM} and not self._distrusted
            return Death(f"killed by {signal.Signals(found.si_status).name}", "killed" if outside else "failed")
        status = found.si_status if found is not None else -1
        if status == Planned.STOP:
            return Death("was told to end", "killed")
        if status in REASONS:
            return Death(f"retired, {REASONS[Planned(status)]}", "planned")
        return Death("ran out of memory" if status == NO_MEMORY else f"ended with status {status}", "failed")

    def _bury(self) -> None:
        """Logic is dead: takes what it published, draws the consequences, and starts the next one."""
        died, pid, lived = time.monotonic(), self._logic.pid, time.monotonic() - self._started
        death = self._reap()
        self._drain()
        self._epoll.unregister(self._logic.line.question_fd)  # which a dead Logic would leave readable
        self._consumer.drop_staged()
        self._applier.trim()
        self._distrusted = False
        self._pinned = 0
        wait = self._count(death, lived)
        if wait:
            time.sleep(wait)
        text = f"Logic {pid} {death.cause} after {lived:.3f} s"
        quietly = death.kind == "planned" and death.cause == ALONE
        if not quietly:
            self._restarts.note(text)
        self._begin_logic()
        if not quietly:
            after = f"; {self._logic.pid} took over in {(time.monotonic() - died) * 1000:.1f} ms"
            line = self._restarts.complete(after)
            if self._survival is not None:
                self._survival.noted(line)
            log.log(logging.INFO if death.kind == "planned" else logging.WARNING, "%s", text + after)
        self._reap_remnants()
        self._tell_all()

    def _count(self, death: Death, lived: float) -> float:
        """Draws the consequences of a death; seconds to wait before the next fork."""
        wait = self._restarts.count(death, lived)
        if self._survival is not None:
            self._survival.restarted(death.kind, self._restarts.consequences())
        return wait

    def note(self, text: str) -> None:
        """Has the operator's list of restarts say so."""
        line = self._restarts.note(text)
        if self._survival is not None:
            self._survival.noted(line)

    def _watch_over_logic(self) -> None:
        """Kills a Logic that gets no further: a hang is a death."""
        sign = self.box.words[W_BEAT], self.box.words[W_ACTIVE]  # another turn, or another request in this one
        still = self._pulse.still(sign, time.monotonic(), self._patience)
        limit = self.watchdog * (1 + self.store.tree.size / NODES_FOR_ANOTHER)
        if self.watchdog and still > limit and self._logic.pid and not self._hung:
            log.error("Logic %d has not moved for %.1f s and is killed", self._logic.pid, still)
            self._hung = True
            self._logic.signal(signal.SIGKILL)

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
                    self._survival.record(self._consumer.taken, body, self._made)
                    self._made = {}
                if self.store.closed:
                    self._reception.forget_closed()
                if record.kind == RESTART and self._survival is not None:
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

    def _beside(self, name: str) -> str:
        """A file in the run directory."""
        return os.path.join(os.path.dirname(self._logic_pid_file), name)

    def _write_both_down(self) -> None:
        """Logic has another tree: somebody will want to know how they differ.  State's is the one that counts."""
        ours, theirs = self._beside(divergence.STATES), self._beside(divergence.LOGICS)
        log.error("Logic's tree is not State's: Logic is replaced; the trees are written to %s and %s", ours, theirs)
        divergence.dump_aside(self.store.tree, ours)
        self._logic.signal(signal.SIGUSR2)
        self._logic.ended(DUMP_SECONDS)

    def _distrust(self, why: str) -> None:
        """A record cannot be true: it and all later ones are void, and Logic with them."""
        log.error("Logic published a record that cannot be true (%s): it is killed, what it says is void", why)
        self._reserve.dismiss()  # what it follows is not all that has happened
        if self._logic.pid:
            self._distrusted = True
            self._logic.signal(signal.SIGKILL)
            os.waitid(os.P_PIDFD, self._logic.fd, os.WEXITED | os.WNOWAIT)
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
                self._logic_epoll.unregister(connection.fd)
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
        self._logic.line.answer(self._reply_to)

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
            self._distrusted = True
            self._logic.signal(signal.SIGKILL)
        return ANSWER.pack(*Answer(Status.OK))

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
        blocked = not (self._logic.line.tell(news) if news else self._logic.line.tell_rest())
        if blocked != self._line_blocked:
            self._line_blocked = blocked
            self._epoll.modify(self._logic.line.telling_fd, select.EPOLLOUT if blocked else 0)

    def _allocate_ring(self, domid: int) -> tuple[int, int] | None:
        return self._reception.allocate(f"the ring of domain {domid}")
