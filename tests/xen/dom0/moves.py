"""A daemon in the background, and guests that are saved, restored and migrated.

Debian's hypervisor is built without shadow paging, so a PV guest cannot be migrated live (nor could it on any machine): it is
saved and restored; a PVH guest is migrated to its own host.
"""

from pathlib import Path

from tests.xen.dom0.checks import Job
from tests.xen.dom0.host import GUEST_SECONDS, PVH, CheckFailed, Host, expect, tool, wait_for

JOB = Job("moves")
SAVED = Path("/mnt/pv-guest")
PID_FILE = Path("/run/xen/xenstored.pid")


@JOB.essential
def the_daemon_goes_to_the_background_and_can_be_talked_to_at_once(host: Host) -> None:
    host.start_in_background(PID_FILE)


@JOB.essential
def a_pv_guest_comes_up(host: Host) -> None:
    host.prepare_dom0()
    host.create("pv")
    host.wait_until_ready(host.domid("pv"))


@JOB.essential
def the_pv_guest_is_saved_and_goes(host: Host) -> None:
    tool("mount", "-t", "tmpfs", "-o", "size=100%", "tmpfs", str(SAVED.parent))
    tool("xl", "save", "pv", str(SAVED), seconds=GUEST_SECONDS)
    host.expect_no_guests()


@JOB.check
def the_pv_guest_is_restored_as_another_domain(host: Host) -> None:
    tool("xl", "restore", str(SAVED), seconds=GUEST_SECONDS)
    SAVED.unlink()
    expect(host.domid("pv"), 2)


@JOB.check
def the_restored_pv_guest_reads_writes_and_hears_of_its_watches(host: Host) -> None:
    host.expect_echo(2, "after-restore")


@JOB.check
def the_restored_pv_guest_shuts_down(host: Host) -> None:
    host.shut_down("pv")
    host.expect_no_guests()


@JOB.essential
def a_pvh_guest_comes_up(host: Host) -> None:
    domid = host.create("pvh", PVH)
    host.wait_until_ready(domid)
    host.expect_echo(domid, "at-home")


@JOB.check
def the_pvh_guest_is_migrated(host: Host) -> None:
    before = host.domid("pvh")
    tool("xl", "migrate", "-s", "local-transport", "pvh", "localhost", seconds=GUEST_SECONDS)
    if host.domid("pvh") == before:
        raise CheckFailed("the guest is the same domain as before")


@JOB.check
def the_migrated_pvh_guest_reads_writes_and_hears_of_its_watches(host: Host) -> None:
    host.expect_echo(host.domid("pvh"), "after-migration")


@JOB.check
def the_migrated_pvh_guest_shuts_down(host: Host) -> None:
    host.shut_down("pvh")
    host.expect_no_guests()


@JOB.check
def the_daemon_ends_when_told_to(host: Host) -> None:
    host.only_ours("C xenstored does not end on SIGTERM")
    pid = int(PID_FILE.read_text())
    tool("kill", "-TERM", str(pid))
    wait_for("the daemon has ended", lambda: not Path(f"/proc/{pid}").exists())
    expect(PID_FILE.exists(), False)
