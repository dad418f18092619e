"""A process full of clients: one that prints `ready`, works until a line comes on its stdin, and then prints what it found."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, Final

FINISH: Final = 300.0
"""Seconds in which the clients come to their end, and whoever judges them to a verdict."""


class ClientsProcess:
    """One that runs; `python -m MODULE ARGUMENTS`."""

    def __init__(self, module: str, *arguments: str) -> None:
        command = [sys.executable, "-m", module, *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line == "ready\n", f"the clients could not begin: {line!r}"

    @property
    def works(self) -> bool:
        return self.process.poll() is None

    def finish(self) -> dict[str, Any]:
        """Lets the clients come to their end; what they report."""
        output, _ = self.process.communicate("stop\n" if self.works else None, timeout=FINISH)
        report: dict[str, Any] = json.loads(output)
        return report

    def end(self) -> None:
        """None of it is left."""
        if self.works:
            self.process.kill()
        self.process.wait()
