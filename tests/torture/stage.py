"""What a phase of the torture plays on: a daemon, its clients, and people who come and go."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from tests.conformance.processes import anonymous_bytes, descriptors
from tests.conformance.wire import Client, Closed, Op, WireError, strings
from tests.oracle.daemons import OurDaemon, session_members
from tests.recovery.clients_process import ClientsProcess
from tests.torture.injections import hits_of
from tests.torture.launcher import VARIABLE

PATIENCE: Final = 60.0


class TortureDaemon(OurDaemon):
    """A daemon that can be made to crash at named steps, or is a broken build."""

    module = "tests.torture.launcher"

    def __init__(
        self,
        run_dir: Path,
        seed: int,
        *,
        guardian: bool = False,
        steps: Sequence[str] = (),
        broken: str = "",
        arguments: Sequence[str] = (),
    ) -> None:
        self._crashes = run_dir / "crashes"
        self.hits: Counter[str] = Counter()
        told = {"file": str(self._crashes), "seed": seed, "steps": list(steps), "broken": broken}
        super().__init__(
            run_dir, ["--guardian" if guardian else "--no-guardian", *arguments], {VARIABLE: json.dumps(told)}
        )

    @contextmanager
    def crashing(self) -> Iterator[None]:
        """From now on, and until the end of the block, it crashes at its steps."""
        self._crashes.touch()
        yield
        self.count_hits()
        self._crashes.unlink()

    def count_hits(self) -> None:
        """Has `hits` say how often it has crashed at each step."""
        self.hits = hits_of(self._crashes.read_bytes().splitlines())

    def zombies(self) -> int:
        """Dead processes of the daemon that nobody has buried."""
        return sum(1 for fields in _processes(self.pid) if fields[0] == "Z")

    def restarts(self) -> int:
        """How often State says to have started Logic anew, since it began itself."""
        with Client(self.socket) as client:
            text = client.call(Op.CONTROL, strings("restarts")).decode()
        line = next(line for line in text.splitlines() if line.startswith("restarts of Logic: "))
        return int(line.split()[3])


def _processes(session: int) -> Iterator[list[str]]:
    """Fields of /proc/PID/stat from the state on, of all processes of a session."""
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                yield fields


def state_of(daemon: OurDaemon) -> int:
    """The pid of State: the parent of the Logic that runs.  (That of one which has just lost its State is the guardian.)"""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with suppress(FileNotFoundError, ProcessLookupError, ValueError):
            logic = int((daemon.run_dir / "logic.pid").read_text())
            parent = int(Path(f"/proc/{logic}/stat").read_text().rpartition(")")[2].split()[1])
            is_guardian = Path(f"/proc/{parent}/comm").read_text() == "xenstore-guard\n"
            if parent > 1 and not is_guardian and parent in session_members(daemon.pid):
                return parent
        time.sleep(0.002)
    raise AssertionError(f"no State:\n{daemon.output()[-4000:]}")


class Size:
    """What a process holds."""

    def __init__(self, pid: int) -> None:
        self.resident = anonymous_bytes([pid]) >> 10
        """KiB of its own; what it shares in files is not counted."""
        self.descriptors = descriptors(pid)


@contextmanager
def crowd(daemon: OurDaemon, seed: int, number: int, *options: str) -> Iterator[ClientsProcess]:
    """Clients at work (`workload`); none is left afterwards."""
    clients = ClientsProcess("tests.torture.workload", str(daemon.socket), str(seed), str(number), *options)
    try:
        yield clients
    finally:
        clients.end()


class Visitors:
    """Two threads that connect, write, read what they wrote, and hang up, again and again.

    Where State dies between the kernel's accepting a connection and its being kept, the peer finds it closed, and nothing it
    asked for was done: that is counted in `turned_away`.
    """

    def __init__(self, daemon: OurDaemon, count: int = 2) -> None:
        self.daemon = daemon
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(count)]

    def __enter__(self) -> Visitors:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def _run(self, number: int) -> None:
        visit = 0
        previous = ""
        while not self._over.wait(0.002):
            visit += 1
            path = f"/visit/{number}/{visit}"
            try:
                self._visit(path, previous)
                previous = path
                self.counts["visits"] += 1
            except (Closed, ConnectionError):
                self.counts["turned away"] += 1
                previous = ""
                self._was_not_served(path)
            except (OSError, WireError, AssertionError) as e:
                self.failures.append(f"visit {path}: {e!r}")
                return

    def _visit(self, path: str, previous: str) -> None:
        with Client(self.daemon.socket) as client:
            reply = client.reply(client.send(Op.WRITE, strings(path) + path.encode()), PATIENCE)
            assert reply.payload == b"OK\0", reply
            reply = client.reply(client.send(Op.READ, strings(path)), PATIENCE)
            assert reply.payload == path.encode(), reply
            if previous:
                reply = client.reply(client.send(Op.RM, strings(previous)), PATIENCE)
                assert reply.payload == b"OK\0", reply

    def _was_not_served(self, path: str) -> None:
        """Nothing that a visitor asked for who was turned away was done."""
        with suppress(Closed, ConnectionError), Client(self.daemon.socket) as client:
            reply = client.reply(client.send(Op.READ, strings(path)), PATIENCE)
            if reply.payload != b"ENOENT\0":
                self.failures.append(f"a connection was closed after its request was executed: {path}")
