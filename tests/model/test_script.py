"""What the model's harness did in this process, a running daemon answers the same as a conformance case."""

from pathlib import Path

import pytest

from tests.conformance import transcript
from tests.conformance.report import failure
from tests.conformance.subject import UnderTest
from tests.conformance.verdict import play_case
from tests.model import script
from tests.model.harness import InProcess
from tests.oracle.daemons import OurDaemon, short_run_dir


def something() -> InProcess:
    """A bit of everything."""
    world = InProcess((5, 6))
    second = world.connect()
    world.ask(2, 4, 0, b"@releaseDomain\0t\0")
    world.ask(2, 4, 0, b"/\0all\0")
    world.ask(second, 4, 0, b"/local/domain/5\0u\0")
    tx = world.ask(2, 6, 0, b"\0")
    assert isinstance(tx, bytes)
    world.ask(2, 11, int(tx[:-1]), b"a/b\0with | and \\ and \n")
    world.ask(2, 7, int(tx[:-1]), b"T\0")
    world.ask(1, 1, 0, b"/local/domain/5\0")
    world.ask(3, 2, 0, b"/local/domain/5/a\0")
    world.ask(1, 22, 0, b"/local\x000\0")
    world.ask(2, 2, 77, b"a\0")
    world.destroy(6)
    world.disconnect(second)
    return world


def test_a_running_daemon_answers_what_was_noted_in_process() -> None:
    (case,) = transcript.parse_file(something().script.text())
    assert case.alone
    assert {"dom0", "dom0-2", "dom5", "dom6"} <= case.actors()
    with short_run_dir() as run_dir, OurDaemon(run_dir) as daemon:
        result = play_case(UnderTest(daemon.socket, daemon).player(), case)
    assert result.passed, failure(result)


def test_the_last_failure_is_added_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "LAST_FAILURE", tmp_path / "build" / "failure.txt")
    monkeypatch.setattr(script, "ADDED", tmp_path / "found")
    monkeypatch.setattr("sys.argv", ["script", "a-name"])
    something().script.keep()
    script.main()
    (case,) = transcript.parse_file((tmp_path / "found" / "a-name.txt").read_text())
    assert case.name == "a-name"
