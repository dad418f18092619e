"""Kills Logic again and again, and keeps count of the steps at which it fell.

Three ways.  `at_once` kills without looking, after a random time or as soon as there is a Logic.  `anywhere` stops Logic
wherever it happens to be, looks (`steps`), and kills it there.  `at_a_step` lets it go on if that step has been hit often
compared with others.  Logic's own code stays as fast as ever.
Knows nothing of the clients.
"""

from __future__ import annotations

import random
import statistics
import time
from collections import Counter
from collections.abc import Collection
from typing import Final

from tests.oracle.daemons import OurDaemon
from tests.recovery.boxview import BoxView
from tests.recovery.logic import Gone, restarts, wait_for_logic
from tests.recovery.steps import Step, step_of

LOOKS: Final = 300
"""Times Logic is looked at, at most, before it is killed wherever it is."""
LIFE_MAX: Final = 0.02
"""Longest random life of a Logic, in seconds."""
AHEAD: Final = 3
"""How much oftener than the rarest step a step is hit on purpose."""
BETWEEN_LOOKS: Final = 0.0005


class Killer:
    """One daemon's."""

    def __init__(self, daemon: OurDaemon, view: BoxView, rng: random.Random, idle: Collection[int] = ()) -> None:
        self.daemon = daemon
        self.view = view
        self.rng = rng
        self.idle = idle
        self.hits: Counter[Step] = Counter()
        self.looks: Counter[Step] = Counter()
        self.blind = 0
        """Kills without looking."""
        self._last: tuple[int, int] | None = None

    @property
    def kills(self) -> int:
        return self.blind + self.hits.total()

    def at_once(self, life: float = 0) -> None:
        """Kills Logic when it has lived for this long, in seconds."""
        logic = wait_for_logic(self.daemon)
        try:
            if life:
                time.sleep(life)
            logic.kill()
            self.blind += 1
        except Gone:
            pass
        finally:
            logic.close()

    def anywhere(self) -> None:
        """Kills Logic wherever it is, and notes at which step that was."""
        logic = wait_for_logic(self.daemon)
        try:
            logic.stop()
            step = step_of(self.view, logic.system_call(), self.idle)
            self.looks[step] += 1
            logic.kill()
            self.hits[step] += 1
        except Gone:
            pass
        finally:
            logic.close()

    def at_a_step(self) -> None:
        """Kills Logic at a step that was not hit often yet."""
        logic = wait_for_logic(self.daemon)
        try:
            for look in range(LOOKS):
                time.sleep(self.rng.random() * BETWEEN_LOOKS)
                logic.stop()
                step = step_of(self.view, logic.system_call(), self.idle)
                self.looks[step] += 1
                if look == LOOKS - 1 or self._wanted(step):
                    logic.kill()
                    self.hits[step] += 1
                    return
                logic.go_on()
        except Gone:
            pass
        finally:
            logic.close()

    def _wanted(self, step: Step) -> bool:
        if step is Step.HANDLING:
            # A request that is killed again and again from outside is answered with EIO one day; not this one's business.
            active = self.view.active()
            if active == self._last:
                return False
            self._last = active
        return self.hits[step] <= min(self.hits[s] for s in Step) + AHEAD or self.rng.random() < 0.02

    def table(self) -> str:
        """What fell where."""
        rows = [f"  {self.hits[step]:6}  {self.looks[step]:6}  {step.value}" for step in Step]
        rows.append(f"  {self.blind:6}       -  anywhere: killed without looking")
        downtimes = [float(line.split(" in ")[-1].split()[0]) for line in restarts(self.daemon)]
        rows.append(
            f"  {self.kills:6}          in all; Logic taken over from in {statistics.median(downtimes):.1f} ms (median), "
            f"{max(downtimes):.1f} ms (longest)"
        )
        return "\n".join(["   kills   looks  where Logic fell", *rows])
