"""`kill -9` of State, of Logic, and of both at once: the daemon comes back by itself, and nobody notices.

(Under load, and at named steps: `tests.torture`.)
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import xenstore_logic
from tests.conformance.processes import STANDS_BY, descriptors
from tests.conformance.wire import Client, Closed, Op, strings
from tests.conformance.xen import SimulatedXen
from tests.oracle.daemons import OurDaemon, name_of, session_members, short_run_dir

PATIENCE = 20.0
DEATHS = 12
FILES_MAX = 24
"""Of ledgers and checkpoints: two checkpoints, and eight ledgers of a mebibyte behind each, with some to spare."""


@pytest.fixture
def run_dir() -> Iterator[Path]:
    with short_run_dir() as folder:
        yield folder


@pytest.fixture
def daemon(run_dir: Path) -> Iterator[OurDaemon]:
    with OurDaemon(run_dir) as running:
        yield running


def logic_pid(daemon: OurDaemon) -> int:
    """The Logic that runs, once there is one."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with suppress(FileNotFoundError, ValueError):
            pid = int((daemon.run_dir / "logic.pid").read_text())
            if alive(pid):
                return pid
        time.sleep(0.002)
    raise AssertionError(f"no Logic:\n{daemon.output()}")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def state_pid(daemon: OurDaemon) -> int:
    """The parent of the running Logic.  (That of one which has just lost its State is the guardian.)"""
    while True:
        with suppress(FileNotFoundError, ProcessLookupError):
            parent = int(Path(f"/proc/{logic_pid(daemon)}/stat").read_text().rpartition(")")[2].split()[1])
            is_guardian = Path(f"/proc/{parent}/comm").read_text() == "xenstore-guard\n"
            if parent > 1 and not is_guardian and parent in session_members(daemon.pid):
                return parent
        time.sleep(0.002)


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def kill_state(daemon: OurDaemon) -> None:
    """Kills State, and returns when another one has a Logic."""
    old = state_pid(daemon)
    kill(old)
    deadline = time.monotonic() + PATIENCE
    while state_pid(daemon) == old:
        assert time.monotonic() < deadline, f"State does not come back:\n{daemon.output()}"


def test_everything_is_there_again(daemon: OurDaemon) -> None:
    """Connections, watches, transactions, rings, nodes, unsent output, settings."""
    assert daemon.xen_dir is not None
    xen = SimulatedXen(daemon.xen_dir)
    with Client(daemon.socket) as client, Client(daemon.socket) as other:
        guest = xen.create(5)
        client.mkdir("/local/domain/5")
        client.set_perms("/local/domain/5", "n5")
        client.call(Op.INTRODUCE, strings(5, 1, 7))
        guest.watch("data", "guest's")
        client.watch("/w", "token")
        client.write("/w/x", b"value")
        tx = client.start()
        client.write("/tx", b"1", tx=tx)
        assert client.read("/w/x", tx=tx) == b"value"
        doomed = other.start()
        other.read("/w/x", tx=doomed)
        other.write("/other", b"", tx=doomed)
        client.call(Op.CONTROL, strings("quota", "set", "nodes", "77"))
        for round_ in range(3):
            kill_state(daemon)
            assert client.read("/w/x") == b"value"
            guest.write(f"data/{round_}", b"v")
            assert client.read(f"/local/domain/5/data/{round_}") == b"v"
        assert guest.events == [(b"data/%d" % n, b"guest's") for n in range(3)]
        assert b"nodes            :       77 " in client.call(Op.CONTROL, strings("quota"))
        client.forget()
        assert client.commit(tx) == "OK", "nothing that it had read has changed"
        other.write("/w/x", b"another")
        assert other.commit(doomed) == "EAGAIN", "what it had read has changed"
        assert not client.exists("/other")
        guest.close()


def test_a_slow_restart_runs_the_code_that_is_there_now(run_dir: Path, tmp_path: Path) -> None:
    """A copy of the sources is changed under the running daemon: the new code answers on the old connection."""
    root = Path(xenstore_logic.__file__).parent.parent
    for package in ("protocol", "recovery_box", "xenstore_state", "xenstore_logic", "xenstored"):
        shutil.copytree(root / package, tmp_path / package)
    with (
        OurDaemon(run_dir, (), {"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"}) as daemon,
        Client(daemon.socket) as client,
    ):
        client.write("/kept", b"1")
        before = client.call(Op.CONTROL, strings("restarts")).splitlines()[0]
        changed = tmp_path / "xenstore_logic" / "control.py"
        changed.write_text(changed.read_text().replace('OK: Final = "OK"', 'OK: Final = "new"'))
        state = state_pid(daemon)
        assert client.call(Op.CONTROL, strings("restart", "slow")) == b"OK\0"
        for _ in range(3):
            while state_pid(daemon) == state:
                time.sleep(0.01)
            assert client.call(Op.CONTROL, strings("print", "x")) == b"new\0"
            kill(logic_pid(daemon))
        after = client.call(Op.CONTROL, strings("restarts")).splitlines()[0]
        assert before.startswith(b"code: ")
        assert after.startswith(b"code: ")
        assert before != after
        assert client.read("/kept") == b"1"


def test_without_anything_usable_it_begins_empty_and_says_so(daemon: OurDaemon) -> None:
    with Client(daemon.socket) as client:
        client.write("/lost", b"")
        for path in daemon.run_dir.glob("state-*/*"):
            path.write_bytes(b"damaged")
        kill_state(daemon)
        with pytest.raises(Closed):
            client.read("/lost")
    with Client(daemon.socket) as client:
        assert not client.exists("/lost")
    assert "cannot be used" in daemon.output()


def test_it_ends_in_order_and_leaves_nothing(daemon: OurDaemon) -> None:
    kill_state(daemon)
    members = session_members(daemon.pid)
    os.kill(state_pid(daemon), signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE
    while any(alive(pid) for pid in members):
        assert time.monotonic() < deadline, "somebody is left"
        time.sleep(0.01)
    assert list(daemon.run_dir.glob("state-*/*")) == []
    assert not daemon.socket.exists()


def test_nothing_grows_with_its_deaths(daemon: OurDaemon) -> None:
    """Files, descriptors and processes: old ledgers go when a checkpoint is made, which many of them are reason enough for."""
    with Client(daemon.socket) as client:
        found = []
        for n in range(DEATHS):
            client.write("/n", b"%d" % n)
            kill_state(daemon)
            assert client.read("/n") == b"%d" % n
            files = list(daemon.run_dir.glob("state-*/*"))
            living = [pid for pid in session_members(daemon.pid) if name_of(pid) != "xenstore-rest"]
            found.append((descriptors(state_pid(daemon)), len(living), len(files)))
        assert max(fds for fds, *_ in found) - min(fds for fds, *_ in found) <= STANDS_BY + 2, found
        assert max(members for _, members, _ in found) <= 5, found
        assert max(files for *_, files in found) <= FILES_MAX, found
