"""The steps of a request, and which one a stopped Logic stands at.

Logic marks no steps for our sake; they follow from what it must leave behind anyway: the system call it stands in and the
words of the recovery box.  `step_of` puts the two together.
Knows the order in which Logic works (receive, handle, publish, make, send), nothing of how it is stopped.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum

from recovery_box.lanes import M32
from tests.recovery.boxview import BoxView, Slot
from tests.recovery.logic import EPOLL_WAIT, RECVMMSG, SENDMMSG
from xenstore_state.records import Record

_HALF = 1 << 31


class Step(Enum):
    """Where a request is when Logic dies.  The texts are the rows of the table."""

    STARTING = "Logic just forked, no request handled yet"
    WAITING = "waiting for readiness: in epoll_wait"
    RECEIVING = "receiving: in recvmmsg, its result not seen"
    RECEIVED = "request received, handler not started"
    HANDLING = "handler running, nothing published"
    PUBLISHED = "record published, its output in no region"
    PARTLY_MADE = "record published, output in some of its regions"
    MADE_MORE = "output in its region unsent, next request received"
    MADE = "output in its region unsent, no further request"
    SENDING = "sending: in sendmmsg, its result not seen"
    SENT = "everything sent, turn not over"


def step_of(view: BoxView, system_call: int, idle: Collection[int] = ()) -> Step:
    """The step at which a stopped Logic stands.

    `idle` are connections whose unsent output says nothing, because their peers let it lie.
    """
    if system_call in EPOLL_WAIT:
        return Step.WAITING
    if system_call in RECVMMSG:
        return Step.RECEIVING
    if system_call in SENDMMSG:
        return Step.SENDING
    active = view.active()
    if active is None:
        return Step.STARTING
    slots = {slot.number: slot for slot in view.slots()}
    record = view.last_record()
    handling = _step_of_request(active, record, slots)
    if handling is not None:
        return handling
    busy = [slot for slot in slots.values() if slot.owner not in idle]
    unsent = any(slot.unsent for slot in busy)
    received = any(view.next_message(slot) for slot in busy)
    if unsent:
        return Step.MADE_MORE if received else Step.MADE
    return Step.RECEIVED if received else Step.SENT


def _step_of_request(active: tuple[int, int], record: Record | None, slots: dict[int, Slot]) -> Step | None:
    """The step if a handler runs or a record is not carried out yet, else None."""
    number, position = active
    slot = slots.get(number)
    unanswered = slot is not None and slot.consumed == position
    made, left = _outputs(record, slots)
    if unanswered:
        assert slot is not None
        own = record is not None and record.connection == slot.owner and 0 < (record.head - position) & M32 < _HALF
        if not own:
            return Step.HANDLING
        return Step.PARTLY_MADE if made else Step.PUBLISHED
    return Step.PARTLY_MADE if left else None


def _outputs(record: Record | None, slots: dict[int, Slot]) -> tuple[int, int]:
    """How many of a record's outputs have got into their regions, and how many are yet to."""
    if record is None:
        return 0, 0
    by_owner = {slot.owner: slot for slot in slots.values()}
    made = left = 0
    for connection, position, _, pending, _ in record.outputs:
        to = by_owner.get(connection)
        if to is None or pending:
            continue
        if 0 < (to.made - position) & M32 < _HALF:
            made += 1
        else:
            left += 1
    return made, left
