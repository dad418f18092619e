"""What a watcher must have been told, given what was changed and what it was told.

The rules, for each path: an event for each change at the most, and none before its change was asked for; no change without
an event behind it.  The daemon may leave an event out only while the same one still waits unsent (as C xenstored does), so
of several changes of one path there may be fewer events, but the last one comes after the last change.  A path changed
once is told exactly once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple


class Change(NamedTuple):
    """A change that was acknowledged; `certain` unless it may have changed nothing, such as a removal of what is not there."""

    path: bytes
    asked: float
    certain: bool


class Event(NamedTuple):
    """One that a watcher was sent."""

    path: bytes
    arrived: float


class Told(NamedTuple):
    """What was wrong."""

    missed: list[bytes]
    doubled: list[bytes]
    """Paths with more events than changes, or with one that came before anybody had asked for the change."""


def check(changes: Iterable[Change], events: Iterable[Event]) -> Told:
    """Compares all changes below a watched node with all events of one watcher; both complete."""
    changed: dict[bytes, list[Change]] = defaultdict(list)
    arrived: dict[bytes, list[float]] = defaultdict(list)
    for change in changes:
        changed[change.path].append(change)
    for event in events:
        arrived[event.path].append(event.arrived)
    missed, doubled = [], []
    for path in changed.keys() | arrived.keys():
        times = sorted(arrived[path])
        asked = sorted(change.asked for change in changed[path])
        if len(times) > len(asked) or any(time < when for time, when in zip(times, asked, strict=False)):
            doubled.append(path)
        last = max((change.asked for change in changed[path] if change.certain), default=None)
        if last is not None and (not times or times[-1] < last):
            missed.append(path)
    return Told(sorted(missed), sorted(doubled))
