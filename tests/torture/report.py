"""What a torture run has found, phase by phase, and how it is printed."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, Final

from tests.torture.checker import STALE, UNWRITTEN

CLOSED: Final = "closed connections"
TORN: Final = "torn replies"
LOST: Final = "lost writes"
TWICE: Final = "duplicated executions"
MISSED: Final = "watch events missed"
DOUBLED: Final = "watch events doubled"
UNDECIDED: Final = "histories too hard to judge"
WRONG: Final = "other wrong answers"
TROUBLES: Final = (LOST, TWICE, CLOSED, TORN, MISSED, DOUBLED, UNDECIDED, WRONG)

_FAILURES: Final = (
    (CLOSED, r"closed the connection|the connection broke|connection was closed"),
    (TORN, r"torn|answers request|answers nothing|an event with"),
    (TWICE, r"transaction \d+ follows"),
    (LOST, r"nothing came for|in the end, not"),
    (MISSED, r"instead of an event"),
)
_KINDS: Final = {UNWRITTEN: TORN, STALE: LOST, "missed": MISSED, "doubled": DOUBLED, "undecided": UNDECIDED}


def troubles(found: dict[str, Any]) -> Counter[str]:
    """What a report of the clients (`workload`) complains of, by kind.  A guess at the kind; never at whether."""
    counts: Counter[str] = Counter()
    for failure in found["failures"]:
        counts[next((kind for kind, pattern in _FAILURES if re.search(pattern, failure)), WRONG)] += 1
    for kind, count in found["kinds"].items():
        counts[_KINDS[kind]] += count
    return +counts


class Tally:
    """One phase."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seconds = 0.0
        self.kills: Counter[str] = Counter()
        """Deaths by what was killed and how."""
        self.steps: dict[str, int] = {}
        """Deaths by step, for those steps that must be hit."""
        self.least = 0
        """So often each step must have been hit."""
        self.counts: Counter[str] = Counter()
        """Of the clients: requests, operations, changes, events, transactions."""
        self.troubles: Counter[str] = Counter()
        self.details: list[str] = []
        """The first complaints, word for word, and whatever else is wrong."""
        self.notes: list[str] = []

    @property
    def total(self) -> int:
        """Kills."""
        return self.kills.total()

    def add(self, found: dict[str, Any]) -> None:
        """A round of the clients is over."""
        self.counts.update(found["counts"])
        self.counts.update({name: found[name] for name in ("operations", "changes")})
        self.troubles.update(troubles(found))
        self.details += [*found["failures"][:5], *found["rejected"][:3]]

    @property
    def missing(self) -> list[str]:
        """Steps that were hit too seldom."""
        return [step for step, hits in self.steps.items() if hits < self.least]

    @property
    def wrong(self) -> list[str]:
        """Everything that must not be; empty after a good run."""
        found = [f"{kind}: {count}" for kind, count in self.troubles.items()]
        return [*found, *self.details, *(f"too seldom hit: {step}" for step in self.missing)]

    def __str__(self) -> str:
        kills = ", ".join(f"{what} {count}" for what, count in self.kills.items())
        lines = [f"{self.name}: {self.seconds:.0f} s; {self.total} kills ({kills})"]
        shown = ("requests", "operations", "changes", "events", "commits", "conflicts")
        lines.append("  " + ", ".join(f"{self.counts[name]:,} {name}" for name in shown))
        lines += [f"  {note}" for note in self.notes]
        if self.steps:
            lines.append("   kills  step")
            lines += [f"  {hits:6}  {step}" for step, hits in self.steps.items()]
        lines += [f"  WRONG: {line}" for line in self.wrong]
        return "\n".join(lines)


def summary(tallies: list[Tally]) -> str:
    """All phases together."""
    kills: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for tally in tallies:
        kills.update(tally.kills)
        counts.update(tally.counts)
        found.update(tally.troubles)
    rows: list[tuple[str, int]] = [("kills", kills.total()), *((f"  {what}", n) for what, n in kills.items())]
    rows.append(("requests answered", counts["requests"]))
    rows.append(
        (
            "operations in the histories, all accepted" if not found else "operations in the histories",
            counts["operations"],
        )
    )
    rows += [(kind, found[kind]) for kind in TROUBLES]
    return "\n".join(f"  {count:>11,}  {what}" for what, count in rows)
