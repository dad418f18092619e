"""The daemon on a machine that fails as the test says: the shim, and the page by which it is told."""

import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.oracle.build import Helper, compiled
from tests.oracle.daemons import OurDaemon

SHIM: Final = Helper("faults.so", (Path(__file__).parent / "shim.c",), ("-shared", "-fPIC", "-ldl"))
SHORT, AGAIN, INTERRUPTED, NO_SPACE, NO_DESCRIPTORS, REALTIME, MONOTONIC = range(7)
COUNTS: Final = 16
ALWAYS: Final = 256


class MachineOfFaults(OurDaemon):
    """This project's daemon, whose system calls fail with a chance out of 256 each, or whose clocks are off by seconds."""

    def __init__(self, run_dir: Path, extra_args: Sequence[str] = ()) -> None:
        super().__init__(run_dir, extra_args)
        page = run_dir / "faults"
        page.write_bytes(bytes(mmap.PAGESIZE))
        self.env["FAULTS"] = str(page)
        with page.open("r+b") as file:
            self.words = memoryview(mmap.mmap(file.fileno(), mmap.PAGESIZE)).cast("q")

    def command(self) -> list[str]:
        return ["/usr/bin/env", f"LD_PRELOAD={compiled(SHIM)}", *super().command()]

    def met(self, what: int) -> int:
        """How often it happened."""
        return self.words[COUNTS + what]

    @contextmanager
    def faults(self, **chances: int) -> Iterator[None]:
        """Meanwhile this happens, by name in small letters."""
        which = {globals()[name.upper()]: chance for name, chance in chances.items()}
        before = {what: self.met(what) for what in which}
        for what, chance in which.items():
            self.words[what] = chance
        try:
            yield
        finally:
            for what in which:
                self.words[what] = 0
        for what in which:
            assert what in {REALTIME, MONOTONIC} or self.met(what) > before[what], f"{what} did not happen"

    def check(self) -> None:
        """Nobody has raised anything."""
        assert "Traceback" not in self.output(), self.output()
