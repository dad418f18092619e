"""A daemon that starts on a host where domains are there already: it continues from what stands in their rings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conformance.wire import Client, Op, pack, strings
from tests.conformance.xen import RING, Guest, SimulatedXen
from tests.oracle.daemons import OurDaemon, short_run_dir
from tests.oracle.restarting import restarted_inside

WRAPS_SOON = 2**32 - 40
PORT = 7


@pytest.fixture
def run_dir() -> Iterator[Path]:
    with short_run_dir() as folder:
        yield folder


@pytest.fixture
def xen(run_dir: Path) -> SimulatedXen:
    """As the last daemon has left it."""
    daemon = OurDaemon(run_dir)
    daemon.prepare()
    assert daemon.xen_dir is not None
    return SimulatedXen(daemon.xen_dir)


@contextmanager
def serving(run_dir: Path) -> Iterator[OurDaemon]:
    """The next daemon."""
    with OurDaemon(run_dir) as daemon, restarted_inside(daemon):
        yield daemon


def left_over(xen: SimulatedXen, domid: int, *, at: int = 0, request: bytes = b"", event_port: int = PORT) -> Guest:
    """A domain whose ring was served up to index `at` of both directions, with a request that nobody has taken."""
    guest = xen.create(domid, port=PORT)
    for field in ("req_cons", "req_prod", "rsp_cons", "rsp_prod"):
        guest.set_field(field, at)
    guest.set_field("evtchn_port", event_port)
    for offset, byte in enumerate(request):
        guest.page[(at + offset) % RING] = byte
    guest.set_field("req_prod", at + len(request))
    return guest


@pytest.mark.parametrize("at", [0, 1000, WRAPS_SOON])
def test_a_ring_continues_from_its_indices_and_what_is_queued_is_answered(
    run_dir: Path, xen: SimulatedXen, at: int
) -> None:
    guest = left_over(xen, 5, at=at, request=pack(Op.GET_DOMAIN_PATH, b"5\0", req_id=99))
    with serving(run_dir) as daemon, Client(daemon.socket) as client:
        assert guest.reply(99).payload == b"/local/domain/5\0"
        assert client.call(Op.IS_DOMAIN_INTRODUCED, strings(5)) == b"T\0"
        client.mkdir("/local/domain/5")
        client.set_perms("/local/domain/5", "n5")
        for size in (10, 900, 1900):
            guest.write("v", b"x" * size)
            assert guest.read("v") == b"x" * size
        assert (guest.field("error"), guest.field("connection")) == (0, 0)
    guest.close()


def test_a_ring_whose_indices_cannot_be_begins_anew(run_dir: Path, xen: SimulatedXen) -> None:
    guest = left_over(xen, 5)
    guest.set_field("req_prod", 5000)
    with serving(run_dir) as daemon:
        assert daemon.running()
        with Client(daemon.socket) as client:
            client.call(Op.GET_DOMAIN_PATH, b"0\0")
        assert guest.call(Op.GET_DOMAIN_PATH, b"5\0") == b"/local/domain/5\0"
    guest.close()


def test_a_domain_whose_page_names_no_event_channel_waits_for_its_introduction(
    run_dir: Path, xen: SimulatedXen
) -> None:
    guest = left_over(xen, 5, event_port=0)
    with serving(run_dir) as daemon, Client(daemon.socket) as client:
        assert client.call(Op.IS_DOMAIN_INTRODUCED, strings(5)) == b"F\0"
        assert client.call(Op.INTRODUCE, strings(5, 1, PORT)) == b"OK\0"
        assert guest.call(Op.GET_DOMAIN_PATH, b"5\0") == b"/local/domain/5\0"
    guest.close()


def test_the_port_in_the_page_goes_before_the_one_of_the_introduction(run_dir: Path, xen: SimulatedXen) -> None:
    """domain.c: introduce_domain"""
    with serving(run_dir) as daemon, Client(daemon.socket) as client:
        assert client.call(Op.IS_DOMAIN_INTRODUCED, b"6\0") == b"F\0"  # the daemon has seen which domains there are
        guest = xen.create(6, port=9)
        guest.set_field("evtchn_port", 9)
        assert client.call(Op.INTRODUCE, strings(6, 1, PORT)) == b"OK\0"
        assert guest.call(Op.GET_DOMAIN_PATH, b"6\0") == b"/local/domain/6\0"
        guest.close()
