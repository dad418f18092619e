"""The notation of permission entries: `protocol.permissions`."""

import ctypes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocol.errors import StoreError
from protocol.permissions import BOTH, NONE, READ, WRITE, Permission, parse_permission

LIBC = ctypes.CDLL(None)
LIBC.strtol.restype = ctypes.c_long

ENTRIES = st.builds(Permission, st.integers(0, 3), st.integers(0, 2**32 - 1))


@pytest.mark.parametrize(("letter", "access"), [("n", NONE), ("r", READ), ("w", WRITE), ("b", BOTH)])
def test_the_letter_is_the_access(letter: str, access: int) -> None:
    assert parse_permission(f"{letter}7".encode()) == Permission(access, 7)
    assert Permission(access, 7).encode() == f"{letter}7".encode()


def test_both_is_read_and_write() -> None:
    assert READ | WRITE == BOTH


@given(ENTRIES)
def test_an_entry_survives_encoding(entry: Permission) -> None:
    assert parse_permission(entry.encode()) == entry


@pytest.mark.parametrize(
    ("written", "read_back"),
    [(b"r-1", b"r-1"), (b"r70000", b"r70000"), (b"n0x10", b"n16"), (b"n010", b"n8"), (b"b 3", b"b3"), (b"w+4", b"w4")],
)
def test_numbers_are_read_in_any_base_and_never_range_checked(written: bytes, read_back: bytes) -> None:
    assert parse_permission(written).encode() == read_back


@pytest.mark.parametrize("text", [b"", b"n", b"x0", b"7", b"N0", b"n0 ", b"n0x", b"n08", b"nn0", b"n\xff", b" n0"])
def test_malformed_entries_are_einval(text: bytes) -> None:
    with pytest.raises(StoreError, match="EINVAL"):
        parse_permission(text)


@given(st.sampled_from([b"n", b"r", b"w", b"b"]), st.text("0123456789abxX+- ", max_size=24))
@example(b"r", "-9223372036854775808")
@example(b"r", "9223372036854775808")
def test_the_domid_is_what_strtol_reads_cut_to_32_bits(letter: bytes, number: str) -> None:
    buffer = ctypes.create_string_buffer(number.encode())
    end = ctypes.c_void_p()
    value = LIBC.strtol(buffer, ctypes.byref(end), 0)
    assert end.value is not None
    used = end.value - ctypes.addressof(buffer)
    text = letter + number.encode()
    if used == len(number) and used:
        assert parse_permission(text).domid == ctypes.c_uint32(value).value
    else:
        with pytest.raises(StoreError, match="EINVAL"):
            parse_permission(text)
