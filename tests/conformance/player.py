"""Plays recorded scenarios against a running daemon and says what came back, step by step.

Each scenario begins with the same tree and leaves neither nodes nor domains behind.  `scenarios.py` says how they
are written, `stage.py` how one step is kept apart from the next, `special.py` what the steps with @ do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Mapping
from pathlib import Path

from tests.conformance.scenarios import Answer, Scenario, Step, parse
from tests.conformance.special import perform
from tests.conformance.stage import Logs, Stage, op_number
from tests.conformance.wire import Op
from tests.conformance.xen import SimulatedXen

LEFT_BEHIND = ("/local/domain/0", "/nosuch", "/@foo", "/@x")
"""What scenarios make outside of their root."""


class Player:
    """Plays scenarios, one after the other, against the daemon that listens at `path` (and runs on `xen`)."""

    def __init__(self, path: str | Path, xen: SimulatedXen | None) -> None:
        self.path = path
        self.xen = xen

    def play(
        self, scenario: Scenario, instead: Mapping[int, Answer] | None = None
    ) -> Generator[tuple[int, Step, Answer]]:
        """Number, step and actual answer of each recorded step.

        `instead` has the answers that are expected instead of the recorded ones, by number.
        """
        stage = Stage(self.path, self.xen)
        for path in ("/g", "/local/domain"):
            stage.admin.mkdir(path)
        try:
            number = 0
            for step in scenario.steps:
                if step.want is None:
                    self._prepare(stage, step)
                else:
                    stage.want = (instead or {}).get(number, step.want)
                    yield number, step, self._perform(stage, step)
                    number += 1
        finally:
            stage.end()
            for path in (scenario.root, *LEFT_BEHIND):
                stage.admin.ask(Op.RM, path.encode() + b"\0")
            for op, payload in scenario.after:
                stage.admin.ask(op_number(op), parse(payload))
            stage.admin.close()

    def _prepare(self, stage: Stage, step: Step) -> None:
        stage.want = {}
        if step.op.startswith("@"):
            perform(stage, step, defaultdict(list))
        else:
            stage.prepare(step)

    def _perform(self, stage: Stage, step: Step) -> Answer:
        logs: Logs = defaultdict(list)
        if step.op.startswith("@"):
            perform(stage, step, logs)
        else:
            stage.request(step, logs[step.actor])
            stage.barrier(logs)
        return {name: messages for name, messages in logs.items() if messages}
