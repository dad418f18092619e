"""State's steps, and where in the code they lie: accepting, taking records over, restarting Logic, checkpoints."""

from __future__ import annotations

import os
import signal
from typing import Any, Final

from recovery_box.box import SharedWords
from recovery_box.custody import Handover
from recovery_box.ledger import _FRONT, _W_END, Ledger
from tests.torture.injections import Injector, after, before
from xenstore_state import checkpoint, succession, survival
from xenstore_state.restarts import Restarts
from xenstore_state.succession import Succession
from xenstore_state.survival import ACCEPTED, CONNECTION, Survival

OFTEN: Final = 32 << 10
"""Bytes of a ledger at which another checkpoint is made: far more often than in earnest."""


def checkpoints_often() -> None:
    """Has checkpoints made often."""
    survival.LEDGER_MIN = survival.LEDGER_MAX = OFTEN  # type: ignore[misc]


def install(injector: Injector) -> None:
    """Patches the classes of State."""
    _accepting(injector)
    _records(injector)
    _restarting(injector)
    _checkpoints(injector)
    after(Survival, "ready", lambda *_: injector.serving())


def _accepting(injector: Injector) -> None:
    before(Survival, "keep", lambda _, what, *__: injector.at("accepted, not in custody", when=what == CONNECTION))
    before(Survival, "_note", lambda _, entry: injector.at("in custody, not written down", when=entry[0] == ACCEPTED))
    before(Handover, "give", lambda *_: injector.at("written down, not handed over"))
    after(Handover, "give", lambda *_: injector.at("handed over, not in the store"))


def _records(injector: Injector) -> None:
    ledgers: set[int] = set()

    def store(words: SharedWords, index: int, word: int) -> None:
        if index == _W_END and id(words) in ledgers:
            injector.at("in the ledger, not valid there")
        elif index == _W_END and word == _FRONT:
            injector.at("new ledger there, not begun")

    def add(ledger: Any, *_: object) -> None:
        ledgers.clear()
        ledgers.add(id(ledger._words))

    before(Survival, "record", lambda *_: injector.at("record applied, not in the ledger"))
    after(Survival, "record", lambda *_: injector.at("in the ledger, still in the journal"))
    before(Ledger, "add", add)
    before(SharedWords, "__setitem__", store)


def _restarting(injector: Injector) -> None:
    after(Succession, "reap", lambda *_: injector.at("Logic is dead and reaped, journal not drained"))
    before(Restarts, "count", lambda *_: injector.at("journal drained, no Logic"))
    before(succession, "fork", lambda *_: injector.at("about to fork"))
    after(succession, "fork", lambda pid, *_: injector.at("forked, Logic on its own", when=pid))


def _checkpoints(injector: Injector) -> None:
    def written(path: str, *_: object) -> None:
        """In the writer: half a checkpoint, and both die."""
        step = "with half a checkpoint, together with its writer"
        if os.getpid() != state[0] and injector.due(step):
            with open(path + ".new", "wb") as f:
                f.write(checkpoint.MAGIC)
            os.kill(state[0], signal.SIGKILL)
            injector.crash(step)

    state = [os.getpid()]
    after(survival, "Ledger", lambda *_: injector.at("new ledger begun, checkpoint not"))
    before(checkpoint, "write", written)
    after(Survival, "look_after", lambda _, self, *__: injector.at("a checkpoint is being written", when=self._child))
    before(Survival, "_clean_up", lambda *_: injector.at("checkpoint whole, what it replaces still there"))
