"""Being a service, end to end: what whoever starts the daemon can rely on, in the foreground and in the background."""

import os
import re
import resource
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from protocol.wire import HEADER, HEADER_SIZE, Message
from recovery_box.custody import first_number
from xenstore_logic.process import OOM_SCORE

ROOT = Path(__file__).parents[2]
PATIENCE = 20.0
CONTROL, READ, WRITE = 0, 2, 11


def eventually(holds: Callable[[], object], what: str) -> None:
    """Waits until something is so."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def is_alive(pid: int) -> bool:
    """Whether a process runs (and is not merely unburied)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Service:
    """A run directory, and what is started in it."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.run = where / "run"
        self.socket = self.run / "socket"
        self.pid_file = where / "pid"
        self.environment = {**os.environ, "XENSTORED_RUNDIR": str(self.run), "PYTHONPATH": str(ROOT)}
        self.environment.pop("NOTIFY_SOCKET", None)
        self.program = ["-m", "xenstored"]
        self.started: list[subprocess.Popen[bytes]] = []
        self.daemons: set[int] = set()

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs the command until it returns.  Its output goes to files: whoever holds on to it is not waited for."""
        outputs = [self.where / "stdout", self.where / "stderr"]
        with outputs[0].open("wb") as out, outputs[1].open("wb") as err:
            try:
                status = subprocess.run(
                    [sys.executable, *self.program, *words],
                    env=self.environment,
                    cwd=self.where,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    timeout=PATIENCE,
                ).returncode
            finally:
                self.note()
        said = [path.read_text() for path in outputs]
        return subprocess.CompletedProcess(words, status, *said)

    def note(self) -> None:
        """Remembers the daemon that is named in the pid file, to end it some time."""
        if self.pid_file.exists() and self.pid_file.read_text().strip():
            self.daemons.add(int(self.pid_file.read_text()))

    def daemon(self, *words: str) -> int:
        """Starts a daemon in the background; its pid."""
        done = self.command("-D", "--pid-file", str(self.pid_file), *words)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        return int(self.pid_file.read_text())

    def logic_pid(self) -> int:
        """The pid of the running Logic."""
        return int((self.run / "logic.pid").read_text())

    def foreground(self, *words: str) -> subprocess.Popen[bytes]:
        """Starts a daemon in the foreground and waits until clients can connect."""
        process = subprocess.Popen(
            [sys.executable, "-m", "xenstored", "-N", "-D", *words],
            env=self.environment,
            cwd=self.where,
            stderr=subprocess.PIPE,
        )
        self.started.append(process)
        eventually(self.socket.exists, "no socket")
        return process

    def ask(self, op: int, payload: bytes) -> bytes:
        """One request on a connection of its own."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(str(self.socket))
            client.sendall(Message(op, 1, 0, payload).encode())
            data = b""
            while len(data) < HEADER_SIZE or len(data) < HEADER_SIZE + HEADER.unpack_from(data)[3]:
                part = client.recv(8192)
                assert part, "the daemon hung up"
                data += part
        return data[HEADER_SIZE:]

    def end(self) -> None:
        """Ends what was started here, by pid."""
        for process in self.started:
            if process.poll() is None:
                process.terminate()
                process.wait(PATIENCE)
            if process.stderr is not None:
                process.stderr.close()
        for pid in self.daemons:
            if is_alive(pid):
                os.kill(pid, signal.SIGTERM)
        for pid in self.daemons:
            eventually(lambda pid=pid: not is_alive(pid), f"daemon {pid} does not end")  # type: ignore[misc]


@pytest.fixture
def service() -> Iterator[Service]:
    """A run directory with a short name: a socket's path has at most 107 bytes."""
    where = Path(tempfile.mkdtemp(prefix="xs-service-", dir="/tmp"))
    made = Service(where)
    try:
        yield made
    finally:
        made.end()
        shutil.rmtree(where)


# ---- in the background


def test_when_the_command_returns_clients_can_connect_and_the_pid_file_is_written(service: Service) -> None:
    """launch-xenstore relies on both."""
    pid = service.daemon()
    assert service.ask(READ, b"/tool\0") == b""
    assert is_alive(pid)
    assert service.pid_file.read_text() == f"{pid}\n"
    assert stat.S_IMODE(service.pid_file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "prefix",
    [
        "prlimit --nofile=1024",
        "start-stop-daemon --start --quiet --pidfile PIDFILE --exec /usr/bin/choom -- -n 100",
    ],
    ids=["Xen's launch-xenstore", "Debian's /etc/init.d/xen"],
)
def test_it_starts_as_the_scripts_of_a_dom0_start_it(service: Service, prefix: str) -> None:
    """(Debian's asks for -1000, which only some may.)"""
    words = prefix.replace("PIDFILE", str(service.pid_file)).split()
    if not shutil.which(words[0]) or ("choom" in prefix and not os.path.exists("/usr/bin/choom")):
        pytest.skip(f"needs {words[0]} and choom")
    program = os.path.join(os.path.dirname(sys.executable), "xenstored")
    separator = ["--"] if "choom" in prefix else []
    line = [*words, program, *separator, "-D", "--pid-file", str(service.pid_file)]
    subprocess.run(line, env=service.environment, cwd=service.where, timeout=PATIENCE, check=True)
    service.note()
    assert service.ask(READ, b"/tool\0") == b""
    pid = int(service.pid_file.read_text())
    if separator:
        scores = [int(Path(f"/proc/{each}/oom_score_adj").read_text()) for each in (pid, service.logic_pid())]
        assert scores == [100, OOM_SCORE]
    else:
        assert re.search(r"Max open files +1024 ", Path(f"/proc/{pid}/limits").read_text())


def test_the_daemon_has_let_go_of_terminal_session_and_directory(service: Service) -> None:
    pid = service.daemon()
    assert os.getsid(pid) not in {os.getsid(0), pid}  # not a session's leader: it can get no terminal again
    for each in (pid, service.logic_pid()):
        assert os.readlink(f"/proc/{each}/cwd") == "/"
        assert [os.readlink(f"/proc/{each}/fd/{n}") for n in range(3)] == ["/dev/null"] * 3


def test_clients_of_a_daemon_in_the_background_get_the_numbers_that_are_meant_for_them(service: Service) -> None:
    """Those below are Logic's own: a connection under one of them would get what is written to a file."""
    pid = service.daemon("--no-standby")
    before = set(os.listdir(f"/proc/{pid}/fd"))
    clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    for client in clients:
        client.connect(str(service.socket))
    eventually(lambda: len(set(os.listdir(f"/proc/{pid}/fd")) - before) >= 3, "not accepted")
    first = first_number(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    assert min(int(number) for number in set(os.listdir(f"/proc/{pid}/fd")) - before) >= first
    for client in clients:
        client.close()


def test_sigterm_ends_the_daemon_and_nothing_is_left(service: Service) -> None:
    pid = service.daemon()
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: not is_alive(pid), "it does not end")
    assert not service.socket.exists()
    assert service.daemon() != pid


def test_files_are_only_for_their_owner(service: Service) -> None:
    """The daemon's umask is 0: every mode must have been asked for."""
    service.daemon("-T", str(service.where / "trace"))
    service.ask(WRITE, b"/a\0v")
    assert stat.S_IMODE(service.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(service.run.stat().st_mode) == 0o755
    assert stat.S_IMODE((service.where / "trace").stat().st_mode) == 0o600
    for path in (p for p in service.run.iterdir() if p.is_file()):
        assert not path.stat().st_mode & 0o022, path


@pytest.mark.parametrize("words", [(), ("-N",)])
def test_a_start_that_fails_says_why_and_returns_1(service: Service, words: tuple[str, ...]) -> None:
    (service.where / "file").write_text("")
    service.environment["XENSTORED_RUNDIR"] = str(service.where / "file" / "run")
    done = service.command("-D", *words)
    assert done.returncode == 1
    assert str(service.where / "file") in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [(), ("-N",)])
def test_a_socket_that_cannot_be_made_is_said_and_nothing_is_left(service: Service, words: tuple[str, ...]) -> None:
    service.environment["XENSTORED_PATH"] = str(service.where / "none" / "socket")
    done = service.command("-D", "-F", str(service.pid_file), *words)
    assert done.returncode == 1
    assert str(service.where / "none" / "socket") in done.stderr
    assert "Traceback" not in done.stderr
    assert not service.pid_file.exists()
    assert not (service.run / "recovery-box").exists()


# ---- only one


@pytest.mark.parametrize("words", [(), ("-N",)])
def test_a_second_daemon_with_the_same_pid_file_returns_0_and_harms_nothing(
    service: Service, words: tuple[str, ...]
) -> None:
    pid = service.daemon()
    service.ask(WRITE, b"/a\0v")
    done = service.command("-D", "-F", str(service.pid_file), *words)
    assert done.returncode == 0
    assert str(service.pid_file) in done.stderr
    assert service.pid_file.read_text() == f"{pid}\n"
    assert service.ask(READ, b"/a\0") == b"v"


@pytest.mark.parametrize("words", [(), ("-N",)])
def test_a_second_daemon_in_the_same_directory_returns_1_and_harms_nothing(
    service: Service, words: tuple[str, ...]
) -> None:
    service.daemon()
    service.ask(WRITE, b"/a\0v")
    other = service.where / "other.pid"
    done = service.command("-D", "-F", str(other), *words)
    assert done.returncode == 1
    assert "another daemon" in done.stderr
    assert "Traceback" not in done.stderr
    assert service.ask(READ, b"/a\0") == b"v"
    assert not other.exists()


def test_what_a_dead_daemon_left_does_not_stop_the_next_one(service: Service) -> None:
    service.run.mkdir()
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(service.socket))
    service.pid_file.write_text("1\n")
    service.daemon()
    assert service.ask(READ, b"/tool\0") == b""


# ---- the command line


def test_help_goes_to_stdout_and_returns_0(service: Service) -> None:
    done = service.command("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--no-domain-init" in done.stdout


@pytest.mark.parametrize("words", [("-N", "-D", "word"), ("-D", "-E", "many"), ("-D", "-M", "5000")])
def test_a_wrong_command_line_returns_1_in_one_line(service: Service, words: tuple[str, ...]) -> None:
    done = service.command(*words)
    assert done.returncode == 1
    assert done.stderr.startswith("xenstored: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(os.path.exists("/dev/xen/evtchn"), reason="this is a Xen host")
@pytest.mark.parametrize("words", [(), ("-N",)])
def test_without_xen_it_says_how_to_do_without(service: Service, words: tuple[str, ...]) -> None:
    done = service.command(*words)
    assert done.returncode == 1
    assert "not a Xen host" in done.stderr
    assert "--no-domain-init" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not service.run.exists()


def test_options_take_effect_and_unknown_ones_are_in_the_log(service: Service) -> None:
    service.environment["XENSTORED_PATH"] = str(service.where / "elsewhere")
    service.socket = service.where / "elsewhere"
    process = service.foreground("--bogus", "-U", "-E", "77", "-q", "memory=5")
    quota = service.ask(CONTROL, b"quota\0")
    assert b"nodes            :       77 " in quota
    assert b"memory           :        5 " in service.ask(CONTROL, b"quota-soft\0")
    assert not (service.run / "socket").exists()
    process.terminate()
    assert process.stderr is not None
    said = process.stderr.read().decode()
    assert process.wait(PATIENCE) == 0
    assert "--bogus" in said
    assert "-U" in said


# ---- systemd


def notified(service: Service, address: str, bound: str) -> tuple[bytes, int]:
    """What systemd is told, and by whom; clients can connect when it is."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        systemd.settimeout(PATIENCE)
        systemd.bind(bound)
        service.environment["NOTIFY_SOCKET"] = address
        process = service.foreground()
        data, ancillary, _, _ = systemd.recvmsg(100, socket.CMSG_SPACE(12))
        assert service.ask(READ, b"/tool\0") == b""
        sender = struct.unpack("3i", ancillary[0][2][:12])[0]
        assert sender == process.pid
        systemd.setblocking(False)
        with pytest.raises(BlockingIOError):  # said once, and by nobody else
            systemd.recv(100)
    return data, sender


def test_systemd_is_told_once_clients_can_connect(service: Service) -> None:
    address = str(service.where / "notify")
    assert notified(service, address, address)[0] == b"READY=1"


def test_systemds_socket_may_be_an_abstract_one(service: Service) -> None:
    name = f"xenstored-test-{os.getpid()}-{time.monotonic_ns()}"
    assert notified(service, "@" + name, "\0" + name)[0] == b"READY=1"


def test_a_daemon_in_the_background_tells_systemd_too(service: Service) -> None:
    address = str(service.where / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(PATIENCE)
        systemd.bind(address)
        service.environment["NOTIFY_SOCKET"] = address
        service.daemon()
        assert systemd.recv(100) == b"READY=1"


def test_a_systemd_that_does_not_listen_is_no_reason_not_to_serve(service: Service) -> None:
    service.environment["NOTIFY_SOCKET"] = str(service.where / "nobody")
    service.daemon()
    assert service.ask(READ, b"/tool\0") == b""


# ---- the trace


def test_sighup_opens_the_trace_file_again(service: Service) -> None:
    trace, old = service.where / "trace", service.where / "trace.1"
    pid = service.daemon("-T", str(trace))
    service.ask(WRITE, b"/before\0")
    eventually(lambda: b"/before" in trace.read_bytes(), "nothing is traced")
    trace.rename(old)
    service.ask(WRITE, b"/between\0")
    os.kill(pid, signal.SIGHUP)
    eventually(trace.exists, "the trace file is not opened again")
    service.ask(WRITE, b"/behind\0")
    eventually(lambda: b"/behind" in trace.read_bytes(), "nothing is traced any more")
    assert b"/between" in old.read_bytes()
    assert b"/behind" not in old.read_bytes()
    assert is_alive(pid)


def test_a_trace_file_that_cannot_be_opened_is_no_reason_not_to_serve(service: Service) -> None:
    process = service.foreground("-T", str(service.where / "none" / "trace"))
    assert service.ask(READ, b"/tool\0") == b""
    process.terminate()
    assert process.stderr is not None
    assert str(service.where / "none" / "trace") in process.stderr.read().decode()
    assert process.wait(PATIENCE) == 0
