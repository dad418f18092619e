"""Logic as something to be stopped, looked at, and killed.

A process is signalled through a pidfd only, after it was seen to be a child of this daemon's State: a number that has come
to mean another process in the meantime is never hit.
Knows processes and signals, nothing of what Logic does.
"""

from __future__ import annotations

import os
import platform
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from tests.oracle.daemons import OurDaemon
from xenstore_logic.process import NAME

PATIENCE: Final = 10.0
STOP_PATIENCE: Final = 20.0
USER_MODE: Final = -1
"""In place of a system call's number: the process was executing its own code."""
_CALLS: Final[dict[str, dict[str, tuple[int, ...]]]] = {
    "x86_64": {"epoll_wait": (232, 281, 441), "recvmmsg": (299,), "sendmmsg": (307,)},
    "aarch64": {"epoll_wait": (22, 441), "recvmmsg": (243,), "sendmmsg": (269,)},
}
_HERE: Final = _CALLS.get(platform.machine(), {})
EPOLL_WAIT: Final = _HERE.get("epoll_wait", ())
RECVMMSG: Final = _HERE.get("recvmmsg", ())
SENDMMSG: Final = _HERE.get("sendmmsg", ())


class Gone(Exception):
    """The process ended."""


def _status(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
            return f.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        raise Gone from None


def called(daemon: OurDaemon, name: bytes) -> list[int]:
    """The daemon's processes of that name."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(Gone, FileNotFoundError, ProcessLookupError):
            if int(_status(int(path.name))[3]) == daemon.pid and (path / "comm").read_bytes() == name + b"\n":
                found.append(int(path.name))
    return found


def parent_of(pid: int) -> int:
    """The parent of a process.  Raises `Gone`."""
    return int(_status(pid)[1])


class Logic:
    """One Logic, held by a pidfd."""

    def __init__(self, pid: int, parent: int) -> None:
        try:
            self.fd = os.pidfd_open(pid)
        except OSError:
            raise Gone from None
        self.pid = pid
        try:
            status = _status(pid)
        except Gone:
            os.close(self.fd)
            raise
        if int(status[1]) != parent or status[0] in "ZX":
            os.close(self.fd)
            raise Gone

    def close(self) -> None:
        os.close(self.fd)

    def signal(self, number: int) -> None:
        try:
            signal.pidfd_send_signal(self.fd, number)
        except ProcessLookupError:
            raise Gone from None

    def kill(self) -> None:
        """Kills it; returns when it is dead, if not yet buried.  Raises `Gone` if it was dead already."""
        if self._dead(0):
            raise Gone
        self.signal(signal.SIGKILL)
        assert self._dead(PATIENCE), f"Logic {self.pid} does not die"

    def _dead(self, patience: float) -> bool:
        poll = select.poll()  # not select(): a test of thousands of connections may have taken the low numbers
        poll.register(self.fd, select.POLLIN)
        return bool(poll.poll(patience * 1000))

    def stop(self) -> None:
        """Stops it; returns when it stands.  Raises `Gone`."""
        self.signal(signal.SIGSTOP)
        deadline = time.monotonic() + STOP_PATIENCE
        while True:
            state = _status(self.pid)[0]
            if state == "T":
                return
            if state in "ZX":
                raise Gone
            assert time.monotonic() < deadline, f"Logic {self.pid} does not stop: {state}"

    def go_on(self) -> None:
        self.signal(signal.SIGCONT)

    def system_call(self) -> int:
        """Number of the system call at whose end (or in which) a stopped process stands, `USER_MODE` if in none."""
        try:
            with open(f"/proc/{self.pid}/syscall", encoding="ascii") as f:
                return int(f.read().split()[0])
        except (FileNotFoundError, ProcessLookupError):
            raise Gone from None


def logic_of(daemon: OurDaemon) -> Logic | None:
    """The Logic that runs now; None while there is none, or State has said of none yet."""
    state = daemon.pid
    with suppress(FileNotFoundError, ValueError):
        said = int((daemon.run_dir / "logic.pid").read_text())
        with suppress(Gone):
            return Logic(said, state)
        for child in Path(f"/proc/{state}/task/{state}/children").read_text().split():  # it may be unable to say
            with suppress(Gone, FileNotFoundError, ProcessLookupError):
                if Path(f"/proc/{child}/comm").read_bytes() == NAME + b"\n":  # and none that only stands by
                    return Logic(int(child), state)
    return None


@contextmanager
def stopped(daemon: OurDaemon) -> Iterator[Logic]:
    """Logic stands still meanwhile, and goes on afterwards unless it was killed."""
    logic = wait_for_logic(daemon)
    try:
        logic.stop()
        yield logic
    finally:
        with suppress(Gone):
            logic.go_on()
        logic.close()


@contextmanager
def state_stopped(daemon: OurDaemon) -> Iterator[None]:
    """State stands still meanwhile: it consumes nothing, accepts nobody and restarts nothing."""
    fd = os.pidfd_open(daemon.pid)
    try:
        signal.pidfd_send_signal(fd, signal.SIGSTOP)
        deadline = time.monotonic() + STOP_PATIENCE
        while _status(daemon.pid)[0] != "T":
            assert time.monotonic() < deadline, "State does not stop"
        yield
    finally:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, signal.SIGCONT)
        os.close(fd)


def wait_for_logic(daemon: OurDaemon, other_than: int = 0) -> Logic:
    """The running Logic as soon as there is one, and one other than the process named."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and daemon.running():
        logic = logic_of(daemon)
        if logic is not None and logic.pid != other_than:
            return logic
        if logic is not None:
            logic.close()
    raise AssertionError(f"no Logic runs but {other_than}:\n{daemon.output()}")


def kill_logic(daemon: OurDaemon, number: int = signal.SIGKILL) -> int:
    """Ends the running Logic with a signal, waits until another one was started, and returns the old one's pid."""
    logic = wait_for_logic(daemon)
    logic.signal(number)
    logic.close()
    wait_for_logic(daemon, other_than=logic.pid).close()
    return logic.pid


def restarts(daemon: OurDaemon) -> list[str]:
    """The log lines that tell of a Logic that took over."""
    return [line for line in daemon.output().splitlines() if "took over" in line]


def wait_for_restarts(daemon: OurDaemon, number: int) -> list[str]:
    """The same once there are this many: State serves on before it writes them."""
    deadline = time.monotonic() + PATIENCE
    while len(lines := restarts(daemon)) < number and time.monotonic() < deadline:
        time.sleep(0.005)
    assert len(lines) == number, f"{len(lines)} restarts, not {number}:\n{daemon.output()}"
    return lines
