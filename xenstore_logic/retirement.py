"""Turns of a Logic that lives for long, and when it ends on its own account: its restart policy, looked at after each turn.

Between turns everything is published and sent, or stands in the box: a Logic that ends then is not needed any more.
"""

import time

from xenstore_logic.loop import BEAT_SECONDS, Loop
from xenstore_state.restarts import POLICY, Planned, Policy


class Retirement:
    """Of one Logic, whose life begins with this."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._settings = loop.core.store.items.settings
        self._text: object = None
        self._policy = Policy()
        self._started = time.monotonic()
        self._patience = BEAT_SECONDS
        self.reason()

    def turn(self) -> Planned | None:
        """One turn, at most until it is time to retire; why that is now, if it is."""
        self._loop.turn(self._patience)
        return self.reason()

    def reason(self) -> Planned | None:
        """Why it is time to retire, if it is."""
        loop = self._loop
        text = self._settings.get(POLICY)
        if text is not self._text:
            self._text, self._policy = text, Policy.of(self._settings)
            self._patience = BEAT_SECONDS
        every, after, alone = self._policy
        if loop.core.retiring or alone:
            return Planned.ASKED
        if after and loop.served >= after:
            return Planned.AFTER
        if every:
            left = self._started + every - time.monotonic()
            if left <= 0:
                return Planned.EVERY
            self._patience = min(BEAT_SECONDS, left)
        return None
