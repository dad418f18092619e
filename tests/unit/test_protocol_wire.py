"""Messages and framing: `protocol.wire`, `protocol.errors` and `protocol.ops` on their own."""

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import errors
from protocol.errors import ERROR_NAMES, StoreError
from protocol.ops import OPERATIONS, SOCKET_FEATURES, Op
from protocol.wire import (
    ACK,
    HEADER,
    HEADER_SIZE,
    MESSAGE_MAX,
    PAYLOAD_MAX,
    Framer,
    FramingViolation,
    Message,
    error_reply,
    watch_event,
)

U32 = st.integers(0, 2**32 - 1)
MESSAGES = st.lists(st.builds(Message, U32, U32, U32, st.binary(max_size=60)), max_size=8)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    """The pieces of `data` between the cuts; some may be empty."""
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(places)] or [b""]


# Messages


def test_a_header_is_four_native_u32() -> None:
    assert HEADER_SIZE == 16
    message = Message(Op.WRITE, 0x01020304, 7, b"/a\0v")
    assert message.encode() == struct.pack("@IIII", 11, 0x01020304, 7, 4) + b"/a\0v"


def test_an_empty_payload_is_a_bare_header() -> None:
    assert len(Message(Op.GET_FEATURE, 1, 0, b"").encode()) == HEADER_SIZE


def test_the_longest_message_is_4112_bytes() -> None:
    assert PAYLOAD_MAX == 4096
    assert MESSAGE_MAX == len(Message(0, 0, 0, bytes(PAYLOAD_MAX)).encode()) == 4112


@given(st.builds(Message, U32, U32, U32, st.binary(max_size=PAYLOAD_MAX)))
def test_a_message_survives_encoding_and_framing(message: Message) -> None:
    assert list(Framer().feed(message.encode())) == [message]


def test_a_bare_acknowledgement_is_ok_with_nul() -> None:
    assert ACK == b"OK\0"


def test_an_error_reply_echoes_the_ids_and_names_the_error() -> None:
    request = Message(Op.READ, 77, 5, b"/a\0")
    assert error_reply(request, StoreError("EEXIST")) == Message(16, 77, 5, b"EEXIST\0")


# Events


def test_an_event_has_no_ids_and_two_strings() -> None:
    assert watch_event(b"/a", b"token") == Message(15, 0, 0, b"/a\0token\0").encode()


def test_the_token_of_an_event_may_be_empty() -> None:
    assert watch_event(b"/a", b"") == Message(15, 0, 0, b"/a\0\0").encode()


def test_an_event_that_fills_a_message_is_sent_a_longer_one_is_not() -> None:
    path = b"/" + b"x" * 1000
    longest = b"t" * (PAYLOAD_MAX - len(path) - 2)
    event = watch_event(path, longest)
    assert event is not None
    assert len(event) == MESSAGE_MAX
    assert watch_event(path, longest + b"t") is None


# Framing


@given(MESSAGES, st.lists(st.integers(0, 10_000)))
def test_how_a_stream_is_cut_does_not_change_its_messages(messages: list[Message], cuts: list[int]) -> None:
    framer = Framer()
    stream = b"".join(message.encode() for message in messages)
    seen = [message for piece in split(stream, cuts) for message in framer.feed(piece)]
    assert seen == messages
    assert framer.pending == b""


@given(MESSAGES, st.binary(max_size=HEADER_SIZE - 1))
def test_pending_is_the_incomplete_message(messages: list[Message], rest: bytes) -> None:
    framer = Framer()
    assert list(framer.feed(b"".join(m.encode() for m in messages) + rest)) == messages
    assert framer.pending == rest


def test_a_message_comes_out_with_its_last_byte() -> None:
    framer = Framer()
    message = Message(Op.READ, 1, 0, b"/some/path\0")
    for byte in message.encode()[:-1]:
        assert list(framer.feed(bytes([byte]))) == []
    assert list(framer.feed(message.encode()[-1:])) == [message]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_kind_of_buffer_can_be_fed(kind: type[bytes] | type[bytearray] | type[memoryview]) -> None:
    message = Message(Op.READ, 1, 0, b"/\0")
    [seen] = Framer().feed(kind(message.encode()))
    assert seen == message
    assert type(seen.payload) is bytes


def test_messages_do_not_change_when_the_fed_buffer_does() -> None:
    buffer = bytearray(Message(Op.READ, 1, 0, b"/a\0").encode())
    [seen] = Framer().feed(buffer)
    buffer[:] = bytes(len(buffer))
    assert seen.payload == b"/a\0"


@given(MESSAGES, st.integers(0, 8), st.integers(0, 8))
def test_messages_that_were_not_taken_come_with_the_next_feeding(
    messages: list[Message], taken: int, fed_first: int
) -> None:
    framer = Framer()
    seen = []
    iterator = framer.feed(b"".join(m.encode() for m in messages[:fed_first]))
    for _ in range(min(taken, len(messages[:fed_first]))):
        seen.append(next(iterator))
    seen += framer.feed(b"".join(m.encode() for m in messages[fed_first:]))
    assert seen == messages


@given(MESSAGES, st.integers(PAYLOAD_MAX + 1, 2**32 - 1), st.binary(max_size=40), st.lists(st.integers(0, 10_000)))
def test_a_header_that_announces_too_much_breaks_the_stream_behind_what_came_before(
    messages: list[Message], length: int, rest: bytes, cuts: list[int]
) -> None:
    framer = Framer()
    stream = b"".join(m.encode() for m in messages) + HEADER.pack(Op.READ, 1, 0, length) + rest
    seen = []

    def feed_all() -> None:
        for piece in split(stream, cuts):
            for message in framer.feed(piece):
                seen.append(message)

    with pytest.raises(FramingViolation) as caught:
        feed_all()
    assert caught.value.length == length
    assert str(length) in str(caught.value)
    assert seen == messages


def test_a_violation_is_seen_with_the_header_not_only_with_the_payload() -> None:
    framer = Framer()
    assert list(framer.feed(HEADER.pack(Op.WRITE, 1, 0, PAYLOAD_MAX + 1)[:-1])) == []
    with pytest.raises(FramingViolation):
        list(framer.feed(b"\0"))


def test_a_broken_framer_stays_broken() -> None:
    framer = Framer()
    for _ in range(2):
        with pytest.raises(FramingViolation):
            list(framer.feed(HEADER.pack(Op.WRITE, 1, 0, 5000)))
    with pytest.raises(FramingViolation):
        list(framer.feed(Message(Op.READ, 1, 0, b"/\0").encode()))


# Errors


def test_the_error_names_are_those_of_the_wire_header_in_its_order() -> None:
    assert " ".join(ERROR_NAMES) == (
        "EINVAL EACCES EEXIST EISDIR ENOENT ENOMEM ENOSPC EIO ENOTEMPTY ENOSYS EROFS EBUSY EAGAIN EISCONN E2BIG EPERM"
    )


@pytest.mark.parametrize("name", ERROR_NAMES)
def test_an_error_travels_as_its_name_and_nul(name: str) -> None:
    error = StoreError(name)
    assert (error.name, error.payload, str(error)) == (name, name.encode() + b"\0", name)


def test_a_name_outside_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="EQUOTA"):
        StoreError("EQUOTA")


def test_an_error_class_is_named_as_on_the_wire() -> None:
    classes = StoreError.__subclasses__()
    named = [kind for kind in classes if kind.__module__ == errors.__name__]
    assert named
    for kind in named:
        error = getattr(errors, kind.__name__)()
        assert error.name == kind.__name__


# Operations


def test_operations_have_the_numbers_of_the_wire_header() -> None:
    names = (
        "CONTROL DIRECTORY READ GET_PERMS WATCH UNWATCH TRANSACTION_START TRANSACTION_END INTRODUCE RELEASE "
        "GET_DOMAIN_PATH WRITE MKDIR RM SET_PERMS WATCH_EVENT ERROR IS_DOMAIN_INTRODUCED RESUME SET_TARGET RESTRICT "
        "RESET_WATCHES DIRECTORY_PART GET_FEATURE SET_FEATURE GET_QUOTA SET_QUOTA"
    )
    numbers = {name: number for number, name in enumerate(names.split()) if name != "RESTRICT"}
    assert {op.name: op.value for op in Op} == numbers


def test_events_and_errors_are_no_requests() -> None:
    assert set(Op) - OPERATIONS.keys() == {Op.WATCH_EVENT, Op.ERROR}


def test_these_requests_need_privilege() -> None:
    privileged = {op.name for op, operation in OPERATIONS.items() if operation.privileged}
    assert privileged == {
        *("CONTROL", "INTRODUCE", "RELEASE", "RESUME", "SET_TARGET"),
        *("IS_DOMAIN_INTRODUCED", "SET_FEATURE", "GET_QUOTA", "SET_QUOTA"),
    }


def test_only_watch_and_unwatch_ignore_the_transaction_id() -> None:
    assert {op for op, operation in OPERATIONS.items() if not operation.uses_tx} == {Op.WATCH, Op.UNWATCH}


def test_a_socket_offers_errors_watch_depth_and_any_domain() -> None:
    assert SOCKET_FEATURES == 14
