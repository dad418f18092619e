"""Carries out the scenarios: starts the daemons, pins processes, interleaves the rounds, collects figures.

For: `bench.__main__`.
Guarantees: within a stage, all daemons stand ready and are measured in turn, round after round, so that a disturbance of the
machine meets them alike; one daemon's failure costs only its own remaining rows of that scenario, and is recorded; no
process is left behind.
Does not know: what the figures mean, or how they are shown.

Cores: the client and the serving process share one, so that a round trip costs no wake-up of another core; our State has
another core, as it works beside the requests. A new process inherits its parent's core, so pinning is repeated before each
measurement.
"""

import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from bench.load_client import Answer, LoadClient, LoadFailed
from bench.rows import Measure, Row, Scenario, Stage
from tests.oracle.build import BuildFailed, MissingPackage
from tests.oracle.daemons import CXenstored, Daemon, DaemonError, OurDaemon, OXenstored, short_run_dir

DAEMONS: dict[str, type[Daemon]] = {kind.name: kind for kind in (CXenstored, OXenstored, OurDaemon)}

MEASURE_DEADLINE = 120.0
SET_UP_DEADLINE = 240.0
SETTLE_SECONDS = 0.2


class Plan(NamedTuple):
    """What one run does."""

    scenarios: Sequence[Scenario]
    daemons: Sequence[str]
    rounds: int
    seconds: float


class SetUp(NamedTuple):
    """How long a set-up command took; no figure, but worth knowing."""

    scenario: str
    command: str
    daemon: str
    seconds: float


class Results:
    """Figures by (row, daemon), one a round, and what went wrong."""

    def __init__(self) -> None:
        self.figures: defaultdict[tuple[str, str], list[Answer]] = defaultdict(list)
        self.failures: dict[tuple[str, str], str] = {}
        self.unavailable: dict[str, str] = {}
        self.set_ups: list[SetUp] = []


class Cores(NamedTuple):
    """Core numbers: `serving` for the client and the process it talks to, `beside` for the daemon's others."""

    serving: int
    beside: int

    @classmethod
    def chosen(cls, single_core: bool) -> "Cores":
        allowed = sorted(os.sched_getaffinity(0))
        serving = allowed[min(1, len(allowed) - 1)]
        return cls(serving, serving if single_core else allowed[0])


class Subject:
    """One daemon with its load client, in one scenario; `failure` says why it takes no further part."""

    def __init__(self, daemon: Daemon, cores: Cores) -> None:
        self.daemon = daemon
        self.cores = cores
        self.failure: str | None = None
        self._client: LoadClient | None = None

    def start(self, stack: ExitStack) -> None:
        """Starts both; they end with the stack. Raises DaemonError, MissingPackage or BuildFailed."""
        stack.enter_context(self.daemon)
        self._client = stack.enter_context(LoadClient(self.daemon.socket, self.daemon.xen_dir))

    def set_up(self, command: str) -> float:
        """Runs a set-up command; returns the seconds it took. Raises LoadFailed or DaemonError."""
        answer = self._command(command, SET_UP_DEADLINE)
        time.sleep(SETTLE_SECONDS)
        return float(answer["seconds"])

    def measure(self, row: Row, seconds: float) -> Answer:
        """One figure. Raises LoadFailed or DaemonError."""
        if row.measure is Measure.MEMORY:
            time.sleep(SETTLE_SECONDS)
            return {"figure": "memory", "mib": sum(map(pss_mib, self.daemon.pids()))}
        return self._command(row.command.format(seconds=seconds), MEASURE_DEADLINE)

    def fail(self, error: Exception) -> str:
        """Takes the daemon out of the scenario; returns the reason, with what is known of the daemon's end."""
        reason = str(error)
        time.sleep(SETTLE_SECONDS)  # a daemon that is dying may still have its process
        if not self.daemon.running():
            status = self.daemon.stop()
            reason += f"; the daemon ended with status {status}" if status is not None else ""
        last_words = self.daemon.output().strip().splitlines()[-1:]
        self.failure = "; ".join([reason, *(f"its last line: {line}" for line in last_words)])
        return self.failure

    def _command(self, line: str, deadline: float) -> Answer:
        assert self._client is not None
        self._pin(self._client.pid)
        pids = " ".join(map(str, self.daemon.pids()))
        self._client.command(f"pids {pids}", MEASURE_DEADLINE)
        return self._client.command(line, deadline)

    def _pin(self, client: int) -> None:
        serving = self.daemon.serving_pid()
        pin([client, serving], self.cores.serving)
        pin([pid for pid in self.daemon.pids() if pid != serving], self.cores.beside)


def pin(pids: Iterable[int], core: int) -> None:
    """Confines all threads of the processes to one core."""
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*"):
            try:
                os.sched_setaffinity(int(task.name), {core})
            except ProcessLookupError:
                continue


def pss_mib(pid: int) -> float:
    """A process's memory, pages that it shares counted by their share. Raises DaemonError if it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise DaemonError(f"process {pid} of the daemon is gone") from error
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise DaemonError(f"no Pss line for process {pid}")


def say(text: str) -> None:
    """Progress, for whoever waits."""
    print(text, file=sys.stderr, flush=True)


def run(plan: Plan) -> Results:
    """Measures everything that the plan names and this machine can run."""
    results = Results()
    for name in plan.daemons:
        reason = DAEMONS[name].available()
        if reason is not None:
            results.unavailable[name] = reason
            say(f"{name}: not measured: {reason}")
    names = [name for name in plan.daemons if name not in results.unavailable]
    for scenario in plan.scenarios:
        _run_scenario(scenario, names, plan, results)
    return results


def _run_scenario(scenario: Scenario, names: Sequence[str], plan: Plan, results: Results) -> None:
    cores = Cores.chosen(scenario.single_core)
    with ExitStack() as stack:
        subjects = []
        for name in names:
            subject = Subject(DAEMONS[name](stack.enter_context(short_run_dir())), cores)
            subjects.append(subject)
            try:
                subject.start(stack)
            except (DaemonError, MissingPackage, BuildFailed) as error:
                say(f"{scenario.name}: {name}: {subject.fail(error)}")
        for stage in scenario.stages:
            _run_stage(scenario, stage, subjects, plan, results)


def _run_stage(scenario: Scenario, stage: Stage, subjects: Sequence[Subject], plan: Plan, results: Results) -> None:
    started = time.monotonic()
    for subject in subjects:
        if stage.set_up and subject.failure is None:
            try:
                seconds = subject.set_up(stage.set_up)
            except (LoadFailed, DaemonError) as error:
                say(f"{scenario.name}: {subject.daemon.name}: {subject.fail(error)}")
            else:
                results.set_ups.append(SetUp(scenario.name, stage.set_up, subject.daemon.name, seconds))
    for _ in range(plan.rounds):
        for subject in subjects:
            _run_round(stage.rows, subject, plan.seconds, results)
    took = time.monotonic() - started
    say(f"{scenario.name}{': ' if stage.set_up else ''}{stage.set_up}: {took:.0f} s")


def _run_round(rows: Sequence[Row], subject: Subject, seconds: float, results: Results) -> None:
    name = subject.daemon.name
    for row in rows:
        if subject.failure is None:
            try:
                results.figures[row.name, name].append(subject.measure(row, seconds))
                continue
            except (LoadFailed, DaemonError) as error:
                say(f"{row.name}: {name}: {subject.fail(error)}")
        results.failures[row.name, name] = subject.failure or ""
