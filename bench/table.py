"""Shows judged rows: as Markdown for people, as JSON for everything else.

For: `bench.__main__`, `bench.publish`.
Guarantees: the JSON holds every round's figures; the Markdown names each row that is short, failed or not measured, with why.
Does not know: how a row was judged.
"""

import json
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from bench.report import NO_VERDICT, PEERS, TITLES, Line, asked, number
from bench.run import Plan, Results

WIDTH = 125
CLIENT_SHARE = 0.5
LEGEND = (
    "Cells: median over the rounds; in brackets the CPU time per operation of all processes of the daemon, in us. `~`: the "
    "rounds differ by more than 30 % of the median. Ratios: the peer's figure divided by ours, so above 1 ours is better.",
    'Asked: the least ratio to C xenstored and to oxenstored ("ox"), or the most that ours may be; "slower peer": no slower '
    "than the slower of the two. Nothing: reported only.",
    'The client and the serving process share one core, other processes of the daemon have another; "single core": all on one.',
    "`parallel-*` and `rings-*`: one request in flight on each connection or ring, and the time that one request of them all "
    "takes, so 1,000,000 divided by it is the number per second.",
    "`introduce-*`: INTRODUCE until its reply. `destroy-*`: from the end of the domain, of which the daemon is told by an event, "
    "until a watcher of @releaseDomain has its event. `storm`: from the first start of the toolstack's transaction until its "
    "commit, however many attempts that takes; the guest has another core.",
    "`children-*-list`: DIRECTORY, or DIRECTORY_PART where that is refused. oxenstored answers DIRECTORY by one message of any "
    "length, also beyond the 4,096 bytes that a message may have, which Xen's own clients then refuse.",
    "Rings are those of emulated guests, on a directory that stands for the hypervisor. What that costs is in the figures of all "
    "three and is not what Xen would cost: an event is a datagram (C xenstored sends 4 a request, oxenstored 3), and who looks "
    "for domains that have ended reads files.",
    "Memory: PSS in MB (10^6 bytes) of all processes; pages that are shared are counted by their share.",
)


def legend() -> str:
    """What the table means."""
    return "\n".join(textwrap.fill(part, WIDTH, break_on_hyphens=False) for part in LEGEND)


def markdown(plan: Plan, lines: Sequence[Line], results: Results, conditions: dict[str, str]) -> str:
    """The tables, what they mean, what failed and under which conditions."""
    sections = [
        "# Benchmark",
        summary(lines),
        main_table(lines, plan.daemons),
        legend(),
        '## Distribution\n\nOf single operations, in us; "client": CPU time of the load client itself, an operation.',
        tail_table(lines, plan.daemons),
        "## Notes",
        notes(lines, results.unavailable, [set_up._asdict() for set_up in results.set_ups]),
        _conditions(plan, results, conditions),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def main_table(lines: Sequence[Line], daemons: Sequence[str]) -> str:
    """One line a row."""
    peers = [name for name in PEERS if name in daemons]
    ours = "ours" in daemons
    head = ["row", "", "unit", *(TITLES[name] for name in daemons)]
    if ours:
        head += [*(f"{TITLES[name].split()[0]} / ours" for name in peers), "asked", "verdict"]
    table = [head, ["---"] * len(head)]
    for line in lines:
        cells = [line.cells[name].text() if name in line.cells else "-" for name in daemons]
        record = [f"`{line.row.name}`", line.row.title, line.row.measure.unit, *cells]
        if ours:
            ratios = [f"{line.ratios[name]:.2f}" if name in line.ratios else "-" for name in peers]
            record += [*ratios, asked(line.row), f"**{line.verdict}**" if line.short else line.verdict]
        table.append(record)
    return aligned(table)


def tail_table(lines: Sequence[Line], daemons: Sequence[str]) -> str:
    """Percentiles, for the rows that have any."""
    head = ["row", *(f"{TITLES[name]} p50 / p99 / p99.9" for name in daemons), "client"]
    table = [head, ["---"] * len(head)]
    for line in lines:
        cells = [line.cells.get(name) for name in daemons]
        if not any(cell is not None and cell.tail for cell in cells):
            continue
        record = [f"`{line.row.name}`"]
        for cell in cells:
            if cell is None or cell.tail is None or cell.value is None:
                record.append("-")
            else:
                record.append(" / ".join(map(number, (cell.value, *cell.tail))))
        clients = [cell.client_us for cell in cells if cell is not None and cell.client_us is not None]
        record.append(number(min(clients)) if clients else "-")
        table.append(record)
    return aligned(table) if len(table) > 2 else ""


def aligned(table: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up."""
    widths = [max(len(record[column]) for record in table) for column in range(len(table[0]))]
    rows = []
    for record in table:
        fill = "-" if record[0] == "---" else " "
        cells = [cell.ljust(width, fill) for cell, width in zip(record, widths, strict=True)]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def summary(lines: Sequence[Line]) -> str:
    """How many rows hold, and which do not."""
    short = [f"`{line.row.name}` ({line.verdict})" for line in lines if line.short]
    undecided = sum(line.verdict.startswith(NO_VERDICT) for line in lines)
    if not any("ours" in line.cells for line in lines):
        return ""
    text = f"{len(short)} of {len(lines)} rows fall short of what is asked" + (
        f": {', '.join(short)}." if short else "."
    )
    text += f" {undecided} have no verdict." if undecided else ""
    return textwrap.fill(text, WIDTH, break_on_hyphens=False, break_long_words=False)


def notes(lines: Sequence[Line], unavailable: Mapping[str, str], set_ups: Sequence[Mapping[str, Any]]) -> str:
    """What failed, what was not measured, what was measured less often, and what setting up took."""
    text = [f"- {TITLES[name]} was not measured: {reason}." for name, reason in unavailable.items()]
    absent: defaultdict[tuple[str, str, str], list[str]] = defaultdict(list)
    fewer: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
    most = max((cell.rounds for line in lines for cell in line.cells.values()), default=0)
    for line in lines:
        for name, cell in line.cells.items():
            if cell.value is None:
                how = "failed" if cell.failure else "not measured"
                absent[name, how, cell.failure or cell.declined or ""].append(f"`{line.row.name}`")
            elif cell.rounds < min(most, line.row.most_rounds or most):
                fewer[name, cell.rounds].append(f"`{line.row.name}`")
    text += [f"- {TITLES[name]}, {how}: {', '.join(rows)}: {why}." for (name, how, why), rows in absent.items()]
    text += [f"- {TITLES[name]}, {count} round(s) only: {', '.join(rows)}." for (name, count), rows in fewer.items()]
    heavy = [f"`{line.row.name}`" for line in lines if _mostly_client(line)]
    if heavy:
        text.append(f"- The load client's own CPU time is more than half of our figure in: {', '.join(heavy)}.")
    took: defaultdict[str, list[str]] = defaultdict(list)
    for set_up in set_ups:
        took[set_up["command"]].append(f"{TITLES[set_up['daemon']]} {set_up['seconds']:.1f} s")
    return "\n".join(text + [f"- Set-up `{command}`: {', '.join(each)}." for command, each in took.items()])


def _mostly_client(line: Line) -> bool:
    cell = line.cells.get("ours")
    if cell is None or cell.value is None or cell.client_us is None or line.row.measure.unit != "us":
        return False
    return cell.client_us > CLIENT_SHARE * cell.value


def _conditions(plan: Plan, results: Results, conditions: dict[str, str]) -> str:
    facts = {
        "rounds": str(plan.rounds),
        "seconds a figure and round": f"{plan.seconds:g}",
        "took": f"{sum(results.took.values()) / 60:.1f} minutes",
    }
    return "\n".join(f"- {key}: {value}" for key, value in (facts | conditions).items())


def as_json(plan: Plan, lines: Sequence[Line], results: Results, conditions: dict[str, str]) -> str:
    """Everything the tables show, and every round's figures."""
    rows = [
        {
            "name": line.row.name,
            "title": line.row.title,
            "unit": line.row.measure.unit,
            "quantity": line.row.measure.quantity,
            "asked": asked(line.row),
            "most_rounds": line.row.most_rounds,
            "goal": line.row.goal._asdict(),
            "point": None if line.row.point is None else line.row.point._asdict(),
            "medians": {name: cell._asdict() | {"text": cell.text()} for name, cell in line.cells.items()},
            "rounds": {name: results.figures[line.row.name, name] for name in line.cells},
            "ratios": line.ratios,
            "verdict": line.verdict,
            "short": line.short,
        }
        for line in lines
    ]
    document = {
        "conditions": conditions,
        "daemons": list(plan.daemons),
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "took": results.took,
        "unavailable": results.unavailable,
        "set_ups": [set_up._asdict() for set_up in results.set_ups],
        "rows": rows,
    }
    return json.dumps(document, indent=1) + "\n"
