"""Lanes: one connection's input and output, which look like a pair of Xen rings and survive the death of their owner.

Theory of operation.  Both regions are rings of `REGION_SIZE` bytes; all positions run freely modulo 2**32.  Four numbers
say everything, in three shared words:

    IN    base << 32 | length    received so far = base + length
    OUT   base << 32 | length    sent so far     = base + length
    DONE  head << 32 | fill      input consumed, output made: one store says that a request is answered

IN and OUT are the last words of the `mmsghdr`s given to recvmmsg and sendmmsg: the low half is the field into which the
kernel itself stores the number of bytes, before the process can die in user mode; the high half is padding that the kernel
never touches.  Storing `position << 32` before the call makes the sum right at every instruction, whatever happens.  (With
plain recv or send, a death between the system call and the storing of its result leaves the stream position unknown.)

What is received goes straight into the region and stays there until DONE says it is consumed; replies are copied behind
`fill` and count when DONE says so.  Of messages it knows the frame: three numbers, the length of what follows, and that.

Output that wraps leaves by one call, in two pieces: the peer is woken once, and the kernel counts them together.
"""

import ctypes
import logging
import select
import struct
from array import array
from typing import Final

try:
    from recovery_box import _lanes
except ImportError:  # no compiler when this was installed
    _lanes = None  # type: ignore[assignment]  # an optional module

from recovery_box.box import CONTROL_SIZE, REGION_SIZE, SLOT_SIZE, Box

log = logging.getLogger(__name__)

M32: Final = 0xFFFFFFFF
_FRAME: Final = struct.Struct("=IIII")
MASK: Final = REGION_SIZE - 1
_MSG_DONTWAIT: Final = 0x40
_MSG_NOSIGNAL: Final = 0x4000
_SEND_FLAGS: Final = _MSG_DONTWAIT | _MSG_NOSIGNAL

# Words of a slot's control area.  struct mmsghdr is eight words: name, name length, iov, iov count, control, control
# length, flags, bytes moved.
_IN_HEADER: Final = 0
_OUT_HEADER: Final = 8
_IN_IOV: Final = 16
_OUT_IOV: Final = 26  # two of them
_DONE: Final = 20
_OWNER: Final = 21
_STAGE: Final = 22
_LOOKED: Final = 23
_MARK: Final = 24
_CREDIT: Final = 25
_SHOWN: Final = 26
_RENEWED: Final = 27
_IOV: Final = 2
_IOV_COUNT: Final = 3
_BYTES: Final = 7
_CONTROL: Final = struct.Struct(f"={CONTROL_SIZE // 8}Q")

# No argtypes and no errno: each costs a tenth of a microsecond a call.  PyDLL keeps the GIL: the calls never block.
_libc: Final = ctypes.PyDLL(None)
_recvmmsg: Final = _libc.recvmmsg
_sendmmsg: Final = _libc.sendmmsg


def prepare_slot(box: Box, slot: int, owner: int) -> None:
    """Makes a slot ready for the connection `owner` (a number of the keeper's, never 0 for a live one): all positions 0."""
    offset = box.ensure_slot(slot)
    words = [0] * (CONTROL_SIZE // 8)
    for header, iov in ((_IN_HEADER, _IN_IOV), (_OUT_HEADER, _OUT_IOV)):
        words[header + _IOV] = box.address + offset + iov * 8
        words[header + _IOV_COUNT] = 1
    words[_OWNER] = owner
    box.memory[offset : offset + CONTROL_SIZE] = _CONTROL.pack(*words)  # nobody looks at it yet


def output_made(box: Box, slot: int) -> int:
    """Stream position up to which a slot's output has been put into its region."""
    return box.words[box.ensure_slot(slot) // 8 + _DONE] & M32


def input_consumed(box: Box, slot: int) -> int:
    """Stream position up to which a slot's input is consumed."""
    return box.words[box.ensure_slot(slot) // 8 + _DONE] >> 32


def is_idle(box: Box, slot: int) -> bool:
    """Whether a slot's lane has nothing left to do: all input consumed, all output sent.  Cheaper than a `Lane`."""
    words, i = box.words.view, box.slot_word(slot)
    received, sent, done = words[i + _IN_HEADER + _BYTES], words[i + _OUT_HEADER + _BYTES], words[i + _DONE]
    return ((received >> 32) + received) & M32 == done >> 32 and ((sent >> 32) + sent - done) & M32 == 0


def owner_of(box: Box, slot: int) -> int:
    """For whom a slot was prepared."""
    return box.words[box.slot_word(slot) + _OWNER]


def note_incomplete(box: Box, slot: int, fill: int) -> None:
    """What is received up to stream position `fill` and not consumed is less than a request."""
    box.words[box.slot_word(slot) + _LOOKED] = fill


def is_incomplete(box: Box, slot: int, fill: int) -> bool:
    """Whether `note_incomplete` was told of the same input: nothing has come since."""
    return box.words[box.slot_word(slot) + _LOOKED] == fill


def unfinished_slots(box: Box, count: int) -> list[int]:
    """Which of the first `count` slots, all of them allocated, have something left to do; whoever used them is dead."""
    if _lanes is None:
        return [slot for slot in range(count) if not is_idle(box, slot)]
    return _lanes.unfinished(box.address + box.slot_word(0) * 8, SLOT_SIZE, count)


def wait_for_all(epoll: select.epoll, fds: "array[int]", events: int = select.EPOLLIN) -> None:
    """Has an epoll set wait for these events on descriptors (of type "i") that it does not hold.

    The kernel has a limit for this, too: what it refuses is logged.
    """
    refused = 0
    if _lanes is not None:
        refused = _lanes.wait_for_all(epoll.fileno(), fds, events)
    else:
        for fd in fds:
            try:
                epoll.register(fd, events)
            except FileExistsError:
                pass
            except OSError:
                refused += 1
    if refused:
        log.error("%d connections cannot be waited for", refused)


def stage_of(box: Box, slot: int) -> int:
    """`Lane.stage` of a slot."""
    return box.words[box.slot_word(slot) + _STAGE]


class Lane:
    """One process's handle on a slot.  Made anew after each death: everything it knows is read from the shared words."""

    __slots__ = (
        "_done_word",
        "_in_address",
        "_in_header",
        "_in_iov",
        "_in_word",
        "_memory",
        "_out_address",
        "_out_header",
        "_out_iov",
        "_out_word",
        "_slot_address",
        "_words",
        "fd",
        "fill",
        "head",
        "in_offset",
        "made",
        "out_offset",
        "sent",
    )

    def __init__(self, box: Box, slot: int, fd: int) -> None:
        offset = box.ensure_slot(slot)
        i = offset // 8
        self.fd = fd
        self._memory = box.memory
        self._words = box.words.view
        self.in_offset = offset + CONTROL_SIZE
        self.out_offset = self.in_offset + REGION_SIZE
        self._slot_address: object = box.address + offset  # an object: a compiled caller does not box it anew each time
        self._in_address = box.address + self.in_offset
        self._out_address = box.address + self.out_offset
        self._in_header = ctypes.c_void_p(box.address + offset + _IN_HEADER * 8)
        self._out_header = ctypes.c_void_p(box.address + offset + _OUT_HEADER * 8)
        self._in_iov = i + _IN_IOV
        self._out_iov = i + _OUT_IOV
        self._in_word = i + _IN_HEADER + _BYTES
        self._out_word = i + _OUT_HEADER + _BYTES
        self._done_word = i + _DONE
        # Pointers are made anew: they stand where the last worker could write.
        words = self._words
        for header, iov in ((_IN_HEADER, _IN_IOV), (_OUT_HEADER, _OUT_IOV)):
            for k in range(_BYTES):
                words[i + header + k] = 0
            words[i + header + _IOV] = box.address + offset + iov * 8
            words[i + header + _IOV_COUNT] = 1
        word = self._words[self._in_word]
        self.fill = ((word >> 32) + word) & M32
        """Input received so far."""
        word = self._words[self._out_word]
        self.sent = ((word >> 32) + word) & M32
        """Output sent so far."""
        word = self._words[self._done_word]
        self.head = word >> 32
        """Input consumed so far."""
        self.made = word & M32
        """Output made so far."""

    @property
    def stage(self) -> int:
        """How far the peer's side of a ring has been made ready; 0 in a prepared slot."""
        return self._words[self._done_word - _DONE + _STAGE]

    @stage.setter
    def stage(self, stage: int) -> None:
        self._words[self._done_word - _DONE + _STAGE] = stage

    @property
    def credit(self) -> int:
        """What whoever serves the peer remembers of how much it may do; 0 in a prepared slot."""
        return self._words[self._done_word - _DONE + _CREDIT]

    @credit.setter
    def credit(self, credit: int) -> None:
        self._words[self._done_word - _DONE + _CREDIT] = credit

    @property
    def unsent(self) -> int:
        """Bytes of output in the region that are not sent."""
        return (self.made - self.sent) & M32

    @property
    def room(self) -> int:
        """Bytes of output that the region can still take."""
        return REGION_SIZE - ((self.made - self.sent) & M32)

    def receive(self) -> int:
        """Receives what is there and fits.  Bytes received; 0 at the end of the stream; -1 when there is nothing (or no room)."""
        fill = self.fill
        room = REGION_SIZE - ((fill - self.head) & M32)
        if not room:
            return -1
        at = fill & MASK
        straight = REGION_SIZE - at
        words, iov = self._words, self._in_iov
        words[iov] = self._in_address + at
        words[iov + 1] = straight if straight < room else room
        words[self._in_word] = fill << 32
        if _recvmmsg(self.fd, self._in_header, 1, _MSG_DONTWAIT, None) != 1:
            return -1
        got = words[self._in_word] & M32
        self.fill = (fill + got) & M32
        if got == straight and room > straight:
            return got + max(self.receive(), 0)  # the rest lies at the beginning of the ring
        return got

    def peek(self, n: int) -> bytes:
        """The next `n` bytes of input, all received.  They stay."""
        at = self.head & MASK
        if at + n <= REGION_SIZE:
            at += self.in_offset
            return self._memory[at : at + n]
        first = REGION_SIZE - at
        start = self.in_offset
        return self._memory[start + at : start + REGION_SIZE] + self._memory[start : start + n - first]

    def frame(self, limit: int) -> tuple[int, int, int, bytes] | int | None:
        """The next message: three numbers and a payload; None if it is not whole yet; a length of more than `limit` bytes."""
        there = (self.fill - self.head) & M32
        if there < _FRAME.size:
            return None
        first, second, third, length = _FRAME.unpack(self.peek(_FRAME.size))
        if length > limit:
            return int(length)
        size = _FRAME.size + length
        return (first, second, third, self.peek(size)[_FRAME.size :]) if size <= there else None

    def put(self, data: bytes, position: int) -> None:
        """Copies output to a stream position.  It must fit, and counts only when DONE covers it."""
        at = position & MASK
        n = len(data)
        start = self.out_offset
        if at + n <= REGION_SIZE:
            self._memory[start + at : start + at + n] = data
        else:
            first = REGION_SIZE - at
            self._memory[start + at : start + REGION_SIZE] = data[:first]
            self._memory[start : start + n - first] = data[first:]

    def answer(self, reply: bytes, head: int) -> None:
        """`put` behind the last output, and `publish` with the input consumed up to `head`: the common case in one."""
        made = self.made
        at = made & MASK
        n = len(reply)
        if at + n <= REGION_SIZE:
            at += self.out_offset
            self._memory[at : at + n] = reply
        else:
            self.put(reply, made)
        self.head = head
        self.made = made = (made + n) & M32
        self._words[self._done_word] = head << 32 | made

    def reply(self, first: int, second: int, third: int, payload: bytes, head: int) -> None:
        """`answer` with a message of three numbers and a payload."""
        self.answer(_FRAME.pack(first, second, third, len(payload)) + payload, head)

    def publish(self, head: int, made: int) -> None:
        """One store: input up to `head` is consumed and output up to `made` is there."""
        self.head = head
        self.made = made
        self._words[self._done_word] = head << 32 | made

    def send(self) -> bool:
        """Sends what the region holds.  True when everything went; False when the peer must read first, or is gone."""
        sent = self.sent
        n = (self.made - sent) & M32
        if not n:
            return True
        words, iov = self._words, self._out_iov
        at = sent & MASK
        straight = REGION_SIZE - at
        words[iov] = self._out_address + at
        if n <= straight:
            words[iov + 1] = n
            words[self._out_word - _BYTES + _IOV_COUNT] = 1
        else:
            words[iov + 1] = straight
            words[iov + 2] = self._out_address
            words[iov + 3] = min(n, REGION_SIZE) - straight
            words[self._out_word - _BYTES + _IOV_COUNT] = 2
        words[self._out_word] = sent << 32
        if _sendmmsg(self.fd, self._out_header, 1, _SEND_FLAGS, None) != 1:
            return False
        moved = words[self._out_word] & M32
        self.sent = (sent + moved) & M32
        return moved == n


class CompiledLane(Lane):
    """The same, with what is done for each request compiled."""

    __slots__ = ()

    def receive(self) -> int:
        """Receives what is there and fits.  Bytes received; 0 at the end of the stream; -1 when there is nothing (or no room)."""
        fill = self.fill
        got = _lanes.receive(self.fd, self._slot_address, fill, self.head)
        if got > 0:
            self.fill = (fill + got) & M32
        return got

    def frame(self, limit: int) -> tuple[int, int, int, bytes] | int | None:
        """The next message: three numbers and a payload; None if it is not whole yet; a length of more than `limit` bytes."""
        return _lanes.frame(self._slot_address, self.head, self.fill, limit)

    def answer(self, reply: bytes, head: int) -> None:
        """`put` behind the last output, and `publish` with the input consumed up to `head`: the common case in one."""
        self.head = head
        self.made = _lanes.answer(self._slot_address, self.made, head, reply)

    def reply(self, first: int, second: int, third: int, payload: bytes, head: int) -> None:
        """`answer` with a message of three numbers and a payload."""
        self.head = head
        self.made = _lanes.reply(self._slot_address, self.made, head, first, second, third, payload)

    def send(self) -> bool:
        """Sends what the region holds.  True when everything went; False when the peer must read first, or is gone."""
        made = self.made
        sent = self.sent = _lanes.send(self.fd, self._slot_address, self.sent, made)
        return sent == made


BestLane: type[Lane] = Lane if _lanes is None else CompiledLane
"""What to use."""
