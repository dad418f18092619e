"""What a restart costs: `make bench-restart`, or `python -m bench.restart [--quick]`.

Writes bench/results/restart.json, restart.md and the plots restart-downtime and restart-throughput (PNG and SVG); with --quick
the names begin with restart-quick.  The exit status is 1 if a figure of this project's daemon could not be taken; falling short
of a goal is marked in the table only.

Reading order: `restart_plan` (what, in which order), `restarts` (how), `restart_report` (how it is shown).
"""

import argparse
import json
import sys
from collections.abc import Sequence

from bench import restart_plan, restart_report
from bench.__main__ import RESULTS
from bench.opening import opened
from bench.run import say


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.restart", description="What a restart costs.")
    parser.add_argument("--quick", action="store_true", help="about a minute: few restarts, small peers")
    quick: bool = parser.parse_args(argv).quick
    conditions = opened()
    results = restart_plan.run(restart_plan.quick() if quick else restart_plan.complete())
    stem = "restart-quick" if quick else "restart"
    RESULTS.mkdir(exist_ok=True)
    text = restart_report.markdown(results, conditions, stem)
    (RESULTS / f"{stem}.json").write_text(json.dumps(restart_report.plain(results, conditions), indent=1) + "\n")
    (RESULTS / f"{stem}.md").write_text(text)
    print(text)
    for note in restart_report.plots(results, RESULTS, stem):
        say(note)
    say(f"written: {RESULTS / stem}.md, .json and plots")
    return 1 if restart_report.failed(results) else 0


if __name__ == "__main__":
    sys.exit(main())
