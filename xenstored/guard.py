"""The guardian: a program that does nothing but hold State's descriptors, and start State again when it dies.

It speaks systemd's protocol for kept descriptors (FDSTORE, FDSTOREREMOVE, LISTEN_FDS), over a pair of sockets instead of
$NOTIFY_SOCKET.  It notices State's death, and that of everything State had started, by the end of a pipe whose other end
they all hold.  It reads no file, parses no record and holds nothing but numbers and names.

It is a program of its own, run by an interpreter that has nothing else loaded: some megabytes, not the size of a daemon with
a store.  So it imports nothing of this project.  `guardian` starts it.

    guard.py SOCKET LIFE DIRECTORY PROGRAM ARGUMENT...

DIRECTORY is where the daemon was started: its program may be found from there only.
"""

from __future__ import annotations

import array
import os
import select
import signal
import socket
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # at run time it would take another megabyte
    from typing import Final, NoReturn

GUARDIAN_VARIABLE: Final = "XOARSTORE_GUARDIAN"
"""For a State that is started again: State's end of the sockets, the pipe's end that State and its children hold (numbers),
the guardian's pid, and when the last State was found dead, in seconds of the monotonic clock."""
FIRST: Final = 3
_FDS_MAX: Final = 253
_MESSAGE_MAX: Final = 4096
WAIT_FIRST: Final = 0.1
WAIT_MAX: Final = 5.0
"""Seconds between attempts to start a State that does not begin to serve."""
REST_MS: Final = 1
"""Millisecond for which it does not look at what State says after it did: a descriptor is safe once it is sent, and to be
woken for each would cost State its processor while a client waits."""


def _schedule(policy: int) -> None:
    try:
        os.sched_setscheduler(0, policy, os.sched_param(0))
    except OSError:
        pass  # it works under any policy


class Guard:
    """The process."""

    def __init__(self, connected: socket.socket, life: int, directory: str, command: list[str]) -> None:
        self._socket = connected
        self._life = life
        self._directory = directory
        self._command = command
        self._kept: dict[str, int] = {}
        self._early_deaths = 0
        """Deaths in a row of a State that had not begun to serve."""

    def run(self) -> NoReturn:
        """Until State ends in order, and says so."""
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        _schedule(os.SCHED_BATCH)  # being told something is no reason to take State's core while it accepts a client
        try:
            with open("/proc/self/comm", "w", encoding="ascii") as f:
                f.write("xenstore-guard")
        except OSError:
            pass  # it works under any name
        while True:
            self._hold()
            os.close(self._life)
            self._socket.close()
            self._reap()
            self._revive()

    def _hold(self) -> None:
        """Until everybody at the other ends is dead."""
        poll, resting = select.poll(), select.poll()
        poll.register(self._socket, select.POLLIN)
        for each in (poll, resting):
            each.register(self._life, select.POLLIN)
        alive = {self._socket.fileno(), self._life}
        while alive:
            for fd, _ in poll.poll():
                if fd != self._life and self._listen_to_all():
                    resting.poll(REST_MS)
                    continue
                poll.unregister(fd)
                alive.remove(fd)

    def _reap(self) -> None:
        """A State that was started here, and whatever that one had, leaves no zombies."""
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass

    def _listen_to_all(self) -> bool:
        """What State has said so far; False when there will be nothing any more."""
        try:
            while self._listen():
                pass
        except BlockingIOError:
            return True
        return False

    def _listen(self) -> bool:
        """One message from State; False when there will be none any more.  Raises BlockingIOError when there is none now."""
        room = socket.CMSG_SPACE(_FDS_MAX * array.array("i").itemsize)
        text, ancillary, _, _ = self._socket.recvmsg(_MESSAGE_MAX, room, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
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
            os._exit(0)
        elif "READY" in said:
            self._early_deaths = 0
        for fd in given:
            os.close(fd)
        return bool(text)

    def _forget(self, name: str) -> None:
        fd = self._kept.pop(name, -1)
        if fd >= 0:
            os.close(fd)

    def _revive(self) -> None:
        """Starts State again, with everything it had."""
        died = time.monotonic()
        if self._early_deaths > 1:
            time.sleep(min(WAIT_MAX, WAIT_FIRST * 2.0 ** min(self._early_deaths - 2, 10)))
        self._early_deaths += 1
        self._socket, states_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._life, write = os.pipe2(os.O_CLOEXEC)
        guard = os.getpid()
        if os.fork():
            os.close(write)
            states_end.close()
            return
        _schedule(os.SCHED_OTHER)
        try:
            self._become_state(states_end.fileno(), write, f"{guard} {died}")
        finally:
            os._exit(1)

    def _become_state(self, states_end: int, write: int, more: str) -> NoReturn:
        """Everything gets the numbers that LISTEN_FDS means, one by one: there may be few others free."""
        kept = list(self._kept.items())
        there = {fd: FIRST + offset for offset, fd in enumerate([*(fd for _, fd in kept), states_end, write])}
        for fd in (self._socket.fileno(), self._life):
            os.close(fd)
        while there:
            came, place = there.popitem()
            if place in there:
                there[os.dup(place)] = there.pop(place)
            if came == place:
                os.set_inheritable(came, True)
            else:
                os.dup2(came, place, inheritable=True)
                os.close(came)
        environment = dict(os.environ)
        count = len(kept)
        environment[GUARDIAN_VARIABLE] = f"{FIRST + count} {FIRST + count + 1} {more}"
        environment["LISTEN_FDS"], environment["LISTEN_FDNAMES"] = str(count), ":".join(name for name, _ in kept)
        environment["LISTEN_PID"] = str(os.getpid())
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        try:
            os.chdir(self._directory)
        except OSError:
            pass  # it is gone: that may not matter
        os.execve(self._command[0], self._command, environment)


if __name__ == "__main__":
    Guard(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), sys.argv[3], sys.argv[4:]).run()
