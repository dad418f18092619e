"""What is measured of restarts, in which order: downtime by what stands in the daemon, throughput by the interval.

For: `bench.restart`.
Guarantees: a cell that fails is recorded with the reason and costs only itself (and what needed the same process); figures of
all daemons come from the same run.
Does not know: how a daemon is restarted (`bench.restarts`), or how figures are shown.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Final, NamedTuple

from bench.load_client import Declined, LoadFailed
from bench.restarts import Load, Ours, Stand, stand
from bench.run import DAEMONS, say
from tests.oracle.build import BuildFailed, MissingPackage
from tests.oracle.daemons import DaemonError

FAULTS: Final = (LoadFailed, DaemonError, MissingPackage, BuildFailed, OSError, TimeoutError)
NOTHING: Final = "nothing"
"""The same measurement while the daemon is left alone: how quiet the machine is."""
SETTLED: Final = 0.3
"""Seconds after another policy was set."""
PER_REQUEST: Final = "per-request"
ASKED: Final = Load(100_000, 1_000, 50_000)
"""The load for which a bound is asked."""


class Life(NamedTuple):
    """One life of a daemon: its loads one after another, and how often it is restarted at each."""

    daemon: str
    loads: tuple[Load, ...]
    fast: int
    slow: int


class Pace(NamedTuple):
    """Throughput of a daemon that is restarted again and again."""

    daemon: str
    load: Load
    kind: str
    """How it is restarted: see `Stand.kinds`."""
    intervals: tuple[float, ...]
    """Seconds; 0: for each request."""
    rounds: int
    seconds: float
    """At least so long for each interval, and never less than one of these."""


class Plan(NamedTuple):
    """What one run does."""

    lives: tuple[Life, ...]
    paces: tuple[Pace, ...]
    steady_seconds: float


class Downtime(NamedTuple):
    """Longest waits, in milliseconds, one for each restart."""

    daemon: str
    load: Load
    kind: str
    waits: list[float]
    failure: str = ""

    @property
    def middle(self) -> float:
        return median(self.waits)

    @property
    def worst(self) -> float:
        return max(self.waits)


class Throughput(NamedTuple):
    """Requests a second."""

    daemon: str
    load: Load
    kind: str
    interval: float
    rates: list[float]
    alone: list[float]
    """The same without restarts, one for each of these: the mean of just before and just after, as machines change their pace."""
    restarts: int
    waits_ms: float
    """Milliseconds that the client lost in waits of more than 1 ms, for each restart."""
    failure: str = ""

    @property
    def rate(self) -> float:
        return median(self.rates)

    @property
    def loss(self) -> float:
        """Per cent of the throughput without restarts."""
        return 100 * (1 - median(rate / alone for rate, alone in zip(self.rates, self.alone, strict=True)))


class Results(NamedTuple):
    """All of it."""

    downtimes: list[Downtime]
    throughputs: list[Throughput]
    notes: list[str]
    """What could not be set up, and how long setting up took."""


def loads(nodes: int) -> tuple[Load, ...]:
    """All loads with so many nodes, in an order in which each only adds to the one before, but for connections."""
    return tuple(Load(nodes, *rest) for rest in ((0, 0), (1_000, 0), (1_000, 50_000), (0, 50_000)))


def complete() -> Plan:
    """About ten minutes."""
    lives = (
        *(Life("ours", loads(nodes), 11, 3) for nodes in (1_000, 100_000)),
        Life("ours", loads(1_000_000), 7, 1),
        Life("c", (Load(1_000, 0, 0), Load(1_000, 1_000, 50_000)), 0, 3),
        Life("c", (Load(100_000, 0, 0),), 0, 2),
        Life("ocaml", (Load(1_000, 0, 0), Load(1_000, 1_000, 50_000)), 0, 3),
        Life("ocaml", (Load(100_000, 0, 0), ASKED), 0, 2),
    )
    paces = (
        Pace("ours", ASKED, "planned", (10.0, 5.0), 1, 4.0),
        # A machine's pace varies by more than the loss that is asked for: many short pairs.
        Pace("ours", ASKED, "planned", (1.0,), 25, 2.0),
        Pace("ours", ASKED, "planned", (0.1, 0.0), 3, 4.0),
        Pace("ours", Load(1_000, 0, 0), "planned", (1.0,), 15, 2.0),
        Pace("ours", Load(1_000, 0, 0), "planned", (0.0,), 3, 4.0),
        Pace("ours", ASKED, "slow", (10.0, 5.0, 1.0), 1, 4.0),
        Pace("c", Load(1_000, 0, 0), "live update", (10.0, 1.0), 1, 5.0),
        Pace("ocaml", Load(1_000, 0, 0), "live update", (10.0, 1.0), 1, 5.0),
        Pace("c", Load(100_000, 0, 0), "live update", (10.0,), 1, 5.0),
        Pace("ocaml", Load(100_000, 0, 0), "live update", (10.0,), 1, 5.0),
    )
    return Plan(lives, paces, 1.0)


def quick() -> Plan:
    """About a minute."""
    small = Load(1_000, 0, 0)
    lives = (
        Life("ours", (Load(100_000, 0, 0), ASKED), 5, 1),
        Life("c", (small,), 0, 2),
        Life("ocaml", (small,), 0, 2),
    )
    return Plan(lives, (Pace("ours", ASKED, "planned", (1.0, 0.1, 0.0), 1, 2.0),), 1.0)


def run(plan: Plan) -> Results:
    """Measures all that this machine can."""
    results = Results([], [], [])
    absent = {name: why for name, kind in DAEMONS.items() if (why := kind.available())}
    results.notes.extend(f"{name} was not measured: {why}" for name, why in absent.items())
    for life in plan.lives:
        if life.daemon not in absent:
            _live(life, results)
    for pace in plan.paces:
        if pace.daemon not in absent:
            _pace(pace, plan.steady_seconds, results)
    return results


@contextmanager
def _standing(name: str) -> Iterator[Stand]:
    with ExitStack() as stack:
        yield stack.enter_context(stand(name, stack))


def _live(life: Life, results: Results) -> None:
    began = time.monotonic()
    left = list(life.loads)
    failure = ""
    try:
        with _standing(life.daemon) as standing:
            while left:
                _measure(standing, left[0], life, results)
                del left[0]
    except FAULTS as error:
        failure = f"{type(error).__name__}: {error}"
        results.downtimes.extend(Downtime(life.daemon, load, "any", [], failure) for load in left)
    say(f"downtime, {life.daemon}, {life.loads[0].nodes:,} nodes: {time.monotonic() - began:.0f} s {failure}")


def _measure(standing: Stand, load: Load, life: Life, results: Results) -> None:
    try:
        took = standing.set_up(load)
    except Declined as error:  # the client goes on
        results.downtimes.append(Downtime(life.daemon, load, "any", [], f"setting up: {error}"))
        return
    results.notes.append(f"{life.daemon}: setting up {load}: {took:.1f} s")
    for kind in (NOTHING, *standing.kinds):
        times = life.slow if kind in {"slow", "live update"} else life.fast or 3
        results.downtimes.append(_downtime(standing, load, kind, times))


def _downtime(standing: Stand, load: Load, kind: str, times: int) -> Downtime:
    waits: list[float] = []
    try:
        for _ in range(times):
            answer = standing.steady(0.15) if kind == NOTHING else standing.disturbed(kind)
            waits.append(float(answer["worst_us"]) / 1000)
    except FAULTS as error:
        say(f"{standing.daemon.name}, {kind}, {load}: {error}")
        return Downtime(standing.daemon.name, load, kind, waits, f"{error}")
    return Downtime(standing.daemon.name, load, kind, waits)


def _pace(pace: Pace, steady: float, results: Results) -> None:
    began = time.monotonic()
    failure = ""
    rates: dict[float, list[float]] = {interval: [] for interval in pace.intervals}
    alone: dict[float, list[float]] = {interval: [] for interval in pace.intervals}
    restarts: dict[float, int] = dict.fromkeys(pace.intervals, 0)
    lost: dict[float, float] = dict.fromkeys(pace.intervals, 0.0)
    try:
        with _standing(pace.daemon) as standing:
            standing.set_up(pace.load)
            after = _rate(standing.steady(steady))
            for _ in range(pace.rounds):
                for interval in pace.intervals:
                    seconds = max(pace.seconds, interval)
                    before, answer = after, _at(standing, pace.kind, interval, seconds)
                    after = _rate(standing.steady(steady))
                    rates[interval].append(_rate(answer))
                    alone[interval].append((before + after) / 2)
                    restarts[interval] += int(answer["restarts"])
                    lost[interval] += float(answer["lost_us"]) / 1000
    except FAULTS as error:
        failure = f"{type(error).__name__}: {error}"
    for interval in pace.intervals:
        waits = lost[interval] / max(1, restarts[interval])
        failed = "" if rates[interval] else failure or "not measured"
        results.throughputs.append(
            Throughput(
                pace.daemon,
                pace.load,
                pace.kind,
                interval,
                rates[interval],
                alone[interval],
                restarts[interval],
                waits,
                failed,
            )
        )
    say(f"throughput, {pace.daemon}, {pace.kind}: {time.monotonic() - began:.0f} s {failure}")


def _rate(answer: dict[str, str | float]) -> float:
    return float(answer["count"]) / float(answer["seconds"])


def _at(standing: Stand, kind: str, interval: float, seconds: float) -> dict[str, str | float]:
    """One stretch of work with restarts at that interval."""
    if not isinstance(standing, Ours) or kind != "planned":
        return standing.every(interval, seconds, kind)
    if not interval:
        standing.release()
    standing.policy(f"every={interval}" if interval else PER_REQUEST)
    time.sleep(SETTLED)  # a Logic that was old enough already has been followed by another one
    before = standing.restarts()
    try:
        answer = standing.steady(seconds)
    finally:
        standing.pinning = True
        standing.policy("on-crash")
        standing.place()
    return answer | {"restarts": standing.restarts() - before}
