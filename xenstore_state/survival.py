"""Survival: how State itself outlives its own death.

What State knows is written down as it happens: a checkpoint of everything, made by a forked child so that nobody waits, and
a ledger of what came after it.  Descriptors are kept by somebody else (`recovery_box.fdstore`).  A new State reads the last
checkpoint that is whole, repeats what the ledgers say (`recovered`), and goes on in the same box, where journal, positions
and regions stand as Logic left them.

Files, in one directory on tmpfs: `checkpoint.N` holds all that happened before `ledger.N` began.  The checkpoint before the
newest one stays, with the ledgers behind it: should the newest be damaged, nothing is lost.

If nothing can be written down any more, or descriptors cannot be kept, State says so and goes on without: dying for it would
help nobody.
"""

import logging
import os
import re
import signal
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgpack

from recovery_box.fdstore import FdStore
from recovery_box.items import Connection
from recovery_box.journal import SEGMENT_MAX
from recovery_box.ledger import Ledger
from recovery_box.prctl import be_called, end_with_parent
from xenstore_state import checkpoint
from xenstore_state.domains import Offer
from xenstore_state.restarts import Consequences
from xenstore_state.store import Store
from xenstore_state.transactions import Transaction

log = logging.getLogger(__name__)

LEDGER_MIN: Final = 8 << 20
LEDGER_MAX: Final = 64 << 20
"""Bytes behind a checkpoint at which another one is made, at least and at most."""
LEDGER_SHARE: Final = 4
"""In between: so many times the size of the checkpoint."""
LEDGER_IDLE: Final = 1 << 20
"""The same when a checkpoint is older than `IDLE_SECONDS`."""
IDLE_SECONDS: Final = 10.0
TRIES: Final = 3
"""Deaths in a row before it serves after which State begins empty."""
REPLACE_SECONDS: Final = 1.0
REPLACED_MAX: Final = 5
"""Guardians that end within that time of each other before State goes on without one."""

RECORD: Final = 0
"""Sequence number, record, how far connections' output had got that this depended on (by connection id)."""
ACCEPTED: Final = 1
"""Connection id, slot, descriptor."""
LEARNED: Final = 2
"""Domid, unique id."""
OFFERED: Final = 3
"""Domid, offer (connection id, slot, port, remote port)."""
BOUND: Final = 4
"""Domid, port (0: none any more), remote port."""
HUNG_UP: Final = 5
"""Connection id."""
SEGMENT: Final = 6
"""Sequence number, a piece of a record that is too long to be there at once."""
SEGMENTED: Final = 7
"""Like RECORD, with the last piece in place of the record."""
SETTLED: Final = 8
"""Nothing: the domains that were there before the daemon have been introduced."""
RESTARTED: Final = 9
"""Kind of a Logic's death, consequences (`Restarts.consequences`)."""
NOTED: Final = 10
"""A line for the operator's list of restarts."""
RELISTED: Final = 11
"""Connection id, transaction id, names that lead to a node, names of its children as the transaction lists it from now on: its
snapshot was lost, and whoever repeats this may have other ones."""
CONNECTION: Final = "c"
"""What a connection's descriptor is kept as."""
_ATTEMPTS: Final = "attempts"
_LOSS: Final = "connections-lost"


class Place(NamedTuple):
    """How far State has written: ledger `number` in `directory`, up to byte `end`; `total` bytes in all of its life."""

    directory: str
    number: int
    end: int
    total: int


class Survival:
    """What State writes down."""

    next_id = 1
    """Connection ids from here on were never used; whoever gives them out keeps this true."""

    def __init__(
        self,
        directory: str,
        keeper: FdStore,
        replace: Callable[[FdStore], FdStore] | None = None,
        *,
        complete: bool = True,
    ) -> None:
        """`replace` puts another keeper in the place of one that is gone; without it, none is looked for.

        What was written down before is gone on with, unless it is not `complete`.
        """
        self.keeper = keeper
        self._replace = replace
        self._replaced = 0
        self._replaced_at = -REPLACE_SECONDS
        self._directory = directory
        _clear_of_halves(directory)
        checkpoints, ledgers = numbers(directory, "checkpoint"), numbers(directory, "ledger")
        self._behind = sum(
            os.path.getsize(self._path("ledger", n)) for n in ledgers if n >= max(checkpoints, default=0)
        )
        """Bytes of older ledgers behind the newest checkpoint."""
        self._limit = LEDGER_MIN
        self._number = max(ledgers + checkpoints, default=0) + 1
        self._ledger = Ledger(self._path("ledger", self._number))
        self._before = 0
        """Bytes of all ledgers that were written before this one."""
        self._child = 0
        self._made = time.monotonic()
        self._has_one = complete and bool(checkpoints)
        self._given_up = False
        self._failed = False
        """The last attempt at a checkpoint; another one can wait."""
        self._wanted = self._needed = False
        """A checkpoint is to be made before anything can be repeated; the one being written is such a one."""

    def _path(self, what: str, number: int) -> str:
        return file_path(self._directory, what, number)

    @property
    def place(self) -> Place:
        """How far it is written."""
        return Place(self._directory, self._number, self._ledger.end, self._before + self._ledger.end)

    @property
    def child(self) -> int:
        """Pid of whoever writes a checkpoint; 0 if nobody does."""
        return self._child

    @property
    def outlives(self) -> bool:
        """Whether State would come back if it died now."""
        return not self._given_up

    @property
    def can_be_followed(self) -> bool:
        """Whether all that happens is written down, so that whoever repeats it gets to the same."""
        return not (self._given_up or self._wanted)

    # ---- what happens

    def record(self, sequence: int, body: bytes, made: dict[int, int]) -> None:
        """A record was applied, and depended on how far these connections' output had got."""
        if len(body) <= SEGMENT_MAX:
            self._note((RECORD, sequence, body, made))
        else:  # all but the last piece stand there already
            self._note((SEGMENTED, sequence, body[(len(body) - 1) // SEGMENT_MAX * SEGMENT_MAX :], made))

    def listed(self, store: Store, number: int, tx_id: int) -> None:
        """A record was applied by which a connection lists a node in a transaction, and will be noted next."""
        transaction: Transaction | None = store.items.transactions.get((number, tx_id))
        relisted = transaction.take_relisted() if transaction is not None else None
        if relisted is not None:
            self._note((RELISTED, number, tx_id, *relisted))

    def segment(self, sequence: int, piece: bytes) -> None:
        """A piece of a record was read."""
        self._note((SEGMENT, sequence, piece))

    def accepted(self, connection: Connection) -> None:
        """A connection was accepted; its descriptor is kept already."""
        self._note((ACCEPTED, connection.id, connection.slot, connection.fd))

    def closed(self, connection: Connection) -> None:
        """A connection is no more; the record of that was noted already."""
        if connection.socket:
            self.drop(connection.fd)

    def learned(self, domid: int, unique_id: int) -> None:
        """A domain has become known."""
        self._note((LEARNED, domid, unique_id))

    def offered(self, domid: int, offer: Offer) -> None:
        """A domain's ring was offered a connection."""
        self._note((OFFERED, domid, *offer))

    def bound(self, domid: int, port: int, remote_port: int) -> None:
        """A domain's event channel was bound, or (0) given up."""
        self._note((BOUND, domid, port, remote_port))

    def settled(self) -> None:
        """The domains that were there before the daemon have been introduced."""
        self._note((SETTLED,))

    def hung_up(self, connection: Connection) -> None:
        """State has closed a connection itself."""
        self._note((HUNG_UP, connection.id))

    def restarted(self, kind: str, consequences: Consequences) -> None:
        """A Logic has died."""
        self._note((RESTARTED, kind, consequences))

    def noted(self, line: str) -> None:
        """A line for the operator's list of restarts."""
        self._note((NOTED, line))

    def _note(self, entry: tuple[Any, ...]) -> None:
        if self._given_up:
            return
        try:
            self._ledger.add(_pack(entry))
        except OSError as e:
            self._give_up(str(e))

    def _give_up(self, why: str) -> None:
        if self._given_up:
            return
        self._given_up = True
        log.error("State would not survive its death from now on: %s", why)
        let_go(self.keeper)
        forget(self._directory)

    # ---- whoever keeps descriptors

    def keep(self, what: str, fd: int) -> None:
        """Has a descriptor kept."""
        if self.keeper.kept.get(fd, what) != what:
            self.drop(fd)
        if fd not in self.keeper.kept:
            self._say(lambda: self.keeper.keep(what, fd))

    def prepare(self) -> None:
        """A descriptor is about to be opened that will be kept at once: nobody shall have to wait then."""
        self._say(self.keeper.wait_for_room)

    def drop(self, fd: int) -> None:
        """Has a descriptor given up."""
        self._say(lambda: self.keeper.drop(fd))

    def _say(self, act: Callable[[], None]) -> None:
        if self._given_up:
            return
        try:
            act()
        except OSError as e:
            self.keeper_gone(str(e))

    @property
    def can_be_lost(self) -> bool:
        """Whether whoever keeps descriptors is looked after, and replaced."""
        return self._replace is not None and not self._given_up

    def keeper_gone(self, why: str) -> None:
        """Whoever kept descriptors is gone, or does not listen: somebody else is given everything."""
        if self._given_up:
            return
        if self._replace is None:
            self._give_up(why)
            return
        now = time.monotonic()
        self._replaced = self._replaced + 1 if now < self._replaced_at + REPLACE_SECONDS else 1
        self._replaced_at = now
        if self._replaced > REPLACED_MAX:
            self._give_up("one guardian after the other ends")
            return
        log.error("the guardian is gone (%s): another one is given the descriptors", why)
        kept = self.keeper.kept
        try:
            self.keeper = self._replace(self.keeper)
            for fd, what in kept.items():
                self.keeper.keep(what, fd)
            self.keeper.say("READY=1")
        except OSError as e:
            self._give_up(str(e))

    def in_logic(self) -> None:
        """In a fresh Logic: what is kept, and where, is none of its business."""
        self.keeper.close()

    # ---- checkpoints

    def want_checkpoint(self) -> None:
        """Something happened that repeating what is written down would not bring about."""
        self._wanted = True

    def look_after(self, store: Store, sequence: int, more: Callable[[], dict[str, Any]]) -> None:
        """Makes a checkpoint when it is time for one; to be called every now and then, but not amid a record.

        `more` gives what State knows beside the store.
        """
        if self._child:
            self._ask_child()
        grown = self._behind + self._ledger.end
        old = time.monotonic() - self._made > IDLE_SECONDS
        if (
            self._given_up
            or self._child
            or (self._has_one and not self._wanted and grown < self._limit and not (old and grown > LEDGER_IDLE))
        ):
            return
        if self._failed and not old:
            return
        self._made = time.monotonic()
        try:
            ledger = Ledger(self._path("ledger", self._number + 1))
        except OSError as e:
            self._failed = True
            log.error("no checkpoint can be made: %s", e)
            if not self._has_one:
                self._give_up("there would be nothing to come back to")
            return
        self._needed, self._failed, self._wanted = self._wanted, False, False
        self._behind += self._ledger.end
        self._before += self._ledger.end
        self._ledger.close()
        self._ledger = ledger
        self._number += 1
        first, self._has_one = not self._has_one, True
        next_id = max(
            [c.id for c in store.items.connections] + [o.connection for o in store.domains.offers.values()] + [0]
        )
        kept = more() | {"next_id": max(next_id + 1, self.next_id)}
        if first:  # nothing is known yet, and before this is there, nobody may be told anything
            try:
                checkpoint.write(self._path("checkpoint", self._number), store, sequence, kept)
            except OSError as e:
                self._give_up(str(e))
                return
            self._clean_up(self._number)
            remove(os.path.join(self._directory, _LOSS))
            return
        try:
            self._child = os.fork()
        except OSError as e:
            self._failed, self._wanted = True, self._needed
            log.error("no checkpoint can be made: %s", e)
            return
        if not self._child:
            self._write(store, sequence, kept)

    def _write(self, store: Store, sequence: int, more: dict[str, Any]) -> None:
        """In a child."""
        status = 1
        try:
            be_called(b"xenstore-save")
            end_with_parent()
            signal.set_wakeup_fd(-1)
            self.keeper.close()
            os.nice(5)
            path = self._path("checkpoint", self._number)
            checkpoint.write(path, store, sequence, more)
            checkpoint.verify(path)
            status = 0
        except (OSError, checkpoint.Damaged) as e:
            log.error("no checkpoint could be written: %s", e)
        finally:
            os._exit(status)

    def _ask_child(self) -> None:
        found = os.waitid(os.P_PID, self._child, os.WEXITED | os.WNOHANG)
        if found is None:
            return
        self._child = 0
        self._failed = bool(found.si_status)
        if self._failed:
            self._wanted = self._wanted or self._needed
            remove(checkpoint.temporary(self._path("checkpoint", self._number)))
            return
        size = os.path.getsize(self._path("checkpoint", self._number))
        self._limit = min(LEDGER_MAX, max(LEDGER_MIN, LEDGER_SHARE * size))
        self._behind = 0
        before = [n for n in numbers(self._directory, "checkpoint") if n < self._number]
        self._clean_up(max(before, default=self._number))

    def _clean_up(self, first: int) -> None:
        """Removes what came before a checkpoint that is to stay."""
        for what in ("checkpoint", "ledger"):
            for number in numbers(self._directory, what):
                if number < first:
                    os.unlink(self._path(what, number))

    # ---- life

    def ready(self) -> None:
        """State serves: a death before this would have been the fault of what it has read."""
        self._say(lambda: self.keeper.say("READY=1"))
        forget_attempts(self._directory)

    def end(self) -> None:
        """State ends in order: nothing of this is needed any more."""
        if self._child:
            os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
        try:
            self.keeper.stop()  # first: nobody may come back to what is being removed
        except OSError as e:
            log.debug("whoever kept descriptors is gone already: %s", e)
        self._ledger.close()
        forget(self._directory)
        forget_attempts(self._directory)
        try:
            os.rmdir(self._directory)
        except OSError:
            pass  # there is something else in it, such as a damaged checkpoint


# ---- the files


def count_attempt(directory: str) -> int:
    """How many times in a row a State has now begun to read what is written here, and has not come to serve."""
    path = os.path.join(directory, _ATTEMPTS)
    try:
        with open(path, encoding="ascii") as f:
            before = int(f.read() or 0)
    except (FileNotFoundError, ValueError):
        before = 0
    try:
        with open(path, "w", encoding="ascii") as f:
            f.write(str(before + 1))
    except OSError as e:
        log.error("%s: %s", path, e.strerror)  # to serve is more than to know how often it did not
    return before + 1


def forget_attempts(directory: str) -> None:
    """State has come to serve."""
    remove(os.path.join(directory, _ATTEMPTS))


def remove(path: str) -> None:
    """Removes a file, if there is one."""
    try:
        os.unlink(path)
    except OSError:
        pass  # whoever needs its place will say why that is taken


def let_go(keeper: FdStore) -> None:
    """Nobody is to come back: whoever keeps descriptors gives them up, and starts nobody any more."""
    try:
        keeper.let_go()
    except OSError:
        pass


def note_loss(directory: str) -> None:
    """The box is about to be emptied: what is written down holds connections that cannot go on, until there is a checkpoint."""
    try:
        with open(os.path.join(directory, _LOSS), "w"):
            pass
    except OSError as e:
        log.error("%s: %s", directory, e.strerror)


def loss_noted(directory: str) -> bool:
    """Whether that was said, and no checkpoint was made since."""
    return os.path.exists(os.path.join(directory, _LOSS))


def forget(directory: str) -> None:
    """Removes all files."""
    remove(os.path.join(directory, _LOSS))
    for what in ("checkpoint", "ledger"):
        for number in numbers(directory, what):
            os.unlink(file_path(directory, what, number))
    _clear_of_halves(directory)


def _clear_of_halves(directory: str) -> None:
    """Removes what was never finished."""
    for name in os.listdir(directory):
        if name.endswith(checkpoint.temporary("")):
            remove(os.path.join(directory, name))


def file_path(directory: str, what: str, number: int) -> str:
    """Of the file of one kind ("checkpoint", "ledger") with this number."""
    return os.path.join(directory, f"{what}.{number}")


def numbers(directory: str, what: str) -> list[int]:
    """The numbers of the files of one kind."""
    found = (re.fullmatch(rf"{what}\.([0-9]+)", name) for name in os.listdir(directory))
    return [int(match[1]) for match in found if match is not None]


def _pack(entry: tuple[Any, ...]) -> bytes:
    packed: bytes = msgpack.packb(entry, use_bin_type=True)
    return packed
