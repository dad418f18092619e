"""Deliberately broken builds: each leaves out one thing on which recovery rests, and must not pass.

Every one is a patch of the running daemon's classes, and most have a crash of their own at the place that it opens; without
crashes they behave like the real one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from recovery_box.journal import Producer
from recovery_box.lanes import Lane
from tests.torture.injections import Injector, before
from tests.torture.logic_steps import use_python
from xenstore_logic.loop import Loop
from xenstore_state.keeper import Keeper
from xenstore_state.tree import Tree

CRASH: Final = "turn over"
"""The step in whose name a build of these crashes at its own place."""


SELDOM: Final = 0.02
"""Seconds between looks at the journal."""


def publish_after_send(injector: Injector) -> None:
    """Replies leave before the records they rest on are published."""
    waiting: list[tuple[Producer, tuple[Any, ...]]] = []
    publish_one, flush, turn = Producer.publish, Loop.flush, Loop.turn

    def later(self: Producer, *arguments: Any) -> None:
        waiting.append((self, arguments))

    def publish() -> None:
        if waiting:
            injector.at(CRASH)
        for producer, arguments in waiting:
            publish_one(producer, *arguments)
        waiting.clear()

    def flushed(self: Loop) -> None:
        flush(self)
        publish()

    def turned(self: Loop, *arguments: Any) -> None:
        turn(self, *arguments)
        publish()

    Producer.publish = later  # type: ignore[method-assign,assignment]
    Loop.flush = flushed  # type: ignore[method-assign]
    Loop.turn = turned  # type: ignore[method-assign,assignment]


def region_not_filled(injector: Injector) -> None:
    """A request is marked as answered before its reply stands in the region."""
    use_python()

    def answer(self: Lane, reply: bytes, head: int) -> None:
        made = self.made
        self.publish(head, (made + len(reply)) & 0xFFFFFFFF)
        injector.at(CRASH)
        self.put(reply, made)

    Lane.answer = answer  # type: ignore[method-assign]


def positions_packed(injector: Injector) -> None:
    """Positions are stored as `struct.pack_into` stores: the target is cleared first, and filled then."""
    use_python()

    def publish(self: Lane, head: int, made: int) -> None:
        self.head, self.made = head, made
        self._words[self._done_word] = 0
        injector.at(CRASH)
        self._words[self._done_word] = head << 32 | made

    def answer(self: Lane, reply: bytes, head: int) -> None:
        made = self.made
        self.put(reply, made)
        self.publish(head, (made + len(reply)) & 0xFFFFFFFF)

    Lane.answer = answer  # type: ignore[method-assign]
    Lane.publish = publish  # type: ignore[method-assign]


def not_drained(injector: Injector) -> None:
    """The next Logic is forked before State has applied what the dead one had published.

    State looks at the journal seldom, so that there mostly is something.  (The intact one would take it when Logic is dead.)
    """
    bury, drain = Keeper._bury, Keeper._drain
    looked = [0.0]

    def seldom(self: Keeper, most: int = 0) -> bool:
        now = time.monotonic()
        if not most or now < looked[0] + SELDOM:
            return False
        looked[0] = now
        return drain(self, most)

    def buried(self: Keeper) -> None:
        looked[0] = time.monotonic()
        bury(self)

    Keeper._drain = seldom  # type: ignore[method-assign]
    Keeper._bury = buried  # type: ignore[method-assign]
    Keeper._answer = lambda self: self.succession.logic.line.answer(self._reply_to)  # type: ignore[assignment]
    before(Loop, "flush", lambda self: injector.at(CRASH, when=self._dirty))


def nothing_undone(injector: Injector) -> None:
    """What a commit had changed before it found a conflict stays."""
    Tree.rollback = lambda self, savepoint: None  # type: ignore[method-assign]


BUILDS: Final[dict[str, Callable[[Injector], None]]] = {
    "publish-after-send": publish_after_send,
    "region-not-filled": region_not_filled,
    "positions-packed": positions_packed,
    "not-drained": not_drained,
    "nothing-undone": nothing_undone,
}
