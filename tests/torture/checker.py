"""The checker: is there an order of all operations that explains every answer?

Theory of operation.  A history is linearizable if each operation can be given one instant between question and answer such
that, done one after the other in that order, all get the answers they got (Herlihy and Wing 1990).  What one client did,
it did in its own order, also when it asked for several things at once.  So an order is a way to merge the clients' lists:

    head     the first operation of each client that is not placed yet
    allowed  heads asked before any operation that is not placed yet was answered (these are the earliest answer's heads)
    place    one that is allowed and whose answers fit the state; go back when none does

The search (Wing and Gong 1993) remembers where it has been: how far each list was placed, and in what state (Lowe 2017); it
never tries the same twice.  An allowed operation that only reads, and fits, is placed at once: that takes nothing away from
any other order.  Groups must be small: the search is exponential in how many clients are busy with one group at a time.

No library for Python does this; the well-known ones are for Go and Clojure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Final, NamedTuple

from tests.torture.history import NEVER, READ, WRITE, Operation, State, performed

CONFIGURATIONS_MAX: Final = 100_000
CONFIGURATIONS_EACH: Final = 20
"""Places the search may have been at before it gives up, and for each operation so many more: it mostly needs one or two."""


class TooHard(Exception):
    """The search was given up: the history is neither accepted nor rejected."""


class Verdict(NamedTuple):
    """What the checker says of a history."""

    linearizable: bool
    placed: int
    """Operations that the longest attempt could place."""
    stuck: tuple[Operation, ...] = ()
    """The operations that were allowed there, none of which fits; empty if the history is accepted."""
    state: State = ()
    """The state there."""
    kind: str = ""
    """For people: what it looks like, one of `KINDS`."""


UNWRITTEN: Final = "unwritten"
STALE: Final = "stale"
KINDS: Final = {
    UNWRITTEN: "a value that nobody wrote, unless in a transaction that failed",
    STALE: "an acknowledged change is missing, was made twice, or was seen half",
}


def check(history: Iterable[Operation], initial: State = ()) -> Verdict:
    """Whether a history is linearizable.  Raises `TooHard`."""
    return _Search(history, initial).run()


class _Search:
    def __init__(self, history: Iterable[Operation], initial: State) -> None:
        lists: dict[int, list[Operation]] = defaultdict(list)
        for operation in history:
            lists[operation.client].append(operation)
        self.lists = list(lists.values())
        self.initial = initial
        self.most = CONFIGURATIONS_MAX + CONFIGURATIONS_EACH * sum(map(len, self.lists))
        self.been: set[tuple[tuple[int, ...], State]] = set()

    def allowed(self, at: tuple[int, ...]) -> tuple[list[int], bool]:
        """Whose heads may be placed next, those answered first in front; and whether all that was answered is placed."""
        heads = [(each[i].answered, n) for n, (each, i) in enumerate(zip(self.lists, at, strict=True)) if i < len(each)]
        if not heads:
            return [], True
        heads.sort()
        first = heads[0][0]
        lists = self.lists
        return [n for _, n in heads if lists[n][at[n]].asked <= first], first == NEVER

    def run(self) -> Verdict:
        at, state = (0,) * len(self.lists), self.initial
        back: list[tuple[tuple[int, ...], State]] = []
        best, deepest = -1, (at, state)
        while True:
            at, state, candidates, done = self._place_reads(at, state)
            if done:
                return Verdict(True, sum(at))
            if sum(at) > best:
                best, deepest = sum(at), (at, state)
            for n in reversed(candidates):  # the one that was answered first is tried first
                after = performed(state, self.lists[n][at[n]].steps)
                if after is not None:
                    further = (*at[:n], at[n] + 1, *at[n + 1 :])
                    if (further, after) not in self.been:
                        self.been.add((further, after))
                        back.append((further, after))
            if not back:
                return self._rejected(*deepest)
            if len(self.been) > self.most:
                raise TooHard(f"given up after {len(self.been)} configurations, {best} operations placed")
            at, state = back.pop()

    def _place_reads(self, at: tuple[int, ...], state: State) -> tuple[tuple[int, ...], State, list[int], bool]:
        """Places what only reads and fits, as far as it goes; where that leads, and what is allowed there."""
        while True:
            candidates, done = self.allowed(at)
            if done:
                return at, state, candidates, True
            for n in candidates:
                operation = self.lists[n][at[n]]
                if operation.reads_only and performed(state, operation.steps) is not None:
                    at = (*at[:n], at[n] + 1, *at[n + 1 :])
                    break
            else:
                return at, state, candidates, False

    def _rejected(self, at: tuple[int, ...], state: State) -> Verdict:
        stuck = tuple(self.lists[n][at[n]] for n in self.allowed(at)[0])
        return Verdict(False, sum(at), stuck, state, self._kind(state, stuck))

    def _kind(self, state: State, stuck: tuple[Operation, ...]) -> str:
        """What it looks like.  A guess: the longest attempt need not be the true order."""
        steps = (step for each in self.lists for operation in each for step in operation.steps)
        written = {(step.name, step.value) for step in steps if step.kind == WRITE} | set(self.initial)
        read = [step for operation in stuck for step in operation.steps if step.kind == READ and step.value is not None]
        return UNWRITTEN if any((step.name, step.value) not in written for step in read) else STALE
