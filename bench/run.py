"""Carries out the scenarios: starts the daemons, interleaves the rounds, collects figures.

For: `bench.__main__`.
Guarantees: all daemons of a scenario stand ready, and each row is measured in turn, round after round (A B C A B C), so that
a disturbance of the machine meets them alike; a failure costs that daemon's row only: the daemon is started and set up
afresh, and goes on with the next row; a row that takes one daemon long has fewer rounds of it, and every row has when time
runs out; no process is left behind.
Does not know: how a figure is taken, what it means, or how it is shown.
"""

import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from statistics import median
from typing import NamedTuple, Protocol

from bench.load_client import Answer, Declined, LoadFailed
from bench.rows import Row, Scenario, Source, Stage
from bench.subject import Cores, Subject
from protocol.errors import StoreError
from tests.oracle.build import BuildFailed, MissingPackage
from tests.oracle.daemons import CXenstored, Daemon, DaemonError, OurDaemon, OXenstored

DAEMONS: dict[str, type[Daemon]] = {kind.name: kind for kind in (CXenstored, OXenstored, OurDaemon)}

ROW_SECONDS = 12.0
"""When the rounds of one row have taken one daemon so long, there are no more of them."""
SET_UP_AGAIN_SECONDS = 20.0
"""A daemon that took longer to be set up is not set up again after a failure."""

Failures = (
    LoadFailed,
    DaemonError,
    MissingPackage,
    BuildFailed,
    StoreError,
    OSError,
    ValueError,
    subprocess.SubprocessError,
)
"""Whatever may go wrong with one daemon; the others go on."""


class Plan(NamedTuple):
    """What one run does."""

    scenarios: Sequence[Scenario]
    daemons: Sequence[str]
    rounds: int
    seconds: float
    limit: float = float("inf")
    """Seconds after which each row has one round only."""


class SetUp(NamedTuple):
    """How long a set-up command took; no figure, but worth knowing."""

    scenario: str
    command: str
    daemon: str
    seconds: float


class Results:
    """Figures by (row, daemon), one a round; what failed, and what was not to be had."""

    def __init__(self) -> None:
        self.figures: defaultdict[tuple[str, str], list[Answer]] = defaultdict(list)
        self.failures: dict[tuple[str, str], str] = {}
        self.declined: dict[tuple[str, str], str] = {}
        self.unavailable: dict[str, str] = {}
        self.set_ups: list[SetUp] = []
        self.took: dict[str, float] = {}
        """Seconds by scenario."""


def say(text: str) -> None:
    """Progress, for whoever waits."""
    print(text, file=sys.stderr, flush=True)


def run(plan: Plan, results: Results) -> None:
    """Measures everything that the plan names and this machine can run; what there is so far stands in `results`."""
    for name in plan.daemons:
        reason = DAEMONS[name].available()
        if reason is not None:
            results.unavailable[name] = reason
            say(f"{name}: not measured: {reason}")
    names = [name for name in plan.daemons if name not in results.unavailable]
    begun = time.monotonic()
    for scenario in plan.scenarios:
        started = time.monotonic()
        Scene(scenario, plan, results, begun).play(names)
        results.took[scenario.name] = time.monotonic() - started


class Candidate(Protocol):
    """What is measured: a `Subject`."""

    name: str
    out: str | None

    def set_up(self, command: str) -> Answer: ...

    def begin_set_up(self, command: str, swapped: bool = False) -> None: ...

    def finish_set_up(self, command: str) -> Answer: ...

    def figure(self, row: Row, seconds: float) -> Answer: ...

    def explain(self, error: Exception) -> str: ...

    def start_again(self) -> None: ...


class Scene:
    """One scenario being carried out."""

    def __init__(self, scenario: Scenario, plan: Plan, results: Results, begun: float) -> None:
        self._scenario = scenario
        self._plan = plan
        self._results = results
        self._begun = begun

    def play(self, names: Sequence[str]) -> None:
        """Every stage, with a life of each daemon."""
        subjects = []
        with ExitStack() as stack:
            for name in names:
                subject = stack.enter_context(Subject(DAEMONS[name], Cores.chosen(self._scenario.single_core)))
                subjects.append(subject)
                try:
                    subject.start()
                except Failures as error:
                    subject.out = str(error)
                    self._say(f"{name} does not start: {error}")
            for stage in self._scenario.stages:
                self.play_stage(stage, subjects)

    def play_stage(self, stage: Stage, subjects: Sequence[Candidate]) -> None:
        """Sets up, then measures one row after the other."""
        made, declined = self._set_up(stage, subjects)
        groups: dict[tuple[Source, str], list[Row]] = defaultdict(list)
        for row in stage.rows:
            groups[row.source, row.command or row.name].append(row)
        for rows in groups.values():
            for name, reason in declined.items():
                self._note(self._results.declined, rows, name, reason)
            if rows[0].source is Source.SET_UP:
                self._take_from_set_up(rows, made, subjects)
            else:
                self._play_rows(stage, rows, [s for s in subjects if s.name not in declined])
            self._report(rows, subjects)

    def _set_up(self, stage: Stage, subjects: Sequence[Candidate]) -> tuple[dict[str, Answer], dict[str, str]]:
        """What setting up told, and who declined it and why; each by daemon."""
        declined: dict[str, str] = {}
        made: dict[str, Answer] = {}
        subjects = [subject for subject in subjects if stage.set_up and subject.out is None]
        begun = self._begin_together(stage, subjects)
        for subject in subjects:
            try:
                answer = made[subject.name] = self._set_up_twice(stage.set_up, subject, subject.name in begun)
            except Declined as reason:
                declined[subject.name] = str(reason)
                self._say(f"{stage.set_up}: {subject.name}: {reason}")
                continue
            except Failures as error:
                subject.out = subject.explain(error)
                self._say(f"{stage.set_up}: {subject.name} FAILED: {subject.out}")
                continue
            took = float(answer["seconds"])
            self._results.set_ups.append(SetUp(self._scenario.name, stage.set_up, subject.name, took))
            self._say(f"{stage.set_up}: {subject.name} {took:.1f} s")
        return made, declined

    def _begin_together(self, stage: Stage, subjects: Sequence[Candidate]) -> set[str]:
        """Who is being set up from here on, all at once, on both cores; nobody if how long that takes is a row's figure."""
        if any(row.source is Source.SET_UP for row in stage.rows):
            return set()
        begun = set()
        for number, subject in enumerate(subjects):
            with suppress(*Failures):  # will be tried again
                subject.begin_set_up(stage.set_up, swapped=number % 2 == 0)
                begun.add(subject.name)
        return begun

    def _set_up_twice(self, command: str, subject: Candidate, begun: bool) -> Answer:
        """What setting up told; a daemon that fails is replaced once. Raises whatever the second try does."""
        try:
            return subject.finish_set_up(command) if begun else subject.set_up(command)
        except Declined:
            raise
        except Failures as error:
            self._say(f"{command}: {subject.name} fails, once more: {subject.explain(error)}")
            subject.start_again()
            return subject.set_up(command)

    def _take_from_set_up(self, rows: Sequence[Row], made: dict[str, Answer], subjects: Sequence[Candidate]) -> None:
        for subject in subjects:
            for row in rows:
                if subject.name in made:
                    self._results.figures[row.name, subject.name].append(made[subject.name])
                elif subject.out is not None:
                    self._results.failures[row.name, subject.name] = subject.out

    def _play_rows(self, stage: Stage, rows: Sequence[Row], subjects: Sequence[Candidate]) -> None:
        """All rounds of rows that have a command in common."""
        row = rows[0]
        late = time.monotonic() - self._begun > self._plan.limit
        rounds = 1 if late else min(self._plan.rounds, row.most_rounds or self._plan.rounds)
        if row.only_ours:
            self._mark_ours_only(rows, subjects)
            subjects = [subject for subject in subjects if subject.name == OurDaemon.name]
        spent: defaultdict[str, float] = defaultdict(float)
        over: set[str] = set()
        for _ in range(rounds):
            for subject in subjects:
                if subject.name in over or spent[subject.name] > ROW_SECONDS:
                    continue
                started = time.monotonic()
                if not self._play_round(stage, rows, subject):
                    over.add(subject.name)
                spent[subject.name] += time.monotonic() - started

    def _mark_ours_only(self, rows: Sequence[Row], subjects: Sequence[Candidate]) -> None:
        for subject in subjects:
            if subject.name != OurDaemon.name:
                self._note(self._results.declined, rows, subject.name, "has no such thing")

    def _play_round(self, stage: Stage, rows: Sequence[Row], subject: Candidate) -> bool:
        """One figure; whether there may be another one."""
        if subject.out is not None:
            self._note(self._results.failures, rows, subject.name, subject.out)
            return False
        try:
            answer = subject.figure(rows[0], self._plan.seconds)
        except Declined as reason:
            self._note(self._results.declined, rows, subject.name, str(reason))
            return False
        except Failures as error:
            why = subject.explain(error)
            self._note(self._results.failures, rows, subject.name, why)
            self._say(f"{rows[0].name}: {subject.name} FAILED: {why}")
            self._replace(stage, subject, why)
            return False
        for row in rows:
            if row.measure.quantity in answer:
                self._results.figures[row.name, subject.name].append(answer)
            else:
                part = row.measure.quantity.rpartition("_")[0]
                reason_given = str(answer.get(f"{part}_declined", "not in the answer"))
                self._results.declined[row.name, subject.name] = reason_given
        return True

    def _replace(self, stage: Stage, subject: Candidate, why: str) -> None:
        """A fresh daemon in the place of one that has failed, unless setting it up takes too long."""
        last = [s.seconds for s in self._results.set_ups if (s.command, s.daemon) == (stage.set_up, subject.name)]
        if sum(last) > SET_UP_AGAIN_SECONDS:
            subject.out = f"not started again after: {why}"
            return
        try:
            subject.start_again()
            if stage.set_up:
                subject.set_up(stage.set_up)
        except (*Failures, Declined) as error:
            subject.out = f"does not start again: {error}"

    def _note(self, where: dict[tuple[str, str], str], rows: Sequence[Row], name: str, reason: str) -> None:
        for row in rows:
            where[row.name, name] = reason

    def _report(self, rows: Sequence[Row], subjects: Sequence[Candidate]) -> None:
        for row in rows:
            cells = []
            for subject in subjects:
                key = row.name, subject.name
                figures = [float(answer[row.measure.quantity]) for answer in self._results.figures[key]]
                if key in self._results.failures:
                    cells.append(f"{subject.name} FAILED")
                elif figures:
                    cells.append(f"{subject.name} {median(figures):.4g}")
                else:
                    cells.append(f"{subject.name} -")
            self._say(f"{row.name}: {', '.join(cells)} {row.measure.unit}")

    def _say(self, text: str) -> None:
        say(f"{time.monotonic() - self._begun:6.1f} s  {self._scenario.name}: {text}")
