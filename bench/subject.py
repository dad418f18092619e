"""One daemon with its load client, in one scenario: started, pinned, set up, asked for figures.

For: `bench.run`.
Guarantees: a figure or an exception that says why there is none; both processes end with the exit stack; a daemon that has
failed can be replaced by a fresh one.
Does not know: in what order figures are taken, or what they mean.

Cores: the client and the serving process share one, so that a round trip costs no wake-up of another core; our State has
another core, as it works beside the requests. A new process inherits its parent's core, so pinning is repeated before each
measurement.
"""

import os
import subprocess
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from bench.load_client import Answer, Declined, LoadClient
from bench.rows import Row, Source
from protocol.client import Client
from tests.oracle.daemons import Daemon, DaemonError, OurDaemon, session_members, short_run_dir

PIDS = "pids"
MEASURE_DEADLINE = 120.0
SET_UP_DEADLINE = 300.0
SETTLE_SECONDS = 0.1
IDLE_SECONDS = 3.0
"""What is given up when nothing happens is given up by then."""
REFORK_SECONDS = 10.0
LISTING_SECONDS = 90.0


class Cores(NamedTuple):
    """Core numbers: `serving` for the client and the process it talks to, `beside` for the daemon's others."""

    serving: int
    beside: int

    @classmethod
    def chosen(cls, single_core: bool) -> "Cores":
        allowed = sorted(os.sched_getaffinity(0))
        serving = allowed[min(1, len(allowed) - 1)]
        return cls(serving, serving if single_core else allowed[0])

    def swapped(self) -> "Cores":
        """Each in the place of the other: for setting up several daemons at once."""
        return Cores(self.beside, self.serving)


class Subject:
    """One daemon with its load client; `out` says why it takes no further part in the scenario."""

    def __init__(self, kind: type[Daemon], cores: Cores) -> None:
        self.name = kind.name
        self.out: str | None = None
        self._kind = kind
        self._cores = cores
        self._stack = ExitStack()
        self._totals: dict[str, int] = {}

    def __enter__(self) -> "Subject":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def start(self) -> None:
        """Starts both. Raises DaemonError, MissingPackage or BuildFailed."""
        self._totals.clear()
        self._daemon = self._stack.enter_context(self._kind(self._stack.enter_context(short_run_dir())))
        self._client = self._stack.enter_context(LoadClient(self._daemon.socket, self._daemon.xen_dir))

    def start_again(self) -> None:
        """The same with nothing left of what was. Raises what `start` raises."""
        self._stack.close()
        self.start()

    def set_up(self, command: str) -> Answer:
        """Runs a set-up command; its seconds, and microseconds for each thing it made.

        Raises LoadFailed, Declined or DaemonError.
        """
        self.begin_set_up(command)
        return self.finish_set_up(command)

    def begin_set_up(self, command: str, swapped: bool = False) -> None:
        """Has the command begin, on the cores of a measurement or swapped ones. Raises DaemonError."""
        self._count_processes(self._cores.swapped() if swapped else self._cores)
        self._client.begin(command)

    def finish_set_up(self, command: str) -> Answer:
        """Waits for it; raises and returns what `set_up` does."""
        what, total = command.split(maxsplit=1)[0], int(command.split()[1])
        self._client.finish(PIDS, SET_UP_DEADLINE)
        answer = self._client.finish(command, SET_UP_DEADLINE)
        made = total - self._totals.get(what, 0)
        self._totals[what] = total
        time.sleep(SETTLE_SECONDS)
        seconds = float(answer["seconds"])
        cpu_us = float(answer["cpu_s"]) / made * 1e6
        return {"figure": "set-up", "count": made, "us": seconds / made * 1e6, "seconds": seconds, "cpu_us": cpu_us}

    def figure(self, row: Row, seconds: float) -> Answer:
        """One figure. Raises LoadFailed, Declined or DaemonError."""
        match row.source:
            case Source.MEMORY:
                return self._memory()
            case Source.MEMORY_REFORKED:
                self._refork()
                return self._memory()
            case Source.LISTING:
                return self._listing()
        return self._command(row.command.format(seconds=seconds), MEASURE_DEADLINE)

    def explain(self, error: Exception) -> str:
        """What has failed, with what is known of the daemon's end."""
        reason = str(error)
        time.sleep(SETTLE_SECONDS)  # a daemon that is dying may still have its process
        if not self._daemon.running():
            status = self._daemon.stop()
            reason += f"; the daemon ended with status {status}" if status is not None else ""
        last_words = self._daemon.output().strip().splitlines()[-1:]
        return "; ".join([reason, *(f"its last line: {line}" for line in last_words)])

    def _command(self, line: str, deadline: float) -> Answer:
        self._count_processes(self._cores)
        self._client.finish(PIDS, MEASURE_DEADLINE)
        return self._client.command(line, deadline)

    def _count_processes(self, cores: Cores) -> None:
        """Pins them, then tells the load client of them; its answer to that is the next one."""
        serving = self._daemon.serving_pid()
        pin([self._client.pid, serving], cores.serving)
        pin([pid for pid in session_members(self._daemon.pid) if pid != serving], cores.beside)
        self._client.begin(f"{PIDS} {' '.join(map(str, self._daemon.counted_pids()))}")

    def _memory(self) -> Answer:
        time.sleep(SETTLE_SECONDS)
        return {"figure": "memory", "mb": sum(map(pss_mb, self._daemon.pids()))}

    def _refork(self) -> None:
        """Has our Logic replaced by a fresh fork of State, as an operator would."""
        assert isinstance(self._daemon, OurDaemon)
        before = self._daemon.logic_pid()
        with Client(str(self._daemon.socket)) as client:
            client.control("restart")
        deadline = time.monotonic() + REFORK_SECONDS
        while self._daemon.logic_pid() == before:
            if time.monotonic() > deadline:
                raise DaemonError(f"no other Logic in {REFORK_SECONDS:g} s after `restart`")
            time.sleep(0.01)
        time.sleep(IDLE_SECONDS)

    def _listing(self) -> Answer:
        """`xenstore-ls` of everything: Xen's own client, pinned like the load client."""
        cpu = float(self._command("cpu", MEASURE_DEADLINE)["cpu_s"])
        started = time.monotonic()
        with subprocess.Popen(
            ["taskset", "-c", str(self._cores.serving), "xenstore-ls"],
            env=self._daemon.client_env(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                _, said = process.communicate(timeout=LISTING_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise Declined(f"xenstore-ls took more than {LISTING_SECONDS:g} s") from None
        seconds = time.monotonic() - started
        if process.returncode != 0:
            raise Declined(f"xenstore-ls ended with status {process.returncode}: {said.strip()[-200:]}")
        used = float(self._command("cpu", MEASURE_DEADLINE)["cpu_s"]) - cpu
        return {"figure": "listing", "seconds": seconds, "cpu_us": used * 1e6}


def pin(pids: Iterable[int], core: int) -> None:
    """Confines all threads of the processes to one core."""
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*"):
            try:
                os.sched_setaffinity(int(task.name), {core})
            except ProcessLookupError:
                continue


def pss_mb(pid: int) -> float:
    """A process's memory in MB, pages that it shares counted by their share. Raises DaemonError if it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise DaemonError(f"process {pid} of the daemon is gone") from error
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise DaemonError(f"no Pss line for process {pid}")
