"""Writes the figures of the last complete run into docs/performance.md.

For: `make bench`, `make bench-micro`, `python -m bench.counting --update` (at their end), `python -m bench.publish`.
Guarantees: what stands between a pair of markers (`<!-- NAME -->`, `<!-- /NAME -->`) is made from bench/results/latest.json,
bench/BUDGET.md and bench/counting/stored.json alone, with the plots that there are; everything else in the document stays as it is.
Does not know: how anything was measured or judged.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from bench.micro.budget import PARTS_TITLE
from bench.plots import SHEETS
from bench.report import PEERS, TITLES, Cell, Line
from bench.rows import Goal, Measure, Row
from bench.scenarios import SCENARIOS
from bench.table import aligned, legend, main_table, notes, summary, tail_table
from tests.oracle.build import ROOT

DOCUMENT = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "bench" / "results"
BUDGET = ROOT / "bench" / "BUDGET.md"
COUNTS = ROOT / "bench" / "counting" / "stored.json"


def lines_from(document: Mapping[str, Any]) -> list[Line]:
    """The judged rows as a run has stored them."""
    lines = []
    for record in document["rows"]:
        row = Row(
            record["name"],
            record["title"],
            goal=Goal(**record["goal"]),
            measure=Measure(record["quantity"], record["unit"]),
            most_rounds=record.get("most_rounds"),
        )
        cells = {name: _cell(stored) for name, stored in record["medians"].items()}
        lines.append(Line(row, cells, record["ratios"], record["verdict"], record["short"]))
    return lines


def _cell(stored: Mapping[str, Any]) -> Cell:
    fields: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in stored.items() if name in Cell._fields
    }
    return Cell(**fields)


def blocks(document: Mapping[str, Any], budget: str, counted: Mapping[str, Any]) -> dict[str, str]:
    """What stands between each pair of markers."""
    lines, daemons = lines_from(document), document["daemons"]
    return {
        "conditions": _conditions(document),
        "summary": summary(lines),
        "goals": _goals(lines),
        "tables": _tables(lines, daemons),
        "legend": legend(),
        "plots": _plots(),
        "tails": tail_table(lines, daemons),
        "notes": notes(lines, document["unavailable"], document["set_ups"]),
        "budget": _budget(budget),
        "counts": _counts(counted),
    }


def _conditions(document: Mapping[str, Any]) -> str:
    facts = {
        "rounds": document["rounds"],
        "seconds a figure and round": document["seconds"],
        "took": f"{sum(document['took'].values()) / 60:.1f} minutes",
    } | document["conditions"]
    return "\n".join(f"- {key}: {value}" for key, value in facts.items())


def _plots() -> str:
    names = [sheet.name for sheet in SHEETS if (RESULTS / f"{sheet.name}.svg").exists()]
    return "\n\n".join(f"![{name}](../bench/results/{name}.svg)" for name in names)


def _goals(lines: Sequence[Line]) -> str:
    """The rows with figures of their own to reach."""
    table = [["row", *(f"{TITLES[name]}: asked" for name in PEERS), "asked at most", "there", "verdict"]]
    table.append(["---"] * len(table[0]))
    for line in lines:
        goal, ours = line.row.goal, line.cells.get("ours")
        if goal.c is None and goal.ocaml is None and goal.at_most is None:
            continue
        ratios = " / ".join(f"{line.ratios[name]:.2f}" for name in PEERS if name in line.ratios)
        there = ratios if goal.at_most is None else f"{ours.text() if ours else '-'} {line.row.measure.unit}"
        table.append(
            [
                line.row.title,
                _wanted(goal.c),
                _wanted(goal.ocaml),
                _wanted(goal.at_most),
                there,
                f"**{line.verdict}**" if line.short else line.verdict,
            ]
        )
    return aligned(table)


def _wanted(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _tables(lines: Sequence[Line], daemons: Sequence[str]) -> str:
    """One table a scenario."""
    by_name = {line.row.name: line for line in lines}
    parts = []
    for scenario in SCENARIOS:
        names = [row.name for stage in scenario.stages for row in stage.rows]
        found = [by_name.pop(name) for name in names if name in by_name]
        if found:
            parts.append(f"### {scenario.name.capitalize()}\n\n{main_table(found, daemons)}")
    if by_name:
        parts.append(f"### Others\n\n{main_table(list(by_name.values()), daemons)}")
    return "\n\n".join(parts)


def _counts(counted: Mapping[str, Any]) -> str:
    """Instructions by section and build."""
    builds = counted["instructions"]
    names = list(dict.fromkeys(name for counts in builds.values() for name in counts))
    rows = [["instructions", *builds], ["---"] * (len(builds) + 1)]
    for name in names:
        rows.append([name, *(f"{counts[name]:,.0f}" if name in counts else "-" for counts in builds.values())])
    return aligned(rows)


def _budget(text: str) -> str:
    """The budget without its title and its list of parts, one level deeper."""
    body = text.partition("\n")[2].partition(PARTS_TITLE)[0]
    return re.sub(r"^## ", "### ", body, flags=re.M).strip()


def filled(text: str, contents: Mapping[str, str]) -> str:
    """The document with new contents between its markers. Raises ValueError if a pair is missing."""
    for name, content in contents.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"{text.count(begin)} pairs of markers {name!r}")
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{content}\n\n{end}{rest.partition(end)[2]}"
    return text


def published(text: str) -> str:
    """The document as it should be."""
    document = json.loads((RESULTS / "latest.json").read_text())
    budget = BUDGET.read_text() if BUDGET.exists() else ""
    return filled(text, blocks(document, budget, json.loads(COUNTS.read_text())))


def publish() -> str:
    """Brings the document up to date; what was done, as a sentence."""
    DOCUMENT.write_text(published(DOCUMENT.read_text()))
    return f"written: {DOCUMENT}"


if __name__ == "__main__":
    print(publish())
    sys.exit(0)
