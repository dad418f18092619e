"""The way from State to its guardian: starting one, and being started by one.  What it does stands in `guard`.

It is State's child at first; when State dies, it becomes the next one's parent.
"""

import logging
import os
import select
import signal
import socket
import sys
from collections.abc import MutableMapping
from typing import Final, NamedTuple, NoReturn

from recovery_box.fdstore import FdStore
from recovery_box.prctl import adopt_orphans
from xenstored import guard

log = logging.getLogger(__name__)

DEAD_SECONDS: Final = 1.0


def _directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "/"


STARTED_IN: Final = _directory()
"""Where the daemon was started, whatever directory it goes to."""


class Guardian(FdStore):
    """A guardian as State sees it: its child, or, of a State that was started again, its parent."""

    def __init__(self, connected: socket.socket, life: int, pid: int) -> None:
        super().__init__(connected)
        self._life = life
        self._pid = pid
        self._oom_score = oom_score(str(pid))
        try:
            self._process = os.pidfd_open(pid)
        except OSError:  # it is dead already; the socket says so
            self._process = -1

    def stop(self) -> None:
        """It ends with State, and a little before it.  Raises OSError."""
        self.say("STOPPING=1")
        self._bury()

    def keep_alike(self) -> None:
        """It gets State's OOM score, as soon as somebody has changed that: State's children get it from State."""
        mine = oom_score("self")
        if mine == self._oom_score:
            return
        self._oom_score = mine
        try:
            with open(f"/proc/{self._pid}/oom_score_adj", "w", encoding="ascii") as f:
                f.write(mine)
        except OSError as e:
            log.warning("the guardian's OOM score stays as it is: %s", e.strerror)

    def let_go(self) -> None:
        """It ends, and State goes on.  Raises OSError."""
        self.stop()

    def end(self) -> None:
        """Makes sure that it starts nobody any more: it is dead, or does not listen."""
        try:
            if self._process >= 0:
                signal.pidfd_send_signal(self._process, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._bury()
        os.close(self._life)
        self.close()

    def _bury(self) -> None:
        if self._process < 0:
            return
        dead = select.poll()
        dead.register(self._process, select.POLLIN)
        if dead.poll(DEAD_SECONDS * 1000):
            try:
                os.waitid(os.P_PIDFD, self._process, os.WEXITED)
            except ChildProcessError:
                pass  # somebody else's child
        os.close(self._process)
        self._process = -1


def oom_score(process: str) -> str:
    """What the kernel's killer of processes adds for a process; empty where there is none."""
    try:
        with open(f"/proc/{process}/oom_score_adj", encoding="ascii") as f:
            return f.read()
    except OSError:
        return ""


def start() -> Guardian:
    """Starts a guardian.  Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    life_read, life_write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if not pid:
        _become_guard(theirs, life_read)
    theirs.close()
    os.close(life_read)
    return Guardian(ours, life_write, pid)


def _become_guard(connected: socket.socket, life: int) -> NoReturn:
    try:
        adopt_orphans()  # what State leaves behind when it dies is this one's to reap
        for fd in (connected.fileno(), life):
            os.set_inheritable(fd, True)
        signal.set_wakeup_fd(-1)
        program = [sys.executable, "-I", "-S", guard.__file__, str(connected.fileno()), str(life), STARTED_IN]
        os.execv(sys.executable, [*program, sys.executable, *sys.orig_argv[1:]])
    finally:
        os._exit(1)


class Revived(NamedTuple):
    """What a State is told that was started by the guardian."""

    socket: int
    life: int
    pid: int
    died: float
    """When the State before was found dead, in seconds of the monotonic clock."""

    def adopt(self, connected: int, life: int) -> Guardian:
        """The guardian, once the descriptors have got these numbers."""
        return Guardian(socket.socket(fileno=connected), life, self.pid)


def revived(environment: MutableMapping[str, str]) -> Revived | None:
    """In a State that the guardian has started: what it said.  None in any other."""
    said = environment.pop(guard.GUARDIAN_VARIABLE, None)
    if said is None:
        return None
    connected, life, pid, died = said.split()
    return Revived(int(connected), int(life), int(pid), float(died))
