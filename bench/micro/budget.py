"""Where the microseconds of a READ and of a WRITE go: the parts of `bench.micro` beside what is measured end to end.

For: `bench.micro.__main__`; `python -m bench.micro.budget` makes BUDGET.md anew from the parts measured last.
Guarantees: the stages add up to the measured round trip, because what no stage accounts for stands in lines of its own, with
its sign; no figure is typed by hand.
Does not know: how a part is measured.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bench.counting.bytecodes import profile_of
from bench.counting.workload import sections
from bench.interpreter import Build, build_of
from bench.load_client import LoadClient
from bench.machine import conditions_now
from bench.micro import courses
from bench.micro.courses import HANDLER, TURNS, Measured
from bench.micro.parts import CALL, PARTS, STEP
from bench.subject import Cores, pin
from bench.table import aligned
from tests.oracle.daemons import OurDaemon, short_run_dir
from xenstore_logic.loop import DIGEST_EVERY

ROUNDS, FEW, SECONDS, DEADLINE = 7, 3, 0.3, 60.0
TRIPS = {"read": "socket read", "write": "socket write"}
OTHERS = {
    "connect, READ, close": "session",
    "MKDIR, then RM": "socket mkdir-rm",
    "SET_PERMS": "socket set-perms",
    "transaction of 10 writes": "transaction 10",
    "READ, 100 connections in parallel: each": "parallel 100",
    "WRITE with 10 watchers": "fanout 10",
    "WRITE with 1,000 watchers": "fanout 1000",
    "RM of 1,000 watched children": "watched-removal 1000",
    "ring: READ": "ring read",
    "ring: WRITE": "ring write",
}
"""What is split by process only: title and the load client's command, to which the seconds are added."""
RESULT = Path(__file__).parents[1] / "results" / "micro.json"
TARGET = Path(__file__).parents[1] / "BUDGET.md"

BY_PROCESS = """\
Time from request to reply (or to the last event), and the CPU time of each process for it, in microseconds. State works beside
Logic, on another core; but a new connection reaches Logic through State, and who asks about a domain waits for State's answer."""
PROFILED = ("turn: read", "turn: write, applied by State", "write with 10 watchers", "transaction of 10 writes")
PROFILE_LINES = 12
PARTS_TITLE = "## Every part"
PARTS_METHOD = "Hot functions alone, each called again and again (pyperf, medians over {processes} processes)."
DIGEST = "digest of 1,000 changes"
CORE = Cores.chosen(single_core=False).serving

METHOD = """\
Made by `make bench-micro`; no figure is typed. All are microseconds.

- The round trip, and the CPU time that the load client, Logic and State spend on one, are measured on a running daemon: the load
  client sends one request after the other, client and Logic on one core, State on another. All are means over some ten thousand
  requests, medians of {rounds} rounds.
- The stages are looked at in one process with a socket pair: the very functions, in their order, the clock read between any two
  (what that costs is subtracted), in turn with whole turns of the loop; medians of {turns:,} turns. So they meet the same
  machine as the turn, and each is as warm or cold as the others leave it. What is inside of the handler is repeated behind it.
- *The loop itself* is the whole turn without the stages.
- *In the daemon* is what Logic uses beyond such a turn when it runs beside a client: waking the client, which there waits, and
  State; falling asleep and waking up; being switched to and from; caches that the other process has used meanwhile.
- *Nobody* is time in which neither of them runs.
"""


class Parts(NamedTuple):
    """Microseconds of each part, the harness subtracted, and how many processes measured it."""

    us: Mapping[str, float]
    raw: Mapping[str, float]
    processes: int


class Trip(NamedTuple):
    """One request of a running daemon, in microseconds."""

    whole: float
    client: float
    logic: float
    state: float


class Stage(NamedTuple):
    """One line of a budget; `inside` names the line that it is a part of."""

    title: str
    us: float
    inside: bool = False


def build() -> Build:
    """The build whose functions are measured here: this interpreter's."""
    return build_of(sys.executable)


def read(path: Path) -> Parts:
    """What pyperf has written."""
    document = json.loads(path.read_text())
    raw, processes = {}, 0
    for benchmark in document["benchmarks"]:
        name = benchmark.get("metadata", {}).get("name") or document["metadata"]["name"]
        values = [value for run in benchmark["runs"] for value in run.get("values", ())]
        processes = max(processes, sum("values" in run for run in benchmark["runs"]))
        raw[name] = median(values) * 1e6
    stepped = {part.name: part.stepped for part in PARTS}
    us = {name: value - raw[STEP if stepped.get(name) else CALL] for name, value in raw.items()}
    return Parts(us, raw, processes)


def measure() -> dict[str, Trip]:
    """READ and WRITE of a running daemon, and `OTHERS`."""
    cores = Cores.chosen(single_core=False)
    with short_run_dir() as run_dir, OurDaemon(run_dir) as daemon, LoadClient(daemon.socket, daemon.xen_dir) as client:
        pin([client.pid, daemon.serving_pid()], cores.serving)
        pin([daemon.pid], cores.beside)
        trips = {name: _trip(client, daemon, command, ROUNDS) for name, command in TRIPS.items()}
        client.command("guests 1", DEADLINE)
        return trips | {name: _trip(client, daemon, command, FEW) for name, command in OTHERS.items()}


def _trip(client: LoadClient, daemon: OurDaemon, command: str, rounds: int) -> Trip:
    """The CPU time of each process is taken in rounds of its own, in turn."""
    trips = []
    for _ in range(rounds):
        by_process = []
        for pid in (daemon.logic_pid(), daemon.pid):
            client.command(f"pids {pid}", DEADLINE)
            by_process.append(client.command(f"{command} {SECONDS}", DEADLINE))
        logic, state = by_process
        figures = (logic.get("mean_us", logic["us"]), logic["client_us"], logic["cpu_us"], state["cpu_us"])
        trips.append(Trip(*map(float, figures)))
    return Trip(*(median(values) for values in zip(*trips, strict=True)))


def read_stages(made: Measured, trip: Trip) -> list[Stage]:
    """A READ, from the client's request to its reply."""
    return _whole(_split(made), made.whole, trip)


def write_stages(made: Measured, parts: Parts, trip: Trip) -> list[Stage]:
    """A WRITE to a node that exists."""
    digest = parts.us[DIGEST] / DIGEST_EVERY
    stages = [*_split(made), Stage("the tree's digest, of every thousandth change", digest)]
    return _whole(stages, made.whole + digest, trip)


def state_stages(made: Measured, trip: Trip) -> list[Stage]:
    """What State does for a WRITE, meanwhile, on another core."""
    stages = [Stage(title, us) for title, us in made.stages.items()]
    rest = made.whole - sum(stage.us for stage in stages)
    stages.append(Stage("checks of the record and its outcome", rest))
    return [*stages, Stage("in the daemon: waking up, waiting again", trip.state - made.whole)]


def _split(made: Measured) -> list[Stage]:
    """The stages, with what is inside of the handler behind it."""
    result: list[Stage] = []
    for title, us in made.stages.items():
        result.append(Stage(title, us))
        if title == HANDLER:
            result += [Stage(part, inside, True) for part, inside in made.inside.items()]
            result.append(Stage("dispatch, calls", us - sum(made.inside.values()), True))
    return result


def _whole(stages: list[Stage], turn: float, trip: Trip) -> list[Stage]:
    inside = sum(stage.us for stage in stages if not stage.inside)
    return [
        Stage("the client: its CPU time, send and receive included", trip.client),
        *stages,
        Stage("the loop itself", turn - inside),
        Stage("in the daemon", trip.logic - turn),
        Stage("nobody", trip.whole - trip.client - trip.logic),
    ]


def table(stages: Sequence[Stage], whole: float, title: str) -> str:
    """A budget as a Markdown table; its last line is the sum."""
    total = sum(stage.us for stage in stages if not stage.inside)
    rows = [["stage", "us", "share"], ["---"] * 3]
    for stage in stages:
        name = f"- {stage.title}" if stage.inside else stage.title
        rows.append([name, f"{stage.us:.2f}", f"{stage.us / whole:.0%}"])
    rows.append([f"**{title}**", f"**{total:.2f}**", ""])
    return aligned(rows)


def processes(trips: Mapping[str, Trip]) -> str:
    """Who spends the time of each kind of request."""
    rows = [["request", "time", "client", "Logic", "State"], ["---"] * 5]
    rows += [[name, *(f"{value:,.1f}" for value in trip)] for name, trip in trips.items()]
    return aligned(rows)


def profiles() -> str:
    """Which functions execute the bytecodes: the same on every run. What is compiled executes none."""
    parts = []
    with sections() as everything:
        for name in PROFILED:
            found = profile_of(everything[name])
            most = [(count, function) for function, count in found.most_common(PROFILE_LINES) if count]
            rows = [[name, "bytecodes", "share"], ["---"] * 3]
            total = sum(found.values())
            rows += [[f"`{function}`", f"{count:,}", f"{count / total:.0%}"] for count, function in most]
            parts.append(aligned([*rows, ["all", f"{total:,}", ""]]))
    return "\n\n".join(parts)


def markdown(
    parts: Parts, made: Mapping[str, Measured], trips: Mapping[str, Trip], conditions: Mapping[str, str]
) -> str:
    """BUDGET.md."""
    reading, writing = trips["read"], trips["write"]
    rows = [["part", "us"], ["---"] * 2]
    rows += [[name, f"{parts.raw[name] if name in {CALL, STEP} else us:.3f}"] for name, us in parts.us.items()]
    sections = [
        "# Where the time goes",
        METHOD.format(rounds=ROUNDS, turns=TURNS),
        "## A READ",
        table(read_stages(made["READ"], reading), reading.whole, "round trip, measured"),
        "## A WRITE",
        table(write_stages(made["WRITE"], parts, writing), writing.whole, "round trip, measured"),
        "Beside it, on the other core, State applies the record:",
        table(state_stages(made["State"], writing), writing.state, "CPU time of State a WRITE, measured"),
        f"## By process\n\n{BY_PROCESS}",
        processes(trips),
        f"{PARTS_TITLE}\n\n{PARTS_METHOD.format(processes=parts.processes)}",
        aligned(rows),
        "## Bytecodes by function\n\nOf some sections of the counted workload (`bench/counting`): the same on every run.",
        profiles(),
        "\n".join(f"- {key}: {value}" for key, value in conditions.items()),
    ]
    return "\n\n".join(section.strip() for section in sections) + "\n"


if __name__ == "__main__":
    conditions = conditions_now(build())
    TARGET.write_text(markdown(read(RESULT), courses.measure(CORE), measure(), conditions))
