"""How long to wait before a transaction that met a conflict is tried again.  Knows no clock; it only names delays."""

import random
from collections.abc import Iterator
from typing import Final

ATTEMPTS: Final = 30
"""Tries of a transaction before its EAGAIN reaches the caller: about 2 seconds of waiting."""
FIRST_DELAY: Final = 0.001
LONGEST_DELAY: Final = 0.1


def delays(attempts: int) -> Iterator[float | None]:
    """What to do after each failed try: wait so many seconds, or (None, after the last) give up.

    The bound doubles from 1 ms to 100 ms; each delay is a random part of it, so that clients that met once do not meet
    again.
    """
    bound = FIRST_DELAY
    for _ in range(attempts - 1):
        yield random.uniform(0, bound)
        bound = min(2 * bound, LONGEST_DELAY)
    yield None
