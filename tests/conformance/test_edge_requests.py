"""Edge cases of framing, payload forms, operation numbers, transaction ids and domids.

Expected is what the newest C xenstored answers; each test's docstring names the function that decides it there.
Cases of the edge-case table covered here: 1-4, 14-17, 31-34, 36-40, 111, 115, 116, 152, 153.
"""

from __future__ import annotations

import socket
import time

import pytest

from tests.conformance.wire import PAYLOAD_MAX, Client, Op, pack, strings

UNKNOWN_TX = 4242

# ---- payloads


@pytest.mark.parametrize(
    "payload", [b"/tool", b"/tool\0\0", b"", b"\0"], ids=["no NUL", "two NULs", "empty", "only a NUL"]
)
@pytest.mark.parametrize("op", [Op.READ, Op.DIRECTORY, Op.MKDIR, Op.RM, Op.GET_PERMS])
def test_a_single_path_ends_with_its_only_nul(client: Client, op: Op, payload: bytes) -> None:
    """core.c:onearg, canonicalize"""
    assert client.outcome(op, payload) == "EINVAL"


def test_write_needs_a_nul_after_the_path(client: Client, node: str) -> None:
    """core.c:do_write"""
    assert client.outcome(Op.WRITE, f"{node}/a".encode()) == "EINVAL"
    assert not client.exists(f"{node}/a")


@pytest.mark.parametrize(
    "value",
    [b"", b"x\0", b"x\0y", b"\0", bytes(range(256))],
    ids=["empty", "NUL at end", "NUL inside", "NUL", "all bytes"],
)
def test_a_value_is_every_byte_after_the_paths_nul(client: Client, node: str, value: bytes) -> None:
    """core.c:do_write"""
    client.write(f"{node}/a", value)
    assert client.read(f"{node}/a") == value


def test_a_message_may_carry_4096_bytes(client: Client, node: str) -> None:
    """core.c:handle_input"""
    path = f"{node}/a"
    value = b"v" * (PAYLOAD_MAX - len(path) - 1)
    client.write(path, value)
    assert client.read(path) == value


def test_a_message_of_4097_bytes_ends_the_connection_without_a_reply(client: Client, other: Client) -> None:
    """core.c:handle_input"""
    client.send_raw(pack(Op.READ, length=PAYLOAD_MAX + 1))
    assert client.is_closed_by_daemon()
    assert client.arrived == []
    assert other.read("/tool") == b""


def test_a_reply_of_more_than_4096_bytes_is_e2big(client: Client, node: str) -> None:
    """core.c:send_reply"""
    for i in range(120):
        client.mkdir(f"{node}/child-{i:04}-{'x' * 30}")
    assert client.outcome(Op.DIRECTORY, strings(node)) == "E2BIG"


# ---- order and ends of streams


def test_pipelined_requests_are_answered_in_order(client: Client) -> None:
    """core.c:main"""
    replies = client.pipeline([(Op.READ, b"/tool\0")] * 10)
    assert [reply.req_id for reply in replies] == sorted(reply.req_id for reply in replies)
    assert [(reply.op, reply.payload) for reply in replies] == [(Op.READ, b"")] * 10


def test_requests_may_arrive_byte_by_byte(client: Client) -> None:
    """core.c:handle_input"""
    for byte in pack(Op.GET_DOMAIN_PATH, b"7\0", req_id=9):
        client.send_raw(bytes([byte]))
        time.sleep(0.001)
    assert client.reply(9).payload == b"/local/domain/7\0"


@pytest.mark.parametrize(
    "part", [pack(Op.READ, length=5)[:7], pack(Op.READ, b"/tool", length=50)], ids=["header", "body"]
)
def test_the_end_of_the_stream_in_a_message_closes_the_connection(client: Client, other: Client, part: bytes) -> None:
    """posix.c:readfd"""
    client.send_raw(part)
    client.sock.shutdown(socket.SHUT_WR)
    assert client.is_closed_by_daemon()
    assert client.arrived == []
    assert other.read("/tool") == b""


def test_a_reply_repeats_type_request_id_and_transaction_id(client: Client) -> None:
    """core.c:send_reply"""
    tx = client.start()
    for req_id in (0, 1, 0x7FFFFFFF, 0xFFFFFFFF):
        client.send(Op.READ, b"/tool\0", tx=tx, req_id=req_id)
        assert client.receive() == (Op.READ, req_id, tx, b"")


def test_an_error_repeats_request_id_and_transaction_id_and_names_an_errno(client: Client) -> None:
    """core.c:send_error"""
    tx = client.start()
    client.send(Op.READ, b"/missing\0", tx=tx, req_id=77)
    assert client.receive() == (Op.ERROR, 77, tx, b"ENOENT\0")


# ---- operation numbers


@pytest.mark.parametrize("op", [15, 16, 20, 27, 128, 0xFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("tx", [0, UNKNOWN_TX], ids=["no transaction", "unknown transaction"])
def test_an_unknown_operation_is_enosys_before_anything_else(client: Client, op: int, tx: int) -> None:
    """core.c:process_message"""
    assert client.outcome(op, b"/tool\0", tx=tx) == "ENOSYS"
    assert client.outcome(op, b"x" * PAYLOAD_MAX, tx=tx) == "ENOSYS"


# ---- transaction ids


@pytest.mark.parametrize(
    ("op", "payload"),
    [
        (Op.READ, b"/tool\0"),
        (Op.READ, b""),
        (Op.WRITE, b"/x\0v"),
        (Op.TRANSACTION_START, b"\0"),
        (Op.TRANSACTION_END, b"T\0"),
        (Op.GET_DOMAIN_PATH, b"1\0"),
        (Op.CONTROL, b"check\0"),
        (Op.GET_FEATURE, b""),
        (Op.RESET_WATCHES, b"\0"),
        (Op.INTRODUCE, b"x"),
    ],
)
def test_an_unknown_transaction_is_enoent_for_every_operation(client: Client, op: Op, payload: bytes) -> None:
    """core.c:process_message, transaction_lookup"""
    assert client.outcome(op, payload, tx=UNKNOWN_TX) == "ENOENT"


def test_a_transaction_belongs_to_its_connection(client: Client, other: Client) -> None:
    """transaction.c:transaction_lookup"""
    tx = client.start()
    assert other.outcome(Op.READ, b"/tool\0", tx=tx) == "ENOENT"
    assert client.read("/tool", tx=tx) == b""


def test_watch_and_unwatch_ignore_the_transaction_and_echo_it(client: Client, node: str) -> None:
    """core.c:wire_funcs XS_FLAG_NOTID"""
    for op in (Op.WATCH, Op.UNWATCH):
        reply = client.ask(op, strings(node, "t"), tx=UNKNOWN_TX)
        assert (reply.op, reply.tx_id, reply.payload) == (op, UNKNOWN_TX, b"OK\0")


def test_a_watch_event_carries_neither_request_nor_transaction_id(client: Client, node: str) -> None:
    """core.c:send_event"""
    client.ask(Op.WATCH, strings(node, "t"), tx=UNKNOWN_TX)
    assert client.receive() == (Op.WATCH_EVENT, 0, 0, strings(node, "t"))


# ---- domids


@pytest.mark.parametrize(
    ("text", "domid"), [("007", 7), ("+5", 5), (" 5", 5), ("", 0), ("65535", 65535), ("32752", 32752)]
)
def test_a_domid_is_read_as_strtoul_does(client: Client, text: str, domid: int) -> None:
    """domain.c:parse_domid"""
    assert client.call(Op.GET_DOMAIN_PATH, strings(text)) == strings(f"/local/domain/{domid}")


@pytest.mark.parametrize("text", ["abc", "65536", "-1", "5x", "5 ", "0x5", "99999999999999999999"])
def test_a_domid_out_of_range_or_followed_by_something_is_einval(client: Client, text: str) -> None:
    """domain.c:parse_domid"""
    assert client.outcome(Op.GET_DOMAIN_PATH, strings(text)) == "EINVAL"


def test_domid_self_is_introduced(client: Client) -> None:
    """domain.c:do_is_domain_introduced"""
    assert client.call(Op.IS_DOMAIN_INTRODUCED, b"32752\0") == b"T\0"
