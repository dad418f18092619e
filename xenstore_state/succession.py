"""Succession: one Logic after another.

Forks them, has one stand by, gives whoever is next its turn, buries the dead and says what follows from it.  What a dead Logic
has published is its keeper's to settle.  Knows nothing of records and of what Logic serves.
"""

import gc
import logging
import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from os import fork
from typing import Any, Final

from recovery_box import custody, remnant
from recovery_box.box import W_ACTIVE, W_BEAT, W_NEWS, Box
from recovery_box.items import Connection
from recovery_box.journal import Consumer
from xenstore_state import divergence
from xenstore_state.hypervisor import Hypervisor
from xenstore_state.nursery import Nursery, Template
from xenstore_state.pulse import Pulse
from xenstore_state.reception import TELL_AGAIN_SECONDS, Reception
from xenstore_state.records import Applier
from xenstore_state.restarts import ALONE, ASKED, REASONS, Death, Planned, Policy, Restarts
from xenstore_state.standby import Follower, Reserve, Turn
from xenstore_state.store import Store
from xenstore_state.survival import Survival
from xenstore_state.worker import Breeding, Inheritance, StandBy, Worker

log = logging.getLogger(__name__)

WATCHDOG: Final = 2.0
"""Seconds without a turn after which Logic is killed, unless the daemon was told otherwise."""
NODES_FOR_ANOTHER: Final = 250_000
"""With so many nodes Logic gets the same time once more: one request may remove them all."""
WORKER_DESCRIPTORS: Final = 38
"""Numbers that making another Logic takes for a moment, at most, and that those keep who stand by or wait to, and a template."""
BIRTH_SECONDS: Final = 0.02
"""How long State waits for somebody who is being forked for it: to fork takes about as long."""
NAMED_SECONDS: Final = 0.02
"""How long a Logic that serves somebody alone is there before its pid is written down: most are gone sooner."""
FORK_AGAIN: Final = 0.1
"""Seconds from one attempt to fork a Logic that is to serve to the next."""
NO_MEMORY: Final = 20
"""Exit status of a Logic that could get no more; none of `Planned`."""
SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD})
"""What State listens to, and Logic does not inherit.  Whoever starts State may block them until it does."""


@dataclass(frozen=True)
class Estate:
    """What a Logic gets a share of, and what its end may concern."""

    store: Store
    box: Box
    consumer: Consumer
    applier: Applier
    reception: Reception
    hypervisor: Hypervisor | None
    survival: Survival | None
    epoll: select.epoll
    """What State waits with."""
    bell: int
    known_beside: Callable[[], dict[str, Any]]
    """What State knows that the store does not."""
    leave: Callable[[], None]
    """To be called in a Logic: closes what is only State's."""


class Succession:
    """Whoever is Logic now, and whoever is next.

    `run_logic` is what a fork does, and gives its exit status; it knows Logic so that State need not.
    """

    def __init__(
        self, estate: Estate, first: Worker, run_logic: Callable[[Inheritance], int], pid_file: str, first_number: int
    ) -> None:
        """`first` is made and not forked; `first_number` is the lowest that connections have."""
        self._estate = estate
        self._run_logic = run_logic
        self._pid_file = pid_file
        self._first_number = self._reserved_from = first_number
        self.logic = first
        """Whoever serves."""
        self.epoll_set = select.epoll()
        """What it waits with."""
        self._reserve = Reserve(estate.box, estate.survival, estate.epoll)
        self._nursery = Nursery(estate.survival, estate.epoll)
        self.restarts = Restarts(estate.store, estate.box, estate.reception.at)
        self.watchdog = WATCHDOG
        self.stand_by = True
        """Whether another Logic is forked ahead (`standby`)."""
        self.distrusted = False
        """It has done what no Logic does: its end is its own fault, whoever brings it about."""
        self._hung = self._asked = False
        self.named = False
        """The running Logic's pid is written down."""
        self._pulse = Pulse()
        self._started = 0.0
        self._first_beat = 0
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._told: dict[str, float] = {}
        """When the log said last that somebody could not be forked, by whom."""

    @property
    def serves(self) -> bool:
        """Whether this Logic has come to look at connections."""
        return self._estate.box.words[W_BEAT] != self._first_beat

    def rest(self) -> None:
        """Nothing happens: who has asked for another Logic may want memory back, which a checkpoint takes less of than a ledger."""
        if self._asked and self._estate.survival is not None:
            self._asked = False
            self._estate.survival.want_checkpoint()

    def settle_numbers(self) -> None:
        """State has opened whatever it has for good: what comes later keeps clear of the numbers of connections."""
        self._reserved_from = self._estate.reception.reserve_numbers()

    def begin(self, *, asked: bool = False) -> bool:
        """The next Logic: whoever stands by, or a fresh fork; whether somebody stood by.

        Who has `asked` for another one may want memory back: it shares all that it can with State.
        """
        self._estate.box.words[W_NEWS] = int(self._estate.store.domains.untold)
        if not self._reserve.pid:
            self._have_next_stand_by(BIRTH_SECONDS)
        ready = self._reserve.turn(self._estate.consumer.sequence, shared=asked)
        last, self.epoll_set = self.epoll_set, self._estate.reception.sockets.take(alone=self._one_by_one)
        self.logic.close()
        is_first = not self._started
        self._started = time.monotonic()
        self._first_beat = self._estate.box.words[W_BEAT]
        if ready is not None and self._has_its_turn(*ready):
            self.logic = ready[0]
        else:
            if self._estate.hypervisor is not None:
                self._estate.hypervisor.before_fork()
            ready = None
            self.logic = self._fork_to_serve(last)
        self._estate.reception.sockets.renew(last)
        self._estate.reception.hand_over_by(self.logic.handover)
        self._estate.epoll.register(self.logic.line.question_fd, select.EPOLLIN)
        self._estate.epoll.register(self.logic.line.telling_fd, 0)
        self._estate.epoll.register(self.logic.fd, select.EPOLLIN)
        self._pulse.begin(time.monotonic())
        self._reserve.after(self._started, at_once=self._one_by_one)
        self._asked = asked
        self.named = False
        if is_first or not self._one_by_one:
            self._write_pid()
        return ready is not None

    def _fork_to_serve(self, unneeded: select.epoll) -> Worker:
        """A new Logic, as soon as the machine has memory and processes for it: those who stand by give up theirs."""
        while (worker := self._fork(self.epoll_set, unneeded)) is None:
            self.nobody_stands_by()
            time.sleep(FORK_AGAIN)
        return worker

    def _fork(
        self,
        epoll: select.epoll | None,
        unneeded: select.epoll,
        *,
        stand_by: Callable[[Inheritance], StandBy] | None = None,
        template: Callable[[Inheritance], Breeding] | None = None,
    ) -> Worker | None:
        """A new Logic that waits with this epoll set, if it serves now; another set is none of its business.

        None if the machine is short of memory or processes.
        """
        gc.freeze()
        margin = self._make_room()
        worker = self._new_worker()
        inheritance = self._inheritance(worker, epoll, stand_by, template)
        # A signal for the new Logic must not reach the handlers it still shares with State.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            pid = fork()
        except OSError as e:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            worker.close()
            self._say("Logic" if epoll is not None else "a Logic that stands by", e)
            return None
        if not pid:
            unneeded.close()
            self._estate.reception.sockets.close_in_fork()
            self._be_logic(inheritance, worker, margin)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        worker.in_keeper(pid)
        return worker

    def _say(self, who: str, error: OSError) -> None:
        """Says that somebody cannot be forked, now and then."""
        now = time.monotonic()
        if now >= self._told.get(who, -TELL_AGAIN_SECONDS) + TELL_AGAIN_SECONDS:
            self._told[who] = now
            log.error("%s cannot be forked for now: %s", who, error.strerror)

    def _new_worker(self) -> Worker:
        """Ways to talk to another Logic; those who stand by give up theirs where no descriptor is left."""
        try:
            return Worker()
        except OSError as e:
            if not custody.is_exhaustion(e):
                raise
            log.warning("no descriptor is left for another Logic: nobody stands by (%s)", e.strerror)
        self.nobody_stands_by()
        return Worker()

    def _make_room(self) -> int:
        """Frees numbers for what is opened to make another Logic; the lowest that is kept occupied."""
        margin, reception = min(self._reserved_from + WORKER_DESCRIPTORS, self._first_number), self._estate.reception
        if reception.occupies:
            custody.make_room(self._reserved_from, margin, self._spare)
            reception.occupies = False
        reception.some_came_free()
        return margin

    def _inheritance(
        self,
        worker: Worker,
        epoll: select.epoll | None,
        stand_by: Callable[[Inheritance], StandBy] | None,
        template: Callable[[Inheritance], Breeding] | None,
    ) -> Inheritance:
        return Inheritance(
            self._estate.store,
            self._estate.box,
            epoll,
            worker.handover,
            worker.line,
            self._estate.hypervisor,
            self._estate.reception.sockets.by_fd,
            self._begun() if stand_by is None and template is None else [],
            self._estate.applier.last,
            self._estate.consumer.sequence,
            self.restarts.poison(),
            self.restarts.penalties(),
            self._estate.survival is not None and self._estate.survival.outlives,
            self.restarts.report(),
            self.beside(divergence.LOGICS),
            self._estate.bell,
            stand_by,
            template,
        )

    def have_one_stand_by(self) -> None:
        """Forks the next Logic while this one serves, or has it forked, if it is time for that and of any use."""
        survival, consumer = self._estate.survival, self._estate.consumer
        if survival is None or not (self._nursery.there or self._reserve.wanted(time.monotonic())):
            return
        breeds = self._one_by_one and self._nursery.may_be
        if not breeds:
            if self._nursery.there:
                self.nobody_stands_by()
        elif not self._reserve.pid:
            self._have_next_stand_by(0)
        has_template = breeds and self._nursery.there
        if not (self._nursery.wants if has_template else self._reserve.wanted(time.monotonic())):
            return
        if not self.stand_by or not consumer.between_records or self._is_alone():
            self._reserve.later(time.monotonic())
            return
        if has_template:
            self._make_room()
            self._nursery.order(consumer.sequence)
            return
        known, place = self._estate.known_beside(), survival.place
        known["sequence"], known["next_id"] = consumer.sequence, survival.next_id
        if breeds:
            worker = self._fork_beside(template=lambda given: Template(given, known, place))
        else:
            worker = self._fork_beside(stand_by=lambda given: Follower(given, known, place))
        if worker is None:
            self._reserve.later(time.monotonic())
        elif breeds:
            self._nursery.begin(worker, place)
        else:
            self._reserve.begin(worker, place, consumer.sequence, time.monotonic())

    def _have_next_stand_by(self, seconds: float) -> None:
        """Whom the template has forked stands by; waits for that, at most so long."""
        infant = self._nursery.next(seconds)
        if infant is not None:
            now, began = time.monotonic(), self._nursery.began
            self._reserve.begin(infant.worker, began, infant.sequence, now, infant.newcomers)

    def _fork_beside(self, **role: Any) -> Worker | None:
        """Forks somebody who does not serve now; None if that cannot be."""
        worker = self._fork(None, self.epoll_set, **role)
        self._estate.reception.reserve_numbers()
        return worker

    @property
    def _one_by_one(self) -> bool:
        """Whether each Logic serves somebody alone."""
        return bool(Policy.of(self._estate.store.items.settings).alone)

    # ---- whoever stands by

    def welcome(self, connection: Connection) -> None:
        """A connection was accepted."""
        self._reserve.welcome(connection)
        self._nursery.welcome(connection)

    def look_after(self, *, resting: bool) -> None:
        """Has them follow who stand by, and says who Logic is; to be called every now and then."""
        if not self.named and time.monotonic() >= self._started + NAMED_SECONDS:
            self._write_pid()
        before = self._reserve.pid, self._nursery.there
        self._reserve.look_after(resting=resting)
        self._nursery.look_after()
        if before != (self._reserve.pid, self._nursery.there):
            self._estate.reception.some_came_free()

    def nobody_stands_by(self) -> None:
        """Whoever stands by is not to serve: somebody else will, who knows better."""
        self._reserve.dismiss()
        self._nursery.dismiss()
        self._estate.reception.some_came_free()

    def hear(self, fd: int) -> bool:
        """Whether `fd` concerns anybody who stands by, which is looked after then."""
        if not (self._nursery.hear(fd) or self._reserve.has_ended(fd)):
            return False
        self._estate.reception.some_came_free()
        return True

    def _is_alone(self) -> bool:
        """Whether one that stands by would be in the way: there is no processor for it to follow on."""
        try:
            mine, logics = os.sched_getaffinity(0), os.sched_getaffinity(self.logic.pid)
        except ProcessLookupError:
            return True
        return len(mine | logics) == 1

    def _has_its_turn(self, worker: Worker, newcomers: int) -> bool:
        """Gives whoever stood by its turn.  False, and it is ended, if it cannot be told all that it must know."""
        turn = self._turn(newcomers).packed()
        if turn is not None and worker.line.entrust(turn, (self.epoll_set.fileno(),)):
            return True
        worker.end()
        return False

    def _turn(self, newcomers: int) -> Turn:
        """What whoever stood by is told when it is its turn."""
        assert self._estate.survival is not None
        begun, place = self._begun(), self._estate.survival.place
        return Turn(
            newcomers,
            (place.number, place.end),
            self._estate.consumer.sequence,
            [c.id for c in begun] if begun is not None else None,
            list(self.restarts.poison()),
            self.restarts.penalties(),
            {c.id: c.pending.chunks[0].position for c in self._estate.applier.waiting if c.pending.chunks},
            self.restarts.report(),
        )

    def reap_remnants(self) -> None:
        """Whoever was left by a Logic, or wrote something for State, leaves no zombie."""
        survival = self._estate.survival
        remnant.reap(
            frozenset(
                (self.logic.pid, self._reserve.pid, *self._nursery.pids, survival.child if survival is not None else 0)
            )
        )

    def _begun(self) -> list[Connection] | None:
        """Connections at which a new Logic has something to finish."""
        unfinished = self._estate.reception.unfinished()
        if unfinished is None:
            return None
        return list({c.id: c for c in (*unfinished, *self._estate.applier.waiting)}.values())

    def _be_logic(self, inheritance: Inheritance, worker: Worker, margin: int) -> None:
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            for number in (signal.SIGUSR1, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)  # until there is somebody to retire, or who has a log open
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            self.logic.in_another()
            self._reserve.in_logic()
            self._nursery.in_logic()
            self._estate.reception.close_in_logic()
            self._estate.leave()
            custody.release_low_numbers(margin, self._first_number)
            worker.in_worker()
            if self._estate.survival is not None:
                self._estate.survival.in_logic()
            status = self._run_logic(inheritance)
        except EOFError:
            pass  # State is dead, and this Logic will be in a moment
        except MemoryError:
            status = NO_MEMORY  # even to say so takes memory: State does
        except BaseException:
            log.exception("Logic fails")
        finally:
            os._exit(status)  # what was logged is written at once

    def _write_pid(self) -> None:
        self.named = True
        temporary = self._pid_file + ".new"
        if self._spare >= 0:
            os.close(self._spare)  # there may be no other descriptor left
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                os.write(fd, b"%d\n" % self.logic.pid)
            finally:
                os.close(fd)
            os.replace(temporary, self._pid_file)
        except OSError as e:
            log.error("%s: %s", self._pid_file, e.strerror)
        try:
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._spare = -1  # somebody else was faster, or there is no memory: perhaps the next time

    def reap(self) -> Death:
        """Waits for Logic's death; `reap_remnants` leaves nothing of it."""
        self._estate.epoll.unregister(self.logic.fd)
        found = self.logic.reap(later=True)
        hung, self._hung = self._hung, False
        if hung:
            return Death("hung and was killed", "hung")
        if found is not None and found.si_code in {os.CLD_KILLED, os.CLD_DUMPED}:
            outside = found.si_status in {signal.SIGKILL, signal.SIGTERM} and not self.distrusted
            return Death(f"killed by {signal.Signals(found.si_status).name}", "killed" if outside else "failed")
        status = found.si_status if found is not None else -1
        if status == Planned.STOP:
            return Death("was told to end", "killed")
        if status in REASONS:
            return Death(f"retired, {REASONS[Planned(status)]}", "planned")
        return Death("ran out of memory" if status == NO_MEMORY else f"ended with status {status}", "failed")

    def bury(self, settle: Callable[[], None]) -> None:
        """Logic is dead: State settles what it published, and the next one begins."""
        died, pid, lived = time.monotonic(), self.logic.pid, time.monotonic() - self._started
        death = self.reap()
        settle()
        for fd in (self.logic.line.question_fd, self.logic.line.telling_fd, self.logic.handover.keeper_fd):
            self._estate.epoll.unregister(fd)  # to close it is not enough while somebody else has a copy
        self.distrusted = False
        wait = self.count(death, lived)
        if wait:
            time.sleep(wait)
        text = f"Logic {pid} {death.cause} after {lived:.3f} s"
        quietly = death.kind == "planned" and death.cause == ALONE
        if not quietly:
            self.restarts.note(text)
        stood_by = "stood by and " if self.begin(asked=death.cause == ASKED) else ""
        if not quietly:
            after = f"; {self.logic.pid} {stood_by}took over in {(time.monotonic() - died) * 1000:.1f} ms"
            line = self.restarts.complete(after)
            if self._estate.survival is not None:
                self._estate.survival.noted(line)
            log.log(logging.INFO if death.kind == "planned" else logging.WARNING, "%s", text + after)
        self.reap_remnants()

    def count(self, death: Death, lived: float) -> float:
        """Draws the consequences of a death; seconds to wait before the next fork."""
        wait = self.restarts.count(death, lived)
        if self._estate.survival is not None:
            self._estate.survival.restarted(death.kind, self.restarts.consequences())
        return wait

    def note(self, text: str) -> None:
        """Has the operator's list of restarts say so."""
        line = self.restarts.note(text)
        if self._estate.survival is not None:
            self._estate.survival.noted(line)

    def watch(self, patience: float) -> None:
        """Kills a Logic that gets no further: a hang is a death."""
        words = self._estate.box.words
        sign = words[W_BEAT], words[W_ACTIVE]  # another turn, or another request in this one
        still = self._pulse.still(sign, time.monotonic(), patience)
        limit = self.watchdog * (1 + self._estate.store.tree.size / NODES_FOR_ANOTHER)
        if self.watchdog and still > limit and self.logic.pid and not self._hung:
            log.error("Logic %d has not moved for %.1f s and is killed", self.logic.pid, still)
            self._hung = True
            self.logic.signal(signal.SIGKILL)

    def beside(self, name: str) -> str:
        """A file in the run directory."""
        return os.path.join(os.path.dirname(self._pid_file), name)
