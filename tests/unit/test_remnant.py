"""What is left of a process: it outlives nothing but its maker's death, and that only for a moment."""

import subprocess
import sys

import pytest

from recovery_box import sibling

SCRIPT = """
import os, signal, sys, time
from recovery_box import _clone
from recovery_box.prctl import adopt_orphans

def state(pid):
    with open(f"/proc/{pid}/stat") as f:
        return f.read().rpartition(")")[2].split()[0]

def until(condition):
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)

adopt_orphans()
tells, said = os.pipe()
maker = os.fork()
if not maker:
    os.write(said, b"%d" % _clone.remnant(b"rest", b"maker", int(sys.argv[1])))
    while True:
        signal.pause()
rest = int(os.read(tells, 20))
with open(f"/proc/{rest}/comm") as its, open(f"/proc/{maker}/comm") as own:
    print(its.read().strip(), own.read().strip(), os.getpriority(os.PRIO_PROCESS, rest))
os.kill(rest, signal.SIGSTOP)
until(lambda: state(rest) == "T")
for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGCONT):
    os.kill(rest, number)
until(lambda: state(rest) == "S")
print(state(rest))
os.kill(maker, signal.SIGKILL)
print(os.waitpid(maker, 0)[1])
print(os.waitpid(rest, 0) == (rest, 0))
"""


@pytest.mark.skipif(not sibling.POSSIBLE, reason="there was no compiler for the helper")
@pytest.mark.parametrize("pause", ["0", "3000000"])
def test_it_ends_after_its_maker_and_for_no_other_reason(pause: str) -> None:
    script = [sys.executable, "-c", SCRIPT, pause]
    said = subprocess.run(script, capture_output=True, text=True, timeout=60, check=True).stdout
    assert said.splitlines() == ["rest maker 17", "S", "9", "True"]
