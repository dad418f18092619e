"""The simulated Xen: a directory seen as a hypervisor.  Domains, ports, events and pages, by what stands in the directory."""

import os
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest

from tests.oracle.daemons import short_run_dir
from xenstore_state.hypervisor import PAGE_SIZE, DomainFacts, Hypervisor
from xenstored.simulated_xen import SimulatedXen

EVENT = struct.Struct("=II")
VIRQ = EVENT.pack(0xFFFFFFFF, 3)
PORT = 7
BUFFER = 2048


class Place:
    """The directory, and the hypervisor made of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.xen = SimulatedXen(str(path))
        self.sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.taken = bytearray(BUFFER)

    def close(self) -> None:
        self.sender.close()
        os.close(self.xen.event_fd)
        self.xen._socket.detach()

    def state(self, domid: int, text: str = "") -> Path:
        """A domain exists, in this state."""
        file = self.path / "domains" / str(domid)
        file.write_text(text)
        return file

    def page(self, domid: int, content: bytes = bytes(PAGE_SIZE)) -> Path:
        """A domain's page, another file than any before."""
        file = self.path / f"dom{domid}.ring"
        file.unlink(missing_ok=True)
        file.write_bytes(content)
        return file

    def event(self, data: bytes) -> None:
        """Somebody sends an event."""
        self.sender.sendto(data, str(self.path / "evtchn.sock"))

    @property
    def readable(self) -> bool:
        """Whether events are pending."""
        return bool(select.select([self.xen.event_fd], [], [], 0)[0])

    def take(self) -> list[int]:
        """The ports that are pending, as a Logic takes them."""
        self.taken[:] = bytes(BUFFER)
        with memoryview(self.taken) as view:
            self.xen.receive(view)
            return self.xen.ports(view)


class Ear:
    """A domain's end of an event channel."""

    def __init__(self, path: Path, domid: int, port: int) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(str(path / f"g{domid}.{port}.sock"))

    def heard(self) -> list[tuple[int, ...]]:
        """Events since the last time."""
        events = []
        with suppress(BlockingIOError):
            while True:
                events.append(EVENT.unpack(self.socket.recv(100)))
        return events

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()


@pytest.fixture
def place() -> Iterator[Place]:
    with short_run_dir() as path:
        made = Place(path)
        yield made
        made.close()


def test_it_is_a_hypervisor(place: Place) -> None:
    xen: Hypervisor = place.xen
    xen.before_fork()
    xen.in_logic()
    xen.unmask([1, 2])
    assert xen.event_fd >= 0


def test_a_directory_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        SimulatedXen(str(tmp_path / "file"))


# ---- domains


def test_domain_0_always_exists(place: Place) -> None:
    domain_0 = place.xen.domain(0)
    assert domain_0 is not None
    assert (domain_0.domid, domain_0.shutdown, domain_0.gone) == (0, False, False)
    assert domain_0.unique_id
    assert place.xen.domains() == {0: domain_0}
    assert place.xen.domain(1) is None


@pytest.mark.parametrize(
    ("text", "shutdown"), [("", False), ("shutdown", True), ("crashed", True), ("dying", False), ("nonsense", False)]
)
def test_a_domain_is_what_its_file_says(place: Place, text: str, shutdown: bool) -> None:
    unique_id = place.state(5, text).stat().st_ino
    facts = DomainFacts(5, unique_id, shutdown=shutdown, gone=False)
    assert place.xen.domain(5) == facts
    assert place.xen.domains()[5] == facts


def test_a_state_written_in_place_is_the_same_domain_and_another_file_another_one(place: Place) -> None:
    file = place.state(5)
    first = place.xen.domain(5)
    file.write_text("shutdown")
    second = place.xen.domain(5)
    (place.path / "new").write_text("")
    (place.path / "new").replace(file)
    third = place.xen.domain(5)
    assert first is not None
    assert second is not None
    assert third is not None
    assert (second.unique_id, second.shutdown) == (first.unique_id, True)
    assert third.unique_id != first.unique_id
    file.unlink()
    assert place.xen.domain(5) is None
    assert set(place.xen.domains()) == {0}


def test_files_that_are_no_domains_are_none(place: Place) -> None:
    for name in ("x", "-1", "5.new"):
        (place.path / "domains" / name).write_text("")
    place.state(6)
    assert set(place.xen.domains()) == {0, 6}


def test_a_domain_that_vanishes_while_all_are_looked_at_is_none(place: Place) -> None:
    """Its name was found, and no file any more: here because the name leads nowhere."""
    (place.path / "domains" / "5").symlink_to("gone")
    place.state(6)
    assert set(place.xen.domains()) == {0, 6}


@pytest.mark.parametrize(("text", "port"), [(None, 0), ("", 0), ("x", 0), ("12\n", 12)])
def test_the_port_of_domain_0s_ring(place: Place, text: str | None, port: int) -> None:
    if text is not None:
        (place.path / "dom0.port").write_text(text)
    assert place.xen.xenbus_port() == port


# ---- events


def test_ports_are_numbers_of_their_own_and_never_0(place: Place) -> None:
    ports = [place.xen.bind(5, PORT), place.xen.bind(5, PORT + 1), place.xen.bind(6, PORT)]
    assert len({0, place.xen.domain_port, *ports}) == 5


def test_events_are_taken_at_once_in_order(place: Place) -> None:
    first, second = place.xen.bind(5, PORT), place.xen.bind(6, PORT)
    for data in (EVENT.pack(5, PORT), VIRQ, EVENT.pack(6, PORT), EVENT.pack(5, PORT)):
        place.event(data)
    assert place.take() == [first, place.xen.domain_port, second]
    assert not place.readable
    assert place.take() == []


def test_a_domain_that_sends_many_events_does_not_keep_others_out(place: Place) -> None:
    """Whoever finds the socket full may not ask again: what stands in it is taken at once."""
    first, second = place.xen.bind(5, PORT), place.xen.bind(6, PORT)
    place.sender.setblocking(False)
    sent = 0
    with suppress(BlockingIOError):
        while sent < BUFFER:
            place.event(EVENT.pack(5, PORT))
            sent += 1
    assert place.take() == [first]
    place.event(EVENT.pack(6, PORT))
    assert place.take() == [second]


def test_one_port_can_be_left_to_the_next_logic(place: Place) -> None:
    first, second = place.xen.bind(5, PORT), place.xen.bind(6, PORT)
    for domid in (5, 6, 5):
        place.event(EVENT.pack(domid, PORT))
    assert place.take() == [first, second]
    with memoryview(place.taken) as view:
        place.xen.forget(view, first)
        assert place.xen.ports(view) == [second]


@pytest.mark.parametrize(
    "data", [EVENT.pack(5, PORT + 1), EVENT.pack(6, PORT), EVENT.pack(0xFFFFFFFF, 4), bytes(8), b"\5\0\0", b""]
)
def test_an_event_that_means_nothing_is_taken_and_is_no_port(place: Place, data: bytes) -> None:
    place.xen.bind(5, PORT)
    place.event(data)
    assert place.take() == []
    assert not place.readable


def test_a_buffer_without_events_has_no_ports(place: Place) -> None:
    place.xen.bind(5, PORT)
    assert place.xen.ports(memoryview(bytes(BUFFER))) == []


def test_a_port_that_was_given_up_is_none(place: Place) -> None:
    port = place.xen.bind(5, PORT)
    place.event(EVENT.pack(5, PORT))
    place.xen.unbind(port)
    assert place.take() == []
    place.xen.unbind(port)
    again = place.xen.bind(5, PORT)
    place.event(EVENT.pack(5, PORT))
    assert place.take() == [again]
    place.xen.unbind(port)
    place.event(EVENT.pack(5, PORT))
    assert place.take() == [again]


def test_events_wait_for_the_next_logic(place: Place) -> None:
    """Taken by nobody, they stand in the socket, which outlives each Logic."""
    port = place.xen.bind(5, PORT)
    pid = os.fork()
    if not pid:
        os._exit(0 if place.xen.ports(memoryview(bytes(BUFFER))) == [] else 1)
    os.waitpid(pid, 0)
    place.event(EVENT.pack(5, PORT))
    pid = os.fork()
    if not pid:
        os._exit(0 if place.take() == [port] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert place.take() == []


def test_who_was_forked_before_a_binding_learns_of_it(place: Place) -> None:
    other = SimulatedXen.__new__(SimulatedXen)
    other.__dict__.update(place.xen.__dict__)
    port = place.xen.bind(5, PORT)
    other._ports, other._by_event, other._addresses = {}, {}, {}
    place.event(EVENT.pack(5, PORT))
    buffer = bytearray(BUFFER)
    with memoryview(buffer) as view, Ear(place.path, 5, PORT) as domain:
        other.receive(view)
        assert other.ports(view) == []
        other.know_port(port, 5, PORT)
        assert other.ports(view) == [port]
        other.notify(port)
        assert domain.heard() == [(5, PORT)]


def test_a_notified_domain_gets_its_own_event(place: Place) -> None:
    port = place.xen.bind(5, PORT)
    with Ear(place.path, 5, PORT) as domain, Ear(place.path, 5, PORT + 1) as other:
        place.xen.notify(port)
        place.xen.notify(port)
        assert domain.heard() == [(5, PORT), (5, PORT)]
        assert other.heard() == []


def test_a_domain_that_hears_nothing_keeps_nobody_waiting(place: Place) -> None:
    gone, full = place.xen.bind(5, PORT), place.xen.bind(6, PORT)
    place.xen.notify(gone)
    with Ear(place.path, 6, PORT) as domain:
        for _ in range(5000):
            place.xen.notify(full)
        assert set(domain.heard()) == {(6, PORT)}
        place.xen.notify(full)
        assert domain.heard() == [(6, PORT)]


@pytest.mark.parametrize("port", [0, 2, 99])
def test_notifying_over_a_port_that_is_not_bound_is_refused_at_most(place: Place, port: int) -> None:
    place.xen.unbind(place.xen.bind(5, PORT))
    with Ear(place.path, 5, PORT) as domain:
        with suppress(OSError):
            place.xen.notify(port)
        assert domain.heard() == []


def test_a_new_daemon_takes_the_place_of_one_that_is_gone(place: Place) -> None:
    again = SimulatedXen(str(place.path))
    place.event(VIRQ)
    assert not place.readable
    assert bool(select.select([again.event_fd], [], [], 0)[0])
    again._socket.close()


# ---- pages


def test_a_page_is_shared_both_ways(place: Place) -> None:
    place.state(5)
    file = place.page(5, b"guest" + bytes(PAGE_SIZE - 5))
    page = place.xen.map_ring(5)
    assert (len(page), bytes(page[:5])) == (PAGE_SIZE, b"guest")
    page[:6] = b"daemon"
    assert file.read_bytes()[:6] == b"daemon"
    with file.open("r+b") as f:
        f.write(b"answer")
    assert bytes(page[:6]) == b"answer"
    page.release()
    place.xen.unmap_ring(5)


def test_domain_0s_page_needs_no_file_that_says_it_exists(place: Place) -> None:
    place.page(0)
    with place.xen.map_ring(0) as page:
        assert len(page) == PAGE_SIZE


@pytest.mark.parametrize("what", ["no domain", "no page", "a short page"])
def test_what_is_no_page_of_a_domain_cannot_be_mapped(place: Place, what: str) -> None:
    if what != "no domain":
        place.state(5)
    if what != "no page":
        place.page(5, bytes(PAGE_SIZE if what == "no domain" else PAGE_SIZE - 1))
    with pytest.raises(OSError, match=r".+"):
        place.xen.map_ring(5)


def test_a_page_that_was_let_go_of_is_mapped_anew(place: Place) -> None:
    """The next domain of a number has a page of its own."""
    place.state(5)
    place.page(5, b"old" + bytes(PAGE_SIZE - 3))
    place.xen.map_ring(5).release()
    place.xen.unmap_ring(5)
    place.page(5, b"new" + bytes(PAGE_SIZE - 3))
    with place.xen.map_ring(5) as page:
        assert bytes(page[:3]) == b"new"


def test_a_mapped_page_takes_no_descriptor(place: Place) -> None:
    """It could come to have the number of a connection, and close that in the end."""
    place.state(5)
    place.page(5)
    before = os.listdir("/proc/self/fd")
    place.xen.map_ring(5)
    assert os.listdir("/proc/self/fd") == before
    place.xen.unmap_ring(5)
    assert os.listdir("/proc/self/fd") == before


def test_letting_go_of_pages_again_and_again_leaves_nothing(place: Place) -> None:
    place.state(5)
    place.page(5)

    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count(str(place.path / "dom5.ring"))

    for _ in range(10):
        page = place.xen.map_ring(5)
        words = page.cast("B").cast("I")
        words.release()
        place.xen.unmap_ring(5)  # `page` itself is still referred to
        del page
        place.xen.unmap_ring(5)
    assert mappings() == 0
