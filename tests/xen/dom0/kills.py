"""Logic is killed again and again while two guests and dom0's kernel keep reading, writing and watching.

Against C xenstored, which has no such part, nothing is killed; everything else must hold as well.
"""

import random
import subprocess
import time
from typing import NamedTuple

from tests.xen.dom0.checks import Job
from tests.xen.dom0.host import (
    DAEMON_LOG,
    GUEST_SECONDS,
    KERNEL_DEVICE,
    LOGIC_PID,
    SHARE,
    SOCKET,
    CheckFailed,
    Host,
    expect,
    kill,
    make_disk,
    process_figures,
    wait_for,
)

JOB = Job("kills")
LOADS = {
    "/local/domain/1/data/load": "a guest with a disk",
    "/local/domain/2/data/load": "another guest",
    "/load/kernel": "dom0 through its kernel",
    "/load/socket": "dom0 over the socket",
}
"""Who keeps the daemon busy: where it writes."""
WARM_UP = 20
"""Kills after which the daemon may not grow any more."""
GROWTH_KB = 2048
PAUSE = 0.1
"""Seconds of work, at most, between the first answer of a Logic and its death.

While a disk is attached it may be as long as the first answer took: xl waits for ten seconds, however slow the machine is.
"""
SETTLING = 1.0
"""Seconds without a change after which a new Logic has settled in."""
QUIET_TICKS = 100
"""How many ticks there are when nothing is killed."""


class Seen:
    """What one check leaves for the next."""

    before: "Figures"
    after: "Figures"
    state_pid = 0
    kills = 0
    ticks = 0
    attaching: "subprocess.Popen[bytes] | None" = None


class Figures(NamedTuple):
    """What must not grow."""

    state_kilobytes: int
    state_descriptors: int
    logic_descriptors: int


@JOB.essential
def the_daemon_starts(host: Host) -> None:
    host.start_daemon()
    host.prepare_dom0()
    Seen.state_pid = _state_pid(host)


@JOB.essential
def two_guests_and_dom0_are_busy(host: Host) -> None:
    host.store.mkdir("/load/ticks")
    expect(host.create("busy-disk", role="load", disks=[make_disk(0)]), 1)
    expect(host.create("busy", role="load"), 2)
    host.store.set_perms("/load/ticks", ["n0", "r1", "r2"])  # not sooner: no domain gets rights before it exists
    for path, base in ((KERNEL_DEVICE, "/load/kernel"), (str(SOCKET), "/load/socket")):
        with (SHARE / f"load-{base.rpartition('/')[2]}.log").open("wb") as log:
            subprocess.Popen(
                ["python3", "/guest/load.py", path, base], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
    for base, who in LOADS.items():
        _wait_until_it_counts(host, base, who)


def _wait_until_it_counts(host: Host, base: str, who: str) -> None:
    wait_for(f"{who} counts", lambda: int(host.read(f"{base}/counter") or 0) > 2)


@JOB.essential
def logic_is_killed_and_somebody_serves_again(host: Host) -> None:
    kills = host.settings.kills if host.ours else 0
    disk = make_disk(1)
    began = time.monotonic()
    for number in range(max(kills, QUIET_TICKS)):
        if number == WARM_UP:
            Seen.before = _figures(host)
            Seen.attaching = _attach(disk)
        killed = time.monotonic()
        _tick(host)
        if number < kills:
            attaching = Seen.attaching is not None and Seen.attaching.poll() is None
            time.sleep(random.random() * max(PAUSE, time.monotonic() - killed if attaching else 0.0))
            _kill_logic()
    _tick(host)
    assert Seen.attaching is not None
    expect(Seen.attaching.wait(GUEST_SECONDS), 0)
    Seen.after = _figures(host)
    host.note(
        f"{Seen.kills} kills and {Seen.ticks} ticks in {time.monotonic() - began:.1f} s; {Seen.before}, {Seen.after}"
    )


def _tick(host: Host) -> None:
    """One more node below /load/ticks; everybody must hear of it."""
    host.store.write(f"/load/ticks/{Seen.ticks}", "")
    Seen.ticks += 1


def _kill_logic() -> None:
    pid = int(LOGIC_PID.read_text())
    kill(pid)
    wait_for("a new Logic", lambda: int(LOGIC_PID.read_text()) != pid)
    Seen.kills += 1


def _state_pid(host: Host) -> int:
    assert host.daemon is not None
    return host.daemon.pid


def _figures(host: Host) -> Figures:
    state = _state_pid(host)
    logic = int(LOGIC_PID.read_text()) if host.ours else state
    kilobytes, descriptors = process_figures(state)
    return Figures(kilobytes, descriptors, _settled_descriptors(logic))


def _settled_descriptors(pid: int) -> int:
    """How many descriptors a process has, once it has closed what it inherited and does not need."""
    last = -1
    while last != (now := process_figures(pid)[1]):
        last = now
        time.sleep(SETTLING)
    return last


def _attach(disk: str) -> "subprocess.Popen[bytes]":
    with (SHARE / "attach.log").open("wb") as log:
        return subprocess.Popen(["xl", "block-attach", "busy", disk], stdout=log, stderr=log)


@JOB.check
def state_is_the_same_process_as_before(host: Host) -> None:
    assert host.daemon is not None
    expect(host.daemon.poll(), None)
    expect(_state_pid(host), Seen.state_pid)


@JOB.check
def every_kill_was_taken_over(host: Host) -> None:
    host.only_ours("nothing was killed: C xenstored has no Logic")
    expect(Seen.kills, host.settings.kills)
    expect(DAEMON_LOG.read_text().count("killed by SIGKILL"), Seen.kills)


@JOB.check
def the_daemon_does_not_grow(host: Host) -> None:
    if Seen.after.state_kilobytes > Seen.before.state_kilobytes + GROWTH_KB:
        raise CheckFailed(f"{Seen.before} has become {Seen.after}")
    expect(Seen.after[1:], Seen.before[1:])


@JOB.check
def a_disk_that_was_attached_meanwhile_is_connected(host: Host) -> None:
    host.wait_for_value("/local/domain/2/device/vbd/51712/state", "4")
    host.wait_for_value("/local/domain/0/backend/vbd/2/51712/state", "4")


@JOB.check
def the_disk_that_was_there_before_is_connected_still(host: Host) -> None:
    expect(host.read("/local/domain/1/device/vbd/51712/state"), "4")
    expect(host.read("/local/domain/0/backend/vbd/1/51712/state"), "4")


@JOB.essential
def the_load_is_told_to_end(host: Host) -> None:
    host.store.write("/load/ticks/end", "")


@JOB.check
def a_guest_with_a_disk_saw_no_error_and_missed_nothing(host: Host) -> None:
    expect(_result(host, "/local/domain/1/data/load")["disk"] > QUIET_TICKS, True)


@JOB.check
def another_guest_saw_no_error_and_missed_nothing(host: Host) -> None:
    _result(host, "/local/domain/2/data/load")


@JOB.check
def dom0s_kernel_saw_no_error_and_missed_nothing(host: Host) -> None:
    _result(host, "/load/kernel")


@JOB.check
def a_client_on_the_socket_saw_no_error_and_missed_nothing(host: Host) -> None:
    _result(host, "/load/socket")


def _result(host: Host, base: str) -> dict[str, int]:
    """What one load says of itself; raises if it says that something was wrong."""
    text = wait_for(f"{LOADS[base]} reports", lambda: host.read(f"{base}/result"))
    host.note(text)
    figures, _, error = text.partition(" error=")
    expect(error, "none")
    result = {name: int(count) for name, count in (field.split("=") for field in figures.split())}
    expect(result["ticks"], Seen.ticks)
    expect(host.read(f"{base}/counter"), str(result["commits"]))
    return result


@JOB.check
def the_guests_go_and_nothing_holds_their_memory(host: Host) -> None:
    for name in ("busy-disk", "busy"):
        host.shut_down(name)
    host.expect_no_guests()
