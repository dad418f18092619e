"""The phases of the torture: what is done to the daemon while its clients work.

Each takes seconds and a seed, starts a daemon and clients of its own, and gives back a `Tally`.  Long ones have rounds: the
clients end, everything is checked, and others begin, while the daemon stays.
"""

from __future__ import annotations

import itertools
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from tests.conformance.processes import STANDS_BY
from tests.oracle.daemons import OurDaemon, short_run_dir
from tests.recovery.boxview import BoxView
from tests.recovery.clients_process import ClientsProcess
from tests.recovery.killer import Killer
from tests.recovery.logic import Gone, Logic, restarts, state_stopped, stopped
from tests.recovery.steps import Step
from tests.torture.injections import LOGIC, STATE
from tests.torture.report import Tally
from tests.torture.stage import Size, TortureDaemon, Visitors, crowd, state_of
from tests.torture.workload import idle_connections

ROUND: Final = 60.0
"""Longest round, in seconds: the checker's work grows with it."""
LONGEST: Final = 3
"""Times its share of the time that a phase may take to reach a number of kills."""
PATIENCE: Final = 180.0
"""Seconds after which steps not hit often enough are given up on."""
SLOWEST: Final = 5.0
FASTEST: Final = 200.0
"""Kills a second, at least and at most."""
WATCHDOG: Final = 1.0
STOP_MAX: Final = 0.05
GROWTH_MAX: Final = 2048
"""KiB that State may hold more at the end than after half of the time: by then what it remembers of paths is full."""

Phase = Callable[[float, int, int], Tally]


class Pace:
    """How long to wait between kills: the rate changes every second."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._until = 0.0
        self._rate = SLOWEST

    def wait(self) -> None:
        now = time.monotonic()
        if now > self._until:
            self._until = now + 1
            self._rate = self._rng.uniform(SLOWEST, FASTEST)
        time.sleep(self._rng.expovariate(self._rate))


Torment = Callable[[Callable[[], bool]], None]
"""What is done to the daemon as long as the argument says."""


def rounds(
    daemon: OurDaemon,
    tally: Tally,
    seconds: float,
    seed: int,
    torment: Torment,
    *,
    before: Callable[[], None] = lambda: None,
    after: Callable[[], None] = lambda: None,
    more: Callable[[], bool] = lambda: False,
) -> None:
    """Lets clients work while `torment` is called; `before` it, when all are connected, and `after` all have gone.

    There are `more` rounds than the time would have, within reason.
    """
    count = max(1, round(seconds / ROUND))
    for number in itertools.count():
        if number >= count and not (more() and tally.seconds < LONGEST * seconds):
            return
        with crowd(daemon, seed, number) as clients:
            before()
            with Visitors(daemon) as visitors:
                start = time.monotonic()
                torment(_clock(clients, tally, start, seconds / count, last=number >= count - 1))
                tally.seconds += time.monotonic() - start
                tally.add(clients.finish())
        tally.counts.update(visitors.counts)
        tally.details += visitors.failures
        if tally.troubles or visitors.failures:
            tally.details.append(f"the daemon said:\n{_unusual(daemon)}")
            return
        after()


def _clock(clients: ClientsProcess, tally: Tally, start: float, seconds: float, *, last: bool) -> Callable[[], bool]:
    """Whether to go on: for so long, and in the last round until each step was hit, within reason."""

    def goes_on() -> bool:
        elapsed = time.monotonic() - start
        return clients.works and (elapsed < seconds or (last and bool(tally.missing) and elapsed < PATIENCE + seconds))

    return goes_on


def _unusual(daemon: OurDaemon) -> str:
    usual = ("killed by SIGKILL", "serving on", "entries behind it", "started again with")
    lines = [line for line in daemon.output().splitlines() if not any(text in line for text in usual)]
    return "\n".join([*lines[:40], "...", *lines[-20:]] if len(lines) > 60 else lines)


# ---- Logic


def logic_killed(seconds: float, seed: int, least: int, kills: int = 0) -> Tally:
    """`kill -9` of Logic at random times, 5 to 200 times a second; until there were so many `kills`."""
    tally = Tally("Logic killed at random times")
    tally.least = least
    tally.steps = {step.value: 0 for step in Step}
    rng = random.Random(seed)
    with short_run_dir() as run_dir, TortureDaemon(run_dir, seed, guardian=True) as daemon, BoxView(daemon.pid) as view:
        killer = Killer(daemon, view, rng)
        pace = Pace(rng)
        sizes: list[tuple[int, Size, int]] = []

        def torment(goes_on: Callable[[], bool]) -> None:
            while goes_on():
                pace.wait()
                match rng.randrange(10):
                    case 0:
                        killer.at_a_step()
                    case 1 | 2 | 3 | 4:
                        killer.anywhere()
                    case _:
                        killer.at_once()
                tally.steps = {step.value: killer.hits[step] for step in Step}

        def before() -> None:
            killer.idle = idle_connections(view.youngest)

        def after() -> None:
            sizes.append(_measure(daemon))

        def more() -> bool:
            return killer.kills < kills

        rounds(daemon, tally, seconds, seed, torment, before=before, after=after, more=more)
        tally.kills["Logic"] = killer.kills
        looks = killer.looks.total() - killer.looks[Step.STARTING]
        busy = looks - killer.looks[Step.WAITING]
        tally.notes.append(
            f"{killer.blind} of them without looking; Logic had something to do in {100 * busy / max(looks, 1):.0f} % of "
            f"{killer.looks.total()} looks"
        )
        downtimes = [float(line.split(" in ")[-1].split()[0]) for line in restarts(daemon)]
        stood_by = sum("stood by" in line for line in restarts(daemon))
        tally.notes.append(
            f"the next one forked, or told that it is its turn, within {statistics.median(downtimes):.1f} ms (median), "
            f"{max(downtimes):.1f} ms (longest); {stood_by} of {len(downtimes)} stood by"
        )
        failed = [line for line in restarts(daemon) if "killed by SIGKILL" not in line]
        tally.details += [f"not killed by us: {line}" for line in failed]
        _compare(tally, sizes)
    return tally


def _measure(daemon: TortureDaemon) -> tuple[int, Size, int]:
    """Restarts so far, what State holds with nobody connected, and dead processes left lying about."""
    time.sleep(0.3)
    return daemon.restarts(), Size(daemon.pid), daemon.zombies()


def _compare(tally: Tally, sizes: list[tuple[int, Size, int]]) -> None:
    if not sizes:
        return
    for sample in sorted({0, len(sizes) // 2, len(sizes) - 1}):
        restarts_, size, zombies = sizes[sample]
        tally.notes.append(
            f"State held {size.resident:,} KiB and {size.descriptors} descriptors after {restarts_:,} restarts; {zombies} zombies"
        )
    (_, half, _), (_, last, zombies) = sizes[len(sizes) // 2], sizes[-1]
    if last.resident > half.resident + GROWTH_MAX or last.descriptors > half.descriptors + STANDS_BY or zombies:
        tally.details.append("memory, descriptors or processes have grown")


def one_core(seconds: float, seed: int, least: int) -> Tally:
    """The same with everything, daemon and clients, on one core."""
    with _on_one_core():
        tally = logic_killed(seconds, seed, least)
    tally.name += ", all on one core"
    return tally


@contextmanager
def _on_one_core() -> Iterator[None]:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


# ---- State


def state_killed(seconds: float, seed: int, least: int) -> Tally:
    """`kill -9` of State, of Logic, and of both at once."""
    tally = Tally("State, Logic or both killed at random times")
    rng = random.Random(seed)
    with short_run_dir() as run_dir, TortureDaemon(run_dir, seed, guardian=True) as daemon:

        def torment(goes_on: Callable[[], bool]) -> None:
            while goes_on():
                time.sleep(rng.random() * 0.05)
                state = state_of(daemon)
                what = rng.choice(("State", "Logic", "both"))
                killed = {"State": _kill(state) if what != "Logic" else False}
                killed["Logic"] = _kill_logic(daemon, state) if what != "State" else False
                for process, dead in killed.items():
                    tally.kills[process] += dead
                if killed["State"]:
                    _wait_for_another_state(daemon, state)

        rounds(daemon, tally, seconds, seed, torment)
    tally.notes.append(_turned_away(tally))
    return tally


def _turned_away(tally: Tally) -> str:
    return f"{tally.counts['turned away']} of {tally.counts['visits']:,} new connections turned away while State took them in"


def _kill(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 9)
        return True
    return False


def _kill_logic(daemon: OurDaemon, state: int) -> bool:
    with suppress(Gone, FileNotFoundError, ValueError):
        logic = Logic(int((daemon.run_dir / "logic.pid").read_text()), state)
        try:
            logic.signal(9)
        finally:
            logic.close()
        return True
    return False


def _wait_for_another_state(daemon: OurDaemon, old: int) -> None:
    while state_of(daemon) == old:
        time.sleep(0.002)


# ---- both


def stopped_and_continued(seconds: float, seed: int, least: int) -> Tally:
    """SIGSTOP and SIGCONT of either, also for longer than a heart may stand still, and kills of what is stopped."""
    tally = Tally("Stopped and continued")
    rng = random.Random(seed)
    with (
        short_run_dir() as run_dir,
        TortureDaemon(run_dir, seed, guardian=True, arguments=["--watchdog", str(WATCHDOG)]) as daemon,
    ):

        def torment(goes_on: Callable[[], bool]) -> None:
            _stop_something("hang", daemon, rng, tally)
            while goes_on():
                time.sleep(rng.random() * 0.01)
                what = rng.choices(("Logic", "State", "kill", "kill while State stands", "hang"), (30, 30, 20, 19, 1))[
                    0
                ]
                _stop_something(what, daemon, rng, tally)

        rounds(daemon, tally, seconds, seed, torment)
        hung = sum("hung and was killed" in line for line in restarts(daemon))
        tally.kills["Logic, stopped for too long, by State"] = hung
        if not hung:
            tally.details.append("no Logic was killed for standing still")
    tally.notes.append(
        f"stopped and continued: Logic {tally.counts['Logic']} times, State {tally.counts['State']} times"
    )
    return tally


def _stop_something(what: str, daemon: OurDaemon, rng: random.Random, tally: Tally) -> None:
    pause = rng.random() * STOP_MAX
    with suppress(Gone):
        if what == "State":
            with state_stopped(daemon):
                time.sleep(pause)
            tally.counts["State"] += 1
        elif what == "kill while State stands":
            with stopped(daemon) as logic, state_stopped(daemon):
                logic.go_on()
                time.sleep(pause)
                logic.kill()
            tally.kills["Logic, while State was stopped"] += 1
        else:
            with stopped(daemon) as logic:
                time.sleep(2 * WATCHDOG if what == "hang" else pause)
                if what == "kill":
                    logic.kill()
                    tally.kills["Logic, while it was stopped"] += 1
            tally.counts["Logic"] += 1


# ---- at named steps


def logic_crashes(seconds: float, seed: int, least: int) -> Tally:
    """Logic dies at each step of a request."""
    tally = Tally("Logic dies at named steps")
    _crashes(tally, seconds, seed, least, list(LOGIC), "Logic")
    return tally


def state_crashes(seconds: float, seed: int, least: int) -> Tally:
    """State dies at each step of its work."""
    tally = Tally("State dies at named steps")
    _crashes(tally, seconds, seed, least, list(STATE), "State")
    tally.notes.append(_turned_away(tally))
    return tally


def _crashes(tally: Tally, seconds: float, seed: int, least: int, steps: list[str], who: str) -> None:
    tally.least = least
    tally.steps = dict.fromkeys(steps, 0)
    rng = random.Random(seed)
    of_state = who == "State"
    with short_run_dir() as run_dir, TortureDaemon(run_dir, seed, guardian=of_state, steps=steps) as daemon:

        def torment(goes_on: Callable[[], bool]) -> None:
            before = dict(tally.steps)
            with daemon.crashing():
                while goes_on():
                    time.sleep(rng.random() * 0.1)
                    daemon.count_hits()
                    tally.steps = {step: before[step] + daemon.hits[step] for step in steps}
                    if of_state:  # it dies while it restarts Logic, too
                        tally.kills["Logic"] += _kill_logic(daemon, state_of(daemon))
            tally.steps = {step: before[step] + daemon.hits[step] for step in steps}

        rounds(daemon, tally, seconds, seed, torment)
    tally.kills[f"{who}, at a named step"] = sum(tally.steps.values())


PHASES: Final[dict[str, tuple[Phase, float]]] = {
    "logic": (logic_killed, 0.56),
    "one-core": (one_core, 0.08),
    "stopped": (stopped_and_continued, 0.08),
    "logic-steps": (logic_crashes, 0.10),
    "state": (state_killed, 0.08),
    "state-steps": (state_crashes, 0.10),
}
"""By name: what is done, and its share of the time."""
