"""The line between keeper and worker: short messages beside the journal.

`ask` is the worker's question, which the keeper answers at once; `tell` is news from the keeper.  Both keep the order in
which they were sent.  Either end that is gone shows as EOF.  What a message means is the business of those who send it.
"""

import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from recovery_box.custody import enclosed, enclosing, lowered, pair, pair_end, room_for

MESSAGE_MAX: Final = 4096
"""Bytes of one message."""


class Line:
    """Two pairs of sockets: make it before the fork, a new one for each worker."""

    def __init__(self, ends: tuple[int, int] | None = None) -> None:
        """With `ends`, those of a worker that it was sent (`worker_ends`): there are no others then."""
        self._untold: deque[bytes] = deque()
        if ends is not None:
            self._worker_asks = self._keeper_answers = pair_end(ends[0])
            self._worker_hears = self._keeper_tells = pair_end(ends[1])
            return
        self._keeper_answers, self._worker_asks = pair()
        self._keeper_tells, self._worker_hears = pair()
        for end in (self._keeper_answers, self._keeper_tells, self._worker_hears):
            end.setblocking(False)

    # ---- the keeper's end

    @property
    def question_fd(self) -> int:
        """Readable in the keeper when there is a question."""
        return self._keeper_answers.fileno()

    @property
    def telling_fd(self) -> int:
        """Writable in the keeper when the worker can be told more."""
        return self._keeper_tells.fileno()

    @property
    def worker_ends(self) -> tuple[int, int]:
        """Descriptors of the worker's ends, to be sent to it when it is no child of a fork of the keeper's."""
        return self._worker_asks.fileno(), self._worker_hears.fileno()

    def in_keeper(self) -> None:
        """To be called in the keeper after the fork."""
        self._worker_asks.close()
        self._worker_hears.close()
        self._keeper_answers = lowered(self._keeper_answers)
        self._keeper_tells = lowered(self._keeper_tells)

    def answer(self, reply: Callable[[bytes], bytes]) -> bool:
        """Answers one question with what `reply` makes of it; whether there was one."""
        try:
            question = self._keeper_answers.recv(MESSAGE_MAX)
            if not question:
                return False
            self._keeper_answers.send(reply(question), socket.MSG_NOSIGNAL)
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return False
        return True

    def listen(self) -> bytes | None:
        """What the worker says without waiting for an answer; None if that is nothing."""
        try:
            return self._keeper_answers.recv(MESSAGE_MAX) or None
        except (BlockingIOError, ConnectionResetError):
            return None

    def tell(self, message: bytes) -> bool:
        """Sends news; False when it has to wait until `telling_fd` is writable (then `tell_rest`)."""
        self._untold.append(message)
        return self.tell_rest()

    def tell_rest(self) -> bool:
        """Sends news that had to wait; whether all of it went.  To a dead worker everything goes."""
        while self._untold:
            try:
                self._keeper_tells.send(self._untold[0], socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return False
            except (BrokenPipeError, ConnectionResetError):
                self._untold.clear()
                return True
            self._untold.popleft()
        return True

    def entrust(self, message: bytes, descriptors: Sequence[int]) -> bool:
        """Sends news with duplicates of descriptors, to a worker that expects them (`receive`); False if that can't be now.

        Nor can it ever be if the message is too long.
        """
        try:
            return not self._untold and bool(
                self._keeper_tells.sendmsg([message], enclosing(*descriptors), socket.MSG_NOSIGNAL)
            )
        except OSError:
            return False

    # ---- the worker's end

    @property
    def hearing_fd(self) -> int:
        """Readable in the worker when there is news."""
        return self._worker_hears.fileno()

    def in_worker(self) -> None:
        """To be called in the worker after the fork: its ends move to low numbers, which the keeper has no use for."""
        self._keeper_answers.close()
        self._keeper_tells.close()
        self._worker_asks = lowered(self._worker_asks)
        self._worker_hears = lowered(self._worker_hears)

    def ask(self, question: bytes) -> bytes:
        """Asks, and waits for the answer.  Raises `EOFError` when the keeper is gone."""
        try:
            self._worker_asks.send(question, socket.MSG_NOSIGNAL)
            reply = self._worker_asks.recv(MESSAGE_MAX)
        except (BrokenPipeError, ConnectionResetError):
            reply = b""
        if not reply:
            raise EOFError("the keeper is gone")
        return reply

    def hear(self, most: int = MESSAGE_MAX) -> bytes | None:
        """The next news, of at most so many bytes; None if there is none.  Raises `EOFError` when the keeper is gone."""
        try:
            message = self._worker_hears.recv(most)
        except BlockingIOError:
            return None
        if not message:
            raise EOFError("the keeper is gone")
        return message

    def receive(self, descriptors: int) -> tuple[bytes, list[int]] | None:
        """The same of any length, with descriptors, at most so many."""
        try:
            length = self._worker_hears.recv_into(bytearray(1), 1, socket.MSG_PEEK | socket.MSG_TRUNC)
            message, ancillary, _, _ = self._worker_hears.recvmsg(
                length, room_for(descriptors), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        if not message:
            raise EOFError("the keeper is gone")
        return message, enclosed(ancillary)

    def close(self) -> None:
        """Closes all ends, as far as they are open here."""
        for end in (self._keeper_answers, self._keeper_tells, self._worker_asks, self._worker_hears):
            end.close()
