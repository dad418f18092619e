"""Starting and stopping the three daemons that the tests and the benchmarks compare.

For: tests and benchmarks that need a running xenstored: this project's (`OurDaemon`), C xenstored
(`CXenstored`) or oxenstored (`OXenstored`), the latter two as Debian ships them; each on a simulated Xen in its run
directory (`xen_dir`), in which `tests.conformance.xen` makes domains.
Guarantees: after `start()`, clients can connect to `socket`; a daemon that does not come up raises
`DaemonError` with its output; after `stop()` (or the end of the `with` block) none of its processes is left,
nor when the thread that called `start()` has died without that.
Does not know: the protocol, or anything inside the daemons.

    with short_run_dir() as run_dir, CXenstored(run_dir) as daemon:
        subprocess.run(["xenstore-ls"], env=daemon.client_env())
"""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from tests.oracle.build import ROOT, SHIM, MissingPackage, compiled, require

START_SECONDS = 15.0
STOP_SECONDS = 5.0
SOCKET_PATH_LIMIT = 108
LONGEST_SOCKET_NAME = "/xen/g65535.4294967295.sock"
LEFTOVER_SECONDS = 1.0
LOGIC_PID_SECONDS = 2.0
OPTIMIZE = "XOARSTORE_OPTIMIZE"
"""Set for this project's daemon to run under `python -O`: without any assertion."""
PYTHON = "XOARSTORE_PYTHON"
"""Names another interpreter to run this project's daemon: one of an environment of its own, with a build of its own."""
RESTART_POLICY = os.environ.get("XOARSTORE_RESTART", "")
"""When this project's daemon restarts its Logic on purpose; see `xenstored --help`."""
EACH_REQUEST = "per-request" in RESTART_POLICY
"""That costs a fork for each request: tests that ask thousands of times ask less often then."""
PAGE = 4096
DOM0_PORT = 1

# Thousands of connections need more descriptors than the usual soft limit. Each program replaces the one before it.
RAISE_DESCRIPTOR_LIMIT = ("/bin/sh", "-c", 'ulimit -n "$(ulimit -Hn)" && exec "$@"', "sh")
END_WITH_PARENT = ("setpriv", "--pdeathsig")


class DaemonError(Exception):
    """A daemon did not start, or is not in the state that was asked about."""


@contextmanager
def short_run_dir() -> Iterator[Path]:
    """A temporary run directory: its path short (for Unix sockets), on tmpfs if possible (as a host's /run)."""
    tmpfs = Path("/dev/shm")
    parent = tmpfs if os.access(tmpfs, os.W_OK) else Path("/tmp")
    with tempfile.TemporaryDirectory(prefix="xs-", dir=parent) as folder:
        yield Path(folder)


class Daemon(ABC):
    """A daemon in a run directory of its own; a context manager that starts and stops it."""

    name: ClassVar[str]
    death_signal: ClassVar[str] = "KILL"  # what the main process gets when whoever started it dies

    def __init__(
        self, run_dir: Path | str, extra_args: Sequence[str] = (), env: Mapping[str, str] | None = None
    ) -> None:
        self.run_dir = Path(run_dir).absolute()
        self.socket = self.run_dir / "socket"
        self.extra_args = tuple(extra_args)
        self.env = dict(env or {})
        self.log = self.run_dir / "output"
        self._process: subprocess.Popen[bytes] | None = None
        if len(str(self.run_dir) + LONGEST_SOCKET_NAME) >= SOCKET_PATH_LIMIT:
            raise ValueError(f"run directory too long for Unix sockets: {self.run_dir}")

    @classmethod
    @abstractmethod
    def available(cls) -> str | None:
        """None if the daemon can run on this machine, else why not."""

    @abstractmethod
    def command(self) -> list[str]:
        """The program and its arguments, without `extra_args`."""

    def own_env(self) -> dict[str, str]:
        """Variables that the daemon itself needs."""
        return {}

    @property
    def xen_dir(self) -> Path | None:
        """The simulated Xen directory that the daemon runs on; None when it serves sockets only."""
        return self.run_dir / "xen"

    def prepare(self) -> None:
        """Makes what must stand in the run directory before the daemon starts."""
        self.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.xen_dir is not None:
            (self.xen_dir / "domains").mkdir(parents=True, exist_ok=True)
            (self.xen_dir / "dom0.ring").write_bytes(bytes(PAGE))
            (self.xen_dir / "dom0.port").write_text(str(DOM0_PORT))

    @property
    def pid(self) -> int:
        """The main process."""
        return self._running().pid

    def pids(self) -> list[int]:
        """All processes of the daemon, the main one first."""
        return [self.pid]

    def lasting_pids(self) -> list[int]:
        """Those that stay as long as nothing goes wrong, and serve."""
        return self.pids()[:2]

    def counted_pids(self) -> list[int]:
        """Those whose processor time is counted, negative if they need not stay for as long as something is measured."""
        return self.pids()

    def serving_pid(self) -> int:
        """The process that clients talk to."""
        return self.pid

    def running(self) -> bool:
        """Whether the main process is alive."""
        return self._process is not None and self._process.poll() is None

    def output(self) -> str:
        """Everything that the daemon wrote to its standard output and error."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def client_env(self) -> dict[str, str]:
        """The environment in which Xen's own clients talk to this daemon."""
        return os.environ | {"XENSTORED_PATH": str(self.socket)}

    def start(self) -> None:
        """Starts the daemon and returns when it accepts connections. Raises DaemonError or MissingPackage."""
        if self.running():
            raise DaemonError(f"{self.name} is running already (pid {self.pid})")
        self.prepare()
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("XENSTORED_")}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*RAISE_DESCRIPTOR_LIMIT, *END_WITH_PARENT, self.death_signal, *self.command(), *self.extra_args],
                env=inherited | self.own_env() | self.env,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._wait_for_socket()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> int | None:
        """Ends the daemon: SIGTERM, then SIGKILL.

        Returns the main process's exit status (negative: the signal that ended it), None if never started.
        """
        process = self._process
        if process is None:
            return None
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        _end_session(process.pid)
        self._process = None
        return process.returncode

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise DaemonError(f"{self.name} is not running")
        return self._process

    def _wait_for_socket(self) -> None:
        process = self._running()
        deadline = time.monotonic() + START_SECONDS
        while not _accepts(self.socket):
            status = process.poll()
            if status is not None:
                raise DaemonError(f"{self.name} ended with status {status} while starting:\n{self.output()}")
            if time.monotonic() > deadline:
                raise DaemonError(f"{self.name} made no socket in {START_SECONDS:g} s:\n{self.output()}")
            time.sleep(0.01)


class OurDaemon(Daemon):
    """This project's daemon: the main process is State, the serving one Logic; without a Xen if `sockets_only`."""

    name = "ours"
    death_signal = "TERM"

    module = "xenstored"
    """What is run; anything else patches the daemon, which only its sources allow."""

    def __init__(
        self,
        run_dir: Path | str,
        extra_args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        *,
        sockets_only: bool = False,
    ) -> None:
        super().__init__(run_dir, extra_args, env)
        self.sockets_only = sockets_only
        self.first_logic = 0
        """With a `RESTART_POLICY`, the Logic that ran when it had started."""

    def start(self) -> None:
        super().start()
        if RESTART_POLICY:
            self.first_logic = self.logic_pid()
            STARTED.append(self)

    @classmethod
    def available(cls) -> str | None:
        if importlib.util.find_spec("xenstored") is None or importlib.util.find_spec("xenstored.__main__") is None:
            return "the package xenstored has no __main__"
        return None

    @property
    def xen_dir(self) -> Path | None:
        return None if self.sockets_only else super().xen_dir

    def command(self) -> list[str]:
        where = ["-D"] if self.xen_dir is None else ["--simulated-xen", str(self.xen_dir)]
        restart = ["--restart", RESTART_POLICY] if RESTART_POLICY else []
        other = os.environ.get(PYTHON) if self.module == "xenstored" else None
        # -P: what that environment has installed, not the sources that lie in the working directory
        python = [sys.executable] if not other else [other, "-P"]
        return [*python, "-m", self.module, "-N", *where, *restart]

    def own_env(self) -> dict[str, str]:
        optimized = {"PYTHONOPTIMIZE": "1"} if os.environ.get(OPTIMIZE) else {}
        return {"XENSTORED_RUNDIR": str(self.run_dir), **optimized}

    def logic_pid(self) -> int:
        """The running Logic. Raises DaemonError if RUN/logic.pid names none."""
        path = self.run_dir / "logic.pid"
        deadline = time.monotonic() + LOGIC_PID_SECONDS
        while True:
            try:
                return int(path.read_text())
            except (FileNotFoundError, ValueError) as error:
                if not self.running() or time.monotonic() > deadline:
                    raise DaemonError(f"no pid in {path}: {error}\n{self.output()}") from error
                time.sleep(0.01)

    def pids(self) -> list[int]:
        """State, Logic, then whatever else they have forked; not what is left of a Logic, or will be: it is no other memory."""
        state, logic = self.pid, self.logic_pid()
        others = (pid for pid in session_members(state) if pid not in (state, logic))
        return [state, logic, *(pid for pid in others if name_of(pid) != "xenstore-rest")]

    def lasting_pids(self) -> list[int]:
        return [self.pid] if RESTART_POLICY else super().lasting_pids()

    def counted_pids(self) -> list[int]:
        """State, Logic, the guardian, and whoever stands by; not whoever writes a checkpoint, and is gone then."""
        state, logic, *others = self.pids()
        stays = [pid for pid in others if name_of(pid) == "xenstore-guard"]
        return [state, logic, *stays, *(-pid for pid in others if name_of(pid) == "xenstore-next")]

    def serving_pid(self) -> int:
        return self.logic_pid()


STARTED: list[OurDaemon] = []
"""With a `RESTART_POLICY`, this project's daemons in the order in which they were started."""


class _Shimmed(Daemon):
    """One of Xen's daemons, as Debian ships it, under the shim."""

    program: ClassVar[str]

    @classmethod
    def available(cls) -> str | None:
        try:
            require(cls.program, "xen-utils-4.17")
        except MissingPackage as error:
            return str(error)
        return SHIM.missing() if SHIM.stale() else None

    def prepare(self) -> None:
        super().prepare()
        (self.run_dir / "lib").mkdir(exist_ok=True)
        for stale in ("socket", "xenstored.pid", "db", "xen/evtchn.tab"):
            (self.run_dir / stale).unlink(missing_ok=True)

    def own_env(self) -> dict[str, str]:
        return {"FAKEXEN_DIR": str(self.xen_dir), "FAKEXEN_RUN": str(self.run_dir)}

    def command(self) -> list[str]:
        shim = compiled(SHIM)
        return ["/usr/bin/env", f"LD_PRELOAD={shim}", str(require(self.program, "xen-utils-4.17"))]


class CXenstored(_Shimmed):
    """C xenstored 4.17. Its own -D crashes at the first request, so it is given a domain 0 with a ring."""

    name = "c"
    program = "xenstored"

    def command(self) -> list[str]:
        return [*super().command(), "-N", "--internal-db"]

    def own_env(self) -> dict[str, str]:
        own = {"XENSTORED_RUNDIR": str(self.run_dir), "XENSTORED_ROOTDIR": str(self.run_dir / "lib")}
        return super().own_env() | own


class OXenstored(_Shimmed):
    """oxenstored 4.17. It ignores SIGTERM while a client holds a transaction; `stop` then kills it."""

    name = "ocaml"
    program = "oxenstored"

    def prepare(self) -> None:
        super().prepare()
        settings = {
            "pid-file": self.run_dir / "xenstored.pid",
            "merge-activate": "true",
            "perms-activate": "true",
            "quota-activate": "true",
            "xenstored-kva": "/proc/xen/xsd_kva",
            "xenstored-port": "/proc/xen/xsd_port",
        }
        text = "".join(f"{key} = {value}\n" for key, value in settings.items())
        (self.run_dir / "oxenstored.conf").write_text(text)

    def command(self) -> list[str]:
        options = ["--no-fork", "--no-access-log", "--config-file", str(self.run_dir / "oxenstored.conf")]
        return [*super().command(), *options]


def name_of(pid: int) -> str:
    """What a process is called; nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def session_members(leader: int) -> list[int]:
    """The living processes of a session: a daemon's are all in the one that its main process leads."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] not in "ZX" and int(fields[3]) == leader:
            found.append(int(name))
    return sorted(found)


def _end_session(leader: int) -> None:
    """Gives processes whose leader is gone a moment to end, then kills them, and whom they have started meanwhile."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + LEFTOVER_SECONDS
        while members := session_members(leader):
            if number == signal.SIGTERM and time.monotonic() > deadline:
                break
            for pid in members:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            time.sleep(0.01)


def _accepts(path: Path) -> bool:
    """Whether a client can connect to the socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True
