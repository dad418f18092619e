"""`LinuxXen` without a Xen: what it asks of the hypervisor and the kernel, byte by byte, and what it makes of their answers.

The fake hypervisor and the recorded ioctls have layouts of their own, written down here from Xen's public headers.
"""

import errno
import fcntl
import os
import struct
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from xenstore_state.hypervisor import PAGE_SIZE, DomainFacts, Hypervisor
from xenstored import linux_xen
from xenstored.linux_xen import BUFFER_SIZE, DomainQueries, LinuxXen, unique_id_of
from xenstored.mapping import Mapping

ADDRESS = 0x7F00_0000_0000
EXISTS, SHUTDOWN, DYING, DEAD = 1, 2, 4, 8
LISTED_DYING, LISTED_SHUTDOWN = 1, 4


@dataclass
class FakeDomain:
    """A domain of the fake hypervisor."""

    handle: bytes = bytes(16)
    flags: int = 0
    state: int = EXISTS
    unique_id: int = 0


def made(**changes: int) -> FakeDomain:
    """A domain with a handle of its own."""
    return FakeDomain(uuid.uuid4().bytes, **changes)


@dataclass
class FakeXen:
    """Answers hypercalls as a hypervisor of some release does."""

    domains: dict[int, FakeDomain]
    version: int = 0x15
    entry_size: int = 112
    stable: bool = False
    calls: list[tuple[int, int]] = field(default_factory=list)
    """(hypercall, interface version) of each."""

    address = ADDRESS

    def __post_init__(self) -> None:
        self.memory = memoryview(bytearray(BUFFER_SIZE))

    def call(self, operation: int) -> int:
        command, version = struct.unpack_from("<II", self.memory)
        self.calls.append((operation, version))
        if (operation, command) == (35, 6):
            return self._list(version)
        if (operation, command) == (36, 90):
            return self._state(version)
        raise OSError(errno.ENOSYS, "no such operation")

    def _list(self, version: int) -> int:
        first, room, address = struct.unpack_from("<HxxIQ", self.memory, 8)
        if version != self.version:
            raise OSError(errno.EACCES, "Permission denied")
        at = address - ADDRESS
        assert at + room * self.entry_size <= BUFFER_SIZE
        listed = [domid for domid in sorted(self.domains) if domid >= first][:room]
        for domid in listed:
            domain = self.domains[domid]
            entry = bytearray(self.entry_size)
            struct.pack_into("<HxxI", entry, 0, domid, domain.flags)
            entry[76:92] = domain.handle
            self.memory[at : at + self.entry_size] = entry
            at += self.entry_size
        struct.pack_into("<I", self.memory, 24, len(listed))
        return 0

    def _state(self, version: int) -> int:
        if not self.stable or version:
            raise OSError(errno.EACCES, "Permission denied")
        (domid,) = struct.unpack_from("<H", self.memory, 8)
        assert not any(self.memory[10:144])
        domain = self.domains.get(domid)
        if domain is not None:
            struct.pack_into("<HHIQ", self.memory, 16, domain.state, 0, 0, domain.unique_id)
        return 0


class TestDomainsOfAHypervisorWithoutUniqueIds:
    def test_one_call_lists_all(self) -> None:
        xen = FakeXen({0: FakeDomain(), 3: made(), 7: made()})
        queries = DomainQueries(xen)
        xen.calls.clear()
        assert sorted(queries.domains()) == [0, 3, 7]
        assert len(xen.calls) == 1

    @pytest.mark.parametrize(("version", "size"), [(0x11, 104), (0x13, 104), (0x15, 112), (0x15, 120), (0x20, 200)])
    def test_any_version_and_size_of_entries_is_found_out(self, version: int, size: int) -> None:
        xen = FakeXen({0: FakeDomain(), **{n: made() for n in range(1, 9)}}, version, size)
        found = DomainQueries(xen).domains()
        assert {n: facts.unique_id for n, facts in found.items()} == {
            n: unique_id_of(domain.handle) for n, domain in xen.domains.items()
        }

    def test_more_domains_than_fit_are_listed_in_several_calls(self) -> None:
        xen = FakeXen({n: made() for n in range(0, 4000, 2)})
        queries = DomainQueries(xen)
        xen.calls.clear()
        assert list(queries.domains()) == list(range(0, 4000, 2))
        assert 1 < len(xen.calls) < 8

    def test_exactly_as_many_domains_as_fit(self) -> None:
        room = (BUFFER_SIZE - linux_xen.LIST_AT) // 112
        for count in (room - 1, room, room + 1, 2 * room):
            assert len(DomainQueries(FakeXen({n: made() for n in range(count)})).domains()) == count

    def test_the_last_domid_there_can_be(self) -> None:
        assert sorted(DomainQueries(FakeXen({0: FakeDomain(), 0x7FEF: made()})).domains()) == [0, 0x7FEF]

    def test_one_domain(self) -> None:
        domain = made()
        queries = DomainQueries(FakeXen({0: FakeDomain(), 5: domain}))
        assert queries.domain(5) == DomainFacts(5, unique_id_of(domain.handle), shutdown=False, gone=False)

    @pytest.mark.parametrize("domid", [4, 6, 0x7FEF, 0x7FF0, 0x7FF4, 0xFFFF])
    def test_another_domain_is_not_taken_for_one_that_does_not_exist(self, domid: int) -> None:
        assert DomainQueries(FakeXen({0: FakeDomain(), 5: made()})).domain(domid) is None

    def test_a_domain_is_gone_when_it_is_dying(self) -> None:
        queries = DomainQueries(
            FakeXen({0: FakeDomain(), 1: made(flags=LISTED_SHUTDOWN), 2: made(flags=LISTED_SHUTDOWN | LISTED_DYING)})
        )
        assert [(facts.shutdown, facts.gone) for facts in queries.domains().values()] == [
            (False, False),
            (True, False),
            (True, True),
        ]

    def test_a_unique_id_is_never_0_and_fits_64_bits(self) -> None:
        ids = {unique_id_of(handle) for handle in (bytes(16), b"\xff" * 16, bytes(range(16)), bytes(range(16, 32)))}
        assert all(0 < number < 1 << 64 for number in ids)

    def test_domains_with_different_handles_have_different_unique_ids(self) -> None:
        assert len({unique_id_of(uuid.uuid4().bytes) for _ in range(1000)}) == 1000

    def test_a_version_that_nobody_knows_is_an_error_that_says_so(self) -> None:
        with pytest.raises(OSError, match="by any interface version from 0x11 to 0x20"):
            DomainQueries(FakeXen({0: FakeDomain()}, version=0x99))

    def test_entries_too_short_to_hold_a_handle_are_an_error(self) -> None:
        class Short(FakeXen):
            def _list(self, version: int) -> int:
                struct.pack_into("<I", self.memory, 24, 1)
                return 0

        with pytest.raises(OSError, match="in 0 bytes"):
            DomainQueries(Short({}))


class TestDomainsOfAHypervisorWithUniqueIds:
    def xen(self, **others: FakeDomain) -> FakeXen:
        domains = {0: FakeDomain(unique_id=9), 4: made(unique_id=1 << 63)}
        domains.update({int(name[1:]): domain for name, domain in others.items()})
        return FakeXen(domains, version=0x16, entry_size=120, stable=True)

    def test_the_hypervisors_own_id_counts(self) -> None:
        queries = DomainQueries(self.xen())
        assert queries.domain(4) == DomainFacts(4, 1 << 63, shutdown=False, gone=False)
        assert {n: facts.unique_id for n, facts in queries.domains().items()} == {0: 9, 4: 1 << 63}

    def test_a_domain_is_gone_when_it_is_dead_not_when_it_is_dying(self) -> None:
        queries = DomainQueries(
            self.xen(
                d5=made(unique_id=5, state=EXISTS | SHUTDOWN),
                d6=made(unique_id=6, state=EXISTS | SHUTDOWN | DYING),
                d7=made(unique_id=7, state=EXISTS | SHUTDOWN | DYING | DEAD),
            )
        )
        found = [queries.domain(domid) for domid in (5, 6, 7)]
        assert [(f.shutdown, f.gone) for f in found if f is not None] == [(True, False), (True, False), (True, True)]
        assert [queries.domains()[domid] for domid in (5, 6, 7)] == found

    def test_a_vanished_domain_is_reported_as_nothing(self) -> None:
        assert DomainQueries(self.xen()).domain(3) is None

    def test_a_domain_that_vanishes_behind_the_list_is_left_out(self) -> None:
        queries = DomainQueries(self.xen(d8=FakeDomain(state=0)))
        assert sorted(queries.domains()) == [0, 4]

    def test_reserved_domids_are_not_asked_about(self) -> None:
        xen = self.xen()
        queries = DomainQueries(xen)
        xen.calls.clear()
        assert queries.domain(0x7FF4) is None  # with this one the operation would clear somebody's change
        assert xen.calls == []


# ---- ioctls


@dataclass
class FakeKernel:
    """Records ioctls, and answers as told."""

    seen: list[tuple[int, bytes]] = field(default_factory=list)
    answers: dict[int, Callable[[bytearray], int]] = field(default_factory=dict)

    def ioctl(self, fd: int, request: int, argument: bytearray) -> int:
        self.seen.append((request, bytes(argument)))
        answer = self.answers.get(request)
        return answer(argument) if answer else 0


def refuse(number: int) -> Callable[[bytearray], int]:
    """An answer: an error."""

    def answer(_: bytearray) -> int:
        raise OSError(number, os.strerror(number))

    return answer


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    kernel = FakeKernel()
    kernel.answers[0x44500] = lambda _: 21
    monkeypatch.setattr(fcntl, "ioctl", kernel.ioctl)
    return kernel


class FakePrivcmd(FakeXen):
    """The hypervisor behind /dev/xen/privcmd."""

    def __init__(self) -> None:
        super().__init__({0: FakeDomain(), 1: made()})
        self.closed = False

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int]]]:
    """Devices that were opened, with flags; all are /dev/null."""
    names: list[tuple[str, int]] = []
    fds: list[int] = []

    def fake_open(path: str, flags: int = 0) -> int:
        names.append((path, flags))
        fds.append(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
        return fds[-1]

    monkeypatch.setattr(linux_xen, "_open", fake_open)
    yield names
    for fd in fds:
        try:
            os.close(fd)
        except OSError:
            pass


@pytest.fixture
def xen(kernel: FakeKernel, opened: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch) -> LinuxXen:
    monkeypatch.setattr(linux_xen, "Privcmd", FakePrivcmd)
    return LinuxXen()


def as_hypervisor(xen: LinuxXen) -> Hypervisor:
    """Holds if mypy says so."""
    return xen


class TestEventChannels:
    def test_the_domain_exception_virq_is_bound_at_once(self, xen: LinuxXen, kernel: FakeKernel) -> None:
        assert xen.domain_port == 21
        assert kernel.seen == [(0x44500, struct.pack("<I", 3))]

    def test_the_device_does_not_block(self, xen: LinuxXen, opened: list[tuple[str, int]]) -> None:
        assert ("/dev/xen/evtchn", os.O_NONBLOCK) in opened

    def test_if_the_virq_is_bound_already_another_xenstored_runs(
        self, kernel: FakeKernel, opened: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(linux_xen, "Privcmd", FakePrivcmd)
        kernel.answers[0x44500] = refuse(errno.EEXIST)
        with pytest.raises(OSError, match="another xenstored runs: '/dev/xen/evtchn'"):
            LinuxXen()

    def test_bind(self, xen: LinuxXen, kernel: FakeKernel) -> None:
        kernel.answers[0x84501] = lambda _: 33
        assert xen.bind(5, 8) == 33
        assert kernel.seen[-1] == (0x84501, struct.pack("<II", 5, 8))

    def test_notify(self, xen: LinuxXen, kernel: FakeKernel) -> None:
        for _ in range(2):
            xen.notify(33)
            assert kernel.seen[-1] == (0x44504, struct.pack("<I", 33))

    def test_unbind(self, xen: LinuxXen, kernel: FakeKernel) -> None:
        xen.unbind(33)
        assert kernel.seen[-1] == (0x44503, struct.pack("<I", 33))

    @pytest.mark.parametrize("number", [errno.ENOTCONN, errno.EINVAL])
    def test_unbinding_what_is_not_bound_does_not_matter(self, xen: LinuxXen, kernel: FakeKernel, number: int) -> None:
        kernel.answers[0x44503] = refuse(number)
        xen.unbind(33)

    def test_dom0s_port(self, xen: LinuxXen, kernel: FakeKernel) -> None:
        kernel.answers[0x4200] = lambda _: 2
        assert xen.xenbus_port() == 2

    def test_a_kernel_without_a_ring_has_port_0(self, xen: LinuxXen, kernel: FakeKernel) -> None:
        kernel.answers[0x4200] = refuse(errno.ENODEV)
        assert xen.xenbus_port() == 0

    def test_dom0s_port_without_the_device(
        self, xen: LinuxXen, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]
    ) -> None:
        kernel.answers[0x4200] = refuse(errno.ENOTTY)
        path = os.path.join(tmp_path, "xsd_port")
        with open(path, "w", encoding="ascii") as f:
            f.write("17")
        monkeypatch.setattr(linux_xen, "XSD_PORT", path)
        assert xen.xenbus_port() == 17

    @pytest.fixture
    def pipe(self, xen: LinuxXen) -> Iterator[int]:
        """Stands in for the device: what is written here is pending."""
        read, write = os.pipe2(os.O_NONBLOCK)
        xen.event_fd = read
        yield write
        os.close(read)
        os.close(write)

    def test_pending_ports_arrive_in_the_buffer(self, xen: LinuxXen, pipe: int) -> None:
        buffer = memoryview(bytearray(256))
        os.write(pipe, struct.pack("<III", 7, 70_000, 8))
        xen.receive(buffer)
        assert xen.ports(buffer) == [7, 70_000, 8]

    def test_nothing_pending_is_no_port(self, xen: LinuxXen, pipe: int) -> None:
        buffer = memoryview(bytearray(256))
        xen.receive(buffer)
        assert xen.ports(buffer) == []

    def test_more_than_fits_is_left_for_the_next_time(self, xen: LinuxXen, pipe: int) -> None:
        os.write(pipe, struct.pack("<100I", *range(1, 101)))
        found = []
        for _ in range(3):
            buffer = memoryview(bytearray(256))
            xen.receive(buffer)
            found += xen.ports(buffer)
        assert found == list(range(1, 101))

    def test_unmask_writes_the_ports_back(self, xen: LinuxXen) -> None:
        read, write = os.pipe()
        xen.event_fd = write
        ports = list(range(1, 2501))
        xen.unmask(ports)
        xen.unmask([])
        assert struct.unpack("<2500I", os.read(read, 20_000)) == tuple(ports)
        os.close(read)
        os.close(write)


class TestRings:
    @pytest.fixture
    def mapped(self, monkeypatch: pytest.MonkeyPatch, kernel: FakeKernel) -> list[tuple[int, int]]:
        """(length, offset) of each mapping; anonymous memory is given for them."""
        made: list[tuple[int, int]] = []

        class Anonymous(Mapping):
            def __init__(self, length: int, fd: int = -1, offset: int = 0) -> None:
                assert fd >= 0
                made.append((length, offset))
                super().__init__(length)

            def close(self) -> None:
                kernel.seen.append((0, b"munmap"))
                super().close()

        monkeypatch.setattr(linux_xen, "Mapping", Anonymous)

        def map_grant(argument: bytearray) -> int:
            struct.pack_into("<Q", argument, 8, 0x5000)
            return 0

        kernel.answers[0x184700] = map_grant
        return made

    @pytest.fixture
    def logic(self, xen: LinuxXen, mapped: list[tuple[int, int]]) -> LinuxXen:
        xen.in_logic()
        return xen

    def test_a_guests_ring_is_its_grant_1(
        self, logic: LinuxXen, kernel: FakeKernel, mapped: list[tuple[int, int]]
    ) -> None:
        page = logic.map_ring(5)
        assert kernel.seen[-1][0] == 0x184700
        assert struct.unpack("<IIQII", kernel.seen[-1][1]) == (1, 0, 0, 5, 1)
        assert mapped == [(PAGE_SIZE, 0x5000)]
        assert (len(page), page.readonly) == (PAGE_SIZE, False)
        with page.cast("I") as words:
            words[512] = 0xFFFFFFFF

    def test_an_unmapped_ring_is_unmapped_before_its_grant(self, logic: LinuxXen, kernel: FakeKernel) -> None:
        logic.map_ring(5)
        logic.unmap_ring(5)
        assert kernel.seen[-2:] == [(0, b"munmap"), (0x104701, struct.pack("<QII", 0x5000, 1, 0))]

    def test_dom0s_ring_is_no_grant(self, logic: LinuxXen, kernel: FakeKernel) -> None:
        logic.map_ring(0)
        logic.unmap_ring(0)
        assert kernel.seen[1:] == [(0, b"munmap")]

    def test_what_is_not_mapped_can_be_unmapped(self, logic: LinuxXen, kernel: FakeKernel) -> None:
        logic.unmap_ring(5)
        assert kernel.seen[1:] == []

    def test_a_page_that_is_mapped_is_not_mapped_again_under_somebodys_feet(self, logic: LinuxXen) -> None:
        logic.map_ring(5)
        with pytest.raises(OSError, match="mapped already"):
            logic.map_ring(5)
        logic.unmap_ring(5)
        logic.map_ring(5)

    @pytest.mark.parametrize("failures", [1, 3])
    def test_a_page_that_a_dead_process_still_holds_is_waited_for(
        self, logic: LinuxXen, monkeypatch: pytest.MonkeyPatch, failures: int
    ) -> None:
        left = [failures]
        working: type[Mapping] = vars(linux_xen)["Mapping"]  # the fixture's

        def busy(length: int, fd: int = -1, offset: int = 0) -> Mapping:
            if left[0]:
                left[0] -= 1
                raise OSError(errno.EAGAIN, "again")
            return working(length, fd, offset)

        monkeypatch.setattr(linux_xen, "Mapping", busy)
        assert len(logic.map_ring(5)) == PAGE_SIZE
        assert left == [0]

    @pytest.mark.parametrize("number", [errno.EAGAIN, errno.EINVAL])
    def test_a_page_that_cannot_be_mapped_leaves_no_grant_behind(
        self, logic: LinuxXen, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        def never(length: int, fd: int = -1, offset: int = 0) -> Mapping:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(linux_xen, "Mapping", never)
        with pytest.raises(OSError, match=os.strerror(number)):
            logic.map_ring(5)
        assert kernel.seen[-1] == (0x104701, struct.pack("<QII", 0x5000, 1, 0))

    def test_a_domain_without_such_a_grant_is_refused(self, logic: LinuxXen, kernel: FakeKernel) -> None:
        kernel.answers[0x184700] = refuse(errno.EINVAL)
        with pytest.raises(OSError, match="Invalid argument"):
            logic.map_ring(5)

    def test_each_logic_opens_the_grant_device_for_itself_and_gives_up_hypercalls(
        self, xen: LinuxXen, opened: list[tuple[str, int]]
    ) -> None:
        privcmd = xen._privcmd
        assert isinstance(privcmd, FakePrivcmd)
        opened.clear()
        xen.before_fork()
        xen.in_logic()
        assert opened == [("/dev/xen/gntdev", 0)]
        assert privcmd.closed


class TestOpening:
    @pytest.mark.skipif(os.path.exists("/dev/xen/gntdev"), reason="this is a Xen host")
    def test_what_is_missing_is_named(self) -> None:
        with pytest.raises(FileNotFoundError, match="/dev/xen/gntdev"):
            LinuxXen()

    def test_without_the_backend_device_the_page_is_the_one_in_proc(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tried = []

        def fake_open(path: str, flags: int = 0) -> int:
            tried.append(path)
            if path.startswith("/dev"):
                raise FileNotFoundError(path)
            return 99

        monkeypatch.setattr(linux_xen, "_open", fake_open)
        assert linux_xen._open_backend() == 99
        assert tried == ["/dev/xen/xenbus_backend", "/proc/xen/xsd_kva"]

    def test_without_hypercall_buffers_memory_is_locked_and_a_fork_does_not_touch_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(linux_xen, "HYPERCALL_BUFFERS", "/nonexistent")
        buffer = linux_xen._resident_memory()
        with open("/proc/self/smaps", encoding="ascii") as f:
            maps = f.read()
        flags = maps[maps.index(f"{buffer.address:x}-") :].split("VmFlags:")[1].splitlines()[0].split()
        assert {"lo", "dc"} <= set(flags)
        buffer.view[0] = 1
        buffer.close()

    def test_a_hypercall_is_an_ioctl_with_the_address_of_the_request(
        self, kernel: FakeKernel, opened: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(linux_xen, "_resident_memory", lambda: Mapping(BUFFER_SIZE))
        privcmd = linux_xen.Privcmd()
        privcmd.call(36)
        assert kernel.seen == [(0x305000, struct.pack("<6Q", 36, privcmd.address, 0, 0, 0, 0))]
        privcmd.close()
