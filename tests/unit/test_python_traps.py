"""Faults that only a daemon in Python has: recursion, memory by announced lengths, huge digits, patterns that explode."""

import importlib
import pkgutil
import re
import struct
import sys
import tracemalloc
from collections.abc import Iterator
from typing import Any, Final

import pytest

import protocol
import recovery_box
import xenstore_logic
import xenstore_state
from protocol.wire import PAYLOAD_MAX
from tests.model.harness import answer
from xenstore_logic.embedded import Embedded
from xenstore_state.records import BadRecord, decode

WRITE, RM, DIRECTORY, READ, SET_PERMS, START, END, WATCH, PART = 11, 13, 1, 2, 14, 6, 7, 4, 22
DEEP: Final = b"/a" * (PAYLOAD_MAX // 2 - 4)
FRAMES: Final = 90
"""Enough for any request, and far fewer than a path has levels."""


@pytest.mark.parametrize("tx", [False, True], ids=["outside", "in a transaction"])
def test_no_depth_of_a_path_meets_the_recursion_limit(tx: bool) -> None:
    store = Embedded()
    number = store.connect()
    for path in (b"/", DEEP):
        answer(store, number, WATCH, path + b"\0t\0")
    limit, depth = sys.getrecursionlimit(), len(list(frames()))
    sys.setrecursionlimit(depth + FRAMES)
    try:
        started = answer(store, number, START, b"\0") if tx else b"0\0"
        assert isinstance(started, bytes)
        tx_id = int(started[:-1])
        assert answer(store, number, WRITE, DEEP + b"\0v", tx_id) == b"OK\0"
        assert answer(store, number, READ, DEEP + b"\0", tx_id) == b"v"
        assert answer(store, number, SET_PERMS, DEEP + b"\0n0\0", tx_id) == b"OK\0"
        assert answer(store, number, DIRECTORY, b"/\0", tx_id) == b"tool\0a\0"
        assert answer(store, number, RM, b"/a\0", tx_id) == b"OK\0"
        if tx:
            assert answer(store, number, END, b"T\0", tx_id) == b"OK\0"
    finally:
        sys.setrecursionlimit(limit)
    assert answer(store, number, READ, DEEP + b"\0") == "ENOENT"


def frames() -> Iterator[object]:
    frame = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back  # type: ignore[assignment]


BOMBS: Final = {
    "array of 4 billion": b"\xdd\xff\xff\xff\xff",
    "map of 4 billion": b"\xdf\xff\xff\xff\xff",
    "bytes of 4 billion": b"\xc6\xff\xff\xff\xff",
    "text of 4 billion": b"\xdb\xff\xff\xff\xff",
    "extension of 4 billion": b"\xc9\xff\xff\xff\xff\x01",
    "arrays in arrays": b"\x91" * 100_000 + b"\xc0",
    "maps in maps": b"\x81\x01" * 100_000 + b"\xc0",
    "a record whose output announces 4 billion": b"\x97\x01\x00\x04\x90\xa0\x01\x91\x95\x01\x00\xc6\xff\xff\xff\xff",
    "a timestamp": b"\xd7\xff" + struct.pack(">Q", 2**64 - 1),
    "text that is none": b"\x97\x01\x00\x04\x90\xa1\xff\x01\x90",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_record_that_announces_more_than_it_has_is_refused_and_takes_no_memory(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BadRecord):
            decode(BOMBS[name])
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("op", "payload"),
    [
        (SET_PERMS, b"/a\0n%s\0"),
        (SET_PERMS, b"/a\0n0x%s\0"),
        (SET_PERMS, b"/a\0n0%s\0"),
        (PART, b"/\0%s\0"),
        (WATCH, b"/\0t\0%s\0"),
        (10, b"%s\0"),
        (17, b"-%s\0"),
        (26, b"nodes\0%s\0"),
        (8, b"5\x001\0%s\0"),
    ],
)
def test_numbers_of_thousands_of_digits_are_answered(op: int, payload: bytes) -> None:
    """Python refuses to convert more than 4,300 digits, and takes its time for fewer."""
    store = Embedded()
    number = store.connect()
    for digits in (b"7" * 4000, b"0" * 4000, b"1" + b"0" * 3999):
        assert answer(store, number, op, (payload % digits)[:PAYLOAD_MAX]) is not None


def patterns() -> Iterator[tuple[str, re.Pattern[Any]]]:
    """Every pattern that a module of the daemon holds."""
    for package in (protocol, recovery_box, xenstore_state, xenstore_logic):
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if found.name.endswith("__main__"):
                continue
            module = importlib.import_module(found.name)
            for name, value in vars(module).items():
                if isinstance(value, re.Pattern):
                    yield f"{found.name}.{name}", value


def explodes(pattern: Any, *, inside: bool = False) -> bool:
    """Whether an unbounded repetition stands inside another one: the beginning of all patterns that explode."""
    from re import _constants, _parser  # type: ignore[attr-defined]

    for what, arguments in pattern:
        repeats = what in {_constants.MAX_REPEAT, _constants.MIN_REPEAT}
        unbounded = repeats and arguments[1] == _constants.MAXREPEAT
        if unbounded and inside:
            return True
        for part in arguments if isinstance(arguments, (tuple, list)) else ():
            alternatives = part if isinstance(part, list) else [part]
            for each in alternatives:
                if isinstance(each, _parser.SubPattern) and explodes(each, inside=inside or unbounded):
                    return True
    return False


def test_no_pattern_can_take_more_than_linear_time_by_nesting() -> None:
    from re import _parser  # type: ignore[attr-defined]

    found = dict(patterns())
    assert found
    assert explodes(_parser.parse("(a+)+b"))
    assert not [name for name, pattern in found.items() if explodes(_parser.parse(pattern.pattern))]
