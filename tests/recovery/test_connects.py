"""Connecting never restarts anything, and a restart costs no connection, however many there are."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.conformance.processes import highest_descriptor
from tests.conformance.wire import Client
from tests.oracle.daemons import OurDaemon
from tests.recovery.logic import PATIENCE, kill_logic, restarts, wait_for_restarts

MANY = 1000
DESCRIPTORS = MANY + 200


@pytest.fixture(autouse=True)
def many_descriptors() -> Iterator[None]:
    """This process may open as many files as it needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < DESCRIPTORS:
        pytest.skip(f"only {hard} descriptors are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, DESCRIPTORS), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_thousand_connections_one_after_another_restart_nothing(daemon: OurDaemon) -> None:
    before = daemon.logic_pid()
    for _ in range(MANY):
        with Client(daemon.socket) as client:
            assert client.read("/tool/xenstored") == b""
    assert daemon.logic_pid() == before
    assert restarts(daemon) == []


def test_a_thousand_connections_at_once_restart_nothing_and_survive_a_restart(daemon: OurDaemon) -> None:
    before = daemon.logic_pid()
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(daemon.socket)) for _ in range(MANY)]
        for number, client in enumerate(clients):
            client.write(f"/many/{number}", b"%d" % number)
        assert daemon.logic_pid() == before
        assert restarts(daemon) == []
        for _ in range(3):
            kill_logic(daemon)
            for number, client in enumerate(clients):
                assert client.read(f"/many/{number}") == b"%d" % number
        wait_for_restarts(daemon, 3)
    with Client(daemon.socket) as client:
        assert len(client.directory("/many")) == MANY


def test_without_descriptors_a_logic_that_dies_is_followed_by_another(daemon: OurDaemon) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(Client(daemon.socket))
        limit = highest_descriptor(daemon.pids()) + 4
        for pid in daemon.pids():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))
        for _ in range(12):
            waiting = socket.socket(socket.AF_UNIX)
            stack.callback(waiting.close)
            waiting.settimeout(PATIENCE)
            waiting.connect(str(daemon.socket))
        deadline = time.monotonic() + PATIENCE
        while "no more connections are accepted" not in daemon.output():
            assert time.monotonic() < deadline
            assert first.read("/tool/xenstored") == b""
        for _ in range(5):
            kill_logic(daemon)
            assert first.read("/tool/xenstored") == b""
            assert daemon.running()
