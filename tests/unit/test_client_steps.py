"""What each operation of the client asks, and what it makes of the answers: `protocol.client.steps`, without any I/O."""

from collections.abc import Sequence
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import errors
from protocol.client import UnexpectedReply, steps
from protocol.client.steps import Request, Steps, decode_text, encode_text, refusal
from protocol.errors import ERROR_NAMES, StoreError
from protocol.ops import Op
from protocol.permissions import BOTH, NONE, READ, Permission

T = TypeVar("T")


def play(operation: Steps[T], replies: Sequence[bytes | StoreError]) -> tuple[T, list[Request]]:
    """Answers the operation's requests one after the other; its result and what it asked."""
    asked = []
    remaining = list(replies)
    try:
        request = next(operation)
        while True:
            asked.append(request)
            reply = remaining.pop(0)
            request = operation.throw(reply) if isinstance(reply, StoreError) else operation.send(reply)
    except StopIteration as stop:
        assert not remaining
        result: T = stop.value
        return result, asked


ONE_REQUEST = [
    (steps.read("/a"), Op.READ, b"/a\0", b"v\0\xff", b"v\0\xff"),
    (steps.read(b"data"), Op.READ, b"data\0", b"", b""),
    (steps.write("/a", "text é"), Op.WRITE, b"/a\0text \xc3\xa9", b"OK\0", None),
    (steps.write("/a", b"\0\xff\0"), Op.WRITE, b"/a\0\0\xff\0", b"OK\0", None),
    (steps.write("/a", b""), Op.WRITE, b"/a\0", b"OK\0", None),
    (steps.mkdir("/a"), Op.MKDIR, b"/a\0", b"OK\0", None),
    (steps.rm("/a"), Op.RM, b"/a\0", b"OK\0", None),
    (steps.exists("/a"), Op.READ, b"/a\0", b"", True),
    (steps.directory("/"), Op.DIRECTORY, b"/\0", b"", []),
    (steps.directory("/"), Op.DIRECTORY, b"/\0", b"b\0a\0", ["b", "a"]),
    (steps.get_perms("/a"), Op.GET_PERMS, b"/a\0", b"n0\0r-1\0", [Permission(NONE, 0), Permission(READ, 2**32 - 1)]),
    (steps.set_perms("/a", [Permission(BOTH, 1), "r7", b"n0x10"]), Op.SET_PERMS, b"/a\0b1\0r7\0n16\0", b"OK\0", None),
    (steps.get_domain_path(3), Op.GET_DOMAIN_PATH, b"3\0", b"/local/domain/3\0", "/local/domain/3"),
    (steps.is_domain_introduced(3), Op.IS_DOMAIN_INTRODUCED, b"3\0", b"T\0", True),
    (steps.is_domain_introduced(3), Op.IS_DOMAIN_INTRODUCED, b"3\0", b"F\0", False),
    (steps.introduce(3, 77, 5), Op.INTRODUCE, b"3\x0077\x005\0", b"OK\0", None),
    (steps.release(3), Op.RELEASE, b"3\0", b"OK\0", None),
    (steps.resume(3), Op.RESUME, b"3\0", b"OK\0", None),
    (steps.set_target(3, 4), Op.SET_TARGET, b"3\x004\0", b"OK\0", None),
    (steps.get_feature(None), Op.GET_FEATURE, b"", b"14\0", 14),
    (steps.get_feature(0), Op.GET_FEATURE, b"0\0", b"6\0", 6),
    (steps.set_feature(3, 4), Op.SET_FEATURE, b"3\x004\0", b"OK\0", None),
    (steps.quota_names(), Op.GET_QUOTA, b"", b"nodes watches\0", ["nodes", "watches"]),
    (steps.get_quota("nodes", None), Op.GET_QUOTA, b"nodes\0", b"1000\0", 1000),
    (steps.get_quota("nodes", 3), Op.GET_QUOTA, b"3\0nodes\0", b"1000\0", 1000),
    (steps.set_quota("nodes", 5, None), Op.SET_QUOTA, b"nodes\x005\0", b"OK\0", None),
    (steps.set_quota("nodes", 5, 3), Op.SET_QUOTA, b"3\0nodes\x005\0", b"OK\0", None),
    (steps.control(["quota", "set", "nodes", "5"]), Op.CONTROL, b"quota\0set\0nodes\x005\0", b"OK\0", "OK"),
    (steps.control(["print"]), Op.CONTROL, b"print\0", b"no nul", "no nul"),
    (steps.start_transaction(), Op.TRANSACTION_START, b"\0", b"17\0", 17),
    (steps.commit_transaction(), Op.TRANSACTION_END, b"T\0", b"OK\0", None),
]  # fmt: skip


@pytest.mark.parametrize(("operation", "op", "payload", "reply", "result"), ONE_REQUEST)
def test_an_operation_is_one_request_and_its_reply(
    operation: Steps[object], op: Op, payload: bytes, reply: bytes, result: object
) -> None:
    assert play(operation, [reply]) == (result, [Request(op, payload)])


def test_a_transaction_is_aborted_with_f() -> None:
    assert steps.end_transaction(False) == Request(Op.TRANSACTION_END, b"F\0")


# Text


@given(st.binary().filter(lambda data: b"\0" not in data))
def test_any_name_survives_being_text(data: bytes) -> None:
    assert encode_text(decode_text(data)) == encode_text(data) == data


@pytest.mark.parametrize("operation", [steps.write("/a\0b", "v"), steps.mkdir(b"\0"), steps.control(["a\0"])])
def test_a_nul_inside_a_string_is_einval_and_nothing_is_sent(operation: Steps[None]) -> None:
    with pytest.raises(errors.EINVAL):
        play(operation, [])


def test_a_malformed_permission_is_einval_and_nothing_is_sent() -> None:
    with pytest.raises(errors.EINVAL):
        play(steps.set_perms("/a", ["x0"]), [])


@pytest.mark.parametrize("single", ["n0", b"n0", Permission(NONE, 0)])
def test_permissions_are_a_list(single: str) -> None:
    with pytest.raises(TypeError):
        play(steps.set_perms("/a", single), [])


# Refusals


@pytest.mark.parametrize("name", ERROR_NAMES)
def test_a_refusal_has_its_name_and_the_class_of_that_name(name: str) -> None:
    error = refusal(name.encode() + b"\0")
    assert error.name == name
    assert isinstance(error, getattr(errors, name, StoreError))


@pytest.mark.parametrize("payload", [b"EQUOTA\0", b"", b"\xff\0"])
def test_a_name_outside_the_table_is_einval(payload: bytes) -> None:
    error = refusal(payload)
    assert error.name == "EINVAL"
    assert error.__notes__


def test_a_missing_node_does_not_exist() -> None:
    assert play(steps.exists("/a"), [StoreError("ENOENT")])[0] is False


def test_whether_an_unreadable_node_exists_is_not_said() -> None:
    with pytest.raises(StoreError, match="EACCES"):
        play(steps.exists("/a"), [StoreError("EACCES")])


@pytest.mark.parametrize(
    ("operation", "reply"),
    [
        (steps.get_feature(None), b"x\0"),
        (steps.start_transaction(), b"\0"),
        (steps.get_quota("nodes", None), b""),
        (steps.is_domain_introduced(1), b"OK\0"),
        (steps.get_perms("/a"), b"zero\0"),
    ],
)
def test_a_reply_that_means_nothing_is_reported(operation: Steps[object], reply: bytes) -> None:
    with pytest.raises(UnexpectedReply):
        play(operation, [reply])


# Long directories

LONG = [b"node-%d" % number for number in range(40)]


def listing(names: Sequence[bytes]) -> bytes:
    return b"".join(name + b"\0" for name in names)


def parts(names: Sequence[bytes], generation: bytes, size: int) -> list[bytes]:
    """The replies to DIRECTORY_PART for a whole list, with `size` names in each."""
    chunks = [listing(names[start : start + size]) for start in range(0, len(names), size)] or [b""]
    return [generation + b"\0" + chunk for chunk in chunks[:-1]] + [generation + b"\0" + chunks[-1] + b"\0"]


@given(st.integers(1, 41), st.integers(0, 40))
def test_a_list_that_is_too_long_comes_in_parts(size: int, count: int) -> None:
    names = LONG[:count]
    replies = parts(names, b"7", size)
    answers: list[bytes | StoreError] = [StoreError("E2BIG"), *replies]
    result, asked = play(steps.directory("/long"), answers)
    assert result == [name.decode() for name in names]
    assert asked[0] == Request(Op.DIRECTORY, b"/long\0")
    offsets = [len(listing(names[: size * number])) for number in range(len(replies))]
    assert asked[1:] == [Request(Op.DIRECTORY_PART, b"/long\0%d\0" % offset) for offset in offsets]


def test_the_end_may_come_as_a_part_of_its_own() -> None:
    replies: list[bytes | StoreError] = [StoreError("E2BIG"), b"7\0a\0b\0", b"7\0\0"]
    assert play(steps.directory("/long"), replies)[0] == ["a", "b"]


def test_a_change_between_two_parts_starts_the_list_anew() -> None:
    old, new = parts(LONG, b"7", 15), parts(LONG[5:], b"9", 15)
    result, asked = play(steps.directory("/long"), [StoreError("E2BIG"), old[0], new[1], *new])
    assert result == [name.decode() for name in LONG[5:]]
    assert asked[3] == Request(Op.DIRECTORY_PART, b"/long\x000\0")


def test_a_change_before_the_first_part_is_none() -> None:
    result, _ = play(steps.directory("/long"), [StoreError("E2BIG"), *parts(LONG, b"7", 50)])
    assert len(result) == 40


def test_a_list_that_never_holds_still_ends_in_eagain() -> None:
    restless = [b"%d\0a\0" % number for number in range(2 * steps.DIRECTORY_RESTARTS + 2)]
    with pytest.raises(errors.EAGAIN):
        play(steps.directory("/long"), [StoreError("E2BIG"), *restless])


def test_a_daemon_without_parts_leaves_it_at_e2big() -> None:
    with pytest.raises(StoreError, match="E2BIG"):
        play(steps.directory("/long"), [StoreError("E2BIG"), StoreError("ENOSYS")])


def test_a_long_directory_that_vanishes_is_enoent() -> None:
    with pytest.raises(StoreError, match="ENOENT"):
        play(steps.directory("/long"), [StoreError("E2BIG"), b"7\0a\0", StoreError("ENOENT")])


@pytest.mark.parametrize("reply", [b"", b"7", b"7\0"])
def test_a_part_without_names_or_end_is_reported(reply: bytes) -> None:
    with pytest.raises(UnexpectedReply):
        play(steps.directory("/long"), [StoreError("E2BIG"), reply])
