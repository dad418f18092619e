"""A stand-in for systemd, as far as it keeps descriptors: a test double, run in the test's own process.

It starts a service with `Restart=always`, takes its notifications, keeps the descriptors it is sent (no more than
`FileDescriptorStoreMax`), forgets those it is told to, and hands all of them to the next process of the service under
LISTEN_FDS.  Knows nothing of what runs.
"""

from __future__ import annotations

import array
import os
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

FIRST: Final = 3
_FDS_MAX: Final = 16


class Systemd:
    """One service."""

    def __init__(
        self, command: list[str], environment: Mapping[str, str], folder: Path, *, most: int, cwd: Path, log: Path
    ) -> None:
        self._command = command
        self._environment = dict(environment)
        self._cwd = cwd
        self._log = log
        self._most = most
        self._address = str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self._address)
        self._process: subprocess.Popen[bytes] | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.kept: list[tuple[str, int]] = []
        """(FDNAME, descriptor) in the order of arrival; names are not unique to systemd."""
        self.said: list[str] = []
        """Notifications that are about no descriptors."""
        self.starts = 0
        self.refused = 0
        """Descriptors beyond the limit."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ending.set()
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
        self._thread.join()
        for _, fd in self.kept:
            os.close(fd)
        self._socket.close()

    @property
    def pid(self) -> int:
        """The main process."""
        assert self._process is not None
        return self._process.pid

    def _run(self) -> None:
        while not self._ending.is_set():
            process = self._process = self._start()
            dead = os.pidfd_open(process.pid)
            while not self._readable(dead):
                self._listen(0.05)
            os.close(dead)
            process.wait()
            while self._listen(0):
                pass
            with suppress(ProcessLookupError):  # KillMode=control-group: nobody of it is left
                os.killpg(process.pid, signal.SIGKILL)

    @staticmethod
    def _readable(fd: int) -> bool:
        return bool(select.select([fd], [], [], 0)[0])

    def _start(self) -> subprocess.Popen[bytes]:
        self.starts += 1
        names = ":".join(name for name, _ in self.kept)
        fds = [fd for _, fd in self.kept]
        environment = self._environment | {"NOTIFY_SOCKET": self._address, "FDSTORE": str(self._most)}
        program = (
            "import os, sys\n"
            "fds = [int(fd) for fd in sys.argv[1].split(',') if fd]\n"
            f"[os.dup2(fd, {FIRST} + n, inheritable=True) for n, fd in enumerate(fds)]\n"  # from far above
            f"os.closerange({FIRST} + len(fds), 4096)\n"
            "if fds:\n"
            "    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=sys.argv[2])\n"
            "os.execv(sys.argv[3], sys.argv[3:])\n"
        )
        high = [os.dup2(fd, 2000 + n) for n, fd in enumerate(fds)]
        try:
            with self._log.open("ab") as log:
                return subprocess.Popen(
                    [self._command[0], "-c", program, ",".join(map(str, high)), names, *self._command],
                    env=environment,
                    cwd=self._cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=high,
                    start_new_session=True,
                )
        finally:
            for fd in high:
                os.close(fd)

    def _listen(self, seconds: float) -> bool:
        """One notification, if there is one in time; whether there was."""
        if not select.select([self._socket], [], [], seconds)[0]:
            return False
        room = socket.CMSG_SPACE(_FDS_MAX * 4)
        text, ancillary, _, _ = self._socket.recvmsg(4096, room, socket.MSG_CMSG_CLOEXEC)
        given = array.array("i")
        for _, _, data in ancillary:
            given.frombytes(data)
        lines = text.decode().splitlines()
        name = next((line[len("FDNAME=") :] for line in lines if line.startswith("FDNAME=")), "stored")
        if "FDSTORE=1" in lines:
            assert "FDPOLL=0" in lines, "systemd would drop a socket whose peer hangs up"
            for fd in given:
                self._keep(name, fd)
        elif "FDSTOREREMOVE=1" in lines:
            for kept in [kept for kept in self.kept if kept[0] == name]:
                self.kept.remove(kept)
                os.close(kept[1])
        else:
            self.said += lines
        return True

    def _keep(self, name: str, fd: int) -> None:
        if any(os.path.sameopenfile(fd, other) and name == kept for kept, other in self.kept):
            os.close(fd)
        elif len(self.kept) >= self._most:
            self.refused += 1
            os.close(fd)
        else:
            self.kept.append((name, fd))
