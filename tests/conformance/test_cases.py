"""Every conformance case, played against the daemon under test."""

from __future__ import annotations

import pytest

from tests.conformance.report import failure
from tests.conformance.subject import UnderTest
from tests.conformance.transcript import Case, load
from tests.conformance.verdict import play_case
from tests.oracle.daemons import RESTART_POLICY, Daemon

CASES = load()
TOGETHER = [case for case in CASES if not case.alone]
ALONE = [case for case in CASES if case.alone]
RESUMED = "the next Logic looks at all domains, so one resumed in name only is announced again at once"
NOT_WHILE_RESTARTING = {
    "dom-lifecycle": RESUMED,
    "introducing-releasing-resuming": RESUMED,
    "a-shutdown-is-told-once-until-the-domain-is-resumed-shutdown": RESUMED,
    "a-shutdown-is-told-once-until-the-domain-is-resumed-crashed": RESUMED,
    "a-domain-resumed-and-running-again-can-shut-down-again": RESUMED,
    "the-next-domain-of-a-number-is-not-introduced-end-unnoticed": "the next Logic looks at all domains: nothing is unnoticed",
    "the-next-domain-of-a-number-has-neither-watches-nor-transactions-end-noticed": (
        "a Logic that has just begun may serve a request before it hears of the end that came right before it"
    ),
}
"""Cases whose steps have another outcome when Logic is restarted between them, each with the reason (docs/recovery.md)."""


@pytest.mark.parametrize("case", TOGETHER, ids=lambda case: case.name)
def test_the_daemon_answers_as_the_case_says(daemon: UnderTest, case: Case) -> None:
    if RESTART_POLICY and case.name in NOT_WHILE_RESTARTING:
        pytest.skip(NOT_WHILE_RESTARTING[case.name])
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
