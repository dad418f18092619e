"""The load client (load.c and what it is made of) as a running process that takes commands.

For: `bench.run`.
Guarantees: the program is compiled when its sources have changed; a command returns the client's answer or raises
`LoadFailed`; no command takes longer than its deadline; the process is gone after `stop()`.
Does not know: what the commands mean.
"""

import json
import os
import select
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.oracle.build import ROOT, Helper, compiled

Answer = dict[str, str | float]

PROGRAM = Helper("bench-load", tuple(sorted(Path(__file__).parent.glob("*.[ch]"))))

STOP_SECONDS = 5.0


class LoadFailed(Exception):
    """The load client met an error, or the daemon did not answer in time."""


class Declined(LoadFailed):
    """There will be no figure, and nothing is broken: it would take too long, or is not to be had."""


class LoadClient:
    """A load client connected to one daemon; a context manager that ends it."""

    def __init__(self, socket: Path, xen_dir: Path | None) -> None:
        """`xen_dir` is the daemon's simulated Xen, if it has one. Raises MissingPackage or BuildFailed."""
        arguments = [compiled(PROGRAM), socket, *([] if xen_dir is None else [xen_dir])]
        self._process = subprocess.Popen(
            list(map(str, arguments)),
            cwd=ROOT,  # to which the names of workloads are relative
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._received = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def command(self, line: str, deadline: float) -> Answer:
        """Runs one command; `deadline` is in seconds from now. Raises LoadFailed."""
        self.begin(line)
        return self.finish(line, deadline)

    def interrupt(self) -> None:
        """Has the command that runs end soon, if it is one that can."""
        self._process.send_signal(signal.SIGUSR1)

    def begin(self, line: str) -> None:
        """Starts one command."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its last words are still to be read

    def finish(self, line: str, deadline: float) -> Answer:
        """Waits for the answer to the command that was begun; `deadline` is in seconds from now. Raises LoadFailed."""
        answer: Answer = json.loads(self._line(line, time.monotonic() + deadline))
        if "error" in answer:
            raise LoadFailed(f"{line}: {answer['error']}")
        if "declined" in answer:
            raise Declined(str(answer["declined"]))
        return answer

    def stop(self) -> None:
        """Ends the client; its connections close."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _line(self, command: str, until: float) -> bytes:
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        while b"\n" not in self._received:
            readable, _, _ = select.select([fd], [], [], max(0.0, until - time.monotonic()))
            if not readable:
                self._process.kill()
                raise LoadFailed(f"{command}: not finished in time")
            chunk = os.read(fd, 65536)
            if not chunk:
                raise LoadFailed(f"{command}: the load client ended with status {self._process.wait()}")
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        return line
