"""Ring lanes: a lane whose peer is a ring page instead of a socket.

The lane's positions in the box are the authority and equal the page's indices; the page's own are their published copy,
which the peer can overwrite.  Bytes are copied first, then the box's word says so, then the page: after a death the next
owner publishes again what the box says (`attach`), and nothing is taken twice, lost or torn.  Where the last owner was not
just writing, the page must still show what it did (`compare`): a peer's forgery is one whoever is the owner.

What is received stands in the input region at once, but counts as taken from the ring only when `release` says so: a peer
whose requests must wait sees its ring fill up.  A peer that writes the daemon's indices, or its own to where they cannot
be, gets `RingIndexError`.  Knows nothing of messages.
"""

from typing import Final

from protocol.ring import REQ_CONS, REQ_PROD, RING_SIZE, RSP_CONS, RSP_PROD, RingIndexError, RingPage
from recovery_box.box import REGION_SIZE, Box
from recovery_box.lanes import _DONE, _MARK, _RENEWED, _SHOWN, M32, MASK, Lane

TAKEN_OVERWRITTEN: Final = "the index of requests taken was overwritten"
GIVEN_OVERWRITTEN: Final = "the index of responses given was overwritten"
_IS_SHOWN: Final = 1 << 32
"""In the word that says up to where requests were shown as taken: something was."""


class RingLane(Lane):
    """One process's handle on the slot of a ring."""

    __slots__ = ("_shown", "news", "page")

    def __init__(self, box: Box, slot: int) -> None:
        super().__init__(box, slot, -1)
        self.page: RingPage | None = None
        """None until the ring is mapped."""
        self._shown = 0
        """Up to where the peer was told that its requests are taken."""
        self.news = False
        """The peer has not been notified of the last changes."""

    def begin(self, consumed: int, made: int) -> None:
        """Makes the positions those of a ring that was in use.  Only before anything else knows of the slot."""
        words = self._words
        words[self._in_word] = consumed << 32
        words[self._out_word] = made << 32
        words[self._done_word] = consumed << 32 | made
        self.fill = self.head = consumed
        self.made = self.sent = made
        self.mark(made)

    @property
    def renewed(self) -> int:
        """When the peer last got a fresh connection, as whoever serves it noted; 0 in a prepared slot."""
        return self._words[self._done_word - _DONE + _RENEWED]

    @renewed.setter
    def renewed(self, renewed: int) -> None:
        self._words[self._done_word - _DONE + _RENEWED] = renewed

    def attach(self, page: RingPage) -> None:
        """The ring is mapped; publishes what the box says of it."""
        self.page = page
        page.produced(self.sent)
        word = self._words[self._done_word - _DONE + _SHOWN]
        shown = word & M32 if word else page.words[REQ_CONS]
        if not word and (shown - self.head) & M32 > (self.fill - self.head) & M32:
            shown = self.head  # the peer's own doing
        self._show(shown)
        self.news = True

    def compare(self, page: RingPage) -> None:
        """Raises `RingIndexError` unless the page shows what was last published.

        Not to be asked where a death may have come between what the box says and its copy in the page.
        """
        word = self._words[self._done_word - _DONE + _SHOWN]
        if word and page.words[REQ_CONS] != word & M32:
            raise RingIndexError(TAKEN_OVERWRITTEN)
        if word and page.words[RSP_PROD] != self.sent:
            raise RingIndexError(GIVEN_OVERWRITTEN)

    def _show(self, position: int) -> None:
        """Tells the peer up to where its requests are taken."""
        page = self.page
        assert page is not None
        self._shown = position
        self._words[self._done_word - _DONE + _SHOWN] = _IS_SHOWN | position
        page.consumed(position)

    def receive(self) -> int:
        """Receives what is there and fits.  Bytes received, -1 when there is nothing.  Raises `RingIndexError`."""
        page, fill = self.page, self.fill
        assert page is not None
        count = page.unread(fill)
        if page.words[REQ_CONS] != self._shown:
            raise RingIndexError(TAKEN_OVERWRITTEN)
        room = REGION_SIZE - ((fill - self.head) & M32)
        count = min(count, room)
        if not count:
            return -1
        data = page.take(fill, count)
        at = fill & MASK
        start = self.in_offset
        if at + count <= REGION_SIZE:
            self._memory[start + at : start + at + count] = data
        else:
            first = REGION_SIZE - at
            self._memory[start + at : start + REGION_SIZE] = data[:first]
            self._memory[start : start + count - first] = data[first:]
        fill = (fill + count) & M32
        self._words[self._in_word] = fill << 32
        self.fill = fill
        return count

    def release(self, *, waiting: bool) -> None:
        """Gives the room of taken requests back; when some of them must wait, only that of those answered.

        Room that was given back stays so: of a request that came in parts it may be more than that.
        """
        page, shown = self.page, self._shown
        ahead = ((self.head if waiting else self.fill) - shown) & M32
        if page is not None and 0 < ahead <= REGION_SIZE:
            self._show((shown + ahead) & M32)
            self.news = True

    def overtaken(self, *, waiting: bool) -> bool:
        """Whether the peer has done something since it was last looked at, for which it may not send an event.

        A peer that puts a request behind others sends an event only if it found them taken, and one that takes output
        only if it found its ring full; so after an index was published, its own must be looked at again.
        """
        page = self.page
        assert page is not None
        if self.made != self.sent:
            return page.words[RSP_PROD] == self.sent and (self.sent - page.words[RSP_CONS]) & M32 < RING_SIZE
        return not waiting and page.words[REQ_PROD] != self.fill and (self.fill - self.head) & M32 < REGION_SIZE

    def skip(self, count: int) -> None:
        """Takes `count` bytes from the ring that nobody will answer; the last thing that is done with it."""
        if self.page is not None:
            self._show((self.head + count) & M32)

    def mark(self, position: int) -> None:
        """Remembers a position up to which output was sent, where something of meaning to the owner begins."""
        self._words[self._done_word - _DONE + _MARK] = position

    def since_mark(self) -> tuple[int, bytes]:
        """The position last marked, and the output made since; none if that is not in the region any more."""
        position = self._words[self._done_word - _DONE + _MARK]
        count = (self.made - position) & M32
        if count > REGION_SIZE or (self.sent - position) & M32 > count:
            return self.made, b""
        at, start = position & MASK, self.out_offset
        first = min(count, REGION_SIZE - at)
        return position, self._memory[start + at : start + at + first] + self._memory[start : start + count - first]

    def ring_room(self) -> int:
        """Bytes that the ring itself can take at once, 0 while output waits for it.  Raises `RingIndexError`."""
        page = self.page
        return page.room(self.sent) if page is not None and self.made == self.sent else 0

    def send(self) -> bool:
        """Puts output into the ring.  True when all of it went; False when the peer must read first.

        Raises `RingIndexError`.
        """
        page = self.page
        assert page is not None
        while True:
            sent = self.sent
            count = (self.made - sent) & M32
            if not count:
                return True
            if page.words[RSP_PROD] != sent:
                raise RingIndexError(GIVEN_OVERWRITTEN)
            at = sent & MASK
            count = min(count, page.room(sent), REGION_SIZE - at)
            if not count:
                return False
            start = self.out_offset + at
            page.give(sent, self._memory[start : start + count])
            sent = (sent + count) & M32
            self._words[self._out_word] = sent << 32
            self.sent = sent
            page.produced(sent)
            self.news = True
