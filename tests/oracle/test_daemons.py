"""The rules that `tests.oracle.daemons` and `tests.oracle.build` keep, for every daemon that can run here."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.conformance.wire import Client, Op, strings
from tests.conformance.xen import SimulatedXen
from tests.oracle.build import ROOT, SHIM, Helper, MissingPackage, require
from tests.oracle.daemons import (
    CXenstored,
    Daemon,
    DaemonError,
    OurDaemon,
    OXenstored,
    session_members,
    short_run_dir,
)

pytestmark = pytest.mark.oracle

KINDS = (CXenstored, OXenstored, OurDaemon)


@pytest.fixture(params=KINDS, ids=[kind.name for kind in KINDS])
def kind(request: pytest.FixtureRequest) -> type[Daemon]:
    chosen: type[Daemon] = request.param
    reason = chosen.available()
    if reason is not None:
        pytest.skip(reason)
    return chosen


def _gone(leader: int) -> bool:
    deadline = time.monotonic() + 5
    while session_members(leader) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not session_members(leader)


def test_a_started_daemon_answers_xens_own_clients(kind: type[Daemon]) -> None:
    with short_run_dir() as run_dir, kind(run_dir) as daemon:
        env = daemon.client_env()
        subprocess.run(["xenstore-write", "/a/b", "value"], env=env, check=True)
        result = subprocess.run(["xenstore-read", "/a/b"], env=env, check=True, capture_output=True)
        assert result.stdout == b"value\n"


def test_a_daemon_serves_guests_of_its_simulated_xen_and_domain_0s_ring(kind: type[Daemon]) -> None:
    with short_run_dir() as run_dir, kind(run_dir) as daemon, Client(daemon.socket) as client:
        assert daemon.xen_dir is not None
        xen = SimulatedXen(daemon.xen_dir)
        with xen.create(5) as guest, xen.dom0_ring() as ring:
            client.write("/local/domain/5", b"home")
            client.set_perms("/local/domain/5", "n5")
            client.call(Op.INTRODUCE, strings(5, 1, guest.port))
            guest.write("name", b"value")
            assert ring.read("/local/domain/5/name") == b"value"


def test_our_daemon_serves_sockets_without_any_xen() -> None:
    if OurDaemon.available() is not None:
        pytest.skip(str(OurDaemon.available()))
    with short_run_dir() as run_dir, OurDaemon(run_dir, sockets_only=True) as daemon, Client(daemon.socket) as client:
        assert daemon.xen_dir is None
        client.write("/a", b"1")
        assert client.read("/a") == b"1"


def test_stop_leaves_no_process_even_with_an_open_transaction(kind: type[Daemon]) -> None:
    start_transaction = bytes([6, 0, 0, 0]) + bytes(8) + bytes([1, 0, 0, 0]) + b"\0"
    with short_run_dir() as run_dir, kind(run_dir) as daemon:
        leader = daemon.pid
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(daemon.socket))
            client.sendall(start_transaction)
            assert client.recv(100)
            daemon.stop()
        assert not session_members(leader)


def test_a_daemon_ends_with_the_process_that_started_it(kind: type[Daemon]) -> None:
    script = (
        "import sys, time\n"
        f"from tests.oracle.daemons import {kind.__name__} as Kind\n"
        "daemon = Kind(sys.argv[1])\n"
        "daemon.start()\n"
        "print(daemon.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with short_run_dir() as run_dir:
        command = [sys.executable, "-c", script, str(run_dir)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as parent:
            assert parent.stdout is not None
            leader = int(parent.stdout.readline())
            parent.kill()
        assert _gone(leader)


def test_a_daemon_that_does_not_start_is_reported_with_its_output() -> None:
    if OXenstored.available() is not None:
        pytest.skip(str(OXenstored.available()))
    with short_run_dir() as run_dir, pytest.raises(DaemonError, match="unknown option '--nonsense'"):
        OXenstored(run_dir, ["--nonsense"]).start()


def test_our_daemon_stops_by_itself_on_sigterm() -> None:
    if OurDaemon.available() is not None:
        pytest.skip(str(OurDaemon.available()))
    with short_run_dir() as run_dir, OurDaemon(run_dir) as daemon:
        assert daemon.stop() == 0


def test_an_orphaned_logic_is_ended_by_stop() -> None:
    if OurDaemon.available() is not None:
        pytest.skip(str(OurDaemon.available()))
    with short_run_dir() as run_dir, OurDaemon(run_dir) as daemon:
        leader = daemon.pid
        os.kill(leader, signal.SIGKILL)
        assert daemon.stop() == -signal.SIGKILL
        assert not session_members(leader)


def test_a_run_directory_too_long_for_sockets_is_refused() -> None:
    with pytest.raises(ValueError, match="too long"):
        CXenstored("/tmp/" + "x" * 90)


def test_a_missing_program_is_named_with_its_package() -> None:
    with pytest.raises(MissingPackage, match=r"no-such-program is missing .*xen-utils"):
        require("no-such-program", "xen-utils-4.17")


def test_a_missing_header_is_named_with_its_package() -> None:
    helper = SHIM._replace(headers=("no-such-header.h",))
    assert helper.missing() == "/usr/include/no-such-header.h is missing (Debian package libxen-dev)"


def test_a_helper_is_stale_without_its_output() -> None:
    assert Helper("no-such-helper", SHIM.sources).stale()
