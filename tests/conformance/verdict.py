"""What became of a case on a daemon: played to its end or not, which steps differ, and whether that was expected."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, field
from enum import Enum

from tests.conformance.player import Played, Player
from tests.conformance.transcript import SILENCE, Case
from tests.conformance.wire import Closed

SILENCES = 3
"""So many unexpected silences end a case: each takes long."""


class Verdict(Enum):
    """How a case ended; the value is what the matrix shows."""

    SAME = "="
    """As the case says for all daemons."""
    KNOWN = "d"
    """Different, as the case says for this daemon."""
    WRONG = "X"
    """Different from all that the case says."""
    DIED = "+"
    """The daemon did not survive."""
    SKIPPED = "-"


@dataclass
class Result:
    """A case that was played: its wrong steps, and those that differ as expected."""

    case: Case
    wrong: list[Played] = field(default_factory=list)
    known: list[Played] = field(default_factory=list)
    error: str = ""
    """Why it was not played to its end."""
    died: bool = False
    fatal: bool = False
    """It is known that this daemon dies in it; at which step exactly may vary."""
    skipped: str = ""
    seconds: float = 0.0

    @property
    def verdict(self) -> Verdict:
        if self.skipped:
            return Verdict.SKIPPED
        if self.died:
            return Verdict.DIED
        if self.wrong or self.error:
            return Verdict.WRONG
        return Verdict.KNOWN if self.known else Verdict.SAME

    @property
    def passed(self) -> bool:
        """Nothing happened that the case does not foresee."""
        return self.fatal if self.died else not self.wrong and not self.error

    def reasons(self) -> list[str]:
        """Names of the reasons why it differs as expected, each once."""
        return list(dict.fromkeys(played.expected.reason for played in self.known if played.expected.reason))


def play_case(player: Player, case: Case) -> Result:
    """Plays the case; stops early when the daemon does not answer again and again."""
    result = Result(case, fatal=case.may_end(player.labels))
    begin = time.monotonic()
    silences = 0
    try:
        with closing(player.play(case)) as steps:
            for played in steps:
                if not played.right:
                    result.wrong.append(played)
                    silences += any(SILENCE in messages for messages in played.got.values())
                    if silences == SILENCES:
                        break
                elif played.expected.label and not played.as_all:
                    result.known.append(played)
    except (OSError, Closed, AssertionError) as error:
        result.error = f"not played to its end: {type(error).__name__}: {error}"
    result.seconds = time.monotonic() - begin
    return result
