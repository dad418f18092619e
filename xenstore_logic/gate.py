"""The gate: what holds a guest back (domain.c: domain_can_read and the wrl functions).

A guest's next request has to wait while too many of its requests are outstanding, while it uses more memory than it may, and
while it writes too fast for others' transactions to commit.  Replies and events too large for its memory are refused here.
Nothing is decided about anybody whom no quota binds.
"""

import logging
import time
from collections.abc import Callable
from typing import Any, Final

from protocol.errors import StoreError
from protocol.ops import Op
from protocol.wire import HEADER_SIZE
from recovery_box.lanes import M32
from xenstore_logic.channels import Channel
from xenstore_logic.core import Core
from xenstore_state.effects import CHANGES_TREE, COMMIT
from xenstore_state.quotas import QuotaExceeded

log = logging.getLogger(__name__)

WRITE_RATE: Final = 200.0
"""Writes a second by which all guests together may disturb others' transactions."""
WRITE_RATE_ALONE: Final = 10.0
"""The same when everybody is served alone: then transactions take many times as long."""
LEAST_ALONE: Final = 1.0
"""What of that a guest has at least."""
WRITE_BURST: Final = 10.0
"""Writes that a guest may do at once."""
HELD_SECONDS: Final = 0.05
"""How often a guest that is held back for its memory is looked at again."""
WARN_SECONDS: Final = 10.0
_ZERO: Final = 32768
_PARTS: Final = 65536
SMALL_REPLY: Final = 16
"""Bytes of payload up to which a reply is given whatever the memory quota says."""
_ENOMEM: Final = StoreError("ENOMEM").payload


class Credit:
    """What a guest may still write while others have transactions open, and when that was last true.

    Its `word` stands in the box: half of it says how much, half when, so that a death tears nothing.
    """

    __slots__ = ("amount", "at")

    def __init__(self, amount: float = WRITE_BURST, age: float = 0.0) -> None:
        self.amount = amount
        self.at = time.monotonic() - age

    @property
    def word(self) -> int:
        """Amount in 65536ths above -32768, and milliseconds of the monotonic clock (modulo 2**32); never 0."""
        amount = int(max(0.0, self.amount + _ZERO) * _PARTS)
        return min(amount, M32) << 32 | int(self.at * 1000) & M32

    @classmethod
    def read(cls, word: int) -> "Credit":
        """From a word."""
        age = (int(time.monotonic() * 1000) - word) & M32
        return cls(min(WRITE_BURST, (word >> 32) / _PARTS - _ZERO), age / 1000)


class Gate:
    """Of all guests of one Logic."""

    def __init__(self, core: Core, rings: Callable[[], int]) -> None:
        """`rings` says how many there are."""
        self._core = core
        self._rings = rings
        self.held: dict[Channel, float] = {}
        """Guests that are held back, with when to look at them again."""
        self._credits: dict[int, Credit] = {}
        """By domid: a guest that connects anew has what it had."""
        self._write_rate, self._least = WRITE_RATE, 0.0
        self._told: dict[int, dict[str, float]] = {}
        """By domid: what the log was told of it, and when."""

    def slow_down(self) -> None:
        """Everybody is served alone."""
        self._write_rate, self._least = WRITE_RATE_ALONE, LEAST_ALONE

    def welcome(self, channel: Channel) -> None:
        """A guest's ring is to be served: what it had of credit counts, with whichever Logic and connection."""
        if not channel.bound:
            return
        domid = channel.connection.domid
        credit = self._credits.get(domid)
        if credit is not None:
            channel.lane.credit = credit.word
        elif channel.lane.credit:
            self._credits[domid] = Credit.read(channel.lane.credit)

    def drop(self, channel: Channel) -> None:
        """A guest's connection has ended."""
        self.held.pop(channel, None)

    def forget(self, domid: int) -> None:
        """A domain is no more."""
        self._credits.pop(domid, None)
        self._told.pop(domid, None)

    def may_go(self, channel: Channel) -> bool:
        """Whether another request of a guest may be served now."""
        by = channel.connection
        quotas: dict[str, int] = by.subject.quotas
        limit = quotas["outstanding"]
        if limit and len(channel.replies) + len(channel.linked) >= limit and channel.outstanding() >= limit:
            self.say(by.domid, "outstanding", "domain %d waits: %d requests outstanding", by.domid, limit)
            return False
        limit = quotas["memory"]
        used = self._memory(channel)
        if limit and used >= limit:
            self.say(by.domid, "memory", "domain %d is not served: it uses %d of %d bytes", by.domid, used, limit)
            self.held[channel] = time.monotonic() + HELD_SECONDS
            return False
        soft = quotas["soft-memory"]
        if soft and used >= soft:
            self.say(by.domid, "soft", "domain %d uses %d bytes, more than its soft quota of %d", by.domid, used, soft)
        credit = self._credits.get(by.domid)
        if credit is not None and not self._refill(credit):
            self.say(by.domid, "rate", "domain %d writes too fast while others have transactions open", by.domid)
            self.held[channel] = time.monotonic() - credit.amount / self._rate()
            return False
        return True

    def _memory(self, channel: Channel) -> int:
        return self._core.store.memory(channel.connection.subject) + channel.unread

    def over_memory(self, channel: Channel, size: int) -> bool:
        """Whether a guest's memory quota has no room for output of this size."""
        limit = channel.connection.subject.quotas["memory"]
        if not channel.connection.pending.has_room(size):
            return True
        return bool(limit) and self._memory(channel) + size >= limit

    def within_memory(self, channel: Channel, op: int, body: bytes) -> tuple[int, bytes]:
        """The reply, or ENOMEM in its place if a guest's memory quota has no room for it."""
        size = HEADER_SIZE + len(body)
        if len(body) <= SMALL_REPLY or not self.over_memory(channel, size):
            return op, body
        by = channel.connection
        limit = by.subject.quotas["memory"]
        self._core.refused(by, QuotaExceeded("ENOMEM", "memory", limit, self._memory(channel) + size))
        return int(Op.ERROR), _ENOMEM

    def charge(self, channel: Channel, kind: int, arguments: tuple[Any, ...]) -> None:
        """A guest's write costs credit while others have transactions open: it may spoil them."""
        open_ones = len(self._core.store.items.transactions) - len(channel.connection.transactions)
        if open_ones <= 0 or not (kind == COMMIT or (kind in CHANGES_TREE and not arguments[0])):
            return
        credit = self._credits.setdefault(channel.connection.domid, Credit())
        self._refill(credit)
        credit.amount -= 1
        channel.lane.credit = credit.word

    def _rate(self) -> float:
        return max(self._least, self._write_rate / max(1, self._rings() - 1))

    def _refill(self, credit: Credit) -> bool:
        now = time.monotonic()
        credit.amount = min(WRITE_BURST, credit.amount + (now - credit.at) * self._rate())
        credit.at = now
        return credit.amount >= 0

    def say(self, domid: int, what: str, text: str, *arguments: object, level: int = logging.WARNING) -> None:
        """A line in the log about what a domain does, not more often than is of use: it can do it all the time."""
        now, told = time.monotonic(), self._told.setdefault(domid, {})
        if now - told.get(what, -WARN_SECONDS) >= WARN_SECONDS:
            told[what] = now
            log.log(level, text, *arguments)
