"""Clients that send nonsense, send too much or never read: the daemon's other clients must not notice.

After every test the same processes must be running, none of them may have written a traceback, and a new client
must be served.  `XOARSTORE_RANDOM_SECONDS` says for how long random bytes are sent (5 s unless given).
"""

from __future__ import annotations

import os
import random
import resource
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.conformance.conftest import running
from tests.conformance.processes import anonymous_bytes, becomes_idle, highest_descriptor
from tests.conformance.subject import UnderTest
from tests.conformance.test_guest_basics import unharmed
from tests.conformance.wire import HEADER, PATIENCE, PAYLOAD_MAX, Client, Closed, Op, connect, pack, strings
from tests.oracle.daemons import EACH_REQUEST, Daemon

RANDOM_SECONDS = float(os.environ.get("XOARSTORE_RANDOM_SECONDS", "5"))
"""Share of one processor below which a daemon with nothing to do counts as idle."""
MIB = 1 << 20


ROUND_TRIPS = 10 if EACH_REQUEST else 100
LEISURE = PATIENCE if EACH_REQUEST else 2.0
"""Seconds for those, while others do not read: who waits for them waits for ever."""
EVENTS = 10_000 if EACH_REQUEST else 20_000
"""That nobody takes."""
FLOOD = 2000 if EACH_REQUEST else 10_000
"""Requests of one that never reads."""


def is_served(client: Client) -> bool:
    return client.call(Op.GET_DOMAIN_PATH, b"7\0") == b"/local/domain/7\0"


@pytest.fixture(autouse=True)
def goes_on(daemon: UnderTest) -> Iterator[None]:
    """The daemon goes on as if nothing had happened."""
    with unharmed(daemon):
        yield
    with Client(daemon.socket) as client:
        assert is_served(client)


@pytest.fixture
def process(daemon: UnderTest) -> Daemon:
    """The daemon's processes, for tests that measure them."""
    if daemon.process is None:
        pytest.skip("needs to see the daemon's processes")
    return daemon.process


# ---- single malformed messages


@pytest.mark.parametrize("op", list(Op), ids=lambda op: op.name)
@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0",
        b"\0" * PAYLOAD_MAX,
        b"/" * PAYLOAD_MAX,
        b"\xff" * PAYLOAD_MAX,
        b"\0\xff\xff\xff\xff",
        b"-1\x00-1\x00-1\0",
    ],
    ids=["empty", "NUL", "4096 NULs", "4096 slashes", "4096 times 255", "NUL and 255s", "negative numbers"],
)
def test_every_operation_answers_every_payload(client: Client, op: Op, payload: bytes) -> None:
    """core.c:process_message; an empty payload is legal framing"""
    client.outcome(op, payload)
    client.outcome(op, payload, tx=client.start())
    assert is_served(client)


@pytest.mark.parametrize("size", [1, 15, 16, 20], ids=lambda size: f"{size} bytes")
def test_the_end_of_the_stream_inside_a_message_closes_the_connection(client: Client, other: Client, size: int) -> None:
    """posix.c:readfd"""
    client.send_raw(pack(Op.READ, b"/tool\0")[:size])
    client.sock.shutdown(socket.SHUT_WR)
    assert client.is_closed_by_daemon()
    assert client.arrived == []
    assert is_served(other)


def test_a_half_message_keeps_nobody_waiting(client: Client, other: Client) -> None:
    """core.c:handle_input"""
    whole = pack(Op.GET_DOMAIN_PATH, b"7\0", req_id=9)
    client.send_raw(whole[:10])
    assert is_served(other)
    client.send_raw(whole[10:])
    assert client.reply(9).payload == b"/local/domain/7\0"


def test_a_client_that_vanishes_with_unread_replies_is_forgotten(connect: Callable[[], Client], other: Client) -> None:
    """posix.c:socket_can_process"""
    for _ in range(50):
        vanishing = connect()
        vanishing.send_raw(pack(Op.WATCH, strings("/", "t")) + pack(Op.READ, b"/tool\0") * 20 + b"\1")
        vanishing.close()
        assert is_served(other)
    other.write("/", b"")


def test_a_client_that_connects_and_leaves_costs_nothing(process: Daemon) -> None:
    """posix.c:accept_connection"""
    with Client(process.socket) as client:
        assert is_served(client)
        before = highest_descriptor(process.lasting_pids())
        for _ in range(300):
            connect(process.socket).close()
        assert is_served(client)
        for _ in range(3):
            with Client(process.socket) as one:
                assert is_served(one)
        deadline = time.monotonic() + PATIENCE  # all three hundred may have been open at once
        while highest_descriptor(process.lasting_pids()) > before + 40:
            assert time.monotonic() < deadline
            with Client(process.socket) as one:
                assert is_served(one)


# ---- clients that do not read


def flood(client: Client, request: bytes, count: int) -> int:
    """Sends the request up to count times until the daemon takes no more; the number of bytes sent."""
    data = memoryview(request * count)
    sent = 0
    client.sock.setblocking(False)
    while sent < len(data) and select.select([], [client.sock], [], 0.5)[1]:
        try:
            sent += client.sock.send(data[sent : sent + 65536])
        except BlockingIOError:
            continue
    return sent


@pytest.fixture
def untouched(fresh_daemon: Daemon) -> Iterator[tuple[Daemon, Client, Client]]:
    """A daemon whose memory holds nothing of earlier tests, and two connections to it."""
    with Client(fresh_daemon.socket) as client, Client(fresh_daemon.socket) as other:
        assert is_served(client)
        assert is_served(other)
        yield fresh_daemon, client, other
        assert "Traceback" not in fresh_daemon.output()


def test_a_client_that_floods_and_never_reads_is_no_longer_read_and_loses_nothing(
    untouched: tuple[Daemon, Client, Client],
) -> None:
    """XSA-326: replies that nobody takes must not pile up"""
    process, client, other = untouched
    other.write("/big", b"v" * 4000)
    request = pack(Op.READ, b"/big\0", req_id=1)
    pids = process.lasting_pids()
    before = anonymous_bytes(pids)
    sent = flood(client, request, FLOOD)
    started = time.monotonic()
    assert all(is_served(other) for _ in range(ROUND_TRIPS))
    assert time.monotonic() - started < LEISURE, "others wait for the one that does not read"
    assert anonymous_bytes(pids) - before < FLOOD * 4000 * 0.4, "all of the replies were kept"
    assert becomes_idle(pids), "a connection that cannot be written to keeps the daemon busy"
    torn = sent % len(request)
    rest = memoryview(request)[torn:] if torn else memoryview(b"")
    for _ in range(-(-sent // len(request))):
        if rest and select.select([], [client.sock], [], 0)[1]:
            rest = rest[client.sock.send(rest) :]
        reply = client.receive()
        assert (reply.op, len(reply.payload)) == (Op.READ, 4000)
    assert is_served(client)
    assert process.lasting_pids() == pids


def test_events_that_nobody_takes_are_bounded(untouched: tuple[Daemon, Client, Client]) -> None:
    """XSA-326: a watcher that never reads"""
    process, client, other = untouched
    other.mkdir("/n")
    client.watch("/n", "T" * 3900)
    pids = process.lasting_pids()
    before = anonymous_bytes(pids)
    for i in range(EVENTS // 100):
        paths = [strings(f"/n/{i}-{j}") for j in range(50)]
        other.pipeline([(op, path) for path in paths for op in (Op.MKDIR, Op.RM)])
    assert anonymous_bytes(pids) - before < EVENTS * 3900 * 0.2, "all of the events were kept"
    assert is_served(other)
    assert becomes_idle(pids)
    try:
        client.call(Op.GET_DOMAIN_PATH, b"7\0")
        assert client.events, "what fitted was delivered"
    except Closed:
        pass  # giving such a client up is as good as keeping it: it can see that it has missed something
    assert process.lasting_pids() == pids


def test_many_clients_that_do_not_read_keep_nobody_waiting(
    process: Daemon, connect: Callable[[], Client], other: Client, node: str
) -> None:
    """posix.c: a full socket is not waited for"""
    other.write(node, b"v" * 4000)
    for _ in range(20):
        flood(connect(), pack(Op.READ, strings(node)), 200)
    started = time.monotonic()
    assert all(is_served(other) for _ in range(ROUND_TRIPS))
    assert time.monotonic() - started < LEISURE


# ---- random bytes

NAMES = ["/", "/r", "/r/a", "/r/a/b", "/r/c", "r", "r/x", "@releaseDomain", "@introduceDomain", "@x", "//", "/r/", ""]
WORDS = ["t", "T", "F", "n0", "r5", "b32757", "w-1", "0", "1", "-1", "65536", "x", "nodes", "check", "quota", "log", ""]


def noise(rng: random.Random) -> bytes:
    """Bytes of three kinds: nothing but random, a header with a random body, nearly sensible requests."""
    kind = rng.random()
    if kind < 0.2:
        return rng.randbytes(rng.randrange(1, 200))
    tx = rng.choice([0, 0, 0, 1, 2, 3, rng.getrandbits(32)])
    op = rng.choice(list(Op)) if rng.random() < 0.9 else rng.getrandbits(rng.choice([5, 8, 32]))
    if kind < 0.5:
        body = rng.randbytes(rng.choice([0, 1, 2, 5, 30, 1000, PAYLOAD_MAX]))
    else:
        body = b"\0".join(rng.choice(NAMES if i == 0 else WORDS).encode() for i in range(rng.randrange(1, 5)))
        body += rng.choice([b"\0", b"\0", b"\0", b"", rng.randbytes(3)])
    length = len(body) if rng.random() < 0.97 else rng.choice([0, len(body) + 3, PAYLOAD_MAX, 4097, 1 << 31])
    return HEADER.pack(op, rng.getrandbits(32), tx, length) + body


def test_random_bytes_do_no_harm(process: Daemon, other: Client) -> None:
    """No traceback, no restart, no growth, no busy loop; another client is served all the time."""
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    rng = random.Random(seed)
    pids = process.lasting_pids()
    socks: list[socket.socket] = []
    before = 0
    until, warm = time.monotonic() + RANDOM_SECONDS, time.monotonic() + RANDOM_SECONDS / 5
    try:
        while time.monotonic() < until:
            if not before and time.monotonic() > warm:
                before = anonymous_bytes(pids)
            if len(socks) < 30:
                socks.append(connect(process.socket))
                socks[-1].setblocking(False)
            i = rng.randrange(len(socks))
            try:
                socks[i].send(b"".join(noise(rng) for _ in range(rng.randrange(1, 20))))
                if rng.random() < 0.9:
                    while socks[i].recv(1 << 20):
                        pass
                    socks.pop(i).close()  # the daemon has hung up
            except BlockingIOError:
                if rng.random() < 0.02:
                    socks.pop(i).close()
            except (BrokenPipeError, ConnectionResetError):
                socks.pop(i).close()
            if rng.random() < 0.05:
                assert is_served(other)
    finally:
        for sock in socks:
            sock.close()
    other.call(Op.RM, b"/r\0")
    other.write("/", b"")
    assert is_served(other)
    assert anonymous_bytes(pids) - before < 16 * MIB
    assert becomes_idle(pids), "busy although nobody asks for anything"


def test_random_headers_of_one_byte_pieces_do_no_harm(connect: Callable[[], Client], other: Client) -> None:
    """Framing is independent of how the bytes arrive."""
    rng = random.Random(1)
    for _ in range(20):
        victim = connect()
        try:
            for byte in struct.pack("=IIII", rng.choice(list(Op)), 1, 0, 6) + b"/tool\0":
                victim.send_raw(bytes([byte]))
        except Closed:
            continue
        assert victim.receive().req_id == 1
    assert is_served(other)


# ---- no descriptors left

SPARE = 25


def test_without_descriptors_accepting_pauses_and_goes_on_when_clients_leave() -> None:
    """Nothing spins, the log says so, those who are connected are served, and so are the waiting ones later."""
    with running() as process, ExitStack() as stack:
        first = stack.enter_context(Client(process.socket))
        assert is_served(first)
        said = len(process.output())
        limit = highest_descriptor(process.lasting_pids()) + 1 + SPARE
        for pid in process.lasting_pids():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))

        clients: list[Client] = []
        for _ in range(3 * SPARE):
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(0.2)
            try:
                sock.connect(str(process.socket))
            except (BlockingIOError, TimeoutError):
                sock.close()
                break  # the queue of those who wait is full
            clients.append(stack.enter_context(Client.of(sock)))
            clients[-1].send(Op.GET_DOMAIN_PATH, b"7\0")
        time.sleep(0.5)
        served = [one for one in clients if select.select([one.sock], [], [], 0)[0]]
        waiting = [one for one in clients if one not in served]
        assert served, "nobody was accepted"
        assert waiting, "the limit was not reached"
        assert is_served(first)
        assert becomes_idle(process.lasting_pids()), "spins for want of descriptors"
        assert "descriptor" in process.output()[said:].lower()

        for one in served:
            one.close()
        deadline = time.monotonic() + PATIENCE
        for one in waiting[: len(served)]:
            assert one.receive(max(0.1, deadline - time.monotonic())).payload == b"/local/domain/7\0"
        assert is_served(first)
        assert "Traceback" not in process.output()
