"""The descriptor of a connection: opening it, and moving bytes between it and a `Session` without ever blocking.

Works on a Unix socket and on a xenbus device alike.  Waiting is the caller's business: the descriptor `waitable` is
readable whenever `pull` or `push` would get anywhere, so `poll`, `epoll` and trio can all wait for it.
"""

import os
import select
import socket
import stat
from typing import Final

from protocol.client.failures import StoreUnavailable
from protocol.client.session import Session
from protocol.wire import HEADER_SIZE, PAYLOAD_MAX

DEVICE_PAYLOAD_MAX: Final = PAYLOAD_MAX - HEADER_SIZE
"""The kernel's buffer behind /dev/xen/xenbus holds 4,096 bytes with the header."""
BUSY_DELAY: Final = 0.01
"""Seconds after which `open_store` is worth another try when it returned None."""
_READ_SIZE: Final = 65536


def open_store(path: str) -> tuple[int, int] | None:
    """Opens a socket or device: its descriptor and longest payload; None if too many clients are waiting just now.

    Raises StoreUnavailable.
    """
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC), DEVICE_PAYLOAD_MAX
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as connection:
            connection.connect(path)
            return connection.detach(), PAYLOAD_MAX
    except BlockingIOError:
        return None
    except OSError as error:
        raise StoreUnavailable(f"cannot connect to {path}: {error.strerror or error}") from error


class Link:
    """Owns the descriptor.  Trouble with it ends up in the session, as a lost connection.

    Raises StoreUnavailable for a descriptor that cannot be waited for: an ordinary file.
    """

    def __init__(self, fd: int, session: Session) -> None:
        self._fd = fd
        self._session = session
        self._rest = b""
        # A xenbus device never polls as writable, but does not refuse writes either: only ask after a refusal.
        self._poll = select.epoll()
        try:
            self._poll.register(fd, select.EPOLLIN)
        except PermissionError as error:
            self.close()
            raise StoreUnavailable(f"{session.name} is neither a socket nor a device") from error
        self._asks_for_room = False

    @property
    def waitable(self) -> int:
        """A descriptor that polls as readable when there is something to do."""
        return self._poll.fileno()

    @property
    def closed(self) -> bool:
        """Whether `close` has been called."""
        return self._poll.closed

    def push(self) -> None:
        """Writes messages until they are gone or the daemon takes no more.  One write a message: xenbus wants that."""
        session = self._session
        try:
            while not session.lost and (self._rest or session.outbox):
                data = self._rest or session.outbox.popleft()
                self._rest = data
                self._rest = data[os.write(self._fd, data) :]
        except BlockingIOError:
            pass
        except OSError as error:
            session.lose(error.strerror or str(error))
        if not session.lost and self._asks_for_room != bool(self._rest):
            self._asks_for_room = not self._asks_for_room
            self._poll.modify(self._fd, select.EPOLLIN | (select.EPOLLOUT if self._asks_for_room else 0))

    def wait(self, seconds: float | None) -> bool:
        """Blocks until there is something to do; False if there was nothing in time."""
        return bool(self._poll.poll(seconds))

    def pull(self) -> None:
        """Reads what is there, if anything, into the session."""
        if self._session.lost:
            return
        try:
            data = os.read(self._fd, _READ_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            self._session.lose(error.strerror or str(error))
            return
        if data:
            self._session.receive(data)
        else:
            self._session.lose("the daemon closed it")

    def close(self) -> None:
        """Closes the descriptor; the session counts as lost."""
        self._session.lose("closed by this client")
        if not self.closed:
            self._poll.close()
            os.close(self._fd)
