"""Bytes through rings: messages larger than a ring, split anywhere, indices that wrap, readers that stop, many guests.

A ring holds 1024 bytes each way, a message up to 4112; how the bytes of a stream arrive must not matter.
"""

from __future__ import annotations

import os
import random
import time
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from tests.conformance.conftest import CHOICE
from tests.conformance.test_guest_basics import (
    MakeGuest,
    empty_responses,
    eventually,
    fill_responses,
    home_of,
    introduce,
    is_served,
    many_turns,
    not_for_c,
    replies,
)
from tests.conformance.wire import HEADER, PATIENCE, PAYLOAD_MAX, Client, Event, Message, Op, pack, strings
from tests.conformance.xen import RING, Guest

# ---- large messages


@pytest.mark.parametrize("size", [900, 1005, 1006, 1007, 1008, 1024, 1500, 2000])
def test_a_value_larger_than_the_ring_goes_both_ways(guest: MakeGuest, client: Client, size: int) -> None:
    one = guest()
    value = random.Random(size).randbytes(size)
    for _ in range(5):  # at other places in the ring
        one.write("v", value)
        assert one.read("v") == client.read(f"{home_of(one)}/v") == value


def test_the_largest_messages_go_both_ways_through_domain_0s_ring(dom0_ring: Guest, node: str) -> None:
    value = random.Random(1).randbytes(PAYLOAD_MAX - len(node) - 1)
    for _ in range(5):
        dom0_ring.write(node, value)
        assert dom0_ring.read(node) == value
    dom0_ring.write(node, b"")


# ---- pieces


def test_a_request_may_come_byte_by_byte(guest: MakeGuest, client: Client) -> None:
    one = guest()
    value = b"value"
    for byte in pack(Op.WRITE, strings("a") + value, req_id=3) + pack(Op.READ, b"a\0", req_id=4):
        assert one.put_bytes(bytes([byte])) == 1
        client.call(Op.GET_DOMAIN_PATH, b"0\0")
    assert [(reply.req_id, reply.payload) for reply in replies(one, 2)] == [(3, b"OK\0"), (4, value)]


def test_a_request_may_be_split_anywhere(guest: MakeGuest, client: Client) -> None:
    one = guest()
    whole = pack(Op.GET_DOMAIN_PATH, b"7\0", req_id=1)
    for at in range(1, len(whole)):
        one.put_bytes(whole[:at])
        many_turns(client) if at in (1, 15, 16, 17) else is_served(client)
        one.put_bytes(whole[at:])
        assert one.reply(1).payload == b"/local/domain/7\0"


def test_a_reply_may_be_read_byte_by_byte(guest: MakeGuest) -> None:
    """The guest gives room back one byte at a time."""
    one = guest()
    value = random.Random(2).randbytes(1400)
    one.write("v", value)
    one.put_bytes(pack(Op.READ, b"v\0", req_id=9))
    got = bytearray()
    deadline = time.monotonic() + 4 * PATIENCE
    while len(got) < HEADER.size + len(value):
        assert time.monotonic() < deadline
        consumer = one.field("rsp_cons")
        if one.field("rsp_prod") != consumer:
            got.append(one.page[RING + consumer % RING])
            one.set_field("rsp_cons", consumer + 1)
            one.kick()
    assert got[HEADER.size :] == value


# ---- indices


def test_indices_run_on_beyond_the_ring_and_beyond_65536(guest: MakeGuest) -> None:
    one = guest()
    rng = random.Random(3)
    while min(one.field("req_cons"), one.field("rsp_prod")) <= 2**16:
        value = rng.randbytes(rng.randrange(1900))
        one.write("v", value)
        assert one.read("v") == value
    assert one.field("req_cons") == one.field("req_prod")
    assert one.field("rsp_cons") == one.field("rsp_prod")


@pytest.mark.skipif(CHOICE != "c", reason="a guest may not set the daemon's positions, so it would take 4 GiB")
def test_indices_run_on_beyond_2_to_the_32(guest: MakeGuest) -> None:
    one = guest()
    for name in ("req_cons", "req_prod", "rsp_cons", "rsp_prod"):
        one.set_field(name, 0xFFFFFE00)
    for i in range(5):
        one.write("v", bytes([i]) * 900)
        assert one.read("v") == bytes([i]) * 900
    assert one.field("req_prod") < 0xFFFFFE00


def test_after_an_introduction_the_stream_begins_at_zero_again(guest: MakeGuest, client: Client) -> None:
    one = guest()
    for i in range(10):
        one.write("v", bytes([i]) * 700)
        introduce(client, one)
        assert one.read("v") == bytes([i]) * 700
        assert one.field("rsp_prod") == HEADER.size + 700


# ---- readers that stop


def test_forty_requests_of_a_reader_that_stops_are_all_answered(guest: MakeGuest, client: Client) -> None:
    one = guest()
    one.write("v", b"x" * 1500)
    requests = b"".join(pack(Op.READ, b"v\0", req_id=i) for i in range(40))
    assert one.put_bytes(requests) == len(requests)
    eventually(lambda: one.field("rsp_prod") - one.field("rsp_cons") == RING, "the ring of responses is full")
    many_turns(client)
    assert is_served(client)
    assert [(reply.req_id, reply.payload) for reply in replies(one, 40)] == [(i, b"x" * 1500) for i in range(40)]


def test_events_wait_for_a_reader_that_stops(guest: MakeGuest, client: Client) -> None:
    one = guest()
    one.watch("a", "t")
    for i in range(100):
        client.write(f"{home_of(one)}/a/{i}", b"v")
    assert is_served(client)
    assert [event.path for event in one.events_so_far()] == [b"a/%d" % i for i in range(100)]


def test_an_event_that_is_still_waiting_is_not_queued_again(guest: MakeGuest, client: Client) -> None:
    """core.c:send_event"""
    one = guest()
    one.watch("x", "t")
    one.watch("y", "t")
    fill_responses(one)
    for i in range(7):
        client.write(f"{home_of(one)}/{'xy'[i % 2]}", str(i).encode())
    empty_responses(one)
    assert one.events_so_far() == [Event(b"x", b"t"), Event(b"y", b"t")]


def test_replies_and_events_keep_their_order_behind_a_full_ring(guest: MakeGuest, client: Client) -> None:
    one = guest()
    one.watch("a", "t")
    fill_responses(one)
    for i in range(5):
        client.write(f"{home_of(one)}/a/{i}", b"v")
        begin = one.field("req_cons")
        one.put_bytes(pack(Op.GET_DOMAIN_PATH, strings(i), req_id=i + 1))
        eventually(lambda begin=begin: one.field("req_cons") != begin, "the request is taken")  # type: ignore[misc]
        many_turns(client)
    empty_responses(one)
    kinds = [one.receive().op for _ in range(10)]
    assert kinds == [Op.WATCH_EVENT, Op.GET_DOMAIN_PATH] * 5


# ---- many guests at once, against a model


@dataclass
class Model:
    """A guest's own tree: value and names of children, by path; what each request must answer."""

    nodes: dict[str, bytes] = field(default_factory=dict)

    def children(self, path: str) -> list[str]:
        return [node for node in self.nodes if node.rpartition("/")[0] == path]

    def make(self, path: str) -> None:
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            self.nodes.setdefault("/".join(parts[:depth]), b"")

    def answer(self, op: Op, path: str, value: bytes) -> bytes | str:
        parent = path.rpartition("/")[0]
        if op in (Op.WRITE, Op.MKDIR):
            self.make(path)
            if op == Op.WRITE:
                self.nodes[path] = value
            return b"OK\0"
        if op == Op.RM:
            known = path in self.nodes or not parent or parent in self.nodes
            self.nodes = {node: v for node, v in self.nodes.items() if node != path and not node.startswith(path + "/")}
            return b"OK\0" if known else "ENOENT"
        if path not in self.nodes:
            return "ENOENT"
        if op == Op.READ:
            return self.nodes[path]
        return b"".join(node.rpartition("/")[2].encode() + b"\0" for node in self.children(path))


PATHS = ["a", "b", "a/a", "a/b", "b/c", "a/b/c", "b/c/d", "a/a/a/a"]
SIZES = [0, 1, 5, 30, 400, 1007, 1008, 1900]
GUESTS, REQUESTS = 20, 60


class Script:
    """One guest's requests as a stream of bytes, and the answers that must come back."""

    def __init__(self, guest: Guest, rng: random.Random) -> None:
        self.guest, self.rng, self.model = guest, rng, Model()
        self.expected: list[bytes | str] = []
        self.unsent = bytearray()
        for number in range(REQUESTS):
            op = rng.choice([Op.WRITE, Op.WRITE, Op.WRITE, Op.READ, Op.READ, Op.MKDIR, Op.DIRECTORY, Op.RM])
            path = rng.choice(PATHS)
            value = rng.randbytes(rng.choice(SIZES)) if op == Op.WRITE else b""
            self.unsent += pack(op, strings(path) + value, req_id=number)
            self.expected.append(self.model.answer(op, path, value))
        self.got: list[Message] = []

    @property
    def done(self) -> bool:
        return len(self.got) == REQUESTS

    def step(self) -> None:
        """Sends a little, reads a little, or neither."""
        if self.rng.random() < 0.7:
            piece = bytes(self.unsent[: self.rng.choice([1, 7, 16, 100, 1024])])
            del self.unsent[: self.guest.put_bytes(piece, timeout=0)]
        if self.rng.random() < 0.6:
            with suppress(TimeoutError):
                self.guest.pending += self.guest.receive_raw(0)
        with suppress(TimeoutError):
            while not self.done:
                self.got.append(self.guest.receive(0))

    def check(self) -> None:
        assert [reply.req_id for reply in self.got] == list(range(REQUESTS))
        for number, (reply, expected) in enumerate(zip(self.got, self.expected, strict=True)):
            payload = reply.payload[:-1].decode() if reply.op == Op.ERROR else reply.payload
            assert payload == expected, f"request {number} of domain {self.guest.domid}"


@pytest.mark.parametrize("seed", [1, 2, None])
def test_twenty_guests_at_once_are_each_told_the_truth(guest: MakeGuest, client: Client, seed: int | None) -> None:
    """Random scripts, sent and read in random pieces, all guests interleaved; each compared with a model of its tree."""
    seed = int.from_bytes(os.urandom(4), "little") if seed is None else seed
    print(f"seed {seed}")
    rng = random.Random(seed)
    scripts = [Script(guest(), random.Random(rng.getrandbits(32))) for _ in range(GUESTS)]
    deadline = time.monotonic() + 60
    while waiting := [script for script in scripts if not script.done]:
        assert time.monotonic() < deadline, f"{len(waiting)} guests are still waiting"
        rng.choice(waiting).step()
    for script in scripts:
        script.check()
        for path, value in script.model.nodes.items():
            assert client.read(f"{home_of(script.guest)}/{path}") == value


@not_for_c("takes the beginning of the next message for the rest of the old one")
def test_a_stream_that_an_introduction_cuts_anywhere_begins_cleanly(guest: MakeGuest, client: Client) -> None:
    one = guest()
    whole = pack(Op.WRITE, strings("v") + b"x" * 40)
    for size in range(1, len(whole)):
        one.put_bytes(whole[:size])
        is_served(client)
        introduce(client, one)
        one.pending.clear()
        assert is_served(one)
    assert client.directory(home_of(one)) == []
