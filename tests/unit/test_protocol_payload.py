"""Taking payloads apart: `protocol.payload`.  Numbers are compared with the C library, whose rules the daemon follows."""

import ctypes
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocol.errors import StoreError
from protocol.payload import (
    atoi,
    one_string,
    parse_domid,
    printable,
    string_and_rest,
    strings,
    strtol_any_base,
)

LIBC = ctypes.CDLL(None)
LIBC.strtoul.restype = ctypes.c_ulong
LIBC.strtol.restype = ctypes.c_long
LIBC.atoi.restype = ctypes.c_int

EDGES = [0, 1, 7, 8, 9, 10, 2**15, 2**16, 2**31, 2**32, 2**63, 2**64, 10**19, 10**20, 10**30]
NEAR_EDGES = st.builds(int.__add__, st.sampled_from(EDGES), st.integers(-2, 2)).filter(lambda n: n >= 0)
DIGITS = st.builds(lambda n, form: form.format(n), NEAR_EDGES, st.sampled_from(["{}", "{:x}", "0x{:X}", "0{:o}"]))
NUMBER_LIKE = st.builds(
    lambda *parts: "".join(parts).encode("latin1"),
    st.text(" \t\n\v\f\r\xa0", max_size=2),
    st.sampled_from(["", "+", "-", "--", "+-"]),
    st.sampled_from(["", "0", "00", "0x", "0X", "0b"]),
    DIGITS | st.just(""),
    st.sampled_from(["", " ", "x", "g", "\xff", "_0"]),
)
ANY_TEXT = st.binary(max_size=12).map(lambda text: text.replace(b"\0", b"1"))
TEXTS = NUMBER_LIKE | ANY_TEXT


def c_number(function: str, text: bytes, base: int) -> tuple[int, int]:
    """What strtol or strtoul makes of the text, and how many bytes of it were used."""
    buffer = ctypes.create_string_buffer(text)
    end = ctypes.c_void_p()
    value = getattr(LIBC, function)(buffer, ctypes.byref(end), base)
    assert end.value is not None
    return value, end.value - ctypes.addressof(buffer)


def einval(text: bytes) -> bool:
    try:
        parse_domid(text)
    except StoreError as error:
        return error.name == "EINVAL"
    return False


# Numbers


@given(TEXTS)
@example(b"-18446744073709551615")
@example(b"-18446744073709551616")
@example(b"")
@example(b"-")
def test_a_domid_is_a_whole_strtoul_up_to_65535(text: bytes) -> None:
    value, used = c_number("strtoul", text, 10)
    if used != len(text) or value > 65535:
        assert einval(text)
    else:
        assert parse_domid(text) == value


@pytest.mark.parametrize(
    ("text", "domid"),
    [(b"", 0), (b"0", 0), (b"007", 7), (b"+5", 5), (b" 5", 5), (b"\t\n5", 5), (b"65535", 65535), (b"-0", 0)],
)
def test_these_are_domids(text: bytes, domid: int) -> None:
    assert parse_domid(text) == domid


@pytest.mark.parametrize("text", [b"-1", b"65536", b"5 ", b"5x", b"x", b" ", b"+", b"0x5", b"1" * 5000])
def test_these_are_no_domids(text: bytes) -> None:
    assert einval(text)


@given(TEXTS)
@example(b"-9223372036854775808")
@example(b"-9223372036854775809")
@example(b"9223372036854775808")
def test_atoi_is_the_c_librarys(text: bytes) -> None:
    assert atoi(text) == LIBC.atoi(ctypes.create_string_buffer(text))


@pytest.mark.parametrize(("text", "value"), [(b"", 0), (b"x", 0), (b"12abc", 12), (b" -3", -3), (b"4294967297", 1)])
def test_atoi_takes_what_it_can(text: bytes, value: int) -> None:
    assert atoi(text) == value


@given(TEXTS)
@example(b"-9223372036854775808")
@example(b"0x")
@example(b"08")
@example(b"")
def test_strtol_with_any_base_is_the_c_librarys(text: bytes) -> None:
    value, used = c_number("strtol", text, 0)
    whole = used == len(text) and used > 0
    assert strtol_any_base(text) == (value if whole else None)


@pytest.mark.parametrize("parse", [parse_domid, atoi, strtol_any_base])
@pytest.mark.parametrize("text", [b"9" * 4096, b"0" * 4096, b"0x" + b"f" * 4096, b"0" + b"7" * 4096, b" " * 4096])
def test_a_payload_full_of_digits_costs_nothing(parse: object, text: bytes) -> None:
    assert callable(parse)
    start = time.perf_counter()
    for _ in range(10):
        try:
            parse(text)
        except StoreError:
            pass
    assert time.perf_counter() - start < 0.1


# Strings


@given(st.binary(max_size=20).map(lambda b: b.replace(b"\xff", b"\0")))
def test_one_string_is_exactly_one_closed_by_nul(payload: bytes) -> None:
    if payload.endswith(b"\0") and payload.count(b"\0") == 1:
        assert one_string(payload) == payload[:-1]
    else:
        with pytest.raises(StoreError, match="EINVAL"):
            one_string(payload)


@pytest.mark.parametrize("payload", [b"", b"/tool", b"/tool\0\0", b"/tool\0x", b"\0\0"])
def test_these_are_not_one_string(payload: bytes) -> None:
    with pytest.raises(StoreError, match="EINVAL"):
        one_string(payload)


def test_one_string_may_be_empty() -> None:
    assert one_string(b"\0") == b""


@given(st.lists(ANY_TEXT), ANY_TEXT)
def test_what_stands_behind_the_last_nul_is_no_string(texts: list[bytes], rest: bytes) -> None:
    assert strings(b"".join(text + b"\0" for text in texts) + rest) == texts


@pytest.mark.parametrize(
    ("payload", "expected"),
    [(b"", []), (b"1", []), (b"\0", [b""]), (b"p\0t\0junk", [b"p", b"t"]), (b"p\0n1\0r0", [b"p", b"n1"])],
)
def test_strings_are_counted_by_their_nuls(payload: bytes, expected: list[bytes]) -> None:
    assert strings(payload) == expected


@given(ANY_TEXT, st.binary(max_size=40))
def test_a_value_is_everything_behind_the_first_nul(head: bytes, value: bytes) -> None:
    assert string_and_rest(head + b"\0" + value) == (head, value)


@given(ANY_TEXT)
def test_a_value_needs_a_nul_before_it(payload: bytes) -> None:
    with pytest.raises(StoreError, match="EINVAL"):
        string_and_rest(payload)


# Logs


def test_a_message_is_logged_with_its_operation_and_blanks_for_nuls() -> None:
    assert printable(4, b"/a\0token\0") == "WATCH (/a token )"


def test_an_unknown_operation_can_be_logged() -> None:
    assert "UNKNOWN" in printable(20, b"x")


@given(st.integers(0, 2**32 - 1), st.binary())
def test_any_message_can_be_logged(op: int, payload: bytes) -> None:
    assert isinstance(printable(op, payload), str)
