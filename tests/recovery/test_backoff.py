"""Whose requests kill Logic hurts himself alone; a hang is such a death; and all of that is remembered when State dies."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.conformance.wire import Client, Op, WireError, pack, strings
from tests.conformance.xen import Guest, SimulatedXen
from tests.oracle.daemons import short_run_dir
from tests.recovery.faulty import FaultyDaemon
from tests.recovery.test_restarts import counts
from tests.recovery.test_state_dies import kill_state

SECONDS = float(os.environ.get("XOARSTORE_BACKOFF_SECONDS", "4"))
SERVICE = 2.0
"""Seconds within which all but one in a hundred of domain 0's requests must be served meanwhile: a bound of service, not of
speed.  The guest's own requests wait longer before they have killed Logic ten times."""
DEATHS_AT_FIRST, DEATHS_A_SECOND = 12, 4
"""So many deaths the back-off may let a guest cause; without it there would be hundreds."""


@contextmanager
def running(*arguments: str) -> Iterator[tuple[FaultyDaemon, Client, Guest]]:
    with short_run_dir() as run_dir, FaultyDaemon(run_dir, arguments) as daemon, Client(daemon.socket) as client:
        assert daemon.xen_dir is not None
        guest = SimulatedXen(daemon.xen_dir).create(5)
        client.mkdir("/local/domain/5")
        client.set_perms("/local/domain/5", "n5")
        client.call(Op.INTRODUCE, strings(5, 1, guest.port))
        guest.write("data", b"v")
        yield daemon, client, guest
        guest.close()


def test_a_guest_that_crashes_logic_with_every_request_hurts_itself_alone() -> None:
    with running() as (daemon, client, guest):
        took = []
        sent = 0
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            with suppress(TimeoutError):  # it sends whatever its ring takes
                guest.send_raw(pack(Op.WRITE, strings("abort", "x"), req_id=sent), timeout=0.001)
                sent += 1
            began = time.monotonic()
            client.write("/service", b"%d" % sent)
            assert client.read("/service") == b"%d" % sent
            took.append((time.monotonic() - began) / 2)
        slow = statistics.quantiles(took, n=100)[98] if len(took) > 1 else took[0]
        assert slow < SERVICE, f"{len(took)} requests of domain 0, 1 % of them took more than {slow:.2f} s"
        deaths = counts(client)["failed"]
        assert deaths > 3, "the guest kills Logic"
        assert deaths < DEATHS_AT_FIRST + DEATHS_A_SECOND * SECONDS, (
            f"{deaths} deaths: the guest is not served ever more rarely"
        )
        assert "has to wait: its requests kill Logic" in daemon.output()


def test_a_request_that_hangs_is_answered_with_eio_after_its_second_death() -> None:
    with running("--watchdog", "0.5") as (daemon, client, guest):
        with Client(daemon.socket) as hanging:
            req_id = hanging.send(Op.WRITE, strings("/x/hang", "v"))
            reply = hanging.receive(60.0)
        assert (reply.op, reply.req_id, reply.payload) == (Op.ERROR, req_id, b"EIO\0")
        assert counts(client)["hung"] == 2
        assert guest.read("data") == b"v"
        assert "killed Logic again and again" in daemon.output()


def test_deaths_are_still_counted_when_state_has_died_too() -> None:
    with running() as (daemon, client, _):
        with pytest.raises(WireError, match="EIO"), Client(daemon.socket) as bad:
            bad.write("/x/abort")
        before = counts(client)
        assert before["failed"] == 2
        kill_state(daemon)
        after = counts(client)
        assert after["failed"] == 2
        assert after["orphaned"] == 1
        report = client.call(Op.CONTROL, strings("restarts")).decode()
        assert report.count("took over in") == 2
        assert "State has died" in report


def test_events_that_wait_too_long_are_dropped_though_state_has_died() -> None:
    with running("-w", "watch-event=2") as (daemon, client, guest):
        guest.watch("data", "token")
        guest.forget()
        for n in range(200):
            client.write(f"/local/domain/5/data/{n:040}")
        kill_state(daemon)
        deadline = time.monotonic() + 30
        while "events in time" not in daemon.output():
            assert time.monotonic() < deadline, daemon.output()
            client.read("/tool")
            time.sleep(0.05)


def test_guests_one_by_one_and_domain_zero_as_ever() -> None:
    """The mixed use: `per-request=guests`."""
    with running("--restart", "per-request=guests") as (daemon, client, guest):
        client.read("/tool")
        before, logic = counts(client)["planned"], daemon.logic_pid()
        for n in range(50):
            client.write("/many", b"%d" % n)
        assert (counts(client)["planned"], daemon.logic_pid()) == (before, logic), "domain 0's Logic lives long"
        for n in range(5):
            guest.write("data", b"%d" % n)
        assert counts(client)["planned"] >= before + 5
        assert client.read("/local/domain/5/data") == b"4"
