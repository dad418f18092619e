"""Under systemd its file descriptor store takes the place of the guardian (`systemd` is a stand-in for it)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conformance.wire import Client, Closed, Op, strings
from tests.oracle.daemons import OurDaemon, session_members, short_run_dir
from tests.recovery.systemd import Systemd

PATIENCE = 20.0
LOGIC = {"xenstore-logic"}
BESIDE = {"xenstore-next", "xenstore-rest"}


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


class Service:
    """The daemon as a service."""

    def __init__(self, run_dir: Path, most: int) -> None:
        daemon = OurDaemon(run_dir, sockets_only=True)
        daemon.prepare()
        self.run_dir = run_dir
        self.socket = daemon.socket
        environment = {key: value for key, value in os.environ.items() if not key.startswith("XENSTORED_")}
        environment |= daemon.own_env()
        self.systemd = Systemd(
            daemon.command(), environment, run_dir, most=most, cwd=Path(__file__).parents[2], log=daemon.log
        )
        self.output = daemon.output

    def wait_for_ready(self, times: int) -> None:
        wait_until(lambda: self.systemd.said.count("READY=1") == times, f"not READY={times}:\n{self.output()}")

    def kill(self) -> None:
        """Kills State, and returns when the next one is ready."""
        ready = self.systemd.said.count("READY=1")
        with suppress(ProcessLookupError):
            os.kill(self.systemd.pid, signal.SIGKILL)
        self.wait_for_ready(ready + 1)


@pytest.fixture
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    with short_run_dir() as run_dir:
        service = Service(run_dir, getattr(request, "param", 1000))
        with service.systemd:
            service.wait_for_ready(1)
            yield service


def names(service: Service) -> list[str]:
    return sorted(name.partition(".")[0] for name, _ in service.systemd.kept)


def called(service: Service) -> set[str]:
    """Names of all processes but State; one that was forked just now has no name of its own yet."""
    found = set()
    for pid in session_members(service.systemd.pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            if pid != service.systemd.pid:
                found.add(Path(f"/proc/{pid}/comm").read_text().strip())
    return found


def test_state_survives_in_the_hands_of_systemd(service: Service) -> None:
    with Client(service.socket) as client, Client(service.socket) as other:
        other.watch("/w", "token")
        other.forget()
        tx = client.start()
        client.write("/tx", b"1", tx=tx)
        for n in range(3):
            client.write("/w/n", b"%d" % n)
            service.kill()
            assert client.read("/w/n") == b"%d" % n
        assert len(other.events_so_far()) == 3
        assert client.commit(tx) == "OK"
        assert service.systemd.starts == 4
        wait_until(lambda: LOGIC <= called(service) <= LOGIC | BESIDE, "only Logic and those beside it: no guardian")


def test_what_is_closed_is_given_up(service: Service) -> None:
    with Client(service.socket) as client:
        client.write("/a")
        with Client(service.socket) as other:
            other.read("/a")
            wait_until(lambda: names(service) == ["box", "c", "c", "listen"], "not kept")
        wait_until(lambda: names(service) == ["box", "c", "listen"], "not given up")


def test_a_slow_restart_is_an_end_that_systemd_makes_good(service: Service) -> None:
    with Client(service.socket) as client:
        client.write("/a", b"v")
        assert client.call(Op.CONTROL, strings("restart", "slow")) == b"OK\0"
        service.wait_for_ready(2)
        assert client.read("/a") == b"v"


def test_an_orderly_end_leaves_nothing_with_systemd(service: Service) -> None:
    """So that `systemctl restart` begins anew, as it does with any daemon."""
    with Client(service.socket) as client:
        client.write("/a")
        os.kill(service.systemd.pid, signal.SIGTERM)
        service.wait_for_ready(2)
        with pytest.raises(Closed):
            client.read("/a")
    with Client(service.socket) as client:
        assert not client.exists("/a")
    assert "STOPPING=1" in service.systemd.said
    assert service.output().count("State has died") == 0


@pytest.mark.parametrize("service", [4], indirect=True)
def test_connections_beyond_what_is_kept_work_but_end_with_state(service: Service) -> None:
    clients = [Client(service.socket) for _ in range(4)]
    for client in clients:
        client.write("/a", b"v")
    assert "no more than 4 descriptors are kept" in service.output()
    service.kill()
    assert service.systemd.refused == 0
    went_on = []
    for client in clients:
        with suppress(Closed):
            went_on.append(client.read("/a"))
        client.close()
    assert went_on == [b"v"] * 2, "beside box and listener"
