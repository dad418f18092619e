"""Pinned turns: a Logic serves one connection's ready requests, no other's, and is thrown away (Xoar's restart per request).

Before it looks at the first byte of a connection it has State *pin* that connection: from then on State takes no record that
acts for anybody else.  Until then nothing a guest wrote has been looked at, so the pin can be believed.  Everything that
others were still owed goes out before, and no reply leaves before State has checked what it says.
"""

import logging
import select
from collections.abc import Callable
from typing import Final

from recovery_box.box import W_LAST, W_PINNED
from recovery_box.items import Connection
from xenstore_logic.channels import Channel
from xenstore_logic.loop import BEAT_SECONDS, Loop

log = logging.getLogger(__name__)

_IN: Final = select.EPOLLIN
_OUT: Final = select.EPOLLOUT
_GONE: Final = select.EPOLLHUP | select.EPOLLERR


class PinnedTurns:
    """Turns of one Logic, until it has served somebody who must be served alone."""

    def __init__(
        self, loop: Loop, pin: Callable[[Connection], None], synchronize: Callable[[], None], *, guests_only: bool
    ) -> None:
        """With `guests_only` the privileged domain is served like ever, and only guests one by one."""
        self._loop = loop
        self._pin = pin
        self._synchronize = synchronize
        self._guests_only = guests_only
        self._words = loop.words
        loop.holds = not guests_only
        self._kicked: list[Channel] = []
        if loop.rings is not None:
            loop.rings.kick = self._kicked.append
            loop.rings.gate.slow_down()

    def turn(self) -> bool:
        """One turn; whether somebody was served alone, and this Logic is over."""
        loop, rings = self._loop, self._loop.rings
        readable = loop.poll(BEAT_SECONDS, self._words[W_LAST if self._guests_only else W_PINNED])
        if self._guests_only and readable:
            self._words[W_LAST] = readable[-1][0].connection.id
        for channel, mask in readable:
            if mask & _OUT:
                loop.mark(channel)
        loop.flush()
        waiting = [*((channel, 0) for channel in loop.take_ready()), *readable, *((ring, 0) for ring in self._kicked)]
        alone = [
            (c, mask) for c, mask in waiting if (c.bound or not self._guests_only) and self._has_something(c, mask)
        ]
        for channel, mask in waiting:
            if self._guests_only and not channel.bound:
                self._serve(channel, mask)
        loop.flush()
        if not alone:
            self._kicked.clear()
            if rings is not None and rings.taken:
                rings.unmask()
            return False
        last = self._words[W_PINNED]
        channel, mask = min(alone, key=lambda pair: (pair[0].connection.id <= last, pair[0].connection.id))
        self._words[W_PINNED] = channel.connection.id
        self._pin(channel.connection)
        published = loop.published
        self._serve(channel, mask)
        loop.note(channel)
        if loop.published != published:
            self._synchronize()
        loop.flush()
        if rings is not None and rings.taken:
            rings.unmask_only(channel, [c for c, _ in alone if c in self._kicked])
        return True

    def _has_something(self, channel: Channel, mask: int) -> bool:
        """Whether there is anything of this connection's to be looked at now; a ring's guest also says that it has read.

        A Logic that served half a request alone, or somebody who has to wait, would be followed at once by another one.
        """
        loop, rings = self._loop, self._loop.rings
        if channel.ring is not None and rings is not None:
            return rings.has_requests(channel)
        if mask & _GONE:
            return True
        if loop.has_to_wait(channel):
            return False
        return bool(mask & _IN) or loop.has_left_over(channel)

    def _serve(self, channel: Channel, mask: int) -> None:
        if channel.connection.closed:
            return
        if channel.ring is not None and self._loop.rings is not None:
            self._loop.rings.look_into(channel)
        elif mask:
            self._loop.serve(channel, mask)
        else:
            self._loop.work(channel)
