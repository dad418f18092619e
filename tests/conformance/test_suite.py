"""The runner: what it plays where, what it says of a failure, and that a daemon's death is a result."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.conformance.matrix import findings, markdown, page, summary
from tests.conformance.player import Player
from tests.conformance.reasons import load_reasons
from tests.conformance.report import failure, write_junit
from tests.conformance.subject import UnderTest
from tests.conformance.suite import play_all
from tests.conformance.transcript import Case, load, parse_file
from tests.conformance.verdict import Result, Verdict, play_case
from tests.conformance.wire import connect
from tests.conformance.xenbus import XenbusClient
from tests.oracle.build import ROOT
from tests.oracle.daemons import Daemon

EXAMPLES = """\
case right

dom0 WRITE /t/a|1    -> OK
dom0 READ /t/a|      -> = 1

case wrong

dom0 WATCH /t|w|     -> OK
  dom0 event /t|w|
dom0 WRITE /t/a|1    -> OK
dom0 READ /t/a|      -> = 2
  oxenstored (consequence): -> = 3

case known

dom0 READ /t|        -> ENOENT
  ours (consequence): -> =

case ring

dom0-ring WRITE /t|v -> OK
dom0-ring WATCH /t|w| -> OK
  dom0-ring event /t|w|
dom0 WRITE /t/x|1    -> OK
  dom0-ring event /t/x|w|

case page

dom0-ring look       -> ring features=<features> connection=0 error=0 unread=0

case domain

dom5 start
"""


@pytest.fixture
def cases() -> list[Case]:
    return parse_file(EXAMPLES, "examples.txt")


def socket_only(daemon: UnderTest) -> UnderTest:
    """The daemon as somebody else's would be known."""
    return UnderTest(daemon.socket, None)


def test_a_socket_alone_is_asked_for_what_needs_no_rings(daemon: UnderTest, cases: list[Case]) -> None:
    results = {result.case.name: result for result in play_all(socket_only(daemon), cases)}
    assert results["right"].verdict is Verdict.SAME
    assert results["wrong"].verdict is Verdict.WRONG
    assert results["known"].verdict is Verdict.WRONG, "what is known of one daemon excuses no other"
    for name, reason in (("ring", "simulated Xen or xenbus"), ("page", "xenbus"), ("domain", "domains")):
        assert results[name].verdict is Verdict.SKIPPED
        assert reason in results[name].skipped


def test_with_xenbus_domain_0s_ring_is_played_too(daemon: UnderTest, cases: list[Case]) -> None:
    device = UnderTest(daemon.socket, None, "ours", None, lambda: XenbusClient(connect(daemon.socket).detach()))
    verdicts = {result.case.name: result.verdict for result in play_all(device, cases)}
    assert verdicts["known"] is Verdict.KNOWN
    assert verdicts["ring"] is Verdict.SAME
    assert verdicts["page"] is verdicts["domain"] is Verdict.SKIPPED


def test_a_failure_says_what_was_expected_and_what_came(daemon: UnderTest, cases: list[Case]) -> None:
    assert failure(play_case(socket_only(daemon).player(), cases[1])) == "\n".join(
        [
            "examples.txt: wrong",
            "  line 10: dom0 WRITE /t/a|1",
            "    - dom0 OK",
            "    + dom0 event /t/a|w|",
            "    + dom0 OK",
            "  line 11: dom0 READ /t/a|",
            "    - dom0 = 2",
            "    + dom0 = 1",
        ]
    )


TOO_MUCH = """\
case too-much

dom0 WATCH /t|w|      -> OK
  dom0 event /t|w|
dom0-2 WRITE /t/a|1   -> OK
dom0-2 READ /t/a|     -> = 1
dom0-2 READ /t|       -> =
"""


@pytest.mark.parametrize("sparse", [False, True])
def test_what_comes_too_much_is_found_with_fewer_round_trips_too(daemon: UnderTest, sparse: bool) -> None:
    player = Player(daemon.socket, None, sparse=sparse)
    result = play_case(player, parse_file(TOO_MUCH, "examples.txt")[0])
    assert result.verdict is Verdict.WRONG
    (played,) = result.wrong
    assert played.got["dom0"] == ["event /t/a|w|"]
    assert played.step is result.case.steps[3 if sparse else 1]


def test_a_daemon_that_is_gone_is_a_result_and_is_started_again(fresh_daemon: Daemon, cases: list[Case]) -> None:
    results = play_all(UnderTest(fresh_daemon.socket, fresh_daemon), [cases[0], cases[0], cases[2]])
    assert next(results).verdict is Verdict.SAME
    fresh_daemon.stop()
    assert next(results).verdict is Verdict.DIED
    assert next(results).verdict is Verdict.KNOWN


def test_what_a_daemon_is_known_not_to_survive_is_asked_last(daemon: UnderTest, cases: list[Case]) -> None:
    fatal = parse_file("case fatal\n\ndom0 READ /t| -> =\n  c-4.17 (dies): -> dies\n")[0]
    elsewhere = UnderTest(daemon.socket, None, "c")
    assert [result.case.name for result in play_all(elsewhere, [fatal, cases[0]])] == ["right", "fatal"]
    assert [result.case.name for result in play_all(socket_only(daemon), [fatal, cases[0]])] == ["fatal", "right"]


def test_results_as_junit(tmp_path: Path, cases: list[Case]) -> None:
    bad, skipped = Result(cases[1], error="not played to its end: why <not>"), Result(cases[2], skipped="no Xen")
    write_junit(tmp_path / "out.xml", "some daemon", [Result(cases[0]), bad, skipped])
    suite = ET.parse(tmp_path / "out.xml").getroot()
    assert {key: suite.get(key) for key in ("name", "tests", "failures", "skipped")} == {
        "name": "some daemon",
        "tests": "3",
        "failures": "1",
        "skipped": "1",
    }
    assert [case.get("name") for case in suite] == ["right", "wrong", "known"]
    assert "why <not>" in str(suite.findtext("testcase/failure"))


def test_results_as_a_matrix(cases: list[Case]) -> None:
    died = Result(cases[1], died=True, error="gone")
    results = {"one": [Result(cases[0]), died], "other": [Result(cases[0], skipped="no Xen"), Result(cases[1])]}
    assert "| right | `=` | `-` |  |" in markdown(results)
    assert "| wrong | `+` | `=` |  |" in markdown(results)
    assert "| examples (2) | 1 =, 1 + | 1 =, 1 - |" in summary(results)
    assert '<td title="">wrong' in page(results)
    assert "<td class=died>+" in page(results)


def test_findings_name_every_reason_with_an_example() -> None:
    text = findings(load(), load_reasons())
    for reason in load_reasons().values():
        assert f"## {reason.name}\n\n*{reason.who}.*" in text
    assert "unexplained" not in text


def test_the_command_plays_chosen_cases_against_a_socket(daemon: UnderTest, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.conformance",
        "--socket",
        str(daemon.socket),
        "--junit",
        str(tmp_path / "x"),
    ]
    done = subprocess.run([*command, "--like", "ours", "a-path-alone"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 cases, 0 not as expected (1 same" in done.stdout
    assert ET.parse(tmp_path / "x").getroot().get("failures") == "0"
    listed = subprocess.run([*command, "--list", "xsa-72"], cwd=ROOT, capture_output=True, text=True)
    assert listed.stdout.startswith("xsa.txt: xsa-72-")
