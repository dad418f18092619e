"""Whoever wants something gets it, however many others always want more, under every policy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import pytest

from tests.conformance.wire import Client, Op, pack, strings
from tests.conformance.xen import Guest, SimulatedXen
from tests.oracle.daemons import OurDaemon, short_run_dir
from xenstore_logic.loop import BATCH

POLICIES = ["on-crash", "every=0.01", "after=1", "after=100", "per-request", "per-request=guests"]
BUSY = 2 * BATCH
WITHIN = 15.0
"""Seconds: every one of the busy is served some times in these, even by a Logic of its own each time."""
REQUESTS = pack(Op.WRITE, strings("/busy") + b"x" * 3500) * 10


class Crowd:
    """Clients that always have asked for more than they have got."""

    def __init__(self, clients: list[Client]) -> None:
        self._clients = clients
        self._left = [b""] * len(clients)
        self.served: set[int] = set()
        """Those that have got something."""
        for client in clients:
            client.sock.setblocking(False)

    def pump(self) -> None:
        """Everybody takes what has come, and asks for more."""
        for i, client in enumerate(self._clients):
            with suppress(BlockingIOError):
                if client.sock.recv(1 << 16):
                    self.served.add(i)
            with suppress(BlockingIOError):
                self._left[i] = self._left[i] or REQUESTS
                self._left[i] = self._left[i][client.sock.send(self._left[i]) :]

    def until(self, condition: Callable[[], bool]) -> bool:
        """Whether that comes true in time, busy as they are."""
        deadline = time.monotonic() + WITHIN
        while not condition():
            if time.monotonic() > deadline:
                return False
            self.pump()
            time.sleep(0.002)
        return True

    def for_a_while(self) -> None:
        """Until all of them wait."""
        end = time.monotonic() + 0.5
        self.until(lambda: time.monotonic() > end)


@dataclass(frozen=True)
class Scene:
    """A daemon with a crowd; a client that came before that, a guest, and a client that came behind it."""

    daemon: OurDaemon
    xen: SimulatedXen
    first: Client
    guest: Guest
    crowd: Crowd
    last: Client


@contextmanager
def crowded(policy: str) -> Iterator[Scene]:
    with short_run_dir() as run_dir, OurDaemon(run_dir, ["--restart", policy]) as daemon, ExitStack() as stack:
        assert daemon.xen_dir is not None
        xen = SimulatedXen(daemon.xen_dir)
        first, guest = stack.enter_context(Client(daemon.socket)), stack.enter_context(xen.create(5))
        first.mkdir("/local/domain/5")
        first.set_perms("/local/domain/5", "n5")
        first.call(Op.INTRODUCE, strings(5, 1, guest.port))
        guest.write("data", b"v")
        crowd = Crowd([stack.enter_context(Client(daemon.socket)) for _ in range(BUSY)])
        last = stack.enter_context(Client(daemon.socket))
        last.write("/last")
        crowd.for_a_while()
        yield Scene(daemon, xen, first, guest, crowd, last)


def answered(one: Client, payload: bytes) -> Callable[[], bool]:
    """Whether the answer has come."""

    def look() -> bool:
        try:
            return one.receive(0.0005).payload == payload
        except TimeoutError:
            return False

    return look


@pytest.mark.parametrize("policy", POLICIES)
def test_nobody_is_passed_over_for_ever(policy: str) -> None:
    with crowded(policy) as scene:
        for who in ("first", "last", "guest"):
            one = getattr(scene, who)
            one.send(Op.READ, strings("data" if who == "guest" else "/last"))
            assert scene.crowd.until(answered(one, b"v" if who == "guest" else b"")), f"{who} is passed over"
        with Client(scene.daemon.socket) as newcomer:
            newcomer.send(Op.READ, strings("/last"))
            assert scene.crowd.until(answered(newcomer, b"")), "a new connection is passed over"
        scene.crowd.served.clear()
        assert scene.crowd.until(lambda: len(scene.crowd.served) == BUSY), f"only {len(scene.crowd.served)} are served"


@pytest.mark.parametrize("policy", POLICIES)
def test_what_happens_to_a_domain_is_told(policy: str) -> None:
    with crowded(policy) as scene:
        scene.last.send(Op.WATCH, strings("@releaseDomain", "token"))
        assert scene.crowd.until(answered(scene.last, b"OK\0"))
        assert scene.crowd.until(answered(scene.last, strings("@releaseDomain", "token")))
        scene.xen.destroy(5)
        assert scene.crowd.until(answered(scene.last, strings("@releaseDomain", "token"))), "news are passed over"
