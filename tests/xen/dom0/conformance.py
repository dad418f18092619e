"""The conformance cases that can be played in a dom0: over the socket, and over domain 0's ring through its kernel.

Nothing else uses the daemon, so that the cases find the store as a daemon makes it.
"""

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Final

from tests.xen.dom0.checks import OURS, C, Job
from tests.xen.dom0.host import SHARE, SOCKET, CheckFailed, Host, tool

JOB = Job("conformance")
SUITE_SECONDS: Final = 240.0
OUTCOME: Final = SHARE / "conformance.xml"
CASES: Final = 200
RING_CASES: Final = 9
"""So many at least can be played here; some hundred more need a simulated Xen."""
LIKE: Final = {OURS: "ours", C: "c"}


@JOB.essential
def the_daemon_is_there(host: Host) -> None:
    host.start_daemon()


@JOB.check
def everything_is_answered_as_the_cases_say(host: Host) -> None:
    suite = ("python3", "-m", "tests.conformance", "--socket", str(SOCKET), "--xenbus")
    like = LIKE[host.settings.under_test]
    said = tool(*suite, "--like", like, "--junit", str(OUTCOME), seconds=SUITE_SECONDS)
    host.note(said.splitlines()[-1])


@JOB.check
def enough_cases_were_played(host: Host) -> None:
    expect_at_least(CASES, played(OUTCOME))


@JOB.check
def domain_0s_ring_was_played_through_the_kernel(host: Host) -> None:
    expect_at_least(RING_CASES, [name for name in played(OUTCOME) if "ring" in name])


def played(outcome: Path) -> list[str]:
    """The names of the cases that were not left out."""
    return [case.attrib["name"] for case in ET.parse(outcome).iter("testcase") if case.find("skipped") is None]


def expect_at_least(least: int, names: list[str]) -> None:
    """Raises if there are fewer."""
    if len(names) < least:
        raise CheckFailed(f"{len(names)} instead of {least}: {', '.join(names)}")
