"""What is measured: the rows of the table, and the daemon lives in which they are measured.

For: `bench.run` (which follows it) and `bench.report` (which names and judges the rows).
Guarantees: row names are unique; each row stands in one stage of one scenario.
Does not know: how a command is carried out.

A *scenario* is one life of each daemon with one load client. Its *stages* add to what stands in the daemon (connections,
watches, nodes, domains); set-up commands give totals, so a stage does not need the ones before it. Setting up is not
measured, and is shared by all rounds: 50,000 watches take C xenstored longer than everything else together.
"""

from enum import Enum
from typing import NamedTuple


class Goal(Enum):
    """What a row is held to, beside being no slower than the slower of the two peers."""

    PEERS = "no slower than the slower peer"
    ROUND_TRIP = "no slower than C"
    TENFOLD = "ten times as fast as C"
    NONE = "no goal"


class Measure(Enum):
    """The quantity a row shows."""

    LATENCY = "us"
    TOTAL = "s"
    MEMORY = "MiB"
    COMMITS = "commits, us"


class Row(NamedTuple):
    """One line of the table. `command` is the load client's, `{seconds}` filled in; memory needs none."""

    name: str
    title: str
    command: str
    goal: Goal = Goal.PEERS
    measure: Measure = Measure.LATENCY
    in_quick: bool = True


class Stage(NamedTuple):
    """Rows measured after one set-up command (empty: none)."""

    set_up: str
    rows: tuple[Row, ...]


class Scenario(NamedTuple):
    """One life of each daemon. On a single core, the client and all processes of the daemon share it."""

    name: str
    stages: tuple[Stage, ...]
    single_core: bool = False


READ = "read {seconds}"
WRITE = "write {seconds}"
ALL_ON_ONE = 1_000_000
WATCHES_PER_CONNECTION = 100
LIVES = 50
"""Domains that begin or end for one figure."""


def _idle(count: int, goal: Goal, in_quick: bool = True) -> Stage:
    rows = (
        Row(f"idle-{count}-read", f"read, {count:,} idle connections", READ, goal, in_quick=in_quick),
        Row(f"idle-{count}-write", f"write, {count:,} idle connections", WRITE, goal, in_quick=in_quick),
    )
    return Stage(f"idle {count}", rows)


def _watches(thousands: int, goal: Goal, in_quick: bool = True) -> Stage:
    title = f"write, {thousands}k watches on one other connection"
    row = Row(f"watches-{thousands}k", title, WRITE, goal, in_quick=in_quick)
    return Stage(f"watches {thousands * 1000} {ALL_ON_ONE}", (row,))


def _spread_watches(thousands: int, goal: Goal, in_quick: bool = True) -> Stage:
    title = f"write, {thousands}k watches, {WATCHES_PER_CONNECTION} a connection"
    row = Row(f"spread-watches-{thousands}k", title, WRITE, goal, in_quick=in_quick)
    return Stage(f"watches {thousands * 1000} {WATCHES_PER_CONNECTION}", (row,))


def _fan_out(watchers: int) -> Row:
    plural = "s" if watchers > 1 else ""
    title = f"write, {watchers:,} watcher{plural} of the node: all told"
    return Row(f"fanout-{watchers}", title, f"fanout {watchers} {{seconds}}")


def _parallel(connections: int) -> Row:
    return Row(
        f"parallel-{connections}",
        f"parallel reads, {connections:,} connections",
        f"parallel {connections} {{seconds}}",
    )


def _ring(kind: str) -> Row:
    return Row(f"ring-{kind}", f"ring: {kind} round trip", f"ring {kind} {{seconds}}", Goal.ROUND_TRIP)


def _rings(kind: str) -> Row:
    return Row(f"rings-100-{kind}", f"parallel {kind}s, 100 rings", f"rings {kind} {{seconds}}")


def _devices(parents: str) -> Row:
    title = f"64 interleaved device creations, parents {parents}"
    return Row(f"devices-{parents}", title, f"devices 64 {parents}", measure=Measure.COMMITS)


def _memory(name: str, title: str) -> Row:
    return Row(name, title, "", Goal.NONE, Measure.MEMORY)


SCENARIOS = (
    Scenario(
        "plain",
        (
            Stage(
                "",
                (
                    Row("read", "read round trip", READ, Goal.ROUND_TRIP),
                    Row("write", "write round trip", WRITE, Goal.ROUND_TRIP),
                    Row("session", "connect, read, close", "session {seconds}"),
                    Row("transaction-10", "transaction of 10 writes", "transaction 10 {seconds}"),
                    _parallel(100),
                    _parallel(1000),
                    _fan_out(1),
                    _fan_out(1000),
                ),
            ),
        ),
    ),
    Scenario("idle connections", (_idle(1000, Goal.TENFOLD), _idle(4000, Goal.PEERS, in_quick=False))),
    Scenario(
        "watches, one connection",
        (_watches(10, Goal.PEERS), _watches(50, Goal.TENFOLD, in_quick=False)),
    ),
    Scenario(
        "watches, spread",
        (_spread_watches(10, Goal.PEERS), _spread_watches(50, Goal.TENFOLD, in_quick=False)),
    ),
    Scenario(
        "guests",
        (
            Stage("guests 1", (_ring("read"), _ring("write"))),
            Stage("guests 100", (_rings("read"), _rings("write"))),
        ),
    ),
    Scenario(
        "idle domains",
        (
            Stage(
                "domains 1000",
                (
                    Row("domains-1000-read", "read, 1,000 idle domains", READ),
                    Row("domains-1000-write", "write, 1,000 idle domains", WRITE, Goal.TENFOLD),
                    Row("introduce-1000", "introduce a domain, 1,000 present", f"introduce {LIVES}"),
                    Row("destroy-1000", "destroy a domain, 1,000 present", f"destroy {LIVES}"),
                ),
            ),
        ),
    ),
    Scenario("devices", (Stage("", (_devices("absent"), _devices("present"))),)),
    Scenario(
        "nodes",
        (
            Stage("", (_memory("memory-empty", "memory (PSS), empty store"),)),
            Stage(
                "fill 100000",
                (
                    Row(
                        "transaction-1-100k",
                        "transaction of 1 write, 100k nodes",
                        "transaction 1 {seconds}",
                        in_quick=False,
                    ),
                    _memory("memory-100k", "memory (PSS), 100k nodes")._replace(in_quick=False),
                ),
            ),
        ),
    ),
    Scenario(
        "children",
        (
            Stage(
                "",
                (Row("children-20k", "20,000 children of one node", "children 20000", measure=Measure.TOTAL),),
            ),
        ),
    ),
    Scenario(
        "single core",
        (
            Stage(
                "",
                (
                    Row("single-core-read", "single core: read round trip", READ, Goal.ROUND_TRIP),
                    Row("single-core-write", "single core: write round trip", WRITE, Goal.ROUND_TRIP),
                ),
            ),
        ),
        single_core=True,
    ),
)

ROWS = tuple(row for scenario in SCENARIOS for stage in scenario.stages for row in stage.rows)


def selected(names: frozenset[str]) -> list[Scenario]:
    """The scenarios cut down to the named rows and the stages that these need."""
    result = []
    for scenario in SCENARIOS:
        stages = [stage._replace(rows=tuple(r for r in stage.rows if r.name in names)) for stage in scenario.stages]
        kept = tuple(stage for stage in stages if stage.rows)
        if kept:
            result.append(scenario._replace(stages=kept))
    return result
