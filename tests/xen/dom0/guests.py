"""A guest's life, from the daemon's first second to the guest's end; then two guests, a disk, and guests that come and go."""

import os
import subprocess
import time
from pathlib import Path

from tests.xen.dom0.checks import Job
from tests.xen.dom0.host import (
    KERNEL_DEVICE,
    SOCKET,
    TOOL_SECONDS,
    CheckFailed,
    Host,
    expect,
    make_disk,
    tool,
    wait_for,
)

JOB = Job("guests")
KERNEL = {"XENSTORED_PATH": KERNEL_DEVICE}
"""Makes Xen's clients talk to the daemon through dom0's kernel and its ring."""


@JOB.essential
def the_daemon_starts(host: Host) -> None:
    host.start_daemon()
    expect(SOCKET.is_socket(), True)


@JOB.essential
def dom0_is_initialised(host: Host) -> None:
    host.prepare_dom0()


@JOB.check
def a_client_reads_over_the_socket(host: Host) -> None:
    expect(tool("xenstore-read", "/local/domain/0/name").strip(), "Domain-0")


@JOB.check
def a_client_reads_through_the_kernel(host: Host) -> None:
    expect(tool("xenstore-read", "/local/domain/0/name", environment=KERNEL).strip(), "Domain-0")


@JOB.check
def a_watch_fires_through_the_kernel(host: Host) -> None:
    with subprocess.Popen(
        ["xenstore-watch", "-n", "2", "/tool/watched"], stdout=subprocess.PIPE, text=True, env={**os.environ, **KERNEL}
    ) as watcher:
        assert watcher.stdout is not None
        expect(watcher.stdout.readline().strip(), "/tool/watched")
        tool("xenstore-write", "/tool/watched/child", "1")
        expect(watcher.stdout.readline().strip(), "/tool/watched/child")
        watcher.wait(TOOL_SECONDS)


@JOB.check
def dom0s_kernel_announces_itself(host: Host) -> None:
    host.wait_for_value("/local/domain/0/control/feature-poweroff", "1")


@JOB.check
def the_toolstack_lists_domains(host: Host) -> None:
    expect(host.guests(), [])


@JOB.essential
def the_toolstack_creates_a_guest(host: Host) -> None:
    expect(host.create("first"), 1)


@JOB.essential
def the_guest_comes_up(host: Host) -> None:
    host.wait_until_ready(1)


@JOB.check
def the_guest_writes_its_own_nodes(host: Host) -> None:
    expect(host.read("/local/domain/1/data/hello"), f"from-guest-1-{os.uname().release}")


@JOB.check
def the_guest_is_refused_what_is_dom0s(host: Host) -> None:
    expect(host.read("/local/domain/1/data/refused"), "1")


@JOB.check
def what_the_guest_was_refused_is_intact(host: Host) -> None:
    expect(host.read("/local/domain/0/name"), "Domain-0")


@JOB.check
def a_watch_fires_in_the_guest(host: Host) -> None:
    host.expect_echo(1, "first-word")


@JOB.check
def the_toolstack_shuts_the_guest_down(host: Host) -> None:
    tool("xl", "shutdown", "first")


@JOB.check
def the_guest_goes(host: Host) -> None:
    wait_for("the guest is gone", lambda: not host.guests())


@JOB.check
def the_guests_tree_goes(host: Host) -> None:
    wait_for("no tree but dom0's", lambda: host.store.directory("/local/domain") == ["0"])


@JOB.check
def xens_own_test_program_is_content(host: Host) -> None:
    tool("test-xenstore", "-i", "10", seconds=2 * TOOL_SECONDS)


# ---- two guests, one with a disk


@JOB.essential
def two_guests_come_up(host: Host) -> None:
    expect(host.create("disk", disks=[make_disk(0)]), 2)
    expect(host.create("other"), 3)
    for domid in (2, 3):
        host.wait_until_ready(domid)


@JOB.check
def the_guest_reads_its_disk(host: Host) -> None:
    expect(host.read("/local/domain/2/data/disk"), "sector 0.")


@JOB.check
def both_ends_of_the_disk_are_connected(host: Host) -> None:
    expect(host.read("/local/domain/2/device/vbd/51712/state"), "4")
    expect(host.read("/local/domain/0/backend/vbd/2/51712/state"), "4")


@JOB.check
def the_guest_writes_its_disk(host: Host) -> None:
    expect(host.read("/local/domain/2/data/disk-written"), "1")
    expect(Path("/run/disk0").read_bytes()[512:528], b"written-by-guest")


@JOB.check
def both_guests_hear_of_their_watches(host: Host) -> None:
    for domid in (2, 3):
        host.expect_echo(domid, f"word-for-{domid}")


@JOB.check
def a_destroyed_guest_and_one_shut_down_leave_nothing(host: Host) -> None:
    tool("xl", "destroy", "other")
    host.shut_down("disk")
    host.expect_no_guests()


@JOB.check
def guests_come_and_go(host: Host) -> None:
    for _ in range(3):
        host.create("passing")
        tool("xl", "destroy", "passing")
    host.expect_no_guests()


@JOB.check
def what_a_request_takes(host: Host) -> None:
    """No limit is set: everything is emulated.  For comparing daemons."""
    for name, through in (("socket", str(SOCKET)), ("kernel", KERNEL_DEVICE)):
        host.note(f"read over {name}: {_median_microseconds(through)} us")


def _median_microseconds(path: str) -> int:
    from protocol.client import Client

    with Client(path, timeout=TOOL_SECONDS) as client:
        times = []
        for _ in range(300):
            began = time.perf_counter()
            if client.read("/local/domain/0/name") != b"Domain-0":
                raise CheckFailed("a read gave something else")
            times.append(time.perf_counter() - began)
    return round(sorted(times)[len(times) // 2] * 1e6)
