"""Plays many cases on one daemon, starts it again when it has died, and says how each case ended."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tests.conformance.subject import UnderTest
from tests.conformance.transcript import LIKE, Case
from tests.conformance.verdict import Result, play_case

LOST = 3
"""After so many cases in a row that found no daemon, there is none."""


def why_not(daemon: UnderTest, case: Case) -> str:
    """Why the case can't be played on this daemon; empty when it can."""
    if daemon.xen is not None:
        return ""
    if case.alone:
        return "changes what others begin with, so a daemon of its own or a simulated Xen"
    if case.needs_domains():
        return "needs domains that begin and end, so a simulated Xen"
    if case.needs_rings() and daemon.dom0_ring is None:
        return "needs domain 0's ring, so a simulated Xen or xenbus"
    if case.needs_rings() and any(step.verb in ("look", "set", "raw", "flood", "kick") for step in case.steps):
        return "needs domain 0's ring page, so a simulated Xen"
    return ""


def play_all(daemon: UnderTest, cases: Iterable[Case]) -> Iterator[Result]:
    """Every case in turn; those that are alone on a daemon of their own, if it can be started from here.

    A daemon that can't is asked last for what it is known not to survive.
    """
    lost = 0
    if daemon.process is None:  # it can't be started again
        cases = sorted(cases, key=lambda case: case.may_end(LIKE[daemon.kind]))
    for case in cases:
        reason = why_not(daemon, case)
        if not reason and lost >= LOST:
            reason = "the daemon is gone"
        if reason:
            yield Result(case, skipped=reason)
            continue
        if daemon.wants_to_be_fresh(case):
            daemon.begin_anew()
        player = daemon.player()
        result = play_case(player, case)
        if result.fatal or result.error or player.gone:
            result.died = not daemon.serves()
        lost = lost + 1 if result.died else 0
        yield result
        if result.died or result.error or case.alone:
            daemon.begin_anew()
            lost = 0 if daemon.process is not None else lost
