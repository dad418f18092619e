"""Plays cases against a running daemon and says what came back, step by step.

Each case begins with an empty node at its root and leaves neither nodes nor domains behind.  `transcript.py` says how
cases are written, `stage.py` how one step is kept apart from the next, `verbs.py` what steps there are besides requests.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.notation import op_number, parse
from tests.conformance.stage import LONG, Logs, Stage, toolstack_request
from tests.conformance.transcript import TOOLSTACK, Answer, Case, Other, Step, agrees
from tests.conformance.verbs import perform
from tests.conformance.wire import Client, Closed, Op, strings
from tests.conformance.xen import SimulatedXen

TREES = ("/g", "/local/domain")
"""There before anything else and kept, so that the order of the children of / is known; a root comes after them."""
HOME = "/local/domain/0"
LEFT_BEHIND = (HOME, "/nosuch", "/@foo", "/@x")
"""What cases make outside of their root; removed unless it was there before, and then what is new in domain 0's home."""
FEATURES = {"ours": 15, "c": 0, "c-head": 14, "oxenstored": 1, "strict": 14}
"""What `<features>` stands for: the features that this kind of daemon publishes in a ring page."""


@dataclass(frozen=True)
class Played:
    """A step and what came of it."""

    step: Step
    expected: Other
    """What this daemon should answer; its label is empty where that is what all should."""
    common: Answer
    """What all should answer."""
    got: Answer

    @property
    def right(self) -> bool:
        """The daemon answered as it should."""
        return agrees(self.got, self.expected.answer)

    @property
    def as_all(self) -> bool:
        """The daemon answered what the case states first, whatever is said about it in particular."""
        return not self.expected.fatal and agrees(self.got, self.common)


class Player:
    """Plays cases, one after the other, against the daemon that listens at `path` (and runs on `xen`).

    `labels` say what kind of daemon it should answer like: a value of `transcript.LIKE`.  With `sparse`, who has got all
    that a request should bring makes no round trip before the next one: what comes to him too much is found later, at the
    latest after the last of a row of requests.
    """

    def __init__(
        self,
        path: str | Path,
        xen: SimulatedXen | None,
        labels: Iterable[str] = (),
        features: int = FEATURES["strict"],
        dom0_ring: Callable[[], Client] | None = None,
        patience: float = LONG,
        *,
        sparse: bool = False,
    ) -> None:
        self.path = path
        self.xen = xen
        self.labels = tuple(labels)
        self.features = features
        self.dom0_ring = dom0_ring
        self.patience = patience
        self.sparse = sparse
        self.gone = False
        """The daemon did not answer any more when the last case was to be cleaned up."""

    def play(self, case: Case) -> Generator[Played]:
        """Each step with what came of it; ends after one that the daemon is expected not to survive."""
        stage = Stage(self.path, self.xen, self.dom0_ring, self.patience)
        for path in TREES:
            stage.admin.mkdir(path)
        stage.admin.ask(Op.RM, strings(case.root))
        stage.admin.mkdir(case.root)
        passing = [path for path in LEFT_BEHIND if not stage.admin.exists(path)]
        at_home = stage.admin.children(HOME)
        try:
            for step, after in itertools.zip_longest(case.steps, case.steps[1:]):
                everybody = not self.sparse or after is None or not after.is_request
                expected = self._for_this_daemon(step.expected(self.labels))
                common = self._for_this_daemon(step.expected(()))
                stage.want = expected.answer
                yield Played(step, expected, common.answer, self._perform(stage, step, everybody))
                if expected.fatal:
                    break
        finally:
            self._clean(stage, case, passing, at_home)

    def _clean(self, stage: Stage, case: Case, passing: list[str], at_home: list[bytes]) -> None:
        admin = stage.admin
        try:
            stage.end()
            for path in (case.root, *passing):
                admin.ask(Op.RM, strings(path))
            for name in admin.children(HOME):
                if name not in at_home:
                    admin.ask(Op.RM, strings(f"{HOME}/{name.decode()}"))
            for request in case.after:
                admin.ask(*toolstack_request(request))
            self.gone = False
        except (Closed, OSError):
            self.gone = True
        finally:
            stage.close()

    def _for_this_daemon(self, expected: Other) -> Other:
        def one(message: str) -> str:
            return message.replace("features=<features>", f"features={self.features}")

        answer = {actor: [one(message) for message in messages] for actor, messages in expected.answer.items()}
        return Other(expected.label, expected.reason, answer)

    def _perform(self, stage: Stage, step: Step, everybody: bool) -> Answer:
        logs: Logs = defaultdict(list)
        if step.actor == TOOLSTACK and step.is_request:
            answer = stage.prepare(op_number(step.verb), parse(step.argument))
            if TOOLSTACK in step.want or not (answer == "OK" or answer.startswith("= ")):
                logs[TOOLSTACK].append(answer)
            stage.barrier(logs, everybody=everybody)
        elif step.is_request:
            stage.request(step, logs[step.actor])
            stage.barrier(logs, everybody=everybody)
        else:
            perform(stage, step, logs)
        return {name: messages for name, messages in logs.items() if messages}
