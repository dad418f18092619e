"""The command line of the micro-benchmarks: `python -m bench.micro`, with all of pyperf's options.

Writes bench/results/micro.json (pyperf's format) and bench/BUDGET.md (`bench.micro.budget`).
"""

import sys
from pathlib import Path

import pyperf

from bench.machine import conditions_now
from bench.micro import budget, courses
from bench.micro.parts import PARTS
from bench.publish import publish
from bench.run import say

LAUNCH = Path(__file__).parents[1] / "launch.py"
RESULT = Path(__file__).parents[1] / "results" / "micro.json"
TARGET = Path(__file__).parents[1] / "BUDGET.md"
PROCESSES, VALUES, MIN_TIME = 5, 4, 0.02


def main() -> int:
    launched = [*(["-P"] if sys.flags.safe_path else []), str(LAUNCH), "bench.micro"]
    runner = pyperf.Runner(VALUES, PROCESSES, min_time=MIN_TIME, program_args=launched)
    # Quiet: it would call every figure of a few processes unstable. Pinned as Logic is in `bench.subject`.
    runner.argparser.set_defaults(quiet=True, affinity=str(budget.CORE))
    found = [runner.bench_time_func(part.name, part.timed) for part in PARTS]
    if runner.args.worker:
        return 0
    conditions = conditions_now(budget.build())
    RESULT.parent.mkdir(exist_ok=True)
    pyperf.BenchmarkSuite([bench for bench in found if bench is not None]).dump(str(RESULT), replace=True)
    TARGET.write_text(budget.markdown(budget.read(RESULT), courses.measure(budget.CORE), budget.measure(), conditions))
    say(f"written: {RESULT} and {TARGET}")
    say(publish())
    return 0


if __name__ == "__main__":
    sys.exit(main())
