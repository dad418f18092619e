"""Which rows there are, and the lives of the daemons in which they are measured.

For: `bench.__main__`.
Guarantees: row names are unique; each row stands in one stage of one scenario.
Does not know: how a command is carried out (`load.c` says what each one does).
"""

from bench.rows import (
    COMMITS,
    MEMORY,
    PEERS,
    REPORT,
    SECONDS,
    Goal,
    Measure,
    Point,
    Row,
    Scenario,
    Source,
    Stage,
)

WORKLOAD = "bench/workloads/pvh-day.txt"
HOST_LIMIT = 240
DAY_GOAL = Goal(5, 5)
SOCKET_GOAL = Goal(1.2, 1.5)
RING_GOAL = Goal(1.2, 1.2)
ALL_ON_ONE = 1_000_000
"""More watches on one connection than any row has."""
WATCHES_PER_CONNECTION = 100
LIVES = 50
"""Domains that begin or end for one figure."""
PIPELINED = 16
NEW_NODES = 200
WATCH_LIMIT, FILL_LIMIT, TRANSACTED_LIMIT = 60, 90, 20
"""Seconds that a set-up may take; what would take longer is not measured."""
MOST_CHILDREN = 20_000
MEMORY_GOAL, REFORKED_GOAL = 110, 60
"""MB, for 100k nodes."""

TRIPS = {
    "read": ("READ", PEERS),
    "write": ("WRITE", PEERS),
    "get-perms": ("GET_PERMS", PEERS),
    "directory": ("DIRECTORY of 10 children", PEERS),
    "mkdir-rm": ("MKDIR, then RM", PEERS),
    "set-perms": ("SET_PERMS", PEERS),
}
BASIC = ("read", "write")


def _short(count: int) -> str:
    for size, letter in ((1_000_000, "m"), (1000, "k")):
        if count >= size and count % size == 0:
            return f"{count // size}{letter}"
    return str(count)


def _day(guests: int, goal: Goal) -> Stage:
    """A guest boots, runs, moves and ends on a host with so many others: see workloads/README.md."""
    row = Row(
        f"day-{guests}",
        f"a real host's day, {guests:,} guests: time per guest",
        "day {seconds}",
        goal,
        Measure("ms", "ms"),
        most_rounds=3,
        point=Point("day", guests),
    )
    return Stage(f"hosts {guests} {HOST_LIMIT} {WORKLOAD}", (row,))


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


# ---- sockets


def _socket(kind: str) -> Row:
    goal = SOCKET_GOAL if kind in BASIC else PEERS
    return Row(kind, f"{TRIPS[kind][0]} round trip", f"socket {kind} {{seconds}}", goal, in_quick=True)


def _deep(kind: str) -> Row:
    return Row(f"deep-{kind}", f"{kind.upper()}, path of 100 names", f"socket deep-{kind} {{seconds}}")


def _pipelined(kind: str) -> Row:
    title = f"{kind.upper()}, {PIPELINED} requests sent at once: each"
    return Row(f"pipelined-{kind}", title, f"pipeline {PIPELINED} {kind} {{seconds}}", in_quick=True)


def _parallel(connections: int) -> Row:
    return Row(
        f"parallel-{connections}",
        f"parallel READs, {_plural(connections, 'connection')}",
        f"parallel {connections} {{seconds}}",
        Goal(0.8, 1.3) if connections == 100 else PEERS,
        in_quick=connections == 100,
        point=Point("parallel", connections),
    )


def _fan_out(watchers: int) -> Row:
    return Row(
        f"fanout-{watchers}",
        f"WRITE, {_plural(watchers, 'watcher')} of the node: until the last has its event",
        f"fanout {watchers} {{seconds}}",
        Goal(1.5, 1.5) if watchers == 1000 else PEERS,
        in_quick=watchers == 1000,
        point=Point("fanout", watchers),
    )


def _transaction(writes: int) -> Row:
    title = f"transaction of {_plural(writes, 'write')}" if writes else "empty transaction"
    goal = Goal(1.2, 1.2) if writes == 10 else PEERS
    command = f"transaction {writes} {{seconds}}"
    return Row(f"transaction-{writes}", title, command, goal, in_quick=writes == 10, point=Point("transaction", writes))


SOCKETS = Scenario(
    "sockets",
    (
        Stage(
            "",
            (
                *map(_socket, TRIPS),
                Row("session", "connect, READ, close", "session {seconds}", in_quick=True),
                *map(_pipelined, BASIC),
                *map(_deep, BASIC),
                *map(_transaction, (0, 1, 10, 100)),
                *map(_parallel, (1, 10, 100, 1000)),
                *map(_fan_out, (1, 10, 100, 1000)),
                Row(
                    "watched-removal",
                    "RM of 1,000 watched children: until the last event",
                    "watched-removal 1000 {seconds}",
                ),
            ),
        ),
    ),
)


def _idle(count: int) -> Stage:
    goal = Goal(20, 150) if count == 1000 else PEERS
    return Stage(
        f"idle {count}",
        tuple(
            Row(
                f"idle-{count}-{kind}",
                f"{kind.upper()}, {count:,} idle connections",
                f"socket {kind} {{seconds}}",
                goal,
                in_quick=count == 1000,
                point=Point(f"idle-{kind}", count),
            )
            for kind in BASIC
        ),
    )


# ---- watches


def _watches(count: int, per_connection: int) -> Stage:
    spread = per_connection != ALL_ON_ONE
    prefix = "spread-watches" if spread else "watches"
    where = f"{per_connection} a connection" if spread else "on one other connection"
    goal = Goal(50, 1) if count == 50_000 else PEERS
    name = f"{prefix}-{_short(count)}"
    return Stage(
        f"watches {count} {per_connection} {WATCH_LIMIT}",
        (
            Row(
                name,
                f"WRITE, {_short(count)} watches, {where}",
                "socket write {seconds}",
                goal,
                in_quick=count == 10_000,
                point=Point(prefix, count),
            ),
            Row(
                f"{name}-register",
                f"registering watches until there are {_short(count)}, {where}: each",
                source=Source.SET_UP,
                most_rounds=1,
                in_quick=count == 10_000,
                point=Point(f"{prefix}-register", count),
            ),
        ),
    )


# ---- guests and domains


def _ring(kind: str) -> Row:
    goal = RING_GOAL if kind in BASIC else PEERS
    title = f"ring: {TRIPS[kind][0]} round trip"
    return Row(f"ring-{kind}", title, f"ring {kind} {{seconds}}", goal, in_quick=kind in BASIC)


def _rings(kind: str) -> Row:
    title = f"parallel {kind.upper()}s, 100 rings"
    return Row(f"rings-100-{kind}", title, f"rings {kind} {{seconds}}", in_quick=True)


def _ring_pipelined(kind: str) -> Row:
    title = f"ring: {kind.upper()}, {PIPELINED} requests in it at once: each"
    return Row(f"ring-pipelined-{kind}", title, f"ring-pipeline {PIPELINED} {kind} {{seconds}}")


def _ring_fan_out() -> Row:
    title = "WRITE, 100 rings whose guests watch the node: until the last has its event"
    return Row("rings-100-fanout", title, "ring-fanout {seconds}")


def _domains(count: int) -> Stage:
    rows = [
        Row(
            f"domains-{count}-{kind}",
            f"{kind.upper()}, {count:,} idle domains",
            f"socket {kind} {{seconds}}",
            Goal(20, 3) if (count, kind) == (1000, "write") else PEERS,
            in_quick=count == 1000,
            point=Point(f"domains-{kind}", count),
        )
        for kind in BASIC
    ]
    if count == 1000:
        rows += [
            Row("introduce-1000", "introduce a domain, 1,000 present", f"introduce {LIVES}"),
            Row("destroy-1000", "destroy a domain, 1,000 present", f"destroy {LIVES}"),
        ]
    return Stage(f"domains {count}", tuple(rows))


def _devices(parents: str) -> Row:
    title = f"64 interleaved device creations, parents {parents}"
    return Row(f"devices-{parents}", title, f"devices 64 {parents}", measure=COMMITS, in_quick=True)


# ---- nodes


def _nodes(count: int) -> Stage:
    size = _short(count)
    rounds = {1_000_000: 1, 100_000: 2}.get(count)
    quick = count == 10_000
    rows = [
        Row(
            f"transaction-1-{size}",
            f"transaction of 1 write, {size} nodes",
            "transaction 1 {seconds}",
            Goal(50, 2) if count == 100_000 else PEERS,
            in_quick=quick,
            point=Point("transaction-1", count),
        ),
        Row(
            f"new-{size}",
            f"WRITE that creates a node, {size} nodes",
            f"new {NEW_NODES}",
            in_quick=quick,
            point=Point("new", count),
        ),
        Row(
            f"ls-{size}",
            f"xenstore-ls of everything, {size} nodes",
            measure=SECONDS,
            source=Source.LISTING,
            most_rounds=rounds,
            point=Point("ls", count),
        ),
    ]
    return Stage(f"fill {count} {FILL_LIMIT}", (*rows, *_memory(count)))


def _memory(count: int) -> tuple[Row, Row]:
    size = _short(count) if count else "no"
    name = _short(count) if count else "empty"
    full = count == 100_000
    return (
        Row(
            f"memory-{name}",
            f"memory, {size} nodes",
            goal=Goal(at_most=MEMORY_GOAL) if full else REPORT,
            measure=MEMORY,
            source=Source.MEMORY,
            most_rounds=1,
            in_quick=count == 0,
            point=Point("memory", count),
        ),
        Row(
            f"memory-{name}-reforked",
            f"memory, {size} nodes, after an idle re-fork",
            goal=Goal(at_most=REFORKED_GOAL) if full else REPORT,
            measure=MEMORY,
            source=Source.MEMORY_REFORKED,
            most_rounds=1,
            point=Point("memory-reforked", count),
            only_ours=True,
        ),
    )


def _children(count: int) -> tuple[Row, ...]:
    command, size = f"children {count}", _short(count)
    many = count == MOST_CHILDREN
    parts = (
        ("create", f"{count:,} children of one node: create", "ms", Goal(10, 1) if many else PEERS),
        ("list", f"{count:,} children of one node: list", "us", PEERS),
        ("remove_one", f"{count:,} children of one node: remove one", "us", PEERS),
        ("remove_all", f"{count:,} children of one node: remove all", "ms", Goal(50, 0.5) if many else PEERS),
    )
    return tuple(
        Row(
            f"children-{size}-{part.replace('_', '-')}",
            title,
            command,
            goal,
            Measure(f"{part}_{unit}", unit, f"{part}_cpu_us"),
            in_quick=count == 1000,
            point=Point(f"children-{part.replace('_', '-')}", count),
        )
        for part, title, unit, goal in parts
    )


SCENARIOS = (
    SOCKETS,
    Scenario("idle connections", tuple(map(_idle, (10, 100, 1000, 4000)))),
    Scenario("watches, one connection", tuple(_watches(count, ALL_ON_ONE) for count in (1000, 10_000, 50_000))),
    Scenario("watches, spread", tuple(_watches(count, WATCHES_PER_CONNECTION) for count in (1000, 10_000, 50_000))),
    Scenario(
        "guests",
        (
            Stage(
                "guests 1",
                (
                    *map(_ring, TRIPS),
                    *map(_ring_pipelined, BASIC),
                    Row("ring-transaction-10", "ring: transaction of 10 writes", "ring-transaction 10 {seconds}"),
                ),
            ),
            Stage("guests 100", (_rings("read"), _rings("write"), _ring_fan_out())),
        ),
    ),
    Scenario("idle domains", tuple(map(_domains, (10, 100, 1000)))),
    Scenario(
        "a host's day", tuple(_day(guests, goal) for guests, goal in ((10, REPORT), (100, PEERS), (1000, DAY_GOAL)))
    ),
    Scenario(
        "transactions",
        (
            Stage(
                "",
                (
                    _devices("absent"),
                    _devices("present"),
                    Row("storm", "commit of a transaction on a node that a guest writes in a loop", "storm {seconds}"),
                ),
            ),
        ),
    ),
    Scenario(
        "children",
        (
            Stage(
                "",
                (
                    *(row for count in (1000, 5000, MOST_CHILDREN) for row in _children(count)),
                    Row(
                        "children-20k-transacted",
                        "20,000 children of one node: create each in a transaction",
                        f"transacted-children {MOST_CHILDREN} {TRANSACTED_LIMIT}",
                        measure=SECONDS,
                        most_rounds=3,
                    ),
                ),
            ),
        ),
    ),
    Scenario(
        "single core",
        (
            Stage(
                "",
                (
                    Row("single-core-read", "single core: READ round trip", "socket read {seconds}", Goal(1, 1)),
                    Row("single-core-write", "single core: WRITE round trip", "socket write {seconds}", Goal(0.8, 1)),
                ),
            ),
        ),
        single_core=True,
    ),
    Scenario(
        "nodes",
        (
            Stage("", _memory(0)),
            Stage(
                f"fill 1000 {FILL_LIMIT}",
                (
                    Row(
                        "transaction-1-1k",
                        "transaction of 1 write, 1k nodes",
                        "transaction 1 {seconds}",
                        point=Point("transaction-1", 1000),
                    ),
                ),
            ),
            *map(_nodes, (10_000, 100_000, 1_000_000)),
        ),
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
