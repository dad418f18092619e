"""What a State comes back to, or does not: a full disk, another version, descriptors that are not there, a start that failed."""

from __future__ import annotations

import os
import re
import resource
import select
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import xenstore_logic
from recovery_box.box import Box
from recovery_box.fdstore import FdStore
from recovery_box.items import Connection
from tests.conformance.wire import Client, Closed, Op, strings
from tests.faults.faulty import ALWAYS, SHIM, MachineOfFaults
from tests.oracle.daemons import OurDaemon, session_members, short_run_dir
from tests.recovery.test_guardian import PATIENCE, guardian, guardians, wait_until
from tests.recovery.test_restarts import counts
from tests.recovery.test_state_dies import alive, kill, kill_state, state_pid
from tests.unit import test_service
from tests.unit.test_service import Service
from tests.unit.written import State
from xenstore_state.recovered import recover
from xenstore_state.survival import Survival, note_loss
from xenstored.comeback import ComeBack, come_back, inherit
from xenstored.guardian import oom_score

service = test_service.service
faulty = pytest.mark.skipif(SHIM.missing() is not None, reason=str(SHIM.missing()))


def wait_for_end(daemon: OurDaemon) -> None:
    members = session_members(daemon.pid)
    wait_until(lambda: not any(alive(pid) for pid in members), "somebody is left")


def started_for(run_dir: Path) -> list[int]:
    """Processes that have a run directory in their environment."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if b"XENSTORED_RUNDIR=" + os.fsencode(run_dir) in Path("/proc", name, "environ").read_bytes():
                found.append(int(name))
    return found


# ---- a full disk


@pytest.fixture
def machine() -> Iterator[MachineOfFaults]:
    """A daemon that would come back, on a machine that may fail."""
    with short_run_dir() as run_dir, MachineOfFaults(run_dir, ["--guardian"]) as daemon:
        yield daemon


@faulty
def test_who_has_said_that_it_would_not_survive_does_not_come_back_with_old_news(machine: MachineOfFaults) -> None:
    with Client(machine.socket) as client:
        client.write("/early", b"1")
        with machine.faults(no_space=ALWAYS):
            while "would not survive" not in machine.output():
                client.write("/early", b"x" * 3000)
        client.write("/late", b"2")
        assert client.read("/late") == b"2"
        wait_until(lambda: guardians(machine) == [], "a guardian is left")
        assert client.call(Op.CONTROL, strings("restart")) == b"OK\0"
        assert client.read("/late") == b"2"
        assert client.call(Op.CONTROL, strings("restart", "slow")).startswith(b"Nobody would start the daemon again")
        assert client.read("/late") == b"2"
        assert list(machine.run_dir.glob("state-*/*")) == []
        kill(machine.pid)
        with pytest.raises(Closed):
            client.receive()
        wait_for_end(machine)


@faulty
def test_a_state_that_cannot_write_anything_down_comes_back_for_the_last_time(machine: MachineOfFaults) -> None:
    with Client(machine.socket) as client:
        client.write("/kept", b"1")
        with machine.faults(no_space=ALWAYS):
            kill(machine.pid)
            wait_until(lambda: "took over" in machine.output(), "it does not come back")
            assert client.read("/kept") == b"1"
        client.call(Op.CONTROL, strings("restart"))
        client.write("/more", b"2")
        assert "would not survive" in machine.output()
        wait_until(lambda: guardians(machine) == [], "a guardian is left")
        os.kill(state_pid(machine), signal.SIGTERM)
        wait_for_end(machine)


@faulty
def test_a_start_that_fails_leaves_nobody_who_starts_it_later() -> None:
    with short_run_dir() as run_dir:
        daemon = MachineOfFaults(run_dir, ["--guardian"])
        with daemon.faults(no_space=ALWAYS), pytest.raises(Exception, match="ended with status 1"):
            daemon.start()
        time.sleep(0.5)
        assert not daemon.socket.exists()
        assert started_for(run_dir) == []


# ---- another version


def test_a_box_of_another_version_costs_the_connections_and_no_node(tmp_path: Path) -> None:
    root = Path(xenstore_logic.__file__).parent.parent
    for package in ("protocol", "recovery_box", "xenstore_state", "xenstore_logic", "xenstored"):
        shutil.copytree(root / package, tmp_path / package)
    environment = {"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"}
    with short_run_dir() as run_dir, OurDaemon(run_dir, (), environment) as daemon:
        changed = tmp_path / "recovery_box" / "box.py"
        text, count = re.subn(r"^VERSION: Final = \d+", "VERSION: Final = 99", changed.read_text(), flags=re.MULTILINE)
        assert count == 1
        with Client(daemon.socket) as client:
            client.write("/kept", b"1")
            changed.write_text(text)
            client.ask(Op.CONTROL, strings("restart", "slow"))
            with pytest.raises(Closed):
                client.receive()
        with Client(daemon.socket) as client:
            assert client.read("/kept") == b"1"
            kill_state(daemon)
            assert client.read("/kept") == b"1"
        assert "cannot be used" in daemon.output()


# ---- where it was started, and as what


def test_a_program_named_from_where_it_was_started_is_started_again(service: Service) -> None:
    (service.where / "daemon.py").write_text(
        "import runpy\nrunpy.run_module('xenstored', run_name='__main__', alter_sys=False)\n"
    )
    service.environment["XENSTORED_RUNDIR"] = "run"
    command = ["daemon.py", "-D", "--pid-file", str(service.pid_file)]
    service.program = command[:1]
    pid = service.daemon()
    service.ask(11, b"/kept\x001")
    kill(pid)

    def is_back() -> bool:
        return int(service.pid_file.read_text() or 0) != pid

    wait_until(is_back, "it does not come back")
    service.note()
    assert service.ask(2, b"/kept\0") == b"1"
    assert os.readlink(f"/proc/{int(service.pid_file.read_text())}/cwd") == "/"


@pytest.mark.parametrize("words", [("-T", "/tmp/tr\udcff"), ("-T", "/tmp/tr\nx")])
def test_an_unreadable_argument_is_refused(service: Service, words: tuple[str, ...]) -> None:
    done = service.command("-D", *words)
    assert done.returncode == 1
    assert "not a readable text" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("how", ["open", "link"])
def test_what_state_writes_goes_to_no_directory_of_others(service: Service, how: str) -> None:
    service.daemon()
    service.end()
    wait_until(lambda: not service.socket.exists(), "it does not end")
    found = come_back(str(service.run), inherit())
    found.box.unlink()
    theirs = Path(found.directory)
    if how == "open":
        theirs.mkdir()
        theirs.chmod(0o777)
    else:
        (service.where / "elsewhere").mkdir(mode=0o700)
        theirs.symlink_to(service.where / "elsewhere")
    try:
        done = service.command("-D", "--pid-file", str(service.pid_file))
        assert done.returncode == 1
        assert "is not ours alone" in done.stderr
    finally:
        theirs.unlink() if how == "link" else theirs.rmdir()


def test_whoever_starts_state_again_has_its_oom_score(daemon: OurDaemon) -> None:
    Path(f"/proc/{daemon.pid}/oom_score_adj").write_text("137")
    wait_until(lambda: oom_score(str(guardian(daemon))) == "137\n", "the guardian has another one")
    kill_state(daemon)
    assert oom_score(str(state_pid(daemon))) == "137\n"


def test_sighup_is_nobodys_death() -> None:
    arguments = ["--restart", "per-request"]
    with short_run_dir() as run_dir, OurDaemon(run_dir, arguments) as daemon, Client(daemon.socket) as client:
        for number in range(50):
            client.write("/a", b"%d" % number)
            os.kill(daemon.pid, signal.SIGHUP)
            assert client.read("/a") == b"%d" % number
        assert {kind for kind, count in counts(client).items() if count} == {"planned"}, daemon.output()


def test_accepting_goes_on_although_others_keep_it_busy(daemon: OurDaemon) -> None:
    with Client(daemon.socket) as client:
        limits = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (40, limits[1]))
        with Client(daemon.socket) as another:
            another.send(Op.READ, b"/\0")
            wait_until(lambda: "no more connections" in daemon.output(), "it accepts")
            resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, limits)
            deadline = time.monotonic() + PATIENCE
            while not select.select([another.sock], [], [], 0.2)[0]:
                client.write("/busy")
                assert time.monotonic() < deadline, "it does not accept again"


# ---- what does not fit together


class Noted(Survival):
    """What would be written down."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def hung_up(self, connection: Connection) -> None:
        self.said.append(connection.id)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    """What a State has written down that had one connection."""
    made = State(tmp_path)
    yield made
    made.close()


def test_that_a_connection_has_no_descriptor_any_more_is_written_down(state: State) -> None:
    state.accept()
    recovered = recover(state.directory)
    assert recovered is not None
    survival = Noted()
    box = Box(os.path.join(state.directory, "box"), 16)
    ComeBack(state.directory, recovered, box, -1).match_connections({101: "c"}, survival)
    assert survival.said == [2]
    assert [connection.id for connection in recovered.store.items.connections] == [1]


def test_connections_that_were_given_up_do_not_come_back(state: State) -> None:
    def connections() -> list[int]:
        recovered = recover(state.directory)
        assert recovered is not None
        assert recovered.complete is bool(recovered.store.items.connections)
        return [connection.id for connection in recovered.store.items.connections]

    assert connections() == [1]
    note_loss(state.directory)
    assert connections() == []
    survival = Survival(state.directory, FdStore(state.theirs), complete=False)
    survival.look_after(state.store, state.sequence, lambda: state.more)
    assert connections() == [1], "there is a checkpoint of what came after"
