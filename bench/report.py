"""Turns figures into the table: medians over the rounds, ratios, and a verdict a row.

For: `bench.__main__`.
Guarantees: a row that falls short of its goal is marked; a figure that could not be measured shows why; the JSON holds
every round's figures.
Does not know: how the figures were measured.
"""

import json
import os
import platform
import subprocess
import textwrap
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bench.load_client import Answer
from bench.rows import Goal, Measure, Row
from bench.run import Plan, Results
from tests.oracle.build import ROOT

TITLES = {"c": "C xenstored", "ocaml": "oxenstored", "ours": "ours"}
PEERS = ("c", "ocaml")
QUANTITY = {Measure.LATENCY: "us", Measure.TOTAL: "seconds", Measure.MEMORY: "mib", Measure.COMMITS: "us"}
UNSTEADY = 0.3
BUSY = 0.5
NO_VERDICT = "no verdict"

LEGEND = (
    "Cells: median over the rounds; in brackets the CPU time per operation of all processes of the daemon, in us. Ratios: the "
    "peer's figure divided by ours, so above 1 ours is better. `~`: the rounds differ by more than 30 % of the median.",
    "A row is held to being no slower than the slower of the two peers; beside that, {round_trip} to being no slower than C, "
    "and {tenfold} to ten times C's speed. Without a goal: {none}.",
    'The client and the serving process share one core, other processes of the daemon have another; "single core": all on one.',
    "`parallel-*` and `rings-*`: one request in flight on each connection or ring, and the time that one request of them all "
    "takes, so 1,000,000 divided by it is the number per second. `fanout-*`: until the last watcher has its event.",
    "`introduce-*`: INTRODUCE until its reply. `destroy-*`: from the end of the domain, of which the daemon is told by an event, "
    "until a watcher of @releaseDomain has its event.",
    "Rings are those of emulated guests, on a directory that stands for the hypervisor. What that costs is in the figures of all "
    "three and is not what Xen would cost: an event is a datagram (C xenstored sends 4 a request, oxenstored 3), and who looks "
    "for domains that have ended reads files.",
    "PSS: pages shared between processes are counted by their share.",
)
WIDTH = 125


def legend(rows: Sequence[Row]) -> str:
    """What the table means, and which rows are held to more, or less, than the rest."""
    held = {goal: ", ".join(f"`{row.name}`" for row in rows if row.goal is goal) or "no row" for goal in Goal}
    names = {"round_trip": held[Goal.ROUND_TRIP], "tenfold": held[Goal.TENFOLD], "none": held[Goal.NONE]}
    return "\n".join(textwrap.fill(part.format(**names), WIDTH, break_on_hyphens=False) for part in LEGEND)


class Cell(NamedTuple):
    """One row of one daemon: `value` in the row's unit, or why there is none."""

    value: float | None
    cpu_us: float | None
    committed: tuple[float, float] | None
    unsteady: bool
    failure: str | None

    @classmethod
    def of(cls, row: Row, figures: Sequence[Answer], failure: str | None) -> "Cell":
        if failure is not None or not figures:
            return cls(None, None, None, False, failure or "not measured")
        values = [float(figure[QUANTITY[row.measure]]) for figure in figures]
        cpu = [float(figure["cpu_us"]) for figure in figures if "cpu_us" in figure]
        committed = [float(figure["committed"]) for figure in figures if "committed" in figure]
        middle = median(values)
        return cls(
            middle,
            median(cpu) if cpu else None,
            (median(committed), float(figures[0]["count"])) if committed else None,
            max(values) - min(values) > UNSTEADY * middle,
            None,
        )

    def text(self) -> str:
        if self.value is None:
            return "failed"
        parts = [f"{self.value:{'.0f' if self.value >= 1000 else '.1f' if self.value >= 10 else '.2f'}}"]
        if self.committed is not None:
            parts.insert(0, f"{self.committed[0]:.0f} of {self.committed[1]:.0f},")
        if self.cpu_us is not None:
            digits = ".0f" if self.cpu_us >= 100 else ".1f"
            parts.append(f"({self.cpu_us:{digits}})")
        return " ".join(parts) + (" ~" if self.unsteady else "")


class Line(NamedTuple):
    """A row with its cells and verdict."""

    row: Row
    cells: dict[str, Cell]
    ratios: dict[str, float]
    verdict: str
    short: bool


def judged(row: Row, cells: dict[str, Cell]) -> Line:
    """Compares our cell with the peers' and the row's goal."""
    ours = cells.get("ours")
    peers = {name: cells[name] for name in PEERS if name in cells and cells[name].value is not None}
    if ours is None:
        return Line(row, cells, {}, "", False)
    if ours.value is None:
        return Line(row, cells, {}, "FAILED", True)
    ratios = {name: round((cell.value or 0.0) / ours.value, 2) for name, cell in peers.items()}
    if row.goal is Goal.NONE:
        return Line(row, cells, ratios, "", False)
    faults = _faults(row, ours, peers, ratios)
    if faults:
        return Line(row, cells, ratios, "; ".join(faults), True)
    absent = _needed_peers(row, ratios)
    return Line(row, cells, ratios, f"{NO_VERDICT} without {' and '.join(absent)}" if absent else "ok", False)


def _faults(row: Row, ours: Cell, peers: dict[str, Cell], ratios: dict[str, float]) -> list[str]:
    """Where our cell certainly falls short, whatever a peer that was not measured would have shown."""
    faults = []
    if len(ratios) == len(PEERS) and max(ratios.values()) < 1:
        faults.append("SLOWER than both peers")
    elif row.goal is Goal.ROUND_TRIP and ratios.get("c", 1.0) < 1:
        faults.append("SLOWER than C")
    if row.goal is Goal.TENFOLD and ratios.get("c", 10.0) < 10:
        faults.append("SHORT of ten times C")
    commits = [cell.committed[0] for cell in peers.values() if cell.committed]
    if ours.committed is not None and len(commits) == len(PEERS) and ours.committed[0] < min(commits):
        faults.append("FEWER commits than both peers")
    return faults


def _needed_peers(row: Row, ratios: dict[str, float]) -> list[str]:
    """The peers that were not measured, but decide whether a row without a certain fault holds."""
    if row.goal is not Goal.PEERS:
        return [TITLES["c"]] if "c" not in ratios else []
    if max(ratios.values(), default=0.0) >= 1:
        return []
    return [TITLES[name] for name in PEERS if name not in ratios]


def lines_of(rows: Sequence[Row], daemons: Sequence[str], results: Results) -> list[Line]:
    """All rows, judged."""
    lines = []
    for row in rows:
        cells = {
            name: Cell.of(row, results.figures[row.name, name], results.failures.get((row.name, name)))
            for name in daemons
            if name not in results.unavailable
        }
        lines.append(judged(row, cells))
    return lines


def markdown(plan: Plan, lines: Sequence[Line], results: Results, conditions: dict[str, str]) -> str:
    """The table, what it means, what failed and under which conditions."""
    peers = [name for name in PEERS if name in plan.daemons]
    head = ["row", "", "unit", *(TITLES[name] for name in plan.daemons)]
    if "ours" in plan.daemons:
        head += [*(f"{TITLES[name].split()[0]} / ours" for name in peers), "verdict"]
    table = [head, ["---"] * len(head)]
    for line in lines:
        cells = [line.cells[name].text() if name in line.cells else "-" for name in plan.daemons]
        record = [f"`{line.row.name}`", line.row.title, line.row.measure.value, *cells]
        if "ours" in plan.daemons:
            ratios = [f"{line.ratios[name]:.2f}" if name in line.ratios else "-" for name in peers]
            record += [*ratios, f"**{line.verdict}**" if line.short else line.verdict]
        table.append(record)
    sections = [
        _aligned(table),
        legend([line.row for line in lines]),
        _notes(plan, lines, results),
        _conditions(plan, conditions),
    ]
    return "# Benchmark\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def _aligned(table: Sequence[Sequence[str]]) -> str:
    widths = [max(len(record[column]) for record in table) for column in range(len(table[0]))]
    rows = []
    for record in table:
        fill = "-" if record[0] == "---" else " "
        cells = [cell.ljust(width, fill) for cell, width in zip(record, widths, strict=True)]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _notes(plan: Plan, lines: Sequence[Line], results: Results) -> str:
    notes = [f"- {TITLES[name]} was not measured: {reason}." for name, reason in results.unavailable.items()]
    failed: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for line in lines:
        for name, cell in line.cells.items():
            if cell.failure is not None:
                failed[name, cell.failure].append(f"`{line.row.name}`")
    notes += [f"- {TITLES[name]}, no {', '.join(rows)}: {why}." for (name, why), rows in failed.items()]
    set_ups: defaultdict[str, list[str]] = defaultdict(list)
    for set_up in results.set_ups:
        set_ups[set_up.command].append(f"{TITLES[set_up.daemon]} {set_up.seconds:.1f} s")
    notes += [f"- Set-up `{command}`: {', '.join(took)}." for command, took in set_ups.items()]
    if "ours" in plan.daemons and "ours" not in results.unavailable:
        short = [f"`{line.row.name}`" for line in lines if line.short]
        undecided = sum(line.verdict.startswith(NO_VERDICT) for line in lines)
        verdict = f"{len(short)} of {len(lines)} rows fall short"
        verdict += f": {', '.join(short)}." if short else "."
        verdict += f" {undecided} have no verdict." if undecided else ""
        notes.insert(0, f"- {verdict}")
    return "\n".join(notes)


def _conditions(plan: Plan, conditions: dict[str, str]) -> str:
    facts = {"rounds": str(plan.rounds), "seconds a figure and round": f"{plan.seconds:g}"} | conditions
    return "\n".join(f"- {key}: {value}" for key, value in facts.items())


def conditions_now() -> dict[str, str]:
    """The machine and the versions; taken before measuring."""
    load = os.getloadavg()[0]
    busy = " (the machine was busy: judge by CPU times)" if load > BUSY else ""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
        "commit": _output("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
        "xen-utils-4.17": _output("dpkg-query", "-W", "-f", "${Version}", "xen-utils-4.17"),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "load average at the start": f"{load:.2f}{busy}",
    }


def _output(*command: str) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return result.stdout.strip()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def as_json(plan: Plan, lines: Sequence[Line], results: Results, conditions: dict[str, str]) -> str:
    """Everything the table shows, and every round's figures."""
    rows = [
        {
            "name": line.row.name,
            "title": line.row.title,
            "unit": line.row.measure.value,
            "goal": line.row.goal.value,
            "medians": {
                name: {"value": cell.value, "cpu_us": cell.cpu_us, "failure": cell.failure}
                for name, cell in line.cells.items()
            },
            "rounds": {name: results.figures[line.row.name, name] for name in line.cells},
            "ratios": line.ratios,
            "verdict": line.verdict,
            "short": line.short,
        }
        for line in lines
    ]
    document = {
        "conditions": conditions,
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "unavailable": results.unavailable,
        "set_ups": [set_up._asdict() for set_up in results.set_ups],
        "rows": rows,
    }
    return json.dumps(document, indent=1) + "\n"
