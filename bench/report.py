"""Judges figures: medians over the rounds, ratios, and a verdict a row.

For: `bench.__main__` and `bench.table`.
Guarantees: a row that falls short of its goal is marked; a figure that is not there shows why.
Does not know: how the figures were measured, or how they are shown.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

from bench.load_client import Answer
from bench.rows import Row
from bench.run import Results

TITLES = {"c": "C xenstored", "ocaml": "oxenstored", "ours": "ours"}
PEERS = ("c", "ocaml")
UNSTEADY = 0.3
NO_VERDICT = "no verdict"
TAIL = ("p99_us", "p999_us")


class Cell(NamedTuple):
    """One row of one daemon: `value` in the row's unit, or why there is none."""

    value: float | None = None
    cpu_us: float | None = None
    committed: tuple[float, float] | None = None
    spread: float = 0.0
    """Difference of the greatest and the least round, as a share of the median."""
    rounds: int = 0
    tail: tuple[float, float] | None = None
    """99th and 99.9th percentile in microseconds; medians over the rounds."""
    client_us: float | None = None
    failure: str | None = None
    declined: str | None = None

    @classmethod
    def of(cls, row: Row, figures: Sequence[Answer], failure: str | None, declined: str | None = None) -> "Cell":
        if failure is not None or not figures:
            reason = None if failure else declined or "not measured"
            return cls(failure=failure, declined=reason)
        values = [float(figure[row.measure.quantity]) for figure in figures]
        committed = _median(figures, "committed")
        tails = [_median(figures, name) for name in TAIL]
        middle = median(values)
        return cls(
            middle,
            _median(figures, row.measure.cpu),
            None if committed is None else (committed, float(figures[0]["count"])),
            (max(values) - min(values)) / middle if middle else 0.0,
            len(figures),
            None if tails[0] is None or tails[1] is None else (tails[0], tails[1]),
            _median(figures, "client_us"),
        )

    @property
    def unsteady(self) -> bool:
        return self.spread > UNSTEADY

    def text(self) -> str:
        """For the table."""
        if self.value is None:
            return "failed" if self.failure else "not measured"
        parts = [number(self.value)]
        if self.committed is not None:
            parts.insert(0, f"{self.committed[0]:.0f} of {self.committed[1]:.0f},")
        if self.cpu_us is not None:
            parts.append(f"({number(self.cpu_us)})")
        return " ".join(parts) + (" ~" if self.unsteady else "")


def number(value: float) -> str:
    """Three digits or so."""
    return f"{value:{',.0f' if value >= 100 else '.1f' if value >= 10 else '.2f'}}"


def _median(figures: Sequence[Answer], name: str) -> float | None:
    values = [float(figure[name]) for figure in figures if name in figure]
    return median(values) if values else None


class Line(NamedTuple):
    """A row with its cells and verdict."""

    row: Row
    cells: dict[str, Cell]
    ratios: dict[str, float]
    verdict: str
    short: bool


def asked(row: Row) -> str:
    """The row's goal, for people."""
    goal, parts = row.goal, []
    if goal.c is not None:
        parts.append(f"C {goal.c:g}")
    if goal.ocaml is not None:
        parts.append(f"ox {goal.ocaml:g}")
    if goal.at_most is not None:
        parts.append(f"at most {goal.at_most:g} {row.measure.unit}")
    if goal.peers:
        parts.append("slower peer")
    return ", ".join(parts)


def judged(row: Row, cells: dict[str, Cell]) -> Line:
    """Compares our cell with the peers' and the row's goal."""
    ours = cells.get("ours")
    if ours is None:
        return Line(row, cells, {}, "", False)
    if ours.value is None:
        return Line(row, cells, {}, "FAILED" if ours.failure else "NOT MEASURED", True)
    values = {name: cells[name].value for name in PEERS if name in cells}
    ratios = {name: round(value / ours.value, 2) for name, value in values.items() if value is not None and ours.value}
    faults = _faults(row, cells, ratios)
    if faults:
        return Line(row, cells, ratios, "; ".join(faults), True)
    absent = _needed_peers(row, ratios)
    without = f"{NO_VERDICT} without {' and '.join(absent)}"
    return Line(row, cells, ratios, without if absent else "ok" if row.goal else "", False)


def _faults(row: Row, cells: Mapping[str, Cell], ratios: Mapping[str, float]) -> list[str]:
    """Where our cell certainly falls short, whatever a peer that was not measured would have shown."""
    faults, goal, value = [], row.goal, cells["ours"].value
    for name, least in (("c", goal.c), ("ocaml", goal.ocaml)):
        if least is not None and ratios.get(name, least) < least:
            faults.append(f"SHORT of {least:g} x {TITLES[name].split()[0]}")
    if goal.at_most is not None and value is not None and value > goal.at_most:
        faults.append(f"MORE than {goal.at_most:g} {row.measure.unit}")
    if goal.peers and len(ratios) == len(PEERS) and max(ratios.values()) < 1:
        faults.append("SLOWER than both peers")
    committed = {name: cell.committed[0] for name, cell in cells.items() if cell.committed}
    peers = [committed[name] for name in PEERS if name in committed]
    if "ours" in committed and len(peers) == len(PEERS) and committed["ours"] < min(peers):
        faults.append("FEWER commits than both peers")
    return faults


def _needed_peers(row: Row, ratios: Mapping[str, float]) -> list[str]:
    """The peers that were not measured, but decide whether a row without a certain fault holds."""
    goal = row.goal
    if goal.peers and max(ratios.values(), default=0.0) < 1:
        return [TITLES[name] for name in PEERS if name not in ratios]
    wanted = [name for name, least in (("c", goal.c), ("ocaml", goal.ocaml)) if least is not None]
    return [TITLES[name] for name in wanted if name not in ratios]


def lines_of(rows: Sequence[Row], daemons: Sequence[str], results: Results) -> list[Line]:
    """All rows, judged."""
    lines = []
    for row in rows:
        cells = {
            name: Cell.of(
                row,
                results.figures[row.name, name],
                results.failures.get((row.name, name)),
                results.declined.get((row.name, name)),
            )
            for name in daemons
            if name not in results.unavailable
        }
        lines.append(judged(row, cells))
    return lines
