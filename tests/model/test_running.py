"""Daemons that run against the reference model (`machine` says what is done)."""

from pathlib import Path
from typing import cast

import pytest
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from tests.model.machine import StoreMachine
from tests.model.running import Running
from tests.model.support import examples
from tests.oracle.daemons import OPTIMIZE, Daemon, OurDaemon, short_run_dir
from tests.recovery.logic import kill_logic


class RunningMachine(StoreMachine):
    """The daemon under test runs all the time; one that has failed is started anew."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        super().__init__()

    def begin_with(self) -> Running:
        self.bring_up()
        return Running(self.daemon, self.guests)

    def bring_up(self) -> None:
        """Unless it runs."""
        if not self.daemon.running():
            self.daemon.stop()
            self.daemon.start()

    def teardown(self) -> None:
        try:
            super().teardown()
        except BaseException:
            self.daemon.stop()
            raise


class OurMachine(RunningMachine):
    """Logic dies now and then, which nobody may notice."""

    @rule()
    def logic_dies(self) -> None:
        assert isinstance(self.daemon, OurDaemon)
        kill_logic(self.daemon)


def play(machine: type[RunningMachine], daemon: Daemon, count: int, *, shrink: bool = True) -> None:
    """So many examples on a daemon."""
    factory = cast(type[RuleBasedStateMachine], lambda: machine(daemon))
    run_state_machine_as_test(factory, settings=examples(count, steps=30, shrink=shrink))


def test_this_projects_daemon_is_as_the_model_says() -> None:
    with short_run_dir() as run_dir, OurDaemon(run_dir) as daemon:
        play(OurMachine, daemon, 15)


def test_without_assertions_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under `python -O`: nothing that the daemon must check is an assertion."""
    monkeypatch.setenv(OPTIMIZE, "1")
    with short_run_dir() as run_dir, OurDaemon(run_dir) as daemon:
        environment = Path(f"/proc/{daemon.serving_pid()}/environ").read_bytes().split(b"\0")
        assert b"PYTHONOPTIMIZE=1" in environment
        play(OurMachine, daemon, 5)
