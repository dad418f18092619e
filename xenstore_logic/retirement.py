"""Turns of a Logic that lives for long, and when it ends on its own account: its restart policy, looked at after each turn.

Between turns everything is published and sent, or stands in the box: a Logic that ends then is not needed any more.
"""

import time
from typing import Final

from xenstore_logic.loop import BEAT_SECONDS, Loop
from xenstore_state.restarts import POLICY, Planned, Policy

_monotonic: Final = time.monotonic


class Retirement:
    """Of one Logic, whose life begins with this."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._core = loop.core
        self._settings = loop.core.store.items.settings
        self._text: object = None
        self._started = _monotonic()
        self._due = 0.0
        """When this life is over, in seconds of the monotonic clock; 0: never."""
        self._after = 0
        """Requests after which it is over; 0: never."""
        self._alone = False
        self._patience = BEAT_SECONDS
        self.reason()

    def turn(self) -> Planned | None:
        """One turn, at most until it is time to retire; why that is now, if it is."""
        self._loop.turn(self._patience)
        return self.reason()

    def reason(self) -> Planned | None:
        """Why it is time to retire, if it is."""
        text = self._settings.get(POLICY)
        if text is not self._text:
            self._text = text
            self._follow(Policy.of(self._settings))
        if self._core.retiring or self._alone:
            return Planned.ASKED
        if self._after and self._loop.served >= self._after:
            return Planned.AFTER
        if self._due:
            left = self._due - _monotonic()
            if left <= 0:
                return Planned.EVERY
            self._patience = left if left < BEAT_SECONDS else BEAT_SECONDS
        return None

    def _follow(self, policy: Policy) -> None:
        self._due = self._started + policy.every if policy.every else 0.0
        self._after = policy.after
        self._alone = bool(policy.alone)  # another kind of Logic
        self._patience = BEAT_SECONDS
