"""A guest's day, written down: booted, run, moved to another host (here: to its own) and destroyed, with a disk and a network.

Not a test: `python -m bench.record` boots this job and makes workloads of what the daemon was asked.  A paravirtualised guest is
saved and restored, one with hardware support is migrated live.  What is done when is marked by writes to /record/phase, over the
connection that this job has to the daemon.
"""

import shutil
from pathlib import Path
from typing import Final

from tests.xen.dom0.checks import Job
from tests.xen.dom0.host import GUEST_SECONDS, PV, PVH, SHARE, Host, make_disk, tool

JOB = Job("day")
RECORD: Final = Path("/run/record")
SAVED: Final = Path("/mnt/guest")
NETWORK: Final = "script=vif-test"


def mark(host: Host, guest: str, phase: str) -> None:
    """What follows belongs to this phase of this guest's day."""
    host.store.write("/record/phase", f"{guest} {phase}")


def live(host: Host, kind: str, disk: int) -> None:
    """A guest boots and runs."""
    mark(host, kind, "boot")
    domid = host.create(kind, kind, disks=[make_disk(disk)], networks=[NETWORK])
    host.wait_until_ready(domid)
    mark(host, kind, "run")
    tool("xl", "list")
    tool("xl", "list", "-l", kind)
    host.expect_echo(domid, "at-home")
    for command in ("network-list", "block-list", "vcpu-list"):
        tool("xl", command, kind)
    tool("xl", "mem-set", kind, "160")
    tool("xl", "pause", kind)
    tool("xl", "unpause", kind)
    host.expect_echo(domid, "still-there")


@JOB.essential
def the_daemon_writes_down_what_it_is_asked(host: Host) -> None:
    host.start_daemon(["python3", "-m", "tests.xen.dom0.recorder", str(RECORD), "-N"])
    mark(host, "dom0", "start")
    host.prepare_dom0()


@JOB.check
def a_pv_guest_is_saved_and_restored(host: Host) -> None:
    live(host, PV, 0)
    tool("mount", "-t", "tmpfs", "-o", "size=100%", "tmpfs", str(SAVED.parent))
    mark(host, PV, "move")
    tool("xl", "save", PV, str(SAVED), seconds=GUEST_SECONDS)
    tool("xl", "restore", str(SAVED), seconds=GUEST_SECONDS)
    host.expect_echo(host.domid(PV), "back-again")


@JOB.check
def the_restored_guest_is_destroyed(host: Host) -> None:
    mark(host, PV, "end")
    tool("xl", "destroy", PV)
    host.expect_no_guests()
    mark(host, PV, "over")
    tool("umount", str(SAVED.parent))


@JOB.check
def a_pvh_guest_is_migrated(host: Host) -> None:
    live(host, PVH, 1)
    mark(host, PVH, "move")
    tool("xl", "migrate", "-s", "local-transport", PVH, "localhost", seconds=GUEST_SECONDS)
    host.expect_echo(host.domid(PVH), "moved")


@JOB.check
def the_migrated_guest_shuts_down(host: Host) -> None:
    mark(host, PVH, "end")
    host.shut_down(PVH)
    host.expect_no_guests()
    mark(host, PVH, "over")


@JOB.essential
def the_record_is_kept(host: Host) -> None:
    shutil.copy(RECORD, SHARE / "record.log")
