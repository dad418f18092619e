"""The guardian: a process that does nothing but hold State's descriptors, and start State again when it dies.

It speaks systemd's protocol for kept descriptors (FDSTORE, FDSTOREREMOVE, LISTEN_FDS), over a pair of sockets instead of
$NOTIFY_SOCKET.  It notices State's death, and that of everything State had started, by the end of a pipe whose other end
they all hold.  It reads no file, parses no record and holds nothing but numbers and names.
"""

import array
import ctypes
import fcntl
import logging
import os
import select
import signal
import socket
import sys
from typing import Final, NoReturn

from recovery_box.fdstore import FIRST

log = logging.getLogger(__name__)

SOCKET_VARIABLE: Final = "XOARSTORE_GUARDIAN"
"""Number of State's end of the sockets."""
LIFE_VARIABLE: Final = "XOARSTORE_LIFE"
"""Number of the end of the pipe that State and its children hold."""
FRESH_VARIABLE: Final = "XOARSTORE_FRESH"
"""Set when State is to start empty: what was kept has killed it again and again."""
_PR_SET_CHILD_SUBREAPER: Final = 36
_FDS_MAX: Final = 253
_MESSAGE_MAX: Final = 4096
TRIES: Final = 3
"""Deaths in a row before it serves after which State starts empty."""


def start() -> socket.socket:
    """Forks the guardian; State's end of the sockets.  To be called in State while it is small."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    life_read, life_write = os.pipe2(os.O_CLOEXEC)
    if not os.fork():
        try:
            os.close(life_write)
            Guardian(theirs, ours, life_read).run()
        except BaseException:
            log.exception("the guardian fails")
        finally:
            os._exit(1)
    theirs.close()
    os.close(life_read)
    return ours


def adopt(above: int) -> socket.socket | None:
    """In a State that the guardian has started: State's end of the sockets.  None in any other.

    Socket and pipe move to numbers from `above` on, out of the way of what is kept.
    """
    number, life = os.environ.pop(SOCKET_VARIABLE, None), os.environ.pop(LIFE_VARIABLE, None)
    if number is None or life is None:
        return None
    moved = [fcntl.fcntl(int(fd), fcntl.F_DUPFD_CLOEXEC, above) for fd in (number, life)]
    for fd in (number, life):
        os.close(int(fd))
    return socket.socket(fileno=moved[0])


class Guardian:
    """The process."""

    def __init__(self, guardian_end: socket.socket, state_end: socket.socket, life: int) -> None:
        self._socket = guardian_end
        self._state_end = state_end
        self._life = life
        self._kept: dict[str, int] = {}
        self._stopping = False
        self._early_deaths = 0
        """Deaths in a row of a State that had not begun to serve."""

    def run(self) -> NoReturn:
        """Until State has ended in order."""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with open("/proc/self/comm", "w", encoding="ascii") as f:
            f.write("xenstore-guard")
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._life, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._socket.fileno() in ready:
                self._listen()
            elif self._life in ready:
                poll.unregister(self._life)
                os.close(self._life)
                self._reap()
                if self._stopping:
                    os._exit(0)
                self._revive()
                poll.register(self._life, select.POLLIN)

    def _reap(self) -> None:
        """A State that the guardian has started, and whatever that one had, leaves no zombies."""
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass

    def _listen(self) -> None:
        """One message from State."""
        room = socket.CMSG_SPACE(_FDS_MAX * array.array("i").itemsize)
        text, ancillary, _, _ = self._socket.recvmsg(_MESSAGE_MAX, room, socket.MSG_CMSG_CLOEXEC)
        given = array.array("i")
        for _, _, data in ancillary:
            given.frombytes(data[: len(data) - len(data) % given.itemsize])
        said = dict(line.partition("=")[::2] for line in text.decode("ascii", "replace").splitlines())
        name = said.get("FDNAME", "")
        if "FDSTORE" in said and len(given) == 1 and name:
            self._forget(name)
            self._kept[name] = given.pop()
        elif "FDSTOREREMOVE" in said:
            self._forget(name)
        elif "STOPPING" in said:
            self._stopping = True
        elif "READY" in said:
            self._early_deaths = 0
        for fd in given:
            os.close(fd)

    def _forget(self, name: str) -> None:
        fd = self._kept.pop(name, -1)
        if fd >= 0:
            os.close(fd)

    def _revive(self) -> None:
        """Starts State again, with everything it had."""
        self._early_deaths += 1
        log.error("State is dead: it is started again with %d descriptors", len(self._kept))
        self._life, write = os.pipe2(os.O_CLOEXEC)
        if os.fork():
            os.close(write)
            return
        try:
            self._become_state(write)
        except BaseException:
            log.exception("State cannot be started")
        finally:
            os._exit(1)

    def _become_state(self, write: int) -> None:
        names = list(self._kept)
        wanted = [self._state_end.fileno(), write, *self._kept.values()]
        above = max(FIRST + len(wanted), max(wanted) + 1)
        for offset, fd in enumerate(wanted):  # out of the way first, then into place
            os.dup2(fd, above + offset, inheritable=False)
        places = [FIRST + len(names), FIRST + len(names) + 1, *range(FIRST, FIRST + len(names))]
        for offset, place in enumerate(places):
            os.dup2(above + offset, place, inheritable=True)
        os.closerange(FIRST + len(wanted), above + len(wanted))
        environment = dict(os.environ)
        environment[SOCKET_VARIABLE], environment[LIFE_VARIABLE] = str(places[0]), str(places[1])
        environment["LISTEN_FDS"], environment["LISTEN_FDNAMES"] = str(len(names)), ":".join(names)
        environment["LISTEN_PID"] = str(os.getpid())
        if self._early_deaths > TRIES:
            environment[FRESH_VARIABLE] = "1"
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
