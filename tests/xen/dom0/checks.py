"""Jobs and their checks: what a job module declares, and how results go back to whoever booted the machine.

Used on both sides: dom0 runs the checks, pytest shows one test for each.  Needs the standard library alone.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from tests.xen.dom0.host import Host

SETTINGS: Final = "settings.json"
RESULTS: Final = "results"
"""A line of JSON for each check that ran: name, outcome, explanation, seconds."""

PASSED: Final = "passed"
FAILED: Final = "failed"
SKIPPED: Final = "skipped"
NOT_RUN: Final = "not run"

OURS: Final = "ours"
C: Final = "c"


class Settings(NamedTuple):
    """What whoever boots the machine may choose."""

    under_test: str = OURS
    """`ours`, or `c` for Debian's C xenstored: shows that a job is right."""
    kills: int = 100


class Result(NamedTuple):
    """How a check came out."""

    outcome: str
    text: str
    seconds: float


class NotApplicable(Exception):
    """The check has no meaning for the daemon under test; says why."""


Body = Callable[["Host"], None]


class Check(NamedTuple):
    """One thing that must be so."""

    name: str
    body: Body
    essential: bool


class Job:
    """Checks that share a boot, in order."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.checks: list[Check] = []

    def check(self, body: Body) -> Body:
        """Decorates a check: it fails by an exception.  Its name says the rule."""
        self.checks.append(Check(body.__name__, body, essential=False))
        return body

    def essential(self, body: Body) -> Body:
        """Decorates a check without which the later ones have no meaning: they are not run if it fails."""
        self.checks.append(Check(body.__name__, body, essential=True))
        return body
