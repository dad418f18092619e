"""C xenstored serves a guest and is killed.  What `LinuxXen` sees of the host then, and how a daemon takes over from there."""

import fcntl
import os
import select
import signal
import subprocess
import time
import traceback
import uuid
from collections.abc import Callable
from unittest import mock

from tests.xen.dom0.checks import Job
from tests.xen.dom0.host import C_XENSTORED, KERNEL_DEVICE, SOCKET, CheckFailed, Host, expect, tool, wait_for
from xenstore_state.hypervisor import PAGE_SIZE
from xenstored import linux_xen
from xenstored.linux_xen import LinuxXen, unique_id_of
from xenstored.mapping import Mapping

JOB = Job("takeover")
GUEST = 1
REQ_CONS, REQ_PROD = 512, 513
RING_SIZE = 1024
QUIET_MS = 500
"""How long nothing must come."""
ARRIVAL_MS = 20_000
TIMES = 2000
BIND_UNBOUND_PORT = 0x44502


class Known:
    """What the toolstack wrote of the guest while there was a daemon to ask."""

    handle = bytes(16)
    port = 0


def in_child(body: Callable[[LinuxXen], object]) -> str:
    """Runs a check in a process of its own, so that what it opens goes away with it; what the check returned."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.write(write, str(body(LinuxXen())).encode())
            status = 0
        except BaseException:
            os.write(write, traceback.format_exc().encode())
        finally:
            os._exit(status)
    os.close(write)
    with open(read, encoding="utf-8") as said:
        text = said.read()
    _, status = os.waitpid(pid, 0)
    if status:
        raise CheckFailed(text or f"the child ended with {status:#x}")
    return text


def arrives(xen: LinuxXen, milliseconds: int) -> bool:
    """Whether some port is pending, or becomes so in that time."""
    poll = select.poll()
    poll.register(xen.event_fd, select.POLLIN)
    return bool(poll.poll(milliseconds))


def received(xen: LinuxXen) -> list[int]:
    """The ports that are pending; they are masked then."""
    buffer = memoryview(bytearray(256))
    xen.receive(buffer)
    return xen.ports(buffer)


@JOB.essential
def c_xenstored_serves_a_guest(host: Host) -> None:
    host.start_daemon([C_XENSTORED, "--no-fork"])
    host.prepare_dom0()
    expect(host.create("guest"), GUEST)
    host.wait_until_ready(GUEST)
    Known.handle = uuid.UUID((host.read(f"/local/domain/{GUEST}/vm") or "").removeprefix("/vm/")).bytes
    Known.port = int(host.read(f"/local/domain/{GUEST}/store/port") or "")


# ---- LinuxXen by itself


@JOB.check
def while_another_xenstored_runs_linux_xen_says_so(host: Host) -> None:
    try:
        in_child(lambda _: None)
    except CheckFailed as e:
        if "another xenstored runs" not in str(e):
            raise
    else:
        raise CheckFailed("it can be opened while another xenstored runs")


@JOB.essential
def c_xenstored_is_killed(host: Host) -> None:
    host.kill_daemon()


@JOB.check
def linux_xen_knows_the_domains(host: Host) -> None:
    def body(xen: LinuxXen) -> None:
        domains = xen.domains()
        expect(sorted(domains), [0, GUEST])
        for domid, facts in domains.items():
            expect(xen.domain(domid), facts)
            expect((facts.domid, facts.shutdown, facts.gone), (domid, False, False))
        expect(domains[GUEST].unique_id, unique_id_of(Known.handle))
        expect([xen.domain(domid) for domid in (GUEST + 1, 0x7FEF, 0x7FF0, 0xFFFF)], [None] * 4)

    in_child(body)


@JOB.check
def the_port_of_dom0s_kernel_is_known(host: Host) -> None:
    def body(xen: LinuxXen) -> None:
        with open("/proc/xen/xsd_port", encoding="ascii") as f:
            expect(xen.xenbus_port(), int(f.read()))

    in_child(body)


@JOB.check
def the_rings_of_dom0_and_a_guest_can_be_mapped_again_and_again(host: Host) -> None:
    def body(xen: LinuxXen) -> None:
        xen.in_logic()
        for _ in range(3):
            for domid in (0, GUEST):
                page = xen.map_ring(domid)
                expect((len(page), page.readonly), (PAGE_SIZE, False))
                words = page.cast("I")
                if not words[REQ_PROD] or (words[REQ_PROD] - words[REQ_CONS]) % 2**32 > RING_SIZE:
                    raise CheckFailed(f"not the ring of domain {domid}: {words[REQ_CONS : REQ_PROD + 1].tolist()}")
                words.release()
                xen.unmap_ring(domid)
            xen.before_fork()

    in_child(body)


@JOB.check
def dom0s_ring_is_also_the_page_in_proc(host: Host) -> None:
    """Where the kernel has no /dev/xen/xenbus_backend."""

    def body(xen: LinuxXen) -> None:
        xen.in_logic()
        page = Mapping(PAGE_SIZE, os.open(linux_xen.XSD_KVA, os.O_RDWR))
        expect(bytes(page.view), bytes(xen.map_ring(0)))
        page.close()

    in_child(body)


@JOB.check
def domains_are_known_without_hypercall_buffers_and_after_forks(host: Host) -> None:
    """Where the kernel has no /dev/xen/hypercall."""

    def body(xen: LinuxXen) -> None:
        with mock.patch.object(linux_xen, "HYPERCALL_BUFFERS", "/nonexistent"):
            queries = linux_xen.DomainQueries(linux_xen.Privcmd())
        for _ in range(3):
            expect(queries.domains(), xen.domains())
            pid = os.fork()
            if not pid:
                os._exit(0)
            os.waitpid(pid, 0)

    in_child(body)


@JOB.check
def a_dead_logics_mappings_are_released_and_the_next_logic_maps_anew(host: Host) -> None:
    def body(xen: LinuxXen) -> None:
        for _ in range(20):
            xen.before_fork()
            pid = os.fork()
            if not pid:
                xen.in_logic()
                xen.map_ring(GUEST)
                xen.map_ring(0)
                os.kill(os.getpid(), signal.SIGKILL)
            expect(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), -signal.SIGKILL)
        xen.before_fork()

    in_child(body)


@JOB.check
def a_domain_that_does_not_exist_cannot_be_mapped_nor_bound(host: Host) -> None:
    def body(xen: LinuxXen) -> None:
        xen.in_logic()
        for refused in (lambda: xen.map_ring(77), lambda: xen.bind(77, 1), lambda: xen.notify(999)):
            try:
                refused()
            except OSError:
                continue
            raise CheckFailed("something was not refused")
        xen.unbind(999)

    in_child(body)


@JOB.check
def an_event_comes_once_until_its_port_is_unmasked(host: Host) -> None:
    def body(xen: LinuxXen) -> None:
        near, far = _two_ends(xen)
        while arrives(xen, QUIET_MS):  # a port may be pending when it is bound; so is the one that tells of domains
            xen.unmask(received(xen))
        xen.notify(far)
        expect(arrives(xen, ARRIVAL_MS), True)
        expect(received(xen), [near])
        expect(received(xen), [])
        xen.notify(far)
        expect(arrives(xen, QUIET_MS), False)
        xen.unmask([near])
        expect(arrives(xen, ARRIVAL_MS), True)
        expect(received(xen), [near])
        for _ in range(2):
            xen.unbind(far)

    in_child(body)


def _two_ends(xen: LinuxXen) -> tuple[int, int]:
    """Both ends of an event channel from dom0 to itself."""
    near = fcntl.ioctl(xen.event_fd, BIND_UNBOUND_PORT, bytearray(4))
    return near, xen.bind(0, near)


@JOB.check
def a_forked_process_shares_the_ports(host: Host) -> None:
    """What State binds, the Logic of before and the Logic of after can use."""

    def body(xen: LinuxXen) -> None:
        pids = []
        doorbell, ring = os.pipe()
        for _ in range(2):
            pid = os.fork()
            if not pid:
                xen.in_logic()
                far = int(os.read(doorbell, 3))
                xen.notify(far)
                os._exit(0)
            pids.append(pid)
        near, far = _two_ends(xen)
        for _ in pids:
            while arrives(xen, QUIET_MS):
                xen.unmask(received(xen))
            os.write(ring, f"{far:3}".encode())
            expect(arrives(xen, ARRIVAL_MS), True)
            expect(received(xen), [near])
            xen.unmask([near])
        expect([os.waitpid(pid, 0)[1] for pid in pids], [0, 0])

    in_child(body)


@JOB.check
def what_events_take(host: Host) -> None:
    """No limit is set: everything is emulated."""

    def body(xen: LinuxXen) -> str:
        port = xen.bind(GUEST, Known.port)
        notify = _microseconds(lambda: xen.notify(port))
        unmask = _microseconds(lambda: xen.unmask([port]))
        list_all = _microseconds(xen.domains)
        return f"notify {notify:.0f} us, unmask {unmask:.0f} us, list of two domains {list_all:.0f} us"

    host.note(in_child(body))


def _microseconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    for _ in range(TIMES):
        call()
    return (time.perf_counter() - began) / TIMES * 1e6


# ---- a daemon takes over


@JOB.check
def a_request_made_while_no_daemon_runs_is_answered_by_the_next_one(host: Host) -> None:
    SOCKET.unlink()
    with subprocess.Popen(
        ["xenstore-exists", "/tool"],
        env={**os.environ, "XENSTORED_PATH": KERNEL_DEVICE},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as queued:
        wait_for("the client waits", lambda: _sleeps(queued.pid))
        host.start_daemon()
        said, _ = queued.communicate(timeout=60)
        expect((queued.returncode, said), (0, ""))


def _sleeps(pid: int) -> bool:
    with open(f"/proc/{pid}/wchan", encoding="ascii") as f:
        return "xen" in f.read()


@JOB.check
def dom0s_kernel_goes_on(host: Host) -> None:
    host.kill_console_daemon()
    host.prepare_dom0()
    through_kernel = {"XENSTORED_PATH": KERNEL_DEVICE}
    expect(tool("xenstore-read", "/local/domain/0/name", environment=through_kernel).strip(), "Domain-0")


@JOB.check
def a_new_guest_comes_up_and_goes(host: Host) -> None:
    domid = host.create("new")
    host.wait_until_ready(domid)
    host.expect_echo(domid, "after-take-over")
    tool("xl", "destroy", "new")


@JOB.check
def the_old_guest_can_be_destroyed_and_nothing_holds_its_memory(host: Host) -> None:
    tool("xl", "destroy", str(GUEST))
    host.expect_no_guests()
