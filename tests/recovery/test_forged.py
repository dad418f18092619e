"""A hijacked Logic publishes hostile records (`faulty` has the list): none reaches the tree, and State lives on.

By a guest's request, in a Logic that serves everybody and in one that is pinned, and by a socket's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.conformance.wire import Client, Closed, Op, WireError, pack, strings
from tests.conformance.xen import Guest, SimulatedXen
from tests.oracle.daemons import short_run_dir
from tests.recovery.faulty import FORGERIES, FaultyDaemon
from tests.recovery.test_distrust import dump

LOG = "cannot be true"
PATIENCE = 20.0
GUEST = 5
NODES = 3
"""The guest's quota."""


@contextmanager
def running(policy: str) -> Iterator[tuple[FaultyDaemon, Client, Guest]]:
    with short_run_dir() as run_dir, FaultyDaemon(run_dir, ["--restart", policy]) as daemon:
        assert daemon.xen_dir is not None
        guest = SimulatedXen(daemon.xen_dir).create(GUEST)
        with Client(daemon.socket) as client:
            client.write("/secret", b"kept")
            client.mkdir(f"/local/domain/{GUEST}")
            client.set_perms(f"/local/domain/{GUEST}", f"n{GUEST}")
            client.call(Op.INTRODUCE, strings(GUEST, 1, guest.port))
            client.call(Op.SET_QUOTA, strings(GUEST, "nodes", NODES))
            with suppress(WireError):
                for n in range(NODES + 1):
                    guest.write(f"node{n}")
            assert client.call(Op.GET_QUOTA, strings(GUEST, "nodes")) == b"%d\0" % NODES
            yield daemon, client, guest
        guest.close()


def wait_until_it_is_found(daemon: FaultyDaemon) -> None:
    deadline = time.monotonic() + PATIENCE
    while LOG not in daemon.output():
        assert time.monotonic() < deadline, "State trusts Logic"
        with suppress(Closed), Client(daemon.socket) as probe:  # a record that says nothing closes everybody
            probe.read("/secret")


ALL = [name.decode() for name in FORGERIES]
CASES = [("on-crash", name) for name in ALL if name != "foreigner"]
"""A Logic that serves everybody acts for everybody: against that there is only pinning."""
CASES += [("per-request", name) for name in ("foreigner", "right", "quota", "schema", "root")]


@pytest.mark.parametrize(("policy", "name"), CASES)
def test_by_a_guests_request(name: str, policy: str) -> None:
    with running(policy) as (daemon, client, guest):
        before = dump(client)
        state = daemon.pid
        guest.send_raw(pack(Op.WRITE, strings(f"forge-{name}", "x"), req_id=1))
        wait_until_it_is_found(daemon)
        with Client(daemon.socket) as other:
            assert dump(other) == before
            assert other.call(Op.CONTROL, strings("check")) == b"OK\0"
            assert other.call(Op.GET_QUOTA, strings(GUEST, "nodes")) == b"%d\0" % NODES
            other.write("/after", b"v")
            assert other.read("/after") == b"v"
        assert daemon.pid == state
        assert daemon.running()
        assert "accounts say" not in daemon.output()


@pytest.mark.parametrize("name", ["root", "path", "gibibyte"])
def test_by_a_sockets_request(name: str) -> None:
    with running("on-crash") as (daemon, client, _):
        before = dump(client)
        with Client(daemon.socket) as bad:
            bad.read("/secret")
            with suppress(Closed, WireError):
                bad.write(f"/forge-{name}")
        wait_until_it_is_found(daemon)
        with Client(daemon.socket) as other:
            assert dump(other) == before
            other.write("/after", b"v")
            assert other.call(Op.CONTROL, strings("check")) == b"OK\0"
        assert daemon.running()
        assert "accounts say" not in daemon.output()
