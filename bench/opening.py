"""How every run of a benchmark begins.

For: `bench.__main__`, `bench.restart`.
Guarantees: a run that is told to end (SIGTERM) ends its daemons; the build to be measured is chosen before any daemon starts, and
the machine is described before anything loads it.
Does not know: what is measured.
"""

import signal
import sys

from bench.interpreter import NoBuild, chosen
from bench.machine import conditions_now
from bench.run import say

NO_BUILD = 2
"""The exit status when there is no build to be measured."""


def opened() -> dict[str, str]:
    """The conditions of the run that begins. Raises SystemExit when there is no build."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        build = chosen()
    except NoBuild as error:
        say(str(error))
        raise SystemExit(NO_BUILD) from None
    say(f"measuring: {build.describe()}")
    return conditions_now(build)
