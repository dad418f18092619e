"""The command line of the counts: `python -m bench.counting [--update]`.

Counts the work of the fixed workload with this interpreter, shows it beside what is stored for this version and build, and
with --update stores it. The exit status is 1 if something costs more than is stored, 2 if nothing is stored or not all of it
can be counted.
"""

import argparse
import sys
from collections.abc import Sequence

from bench.counting import bytecodes, instructions, stored
from bench.counting.instructions import CannotCount
from bench.counting.stored import Counts, NothingStored
from bench.interpreter import Build, build_of
from bench.publish import publish

NOT_ALL = 2
"""The exit status when nothing is stored, or not all of it can be counted."""


def _counted() -> dict[str, Counts]:
    counts: dict[str, Counts] = dict(bytecodes.count_all())
    try:
        counts["instructions"] = instructions.count_all()
    except CannotCount as error:
        print(f"no instructions: {error}")
    return counts


def _show(kind: str, build: Build, counts: Counts) -> int:
    print(f"\n{kind}: {stored.key_of(kind, build)}")
    was: Counts = {}
    nothing = None
    try:
        was = stored.stored(kind, build)
    except NothingStored as error:
        nothing = str(error)
    for name, count in counts.items():
        before = was.get(name)
        share = f"{count / before - 1:+8.1%}" if before else ""
        print(f"  {name:30} {count:12,.0f} {share}")
    if nothing is not None:
        print(nothing)
        return NOT_ALL
    comparison = stored.compare(was, counts)
    for difference in comparison.worse:
        print(f"  MORE: {difference}")
    for difference in comparison.better:
        print(f"  less: {difference}; store it with `{stored.UPDATE}`")
    return 1 if comparison.worse else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.counting", description="Counts the work of a fixed workload."
    )
    parser.add_argument("--update", action="store_true", help="store what is counted now")
    update: bool = parser.parse_args(argv).update
    build = build_of(sys.executable)
    counts = _counted()
    statuses = [0 if "instructions" in counts else NOT_ALL]
    for kind, found in counts.items():
        if update:
            stored.store(kind, build, found)
        statuses.append(_show(kind, build, found))
    if update:
        print(publish())
    return 1 if 1 in statuses else max(statuses)


if __name__ == "__main__":
    sys.exit(main())
