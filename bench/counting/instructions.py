"""Counts the instructions that the processor executes for each section, under valgrind's callgrind.

For: `bench.counting.stored`, tests.
Guarantees: user-mode instructions, of Python and everything it calls; hashing is seeded, so that the figures differ from run
to run by far less than the tolerance; what is missing on the machine is named.
Does not know: time; caches; the kernel.

`python -m bench.counting.instructions` is what runs under callgrind: it warms up uncounted, then notes one figure a section.
"""

import ctypes
import gc
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from shutil import which
from typing import Final

from bench.counting.workload import sections
from tests.oracle.build import ROOT, Helper, compiled

LAUNCH: Final = ROOT / "bench" / "launch.py"
TIMES: Final = 10
LIMIT_SECONDS: Final = 300
HELPER: Final = Helper(
    "counting.so",
    (Path(__file__).with_name("callgrind.c"),),
    ("-shared", "-fPIC"),
    ("valgrind/callgrind.h",),
    "valgrind",
)
_BEGIN: Final = "begin"
_TOTAL: Final = re.compile(r"^(?:totals|summary): (\d+)", re.M)
_NAME: Final = re.compile(r"^desc: Trigger: Client Request: (.*)$", re.M)


class CannotCount(Exception):
    """The machine lacks what it takes, or callgrind failed."""


def missing() -> str | None:
    """What the machine lacks, or None."""
    if which("valgrind") is None:
        return "valgrind is missing (Debian package valgrind)"
    return HELPER.missing() if HELPER.stale() else None


def itself() -> tuple[str, ...]:
    """Arguments by which this interpreter runs this module with the build that it runs now."""
    return ("-P", str(LAUNCH), __name__) if sys.flags.safe_path else ("-m", __name__)


def count_all(program: Sequence[str] | None = None) -> dict[str, float]:
    """Instructions of every section, once through it; `program` does the work in place of this module. Raises CannotCount."""
    reason = missing()
    if reason is not None:
        raise CannotCount(reason)
    library = compiled(HELPER)
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "valgrind",
            "--tool=callgrind",
            "--instr-atstart=no",
            f"--callgrind-out-file={folder}/out",
            sys.executable,
            *(program or itself()),
            str(library),
        ]
        # The same addresses and the same order of hashed things in every run.
        environment = os.environ | {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=LIMIT_SECONDS, check=False
        )
        if done.returncode != 0:
            raise CannotCount(f"callgrind ended with status {done.returncode}: {done.stderr.strip()[-500:]}")
        return _read(Path(folder))


def _read(folder: Path) -> dict[str, float]:
    """What was noted: one file a note."""
    found = {}
    for path in folder.iterdir():
        text = path.read_text(errors="replace")
        name, total = _NAME.search(text), _TOTAL.search(text)
        if name is not None and total is not None and name[1] != _BEGIN:
            found[name[1]] = int(total[1]) / TIMES
    return dict(sorted(found.items()))


def run(library: str) -> None:
    """Runs the workload, noting each section."""
    helper = ctypes.CDLL(library)
    with sections() as everything:
        gc.disable()  # as in the daemon: a collection would fall into whichever section comes then
        helper.counting_begin()
        helper.counting_note(_BEGIN.encode())  # so that what came before is in no section
        for name, section in everything.items():
            for _ in range(TIMES):
                section()
            helper.counting_note(name.encode())


if __name__ == "__main__":
    run(sys.argv[1])
