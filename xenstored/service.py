"""Being a service: daemonising, pid file, readiness, where the log goes.

The foreground process returns only once clients can connect, with 0, or with the reason why they never will.
"""

import fcntl
import logging
import logging.handlers
import os
import socket
import sys
from typing import Final, NoReturn

_READY: Final = b"\1"


class PidFileLocked(Exception):
    """Another daemon holds the pid file."""


def set_up_logging(*, foreground: bool) -> None:
    """To stderr in the foreground, else to syslog (facility daemon)."""
    handler: logging.Handler
    text = "%(name)s: %(message)s"
    if foreground:
        handler = logging.StreamHandler(sys.stderr)
        text = "%(asctime)s %(levelname)-7s [%(process)d] " + text
    elif os.path.exists("/dev/log"):
        handler = logging.handlers.SysLogHandler("/dev/log", logging.handlers.SysLogHandler.LOG_DAEMON)
        text = "xenstored[%(process)d]: " + text
    else:
        handler = logging.NullHandler()
    handler.setFormatter(logging.Formatter(text))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def detach() -> int:
    """Goes to the background and lets go of the terminal.

    Returns, there, a descriptor for `announce`; in the foreground process it never returns.
    """
    read, write = os.pipe2(os.O_CLOEXEC)
    if os.fork():
        os.close(write)
        _wait_for(read)
    os.close(read)
    os.setsid()
    if os.fork():
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    return write


def leave_directory() -> None:
    """Lets go of the directory that the daemon was started in, and makes files as it always does."""
    os.chdir("/")
    os.umask(0o022)


def _wait_for(read: int) -> NoReturn:
    """In the foreground process: ends as the daemon's start ends."""
    words = b""
    while _READY not in words and (chunk := os.read(read, 4096)):
        words += chunk
    ready = _READY in words
    said = words.replace(_READY, b"").decode("utf-8", "replace")
    sys.stderr.write(said or ("" if ready else "xenstored: the daemon died while it started\n"))
    sys.stderr.flush()
    os._exit(0 if ready else 1)


def announce(pipe: int) -> None:
    """Clients can connect: lets the foreground process return, and tells systemd."""
    if pipe >= 0:
        os.write(pipe, _READY)
        os.close(pipe)
    address = os.environ.pop("NOTIFY_SOCKET", None)
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            try:
                s.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)
            except OSError as e:
                logging.getLogger(__name__).warning("systemd was not told: %s", e)


def write_pid_file(path: str) -> int:
    """Writes and locks a pid file; the descriptor must stay open.  Raises `PidFileLocked`."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise PidFileLocked(path) from None
    os.ftruncate(fd, 0)
    os.write(fd, b"%d\n" % os.getpid())
    return fd
