"""Every conformance case, played against the daemon under test."""

from __future__ import annotations

import pytest

from tests.conformance.report import failure
from tests.conformance.subject import UnderTest
from tests.conformance.transcript import Case, load
from tests.conformance.verdict import play_case
from tests.oracle.daemons import Daemon

CASES = load()
TOGETHER = [case for case in CASES if not case.alone]
ALONE = [case for case in CASES if case.alone]


@pytest.mark.parametrize("case", TOGETHER, ids=lambda case: case.name)
def test_the_daemon_answers_as_the_case_says(daemon: UnderTest, case: Case) -> None:
    player = daemon.player()
    if player.xen is None and (case.needs_rings() or case.needs_domains()):
        pytest.skip("needs guests, and the daemon does not run on a simulated Xen")
    result = play_case(player, case)
    if not result.passed:
        pytest.fail(failure(result), pytrace=False)


@pytest.mark.parametrize("case", ALONE, ids=lambda case: case.name)
def test_a_daemon_of_its_own_answers_as_the_case_says(fresh_daemon: Daemon, case: Case) -> None:
    result = play_case(UnderTest(fresh_daemon.socket, fresh_daemon).player(), case)
    if not result.passed:
        pytest.fail(failure(result), pytrace=False)
