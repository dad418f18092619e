"""What a row of the benchmark is: what is measured, how it is shown, and what is asked of it.

For: `bench.scenarios` (which lists them), `bench.run` (which measures them) and `bench.report` (which judges them).
Guarantees: nothing but data.
Does not know: which rows there are.

A *scenario* is one life of each daemon with one load client. Its *stages* add to what stands in the daemon (connections,
watches, nodes, domains); set-up commands give totals, so a stage does not need the ones before it. Setting up is shared by
all rounds: 50,000 watches take C xenstored longer than everything else together.
"""

from enum import Enum
from typing import NamedTuple


class Goal(NamedTuple):
    """What is asked of our figure."""

    c: float | None = None
    """Least ratio of C xenstored's figure to ours."""
    ocaml: float | None = None
    """The same of oxenstored's."""
    at_most: float | None = None
    """Our figure itself, in the row's unit."""
    peers: bool = False
    """To be no slower than the slower of the two peers."""

    def __bool__(self) -> bool:
        return any(value for value in self)


PEERS = Goal(peers=True)
REPORT = Goal()


class Source(Enum):
    """Where a figure comes from."""

    COMMAND = "the load client's answer to the row's command"
    SET_UP = "the stage's set-up command, which runs once"
    MEMORY = "memory of all processes of the daemon"
    MEMORY_REFORKED = "the same after this project's Logic has been replaced by a new fork"
    LISTING = "the time of `xenstore-ls` of the whole store"


class Measure(NamedTuple):
    """A quantity as it is shown: what it is called in the load client's answer, and its unit."""

    quantity: str
    unit: str
    cpu: str = "cpu_us"
    """What the CPU time per operation is called there."""


LATENCY = Measure("us", "us")
MEMORY = Measure("mb", "MB", "")
SECONDS = Measure("seconds", "s", "")
COMMITS = Measure("us", "commits, us")


class Point(NamedTuple):
    """A row's place in a plot."""

    curve: str
    x: float


class Row(NamedTuple):
    """One line of the table. `command` is the load client's, `{seconds}` filled in; other sources need none.

    Rows of one stage with the same command are measured by running it once.
    """

    name: str
    title: str
    command: str = ""
    goal: Goal = PEERS
    measure: Measure = LATENCY
    source: Source = Source.COMMAND
    in_quick: bool = False
    most_rounds: int | None = None
    """For what takes long and varies little."""
    point: Point | None = None
    only_ours: bool = False


class Stage(NamedTuple):
    """Rows measured after one set-up command (empty: none)."""

    set_up: str
    rows: tuple[Row, ...]


class Scenario(NamedTuple):
    """One life of each daemon. On a single core, the client and all processes of the daemon share it."""

    name: str
    stages: tuple[Stage, ...]
    single_core: bool = False
