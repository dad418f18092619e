"""A guest on its ring is served as any client is; and the helpers that all tests of guests share.

Expected everywhere in `test_guest_*` and `test_xsa_*` is what the newest C xenstored answers, except where
`docs/differences.md` says otherwise.  `differs` marks what Debian's C xenstored 4.17 does otherwise: such a test is
expected to fail there, and one that does not is reported.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from tests.conformance.conftest import CHOICE, running
from tests.conformance.subject import UnderTest
from tests.conformance.wire import PATIENCE, Client, Event, Message, Op, strings
from tests.conformance.xen import Guest, SimulatedXen, wait_until_released
from tests.oracle.daemons import EACH_REQUEST, Daemon, OurDaemon

MakeGuest = Callable[..., Guest]
MIB = 1 << 20
UNKNOWN = 99
"""An operation that does not exist; its answer is ENOSYS, and nothing else happens."""
NEWBORN_DOMIDS = itertools.count(4000)


def differs(how: str) -> pytest.MarkDecorator:
    """For a rule that C xenstored 4.17 does not keep; `how` says what it does instead."""
    return pytest.mark.xfail(CHOICE == "c", reason=f"C xenstored 4.17: {how}", strict=True)


def not_for_c(why: str) -> pytest.MarkDecorator:
    """For a test that C xenstored 4.17 would fail slowly, or not survive."""
    return pytest.mark.skipif(CHOICE == "c", reason=f"C xenstored 4.17: {why}")


# ---- domains


def home_of(guest: Guest) -> str:
    return f"/local/domain/{guest.domid}"


@contextmanager
def newborn(xen: SimulatedXen, client: Client, *, domid: int = 0, port: int = 7) -> Iterator[Guest]:
    """A domain that exists and that nobody has introduced; gone at the end, as are its home and its connection."""
    guest = xen.create(domid or next(NEWBORN_DOMIDS), port=port)
    try:
        yield guest
    finally:
        xen.destroy(guest.domid)
        guest.close()
        wait_until_released(client, guest.domid)
        client.outcome(Op.RM, strings(home_of(guest)))


def give_home(client: Client, guest: Guest) -> None:
    client.write(home_of(guest))
    client.set_perms(home_of(guest), f"n{guest.domid}")


def introduce(client: Client, guest: Guest) -> None:
    assert client.call(Op.INTRODUCE, strings(guest.domid, 1, guest.port)) == b"OK\0"


def is_introduced(client: Client, domid: int) -> bool:
    return client.call(Op.IS_DOMAIN_INTRODUCED, strings(domid)) == b"T\0"


@contextmanager
def own_daemon(*extra_args: str) -> Iterator[tuple[Daemon, SimulatedXen, Client]]:
    """A daemon for one test alone, with its Xen and a connection to it, on which / can still be read at the end."""
    with running(*extra_args) as process:
        if process.xen_dir is None:
            pytest.skip("needs guests: this daemon does not run on a simulated Xen")
        with Client(process.socket) as client:
            client.call(Op.GET_DOMAIN_PATH, b"0\0")  # it has looked at what domains there are
            yield process, SimulatedXen(process.xen_dir), client
            assert client.read("/") == b""


def known_process(daemon: UnderTest) -> Daemon:
    """The daemon's processes, for tests that measure them or read what they say."""
    if daemon.process is None:
        pytest.skip("needs to see the daemon's processes")
    return daemon.process


def deaths(daemon: UnderTest) -> dict[str, int]:
    """How often the Logic of this project's daemon has died otherwise than on purpose, by kind; empty for other daemons."""
    if not isinstance(daemon.process, OurDaemon):
        return {}
    with Client(daemon.socket) as client:
        report = client.call(Op.CONTROL, strings("restarts")).decode()
    line = re.search(r"^restarts of Logic: \d+ \((.*)\)$", report, re.MULTILINE)
    assert line, report
    counts = {kind: int(number) for kind, number in (word.split(" ") for word in line[1].split(", "))}
    assert counts.keys() >= {"planned", "killed", "hung", "failed"}, report
    del counts["planned"]
    return counts


@contextmanager
def unharmed(daemon: UnderTest) -> Iterator[None]:
    """Afterwards domain 0 can still read /, the same processes run, and none of them has written a traceback.

    Where Logic is restarted on purpose that is the only reason for which it was.
    """
    process = daemon.process
    before, died = process.lasting_pids() if process else [], deaths(daemon)
    said = len(process.output()) if process else 0
    yield
    with Client(daemon.socket) as client:
        assert client.read("/") == b""
    if process:
        assert process.lasting_pids() == before, "a process died and was replaced"
        output = process.output()[said:]
        at = output.find("Traceback")
        assert at < 0, output[max(at - 500, 0) : at + 5000]
        assert deaths(daemon) == died, f"Logic died, and not on purpose: {output[-2000:]}"


# ---- waiting


def eventually(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Returns as soon as the condition holds; fails when it does not within the time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.001)


def next_events(client: Client, count: int) -> list[Event]:
    """So many events, those that have come already included; forgets them."""
    deadline = time.monotonic() + PATIENCE
    while len(client.events) < count:
        try:
            client.receive(max(deadline - time.monotonic(), 0.001))
        except TimeoutError:
            raise AssertionError(f"{count} events expected, {len(client.events)} came: {client.events}") from None
    events = list(client.events)
    client.forget()
    return events


TURNS = 10 if EACH_REQUEST else 50


def many_turns(client: Client) -> None:
    """Keeps the daemon busy with somebody else long enough to do whatever it means to do without being asked."""
    for _ in range(TURNS):
        client.call(Op.GET_DOMAIN_PATH, b"0\0")


def is_served(client: Client) -> bool:
    return client.call(Op.GET_DOMAIN_PATH, b"7\0") == b"/local/domain/7\0"


# ---- rings


def fill_responses(guest: Guest) -> None:
    """Makes the ring of responses full, without a byte in it that means anything."""
    guest.set_field("rsp_cons", guest.field("rsp_prod") - 1024)


def empty_responses(guest: Guest) -> None:
    """Makes room again after `fill_responses`, provided that nothing could be put there since."""
    guest.set_field("rsp_cons", guest.field("rsp_prod"))
    guest.kick()


def replies(guest: Guest, count: int) -> list[Message]:
    """So many messages that are no events."""
    found: list[Message] = []
    while len(found) < count:
        message = guest.receive()
        if message.op != Op.WATCH_EVENT:
            found.append(message)
    return found


# ---- accounts


class Account(NamedTuple):
    """One line of CONTROL `quota <domid>`: how much now, how much at most so far, how often refused."""

    used: int
    most: int | None
    refused: int


def account(client: Client, domid: int, quota: str) -> Account:
    """What the daemon counts for a domain; C xenstored 4.17 shows no `most`, only ours shows refusals."""
    text = client.call(Op.CONTROL, strings("quota", domid)).decode()
    line = re.search(rf"^{quota} *: *(\d+)(?: \(max +(\d+)\))?(?: refused (\d+))?$", text, re.MULTILINE)
    assert line, f"no line for {quota} in {text!r}"
    return Account(int(line[1]), int(line[2]) if line[2] else None, int(line[3] or 0))


def set_quota(client: Client, guest: Guest, quota: str, value: int) -> None:
    assert client.call(Op.SET_QUOTA, strings(guest.domid, quota, value)) == b"OK\0"


def nodes_owned(client: Client, domid: int, path: str = "/") -> int:
    """How many nodes at and below the path the domain owns, found by walking there."""
    below = "" if path == "/" else path
    count, waiting = 0, [(path, below)]
    while waiting:
        at, prefix = waiting.pop()
        count += client.get_perms(at)[0][1:] == str(domid).encode()
        waiting += [(child, child) for child in (f"{prefix}/{name.decode()}" for name in client.directory(at))]
    return count


# ---- a guest is a client


def test_a_guests_replies_come_in_the_order_of_its_requests(guest: MakeGuest) -> None:
    one = guest()
    answers = one.pipeline([(Op.GET_DOMAIN_PATH, strings(i)) for i in range(200)])
    assert [message.payload for message in answers] == [strings(f"/local/domain/{i}") for i in range(200)]
