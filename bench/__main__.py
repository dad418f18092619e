"""The command line of the benchmarks: `python -m bench`.

Writes the table to standard output and to bench/results/latest.md and latest.json, plots of the curves beside them, and all of
it into docs/performance.md; a --quick run to quick.*, one of chosen rows or daemons to partial.*, so that neither replaces a
complete run. The exit status is 1 if this project's daemon failed in some row; falling short of a goal is marked in the table
only.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.opening import opened
from bench.plots import plot
from bench.publish import publish
from bench.report import lines_of
from bench.run import DAEMONS, Plan, Results, run, say
from bench.scenarios import ROWS, selected
from bench.table import as_json, markdown

RESULTS = Path(__file__).parent / "results"
ROUNDS, SECONDS, LIMIT = 5, 0.2, 12.5 * 60
QUICK_ROUNDS, QUICK_SECONDS, QUICK_LIMIT = 3, 0.1, 90.0
"""Rounds, seconds a figure and round, and seconds after which the rest has one round: a quarter of an hour, two minutes."""


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
        return [name for name in known if name in names]

    return parse


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Compares three xenstored side by side.")
    parser.add_argument("--quick", action="store_true", help="fewer rows, short rounds: under two minutes")
    parser.add_argument("--rows", type=_names([row.name for row in ROWS]), metavar="NAME,..", help="only these rows")
    parser.add_argument("--daemons", type=_names(list(DAEMONS)), metavar="NAME,..", help="of c, ocaml, ours")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"rounds (default {ROUNDS}, quick {QUICK_ROUNDS})")
    return parser.parse_args(argv)


def _plan(arguments: argparse.Namespace) -> Plan:
    quick = arguments.quick
    names = arguments.rows or [row.name for row in ROWS if row.in_quick or not quick]
    return Plan(
        selected(frozenset(names)),
        arguments.daemons or list(DAEMONS),
        arguments.rounds or (QUICK_ROUNDS if quick else ROUNDS),
        QUICK_SECONDS if quick else SECONDS,
        QUICK_LIMIT if quick else LIMIT,
    )


def _stem(arguments: argparse.Namespace) -> str:
    if arguments.rows or arguments.daemons:
        return "partial"
    return "quick" if arguments.quick else "latest"


def _write(plan: Plan, results: Results, conditions: dict[str, str], stem: str) -> None:
    rows = [row for scenario in plan.scenarios for stage in scenario.stages for row in stage.rows]
    lines = lines_of(rows, plan.daemons, results)
    text = markdown(plan, lines, results, conditions)
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / f"{stem}.md"
    target.write_text(text)
    record = target.with_suffix(".json")
    record.write_text(as_json(plan, lines, results, conditions))
    print(text)
    say(f"written: {target} and {record.name}")
    if stem == "latest":
        say(plot(record, RESULTS))
        say(publish())


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _arguments(argv)
    plan = _plan(arguments)
    conditions = opened()
    results = Results()
    try:
        run(plan, results)
    except (KeyboardInterrupt, SystemExit):
        say("interrupted; what was measured so far:")
        _write(plan, results, conditions | {"interrupted": "yes"}, "partial")
        return 130
    _write(plan, results, conditions, _stem(arguments))
    return 1 if any(name == "ours" for _, name in results.failures) else 0


if __name__ == "__main__":
    sys.exit(main())
