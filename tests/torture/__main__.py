"""Torture: fifty clients work, and whatever serves them is killed, stopped and crashed; nobody may notice.

Six phases, each with a daemon and clients of its own:

  logic        kill -9 of Logic at random times, 5 to 200 times a second; half look first at which step of a request Logic
               stands, one in ten waits for a step that was seldom hit, and the table says how many fell at each
  one-core     the same with daemon and clients on one core
  stopped      SIGSTOP and SIGCONT of Logic and of State, also for longer than the watchdog allows
  logic-steps  Logic kills itself at each named step of a request
  state        kill -9 of State, of Logic, and of both at once (--guardian)
  state-steps  State kills itself at each named step of its work (--guardian)

Everything the clients do is recorded; a checker for linearizability and one for watch events judge it.  The exit status is 0
only if nothing was lost, done twice, closed, torn or missed, and every step was hit.
"""

from __future__ import annotations

import argparse
import functools
import random
import sys
import time

from tests.torture.phases import PHASES, logic_killed
from tests.torture.report import Tally, summary


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="of all phases together (default: %(default)g)")
    parser.add_argument("--seed", type=int, default=0, help="of what is random here; 0: another one each time")
    parser.add_argument("--least", type=int, default=5, help="kills at each step (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=10_000, help="in the first phase, if need be longer (%(default)s)")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES), help="which (default: all)")
    told = parser.parse_args()
    seed = told.seed or random.SystemRandom().getrandbits(32)
    whole = sum(PHASES[name][1] for name in told.phases)
    print(f"seed {seed}", flush=True)
    start = time.monotonic()
    tallies: list[Tally] = []
    for name in told.phases:
        run, share = PHASES[name]
        if name == "logic":
            run = functools.partial(logic_killed, kills=told.kills)
        tallies.append(run(told.seconds * share / whole, seed, told.least))
        print(f"\n{tallies[-1]}", flush=True)
    print(f"\nIn all, {time.monotonic() - start:.0f} s, seed {seed}:\n{summary(tallies)}")
    return 1 if any(tally.wrong for tally in tallies) else 0


if __name__ == "__main__":
    sys.exit(main())
