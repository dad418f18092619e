"""Settings that the property tests of `tests/unit` and `tests/model` share.

No deadline: the machine may be slow, and a slow example is not a wrong one.  Counts are modest, so that everything runs
at each change; raise them with the environment variable `XOARSTORE_EXAMPLES` (a factor) for a longer search.
"""

import os
from typing import Final

from hypothesis import HealthCheck, settings

FACTOR: Final = float(os.environ.get("XOARSTORE_EXAMPLES", "1"))


def examples(count: int, *, steps: int = 30) -> settings:
    """Settings for a property that is tried `count` times, with at most `steps` steps where it has any."""
    return settings(
        max_examples=max(1, int(count * FACTOR)),
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
