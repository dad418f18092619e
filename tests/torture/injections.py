"""Crashes at named steps: where a process of the daemon may be made to kill itself, and the machinery for it.

An `Injector` lives in every process of a daemon that `launcher` has started; the patches (`logic_steps`, `state_steps`)
call it at each step.  A process is armed when it begins its part: each of the steps that were hit least gets a number of
times to be passed, and the first one at which that is used up kills the process with SIGKILL, after a line in a file has
said which.  Nobody dies while there is no such file.
Knows nothing of what the steps are between; production code knows nothing of any of this.
"""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

EARLY: Final = b"early"
"""Marks a death of State before it served; after three in a row the daemon gives up what it knew, as it should."""


class Step(NamedTuple):
    """A row of the table."""

    role: str
    """Whose: `logic` or `state`."""
    passes: int
    """How often it is passed, at most, before the process dies there."""


# What each text means is in `logic_steps` and `state_steps`, under the same text.
LOGIC: Final = {
    "forked, nothing done": Step("logic", 1),
    "what a death had left was taken up, nothing served": Step("logic", 1),
    "in recvmmsg: bytes there, result not seen": Step("logic", 60),
    "received, handler not started": Step("logic", 60),
    "before the request is applied": Step("logic", 300),
    "applied, nothing published": Step("logic", 100),
    "half of a record copied": Step("logic", 100),
    "record copied, its index not stored": Step("logic", 100),
    "published, output in no region": Step("logic", 100),
    "half of a reply copied": Step("logic", 300),
    "reply copied, not marked as answered": Step("logic", 300),
    "output for one of several connections made": Step("logic", 30),
    "answered, nothing sent": Step("logic", 30),
    "in sendmmsg: nothing sent yet": Step("logic", 60),
    "in sendmmsg: half sent, result not seen": Step("logic", 60),
    "in sendmmsg: all sent, result not seen": Step("logic", 60),
    "half-way through a batch: some connections served": Step("logic", 20),
    "half-way through a batch: some output sent": Step("logic", 20),
    "turn over": Step("logic", 20),
    "closing: hung up, not published": Step("logic", 1),
    "closing: published, descriptor open": Step("logic", 1),
    "descriptor waits, not taken": Step("logic", 1),
    "descriptor taken, connection not known": Step("logic", 1),
}
STATE: Final = {
    "accepted, not in custody": Step("state", 10),
    "in custody, not written down": Step("state", 10),
    "written down, not handed over": Step("state", 10),
    "handed over, not in the store": Step("state", 10),
    "record applied, not in the ledger": Step("state", 400),
    "in the ledger, not valid there": Step("state", 400),
    "in the ledger, still in the journal": Step("state", 400),
    "Logic is dead and reaped, journal not drained": Step("state", 1),
    "journal drained, no Logic": Step("state", 1),
    "about to fork": Step("state", 2),
    "forked, Logic on its own": Step("state", 2),
    "new ledger there, not begun": Step("state", 1),
    "new ledger begun, checkpoint not": Step("state", 1),
    "a checkpoint is being written": Step("state", 1),
    "with half a checkpoint, together with its writer": Step("state", 1),
    "checkpoint whole, what it replaces still there": Step("state", 1),
}
STEPS: Final = LOGIC | STATE


class Injector:
    """One process's; a fork has its parent's until it is armed itself."""

    def __init__(self, file: Path, seed: int, steps: list[str]) -> None:
        self._file = file
        self._seed = seed
        self._steps = steps
        self._left: dict[str, int] = {}
        self._early = self._served = False

    def arm(self, role: str) -> None:
        """The process begins to play this part: which steps it may die at, after how many passes."""
        rng = random.Random(f"{self._seed} {os.getpid()}")
        own = [step for step in self._steps if STEPS[step].role == role]
        lines = self._file.read_bytes().splitlines() if self._file.exists() else []
        hits = hits_of(lines)
        least = min((hits[step] for step in own), default=0)
        self._early = role == "state" and not self._served
        if self._early and lines and lines[-1].endswith(EARLY):
            return  # until it serves
        self._left = {
            step: rng.randrange(1, STEPS[step].passes + 1) for step in own if hits[step] <= least or rng.random() < 0.02
        }

    def serving(self) -> None:
        """State serves: from now on its death is no early one.  The first State is armed only now."""
        self._early, self._served = False, True
        if not self._left:
            self.arm("state")

    def due(self, step: str) -> bool:
        """Whether this pass is the last."""
        left = self._left.get(step)
        if left is None or not os.path.exists(self._file):
            return False
        self._left[step] = left - 1
        return left <= 1

    def at(self, step: str, *, when: object = True) -> None:
        """The process is at a step, and dies there if it is due.  Without `when` it is not at that step."""
        if when and self.due(step):
            self.crash(step)

    def crash(self, step: str) -> None:
        """Dies, and says where."""
        fd = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        os.write(fd, step.encode() + (b"\t" + EARLY if self._early else b"") + b"\n")
        os.kill(os.getpid(), signal.SIGKILL)


def hits_of(lines: list[bytes]) -> Counter[str]:
    """How often each step was hit, by the lines of the file."""
    return Counter(line.split(b"\t")[0].decode() for line in lines)


def before(owner: Any, name: str, act: Callable[..., object]) -> None:
    """Has something done before each call of a function; it gets the same arguments."""
    original = getattr(owner, name)

    def patched(*arguments: Any, **named: Any) -> Any:
        act(*arguments, **named)
        return original(*arguments, **named)

    setattr(owner, name, patched)


def after(owner: Any, name: str, act: Callable[..., object]) -> None:
    """Has something done after each call of a function; it gets the result and the arguments."""
    original = getattr(owner, name)

    def patched(*arguments: Any, **named: Any) -> Any:
        result = original(*arguments, **named)
        act(result, *arguments, **named)
        return result

    setattr(owner, name, patched)
