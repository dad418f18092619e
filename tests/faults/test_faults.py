"""What the machine does to the daemon ends in a protocol error or in nothing at all: never in a traceback, a hang or a loss."""

import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conformance.wire import PATIENCE, Client, Op, strings
from tests.faults.faulty import ALWAYS, SHIM, MachineOfFaults
from tests.model.test_running import RunningMachine, play
from tests.oracle.daemons import short_run_dir
from tests.recovery.logic import kill_logic, state_stopped, wait_for_logic

pytestmark = pytest.mark.skipif(SHIM.missing() is not None, reason=str(SHIM.missing()))

PATIENT = 6 * PATIENCE
Start = Callable[..., MachineOfFaults]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a daemon with these arguments; nothing may have been raised in it at the end."""
    with short_run_dir() as run_dir:
        daemons: list[MachineOfFaults] = []

        def begin(*arguments: str) -> MachineOfFaults:
            daemons.append(MachineOfFaults(run_dir, [word.replace("RUN", str(run_dir)) for word in arguments]))
            daemons[-1].start()
            return daemons[-1]

        yield begin
        for daemon in daemons:
            daemon.stop()
            daemon.check()


def test_short_reads_and_writes_eagain_and_eintr_change_nothing(start: Start) -> None:
    """The reference model judges everything, as on a machine without faults."""
    daemon = start()
    with daemon.faults(short=100, again=40, interrupted=40):
        play(RunningMachine, daemon, 8, shrink=False)


def test_a_full_disk_costs_the_log_and_the_checkpoint_but_no_write(start: Start) -> None:
    daemon = start("--guardian", "-T", "RUN/trace")
    with Client(daemon.socket) as client:
        client.write("/before", b"1")
        with daemon.faults(no_space=ALWAYS):
            for number in range(300):
                client.write(f"/full/{number}", b"x" * 1000)
            client.call(Op.CONTROL, strings("log", "on"))
            kill_logic(daemon)
            assert client.read("/full/299") == b"x" * 1000
            client.ask(Op.CONTROL, strings("print", "to a full disk"))
            assert wait_until(lambda: daemon.met(3) > 0)
        client.write("/after", b"2")
        assert [client.read(path) for path in ("/before", "/full/0", "/after")] == [b"1", b"x" * 1000, b"2"]
    assert (Path(daemon.run_dir) / "trace").exists()


def test_nobody_is_lost_for_want_of_descriptors(start: Start) -> None:
    daemon = start()
    with Client(daemon.socket) as first:
        first.write("/a")
        with daemon.faults(no_descriptors=ALWAYS):
            waiting = Client(daemon.socket)
            request = waiting.send(Op.GET_DOMAIN_PATH, b"7\0")
            for number in range(50):
                first.write("/a", b"%d" % number)
            assert wait_until(lambda: "out of descriptors" in daemon.output())
        with waiting:
            assert waiting.reply(request, PATIENT).payload == b"/local/domain/7\0"
        assert first.read("/a") == b"49"


def test_a_logic_that_gets_no_memory_is_followed_by_another_and_nothing_acknowledged_is_lost(start: Start) -> None:
    daemon = start()
    with Client(daemon.socket) as client:
        client.write("/kept", b"1")
        logic = wait_for_logic(daemon)
        size = int(Path(f"/proc/{logic.pid}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(logic.pid, resource.RLIMIT_AS, (size + (2 << 20), resource.RLIM_INFINITY))
        acknowledged = 0
        for number in range(4000):
            outcome = client.reply(client.send(Op.WRITE, strings(f"/n/{number}") + b"x" * 4000), PATIENT)
            acknowledged += outcome.op == Op.WRITE
            assert outcome.op == Op.WRITE or outcome.payload in {b"ENOMEM\0", b"EIO\0"}
            if outcome.op == Op.WRITE:
                assert client.read(f"/n/{number}") == b"x" * 4000
        assert acknowledged > 3900
        assert client.read("/kept") == b"1"
        assert len(client.call(Op.DIRECTORY_PART, strings("/n", "0"))) > 1000
        assert wait_for_logic(daemon).pid != logic.pid, "the limit was not met"
        logic.close()
    assert "ran out of memory" in daemon.output()


def test_a_full_journal_makes_clients_wait_and_loses_nothing(start: Start) -> None:
    daemon = start()
    value, count = b"x" * 4000, 1500
    with Client(daemon.socket) as client, Client(daemon.socket) as other:
        client.write("/a", b"")
        with state_stopped(daemon):
            sent = answered = 0
            deadline = time.monotonic() + PATIENT
            while sent < count and time.monotonic() < deadline:
                client.send(Op.WRITE, strings(f"/j/{sent}") + value)
                sent += 1
                try:
                    client.receive(0.5)
                    answered += 1
                except TimeoutError:
                    break
            assert answered < sent, "four megabytes of journal took six"
        while answered < sent:
            assert client.receive(PATIENT).op == Op.WRITE
            answered += 1
        assert all(other.read(f"/j/{number}") == value for number in range(sent))


def test_a_slow_state_makes_clients_slow_and_nothing_else(start: Start) -> None:
    daemon = start()
    with Client(daemon.socket) as client:
        client.write("/s")  # State has accepted it
        for burst in range(8):
            with state_stopped(daemon):
                replies = client.pipeline((Op.WRITE, strings(f"/s/{burst}/{n}") + b"v") for n in range(100))
                assert all(reply.op == Op.WRITE for reply in replies)
        kill_logic(daemon)
        assert all(len(client.directory(f"/s/{burst}")) == 100 for burst in range(8))


@pytest.mark.parametrize("jump", [{"realtime": -86400}, {"realtime": 86400}, {"monotonic": 3600}])
def test_a_clock_that_jumps_loses_nothing(start: Start, jump: dict[str, int]) -> None:
    daemon = start("--watchdog", "5")
    with Client(daemon.socket) as client, Client(daemon.socket) as watcher:
        watcher.watch("/c", "t")
        client.write("/c/0", b"0")
        with daemon.faults(**jump):
            for number in range(1, 30):
                client.write(f"/c/{number}", b"%d" % number)
        for number in range(30, 60):
            client.write(f"/c/{number}", b"%d" % number)
        assert len(client.directory("/c")) == 60
        assert [event.path for event in watcher.events_so_far()] == [b"/c/%d" % number for number in range(60)]


def wait_until(holds: Callable[[], bool]) -> bool:
    """Whether it comes to hold in good time."""
    deadline = time.monotonic() + PATIENT
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()
