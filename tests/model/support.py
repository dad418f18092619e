"""Settings that the property tests of `tests/unit` and `tests/model` share.

No deadline: the machine may be slow, and a slow example is not a wrong one.  Counts are modest, so that everything runs
at each change, and the examples are the same each time: what a change breaks shows at that change.  Another factor in the
environment variable `XOARSTORE_EXAMPLES` makes it a search, with other examples each time.
"""

import os
from typing import Final

from hypothesis import HealthCheck, Phase, settings

FACTOR: Final = float(os.environ.get("XOARSTORE_EXAMPLES", "1"))
SEARCH: Final = FACTOR != 1
SHRINK: Final = os.environ.get("XOARSTORE_SHRINK", "1") != "0"
"""Whether a failing example is made smaller, and remembered: not wanted where all that counts is that one fails."""
PHASES: Final = (Phase.explicit, Phase.reuse, Phase.generate)


def examples(count: int, *, steps: int = 30, shrink: bool = True) -> settings:
    """Settings for a property that is tried `count` times, with at most `steps` steps where it has any.

    What is slow to repeat is better not made smaller: its failure tells what was done anyway.
    """
    return settings(
        max_examples=max(1, int(count * FACTOR)),
        stateful_step_count=steps,
        deadline=None,
        database=settings().database if SEARCH and SHRINK else None,
        derandomize=not SEARCH,
        phases=(*PHASES, Phase.shrink) if shrink and SHRINK else PHASES,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
