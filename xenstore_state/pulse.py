"""The pulse: whether Logic still moves.

Logic's turns and requests leave signs in shared memory; whoever watches it looks at them every now and then.  Only time in
which the watcher itself got to look is held against Logic: on a host that is short of processor time both stand still, and
that is no hang.  Knows no processes and no clock.
"""

from typing import Final

LATE: Final = 0.01
"""How much later than it meant to the watcher may look, in seconds, for the time to count."""


class Pulse:
    """Of one Logic after another."""

    def __init__(self) -> None:
        self._sign = (-1, -1)
        self._looked = 0.0
        self._still = 0.0

    def begin(self, now: float) -> None:
        """Another Logic begins."""
        self._looked, self._still = now, 0.0

    def still(self, sign: tuple[int, int], now: float, meant: float) -> float:
        """For how many seconds it has not moved, as far as that counts: `sign` is what it has left `now`.

        `meant` is how long after the last look the watcher meant to look.
        """
        if sign != self._sign:
            self._sign, self._still = sign, 0.0
        else:
            self._still += min(now - self._looked, meant + LATE)
        self._looked = now
        return self._still
