"""Restarts of Logic: what they were for, whom they are blamed on, and what follows from that.

A death at a request whose handler had started counts as a try of that request.  After `OWN_TRIES` deaths by Logic's own
fault, or `KILL_TRIES` by a SIGKILL from outside, the request is *poison* and answered with EIO.  Whoever's request kills
Logic by its own fault is moreover served ever more rarely; everybody else is served at once.
A *planned* restart, which Logic makes itself at the end of a turn, is nobody's fault.

Knows of processes only how they ended.
"""

import enum
import functools
import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Final, NamedTuple

from recovery_box.box import NO_REQUEST, W_ACTIVE, Box
from recovery_box.items import Connection, Table
from recovery_box.lanes import M32, input_consumed
from xenstore_state.store import Store

log = logging.getLogger(__name__)

OWN_TRIES: Final = 2
KILL_TRIES: Final = 5
BACKOFF_FIRST: Final = 0.01
"""Seconds that the cause of a second death in a row is not served; it doubles with each further one."""
BACKOFF_MAX: Final = 5.0
FORGIVEN_AFTER: Final = 30.0
"""Seconds without a death after which one is like the first."""
NOBODY_MAX: Final = 1.0
"""Longest wait, in seconds, before a fork when Logic dies again and again and no request is to blame."""
EVERY_MIN: Final = 0.01
"""Shortest interval of planned restarts, in seconds."""
POLICY: Final = "restart"
"""The setting that says when Logic restarts."""
KEPT: Final = 20
"""Restarts that are remembered one by one."""


class Planned(enum.IntEnum):
    """Exit statuses by which Logic says why it ended in order."""

    STOP = 0
    ASKED = 10
    EVERY = 11
    AFTER = 12
    PER_REQUEST = 13


REASONS: Final = {
    Planned.ASKED: "asked for",
    Planned.EVERY: "its time was over",
    Planned.AFTER: "its requests were served",
    Planned.PER_REQUEST: "it has served somebody alone",
}


ASKED: Final = f"retired, {REASONS[Planned.ASKED]}"
ALONE: Final = f"retired, {REASONS[Planned.PER_REQUEST]}"
"""The one cause that is counted, but not worth a line in the log each time."""


class Policy(NamedTuple):
    """When Logic restarts although nothing has happened to it.  0: never."""

    every: float = 0.0
    """Seconds."""
    after: int = 0
    """Requests."""
    alone: str = ""
    """Who is served by a Logic of its own each time: "all", or only "guests"."""

    @classmethod
    def of(cls, settings: Table[str, int | str]) -> "Policy":
        """The one that is set (`POLICY`); none if that is none, which only a Logic that is not ours says."""
        text = settings.get(POLICY)
        try:
            return _parse(str(text)) if text else cls()
        except ValueError:
            return cls()

    @classmethod
    def parse(cls, text: str) -> "Policy":
        """Reads `every=SECONDS`, `after=REQUESTS`, `per-request`, `per-request=guests`, and `on-crash` and `notify` (both
        always on), joined by commas.

        Raises ValueError.
        """
        every, after, alone = 0.0, 0, ""
        for word in text.split(","):
            name, _, value = word.partition("=")
            if name == "every" and EVERY_MIN <= float(value) < float("inf"):
                every = float(value)
            elif name == "after" and int(value) > 0:
                after = int(value)
            elif name == "per-request" and value in {"", "all", "guests"}:
                alone = value or "all"
            elif word not in {"on-crash", "notify"}:
                raise ValueError(f"{word!r}: expected on-crash, notify, every=SECONDS, after=REQUESTS or per-request")
        return cls(every, after, alone)


_parse: Final = functools.lru_cache(maxsize=1)(Policy.parse)


KINDS: Final = ("planned", "killed", "hung", "failed", "orphaned")
"""Kinds of death: on purpose; by a signal from outside; of standing still; by its own fault; with State."""
_BLAMELESS: Final = frozenset({"killed", "orphaned"})


class Death(NamedTuple):
    """How a Logic ended."""

    cause: str
    """For people."""
    kind: str
    """For counting: one of `KINDS`."""


class Penalty(NamedTuple):
    """How long somebody is not served."""

    deaths: int
    until: float
    """Seconds of the monotonic clock."""


Consequences = tuple[tuple[tuple[int, int, int, int], ...], tuple[tuple[int, int, float], ...]]
"""Tries: (connection id, input position, own deaths, kills) each; penalties: (connection id, deaths, until) each."""
Kept = tuple[dict[str, int], list[str], Consequences]
"""Counters by kind, the last restarts, and consequences."""


class Restarts:
    """All restarts since the daemon's start."""

    def __init__(self, store: Store, box: Box, at: Callable[[int], Connection | None]) -> None:
        """`at` knows who has a slot of the box."""
        self._store = store
        self._at = at
        self._box = box
        self._tries: dict[tuple[int, int], list[int]] = {}
        self._penalties: dict[int, Penalty] = {}
        self._unexplained = 0
        self._last_death = 0.0
        self.counts: Counter[str] = Counter()
        self._last: deque[str] = deque(maxlen=KEPT)

    # ---- blame

    def count(self, death: Death, lived: float) -> float:
        """Draws the consequences of a death; seconds to wait before the next fork."""
        self.counts[death.kind] += 1
        active, self._box.words[W_ACTIVE] = self._box.words[W_ACTIVE], NO_REQUEST
        guilty = None if death.kind == "planned" else self._requester(active)
        tries, self._tries = self._tries, {}
        if guilty is not None:
            number, head = guilty
            counts = tries.get((number, head), [0, 0])
            counts[death.kind in _BLAMELESS] += 1
            self._tries[number, head] = counts
            if death.kind not in _BLAMELESS:
                self._punish(number)
        if death.kind == "planned" or death.kind in _BLAMELESS or guilty is not None or lived > NOBODY_MAX:
            self._unexplained = 0
            return 0.0
        self._unexplained += 1
        return (
            min(NOBODY_MAX, BACKOFF_FIRST * 2 ** min(self._unexplained, 10)) if self._unexplained > OWN_TRIES else 0.0
        )

    def _requester(self, active: int) -> tuple[int, int] | None:
        """Connection and input position of the request at hand, if its handler had started and it was not answered."""
        if active == NO_REQUEST:
            return None
        slot, head = active >> 32, active & M32
        connection = self._at(slot)
        if connection is None or input_consumed(self._box, slot) != head:
            return None
        return connection.id, head

    def _punish(self, number: int) -> None:
        now = time.monotonic()
        before = self._penalties.get(number)
        deaths = 1 if before is None or now > before.until + FORGIVEN_AFTER else before.deaths + 1
        wait = min(BACKOFF_MAX, BACKOFF_FIRST * 2 ** min(deaths - 2, 16)) if deaths > 1 else 0.0
        self._penalties[number] = Penalty(deaths, now + wait)
        connections = self._store.items.connections
        self._penalties = {n: p for n, p in self._penalties.items() if connections.get(n) is not None}

    def poison(self) -> frozenset[tuple[int, int]]:
        """(connection id, input position) of requests that are not to be tried again."""
        return frozenset(r for r, (own, kills) in self._tries.items() if own >= OWN_TRIES or kills >= KILL_TRIES)

    def penalties(self) -> dict[int, float]:
        """Until when connections are not to be served, by connection id, in seconds of the monotonic clock."""
        now = time.monotonic()
        return {number: penalty.until for number, penalty in self._penalties.items() if penalty.until > now}

    # ---- what outlives State

    def consequences(self) -> Consequences:
        """What the last death has led to, as plain data."""
        tries = tuple((number, head, own, kills) for (number, head), (own, kills) in self._tries.items())
        return tries, tuple((number, *penalty) for number, penalty in self._penalties.items())

    def kept(self) -> Kept:
        """Everything, as plain data."""
        return dict(self.counts), list(self._last), self.consequences()

    def restore(self, kept: Kept) -> None:
        """Goes on for a State that had kept this."""
        counts, last, (tries, penalties) = kept
        self.counts.update(counts)
        self._last.extend(last)
        self._tries = {(number, head): [own, kills] for number, head, own, kills in tries}
        self._penalties = {number: Penalty(deaths, until) for number, deaths, until in penalties}

    # ---- what an operator sees

    def note(self, text: str) -> str:
        """Remembers a restart, as far as it is known before the next Logic is forked; how it is remembered."""
        self._last.append(time.strftime("%Y-%m-%d %H:%M:%S ", time.localtime()) + text)
        return self._last[-1]

    def complete(self, text: str) -> str:
        """What else is known of the last one afterwards; how it is remembered then."""
        self._last[-1] += text
        return self._last[-1]

    def report(self) -> str:
        """Counters, and the last restarts."""
        counts = ", ".join(f"{kind} {self.counts[kind]}" for kind in KINDS)
        return f"restarts of Logic: {self.counts.total()} ({counts})\n" + "".join(f"{line}\n" for line in self._last)
