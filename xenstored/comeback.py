"""Coming back: what a State does first that was started again after a death, before it serves.

Takes the descriptors that were kept for it, reads what the State before had written down, and goes on in its box; what does not
fit together is given up, with a line in the log.  At an ordinary start nothing was kept, and everything is made.
"""

import logging
import os
import re
import stat
from typing import Final, NamedTuple
from zlib import crc32

from recovery_box import custody, fdstore
from recovery_box.box import Box, BoxError, shared_memory_directory
from recovery_box.journal import Consumer, JournalCorrupt
from xenstore_state.recovered import recover
from xenstore_state.repetition import Recovered
from xenstore_state.survival import CONNECTION, TRIES, Survival, count_attempt, note_loss, remove
from xenstored import guardian

log = logging.getLogger(__name__)

BOX, LISTENER, EVENTS = "box", "listen", "evtchn"
"""Names under which descriptors are kept; events have their domain port behind the name."""
KEPT: Final = re.compile(f"{CONNECTION}|{BOX}|{LISTENER}|{EVENTS}[0-9]+")
"""What is ours of the descriptors that a process is started with: a unit may hand over others."""


class CannotStart(Exception):
    """The daemon cannot run here; the text says why."""


class Inherited(NamedTuple):
    """What a State has that was started again."""

    kept: dict[int, str]
    """Descriptors: what each number is.  Empty at an ordinary start."""
    guardian: guardian.Guardian | None
    """Whoever has started it; None at an ordinary start, and by systemd."""
    died: float | None
    """When the State before died, in seconds of the monotonic clock, as far as is known."""

    @property
    def again(self) -> bool:
        """Whether this is no ordinary start."""
        return BOX in self.kept.values()


def inherit() -> Inherited:
    """Takes what was kept for this process, before any other descriptor is opened."""
    inherited, revived = fdstore.inherited(os.environ, KEPT), guardian.revived(os.environ)
    if revived is None:
        return Inherited(fdstore.settle(inherited)[0], None, None)
    kept, (connected, life) = fdstore.settle(inherited, (revived.socket, revived.life))
    return Inherited(kept, revived.adopt(connected, life), revived.died)


class ComeBack(NamedTuple):
    """What there is to go on with."""

    directory: str
    """Where State writes down what it does."""
    recovered: Recovered | None
    """What the State before has known, if anything of it can be used; None at an ordinary start, too."""
    box: Box
    unusable: int
    """The number under which a box is kept that cannot be used; -1 if none is."""

    @property
    def complete(self) -> bool:
        """Whether nothing of the State before is lost."""
        return self.recovered is not None and self.recovered.complete

    def match_connections(self, kept: dict[int, str], survival: Survival | None) -> None:
        """A connection without a descriptor is closed; so is a descriptor without a connection that was not just accepted."""
        recovered = self.recovered
        sockets = {fd for fd, what in kept.items() if what == CONNECTION}
        connections = [c for c in recovered.store.items.connections if c.socket] if recovered is not None else []
        unknown = sockets - {c.fd for c in connections}
        if recovered is not None and recovered.complete:
            recovered.newcomers = sorted(unknown)
        else:
            for fd in unknown:
                custody.shut_down(fd)
                if survival is not None:
                    survival.drop(fd)
                os.close(fd)
        for connection in connections:
            if connection.fd not in sockets and recovered is not None:
                log.error("connection %d has no descriptor any more", connection.id)
                if survival is not None:
                    survival.hung_up(connection)
                recovered.store.disconnect(connection)
                recovered.store.closed.clear()


def come_back(rundir: str, inherited: Inherited) -> ComeBack:
    """Reads what was written down, and takes the box; the box is empty unless everything goes on.

    Raises `CannotStart`, `BoxError` or OSError.
    """
    path = _box_path(rundir)
    directory = os.path.join(os.path.dirname(path), "state-" + os.path.basename(path))
    recovered = _recover(directory) if inherited.again else None
    box, unusable = _box(path, fdstore.number_of(inherited.kept, BOX))
    if unusable >= 0 and recovered is not None:
        recovered.give_up_connections()
    if inherited.again and (recovered is None or not recovered.complete or not _follows(box, recovered)):
        note_loss(directory)
        box.clear()
    return ComeBack(directory, recovered, box, unusable)


def _recover(directory: str) -> Recovered | None:
    make_ours(directory)
    if count_attempt(directory) > TRIES:
        log.error("State has died again and again over what it knew: everything begins anew")
        return None
    return recover(directory)


def _box(path: str, kept: int | None) -> tuple[Box, int]:
    """The box of the State before, or a fresh one; the number of the former if it cannot be used, or -1."""
    if kept is None:
        return Box(path), -1
    try:
        return Box(path, kept=kept), -1
    except BoxError as e:
        log.error("the box of the State before cannot be used, all connections are closed: %s", e)
    remove(path)  # whoever keeps it still holds its lock
    return Box(path), kept


def _follows(box: Box, recovered: Recovered) -> bool:
    """Whether the journal goes on where what was written down ends.  If not, no connection can go on."""
    try:
        Consumer(box).resume(recovered.sequence, recovered.staged)
    except JournalCorrupt as e:
        log.error("the journal cannot be followed (%s): all connections are closed", e)
        recovered.give_up_connections()
    return recovered.complete


def make_ours(directory: str) -> None:
    """Makes the directory that State writes to, unless it is there.

    Raises `CannotStart` if it is not ours alone: whoever else could write there could be anybody in the store.
    """
    os.makedirs(directory, mode=0o700, exist_ok=True)
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise CannotStart(f"{directory} is not ours alone: somebody else made it, or may open it")


def _box_path(rundir: str) -> str:
    directory = shared_memory_directory(rundir)
    if directory == rundir:
        return os.path.join(directory, "recovery-box")
    mark = crc32(os.fsencode(rundir))
    return os.path.join(directory, f"xenstored-{os.getuid()}-{mark:08x}")
