"""What every conformance test starts from: the daemon under test, connections to it, guests, a node of one's own.

The suite tests this project's daemon unless the environment variable `XOARSTORE_UNDER_TEST` says otherwise: `c` or
`ocaml` for Debian's daemons, or the path of a socket on which any xenstored listens.  Tests that need more of the
daemon than its socket (its processes, its output, a restart) are skipped when all there is is a socket.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.conformance.subject import KINDS, UnderTest
from tests.conformance.wire import Client, Closed, Op, WireError, strings
from tests.conformance.xen import Guest, SimulatedXen, wait_until_released
from tests.oracle.daemons import Daemon, short_run_dir
from tests.oracle.restarting import restarted_in_test, restarted_inside


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """With `XOARSTORE_RESTART`, Logic must have been restarted while the test itself ran.

    If it has a daemon of its own that one's: `running` looks after it.
    """
    values = pyfuncitem.funcargs
    shared = values.get("daemon") if "fresh_daemon" not in values else None
    with restarted_in_test(shared.process if isinstance(shared, UnderTest) else None):
        return (yield)


CHOICE = os.environ.get("XOARSTORE_UNDER_TEST", "ours")


@contextmanager
def running(*extra_args: str) -> Iterator[Daemon]:
    """A daemon of the chosen kind, started for the caller alone; skips when it can't be."""
    kind = KINDS.get(CHOICE)
    if kind is None:
        pytest.skip("needs a daemon of its own, not just a socket")
    reason = kind.available()
    if reason is not None:
        pytest.skip(reason)
    with short_run_dir() as run_dir, kind(run_dir, extra_args) as daemon, restarted_inside(daemon):
        yield daemon


@pytest.fixture(scope="module")
def shared_daemon() -> Iterator[UnderTest]:
    """A daemon for one module."""
    if CHOICE not in KINDS:
        yield UnderTest(Path(CHOICE), None)
        return
    with running() as process:
        yield UnderTest(process.socket, process)


@pytest.fixture
def daemon(shared_daemon: UnderTest) -> UnderTest:
    """The daemon that the tests of one module share; started again when the test before has killed it."""
    process = shared_daemon.process
    if process is not None and not process.running():
        process.stop()
        process.start()
    return shared_daemon


@pytest.fixture
def fresh_daemon() -> Iterator[Daemon]:
    """A daemon that nobody has talked to yet."""
    with running() as process:
        yield process


@pytest.fixture
def connect(daemon: UnderTest) -> Iterator[Callable[[], Client]]:
    """Makes connections, which are closed at the end of the test."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(Client(daemon.socket))


@pytest.fixture
def client(connect: Callable[[], Client]) -> Client:
    return connect()


@pytest.fixture
def other(connect: Callable[[], Client]) -> Client:
    return connect()


NUMBERS = itertools.count(1)


@pytest.fixture
def node(daemon: UnderTest) -> Iterator[str]:
    """The path of a node made for this test alone, removed afterwards."""
    path = f"/conformance-{os.getpid()}-{next(NUMBERS)}"
    with Client(daemon.socket) as client:
        client.mkdir(path)
    yield path
    with Client(daemon.socket) as client:
        client.rm(path)


@pytest.fixture
def home(daemon: UnderTest) -> Iterator[str]:
    """The path below which a socket's relative paths lie, removed afterwards."""
    yield "/local/domain/0"
    with Client(daemon.socket) as client:
        try:
            client.call(Op.RM, strings("/local/domain/0"))
        except WireError:
            pass  # neither it nor its parent is there


@pytest.fixture
def xen(daemon: UnderTest) -> SimulatedXen:
    """The simulated Xen that the daemon runs on."""
    folder = None if daemon.process is None else daemon.process.xen_dir
    if folder is None:
        pytest.skip("needs guests: this daemon is known by its socket only, not on a simulated Xen")
    return SimulatedXen(folder)


DOMIDS = itertools.count(2000)


@pytest.fixture
def guest(daemon: UnderTest, xen: SimulatedXen) -> Iterator[Callable[..., Guest]]:
    """Makes guests: `guest(perms=None)` is a new domain with a home node of its own, introduced.

    All of them are gone from daemon and store at the end of the test, however it ended.
    """
    guests: list[Guest] = []

    def make(perms: Sequence[str] | None = None) -> Guest:
        new = xen.create(next(DOMIDS))
        guests.append(new)
        with Client(daemon.socket) as client:
            client.write(f"/local/domain/{new.domid}")
            client.set_perms(f"/local/domain/{new.domid}", *(perms or [f"n{new.domid}"]))
            client.call(Op.INTRODUCE, strings(new.domid, 1, new.port))
        return new

    yield make
    for old in guests:
        xen.destroy(old.domid)
    try:
        with Client(daemon.socket) as client:
            for old in guests:
                wait_until_released(client, old.domid)
                client.outcome(Op.RM, strings(f"/local/domain/{old.domid}"))
    except (OSError, Closed):
        pass  # the test has ended the daemon
    for old in guests:
        old.close()


@pytest.fixture
def dom0_ring(xen: SimulatedXen) -> Iterator[Guest]:
    """Domain 0 at its own ring."""
    with xen.dom0_ring() as ring:
        yield ring
