"""Ends that are asked for: SIGTERM to State stops everything cleanly, SIGTERM to Logic only replaces it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conformance.wire import Client, Closed, Op, strings
from tests.oracle.daemons import OurDaemon, session_members, short_run_dir
from tests.recovery.boxview import BoxView
from tests.recovery.logic import PATIENCE, kill_logic, state_stopped, wait_for_logic

STOPPED_WITHIN = 1.5


def box_file(daemon: OurDaemon) -> Path:
    """The recovery box, by its name."""
    for name in os.listdir(f"/proc/{daemon.pid}/fd"):
        target = os.readlink(f"/proc/{daemon.pid}/fd/{name}")
        if os.path.isfile(target) and Path(target).read_bytes()[:8] == b"XOARBOX\0":
            return Path(target)
    raise AssertionError("State has no recovery box open")


def test_sigterm_to_state_stops_both_and_leaves_nothing_behind() -> None:
    with short_run_dir() as run_dir:
        pid_file = run_dir / "pid"
        with OurDaemon(run_dir, ("-F", str(pid_file))) as daemon:
            box, state, logic = box_file(daemon), daemon.pid, daemon.logic_pid()
            assert int(pid_file.read_text()) == state
            with Client(daemon.socket) as client:
                client.write("/a")
                began = time.monotonic()
                assert daemon.stop() == 0
                assert time.monotonic() - began < STOPPED_WITHIN
                with pytest.raises(Closed):
                    client.read("/a")
            assert logic not in session_members(state)
            for left in (daemon.socket, pid_file, run_dir / "logic.pid", box):
                assert not left.exists(), f"{left} is left behind"
            assert "Traceback" not in daemon.output()


def test_sigterm_answers_what_has_been_received(daemon: OurDaemon) -> None:
    with Client(daemon.socket) as client:
        client.write("/a", b"1")
        with state_stopped(daemon):
            ids = [client.send(Op.READ, strings("/a")) for _ in range(100)]
            os.kill(daemon.pid, signal.SIGTERM)
        assert daemon.stop() == 0
        assert [client.reply(req_id).payload for req_id in ids] == [b"1"] * 100


def test_sigterm_right_after_a_kill_stops_cleanly(daemon: OurDaemon) -> None:
    with Client(daemon.socket) as client:
        client.write("/a")
    for _ in range(8):
        kill_logic(daemon)
        began = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began < STOPPED_WITHIN
        assert not daemon.socket.exists()
        daemon.start()


def test_sigterm_while_no_logic_runs_stops_cleanly(daemon: OurDaemon) -> None:
    logic = wait_for_logic(daemon)
    with state_stopped(daemon):
        logic.kill()
        logic.close()
        os.kill(daemon.pid, signal.SIGTERM)
    began = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - began < STOPPED_WITHIN
    assert not daemon.socket.exists()


def test_sigterm_stops_even_a_logic_that_stands_still(daemon: OurDaemon) -> None:
    logic = wait_for_logic(daemon)
    logic.stop()
    logic.close()
    assert daemon.stop() == 0
    assert not daemon.socket.exists()


@pytest.mark.parametrize("policy", ["per-request", "per-request=guests"])
def test_sigterm_stops_a_logic_that_stood_by_for_another_policy(daemon: OurDaemon, policy: str) -> None:
    with Client(daemon.socket) as client:
        time.sleep(0.3)  # until somebody stands by
        client.call(Op.CONTROL, strings("restart-policy", policy))
        time.sleep(0.3)
        began = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began < STOPPED_WITHIN
    assert "did not end in time" not in daemon.output()


def test_sigterm_to_logic_alone_makes_another_one_serve(daemon: OurDaemon) -> None:
    with Client(daemon.socket) as client:
        client.watch("/w", "token")
        tx = client.start()
        client.write("/w/in", tx=tx)
        for _ in range(3):
            before = kill_logic(daemon, signal.SIGTERM)
            client.write("/w/out")
            assert client.events_so_far() == [(b"/w/out", b"token")]
            time.sleep(0.05)  # asked before it serves, it would simply die
        assert client.commit(tx) == "OK"
        assert daemon.logic_pid() != before
    assert "Traceback" not in daemon.output()


def test_sighup_restarts_nothing(daemon: OurDaemon) -> None:
    with Client(daemon.socket) as client:
        client.write("/a")
        before = daemon.logic_pid()
        time.sleep(0.05)
        os.kill(daemon.pid, signal.SIGHUP)
        time.sleep(0.05)
        assert client.read("/a") == b""
        assert daemon.logic_pid() == before
    assert wait_for_logic(daemon).pid == before


def test_the_killed_pid_never_stays_in_the_pid_file(daemon: OurDaemon) -> None:
    for _ in range(5):
        old = kill_logic(daemon)
        with Client(daemon.socket) as client:
            client.read("/tool/xenstored")
        deadline = time.monotonic() + 2
        while daemon.logic_pid() == old:
            assert time.monotonic() < deadline
        assert daemon.logic_pid() == wait_for_logic(daemon).pid


def test_sigterm_to_a_logic_just_forked_stops_nothing_else(daemon: OurDaemon) -> None:
    with Client(daemon.socket) as client:
        for k in range(60):
            killed = wait_for_logic(daemon)
            killed.kill()
            killed.close()
            young = wait_for_logic(daemon, other_than=killed.pid)
            young.signal(signal.SIGTERM)
            young.close()
            client.write("/a", b"%d" % k)
    assert "stopped" not in daemon.output()


def test_a_second_daemon_does_not_take_the_box(daemon: OurDaemon) -> None:
    with Client(daemon.socket) as client, BoxView(daemon.pid) as view:
        client.write("/a", b"1")
        head = view.head
        second = subprocess.run(
            daemon.command(), env=os.environ | daemon.own_env(), capture_output=True, text=True, timeout=PATIENCE
        )
        assert second.returncode == 1
        assert "in use by another daemon" in second.stderr
        assert view.head == head
        assert client.read("/a") == b"1"
    with Client(daemon.socket) as client:
        assert client.read("/a") == b"1"
