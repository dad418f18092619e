"""The Xen host as jobs see it: its daemon, its tools, its guests.  Runs inside dom0.

Waits for conditions, with deadlines that are generous because everything is emulated; raises `CheckFailed` with what was seen.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar

from protocol.client import Client
from protocol.errors import StoreError
from tests.xen.dom0.checks import C, NotApplicable, Settings

T = TypeVar("T")

SHARE: Final = Path("/host")
PROJECT: Final = Path("/opt/xoarstore")
SOCKET: Final = Path("/run/xenstored/socket")
KERNEL_DEVICE: Final = "/dev/xen/xenbus"
DAEMON_LOG: Final = SHARE / "daemon.log"
LOGIC_PID: Final = Path("/run/xenstored/logic.pid")
CONSOLE_PID: Final = Path("/run/xen/xenconsoled.pid")
GUEST_LOGS: Final = Path("/var/log/xen")
C_XENSTORED: Final = "/usr/lib/xen-4.17/bin/xenstored"

TOOL_SECONDS: Final = 60.0
START_SECONDS: Final = 60.0
GUEST_SECONDS: Final = 90.0
ANSWER_SECONDS: Final = 20.0

PV: Final = "pv"
PVH: Final = "pvh"
LOW_NUMBERS: Final = 64
GUEST_MB: Final = 192
GUEST_LINE: Final = "console=hvc0 panic=1 rdinit=/init quiet mitigations=off random.trust_cpu=on"


class CheckFailed(Exception):
    """Something is not as the check demands."""


def expect(got: object, wanted: object) -> None:
    """Raises unless both are equal."""
    if got != wanted:
        raise CheckFailed(f"{got!r} instead of {wanted!r}")


def wait_for(what: str, look: Callable[[], T | None], seconds: float = GUEST_SECONDS) -> T:
    """Looks until what it sees is true in the sense of `bool`, and returns it."""
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        if time.monotonic() > deadline:
            raise CheckFailed(f"not within {seconds:g} s: {what}")
        time.sleep(0.05)
    return seen


def tool(*command: str, seconds: float = TOOL_SECONDS, environment: Mapping[str, str] | None = None) -> str:
    """Runs a program to its end and returns what it said; raises if it fails."""
    words = " ".join(command)
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            env={**os.environ, **(environment or {})},
            check=False,
        )
    except subprocess.TimeoutExpired as e:
        said = e.stdout.decode(errors="replace") if isinstance(e.stdout, bytes) else e.stdout
        raise CheckFailed(f"{words}: not over after {seconds:g} s: {said}") from None
    if done.returncode:
        raise CheckFailed(f"{words}: status {done.returncode}: {done.stdout}")
    return done.stdout


class Host:
    """The machine while a job runs.  Processes that it starts end with it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.daemon: subprocess.Popen[bytes] | None = None
        self._client: Client | None = None
        self._notes: list[str] = []

    # ---- the job's words

    def note(self, text: str) -> None:
        """A figure worth knowing; it stands in the test's output."""
        self._notes.append(text)

    def take_notes(self) -> list[str]:
        """What the last check noted."""
        notes, self._notes = self._notes, []
        return notes

    @property
    def ours(self) -> bool:
        """Whether the daemon under test is this project's."""
        return self.settings.under_test != C

    def only_ours(self, why: str) -> None:
        """Ends the check if another daemon is under test."""
        if not self.ours:
            raise NotApplicable(why)

    # ---- the daemon

    def start_daemon(self, command: list[str] | None = None) -> None:
        """Starts the daemon under test, or another one, and waits until it can be connected to."""
        if command is None:
            command = ["python3", "-m", "xenstored", "-N"] if self.ours else [C_XENSTORED, "--no-fork"]
        with DAEMON_LOG.open("ab") as log:
            self.daemon = subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for("the daemon's socket", self._answers, START_SECONDS)

    def start_in_background(self, pid_file: Path) -> None:
        """Starts the daemon under test as a host's start-up scripts do; ours can be connected to once the command is over."""
        subprocess.Popen(["syslogd", "-n", "-O", str(DAEMON_LOG)])
        wait_for("syslog", Path("/dev/log").exists)
        if self.ours:
            tool("python3", "-m", "xenstored", "--pid-file", str(pid_file), seconds=START_SECONDS)
            self.connect()
        else:
            tool(C_XENSTORED, "--pid-file", str(pid_file), seconds=START_SECONDS)
            wait_for("the daemon's socket", self._answers, START_SECONDS)

    def _answers(self) -> bool:
        if self.daemon is not None and self.daemon.poll() is not None:
            raise CheckFailed(f"the daemon ended with status {self.daemon.returncode}")
        try:
            self.connect()
        except OSError:
            return False
        return True

    def connect(self) -> None:
        """Opens the job's own connection to the daemon anew."""
        if self._client is not None:
            self._client.close()
            self._client = None
        self._client = Client(str(SOCKET), timeout=ANSWER_SECONDS)

    def kill_daemon(self) -> None:
        """Ends the daemon's main process as nobody should."""
        assert self.daemon is not None, "no daemon was started"
        self.daemon.kill()
        self.daemon.wait()

    def prepare_dom0(self) -> None:
        """What a host's start-up scripts do once xenstored runs."""
        tool("xen-init-dom0")
        tool("xenconsoled", "--log=all", f"--log-dir={GUEST_LOGS}", f"--pid-file={CONSOLE_PID}")

    def kill_console_daemon(self) -> None:
        """xenconsoled does not survive a xenstored that it was connected to, and holds pages of the guests it knew."""
        pid = int(CONSOLE_PID.read_text())
        tool("kill", "-KILL", str(pid))
        wait_for("xenconsoled has ended", lambda: not Path(f"/proc/{pid}").exists())

    # ---- the store

    @property
    def store(self) -> Client:
        """The job's own connection."""
        assert self._client is not None, "no daemon was started"
        return self._client

    def read(self, path: str) -> str | None:
        """A node's value; None if there is no such node."""
        try:
            return self.store.read(path).decode()
        except StoreError as e:
            if e.name != "ENOENT":
                raise
            return None

    def wait_for_value(self, path: str, wanted: str, seconds: float = GUEST_SECONDS) -> None:
        """Waits until a node has a value."""
        wait_for(f"{path} = {wanted!r}", lambda: self.read(path) == wanted, seconds)

    # ---- guests

    def create(
        self,
        name: str,
        kind: str = PV,
        role: str = "clients",
        disks: list[str] | None = None,
        networks: list[str] | None = None,
    ) -> int:
        """Has the toolstack make a guest and start it; its domid."""
        config = Path(f"/run/xen/{name}.cfg")
        lines = [
            f'name="{name}"',
            f'type="{kind}"',
            'kernel="/guest/vmlinux"',
            'ramdisk="/guest/guest.cpio"',
            f'extra="{GUEST_LINE} role={role}"',
            f"memory={GUEST_MB}",
            "vcpus=1",
            'on_crash="destroy"',
            'on_reboot="destroy"',
            f"disk={disks or []!r}",
            f"vif={networks or []!r}",
        ]
        if kind == PVH:
            lines.append('tsc_mode="native"')  # the emulated processor's time stamp counter cannot be scaled
        config.write_text("\n".join(lines) + "\n")
        tool("xl", "create", str(config), seconds=GUEST_SECONDS)
        return self.domid(name)

    def domid(self, name: str) -> int:
        """The domid of a running guest."""
        return int(tool("xl", "domid", name))

    def wait_until_ready(self, domid: int) -> None:
        """Waits until a guest has done what it does first."""
        self.wait_for_value(f"/local/domain/{domid}/data/ready", "1")

    def expect_echo(self, domid: int, word: str) -> None:
        """A guest that watches a node hears of it and answers."""
        data = f"/local/domain/{domid}/data"

        def echoed() -> bool:
            # Again and again: the guest does not listen while it answers.
            self.store.write(f"{data}/ping", word)
            try:
                self.wait_for_value(f"{data}/echo", word, 2.0)
            except CheckFailed:
                return False
            return True

        wait_for(f"guest {domid} echoes {word}", echoed)

    def shut_down(self, name: str) -> None:
        """Asks a guest to power off, and waits until it is gone."""
        tool("xl", "shutdown", "-w", name)
        wait_for(f"{name} is gone", lambda: name not in self.guests())

    def guests(self) -> list[str]:
        """The names of all domains but dom0; what is left of a dead one is called (null)."""
        rows = tool("xl", "list").splitlines()[1:]
        return [row.split()[0] for row in rows if not row.startswith("Domain-0 ")]

    def expect_no_guests(self) -> None:
        """No domain is left, dead or alive, nor anything of one in the store."""
        wait_for("no domain but dom0", lambda: not self.guests())
        wait_for("no tree but dom0's", lambda: self.store.directory("/local/domain") == ["0"])

    # ---- the end

    def collect(self) -> None:
        """Leaves what the guests and the toolstack said in the share."""
        for pattern in ("guest-*.log", "xl-*.log"):
            for log in GUEST_LOGS.glob(pattern):
                shutil.copy(log, SHARE / log.name)


def make_disk(number: int) -> str:
    """A small disk whose sector N begins with "sector N."; its name for a guest's configuration."""
    image = Path(f"/run/disk{number}")
    image.write_bytes(b"".join(b"sector %d." % n + bytes(512 - len(b"sector %d." % n)) for n in range(2048)))
    tool("losetup", f"/dev/loop{number}", str(image))
    return f"format=raw,vdev=xvda,access=rw,backendtype=phy,script=block-test,target=/dev/loop{number}"


def process_figures(pid: int) -> tuple[int, int]:
    """Resident kilobytes and open descriptors of a process; numbers that are kept occupied do not count."""
    status = Path(f"/proc/{pid}/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]), sum(not _is_occupied(pid, number) for number in map(int, os.listdir(f"/proc/{pid}/fd")))


def _is_occupied(pid: int, number: int) -> bool:
    """Whether a low number only stands for /dev/null, so that no connection gets it (`recovery_box/custody.py`)."""
    try:
        return number < LOW_NUMBERS and os.readlink(f"/proc/{pid}/fd/{number}") == os.devnull
    except FileNotFoundError:
        return False  # it was closed just now


def kill(pid: int) -> None:
    """As nobody should."""
    os.kill(pid, signal.SIGKILL)
