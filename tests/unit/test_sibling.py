"""Orders to fork: only those that are for the helper are done by it; what it forks is tried with the template (`test_nursery`)."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from recovery_box import sibling
from recovery_box.line import Line

pytestmark = pytest.mark.skipif(not sibling.POSSIBLE, reason="the compiled helper that forks siblings is missing")
KIND = b"F"


@pytest.fixture
def line() -> Iterator[Line]:
    made = Line()
    yield made
    made.close()


def breed(line: Line, ends: int) -> tuple[bytes, list[int], bool]:
    says, hears = line.worker_ends
    return sibling.breed(hears, says, KIND, ends)


@pytest.mark.parametrize(
    ("order", "descriptors", "ends"),
    [(b"other", 2, 2), (b"other", 0, 0), (KIND + b"too few", 1, 2), (KIND + b"too many", 2, 1), (KIND + b"none", 0, 1)],
)
def test_what_is_no_such_order_is_returned(line: Line, order: bytes, descriptors: int, ends: int) -> None:
    assert line.entrust(order, [line.telling_fd] * descriptors)
    message, received, born = breed(line, ends)
    assert (message, len(received), born) == (order, descriptors, False)
    assert len(set(received)) == descriptors
    assert all(os.get_inheritable(fd) is False for fd in received)
    for fd in received:
        os.close(fd)


def test_nobody_is_there_to_order_anything(line: Line) -> None:
    line._keeper_tells.close()
    assert breed(line, 0) == (b"", [], False)


def test_more_descriptors_than_ever_come_cannot_be_asked_for(line: Line) -> None:
    with pytest.raises(ValueError, match="never come"):
        breed(line, 9)


def test_another_fault_is_one(line: Line) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        sibling.breed(-1, -1, KIND, 0)


def test_nobody_is_there_any_more_and_has_left_something_unread(line: Line) -> None:
    """The kernel says that in another way."""
    line._worker_hears.send(b"unread")
    line._keeper_tells.close()
    assert breed(line, 0) == (b"", [], False)
