"""The access trace (`-T`, CONTROL log and logfile): a line for each message and object, in the C daemon's format.

Off unless asked for.  A file that cannot be written is reported once and given up; requests never fail for it.
Knows nothing of who switches it.
"""

import logging
import os
import time
from typing import Final

from protocol.payload import printable
from recovery_box.items import Connection, Table

log = logging.getLogger(__name__)

SWITCHES: Final = ("obj", "io", "wrl", "acc", "tdb")
FILE: Final = "trace-file"
ON: Final = "trace-on"
SWITCH: Final = "trace-"
"""Names of settings; of a switch, what goes before its name."""


class Trace:
    """Where lines go, and which."""

    def __init__(self) -> None:
        self.switches = dict.fromkeys(SWITCHES, False)
        self.switches["obj"] = self.switches["io"] = True
        self.file_name: str | None = None
        self.active = False
        """Whether messages are traced."""
        self._fd = -1

    def obey(self, settings: Table[str, int | str]) -> None:
        """Does what the settings say.  They outlive Logic, open files do not."""
        for name in SWITCHES:
            value = settings.get(SWITCH + name)
            if value is not None:
                self.switch(name, on=value == "on")
        file_name = settings.get(FILE)
        if file_name is None or settings.get(ON) == "off":
            self.close()
            return
        problem = self.open(str(file_name))
        if problem is not None:
            log.error("tracing is off: %s", problem)

    def switch(self, name: str, *, on: bool) -> None:
        """Turns one kind of line on or off."""
        self.switches[name] = on
        self.active = self._fd >= 0 and self.switches["io"]

    def open(self, file_name: str | None = None) -> str | None:
        """Opens (or opens again) the file, appending.  The reason if it could not be."""
        self.close()
        if file_name is not None:
            self.file_name = file_name
        if self.file_name is None:
            return "no trace file was named"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            self._fd = os.open(self.file_name, flags, 0o600)
        except OSError as e:
            return f"{self.file_name}: {e.strerror}"
        self.active = self.switches["io"]
        self.line("\n***")
        return None

    def close(self) -> None:
        """Stops tracing; the file's name is kept."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self.active = False

    def line(self, text: str) -> None:
        """Writes one line as it is."""
        if self._fd >= 0:
            try:
                os.write(self._fd, text.encode("latin1", "replace") + b"\n")
            except OSError:
                self.close()

    def message(self, direction: str, by: Connection, op: int, payload: bytes) -> None:
        """One message in (`IN`) or out (`OUT`)."""
        if self.active:
            now = time.strftime("%Y%m%d %H:%M:%S")
            self.line(f"io: {direction} {by.id:#x} (d{by.domid}) {now} {printable(op, payload)}")

    def thing(self, what: str, kind: str, by: Connection) -> None:
        """The making or end (CREATE, DESTROY) of a connection, watch or transaction."""
        if self._fd >= 0 and self.switches["obj"]:
            self.line(f"obj: {what} {kind} {by.id:#x}")
