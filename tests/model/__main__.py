"""`python -m tests.model SECONDS`: the long search for differences between the model and four stores.

Every store under test has its share of the time; each round begins with other random numbers.  Ends with status 1 at the
first difference, which hypothesis has made as small as it could; the conformance case that shows it is printed with it.
"""

import logging
import sys
import time
from collections.abc import Callable
from typing import Final, cast

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from tests.model import differences
from tests.model.machine import StoreMachine
from tests.model.support import PHASES
from tests.model.test_model import InProcessMachine
from tests.model.test_oracles import OracleMachine
from tests.model.test_running import OurMachine
from tests.oracle.daemons import CXenstored, OurDaemon, OXenstored, short_run_dir

ROUND: Final = 40
"""Examples before the clock is looked at."""
STEPS: Final = 50


def search(machine: Callable[[], StoreMachine], seconds: float, *, shrink: bool = True) -> tuple[int, int]:
    """Examples tried and requests sent until the time is over."""
    end = time.monotonic() + seconds
    requests = examples = 0

    def make() -> StoreMachine:
        nonlocal examples
        made = machine()
        examples += 1
        at_end = made.teardown

        def teardown() -> None:
            nonlocal requests
            if hasattr(made, "all"):
                requests += made.all.requests
            at_end()

        made.teardown = teardown  # type: ignore[method-assign]
        return made

    how = settings(
        max_examples=ROUND,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        phases=(*PHASES, Phase.shrink) if shrink else PHASES,
        suppress_health_check=list(HealthCheck),
    )
    while time.monotonic() < end:
        run_state_machine_as_test(cast(type[RuleBasedStateMachine], make), settings=how)
    return examples, requests


def main() -> None:
    """All four, in turn."""
    logging.disable(logging.WARNING)  # quotas that refuse something say so
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 600.0
    report("the core in this process, and State's copy", *search(InProcessMachine, seconds * 0.4))
    with short_run_dir() as run_dir, OurDaemon(run_dir) as ours:
        report("this daemon, its Logic killed now and then", *search(lambda: OurMachine(ours), seconds * 0.4))
    for kind in (CXenstored, OXenstored):
        reason = kind.available()
        if reason is not None:
            print(f"{kind.name} was not asked: {reason}")
            continue
        with short_run_dir() as run_dir, kind(run_dir) as other:
            report(
                f"{kind.name}, but for what is declared",
                *search(lambda: OracleMachine(other), seconds * 0.1, shrink=False),
            )
    print("\nDeclared differences that were met (tests/model/differences.py):")
    for why, count in sorted(differences.USED.items()):
        print(f"{count:8}  {why}")


def report(what: str, examples: int, requests: int) -> None:
    """One line of the table."""
    print(f"{what:45} {examples:7} examples {requests:8} requests, no difference", flush=True)


if __name__ == "__main__":
    main()
