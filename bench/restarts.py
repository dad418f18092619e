"""Ways to restart each daemon while a client is at work, and what that client had to wait.

For: `bench.restart_plan`.
Guarantees: a stand's processes are gone at its end; a restart that does not come about within its patience raises
`LoadFailed`; every new Logic is confined to the client's core as soon as its pid is known.
Does not know: how the figures are shown.

Cores: client and serving process on one, everything else (State, this program) on the other, as in `bench.run`.
"""

import ctypes
import os
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from bench.load_client import Answer, LoadClient, LoadFailed
from bench.subject import Cores, pin
from protocol.client import Client
from tests.oracle.build import XEN_BIN
from tests.oracle.daemons import CXenstored, Daemon, DaemonError, OurDaemon, OXenstored, session_members, short_run_dir

PATIENCE: Final = 60.0
"""Seconds within which a restart must be over."""
SET_UP_SECONDS: Final = 90.0
LEAD: Final = (0.02, 0.06)
"""Seconds of undisturbed work before a restart, at random."""
TAIL: Final = 0.08
"""Seconds of work after it: what a new process has to warm up is part of it."""
LOOK: Final = 0.001
ASK_AGAIN: Final = 1.0
_IN_MOVED_TO: Final = 0x80
_libc: Final = ctypes.CDLL(None, use_errno=True)


class Load(NamedTuple):
    """What stands in the daemon."""

    nodes: int
    connections: int
    watches: int

    def __str__(self) -> str:
        return f"{self.nodes:,} nodes, {self.connections:,} connections, {self.watches:,} watches"


class Stand:
    """One daemon with its load client; a context manager that starts and ends both."""

    kinds: tuple[str, ...] = ()
    """Names of the ways to restart it."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.cores = Cores.chosen(False)
        self._stack = ExitStack()
        self._load = Load(0, 0, 0)

    def __enter__(self) -> Self:
        self._stack.enter_context(self.daemon)
        self.client = self._stack.enter_context(LoadClient(self.daemon.socket, None))
        # Or the next one would have one core only.
        self._stack.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
        pin([os.getpid()], self.cores.beside)
        pin([self.client.pid], self.cores.serving)
        self.place()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    # ---- what stands there

    def set_up(self, load: Load) -> float:
        """Makes what is to stand in the daemon; nodes and watches stay.  The seconds it took.  Raises LoadFailed."""
        began = time.monotonic()
        self.place()
        self.client.command("pids " + " ".join(map(str, self.daemon.counted_pids())), PATIENCE)
        if load.nodes > self._load.nodes:
            self.client.command(f"fill {load.nodes} {SET_UP_SECONDS:g}", SET_UP_SECONDS)
        if load.watches > self._load.watches:
            self.client.command(f"watches {load.watches} {load.watches} {SET_UP_SECONDS:g}", SET_UP_SECONDS)
        self.client.command(f"idle {load.connections}", SET_UP_SECONDS)
        self.client.command("pids", PATIENCE)
        self._load = load
        time.sleep(0.3)
        return time.monotonic() - began

    def daemon_pids(self) -> list[int]:
        """All processes of the daemon."""
        return self.daemon.pids()

    def place(self) -> None:
        """Confines the daemon's processes to their cores."""
        pin(self.daemon_pids(), self.cores.serving)

    # ---- figures

    def steady(self, seconds: float) -> Answer:
        """The client at work while nothing happens."""
        return self.client.command(f"gaps {seconds}", seconds + PATIENCE)

    def disturbed(self, kind: str) -> Answer:
        """The client at work while the daemon is restarted once.  Raises LoadFailed."""
        self.client.begin(f"gaps {2 * PATIENCE}")
        time.sleep(random.uniform(*LEAD))
        try:
            self.restart(kind)
            time.sleep(TAIL)
        finally:
            self.client.interrupt()
        return self.client.finish(f"a restart ({kind})", PATIENCE)

    def every(self, interval: float, seconds: float, kind: str) -> Answer:
        """The client at work while the daemon is restarted again and again, the first time after half an interval."""
        self.client.begin(f"gaps {seconds}")
        began, due, done = time.monotonic(), interval / 2, 0
        while due < seconds:
            time.sleep(max(0.0, began + due - time.monotonic()))
            if time.monotonic() - began >= seconds:
                break
            self.restart(kind)
            done += 1
            due += interval
        return self.client.finish("restarts", seconds + PATIENCE) | {"restarts": done}

    def restart(self, kind: str) -> None:
        """Restarts the daemon, and returns when that is over.  Raises LoadFailed."""
        raise NotImplementedError


class Ours(Stand):
    """This project's daemon."""

    kinds = ("kill", "planned", "slow")

    def __init__(self, run_dir: Path) -> None:
        super().__init__(OurDaemon(run_dir, ["--guardian"]))
        self.pinning = True
        """Whether a new Logic joins the client's core."""

    def __enter__(self) -> Self:
        super().__enter__()
        self._control = self._stack.enter_context(Client(str(self.daemon.socket), timeout=PATIENCE))
        self._stack.callback(follow(self.daemon.run_dir, "logic.pid", self._moved))
        return self

    def logic_pid(self) -> int:
        """The Logic that runs, or is said to."""
        while True:
            with suppress(FileNotFoundError, ValueError):
                return int((self.daemon.run_dir / "logic.pid").read_text())
            time.sleep(LOOK)

    def state_pid(self) -> int:
        """Logic's parent."""
        with suppress(FileNotFoundError, ProcessLookupError):
            return int(Path(f"/proc/{self.logic_pid()}/stat").read_text().rpartition(")")[2].split()[1])
        return 0

    def daemon_pids(self) -> list[int]:
        return session_members(self.daemon.pid)

    def place(self) -> None:
        logic = self.logic_pid()
        pin([pid for pid in self.daemon_pids() if pid != logic], self.cores.beside)
        pin([logic], self.cores.serving)

    def release(self) -> None:
        """Lets the kernel place all processes of the daemon, and those that follow: there are hundreds a second."""
        self.pinning = False
        for pid in self.daemon_pids():
            for task in Path(f"/proc/{pid}/task").glob("*"):
                with suppress(ProcessLookupError):
                    os.sched_setaffinity(int(task.name), set(self.cores))

    def policy(self, text: str) -> None:
        """When Logic is restarted on purpose."""
        if self._control.control("restart-policy", text) != "OK":
            raise LoadFailed(f"restart-policy {text} is refused")

    def restarts(self) -> int:
        """How often Logic was restarted since State's start."""
        said = self._control.control("restarts")
        match = re.search(r"restarts of Logic: (\d+)", said)
        if match is None:
            raise LoadFailed(f"not understood: {said}")
        return int(match[1])

    def restart(self, kind: str) -> None:
        logic, state = self.logic_pid(), self.state_pid()
        for pid in (state, *(-pid for pid in self.daemon.counted_pids() if pid < 0)):
            with suppress(ProcessLookupError):
                os.sched_setaffinity(pid, {self.cores.beside, self.cores.serving})  # the kernel places the new Logic
        if kind == "kill":
            os.kill(logic, signal.SIGKILL)
        elif kind == "planned":
            os.kill(state, signal.SIGUSR1)
        else:
            said = self._control.control("restart", "slow")
            if said != "OK":
                raise LoadFailed(f"restart slow is refused: {said}")
        asked = time.monotonic()
        deadline = asked + PATIENCE
        while self.logic_pid() == logic or (kind == "slow" and self.state_pid() in {0, state}):
            if time.monotonic() > deadline:
                raise LoadFailed(f"no new Logic within {PATIENCE:g} s ({kind})")
            if kind == "planned" and time.monotonic() > asked + ASK_AGAIN:  # it was not ready for signals yet
                asked = time.monotonic()
                os.kill(state, signal.SIGUSR1)
            time.sleep(LOOK)
        self.place()

    def _moved(self) -> None:
        if self.pinning:
            with suppress(ProcessLookupError):
                os.sched_setaffinity(self.logic_pid(), {self.cores.serving})


class Peer(Stand):
    """One of Xen's daemons, restarted by a live update to the program that it is."""

    kinds = ("live update",)

    def restart(self, kind: str) -> None:
        assert isinstance(self.daemon, CXenstored | OXenstored)
        command = [XEN_BIN / "xenstore-control", "live-update", "-F", "-t", "10", XEN_BIN / self.daemon.program]
        try:
            done = subprocess.run(
                ["taskset", "-c", str(self.cores.beside), *map(str, command)],
                env=self.daemon.client_env(),
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise LoadFailed(f"the live update is not over after {PATIENCE:g} s") from None
        if done.returncode:
            raise LoadFailed(f"live-update: status {done.returncode}: {done.stdout.strip()} {done.stderr.strip()}")


def stand(name: str, stack: ExitStack) -> Stand:
    """A daemon by name (c, ocaml, ours), not started, in a run directory that goes with the stack."""
    run_dir = stack.enter_context(short_run_dir())
    if name == "ours":
        return Ours(run_dir)
    return Peer(CXenstored(run_dir) if name == "c" else OXenstored(run_dir))


def follow(folder: Path, name: str, call: Callable[[], None]) -> Callable[[], None]:
    """Calls back, in a thread, whenever a file is put in place; returns what ends that.

    The kernel tells (inotify): looking again and again would disturb what is measured.
    """
    fd = _libc.inotify_init1(os.O_CLOEXEC)
    if fd < 0 or _libc.inotify_add_watch(fd, os.fsencode(folder), _IN_MOVED_TO) < 0:
        raise DaemonError(f"inotify: {os.strerror(ctypes.get_errno())}")
    ending = threading.Event()

    def run() -> None:
        while True:
            told = os.read(fd, 4096)
            if ending.is_set():
                os.close(fd)
                return
            if name.encode() in told:
                call()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def end() -> None:
        ending.set()
        (folder / f"{name}.end.new").touch()
        (folder / f"{name}.end.new").rename(folder / f"{name}.end")
        thread.join()

    return end
