"""The figures that counts are compared with, and the comparison.

For: `python -m bench.counting`, `tests/unit/test_counting.py`.
Guarantees: a section that costs more than its stored figure by more than the tolerance is named; so is one without a stored
figure; a Python version or build without any stored figures is `NothingStored`, never a success.
Does not know: how anything is counted.
"""

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from bench.interpreter import Build

PATH: Final = Path(__file__).with_name("stored.json")
TOLERANCE: Final = 0.1
"""Share of the stored figure. Counts are exact; this is for changes that nobody would call a regression."""
UPDATE: Final = "python -m bench.counting --update"

Counts = Mapping[str, float]


class NothingStored(Exception):
    """No figures for this kind of count, Python version and build."""


class Difference(NamedTuple):
    """A section whose count is not the stored one."""

    section: str
    stored: float | None
    counted: float | None

    def __str__(self) -> str:
        if self.stored is None:
            return f"{self.section}: no stored figure"
        if self.counted is None:
            return f"{self.section}: stored, but not counted any more"
        return f"{self.section}: {self.counted:,.0f}, stored {self.stored:,.0f} ({self.counted / self.stored - 1:+.1%})"


class Comparison(NamedTuple):
    """`worse` has what must be repaired or stored anew; `better` what should be stored anew."""

    worse: list[Difference]
    better: list[Difference]


def key_of(kind: str, build: Build) -> str:
    """Under which name the figures of a kind of count are stored for a build."""
    if kind == "instructions":
        return f"{build.implementation} {build.version}, {build.compiler}, {platform.machine()}, {build.name}"
    minor = ".".join(build.version.split(".")[:2])
    return f"{build.implementation} {minor}, {build.name}"


def stored(kind: str, build: Build, path: Path = PATH) -> Counts:
    """The stored figures. Raises NothingStored."""
    document = json.loads(path.read_text()) if path.exists() else {}
    key = key_of(kind, build)
    try:
        counts: Counts = document[kind][key]
    except KeyError:
        raise NothingStored(f"no {kind} stored for {key}; `{UPDATE}` would store them") from None
    return counts


def store(kind: str, build: Build, counts: Counts, path: Path = PATH) -> None:
    """Replaces the stored figures of one kind and build."""
    document = json.loads(path.read_text()) if path.exists() else {}
    document.setdefault(kind, {})[key_of(kind, build)] = {name: round(count, 1) for name, count in counts.items()}
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


def compare(was: Counts, counted: Counts, tolerance: float = TOLERANCE) -> Comparison:
    """What differs by more than the tolerance, or stands on one side only."""
    worse, better = [], []
    for section in [*was, *(name for name in counted if name not in was)]:
        before, after = was.get(section), counted.get(section)
        difference = Difference(section, before, after)
        if before is None or after is None or after > before * (1 + tolerance):
            worse.append(difference)
        elif after < before * (1 - tolerance):
            better.append(difference)
    return Comparison(worse, better)
